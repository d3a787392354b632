"""Checkpoints of verl as the weights of a policy, without verl: which one answers, and what is refused."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest

from adapters.policy_service import sensed
from adapters.verl_batches import Tokenizer
from creditd.adapters.checkpoint_weights import CheckpointKeys
from creditd.adapters.completions import token_offsets
from creditd.adapters.verl_askers import asker_of
from creditd.adapters.verl_rows import VerlBatch
from creditd.adapters.verl_settings import settings_of
from creditd.adapters.verl_weights import TRACKER, Tracker
from creditd.client import (
    Client,
    ForbiddenError,
    NotFoundError,
    TransportError,
    WeightsRefusedError,
    WeightVersionMismatchError,
)
from services import running_service

SERVICE = Path(__file__).with_name("policy_service.py")
NOBODY = "http://127.0.0.1:9"
PLACE = "global_step_{step}/actor/huggingface"
IDS = [[2, 3, 4, 2, 1], [3, 2, 4, 2, 1]]


@pytest.fixture
def run(tmp_path):
    """A folder in which verl writes checkpoints, and a service that reads them."""
    folder = tmp_path / "run"
    folder.mkdir()
    environment = os.environ | {"CREDITD_WEIGHTS_ROOT": str(folder)}
    with running_service(script=SERVICE, directory=tmp_path, env=environment) as url:
        found = Run(folder, url)
        yield found
        found.close()


class Lines(Tokenizer):
    """Words, of which one is a break of a line."""

    def decode(self, ids, **_):
        """Text of words."""
        return "".join("\n" if number == 4 else super(Lines, self).decode([number]) for number in ids)


class Run:
    """A run of verl whose trainer saves after each step.

    Attributes:
        folder: `trainer.default_local_dir`.
        url: The service.
    """

    def __init__(self, folder, url=NOBODY):
        self.folder, self.url = folder, url
        self.askers = []

    def close(self):
        """Close the connections of all askers."""
        for asker in self.askers:
            asker._client.close()

    def asker(self, changed=None, **keys):
        """What asks for its batches."""
        given = {"kind": "sensitivity", "model": "policy", "parser": "last_line", "weights": PLACE, "url": self.url}
        given |= {"record": str(self.folder / "wire"), "deadline_s": 5}
        made = asker_of(settings_of(given | keys), 2, 16, changed or configured(self.folder))
        made.read_by(Lines())
        self.askers.append(made)
        return made

    def save(self, step, *, whole=True):
        """Write what verl writes after a step; what is not whole has a configuration alone."""
        place = self.folder / PLACE.replace("{step}", str(step))
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text("{}")
        if whole:
            head = json.dumps({"one": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
            weights = len(head).to_bytes(8, "little") + head + np.float32(step).tobytes()
            (place / "model.safetensors").write_bytes(weights)
        self.track(step)

    def track(self, text):
        """Say that a step is the last one that was saved."""
        (self.folder / TRACKER).write_text(str(text))
        os.utime(self.folder / TRACKER)

    def versions(self):
        """Versions that requests named, in order."""
        files = sorted((self.folder / "wire").glob("*.json"))
        requests = [json.loads(json.loads(path.read_text())["request"]) for path in files]
        return [request["weight_version"] for request in requests if "items" in request]


def configured(folder, **changes):
    """What is asked of verl's configuration; changes name places with dots."""
    config = {
        "trainer": {
            "v1": {"trainer_mode": "sync"},
            "save_freq": 1,
            "default_local_dir": str(folder),
            "resume_mode": "auto",
            "resume_from_path": None,
        },
        "actor_rollout_ref": {
            "actor": {"strategy": "fsdp", "checkpoint": {"save_contents": ["model", "hf_model"], "async_save": False}},
            "model": {"lora_rank": 0, "lora_adapter_path": None, "lora": {"rank": 0}},
        },
    }
    config = copy.deepcopy(config)
    for name, value in changes.items():
        *places, last = name.split(".")
        part = config
        for place in places:
            part = part[place]
        part[last] = value
    return config


