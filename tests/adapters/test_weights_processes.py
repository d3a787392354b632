"""Two gloo processes that push one model together, however it is shared between them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the lane `models` installs torch")
pytest.importorskip("peft", reason="the lane `models` installs peft")

import torch
from safetensors.torch import load_file

from adapters.pushing import policy, with_adapter

pytestmark = [
    pytest.mark.models,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # asked by PEFT
]
HANG_S = 60.0
"""Far less than the half hour for which a process waits for another that has gone."""
WHOLE = ["fully_shard", "FullyShardedDataParallel", "flat parameters", "DistributedDataParallel"]
ADAPTERS = ["adapter, fully_shard", "adapter, FullyShardedDataParallel"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What both processes wrote down."""
    directory = tmp_path_factory.mktemp("pushers")
    script = Path(__file__).with_name("two_pushers.py")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(script), str(directory)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


@pytest.fixture(scope="module")
def ranks(folder):
    """The outcomes of each process, by the name of the push."""
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", WHOLE)
def test_what_arrives_are_the_weights_of_the_whole_model(name, folder, ranks):
    """To the last bit, under the names of the model that nobody has wrapped; the first process alone has sent them."""
    assert [rank[name]["error"] for rank in ranks] == [None, None]
    assert ranks[0][name]["report"] == ranks[1][name]["report"]
    expected = load_file(folder / "expected.safetensors")
    found = load_file(folder / f"{name}.safetensors")
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    _, n_tensors, n_shards, is_adapter = ranks[0][name]["report"]
    assert (n_tensors, is_adapter) == (len(expected), False)
    assert n_shards > 3


@pytest.mark.parametrize("name", ADAPTERS)
def test_of_an_adapter_what_peft_saves_arrives(name, folder, ranks, tmp_path):
    """The adapter alone, gathered from both processes."""
    assert [rank[name]["error"] for rank in ranks] == [None, None]
    with_adapter(policy()).save_pretrained(tmp_path)
    expected, found = load_file(tmp_path / "adapter_model.safetensors"), load_file(folder / f"{name}.safetensors")
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert ranks[0][name]["report"][3] is True


@pytest.mark.parametrize("name", [*WHOLE, *ADAPTERS])
def test_a_model_is_as_it_was_after_a_push(name, ranks):
    """It is sharded as before: the same weights travel once more, shard by shard the same bytes."""
    assert [rank[f"{name}, again"]["error"] for rank in ranks] == [None, None]
    assert ranks[0][f"{name}, again"]["same"] is True


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("refused at once", "WeightsRefusedError: "),
        ("refused in the middle", "WeightsRefusedError: "),
        ("lost", "WeightVersionUnknownError: "),
        ("closed", "RuntimeError: RuntimeError: the client is closed"),
    ],
)
def test_what_fails_in_the_first_process_is_raised_in_both(name, error, ranks):
    """Both raise the same error by name, soon, and neither waits for parts that the other never gives."""
    found = {rank[name]["error"] for rank in ranks}
    assert len(found) == 1
    assert found.pop().startswith(error)
    assert all(rank[name]["seconds"] < HANG_S for rank in ranks)


def test_a_push_after_failures_is_as_good_as_the_first(ranks):
    """Nothing of a push that failed is left between the processes."""
    assert [rank["afterwards"]["error"] for rank in ranks] == [None, None]
    assert ranks[0]["afterwards"]["report"] == ranks[0]["fully_shard"]["report"]
