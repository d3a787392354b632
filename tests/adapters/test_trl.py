"""Candidate credit in the real GRPOTrainer, against what was recorded on the wire."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")
pytestmark = [
    pytest.mark.trainer,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:credit took more than:RuntimeWarning"),  # of the steps of a tiny model
]

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from adapters.tiny import PARSER, WORDS, model, tokenizer  # noqa: E402
from creditd.adapters.trl import CandidateReward, CreditConfig, CreditGRPOTrainer, anneal, attach  # noqa: E402
from creditd.client import CreditdError  # noqa: E402
from services import running_service  # noqa: E402

PROMPTS = ["ask one", "ask two", "ask three", "ask four"]
LOSSES = ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo"]
AGREEMENT = 1e-5
"""Gradients are float32 sums over a few dozen tokens."""


def score(prompts, candidates, completions, **columns):
    """A reward per word; `six` was not scored."""
    assert len(prompts) == len(candidates) == len(completions)
    assert "trainer_state" in columns
    values = {word: place / 5 for place, word in enumerate(WORDS)} | {"six": None}
    return [[values.get(text, -1.0) for text in row] for row in candidates]


async def score_later(prompts, candidates, completions, **columns):
    """The same as a coroutine."""
    return score(prompts, candidates, completions, **columns)


def length(completions, **_):
    """A reward of the whole response."""
    return [float(len(text) % 3) for text in completions]


def trainer_of(
    directory,
    *,
    kind=CreditGRPOTrainer,
    rewards=None,
    credit=None,
    peft=None,
    rollout_func=None,
    ends=None,
    **options,
):
    """A trainer of a tiny model with groups of four."""
    settings = {
        "output_dir": str(directory),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "seed": 0,
        "disable_tqdm": True,
    } | options
    extra = {} if credit is None else {"credit": credit}
    net = model()
    if ends is not None:
        net.generation_config.eos_token_id = ends
    return kind(
        model=net,
        args=GRPOConfig(**settings),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 4}),
        processing_class=tokenizer(),
        reward_funcs=rewards or [CandidateReward(score, parser=PARSER), length],
        peft_config=peft,
        rollout_func=rollout_func,
        **extra,
    )


def recorded(directory):
    """Token advantages of each exchange, in the order in which they were asked for."""
    batches = []
    for path in sorted(Path(directory).glob("*.json")):
        response = json.loads(json.loads(path.read_text())["response"])
        ragged = response["columns"]["token_advantages"]
        values, splits = ragged["values"], ragged["row_splits"]
        batches.append([values[start:stop] for start, stop in pairwise(splits)])
    return batches


class Watch:
    """Sees each micro-batch of the loss: the rows it holds and the gradient of each token's log-probability."""

    def __init__(self, trainer):
        self.trainer, self.rows, self.generated = trainer, [], []
        self.loss, self.logps = trainer._compute_loss, trainer._get_per_token_logps_and_entropies
        self.generate = trainer._generate_and_score_completions
        trainer._compute_loss = self.compute_loss
        trainer._get_per_token_logps_and_entropies = self.per_token
        trainer._generate_and_score_completions = self.generate_and_score
        self.seen = None

    def generate_and_score(self, inputs):
        """Remember the completions of each generation in the order in which they were credited."""
        out = self.generate(inputs)
        masks = out["completion_mask"] * out.get("tool_mask", torch.ones_like(out["completion_mask"]))
        self.generated.append((out["completion_ids"].clone(), masks.clone(), out["advantages"].clone()))
        return out

    def per_token(self, *args, **kwargs):
        """Keep the log-probabilities that the loss will use."""
        result = self.logps(*args, **kwargs)
        if torch.is_grad_enabled() and result[0].requires_grad:
            result[0].retain_grad()
            self.seen = result[0]
        return result

    def compute_loss(self, net, inputs):
        """Differentiate by the log-probabilities, beside what the trainer does."""
        loss = self.loss(net, inputs)
        (gradient,) = torch.autograd.grad(loss, self.seen, retain_graph=True)
        self.rows.append((inputs["completion_ids"], inputs["completion_mask"], inputs["advantages"], gradient))
        return loss