def batch(rewards=(1.0, 0.0)):
    """A prompt with two responses, whose reasoning is the line before the last."""
    return VerlBatch(
        keys=["a_0_0", "a_1_0"],
        prompts=[None] * 2,
        prompt_ids=[[2, 3]] * 2,
        ids=IDS,
        masks=[[1] * len(row) for row in IDS],
        rewards=list(rewards),
    )


def by_hand(version, advantage=0.70710678):
    """Advantages of the first response, by the sensitivities that the policy is known to have."""
    text, offsets = token_offsets(IDS[0], lambda ids: Lines().decode([number for number in ids if number > 1]))
    with Client("local:") as client:
        return client.oar(
            sensitivities=[[sensed(version, token) for token in IDS[0]]],
            completions=[text],
            token_offsets=[offsets],
            advantages=[advantage],
            parser="last_line",
        ).token_advantages[0]


def test_each_step_is_answered_by_the_checkpoint_of_the_step_before(run):
    """The first one by the weights that the policy was loaded with, under the name that the service has for them."""
    asker, found = run.asker(), []
    for step in range(3):
        found.append(asker.ask(batch(), step))
        run.save(step + 1)
    first, *later = run.versions()
    assert first == "v0"
    assert [version.rpartition(":")[2] for version in later] == ["1", "2"]
    assert len({version.rpartition(":")[0] for version in later}) == 1
    for numbers, version in zip(found, run.versions(), strict=True):
        assert numbers.rows["a_0_0"] == pytest.approx(by_hand(version), rel=1e-5)
    assert len({str(numbers.rows["a_0_0"]) for numbers in found}) == 3
    assert [numbers.metrics["credit/pushes"] for numbers in found] == [0.0, 1.0, 1.0]
    assert [numbers.metrics["credit/version_lag"] for numbers in found] == [0.0] * 3
    assert found[1].metrics["credit/push_bytes"] == 4.0
    assert found[1].metrics["credit/push_seconds"] > 0


def test_one_checkpoint_is_handed_over_once(run):
    """Two batches of a step; and nothing is handed over where nobody is asked."""
    asker = run.asker()
    run.save(1)
    assert [asker.ask(batch(), 1).metrics["credit/pushes"] for _ in range(2)] == [1.0, 0.0]
    run.save(2)
    equal = asker.ask(batch((1.0, 1.0)), 2)
    assert equal.metrics["credit/pushes"] == 0.0
    assert "credit/version_lag" not in equal.metrics


def test_a_checkpoint_may_be_older_by_as_many_steps_as_was_said(run):
    """Its age is a metric; one step more is an error, which says what was wanted and who writes it."""
    asker = run.asker(configured(run.folder, **{"trainer.save_freq": 2}), max_weights_age=1)
    assert asker.ask(batch(), 0).metrics["credit/version_lag"] == 0.0
    assert asker.ask(batch(), 1).metrics["credit/version_lag"] == 1.0
    run.save(2)
    lags = [asker.ask(batch(), step).metrics["credit/version_lag"] for step in (2, 3)]
    assert lags == [0.0, 1.0]
    words = (
        "no checkpoint of step 4, .* that of step 2 is the newest, 2 steps older, and max_weights_age=1; .*save_freq"
    )
    with pytest.raises(WeightVersionMismatchError, match=words):
        asker.ask(batch(), 4)
    assert [version.rpartition(":")[2] for version in run.versions()] == ["v0", "v0", "2", "2"]


def test_without_the_checkpoint_the_failure_policy_has_its_way(run):
    """Never are there numbers by other weights; the next checkpoint heals it."""
    asker = run.asker(on_failure="group_reward")
    asker.ask(batch(), 0)
    failed = asker.ask(batch(), 1)
    assert failed.metrics["credit/fallbacks"] == failed.metrics["credit/errors"] == 1.0
    assert "credit/version_lag" not in failed.metrics
    assert len(set(failed.rows["a_0_0"])) == 1
    run.save(2)
    assert asker.ask(batch(), 2).metrics["credit/fallbacks"] == 0.0
    assert len(run.versions()) == 2


