"""OAR in OpenRLHF by the weights of each step: its trainer has its actor save, and a real policy answers."""

import importlib
import json
import os
import re
import shlex
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("openrlhf", reason="the lane `trainer` installs OpenRLHF into an environment of its own")

from conventions.groups import OF_A_LIBRARY

pytestmark = OF_A_LIBRARY

import ray  # noqa: E402
import torch  # noqa: E402

from adapters import openrlhf_world as world  # noqa: E402
from adapters import tiny  # noqa: E402
from adapters.openrlhf_world import GROUPS, MARK, REASONED, REMOTE, SENSITIVITY, by_rows  # noqa: E402
from creditd.adapters.completions import token_offsets  # noqa: E402
from creditd.adapters.openrlhf_settings import actor_of  # noqa: E402
from creditd.client import Client, WeightsRefusedError, WeightVersionMismatchError  # noqa: E402
from openrlhf_here import without_a_gpu  # noqa: E402
from services import running_service  # noqa: E402

REWARDS = [1.0, 0.0, 0.25, 0.25, 0.0, 2.0]
PAGE = (Path(__file__).parents[2] / "OPENRLHF.md").read_text(encoding="utf-8")
LEAVE = ["--credit.on_failure", "group_reward"]


@pytest.fixture(scope="module", autouse=True)
def _processes():
    """Ray, and a group of this process alone, in which OpenRLHF's workers wait for each other."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
    ray.shutdown()


@pytest.fixture(autouse=True)
def _without_synchronising(monkeypatch):
    """Where there is no GPU there is nothing to wait for on it."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)


@pytest.fixture
def served(tmp_path):
    """A service with a policy that was loaded from the model that OpenRLHF starts from."""
    python = os.environ.get("MODEL_SERVICE_PYTHON")
    if python is None:
        pytest.skip("MODEL_SERVICE_PYTHON names no interpreter that can run a service with models")
    tiny.model(seed=0, more=[MARK]).save_pretrained(tmp_path / "start")
    tiny.tokenizer([MARK]).save_pretrained(tmp_path / "start")
    (tmp_path / "run").mkdir()
    settings = tmp_path / "service.toml"
    roots = f"models_root = {json.dumps(str(tmp_path))}\nweights_root = {json.dumps(str(tmp_path / 'run'))}"
    settings.write_text(f'{roots}\n[[models]]\nid = "policy"\nkind = "policy"\npath = "start"\n')
    with running_service("--config", str(settings), directory=tmp_path, python=python) as url:
        yield url


class Policy(world.Group):
    """The actors of the policy in the place of OpenRLHF's: one, whose model is another after each step, which saves."""

    saves = True
    states: Mapping[str, object] = {}

    def async_run_method(self, method_name, **given):
        """What OpenRLHF's own actor writes, by its own function; everything else is made up."""
        if method_name == "get_checkpoint_states":
            return [ray.put(self.states)]
        if method_name != "save_checkpoint":
            return super().async_run_method(method_name, **given)
        with without_a_gpu():
            actors = importlib.import_module("openrlhf.trainer.ray.ppo_actor")
            strategies = importlib.import_module("openrlhf.utils.deepspeed")
        kind = actor_of(actors.__name__, "PolicyModelActor")
        actor, strategy = kind.__new__(kind), strategies.DeepspeedStrategy.__new__(strategies.DeepspeedStrategy)
        strategy.args, strategy.stage = self.args, self.args.ds.zero_stage
        actor.strategy, actor.tokenizer = strategy, tiny.tokenizer([MARK])
        actor.save_hf_ckpt, actor.disable_ds_ckpt = self.saves, True
        model = tiny.model(seed=int(given["tag"].removeprefix("global_step")), more=[MARK])
        actor.actor = SimpleNamespace(module=model)  # as a strategy has it behind DeepSpeed's engine
        actor.save_checkpoint(**given)
        return [ray.put(None)]


