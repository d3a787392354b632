"""A real GRPOTrainer whose advantages are reshaped by what a policy of a service says of each token."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")

import torch
from trl import GRPOTrainer

from adapters.policy_service import sensed
from adapters.reshaping import CONSTANT, MARK, MASKS, closing, entries, parameters, reshaping, served_model, uneven
from adapters.tiny import PARSER
from adapters.trainers import MARKS, Watch, asked, check_alignment, check_gradients, length, score
from creditd.adapters.trl import CandidateReward, CreditConfig, CreditGRPOTrainer
from creditd.adapters.trl_sensitivity import SensitivityGRPOTrainer, SensitivityMixin
from creditd.client import Client, TransportError
from services import running_service

pytestmark = MARKS
SERVICE = Path(__file__).with_name("policy_service.py")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A service with a policy whose sensitivities are known."""
    with running_service(script=SERVICE, directory=tmp_path_factory.mktemp("policy")) as address:
        yield address


@pytest.fixture(autouse=True)
def _closed():
    """Close the connections of trainers."""
    with closing():
        yield


def weights_by_hand(item, version):
    """Weights of a recorded completion from the sensitivities that the policy is known to have."""
    with Client("local:") as client:
        return client.oar(
            sensitivities=[[sensed(version, token) for token in item["completion_ids"]]],
            completions=[item["completion"]],
            token_offsets=[item["token_offsets"]],
            completion_masks=None if item.get("completion_mask") is None else [item["completion_mask"]],
            advantages=[1.0],
            parser="hashes",
        ).weights[0]


def answers(directory):
    """Recorded answers, in order."""
    return [json.loads(json.loads(path.read_text())["response"]) for path in sorted(Path(directory).glob("*.json"))]


@pytest.mark.parametrize("masks", [None, MASKS])
def test_each_token_is_trained_on_its_advantage_times_its_weight(url, tmp_path, masks):
    """The tensor holds A·w of the answer, and so do gradients; A is TRL's own; tokens of tools get exactly 0."""
    trainer = reshaping(
        tmp_path / "out",
        url,
        record=str(tmp_path / "wire"),
        rewards=[uneven],
        masks=masks,
        max_steps=4,
        num_iterations=2,
        gradient_accumulation_steps=2,
    )
    watch = Watch(trainer)
    trainer.train()
    requests, replies = asked(tmp_path / "wire"), answers(tmp_path / "wire")
    assert len(requests) == len(replies) == len(watch.generated) == 2
    rows = [[item["token_advantages"] for item in reply["items"]] for reply in replies]
    if masks is None:
        check_alignment(watch, rows)
        check_gradients(trainer, watch)
    else:
        for (_, kept, advantages), batch in zip(watch.generated, rows, strict=True):
            assert not advantages[kept == 0].any()
            for row, values in enumerate(batch):
                assert advantages[row, : len(values)].tolist() == np.array(values, dtype=np.float32).tolist()
    reshaped = 0
    for request, reply in zip(requests, replies, strict=True):
        assert request["expect"] == {"group_size": 4}
        assert request["weight_version"] == reply["weight_version"]
        of_groups = [request["items"][start : start + 4] for start in range(0, len(request["items"]), 4)]
        for group in of_groups:
            given = torch.tensor(uneven([item["completion"] for item in group]))
            own = (given - given.mean()) / (given.std() + 1e-4)
            assert [item["advantage"] for item in group] == pytest.approx(own.tolist(), abs=1e-6)
        for item, found in zip(request["items"], reply["items"], strict=True):
            by_hand = weights_by_hand(item, request["weight_version"])
            assert found["weights"] == pytest.approx(by_hand.tolist(), abs=1e-12)
            assert found["token_advantages"] == (item["advantage"] * np.array(found["weights"])).tolist()
            assert ("answer_not_found" in found["flags"]) == (MARK not in item["completion"])
            reshaped += len(set(found["weights"])) > 2
    assert reshaped > 4
    assert trainer.sensitivity_request_ids == [reply["request_id"] for reply in replies]
    assert entries(trainer, "credit/answer_not_found")[0] == 0.25
    assert entries(trainer, "credit/fallbacks")[0] == entries(trainer, "credit/version_lag")[0] == 0.0
    assert 0 < entries(trainer, "credit/effective_share")[0] < 1


@pytest.mark.parametrize("loss", ["grpo", "dapo"])
def test_constant_weights_are_plain_training_bit_for_bit(url, tmp_path, loss):
    """Weights of 1 change no bit of losses and parameters, whatever the policy wrote."""
    runs = {}
    for kind in (GRPOTrainer, SensitivityGRPOTrainer):
        trainer = reshaping(
            tmp_path / kind.__name__, url, kind=kind, reshape=CONSTANT, completions=None, max_steps=3, loss_type=loss
        )
        trainer.train()
        runs[kind] = (parameters(trainer), entries(trainer, "loss"), entries(trainer, "grad_norm"))
    plain, ours = runs[GRPOTrainer], runs[SensitivityGRPOTrainer]
    assert torch.equal(plain[0], ours[0])
    assert plain[1:] == ours[1:]
    assert any(plain[1])


