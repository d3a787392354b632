"""OAR in verl by the weights of each step: verl's own trainer saves, its queue is sampled, a real policy answers."""

import json
import os
import re
import shlex
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("transfer_queue", reason="the lane `trainer` installs verl into an environment of its own")
pytest.importorskip("verl", reason="the lane `trainer` installs verl into an environment of its own")

from adapters import tiny
from adapters.verl_batches import advantages, as_float32, configured, emptied, put, sampled, trainer, with_credit
from conventions.groups import OF_A_LIBRARY
from creditd.adapters.completions import token_offsets
from creditd.client import Client, WeightsRefusedError
from services import running_service

pytestmark = [
    *OF_A_LIBRARY,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("verl_queue"),
]

MARK = "####"
TEXTS = {
    "a_0_0": "one two three #### four <eos>",
    "a_1_0": "six six one five #### two <eos>",
    "b_0_0": "two one six #### one <eos>",
    "b_1_0": "; three four two one #### six",
}
REWARDS = {"a_0_0": 1.0, "a_1_0": 0.0, "b_0_0": 0.25, "b_1_0": 1.0}
PROMPT = (3, 5)
KEYS = "trainer.v1.sampler.sampler_kwargs"
PAGE = (Path(__file__).parents[2] / "VERL.md").read_text(encoding="utf-8")
SAVED = ["actor_rollout_ref.actor.checkpoint.save_contents=[model,optimizer,extra,hf_model]", "trainer.save_freq=1"]


class Workers:
    """The group of workers in the place of verl's: one, whose model is another after each step, sharded by FSDP."""

    contents = ("model", "extra", "hf_model")

    def save_checkpoint(self, local_path, remote_path, global_step, max_ckpt_to_keep):
        """What verl's own manager of checkpoints writes."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

        model = tiny.model(seed=global_step, more=[MARK])
        model.config.architectures = [type(model).__name__]
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        contents = {"save_contents": self.contents, "load_contents": self.contents}
        manager = FSDPCheckpointManager(model, None, None, tiny.tokenizer([MARK]), checkpoint_config=contents)
        manager.save_checkpoint(local_path, remote_path, global_step, max_ckpt_to_keep)


@pytest.fixture(scope="module", autouse=True)
def _group():
    """A group of this process alone, which FSDP wants."""
    import torch

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def served(tmp_path):
    """A service with a policy that was loaded from the model that verl starts from."""
    tiny.model(seed=0, more=[MARK]).save_pretrained(tmp_path / "start")
    tiny.tokenizer([MARK]).save_pretrained(tmp_path / "start")
    settings = tmp_path / "service.toml"
    roots = f"models_root = {json.dumps(str(tmp_path))}\nweights_root = {json.dumps(str(tmp_path / 'runs'))}"
    (tmp_path / "runs").mkdir()
    settings.write_text(f'{roots}\n[[models]]\nid = "policy"\nkind = "policy"\npath = "start"\n')
    with running_service("--config", str(settings), directory=tmp_path, env={**os.environ}) as url:
        yield url


def saving(tmp_path, url, **keys):
    """The trainer of verl with workers that save."""
    given = {
        "kind": "sensitivity",
        "model": "policy",
        "parser": "hashes",
        "url": f"'{url}'",
        "weights": "'7/global_step_{step}/actor/huggingface'",
        "record": f"'{tmp_path / 'wire'}'",
    }
    folder = f"trainer.default_local_dir={tmp_path / 'runs' / '7'}"
    return working(trainer(configured(*with_credit("creditd_oar", **given | keys), *SAVED, folder)))


def working(made):
    """A trainer with what it saves by."""
    made.tokenizer = tiny.tokenizer([MARK])
    made.actor_rollout_wg, made.use_critic = Workers(), False
    made.train_dataloader = SimpleNamespace(state_dict=dict)
    made.checkpoint_callback = SimpleNamespace(on_save=lambda **_: None)
    return made


def saved(made, step):
    """What verl does at the end of a step."""
    made.global_steps = step
    made._save_checkpoint()


def trained_on(made, step):
    """Advantages of the batch of a step, and its metrics."""
    emptied()
    ids = {key: made.tokenizer.convert_tokens_to_ids(text.split()) for key, text in TEXTS.items()}
    put(ids, rewards=REWARDS, prompt=PROMPT)
    meta, metrics = sampled(made, step)
    return advantages(made, meta), metrics


def directly(made, url, version):
    """What the client says of the same completions, by the weights of one version."""
    decode = lambda ids: made.tokenizer.decode([one for one in ids if one > 1], clean_up_tokenization_spaces=False)  # noqa: E731
    ids = [made.tokenizer.convert_tokens_to_ids(text.split()) for text in TEXTS.values()]
    parts = [token_offsets(row, decode) for row in ids]
    with Client("local:") as client:
        rewards = np.array(list(REWARDS.values())).reshape(2, 2)
        plain = client.group(rewards, advantage="grpo", convention="verl").advantages
    with Client(url) as client:
        found = client.oar(
            [PROMPT] * 4,
            ids,
            advantages=np.ravel(plain).tolist(),
            model="policy",
            weight_version=version,
            completions=[text for text, _ in parts],
            token_offsets=[offsets for _, offsets in parts],
            parser="hashes",
        )
    return as_float32(dict(zip(TEXTS, found.token_advantages.to_list(), strict=True)))


def test_the_run_of_the_page_trains_on_its_own_weights(tmp_path, served):
    """Its command, with another folder and another size of groups."""
    words = shlex.split(re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[2].replace("\\\n", " "))
    changed = {"http://127.0.0.1:8400": served, "/runs/7": str(tmp_path / "runs"), "rollout.n=8": "rollout.n=2"}
    for old, new in changed.items():
        assert sum(old in word for word in words) == 1
        words = [word.replace(old, new) for word in words]
    assert words[:3] == ["python", "-m", "verl.trainer.main_ppo"]
    made = working(trainer(configured(*words[3:], f"+{KEYS}.record='{tmp_path / 'wire'}'")))
    saved(made, 1)
    found, metrics = trained_on(made, 2)
    assert metrics["credit/pushes"] == 1.0
    assert versions(tmp_path)[-1].rpartition(":")[2] == "1"
    assert len(set(found["a_0_0"][:3])) > 1


def versions(tmp_path):
    """Versions that requests named, in order."""
    files = sorted((tmp_path / "wire").glob("*.json"))
    requests = [json.loads(json.loads(path.read_text())["request"]) for path in files]
    return [request["weight_version"] for request in requests if "items" in request]


def test_a_batch_is_reshaped_by_the_weights_that_wrote_it(tmp_path, served):
    """Those of the start, then those that verl saved a step ago: the numbers are the client's for each version."""
    made = saving(tmp_path, served)
    rows, lags, pushes = [], [], []
    for step in (1, 2, 3):
        found, metrics = trained_on(made, step)
        pinned = versions(tmp_path)[-1]
        direct = directly(made, served, pinned)
        for key, row in found.items():
            assert row == pytest.approx(direct[key], rel=1e-5)
        rows.append(found["a_0_0"])
        lags.append(metrics["credit/version_lag"])
        pushes.append(metrics["credit/pushes"])
        saved(made, step)
    loaded, first, second = versions(tmp_path)
    with Client(served) as client:
        (policy,) = client.info().weights
    assert policy.weight_version == second
    assert [first.rpartition(":")[2], second.rpartition(":")[2]] == ["1", "2"]
    assert first.rpartition(":")[0] == second.rpartition(":")[0] != loaded
    assert all(np.abs(np.subtract(one, other)).max() > 0.01 for one, other in pairwise(rows))
    assert (lags, pushes) == ([0.0] * 3, [0.0, 1.0, 1.0])