def test_checkpoints_of_an_earlier_run_count_for_nothing(run):
    """Neither its last one nor one of the very step that is wanted."""
    run.save(1)
    asker = run.asker(max_weights_age=0)
    asker.ask(batch(), 0)
    with pytest.raises(WeightVersionMismatchError, match=r"no checkpoint of step 1, .* there is none"):
        asker.ask(batch(), 1)
    run.save(1)
    assert asker.ask(batch(), 1).metrics["credit/pushes"] == 1.0


def test_a_resumed_run_hands_over_the_checkpoint_that_it_was_resumed_from(run):
    """Also where nobody was asked about its first batch, and the policy still has weights of the run before."""
    first = run.asker()
    first.ask(batch(), 0)
    run.save(1)
    first.ask(batch(), 1)
    run.save(2)
    resumed = run.asker(configured(run.folder, **{"trainer.save_freq": 2}), max_weights_age=1)
    resumed.ask(batch((0.0, 0.0)), 2)
    found = resumed.ask(batch(), 3)
    assert (found.metrics["credit/pushes"], found.metrics["credit/version_lag"]) == (1.0, 1.0)
    old, new = run.versions()[-2:]
    assert new.rpartition(":")[2] == "2"
    assert old.rpartition(":")[0] != new.rpartition(":")[0]


def test_a_run_does_not_begin_with_the_weights_of_another(run):
    """Under every policy it is told to name its own; with their path they are handed over."""
    first = run.asker(run="night")
    run.save(1)
    first.ask(batch(), 1)
    assert run.versions()[-1].startswith("night-")
    with pytest.raises(ValueError, match=r"after 1 pushes; expected those that it was loaded with.*initial_weights"):
        run.asker(on_failure="group_reward").ask(batch(), 0)
    told = run.asker(initial_weights=PLACE.replace("{step}", "1"))
    assert told.ask(batch(), 0).metrics["credit/pushes"] == 1.0
    assert run.versions()[-1].rpartition(":")[2] == "0"
    run.save(1)
    assert told.ask(batch(), 1).metrics["credit/version_lag"] == 0.0


def test_what_a_service_finds_wrong_with_a_checkpoint_is_raised_under_every_policy(run):
    """It has a configuration alone, or is nowhere: no other try heals that."""
    asker = run.asker(on_failure="group_reward")
    run.save(1, whole=False)
    with pytest.raises(WeightsRefusedError, match=r"0 safetensors files.*global_step_1/actor/huggingface.*hf_model"):
        asker.ask(batch(), 1)
    (run.folder / "global_step_2").mkdir()
    run.track(2)
    with pytest.raises(WeightsRefusedError, match=r"leads to nothing.*global_step_2/actor/huggingface, told"):
        asker.ask(batch(), 2)
    with pytest.raises(NotFoundError):
        run.asker(on_failure="group_reward", model="nobody").ask(batch(), 0)


def test_a_key_that_may_not_replace_weights_is_raised_under_every_policy(tmp_path):
    """It is the configuration's fault."""
    environment = os.environ | {"CREDITD_API_KEYS": '["user"]', "CREDITD_WEIGHTS_ROOT": str(tmp_path)}
    with running_service(script=SERVICE, directory=tmp_path, env=environment) as url:
        run = Run(tmp_path, url)
        asker = run.asker(api_key="user", on_failure="group_reward")
        run.save(1)
        with pytest.raises(ForbiddenError):
            asker.ask(batch(), 1)
        run.close()


