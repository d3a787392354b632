"""Token credit of spans in the real GRPOTrainer, against what was recorded on the wire."""

import json
import math
import re
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")

import torch
from datasets import Dataset
from trl import GRPOTrainer

from adapters.model_service import choosy, judged
from adapters.trainers import (
    LOSSES,
    MARKS,
    PARSER,
    PROMPTS,
    Watch,
    asked,
    check_alignment,
    check_gradients,
    length,
    recorded,
    score,
    scripted,
    trainer_of,
)
from creditd.adapters.trl import CandidateReward, CreditConfig, SpanReward, attach
from creditd.client import InvalidRequestError, NotFoundError, PartialResultError, TransportError
from services import running_service

pytestmark = MARKS
SERVICE = Path(__file__).with_name("model_service.py")
NOBODY = "http://127.0.0.1:9"
AGREEMENT = 1e-6
HERE = CreditConfig(url="local:")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A service whose models judge completions."""
    with running_service(script=SERVICE, directory=tmp_path_factory.mktemp("service")) as address:
        yield address


def function_of(model):
    """The function that says the same as a model, and how many texts each of its calls had."""
    calls = []

    def scores(prompts, texts):
        calls.append(len(texts))
        return [model(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    return scores, calls


def run(directory, reward, url, *, attached=False, config=None, spans=None, others=(length,), **options):
    """A trainer after some steps, and what its losses saw."""
    torch.manual_seed(0)
    credit = CreditConfig(url=url, record=str(directory / "wire"), **(config or {}))
    kinds = {"kind": GRPOTrainer} if attached else {"credit": credit}
    rewards = [SpanReward(reward, name="spans", **(spans or {})), *others]
    trainer = trainer_of(directory, rewards=rewards, **kinds, **options)
    if attached:
        attach(trainer, credit)
    return trainer, trained(trainer)


def trained(trainer):
    """What the losses of a trainer saw; its connections are given up."""
    watch = Watch(trainer)
    with trainer._creditor.client:
        trainer.train()
    return watch


OF_TIME_AND_COST = ("seconds", "runtime", "per_second", "share", "time", "tokens_", "evaluations", "cache")


def log_of(trainer):
    """The entries of a log that are the same in two runs of the same training."""
    return [
        {name: value for name, value in entry.items() if not any(part in name for part in OF_TIME_AND_COST)}
        for entry in trainer.state.log_history
    ]


def check_same(one, other):
    """Two runs trained on the same advantages and logged the same rewards."""
    (first, seen), (second, expected) = one, other
    assert len(seen.rows) == len(expected.rows) > 0
    for (ids, mask, advantages, gradient), (known, _, wanted, slope) in zip(seen.rows, expected.rows, strict=True):
        assert torch.equal(ids, known)
        assert advantages.shape == mask.shape
        torch.testing.assert_close(advantages, wanted, rtol=0, atol=AGREEMENT)
        torch.testing.assert_close(gradient, slope, rtol=0, atol=AGREEMENT)
    for entry, wanted in zip(log_of(first), log_of(second), strict=True):
        assert entry == pytest.approx(wanted, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize(("loss_type", "level"), [*[(loss, "token") for loss in LOSSES], ("cispo", "sequence")])
def test_exactly_the_tokens_move_by_the_advantages_that_came_over_the_wire(loss_type, level, url, tmp_path):
    """On and off policy, each token's gradient is that of its own advantage, and there is none anywhere else."""
    trainer, watch = run(
        tmp_path,
        "judged",
        url,
        spans={"segmentation": "token"},
        loss_type=loss_type,
        importance_sampling_level=level,
        num_iterations=2,
        gradient_accumulation_steps=2,
        max_steps=4,
    )
    check_alignment(watch, recorded(tmp_path / "wire"))
    assert len(watch.rows) == 8
    check_gradients(trainer, watch, level)
    kinds = [len(set(row[row != 0].tolist())) for _, _, advantages in watch.generated for row in advantages]
    assert max(kinds) > 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attached": True},
        {"others": (), "spans": {"credit": "prefix", "segmentation": "token", "absent": "blank"}},
        {"reward_weights": [2.0, 0.5], "gradient_accumulation_steps": 2},
        {"spans": {"alpha": lambda step: min(1.0, step / 3), "credit": lambda step: "prefix" if step % 2 else "owen"}},
        {"spans": {"estimator": {"type": "permutations", "budget": 40}, "segmentation": "token"}, "num_iterations": 2},
    ],
    ids=["plain", "attached", "alone", "weights", "schedules", "sample"],
)
def test_a_model_trains_as_the_function_that_says_the_same(options, url, tmp_path):
    """The advantages that reach the loss, their gradients and what TRL logs are those of a Python function."""
    given = options | {"max_steps": 4}
    by_model = run(tmp_path / "model", "judged", url, **given)
    check_alignment(by_model[1], recorded(tmp_path / "model" / "wire"))
    scores, calls = function_of(judged)
    check_same(run(tmp_path / "function", scores, url, **given), by_model)
    assert calls
    assert not list((tmp_path / "function" / "wire").glob("*.json"))
    check_same(run(tmp_path / "local", scores, "local:", **given), by_model)


