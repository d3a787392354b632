"""One of two processes that push one model together; started by torchrun from a test.

Usage: two_pushers.py FOLDER. Each process writes what its pushes came to, the first also what arrived.
"""

import json
import sys
import time
from pathlib import Path

import httpx
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from adapters.pushing import Kept, policy, tensors_in, with_adapter
from creditd.adapters.weights import push_policy
from creditd.client import Client

SHARD_BYTES = 3000


def fully_sharded(model):
    """FSDP of the second kind, layer by layer."""
    mesh = init_device_mesh("cpu", (2,))
    for module in model.modules():
        if isinstance(module, Qwen2DecoderLayer):
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def first_kind(model, **options):
    """FSDP of the first kind, layer by layer."""
    wraps = ModuleWrapPolicy({Qwen2DecoderLayer})
    return FullyShardedDataParallel(model, auto_wrap_policy=wraps, device_id=torch.device("cpu"), **options)


MODELS = {
    "fully_shard": lambda: fully_sharded(policy()),
    "FullyShardedDataParallel": lambda: first_kind(policy(), use_orig_params=True),
    "flat parameters": lambda: first_kind(policy(), use_orig_params=False),
    "DistributedDataParallel": lambda: DistributedDataParallel(policy()),
    "adapter, fully_shard": lambda: fully_sharded(with_adapter(policy())),
    "adapter, FullyShardedDataParallel": lambda: first_kind(with_adapter(policy()), use_orig_params=True),
}
REFUSALS = {"refused at once": {"refuses": 0}, "refused in the middle": {"refuses": 2}, "lost": {"loses": 3}}


def unasked():
    """The client of a process that must not send anything."""

    def fail(_):
        raise AssertionError("a process beside the first one sends")

    return Client("http://nobody.test", transport=httpx.MockTransport(fail))


def outcome(model, service, **options):
    """What a push came to, in this process."""
    started, error, report = time.monotonic(), None, None
    client = service.client() if dist.get_rank() == 0 else unasked()
    try:
        report = push_policy(client, "policy", model, weight_version="run:1", max_shard_bytes=SHARD_BYTES, **options)
    except Exception as caught:  # noqa: BLE001 - the test looks at it
        error = caught
    return {
        "error": None if error is None else f"{type(error).__name__}: {error}",
        "cause": None if error is None else type(error.__cause__).__name__,
        "seconds": time.monotonic() - started,
        "report": None if report is None else [report.n_bytes, report.n_tensors, report.n_shards, report.is_adapter],
    }


def main(folder):
    """Push models of every kind, then one that is refused in several ways."""
    dist.init_process_group("gloo")
    found = {}
    for name, make in MODELS.items():
        service, model = Kept(), make()
        found[name] = outcome(model, service)
        if dist.get_rank() == 0:
            save_file(service.tensors(), folder / f"{name}.safetensors")
        again = Kept()
        found[f"{name}, again"] = outcome(model, again)
        if dist.get_rank() == 0:
            found[f"{name}, again"]["same"] = again.shards == service.shards
    model = fully_sharded(policy())
    for name, options in REFUSALS.items():
        found[name] = outcome(model, Kept(**options))
    service = Kept()
    closed = service.client() if dist.get_rank() == 0 else unasked()
    closed.close()
    service.client = lambda: closed
    found["closed"] = outcome(model, service)
    found["afterwards"] = outcome(model, Kept())
    if dist.get_rank() == 0:
        save_file(tensors_in(policy()), folder / "expected.safetensors")
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