def saving(directory, url, *more, every=1):
    """A trainer whose policy saves."""
    return working(
        world.trainer_of(
            *SENSITIVITY, *REMOTE, *GROUPS, "--credit.url", url, "--credit.record", str(directory / "wire"),
            "--credit.weights", "global_step{step}_hf", "--ckpt.path", str(directory / "run"), "--ckpt.save_hf",
            "--ckpt.save_steps", str(every), *more, more=[MARK],
        )
    )  # fmt: skip


def working(trainer):
    """A trainer with actors that save."""
    trainer.actor_model_group = trainer.experience_maker.actor_model_group = Policy(-0.5)
    trainer.actor_model_group.args = trainer.args
    return trainer


def stepped(trainer, step, rewards=REWARDS):
    """Advantages of the batch of a step, and the log of it, before anything is saved."""
    trainer.actor_model_group.appended.clear()
    batch = world.samples(tiny.tokenizer([MARK]), rewards=rewards, texts=REASONED)
    status, following = trainer.train_step(batch, step)
    assert following == step + 1
    return by_rows(trainer.actor_model_group.appended), status


def exchanges(directory):
    """Requests about batches, in order."""
    files = sorted((directory / "wire").glob("*.json"))
    requests = [json.loads(json.loads(path.read_text())["request"]) for path in files]
    return [request for request in requests if "items" in request]


def versions(directory):
    """Versions that requests named, in order."""
    return [request["weight_version"] for request in exchanges(directory)]


def directly(directory, url):
    """What the client says of the completions of the last request, by the weights of its version."""
    request, tokenizer = exchanges(directory)[-1], tiny.tokenizer([MARK])
    decode = lambda ids: tokenizer.decode([one for one in ids if one > 1], clean_up_tokenization_spaces=False)  # noqa: E731
    ids = [tokenizer(text=text, add_special_tokens=False)["input_ids"] for group in REASONED for text in group]
    parts = [token_offsets(row, decode) for row in ids]
    rewards = np.array(REWARDS).reshape(2, 3)
    plain = (rewards - rewards.mean(1, keepdims=True)) / rewards.std(1, ddof=1, keepdims=True)
    with Client(url) as client:
        found = client.oar(
            [item["prompt_ids"] for item in request["items"]],
            ids,
            advantages=np.ravel(plain).tolist(),
            model="policy",
            weight_version=request["weight_version"],
            completions=[text for text, _ in parts],
            token_offsets=[offsets for _, offsets in parts],
            parser="hashes",
        )
    return found.token_advantages.to_list()


def same(found, expected):
    """Whether rows are equal up to what company changes."""
    return all(row == pytest.approx(own, rel=1e-5) for row, own in zip(found, expected, strict=True))


def test_a_batch_is_reshaped_by_the_weights_that_wrote_it(tmp_path, served):
    """Those of the start, then those that OpenRLHF saved a step ago: the numbers are the client's for each version."""
    trainer, rows, logs = saving(tmp_path, served), [], []
    for step in range(3):
        found, status = stepped(trainer, step)
        assert same(found, directly(tmp_path, served))
        rows.append(found[0])
        logs.append(status)
        trainer.save_logs_and_checkpoints(step + 1, status, {})
    loaded, first, second = versions(tmp_path)
    assert [first.rpartition(":")[2], second.rpartition(":")[2]] == ["1", "2"]
    assert first.rpartition(":")[0] == second.rpartition(":")[0] != loaded
    assert all(np.abs(np.subtract(one, other)).max() > 0.01 for one, other in pairwise(rows))
    assert [log["credit/pushes"] for log in logs] == [0.0, 1.0, 1.0]
    assert [log["credit/version_lag"] for log in logs] == [0.0] * 3
    assert logs[1]["credit/push_seconds"] > 0
    assert logs[1]["credit/push_bytes"] > 1000
    folders = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert folders == [f"global_step{step}_hf" for step in (1, 2, 3)]


