"""Candidate credit in the real GRPOTrainer, against what was recorded on the wire."""

import json
import math
import os
import signal
import time
import warnings
from itertools import pairwise

import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")

import torch
from datasets import Dataset
from trl import GRPOTrainer

from adapters.trainers import (
    LOSSES,
    MARKS,
    PARSER,
    PROMPTS,
    Watch,
    check_alignment,
    check_gradients,
    recorded,
    score,
    score_later,
    trainer_of,
)
from creditd.adapters.trl import CandidateReward, CreditConfig, CreditGRPOTrainer, anneal, attach
from creditd.client import CreditdError
from services import running_service

pytestmark = MARKS


@pytest.mark.parametrize(
    ("loss_type", "level"), [*[(loss, "token") for loss in LOSSES], ("cispo", "sequence"), ("vespo", "sequence")]
)
def test_the_gradient_of_each_token_is_the_advantage_that_came_over_the_wire(loss_type, level, tmp_path):
    """On and off policy, the gradient by a token's log-probability is −A_t times its slope times one factor."""
    credit = CreditConfig(url="local:", record=str(tmp_path / "wire"), candidates=3)
    trainer = trainer_of(
        tmp_path,
        credit=credit,
        loss_type=loss_type,
        importance_sampling_level=level,
        num_iterations=2,
        gradient_accumulation_steps=2,
        max_steps=4,
    )
    watch = Watch(trainer)
    trainer.train()
    check_alignment(watch, recorded(tmp_path / "wire"))
    assert len(watch.rows) == 8
    check_gradients(trainer, watch, level)


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
    """Credit metrics, and the utility of the sets as reward."""
    trainer = trainer_of(tmp_path, credit=CreditConfig(url="local:"), max_steps=3)
    trainer.train()
    entry = trainer.state.log_history[1]
    for name in ("seconds", "share_of_step", "fallbacks", "local", "errors", "malformed", "candidates", "gap_max"):
        assert math.isfinite(entry[f"credit/{name}"])
    assert "rewards/score/mean" in entry


def test_identities_are_those_of_the_training_answers_of_a_service(tmp_path):
    """Evaluation asks too, but no weight came of it; credit that was computed here has no request at a service."""
    evaluated = {"credit_in_eval": True, "record": str(tmp_path / "wire")}
    prompts = Dataset.from_dict({"prompt": PROMPTS})
    with running_service(directory=tmp_path) as url:
        trainer = trainer_of(
            tmp_path,
            credit=CreditConfig(url=url, **evaluated),
            max_steps=3,
            per_device_eval_batch_size=4,
            num_generations_eval=2,
        )
        trainer.evaluate(eval_dataset=prompts)
        trainer.train()
        trainer.evaluate(eval_dataset=prompts)
    kept = [path.name for path in sorted((tmp_path / "wire").glob("*.json"))]
    assert len(kept) == 7
    assert [name for name in kept if any(one in name for one in trainer.credit_request_ids)] == kept[2:5]
    alone = trainer_of(tmp_path, credit=CreditConfig(url="local:"))
    alone.train()
    assert alone.credit_request_ids == []


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


@pytest.mark.parametrize("asked", [False, True])
def test_the_time_of_an_evaluation_is_no_time_of_a_step(asked, tmp_path):
    """The share of the step is not said of a step in front of which an evaluation stood."""
    credit = CreditConfig(url="local:", credit_in_eval=asked)
    trainer = trainer_of(
        tmp_path,
        credit=credit,
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        num_generations_eval=4,
        eval_dataset=Dataset.from_dict({"prompt": PROMPTS}),
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "credit/seconds" in entry]
    assert ["credit/share_of_step" in entry for entry in entries] == [False, True, False, True]


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
    assert len(trainer.credit_request_ids) == 2
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