def test_a_run_of_verl_that_is_resumed_begins_with_its_checkpoint(tmp_path, served):
    """The service has weights of the run before; those of the folder that verl loads are handed over."""
    made = saving(tmp_path, served)
    trained_on(made, 1)
    saved(made, 1)
    before, _ = trained_on(made, 2)
    resumed = saving(tmp_path, served)
    again, metrics = trained_on(resumed, 2)
    old, new = versions(tmp_path)[-2:]
    assert metrics["credit/pushes"] == 1.0
    assert old != new
    for key, row in again.items():
        assert row == pytest.approx(before[key], rel=1e-5)


def test_a_checkpoint_without_the_model_is_refused_by_the_service(tmp_path, served):
    """What verl writes by default: a configuration and a tokenizer."""
    made = saving(tmp_path, served, on_failure="group_reward")
    made.actor_rollout_wg.contents = ("model", "extra")
    saved(made, 1)
    folder = tmp_path / "runs" / "7" / "global_step_1" / "actor" / "huggingface"
    assert {"config.json", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    with pytest.raises(WeightsRefusedError, match=r"got 0 safetensors files.*hf_model"):
        trained_on(made, 2)


def test_an_asynchronous_sampler_takes_no_checkpoints():
    """Rows of one batch are by weights of several steps."""
    keys = {"kind": "sensitivity", "model": "policy", "parser": "hashes", "weights": "'{step}'"}
    mode = "trainer.v1.trainer_mode=separate_async"
    with pytest.raises(ValueError, match="trainer_mode=separate_async, in which weights of several steps"):
        trainer(configured(*with_credit("creditd_oar", "CreditReplayBufferAsync", **keys), *SAVED, mode))
