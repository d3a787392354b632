"""A reward model of the service in the place of the candidate reward function, in the real GRPOTrainer."""

import json
import math
import re
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")

import torch
from datasets import Dataset
from trl import GRPOTrainer

from adapters.model_service import cursed, worth
from adapters.trainers import (
    MARKS,
    PARSER,
    PROMPTS,
    Watch,
    asked,
    check_alignment,
    length,
    recorded,
    scripted,
    trainer_of,
)
from creditd.adapters.trl import CandidateReward, CreditConfig, anneal, attach
from creditd.client import Client, InvalidRequestError, NotFoundError, PartialResultError, ServerError
from services import running_service

pytestmark = MARKS
SERVICE = Path(__file__).with_name("model_service.py")
AGREEMENT = 1e-6


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A service whose models score words."""
    with running_service(script=SERVICE, directory=tmp_path_factory.mktemp("service")) as address:
        yield address


def function_of(score):
    """The candidate reward function that says the same as a model."""

    def rewards(prompts, candidates, completions, **_):
        assert len(prompts) == len(completions)
        return [[score(prompt, text) for text in row] for prompt, row in zip(prompts, candidates, strict=True)]

    return rewards


def run(directory, reward, url, *, attached=False, config=None, others=(length,), **options):
    """A trainer after some steps, and what its losses saw."""
    torch.manual_seed(0)
    credit = CreditConfig(url=url, record=str(directory / "wire"), **(config or {}))
    kinds = {"kind": GRPOTrainer} if attached else {"credit": credit}
    rewards = [CandidateReward(reward, parser=PARSER, name="candidates"), *others]
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


def splits_of(columns):
    """Where the candidates of each set begin and end."""
    return columns["row_splits"][:-1], columns["row_splits"][1:]


def log_of(
    trainer, *, without=("seconds", "runtime", "per_second", "share", "time", "tokens_", "evaluations", "cache")
):
    """The entries of a log that are the same in two runs of the same training."""
    return [
        {name: value for name, value in entry.items() if not any(part in name for part in without)}
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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attached": True},
        {"others": ()},
        {"config": {"utility": {"type": "top_m", "m": 2}, "candidates": 2, "tokens": {"other": "next"}}},
        {"config": {"malformed": {"duplicates": "collapse", "failure_reward": -2.0}, "credit": "leave_one_out"}},
        {"config": {"credit": anneal("shapley", "leave_one_out", steps=4)}, "num_iterations": 2},
        {"reward_weights": [1.0, 0.5], "gradient_accumulation_steps": 2},
    ],
    ids=["plain", "attached", "alone", "top m", "collapse", "schedule", "weights"],
)
def test_a_model_trains_as_the_function_that_says_the_same(options, url, tmp_path):
    """The advantages that reach the loss, their gradients and what TRL logs are those of a Python function."""
    given = options | {"max_steps": 4}
    by_model = run(tmp_path / "model", "rm", url, **given)
    by_function = run(tmp_path / "function", function_of(worth), url, **given)
    check_same(by_model, by_function)
    check_alignment(by_model[1], recorded(tmp_path / "model" / "wire"))


def test_one_request_per_generation_asks_the_model_once(url, tmp_path):
    """Prompts and texts travel and no rewards do; the log counts what the model did."""
    trainer, watch = run(tmp_path, "rm", url, max_steps=2)
    bodies = asked(tmp_path / "wire")
    assert len(bodies) == len(watch.generated) == len(trainer.credit_request_ids) == 2
    for body, entry in zip(bodies, trainer.state.log_history, strict=False):
        assert body["rewards"] == {"type": "model", "model": "rm"}
        columns = body["columns"]
        assert "rewards" not in columns
        assert set(columns["prompts"]) <= set(PROMPTS)
        assert len(columns["texts"]) == columns["row_splits"][-1]
        assert body["expect"] == {"group_size": 4}
        pairs = [
            (prompt, text)
            for prompt, start, stop in zip(columns["prompts"], *splits_of(columns), strict=True)
            for text in columns["texts"][start:stop]
        ]
        assert entry["credit/evaluations"] + entry["credit/from_cache"] == len(set(pairs))
        assert entry["credit/tokens_naive"] >= entry["credit/tokens_computed"]
        # The service remembers what other tests asked it: then nothing is left to compute.
        assert (entry["credit/tokens_computed"] > 0) == (entry["credit/evaluations"] > 0)
        for name in ("seconds", "model_seconds", "fallbacks", "candidates"):
            assert math.isfinite(entry[f"credit/{name}"])


def test_conversations_travel_as_messages(url, tmp_path):
    """TRL's messages are the wire's; the model reads them through its template."""
    chats = [[{"role": "system", "content": "be brief"}, {"role": "user", "content": text}] for text in PROMPTS]
    runs = []
    for name, reward in (("model", "rm"), ("function", function_of(worth))):
        torch.manual_seed(0)
        credit = CreditConfig(url=url, record=str(tmp_path / name))
        trainer = trainer_of(
            tmp_path,
            rewards=[CandidateReward(reward, parser=PARSER, name="candidates")],
            credit=credit,
            columns={"prompt": chats * 4},
            chat_template="{% for message in messages %}{{ message['content'] }} {% endfor %}",
        )
        runs.append((trainer, trained(trainer)))
    check_same(*runs)
    assert all(prompt in chats for body in asked(tmp_path / "model") for prompt in body["columns"]["prompts"])


def test_a_generation_without_a_candidate_has_the_failure_reward(url, tmp_path):
    """The model is asked about nothing, and nothing stops."""
    config = {"malformed": {"failure_reward": -2.0}, "on_failure": "raise"}
    trainer, watch = run(
        tmp_path, "rm", url, config=config, others=(), max_steps=1, rollout_func=scripted([[";", ";"], [";", "<eos>"]])
    )
    entry = trainer.state.log_history[0]
    assert (entry["reward"], entry["credit/evaluations"], entry["credit/malformed"]) == (-2.0, 0.0, 1.0)
    assert not watch.generated[0][2].any()


@pytest.mark.parametrize("credit_in_eval", [False, True])
def test_evaluation_has_the_models_rewards(credit_in_eval, url, tmp_path):
    """The reward that TRL logs in evaluation is that of the same function, whether credit is asked for or not."""
    entries = []
    for name, reward in (("model", "rm"), ("function", function_of(worth))):
        torch.manual_seed(0)
        trainer = trainer_of(
            tmp_path,
            rewards=[CandidateReward(reward, parser=PARSER, name="candidates"), length],
            credit=CreditConfig(url=url, credit_in_eval=credit_in_eval, record=str(tmp_path / name)),
            per_device_eval_batch_size=4,
            num_generations_eval=2,
            eval_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        )
        with trainer._creditor.client:
            trainer.evaluate()
        entries.append(log_of(trainer))
        assert trainer.credit_request_ids == []
    assert entries[0][-1] == pytest.approx(entries[1][-1], abs=1e-5)
    assert ("eval_credit/candidates" in entries[0][-1]) is credit_in_eval
    assert len(asked(tmp_path / "model")) == 2


@pytest.mark.parametrize("policy", ["group_reward", "mask"])
def test_a_number_that_the_model_lacks_costs_its_group_alone(policy, url, tmp_path):
    """NaN fails its set as that of a function does, under each policy."""
    config = {"config": {"on_failure": policy}, "max_steps": 2}
    by_model = run(tmp_path / "model", "cursed", url, **config)
    check_same(by_model, run(tmp_path / "function", function_of(cursed), url, **config))
    shares = [entry["credit/fallbacks"] for entry in by_model[0].state.log_history if "credit/fallbacks" in entry]
    assert max(shares) > 0


def test_under_raise_it_stops_the_run(url, tmp_path):
    """The error names the set; one of a model that fails or is not there is the service's."""
    with pytest.raises((PartialResultError, InvalidRequestError), match=r"non_finite|not a finite|NaN"):
        run(tmp_path, "cursed", url, max_steps=4)
    with pytest.raises(NotFoundError, match="this service has: broken, choosy, cursed, judged, rm"):
        run(tmp_path, "another", url, max_steps=1, config={"on_failure": "mask"})
    with pytest.raises(ServerError, match="the model failed"):
        run(tmp_path, "broken", url, max_steps=1, config={"deadline_s": 3.0})