class Prompts(list):
    """What OpenRLHF draws prompts from."""

    def state_dict(self):
        """Where it is."""
        return {}

    load_state_dict = state_dict


def fitted(trainer, n_batches):
    """OpenRLHF's own loop around a trainer, with batches that are generated already."""
    batches = [world.samples(tiny.tokenizer([MARK]), rewards=REWARDS, texts=REASONED) for _ in range(n_batches)]
    trainer.samples_generator = SimpleNamespace(
        generate_samples=lambda **_: (batches.pop(), None, 2, not batches),
    )
    trainer.prompts_dataloader, trainer.eval_dataloader, trainer.generate_kwargs = Prompts(), None, {}
    trainer.args.eval.steps, trainer.vllm_engines = float("inf"), None
    actor_of("openrlhf.trainer.ppo_trainer", "PPOTrainer").fit(trainer)


def test_the_loop_of_openrlhf_saves_before_it_asks(tmp_path, served):
    """Its own `fit` counts the steps; resumed by it, the run begins with the checkpoint of its step."""
    fitted(saving(tmp_path, served), 3)
    assert [version.rpartition(":")[2] for version in versions(tmp_path)[1:]] == ["1", "2"]
    resumed = saving(tmp_path, served, "--ckpt.load_enable")
    (tmp_path / "run" / "_actor").mkdir()
    begun = {"episode": 0, "global_step": 2, "total_consumed_prompts": 4, "data_loader_state_dict": {}}
    resumed.actor_model_group.states = begun
    resumed.broadcast_to_vllm = lambda: None
    fitted(resumed, 2)
    assert [version.rpartition(":")[2] for version in versions(tmp_path)[3:]] == ["2", "3"]


def test_a_checkpoint_of_an_earlier_run_counts_for_nothing(tmp_path, served):
    """Nor does one of this run whose saving did not come back: the failure policy has its way, and then it is there."""
    earlier = saving(tmp_path, served)
    earlier.save_logs_and_checkpoints(1, {}, {})
    trainer = saving(tmp_path, served, *LEAVE)
    stepped(trainer, 0)
    _, failed = stepped(trainer, 1)
    assert failed["credit/errors"] == failed["credit/fallbacks"] == 1.0
    assert "credit/version_lag" not in failed
    trainer.actor_model_group.async_run_method = lambda **_: (_ for _ in ()).throw(OSError("the disk is full"))
    with pytest.raises(OSError, match="full"):
        trainer.save_logs_and_checkpoints(1, {}, {})
    del trainer.actor_model_group.async_run_method
    assert stepped(trainer, 1)[1]["credit/fallbacks"] == 1.0
    trainer.save_logs_and_checkpoints(1, {}, {})
    assert stepped(trainer, 1)[1]["credit/fallbacks"] == 0.0
    assert len(versions(tmp_path)) == 2


def test_a_run_that_is_resumed_begins_with_its_checkpoint(tmp_path, served):
    """The policy has weights of the run before; those of the folder of its step are handed over."""
    first = saving(tmp_path, served)
    stepped(first, 0)
    first.save_logs_and_checkpoints(1, {}, {})
    before, _ = stepped(first, 1)
    again, status = stepped(saving(tmp_path, served), 1)
    old, new = versions(tmp_path)[-2:]
    assert status["credit/pushes"] == 1.0
    assert old != new
    assert same(again, before)
    with pytest.raises(ValueError, match=r"after 2 pushes; .* OpenRLHF starts from: .* as --credit.initial_weights"):
        stepped(saving(tmp_path, served), 0)
    told = saving(tmp_path, served, "--credit.initial_weights", "global_step1_hf", "--credit.run", "night")
    assert same(stepped(told, 0)[0], before)
    assert versions(tmp_path)[-1].startswith("night-")