def test_without_a_service_the_plain_advantages_are_trained_on(tmp_path):
    """Bit for bit, and counted; under `raise` the run ends."""
    runs = []
    for kind in (GRPOTrainer, SensitivityGRPOTrainer):
        trainer = reshaping(
            tmp_path / kind.__name__, kind=kind, on_failure="group_reward", deadline_s=0.3, push_deadline_s=0.3
        )
        trainer.train()
        runs.append(parameters(trainer))
    assert torch.equal(*runs)
    assert entries(trainer, "credit/fallbacks") == entries(trainer, "credit/errors") == [1.0, 1.0]
    assert trainer.sensitivity_request_ids == []
    with pytest.raises(TransportError):
        reshaping(tmp_path / "raise", deadline_s=0.3, push_deadline_s=0.3).train()


def test_a_service_that_is_away_is_waited_for_as_long_as_for_an_answer(tmp_path, monkeypatch):
    """Before anything is sent; shards, which may be large, have a deadline of their own."""
    told = []

    def away(*_, **options):
        told.append((options["announce_deadline_s"], options["deadline_s"]))
        raise TransportError("gone")

    monkeypatch.setattr(Client, "push_weights", away)
    for deadline_s, push_deadline_s in ((7.0, 600.0), (70.0, 60.0)):
        reshaping(
            tmp_path / str(deadline_s),
            on_failure="group_reward",
            deadline_s=deadline_s,
            push_deadline_s=push_deadline_s,
            max_steps=1,
        ).train()
    assert told == [(7.0, 600.0), (60.0, 60.0)]


def test_without_contrast_nothing_is_asked_and_nothing_handed_over(tmp_path):
    """By a service that is not there, nor by the own model: TRL's advantages are all 0, and so is what is trained."""
    for options in ({}, {"in_process": True, "model": None}):
        trainer = reshaping(
            tmp_path / str(len(options)), rewards=[lambda completions, **_: [1.0] * len(completions)], **options
        )
        trainer._own_policy = None
        watch = Watch(trainer)
        trainer.train()
        assert not any(advantages.any() for _, _, advantages in watch.generated)
        assert entries(trainer, "credit/without_contrast") == [1.0, 1.0]
        assert entries(trainer, "credit/fallbacks") == entries(trainer, "credit/errors") == [0.0, 0.0]
        assert entries(trainer, "credit/pushes") == ([] if options else [0.0, 0.0])


def test_of_a_generation_those_with_contrast_are_asked_about(url, tmp_path):
    """Of a group whose rewards are equal no token is measured; the other has its weights."""

    def reward(completions, **_):
        return [float(place < 4 and place % 2) for place in range(len(completions))]

    advantages = []
    for place, options in (("there", {}), ("here", {"in_process": True, "model": None, "sensitivity": "perturbation"})):
        wire = {} if options else {"record": str(tmp_path / "wire")}
        trainer = reshaping(tmp_path / place, url, rewards=[reward], max_steps=1, **wire, **options)
        watch = Watch(trainer)
        trainer.train()
        assert entries(trainer, "credit/without_contrast") == [0.5]
        assert entries(trainer, "credit/answer_not_found") == [0.25]
        advantages.append(watch.generated[0][2])
    (request,) = asked(tmp_path / "wire")
    masks = [item.get("completion_mask") for item in request["items"]]
    assert masks[:4] == [None] * 4 or all(all(mask) for mask in masks[:4])
    assert not any(any(mask) for mask in masks[4:])
    for found in advantages:
        assert found[:4].any()
        assert not found[4:].any()


def test_weights_are_handed_over_when_the_step_changed(url, tmp_path):
    """Once for two generations of one step, and again for the next; versions name the run and the step."""
    trainer = reshaping(
        tmp_path / "out", url, record=str(tmp_path / "wire"), gradient_accumulation_steps=2, steps_per_generation=1
    )
    trainer.train()
    versions = [request["weight_version"] for request in asked(tmp_path / "wire")]
    assert [version.rpartition(":")[2] for version in versions] == ["0", "0", "1", "1"]
    assert len({version.rpartition(":")[0] for version in versions}) == 1
    assert entries(trainer, "credit/pushes") == [0.5, 0.5]
    assert entries(trainer, "credit/push_bytes")[0] > 1000
    trainer.args.max_steps = 1
    trainer.train()
    again = [request["weight_version"] for request in asked(tmp_path / "wire")][4:]
    assert {version.rpartition(":")[2] for version in again} == {"0"}
    assert not set(again) & set(versions)