def test_a_service_that_is_away_is_an_outage(tmp_path):
    """At the start and before a checkpoint alike: raised, or the plain advantages, which are counted."""
    run = Run(tmp_path)
    for policy in ("raise", "group_reward"):
        asker = run.asker(deadline_s=0.2, push_deadline_s=0.2, on_failure=policy)
        for step in (0, 1):
            run.save(step)
            if policy == "raise":
                with pytest.raises(TransportError):
                    asker.ask(batch(), step)
            else:
                assert asker.ask(batch(), step).metrics["credit/fallbacks"] == 1.0
    run.close()


def test_a_service_that_was_started_anew_is_given_the_checkpoint_once_more(tmp_path):
    """And asked once more; the version is the same."""
    run = Run(tmp_path)
    environment = os.environ | {"CREDITD_WEIGHTS_ROOT": str(tmp_path)}
    with running_service(script=SERVICE, directory=tmp_path, env=environment) as url:
        run.url = url
        asker = run.asker()
        run.save(1)
        asker.ask(batch(), 1)
    environment["PORT"] = url.rpartition(":")[2]
    with running_service(script=SERVICE, directory=tmp_path, env=environment):
        assert asker.ask(batch(), 1).metrics["credit/pushes"] == 1.0
        assert len(set(run.versions())) == 1
        run.close()


def test_a_tracker_of_something_else_is_refused(run):
    """A later step is of another run in the same folder; and a step is a number."""
    asker = run.asker()
    run.track(7)
    with pytest.raises(ValueError, match=r"a checkpoint of step 7 .* after step 1 wrote; expected a folder that this"):
        asker.ask(batch(), 1)
    run.track("soon")
    with pytest.raises(ValueError, match=r"got 'soon' in .*latest_checkpointed_iteration\.txt"):
        asker.ask(batch(), 1)


def test_a_tracker_that_is_not_there_says_nothing(tmp_path):
    """As before the first checkpoint."""
    tracker = Tracker(str(tmp_path))
    assert tracker.written() is None
    (tmp_path / TRACKER).write_text("3")
    assert tracker.written() == 3
    assert Tracker(str(tmp_path)).written() is None


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"weights": "run/actor"}, r"got weights 'run/actor'; expected a path of the service with \{step\} in it"),
        ({"weights": 7}, "got weights 7"),
        ({"weight_version": "mine"}, "got weight_version 'mine' with weights"),
        ({"initial_weights": ""}, "got initial_weights ''"),
        ({"max_weights_age": -1}, "got max_weights_age -1"),
        ({"max_weights_age": True}, "got max_weights_age True"),
        ({"weights": None, "max_weights_age": 1}, "got 'max_weights_age' without weights"),
        ({"weights": None, "run": "night"}, "got 'run' without weights"),
        ({"kind": "spans", "reward": "rm", "parser": None}, "got 'parser'|got 'weights'|got 'model'"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(tmp_path, keys, words):
    """In their own words."""
    with pytest.raises(ValueError, match=words):
        Run(tmp_path).asker(**keys)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("trainer.v1.trainer_mode", "separate_async", "weights of several steps write one batch"),
        ("trainer.save_freq", -1, "trainer.save_freq=-1, which saves nothing"),
        ("trainer.save_freq", 3, "trainer.save_freq=3 with max_weights_age=0, .* or max_weights_age=2"),
        ("actor_rollout_ref.actor.checkpoint.save_contents", ["model"], "expected hf_model among them"),
        ("actor_rollout_ref.actor.checkpoint.async_save", True, "does not say when a checkpoint is whole"),
        ("actor_rollout_ref.model.lora_rank", 8, r"an adapter \(actor_rollout_ref.model: 8\)"),
        ("actor_rollout_ref.model.lora.rank", 16, "an adapter"),
        ("actor_rollout_ref.model.lora_adapter_path", "somewhere", "an adapter"),
    ],
)
def test_what_verl_would_not_write_is_refused_at_the_start(tmp_path, name, value, words):
    """Before a policy is asked anything."""
    with pytest.raises(ValueError, match=words):
        Run(tmp_path).asker(configured(tmp_path, **{name: value}))