def check_alignment(watch, batches):
    """Every generation's advantages are the recorded ones, and 0 on all other positions."""
    assert len(batches) == len(watch.generated) > 0
    for (ids, mask, advantages), batch in zip(watch.generated, batches, strict=True):
        assert advantages.shape == ids.shape
        for row, values in enumerate(batch):
            expected = torch.zeros(ids.shape[1])
            expected[: len(values)] = torch.tensor(values)
            torch.testing.assert_close(advantages[row], expected * mask[row], rtol=0, atol=1e-6)
            assert len(values) == int(mask[row].sum())


@pytest.mark.parametrize("loss_type", LOSSES)
def test_the_gradient_of_each_token_is_the_advantage_that_came_over_the_wire(loss_type, tmp_path):
    """On-policy, the gradient by a token's log-probability is −A_t times one factor of its row and sign."""
    credit = CreditConfig(url="local:", record=str(tmp_path / "wire"), candidates=3)
    trainer = trainer_of(
        tmp_path, credit=credit, loss_type=loss_type, num_iterations=2, gradient_accumulation_steps=2, max_steps=4
    )
    watch = Watch(trainer)
    trainer.train()
    check_alignment(watch, recorded(tmp_path / "wire"))
    nonzero = 0
    for ids, mask, advantages, gradient in watch.rows[:2]:
        assert torch.isfinite(gradient).all()
        assert not gradient[mask == 0].any()
        for row in range(len(ids)):
            for sign in (1, -1):
                places = (mask[row] == 1) & (torch.sign(advantages[row]) == sign)
                if not places.any():
                    continue
                factors = -gradient[row, places] / advantages[row, places]
                assert (factors > 0).all()
                torch.testing.assert_close(factors, factors[:1].expand_as(factors), rtol=AGREEMENT, atol=0)
                nonzero += int(places.sum())
        assert not gradient[(advantages == 0) & (mask == 1)].any()
    assert nonzero > 10


def test_candidates_of_one_response_have_different_advantages(tmp_path):
    """The point of it all: tokens of one completion are not all treated alike."""
    trainer = trainer_of(tmp_path, credit=CreditConfig(url="local:"), max_steps=4)
    watch = Watch(trainer)
    trainer.train()
    kinds = [len(set(row[row != 0].tolist())) for _, _, advantages in watch.generated for row in advantages]
    assert max(kinds) > 1


def test_asynchronous_rewards_give_the_same_training(tmp_path):
    """A coroutine as candidate reward is awaited by TRL, and changes nothing."""
    weights = []
    for function in (score, score_later):
        torch.manual_seed(0)
        trainer = trainer_of(
            tmp_path, rewards=CandidateReward(function, parser=PARSER), credit=CreditConfig(url="local:")
        )
        trainer.train()
        weights.append(torch.cat([value.flatten() for value in trainer.model.state_dict().values()]))
    assert torch.equal(*weights)


def test_attach_changes_a_trainer_that_exists(tmp_path):
    """The class swap trains exactly like the subclass."""
    weights = []
    for attached in (False, True):
        torch.manual_seed(0)
        kind = GRPOTrainer if attached else CreditGRPOTrainer
        trainer = trainer_of(tmp_path, kind=kind, credit=None if attached else CreditConfig(url="local:"))
        if attached:
            assert attach(trainer, CreditConfig(url="local:")) is trainer
            assert isinstance(trainer, GRPOTrainer)
        trainer.train()
        assert trainer.credit_request_ids
        weights.append(torch.cat([value.flatten() for value in trainer.model.state_dict().values()]))
    assert torch.equal(*weights)


def test_a_schedule_survives_a_resumed_run(tmp_path):
    """Train 4, resume, train 4 more: the positions are those of training 8 at once."""
    credit = CreditConfig(url="local:", credit=anneal("shapley", "leave_one_out", steps=8))

    def positions(trainer):
        return [entry["credit/position"] for entry in trainer.state.log_history if "credit/position" in entry]

    whole = trainer_of(tmp_path / "whole", credit=credit, max_steps=8)
    whole.train()
    part = trainer_of(tmp_path / "part", credit=credit, max_steps=8, save_strategy="steps", save_steps=4)
    part.train()
    again = trainer_of(tmp_path / "part", credit=credit, max_steps=8, save_strategy="no")
    again.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-4"))
    assert positions(whole) == [step / 8 for step in range(8)]
    assert positions(again) == positions(whole)