def test_one_request_per_generation(url, tmp_path):
    """It has the completions with their tokens, what the other functions gave by their weights, and whole groups."""
    trainer, watch = run(tmp_path, "judged", url, max_steps=2, reward_weights=[0.5, 2.0])
    bodies = asked(tmp_path / "wire")
    assert len(bodies) == len(watch.generated) == len(trainer.credit_request_ids) == 2
    for body, entry, (ids, mask, _) in zip(bodies, trainer.state.log_history, watch.generated, strict=False):
        assert (body["model"], body["expect"], body["alpha"]) == ("judged", {"group_size": 4}, 1.0)
        assert body["advantage"] == {"type": "pooled"}
        texts = [item["completion"] for item in body["items"]]
        assert [item["group"] for item in body["items"]] == [0] * 4 + [1] * 4
        decoded = trainer.processing_class.batch_decode(ids, skip_special_tokens=False)
        for item, text, written, kept in zip(body["items"], texts, decoded, mask, strict=True):
            assert item["prompt"] in PROMPTS
            assert len(item["token_offsets"]) == int(kept.sum())
            assert [word for word in written.split() if word not in {"<pad>", "<eos>"}] == text.split()
            assert "completion_mask" not in item
            # w_k/w times what the function gave; its reward looks at the text as TRL decodes it.
            assert item["other_reward"] in {4.0 * value for value in (0.0, 1.0, 2.0)}
        rewards = [judged(item["prompt"], item["completion"]) for item in body["items"]]
        assert entry["rewards/spans/mean"] == pytest.approx(sum(rewards) / 8, abs=1e-5)
        totals = [value + item["other_reward"] for value, item in zip(rewards, body["items"], strict=True)]
        assert entry["reward"] == pytest.approx(0.5 * sum(totals) / 8, abs=1e-5)
        names = ("seconds", "model_seconds", "fallbacks", "units", "units_merged", "fallback_returns", "alpha")
        assert all(math.isfinite(entry[f"credit/{name}"]) for name in (*names, "gap_max", "within_completion_std"))