def test_a_resumed_run_hands_over_its_weights_first(url, tmp_path):
    """Under a name of its own, before the first question."""
    trainer = reshaping(tmp_path / "out", url, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    resumed = reshaping(tmp_path / "out", url, record=str(tmp_path / "wire"), max_steps=2)
    resumed.train(resume_from_checkpoint=True)
    versions = [request["weight_version"] for request in asked(tmp_path / "wire")]
    assert [version.rpartition(":")[2] for version in versions] == ["1"]
    assert entries(resumed, "credit/pushes")[-1] == 1.0


@contextmanager
def mortal_service(directory, command):
    """A service on one port that can be killed and started again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PORT": str(port), "CREDITD_PORT": str(port)}
    running = []

    def start():
        with (directory / "service.log").open("a") as log:
            process = subprocess.Popen([sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=log)
        running.append(process)
        assert process.stdout is not None
        assert b"listens on" in process.stdout.readline()

    def kill():
        process = running.pop()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()

    start()
    try:
        yield f"http://127.0.0.1:{port}", start, kill
    finally:
        while running:
            kill()


@pytest.mark.parametrize(("kind", "absent_s"), [("known", 0.0), ("known", 1.5), ("real", 0.0)])
def test_a_killed_service_that_comes_back_costs_one_repetition(tmp_path, kind, absent_s):
    """It lost the weights in the middle of a step: they are handed over once more, and nothing else is noticed."""
    runs = []
    command = [str(SERVICE)] if kind == "known" else ["-m", "creditd.cli", "serve", "--config", served_model(tmp_path)]
    with mortal_service(tmp_path, command) as (address, start, kill):
        for fatal in (None, 1):
            calls, threads = [], []

            def restarting(completions, *, calls=calls, threads=threads, fatal=fatal, **_):
                if len(calls) == fatal:
                    kill()
                    threads.append(threading.Timer(absent_s, start))
                    threads[0].start()
                    if not absent_s:
                        threads[0].join()
                calls.append(len(completions))
                return length(completions)

            wire = tmp_path / f"wire {fatal}"
            trainer = reshaping(
                tmp_path / str(fatal),
                address,
                rewards=[restarting],
                record=str(wire),
                gradient_accumulation_steps=2,
                steps_per_generation=1,
            )
            trainer.train()
            for thread in threads:
                thread.join()
            runs.append((parameters(trainer), entries(trainer, "credit/pushes"), entries(trainer, "credit/fallbacks")))
            assert len(trainer.sensitivity_request_ids) == 4
    undisturbed, disturbed = runs
    assert torch.equal(undisturbed[0], disturbed[0])
    assert undisturbed[1] == [0.5, 0.5]
    assert disturbed[1] == [1.0, 0.5]
    assert disturbed[2] == [0.0, 0.0]


class Both(SensitivityMixin, CreditGRPOTrainer):
    """Credit of candidates, reshaped by sensitivity."""


def test_credit_of_tokens_is_weighed_token_by_token(url, tmp_path):
    """What creditd gave each token, times the weight of the token; both are logged, under their own names."""
    reward = [CandidateReward(score, parser=PARSER), length]
    credit = CreditConfig(url="local:", record=str(tmp_path / "credit"))
    trainer = reshaping(
        tmp_path / "out", url, kind=Both, rewards=reward, credit=credit, record=str(tmp_path / "wire"), max_steps=1
    )
    watch = Watch(trainer)
    trainer.train()
    (base,) = [json.loads(json.loads(path.read_text())["response"]) for path in (tmp_path / "credit").glob("*.json")]
    ragged = base["columns"]["token_advantages"]
    (reply,) = answers(tmp_path / "wire")
    flat = list(chain.from_iterable(item["weights"] for item in reply["items"]))
    expected = np.array(ragged["values"], dtype=np.float32).astype(np.float64) * flat
    ((_, kept, advantages),) = watch.generated
    assert advantages[kept == 1].tolist() == expected.astype(np.float32).tolist()
    assert len(set(flat)) > 3
    assert entries(trainer, "sensitivity/without_contrast") == [0.25]
    assert entries(trainer, "sensitivity/answer_not_found") == [pytest.approx(1 / 3)]
    assert entries(trainer, "credit/candidates")


def test_evaluation_asks_nothing(url, tmp_path):
    """Its advantages train nobody."""
    trainer = reshaping(tmp_path / "out", url, record=str(tmp_path / "wire"))
    trainer.eval_dataset = trainer.train_dataset.select(range(2))
    trainer.evaluate()
    assert not list((tmp_path / "wire").glob("*.json"))


def test_what_cannot_work_is_refused_at_the_start(url, tmp_path):
    """A loss that averages rows, a service that is none, pictures."""
    with pytest.raises(ValueError, match="importance_sampling_level"):
        reshaping(tmp_path, url, importance_sampling_level="sequence")
    with pytest.raises(ValueError, match="in_process"):
        reshaping(tmp_path, "local:")
    trainer = reshaping(tmp_path, url)
    with pytest.raises(ValueError, match="pictures"):
        trainer._rollouts({"pixel_values": None}, ([], [], None))
    with pytest.raises(ValueError, match="did not generate"):
        trainer._rollouts({}, None)
