"""The weights of a policy from a trainer to a service, shard by shard.

    from creditd.adapters.weights import push_policy

    push_policy(client, "policy", model, weight_version=f"{run}:{step}")     # in every process, together

The model may be sharded by FSDP (`fully_shard` or `FullyShardedDataParallel`) or ZeRO, or stand in one process: it is
gathered tensor by tensor, and nothing of it is ever twice in memory but one shard. The first process sends; what fails
there is raised in all. Of a model that PEFT has wrapped the adapter alone travels, and the service keeps the weights
below it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from creditd.adapters.weight_shards import SHARD_BYTES, planned, shard_bytes
from creditd.adapters.weight_sources import SharedTensor, adapter_of, tensors_of
from creditd.client import Client, CreditdError


class Processes(Protocol):
    """Those that train together, as `accelerate.Accelerator` knows them."""

    @property
    def process_index(self) -> int:
        """Which one this is, from 0."""

    @property
    def num_processes(self) -> int:
        """How many there are."""


@dataclass(frozen=True)
class PushReport:
    """What handing over weights came to; the same in every process but for its seconds.

    Attributes:
        weight_version: What the service calls them now.
        n_bytes: That travelled.
        n_tensors: That the policy took.
        n_shards: Number of requests that brought them.
        is_adapter: Whether they are an adapter.
        seconds: Of this process, all in all.
        swap_s: Seconds for which the policy answered nothing.
    """

    weight_version: str
    n_bytes: int
    n_tensors: int
    n_shards: int
    is_adapter: bool
    seconds: float
    swap_s: float


@dataclass(frozen=True)
class _Push:
    """Weights on their way.

    Attributes:
        shards: Tensors that travel together.
        dtype: What numbers with a fraction are cast to; None: they stay.
        config: Of an adapter; None: the weights of the whole model.
    """

    shards: Sequence[Sequence[SharedTensor]]
    dtype: torch.dtype | None
    config: Mapping[str, Any] | None

    def file(self, number: int, *, keep: bool) -> bytes | None:
        """The bytes of a shard, made by all processes together."""
        config = self.config if number == 0 else None
        return shard_bytes(self.shards[number], keep=keep, dtype=self.dtype, config=config)


def push_policy(
    client: Client,
    model: str,
    module: nn.Module,
    processes: Processes | None = None,
    *,
    weight_version: str,
    max_shard_bytes: int = SHARD_BYTES,
    dtype: torch.dtype | None = None,
    merged: bool = False,
    deadline_s: float | None = None,
    announce_deadline_s: float | None = None,
) -> PushReport:
    """Give a policy of a service the weights of a model as they are now; every process calls this together.

    Args:
        client: Of the service, with an admin key if it has keys; the first process alone uses it.
        model: Id of the policy.
        module: The model that is being trained, wrapped or not.
        processes: Those that train together. None: those of torch.distributed, or this one alone.
        weight_version: What these weights are called: a name that no other bytes have had, such as `RUN:STEP`.
        max_shard_bytes: Largest shard, but for a tensor that alone is larger.
        dtype: What numbers with a fraction are cast to before they travel, such as `torch.bfloat16`. None: they stay.
        merged: Whether the service adds an adapter to the weights, or computes it beside them.
        deadline_s: Seconds for each shard, retries included. None: the client's.
        announce_deadline_s: Seconds for the announcement before the first shard, retries included: how long a service
            that is away is waited for. None: `deadline_s`.

    Returns:
        What it came to; answers are of these weights now.

    Raises:
        CreditdError: In every process, what the client raised in the first: `WeightsRefusedError` if they do not fit,
            `WeightVersionUnknownError` if the service was restarted meanwhile, so that all has to be pushed again.
        RuntimeError: In every process, what else failed in the first.
        ValueError: In every process, if there is nothing to push, or more than one active adapter.

    Cost:
        Two copies of one shard in the first process, and one tensor in each, or one unit of FSDP's first kind.
    """
    started = time.perf_counter()
    entries = tensors_of(module)
    adapter = adapter_of(module, entries)
    chosen, config = (entries, None) if adapter is None else adapter
    push = _Push(planned(chosen, max_shard_bytes, None if dtype is None else dtype.itemsize), dtype, config)
    rank, n_processes = _place(processes)
    if rank != 0:
        found = _follow(push)
    else:
        found = _lead(
            push,
            n_processes,
            client,
            model,
            weight_version,
            merged=merged,
            deadline_s=deadline_s,
            announce_deadline_s=announce_deadline_s,
        )
    return PushReport(**found, seconds=time.perf_counter() - started)


def _place(processes: Processes | None) -> tuple[int, int]:
    """Which process this is, and how many there are."""
    if processes is not None:
        return processes.process_index, processes.num_processes
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _lead(
    push: _Push,
    n_processes: int,
    client: Client,
    model: str,
    weight_version: str,
    *,
    merged: bool,
    deadline_s: float | None,
    announce_deadline_s: float | None,
) -> dict[str, Any]:
    """Send all shards, and tell the other processes which one comes, or how it ended."""
    n_bytes = 0

    def say(what: object) -> None:
        if n_processes > 1:
            torch.distributed.broadcast_object_list([what], src=0)

    def shards() -> Iterator[bytes]:
        nonlocal n_bytes
        for number in range(len(push.shards)):
            say(number)
            content = push.file(number, keep=True) or b""
            n_bytes += len(content)
            yield content
            del content

    try:
        answer = client.push_weights(
            model,
            shards(),
            weight_version=weight_version,
            n_shards=len(push.shards),
            adapter=push.config is not None,
            merged=merged and push.config is not None,
            deadline_s=deadline_s,
            announce_deadline_s=announce_deadline_s,
        )
    except Exception as error:
        failure = error if isinstance(error, CreditdError) else RuntimeError(f"{type(error).__name__}: {error}")
        say(failure)
        if failure is error:
            raise
        raise failure from error
    found = {
        "weight_version": weight_version,
        "n_bytes": n_bytes,
        "n_tensors": answer.n_tensors,
        "n_shards": len(push.shards),
        "is_adapter": push.config is not None,
        "swap_s": answer.seconds.swap,
    }
    say(found)
    return found


def _follow(push: _Push) -> dict[str, Any]:
    """Give the parts of this process to each shard that is called for, until the first process says how it ended."""
    while True:
        said: list[Any] = [None]
        torch.distributed.broadcast_object_list(said, src=0)
        if isinstance(said[0], Exception):
            raise said[0]
        if isinstance(said[0], int):
            push.file(said[0], keep=False)
        else:
            found: dict[str, Any] = said[0]
            return found