def test_without_units_it_is_grpo(tmp_path):
    """α = 0 trains each group as plain TRL does with the same weighted rewards, but for one positive factor."""

    def scored(prompts, completions, **_):
        return [judged(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]

    weights = {"reward_weights": [0.5, 0.25], "max_steps": 1, "rollout_func": scripted(WRITTEN)}
    _, watch = run(tmp_path, function_of(judged)[0], "local:", spans={"alpha": 0.0}, **weights)
    torch.manual_seed(0)
    plain = trainer_of(tmp_path, kind=GRPOTrainer, rewards=[scored, length], **weights)
    expected = Watch(plain)
    plain.train()
    ((ids, mask, advantages),), ((known, _, wanted),) = watch.generated, expected.generated
    assert torch.equal(ids, known)
    assert wanted.any()
    for group in (slice(0, 4), slice(4, 8)):
        whole = [set(row[kept == 1].tolist()) for row, kept in zip(advantages[group], mask[group], strict=True)]
        assert all(len(values) == 1 for values in whole)
        own = torch.tensor([values.pop() for values in whole])
        factors = own / wanted[group]
        assert (factors > 0).all()
        torch.testing.assert_close(factors, factors[:1].expand_as(factors), rtol=1e-3, atol=0)


WRITTEN = [
    ["one", ";", "two", "<eos>"],
    ["three", ";", "four", ";", "six", ";", "one", "<eos>"],
    ["<eos>"],
    ["two", ";", "five", ";", "two", ";", "three", ";"],
]
TOOL = ["ask", "one", "five", "five", ";", "two", "<eos>"]
MASK = [1, 1, 0, 0, 1, 1, 1]


def test_what_a_tool_wrote_is_read_and_never_credited(url, tmp_path):
    """Its tokens are in no unit and in every text, have exactly 0, and no unit spans them."""
    completions = [TOOL, ["ask", "two", "six", "six", ";", "three", "<eos>"]]
    for reward, where in (("judged", tmp_path / "model"), (function_of(judged)[0], tmp_path / "function")):
        _, watch = run(where, reward, url, max_steps=1, rollout_func=scripted(completions, masks=[MASK, MASK]))
        ((_, kept, advantages),) = watch.generated
        assert not advantages[:, 2:4].any()
        assert not advantages[kept == 0].any()
        assert advantages[kept == 1].any()
    (body,) = asked(tmp_path / "model" / "wire")
    assert body["items"][0]["completion_mask"] == list(map(bool, MASK))
    assert body["items"][0]["completion"].split() == TOOL[:-1]
    (exchange,) = (tmp_path / "model" / "wire").glob("*.json")
    item = json.loads(json.loads(exchange.read_text())["response"])["items"][0]
    assert item["units"] == [[0, 2], [4, 5], [5, 7]]


def test_an_empty_completion_and_a_cut_off_one(url, tmp_path):
    """Nothing written, nothing but an end, and no end: each token has the advantage of the wire."""
    _, watch = run(tmp_path, "judged", url, max_steps=1, rollout_func=scripted(WRITTEN))
    check_alignment(watch, recorded(tmp_path / "wire"))
    (body,) = asked(tmp_path / "wire")
    texts = {item["completion"] for item in body["items"]}
    assert {"", "one ; two", "two ; five ; two ; three ;"} <= texts


@pytest.mark.parametrize("credit_in_eval", [False, True])
@pytest.mark.parametrize("reward", ["judged", "function"])
def test_evaluation_has_the_rewards(reward, credit_in_eval, url, tmp_path):
    """TRL logs v(P) in evaluation, and credit is asked for only when told; the function is then not asked for more."""
    scores, calls = function_of(judged)
    trainer = trainer_of(
        tmp_path,
        rewards=[SpanReward("judged" if reward == "judged" else scores, name="spans"), length],
        credit=CreditConfig(url=url, credit_in_eval=credit_in_eval, record=str(tmp_path / "wire")),
        per_device_eval_batch_size=4,
        num_generations_eval=2,
        eval_dataset=Dataset.from_dict({"prompt": PROMPTS}),
    )
    with trainer._creditor.client:
        metrics = trainer.evaluate()
    assert math.isfinite(metrics["eval_rewards/spans/mean"])
    assert ("eval_credit/units" in metrics) is credit_in_eval
    assert trainer.credit_request_ids == []
    bodies = asked(tmp_path / "wire")
    assert len(bodies) == (2 if reward == "judged" else 0)
    for body in bodies:
        assert body["credit"]["type"] == ("auto" if credit_in_eval else "uniform")
    if reward != "judged" and not credit_in_eval:
        assert calls == [4, 4]


@pytest.mark.parametrize("policy", ["raise", "group_reward", "mask", "local"])
def test_without_the_service_the_policy_has_its_way(policy, tmp_path):
    """A function still gives the rewards: the plain advantage is TRL's own with them, or 0, or credit made here."""
    options = {"max_steps": 1, "rollout_func": scripted(WRITTEN)}
    config = {"on_failure": policy, "deadline_s": 0.3}
    if policy == "raise":
        with pytest.raises(TransportError):
            run(tmp_path, function_of(judged)[0], NOBODY, config=config, **options)
        return
    trainer, watch = run(tmp_path / "lost", function_of(judged)[0], NOBODY, config=config, **options)
    sound, expected = run(tmp_path / "sound", function_of(judged)[0], "local:", **options)
    entry, wanted = trainer.state.log_history[0], sound.state.log_history[0]
    local = float(policy == "local")
    assert [entry[f"credit/{name}"] for name in ("errors", "local", "fallbacks")] == [1.0, local, 1.0 - local]
    for name in ("reward", "reward_std", "rewards/spans/mean", "rewards/length/mean"):
        assert entry[name] == pytest.approx(wanted[name], abs=1e-6)
    ((_, mask, advantages),), ((_, _, whole),) = watch.generated, expected.generated
    assert trainer.credit_request_ids == []
    if policy == "local":
        assert torch.equal(advantages, whole)
    elif policy == "mask":
        assert not advantages.any()
    else:
        assert all(len(set(row[kept == 1].tolist())) == 1 for row, kept in zip(advantages, mask, strict=True))
        assert advantages.any()


@pytest.mark.parametrize("policy", ["group_reward", "mask"])
def test_without_the_service_a_models_other_rewards_train_nothing(policy, tmp_path):
    """Nobody knows v(P) then: the log has what the others gave, and no completion is better than another by them."""
    config = {"on_failure": policy, "deadline_s": 0.3}
    trainer, watch = run(tmp_path, "judged", NOBODY, config=config, max_steps=1, rollout_func=scripted(WRITTEN))
    entry = trainer.state.log_history[0]
    assert (entry["credit/fallbacks"], entry["credit/errors"]) == (1.0, 1.0)
    assert entry["rewards/length/mean"] > 0
    assert entry["rewards/length/std"] > 0
    assert len(trainer._logs["rewards"]["length"]) == 8
    assert not any(math.isnan(value) for value in trainer._logs["rewards"]["length"])
    assert all(math.isnan(value) for value in trainer._logs["rewards"]["spans"])
    assert [entry[name] for name in ("reward", "rewards/spans/mean", "grad_norm")] == [None, None, 0.0]
    assert not watch.generated[0][2].any()


UNEQUAL = [["one", "<eos>"], ["two", ";", "one", "<eos>"], ["three", ";", "two", "<eos>"], ["four", "<eos>"]]


@pytest.mark.parametrize("failed", [1, 3, 4])
@pytest.mark.parametrize("reward", ["choosy", "function"])
def test_a_completion_without_a_reward_counts_for_nothing(reward, failed, url, tmp_path):
    """It has 0 however much another function gave it, and the others have TRL's advantage among themselves."""

    def rollout(prompts, trainer):
        cursed = scripted([*UNEQUAL[: 4 - failed], *[["six", "five", "<eos>"]] * failed])(prompts, trainer)
        sound = scripted(WRITTEN[:2])(prompts, trainer)
        return {name: [*cursed[name][:4], *sound[name][4:]] for name in cursed}

    def other(completions, **_):
        return [9.0 + len(text) if "five" in text else float(len(text) % 7) for text in completions]

    judge = "choosy" if reward == "choosy" else function_of(choosy)[0]
    options = {"max_steps": 1, "rollout_func": rollout, "others": (other,), "reward_weights": [0.5, 2.0]}
    trainer, watch = run(tmp_path, judge, url, config={"on_failure": "group_reward"}, **options)
    ((_, mask, advantages),) = watch.generated
    own, given = (torch.tensor(list(trainer._logs["rewards"][name])) for name in ("spans", "other"))
    assert torch.isnan(own).tolist() == [*(place >= 4 - failed for place in range(4)), *[False] * 4]
    assert not torch.isnan(given).any()
    known = (0.5 * own + 2.0 * given)[: 4 - failed]
    expected = torch.zeros(4)
    if failed < 3:
        expected[: 4 - failed] = (known - known.mean()) / (known.std() + 1e-4)
    torch.testing.assert_close(advantages[:4], expected.unsqueeze(1) * mask[:4], rtol=0, atol=1e-5)
    assert advantages[:4].any() == (failed < 3)
    assert advantages[4:].any()
    entry = trainer.state.log_history[0]
    assert (entry["credit/fallbacks"], entry["credit/errors"]) == (0.5, 1.0)
    assert entry["rewards/other/mean"] == pytest.approx(given.mean().item(), abs=1e-5)


CURSED = [["one", ";", "two", "<eos>"], ["three", "<eos>"], ["six", "five", "<eos>"], ["one", ";", "one", "<eos>"]]


@pytest.mark.parametrize("policy", ["raise", "group_reward", "mask"])
@pytest.mark.parametrize("reward", ["choosy", "function"])
def test_a_completion_without_a_reward_fails_its_group(reward, policy, url, tmp_path):
    """Under `raise` it stops the run, naming the completion; else its group alone has what the policy says."""

    def rollout(prompts, trainer):
        out = scripted(CURSED)(prompts, trainer)
        sound = scripted(CURSED[:2])(prompts, trainer)
        # The second group has no word that the model has no number for.
        return {name: [*out[name][:4], *sound[name][4:]] for name in out}

    judge = "choosy" if reward == "choosy" else function_of(choosy)[0]
    options = {"config": {"on_failure": policy}, "max_steps": 1, "rollout_func": rollout}
    if policy == "raise":
        with pytest.raises(PartialResultError, match="1 of 8 rows have no answer"):
            run(tmp_path, judge, url, **options)
        return
    trainer, watch = run(tmp_path, judge, url, **options)
    entry = trainer.state.log_history[0]
    assert (entry["credit/fallbacks"], entry["credit/errors"]) == (0.5, 1.0)
    ((_, mask, advantages),) = watch.generated
    assert advantages[4:].any()
    failed = [set(row[kept == 1].tolist()) for row, kept in zip(advantages[:4], mask[:4], strict=True)]
    assert all(len(values) == 1 for values in failed)
    assert advantages[:4].any() == (policy == "group_reward")


def test_a_coalition_without_a_reward_leaves_the_return(tmp_path):
    """The completion trains on its undivided return, which the log counts."""
    picky = [["one", ";", "five", ";", "two", "<eos>"], ["three", ";", "two", "<eos>"]]
    function, _ = function_of(lambda prompt, text: math.nan if text == "one ;" else judged(prompt, text))
    trainer, _ = run(tmp_path, function, "local:", max_steps=1, rollout_func=scripted(picky))
    entry = trainer.state.log_history[0]
    assert (entry["credit/fallback_returns"], entry["credit/fallbacks"], entry["credit/errors"]) == (0.5, 0.0, 0.0)


def test_what_a_service_refuses_stops_every_run(url, tmp_path):
    """No such model, and choices that this one cannot answer, are no lost service."""
    with pytest.raises(NotFoundError, match="this service has"):
        run(tmp_path, "another", url, config={"on_failure": "mask"}, max_steps=1)
    with pytest.raises(InvalidRequestError):
        run(tmp_path, "judged", url, spans={"credit": "attention"}, config={"on_failure": "mask"}, max_steps=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reward_weights": [0.0, 1.0]}, "got reward weight 0 for the span reward; expected a number above 0"),
        ({"reward_weights": [-1.0, 1.0]}, "got reward weight -1 for the span reward"),
        ({"scale_rewards": "none"}, "got scale_rewards='none' with a SpanReward"),
        ({"scale_rewards": "batch"}, "got scale_rewards='batch' with a SpanReward"),
        (
            {"multi_objective_aggregation": "normalize_then_sum"},
            "got multi_objective_aggregation='normalize_then_sum' with 1 reward functions beside the span reward",
        ),
        ({"importance_sampling_level": "sequence"}, "importance_sampling_level='sequence'"),
        (
            {"credit": CreditConfig(url="local:", credit="leave_one_out")},
            "got CreditConfig(credit=…) with a SpanReward",
        ),
    ],
)
def test_settings_that_would_lose_the_credit_are_refused(options, said, tmp_path):
    """At the start, naming both settings."""
    given = {"credit": HERE, "rewards": [SpanReward(function_of(judged)[0]), length]} | options
    with pytest.raises(ValueError, match=re.escape(said)):
        trainer_of(tmp_path, **given)