@pytest.mark.parametrize("policy", ["raise", "group_reward", "mask"])
def test_a_text_that_is_too_long_is_the_failure_policys(policy, tmp_path):
    """Never cut, never zero: what does not fit the model fails its group."""
    spec = json.dumps({"max_tokens": len("ask two") + len("four")})
    config = {"config": {"on_failure": policy}, "max_steps": 1, "others": ()}
    with running_service(spec, script=SERVICE, directory=tmp_path) as url:
        if policy == "raise":
            with pytest.raises((PartialResultError, InvalidRequestError), match="expected at most 11"):
                run(tmp_path, "rm", url, **config)
            return
        trainer, watch = run(tmp_path, "rm", url, **config)
    entry = trainer.state.log_history[0]
    assert entry["credit/errors"] == 1.0
    assert 0 < entry["credit/fallbacks"] <= 1
    assert torch.isfinite(watch.generated[0][2]).all()


@pytest.mark.parametrize("policy", ["group_reward", "mask"])
def test_without_the_service_the_other_rewards_train_nothing(policy, tmp_path):
    """Nobody knows the candidates' rewards then: the log has those of the other functions, and all advantages are 0."""
    config = {"on_failure": policy, "deadline_s": 0.3}
    trainer, watch = run(tmp_path / "lost", "rm", "http://127.0.0.1:9", config=config, max_steps=1)
    entry = trainer.state.log_history[0]
    assert (entry["credit/fallbacks"], entry["credit/errors"]) == (1.0, 1.0)
    assert trainer.credit_request_ids == []
    (_, mask, advantages) = watch.generated[0]
    assert advantages.shape == mask.shape
    assert not advantages.any()
    assert entry["rewards/length/mean"] > 0
    assert [entry[name] for name in ("reward", "rewards/candidates/mean")] == [None, None]


