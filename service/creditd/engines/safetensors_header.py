"""What a safetensors file says it holds, read with bounds and believed only where it adds up.

The header is written by whoever wrote the file. Its length, the number of tensors, their names, shapes and places are
checked before anything else is read, and no more memory is taken than the bounds allow.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from creditd.engines.errors import WeightsRefusedError

MOST_HEADER_BYTES = 1 << 24
"""Longest header: about a hundred thousand tensors."""
MOST_NAME = 512
"""Characters of the longest name of a tensor."""
MOST_DIMENSIONS = 8
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_SHOWN = 80

ITEM_BYTES: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of a number of each type that is read, by the name that safetensors has for it."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        dtype: A key of `ITEM_BYTES`.
        shape: Its dimensions; none for a single number.
        start: Where its bytes begin in the file.
        stop: Where they end.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def n_bytes(self) -> int:
        """Size of its numbers."""
        return self.stop - self.start


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds.

    Attributes:
        tensors: By name.
        metadata: Free text by key, as the file has it.
    """

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


def shown(name: str) -> str:
    """A name out of a file as messages have it: quoted, and cut where it is long."""
    return repr(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…")


def read_header(descriptor: int, called: str) -> Header:
    """The header of an open file.

    Args:
        descriptor: A regular file, open for reading; its place is neither used nor moved.
        called: What messages call the file.

    Returns:
        Tensors whose places follow each other without gap or overlap from behind the header to the end of the file.

    Raises:
        WeightsRefusedError: If the file is no whole safetensors file, or beyond the bounds of this module.
        OSError: If it cannot be read.

    Cost:
        Reads and holds the header, at most `MOST_HEADER_BYTES`.
    """
    size = os.fstat(descriptor).st_size
    length = int.from_bytes(os.pread(descriptor, _LENGTH_BYTES, 0), "little")
    if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
        raise WeightsRefusedError(
            f"{called}: got {size} bytes with a header of {length}; expected a whole safetensors file"
        )
    if length > MOST_HEADER_BYTES:
        raise WeightsRefusedError(f"{called}: got a header of {length} bytes; expected at most {MOST_HEADER_BYTES}")
    raw = os.pread(descriptor, length, _LENGTH_BYTES)
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise WeightsRefusedError(
            f"{called}: got a header that is no JSON of unique keys ({type(error).__name__}); "
            "expected a safetensors file"
        ) from error
    if not isinstance(found, dict):
        raise WeightsRefusedError(f"{called}: got a header that is no object; expected a safetensors file")
    metadata = found.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightsRefusedError(f"{called}: got {_METADATA} with other things than text; expected text by key")
    tensors = {name: _stored(called, name, entry, _LENGTH_BYTES + length) for name, entry in found.items()}
    _demand_seamless(called, tensors, _LENGTH_BYTES + length, size)
    return Header(tensors, metadata)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs; a key that comes twice would hide one of the two."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _stored(called: str, name: str, entry: object, begin: int) -> StoredTensor:
    """A tensor by its entry, its place counted from the beginning of the file."""
    if not name or len(name) > MOST_NAME:
        raise WeightsRefusedError(
            f"{called}: got a tensor whose name has {len(name)} characters; expected 1 to {MOST_NAME}"
        )
    if not isinstance(entry, dict):
        raise WeightsRefusedError(f"{called}: got no object for {shown(name)}; expected dtype, shape and data_offsets")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        got = shown(dtype) if isinstance(dtype, str) else "no text"
        raise WeightsRefusedError(
            f"{called}: got {got} for the dtype of {shown(name)}; expected one of {', '.join(ITEM_BYTES)}"
        )
    if not _are_sizes(shape) or len(shape) > MOST_DIMENSIONS:
        raise WeightsRefusedError(
            f"{called}: got no shape of at most {MOST_DIMENSIONS} dimensions for {shown(name)}; expected one"
        )
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise WeightsRefusedError(f"{called}: got no data_offsets of two numbers for {shown(name)}; expected them")
    n_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != n_bytes:
        raise WeightsRefusedError(
            f"{called}: got {offsets[1] - offsets[0]} bytes for {shown(name)}; its shape and dtype have {n_bytes}"
        )
    return StoredTensor(dtype, tuple(shape), begin + offsets[0], begin + offsets[1])


def _are_sizes(found: object) -> TypeGuard[list[int]]:
    """Whether this is a list of whole numbers that are not negative and that a file could have."""
    return isinstance(found, list) and all(type(size) is int and 0 <= size < 1 << 62 for size in found)


def _demand_seamless(called: str, tensors: Mapping[str, StoredTensor], begin: int, size: int) -> None:
    """Refuse gaps, overlaps, and bytes that belong to no tensor."""
    place = begin
    for name, tensor in sorted(tensors.items(), key=lambda one: (one[1].start, one[1].stop)):
        if tensor.start != place:
            raise WeightsRefusedError(
                f"{called}: got {shown(name)} at byte {tensor.start}; expected it at {place}, behind what is before it"
            )
        place = tensor.stop
    if place != size:
        raise WeightsRefusedError(f"{called}: got {size} bytes; its tensors end at {place}: it is cut or has a tail")