def test_one_reward_of_creditd_for_each_trainer(tmp_path):
    """Two are refused, whatever their kinds, and so is one that belongs to another trainer."""
    spans = SpanReward(function_of(judged)[0])
    for rewards in ([spans, CandidateReward(score, parser=PARSER)], [spans, SpanReward("rm")]):
        with pytest.raises(ValueError, match="expected exactly one CandidateReward or SpanReward"):
            trainer_of(tmp_path, rewards=rewards, credit=HERE)
    trainer_of(tmp_path, rewards=spans, credit=HERE)
    with pytest.raises(ValueError, match="got the SpanReward scores of another trainer"):
        trainer_of(tmp_path, rewards=spans, credit=HERE)
    trainer_of(
        tmp_path,
        rewards=[SpanReward(function_of(judged)[0]), length],
        credit=HERE,
        multi_objective_aggregation="normalize_then_sum",
        reward_weights=[1.0, 0.0],
    )


def test_conversations_travel_as_messages(url, tmp_path):
    """TRL's messages are the wire's; a call of a tool in the prompt is refused in words, but not for a function."""
    template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    chats = [[{"role": "system", "content": "be brief"}, {"role": "user", "content": text}] for text in PROMPTS]
    run(tmp_path, "judged", url, max_steps=1, others=(), columns={"prompt": chats * 4}, chat_template=template)
    (body,) = asked(tmp_path / "wire")
    assert all(item["prompt"] in chats for item in body["items"])
    called = [[{"role": "user", "content": "ask one", "name": "x"}]] * 16
    odd = {"max_steps": 1, "others": (), "columns": {"prompt": called}, "chat_template": template}
    with pytest.raises(ValueError, match=r"got content, name, role in message 0"):
        run(tmp_path, "judged", url, **odd)
    prompts = []

    def watched(asked_for, texts):
        prompts.extend(asked_for)
        return [float(len(text)) for text in texts]

    run(tmp_path, watched, "local:", **odd)
    assert all(prompt == called[0] for prompt in prompts)