def test_metrics_stand_in_the_log_of_the_trainer(tmp_path):
    """Credit metrics, the utility of the sets as reward, and the identities of the requests."""
    trainer = trainer_of(tmp_path, credit=CreditConfig(url="local:"), max_steps=3)
    trainer.train()
    entry = trainer.state.log_history[1]
    for name in ("seconds", "share_of_step", "fallbacks", "local", "errors", "malformed", "candidates", "gap_max"):
        assert math.isfinite(entry[f"credit/{name}"])
    assert "rewards/score/mean" in entry
    assert len(trainer.credit_request_ids) == 3


def test_a_credit_that_takes_too_long_is_said_once(tmp_path):
    """After three steps over the share there is one warning that names the parameter."""
    trainer = trainer_of(tmp_path, credit=CreditConfig(url="local:", max_credit_share=0.0), max_steps=6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    said = [str(one.message) for one in caught if "max_credit_share" in str(one.message)]
    assert len(said) == 1


def test_evaluation_asks_only_when_told(tmp_path):
    """In evaluation the trainer's own advantages stay, unless `credit_in_eval`."""
    for asked in (False, True):
        credit = CreditConfig(url="local:", credit_in_eval=asked)
        trainer = trainer_of(tmp_path, credit=credit, per_device_eval_batch_size=4, num_generations_eval=2)
        metrics = trainer.evaluate(eval_dataset=Dataset.from_dict({"prompt": PROMPTS}))
        assert ("eval_credit/seconds" in metrics) == asked


@pytest.mark.parametrize("loss_type", ["grpo", "sapo"])
def test_sequence_level_importance_is_refused(loss_type, tmp_path):
    """A setting that would average the credit away is an error at the start."""
    with pytest.raises(ValueError, match="importance_sampling_level"):
        trainer_of(
            tmp_path, credit=CreditConfig(url="local:"), loss_type=loss_type, importance_sampling_level="sequence"
        )


def test_exactly_one_candidate_reward_is_needed(tmp_path):
    """None and two are refused."""
    for rewards in ([length], [CandidateReward(score, parser=PARSER), CandidateReward(score, parser=PARSER, name="b")]):
        with pytest.raises(ValueError, match="exactly one"):
            trainer_of(tmp_path, rewards=rewards, credit=CreditConfig(url="local:"))


def test_a_loss_of_its_own_is_refused(tmp_path):
    """A subclass that replaces the loss may not take (B, T): it is refused and left as it was."""

    class OtherLoss(GRPOTrainer):
        def _compute_loss(self, net, inputs):
            return super()._compute_loss(net, inputs)

    trainer = trainer_of(tmp_path, kind=OtherLoss)
    with pytest.raises(ValueError, match="loss of its own"):
        attach(trainer, CreditConfig(url="local:"))
    assert type(trainer) is OtherLoss


def test_rewards_that_do_not_fit_are_refused_by_name(tmp_path):
    """One reward too few is an error that says got and expected."""
    short = CandidateReward(lambda prompts, *_, **__: [[]] * len(prompts), PARSER, name="short")
    trainer = trainer_of(tmp_path, rewards=short, credit=CreditConfig(url="local:"))
    with pytest.raises(ValueError, match="short returned 0 rewards for completion"):
        trainer.train()


def test_adapters_of_peft_are_trained(tmp_path):
    """LoRA weights move, and the advantages are those of the wire."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    credit = CreditConfig(url="local:", record=str(tmp_path / "wire"))
    trainer = trainer_of(tmp_path, credit=credit, peft=config)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items() if "lora_B" in name}
    watch = Watch(trainer)
    trainer.train()
    check_alignment(watch, recorded(tmp_path / "wire"))
    assert any(not torch.equal(value, trainer.model.state_dict()[name]) for name, value in before.items())


def with_tools(prompts, trainer):
    """A rollout in which the middle token of each completion was written by a tool."""
    ids = trainer.processing_class(prompts)["input_ids"]
    words = [[5 + place % 6, 4, 6 + place % 5, 4, 7, 1] for place in range(len(prompts))]
    return {
        "prompt_ids": ids,
        "completion_ids": words,
        "logprobs": [[0.0] * len(row) for row in words],
        "env_mask": [[1, 1, 0, 1, 1, 1] for _ in words],
    }


def test_tokens_of_tools_and_padding_are_exactly_zero(tmp_path):
    """A token that a tool wrote has advantage 0, whatever candidate it stands in, and no gradient."""
    rewards = CandidateReward(score, parser=PARSER)
    credit = CreditConfig(url="local:")
    trainer = trainer_of(tmp_path, rewards=rewards, credit=credit, max_steps=1, rollout_func=with_tools)
    watch = Watch(trainer)
    trainer.train()
    ((ids, mask, advantages),) = watch.generated
    assert ids.shape == advantages.shape
    assert (mask[:, 2] == 0).all()
    assert not advantages[:, 2].any()
    assert advantages[:, 0].any()


def test_candidates_of_tools_do_not_play(tmp_path):
    """What a tool wrote is nobody's candidate: it takes no credit from the policy's own."""
    rewards = CandidateReward(score, parser=PARSER)
    credit = CreditConfig(url="local:", record=str(tmp_path / "wire"))
    trainer = trainer_of(tmp_path, rewards=rewards, credit=credit, max_steps=1, rollout_func=with_tools)
    trainer.train()
    exchange = json.loads(next((tmp_path / "wire").glob("*.json")).read_text())
    splits = json.loads(exchange["request"])["columns"]["rewards"]["row_splits"]
    assert {stop - start for start, stop in pairwise(splits)} == {2}


def test_every_end_token_ends_a_completion(tmp_path):
    """A list that ends with any of the model's end tokens is complete, its last candidate too."""

    def scripted(prompts, trainer):
        words = [[9, 4, 5, 2], [9, 4, 5, 1], [7, 1], [6, 2]] * (len(prompts) // 4)
        ids = trainer.processing_class(prompts)["input_ids"]
        return {"prompt_ids": ids, "completion_ids": words, "logprobs": [[0.0] * len(row) for row in words]}

    seen = []

    def counted(prompts, candidates, completions, **columns):
        seen.extend(len(row) for row in candidates)
        return score(prompts, candidates, completions, **columns)

    rewards = CandidateReward(counted, parser=PARSER)
    trainer = trainer_of(
        tmp_path, rewards=rewards, credit=CreditConfig(url="local:"), max_steps=1, rollout_func=scripted, ends=[1, 2]
    )
    trainer.train()
    assert seen[:4] == [2, 2, 1, 1]


def test_weights_of_rewards_matter(tmp_path):
    """The reward of the whole response counts by its weight; the candidates' own weight can only be 1."""
    advantages = []
    for weight in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        trainer = trainer_of(tmp_path, credit=CreditConfig(url="local:"), max_steps=1, reward_weights=[1.0, weight])
        watch = Watch(trainer)
        trainer.train()
        advantages.append(watch.generated[0][2])
    none, half, whole = advantages
    torch.testing.assert_close(whole - none, 2 * (half - none), rtol=1e-4, atol=1e-5)
    assert (whole != none).any()
    with pytest.raises(ValueError, match="candidate reward; expected 1"):
        trainer_of(tmp_path, credit=CreditConfig(url="local:"), reward_weights=[0.0, 1.0])


def test_credit_is_attached_once(tmp_path):
    """A second time is refused in words."""
    trainer = trainer_of(tmp_path, credit=CreditConfig(url="local:"))
    with pytest.raises(TypeError, match="has credit already"):
        attach(trainer)


def killing(folder):
    """A candidate reward in whose third call the service is killed, and the times of its calls."""
    asked = []

    def scored(prompts, candidates, completions, **columns):
        asked.append(time.monotonic())
        if len(asked) == 3:
            os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
        return score(prompts, candidates, completions, **columns)

    return CandidateReward(scored, parser=PARSER), asked


def test_killing_the_service_stops_training_under_raise(tmp_path):
    """With the default policy a lost service ends the run within the deadline, and its requests are on record."""
    reward, asked = killing(tmp_path)
    with running_service(directory=tmp_path, pid_file=tmp_path / "pid") as url:
        credit = CreditConfig(url=url, deadline_s=3.0)
        trainer = trainer_of(tmp_path, rewards=reward, credit=credit, max_steps=50)
        with pytest.raises(CreditdError):
            trainer.train()
        assert time.monotonic() - asked[-1] < 30.0  # ten times the deadline
    assert len(trainer.credit_request_ids) == 2
    lines = [json.loads(line) for line in (tmp_path / "service.log").read_text().splitlines()]
    assert {line["request_id"] for line in lines if "request_id" in line} >= set(trainer.credit_request_ids)


@pytest.mark.parametrize("policy", ["group_reward", "mask", "local"])
def test_training_goes_on_without_the_service_when_told_to(policy, tmp_path):
    """Each other policy keeps a run alive whose service dies, and the trainer's log counts what was done instead."""
    reward, _ = killing(tmp_path)
    with running_service(directory=tmp_path, pid_file=tmp_path / "pid") as url:
        credit = CreditConfig(url=url, on_failure=policy, deadline_s=0.5)
        trainer = trainer_of(tmp_path, rewards=reward, credit=credit, max_steps=4)
        watch = Watch(trainer)
        trainer.train()
    entries = [entry for entry in trainer.state.log_history if "credit/errors" in entry]
    assert [entry["credit/errors"] for entry in entries] == [0.0, 0.0, 1.0, 1.0]
    assert [entry["credit/local"] for entry in entries[2:]] == [float(policy == "local")] * 2
    assert [entry["credit/fallbacks"] for entry in entries] == [0.0, 0.0, *[float(policy != "local")] * 2]
    for _, mask, advantages in watch.generated[2:]:
        assert not advantages[mask == 0].any()
        if policy == "mask":
            assert not advantages.any()
        if policy == "group_reward":
            constant = [len(set(row[kept == 1].tolist())) for row, kept in zip(advantages, mask, strict=True)]
            assert set(constant) == {1}


SCRIPTED = [
    [5, 1],  # one word
    [9, 4, 5, 4, 6, 4, 7, 1],  # four: one more than asked for
    [4, 4, 1],  # nothing parsed
    [9, 4, 5, 4, 6, 4, 7, 4],  # cut off by the length limit: three, and the open one is no player
]


def test_unequal_nothing_parsed_and_truncated_lists_are_aligned(tmp_path):
    """Completions of any length, without a candidate or with too many, get the advantages of the wire."""

    def scripted(prompts, trainer):
        words = [SCRIPTED[place % 4] for place in range(len(prompts))]
        ids = trainer.processing_class(prompts)["input_ids"]
        return {"prompt_ids": ids, "completion_ids": words, "logprobs": [[0.0] * len(row) for row in words]}

    credit = CreditConfig(url="local:", record=str(tmp_path / "wire"), candidates=3)
    rewards = CandidateReward(score, parser=PARSER)
    trainer = trainer_of(tmp_path, rewards=rewards, credit=credit, max_steps=1, rollout_func=scripted)
    watch = Watch(trainer)
    trainer.train()
    check_alignment(watch, recorded(tmp_path / "wire"))
    ((ids, _, advantages),) = watch.generated
    exchange = json.loads(next((tmp_path / "wire").glob("*.json")).read_text())
    asked = json.loads(exchange["request"])["columns"]["rewards"]["row_splits"]
    assert [stop - start for start, stop in pairwise(asked)][:4] == [1, 4, 0, 3]
    flags = json.loads(exchange["response"])["columns"]
    of_nothing, of_surplus = (1 << flags["flag_names"].index(name) for name in ("no_candidates", "candidate_truncated"))
    masks = {tuple(row): mask for row, mask in zip(ids.tolist(), flags["flags"], strict=True)}
    assert any(mask & of_nothing for mask in masks.values())
    assert any(mask & of_surplus for mask in masks.values())
    nothing = next(row for row, written in enumerate(ids.tolist()) if written[:3] == [4, 4, 1])
    assert len(set(advantages[nothing, :3].tolist())) == 1


def test_groups_that_span_two_processes_are_asked_about_once(tmp_path):
    """Two gloo processes whose local batches are half groups: one request per generation, every row its own credit."""
    script = Path(__file__).with_name("two_processes.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    batches = recorded(tmp_path / "wire")
    shown = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert len(batches) == len(shown[0]) == len(shown[1]) == 2
    for number, batch in enumerate(batches):
        rows = [row for part in shown for row in part[number]]
        assert len(rows) == len(batch) == 4
        for row, values in zip(rows, batch, strict=True):
            expected = torch.zeros_like(row)
            expected[: len(values)] = torch.tensor(values)
            torch.testing.assert_close(row, expected, rtol=0, atol=1e-6)