NUMBERED = [["one", "<eos>"], ["one", ";", "two", "<eos>"], ["five", "<eos>"], ["two", ";", "six", "<eos>"]]


@pytest.mark.parametrize("reward", ["cursed", "function"])
@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_a_set_without_a_number_counts_for_nothing(reward, aggregation, url, tmp_path):
    """It has 0, and what the others of its group have does not depend on what another function gave it."""
    found = []
    for extra in (9.0, -9.0):

        def other(completions, extra=extra, **_):
            return [extra if "five" in text else float(len(text) % 7) for text in completions]

        trainer, watch = run(
            tmp_path / str(extra),
            "cursed" if reward == "cursed" else function_of(cursed),
            url,
            config={"on_failure": "group_reward"},
            others=(other,),
            max_steps=1,
            rollout_func=scripted(NUMBERED),
            multi_objective_aggregation=aggregation,
        )
        ((_, mask, advantages),) = watch.generated
        assert trainer.state.log_history[0]["credit/fallbacks"] == 1.0
        assert not advantages[[2, 6]].any()
        assert all(len(set(row[kept == 1].tolist())) == 1 for row, kept in zip(advantages, mask, strict=True))
        found.append(advantages)
    assert found[0].any()
    assert torch.equal(*found)


def test_what_cannot_work_is_refused_at_the_start(tmp_path):
    """Without a service there is no model, and no policy can compute its rewards."""
    for config, said in (
        (CreditConfig(url="local:"), "got the model 'rm' as candidate reward with url='local:'"),
        (CreditConfig(url="http://127.0.0.1:9", on_failure="local"), "on_failure='local': without the service"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            trainer_of(tmp_path, rewards=CandidateReward("rm", parser=PARSER), credit=config)
    with pytest.raises(ValueError, match="utility is a model's; expected one of rewards"):
        CreditConfig(utility={"type": "model", "model": "rm"})


def test_a_prompt_that_no_model_reads_is_refused_in_words(url, tmp_path):
    """A call of a tool in the prompt is no text of it."""
    called = [{"role": "user", "content": "ask one", "name": "x"}]
    with pytest.raises(
        ValueError, match=r"got content, name, role in message 0 of the prompt .*role and content alone"
    ):
        run(
            tmp_path,
            "rm",
            url,
            max_steps=1,
            columns={"prompt": [called] * 16},
            chat_template="{% for message in messages %}{{ message['content'] }} {% endfor %}",
        )


@pytest.mark.models
def test_a_real_reward_model_scores_the_candidates(tmp_path):
    """`creditd serve` loads a model from a folder; training on its id is training on its scores."""
    from engines.saved import saved

    saved(tmp_path / "models" / "rm")
    (tmp_path / "service.toml").write_text(
        f'models_root = "{tmp_path / "models"}"\n\n[[models]]\nid = "rm"\npath = "rm"\n'
    )
    with (
        running_service("--config", str(tmp_path / "service.toml"), directory=tmp_path) as address,
        Client(address) as client,
    ):
        (model,) = client.models()
        assert (model.id, model.backend) == ("rm", "local")

        def rewards(prompts, candidates, completions, **_):
            """The scores of the model, one by one, by their Shapley credit in sets of one."""
            assert len(prompts) == len(completions)
            pairs = [(prompt, text) for prompt, row in zip(prompts, candidates, strict=True) for text in row]
            found = client.shapley(
                texts=[[text] for _, text in pairs], prompts=[prompt for prompt, _ in pairs], rewards="rm"
            )
            scores = iter(found.credits.values.tolist())
            return [[next(scores) for _ in row] for row in candidates]

        by_model = run(tmp_path / "model", "rm", address, max_steps=2)
        by_function = run(tmp_path / "function", rewards, address, max_steps=2)
    check_same(by_model, by_function)