def test_megatron_writes_the_same_for_its_model(tmp_path):
    """By a bridge; whether it had one the service finds out."""
    megatron = {
        "actor_rollout_ref.actor.strategy": "megatron",
        "actor_rollout_ref.actor.checkpoint.save_contents": ["model"],
    }
    Run(tmp_path).asker(configured(tmp_path, **megatron))._client.close()


def test_a_run_is_resumed_from_a_folder_of_its_own(tmp_path):
    """From another one there is no path for the weights that it begins with."""
    own, other = (
        {"trainer.resume_mode": "resume_path", "trainer.resume_from_path": f"{folder}/global_step_4"}
        for folder in (tmp_path, "elsewhere")
    )
    Run(tmp_path).asker(configured(tmp_path, **own))._client.close()
    with pytest.raises(ValueError, match="resume_from_path=elsewhere/global_step_4, outside of"):
        Run(tmp_path).asker(configured(tmp_path, **other))


def test_without_a_trainer_nobody_knows_where_it_saves():
    """As of a sampler that somebody made by hand."""
    given = {"kind": "sensitivity", "model": "policy", "parser": "last_line", "weights": PLACE, "url": NOBODY}
    with pytest.raises(ValueError, match="got weights and no trainer behind refill_fn"):
        asker_of(settings_of(given), 2, 16)


@pytest.mark.parametrize(
    ("weights", "folder", "path"),
    [
        (PLACE, "global_step_12", "link/actor/huggingface"),
        ("/runs/7/{step}/actor/{step}.hf", "12", "/runs/7/link/actor/12.hf"),
        ("run/global_step{step}_hf", "global_step12_hf", "run/link"),
    ],
)
def test_a_checkpoint_is_named_by_a_link(weights, folder, path):
    """In the place of the part that has the step; every other place of the step is filled in."""
    keys = CheckpointKeys(weights)
    assert (keys.folder_at(12), keys.path_at(12, "link")) == (folder, path)


def test_a_service_that_reads_another_disk_finds_nothing(run, tmp_path):
    """As where its weights_root is still that of the run before, whose steps have the same names."""
    other = Run(tmp_path / "other", run.url)
    run.save(1)  # whole, and below the root of the service
    asker = other.asker(on_failure="group_reward")
    asker.ask(batch(), 0)
    other.save(1)
    with pytest.raises(WeightsRefusedError, match=r"leads to nothing.*the disk on which .*other is here"):
        asker.ask(batch(), 1)
    assert [path.name for path in (tmp_path / "other").iterdir() if path.is_symlink()] == []
    other.close()


def test_a_checkpoint_that_is_not_where_the_trainer_saves_is_a_failure(run):
    """As of a resumed run whose folder was not written to the end: raised, or the plain advantages."""
    with pytest.raises(WeightVersionMismatchError, match=r"got no global_step_3 in .*run, .* resumed"):
        run.asker().ask(batch(), 3)
    asker = run.asker(on_failure="group_reward")
    assert asker.ask(batch(), 3).metrics["credit/fallbacks"] == 1.0
    run.save(4)
    assert asker.ask(batch(), 4).metrics["credit/fallbacks"] == 0.0


@pytest.mark.parametrize("name", ["exp/7", "../x", "\u4e2d" * 200, "a b.c:d"])
def test_a_run_may_be_called_anything(run, name):
    """What a link is called is another matter."""
    asker = run.asker(run=name)
    asker.ask(batch(), 0)
    run.save(1)
    assert asker.ask(batch(), 1).metrics["credit/pushes"] == 1.0
    assert [path for path in run.folder.rglob("*") if path.is_symlink()] == []


def test_a_disk_without_links_is_an_error(run, monkeypatch):
    """Nobody could say which folder the service reads."""
    asker = run.asker()
    asker.ask(batch(), 0)
    run.save(1)

    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refused)
    with pytest.raises(ValueError, match=r"PermissionError for a symbolic link in .*run: Operation not permitted"):
        asker.ask(batch(), 1)