def test_a_checkpoint_may_be_older_by_as_many_steps_as_was_said(tmp_path, served):
    """Every second step is saved, and one more without a checkpoint is an error that says by what it is written."""
    trainer, lags = saving(tmp_path, served, "--credit.max_weights_age", "1", every=2), []
    for step in range(4):
        lags.append(stepped(trainer, step)[1]["credit/version_lag"])
        if step < 3:
            trainer.save_logs_and_checkpoints(step + 1, {}, {})
    assert lags == [0.0, 1.0, 0.0, 1.0]
    assert [version.rpartition(":")[2] for version in versions(tmp_path)[2:]] == ["2", "2"]
    words = r"no checkpoint of step 4, .* that of step 2 is the newest, 2 steps older.*expected --ckpt.save_steps and"
    with pytest.raises(WeightVersionMismatchError, match=words):
        stepped(trainer, 4)


def test_without_contrast_no_weights_are_handed_over(tmp_path, served):
    """Nobody is asked about the batch; the next one is answered by its own weights."""
    trainer = saving(tmp_path, served)
    trainer.save_logs_and_checkpoints(1, {}, {})
    _, status = stepped(trainer, 1, [1.0] * 6)
    assert status["credit/pushes"] == 0.0
    assert "credit/version_lag" not in status
    assert stepped(trainer, 1)[1]["credit/pushes"] == 1.0


def test_a_checkpoint_that_the_service_does_not_find_is_an_error_under_every_policy(tmp_path, served):
    """No other try heals that: it is elsewhere, or nothing was written."""
    trainer = saving(tmp_path, served, *LEAVE)
    trainer.actor_model_group.saves = False
    trainer.save_logs_and_checkpoints(1, {}, {})
    found = stepped(trainer, 1)[1]
    assert (found["credit/fallbacks"], found["credit/errors"]) == (1.0, 1.0)
    (tmp_path / "run" / "global_step1_hf").mkdir()
    with pytest.raises(WeightsRefusedError, match=r"OpenRLHF's actor at global_step1_hf.*--ckpt.save_hf"):
        stepped(trainer, 1)


def test_a_service_that_was_started_anew_is_given_the_checkpoint_once_more(tmp_path):
    """And asked once more; the version is the same."""
    python, script = os.environ.get("SERVICE_PYTHON"), Path(__file__).with_name("policy_service.py")
    if python is None:
        pytest.skip("SERVICE_PYTHON names no interpreter that can run the service")
    (tmp_path / "run").mkdir()
    given = {"directory": tmp_path, "script": script, "python": python}
    environment = os.environ | {"CREDITD_WEIGHTS_ROOT": str(tmp_path / "run")}
    with running_service(**given, env=environment) as url:
        trainer = saving(tmp_path, url)
        trainer.save_logs_and_checkpoints(1, {}, {})
        stepped(trainer, 1)
    with running_service(**given, env=environment | {"PORT": url.rpartition(":")[2]}):
        assert stepped(trainer, 1)[1]["credit/pushes"] == 1.0
    assert len(set(versions(tmp_path))) == 1


def test_the_run_of_the_page_trains_on_its_own_weights(tmp_path, served):
    """Its command, with another folder and another size of groups."""
    texts = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (text,) = (text for text in texts if "--credit.model" in text)
    words = shlex.split(text.replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "creditd.adapters.openrlhf"]
    changed = {"http://127.0.0.1:8400": served, "/runs/7": str(tmp_path / "run")}
    words = [changed.get(word, word) for word in words[3:]]
    assert all(word in words for word in changed.values())
    words[words.index("--rollout.n_samples_per_prompt") + 1] = "3"
    choices, others = world.split_arguments([*words, "--credit.record", str(tmp_path / "wire")])
    trainer = working(world.trainer_with(choices, world.arguments_of(others), more=[MARK]))
    trainer.save_logs_and_checkpoints(1, {}, {})
    found, status = stepped(trainer, 1)
    assert status["credit/pushes"] == 1.0
    assert versions(tmp_path)[-1].rpartition(":")[2] == "1"
    assert len(set(found[0][:3])) > 1
