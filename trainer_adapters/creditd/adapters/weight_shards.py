"""Weights as shards: which tensors travel together, and the bytes of each shard, one at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import save

from creditd.adapters.weight_sources import SharedTensor, whole

SHARD_BYTES = 256 << 20
"""Tensors of one shard: far below what a service takes in one, and enough to make the rest of a request nothing."""
_HEADER_BYTES = 64
_ENTRY_BYTES = 128
"""Of a safetensors header for each tensor, beside its name and its shape, at most."""


def planned(entries: Sequence[SharedTensor], max_bytes: int, item_bytes: int | None = None) -> list[list[SharedTensor]]:
    """Shards of at most so many bytes, in the order of the tensors.

    Args:
        entries: At least one.
        max_bytes: Of a safetensors file, header included; a tensor that alone has more is a shard by itself.
        item_bytes: Of a number with a fraction once it is cast; None: as it is.

    Returns:
        All entries, shard by shard, none of them empty.

    Raises:
        ValueError: If there is nothing to plan.
    """
    if not entries or max_bytes < 1:
        raise ValueError(f"got {len(entries)} tensors for shards of {max_bytes} bytes; expected at least 1 of each")
    shards: list[list[SharedTensor]] = [[]]
    size = _HEADER_BYTES
    for entry in entries:
        is_cast = item_bytes is not None and entry.dtype.is_floating_point
        n_bytes = entry.numel * (item_bytes or 0) if is_cast else entry.n_bytes
        n_bytes += len(json.dumps(entry.name)) + _ENTRY_BYTES + 20 * len(entry.shape)
        if shards[-1] and size + n_bytes > max_bytes:
            shards.append([])
            size = _HEADER_BYTES
        shards[-1].append(entry)
        size += n_bytes
    return shards


def shard_bytes(
    entries: Sequence[SharedTensor],
    *,
    keep: bool,
    dtype: torch.dtype | None = None,
    config: Mapping[str, Any] | None = None,
) -> bytes | None:
    """A shard as a safetensors file; every process comes here with the same entries.

    Args:
        entries: Its tensors.
        keep: Whether this process wants the file.
        dtype: What numbers with a fraction are cast to; None: they stay.
        config: Of an adapter, for its first shard.

    Returns:
        The file; None unless `keep`.

    Raises:
        Exception: What this process could not do, once the others have their parts.

    Cost:
        Memory for two copies of the shard, and for one afterwards.
    """
    tensors = whole(entries, keep=keep, dtype=dtype)
    if not keep:
        return None
    made: bytes = save(tensors, {} if config is None else {"adapter_config": json.dumps(config)})
    return made
