"""The numbers of staged weights, read in pieces: their digest, whether all are finite, and into the tensors of a model.

Nothing is mapped: a file that is cut while it is read is an error, and never the end of the process.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import torch

from creditd.engines.errors import WeightsRefusedError
from creditd.engines.safetensors_header import StoredTensor, shown

Place: TypeAlias = tuple[int, StoredTensor]
"""A descriptor, and a tensor in its file."""

PIECE_BYTES = 1 << 22
"""Bytes that are in memory at once, for each thread."""
DIGEST_BYTES = 16
_MOST_THREADS = 4

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types of numbers as torch has them, by the names that safetensors has."""


@dataclass(frozen=True)
class Digests:
    """What tells weights from others.

    Attributes:
        whole: BLAKE2b in hexadecimal digits, over the kind and over the name, type, shape and content of each tensor,
            in the order of names: it depends on neither files nor shards.
        of_tensors: Of the content of each tensor, by name.
    """

    whole: str
    of_tensors: Mapping[str, bytes]


def digests_of(
    places: Mapping[str, Place],
    targets: Mapping[str, torch.dtype],
    kind: str,
    checkpoint: Callable[[], None] = lambda: None,
) -> Digests:
    """The digests of all tensors; refuses numbers that are not finite.

    Args:
        places: Where each tensor is.
        targets: The type that each is cast to.
        kind: What else tells these weights from others, in ASCII.
        checkpoint: Called before each piece; what it raises ends the work.

    Raises:
        WeightsRefusedError: If a number is not finite, or would not be once it is cast.
        OSError: If a file cannot be read.

    Cost:
        Reads everything once, on up to four cores, 4 MiB of memory each; hashing is most of it.
    """
    whole = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"creditd tensors")
    names = sorted(places)
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "creditd-weights-values") as threads:
        pending = [threads.submit(_digest, name, places[name], targets[name], checkpoint) for name in names]
        try:
            found = {name: digest.result() for name, digest in zip(names, pending, strict=True)}
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise
    whole.update(len(kind).to_bytes(8, "little") + kind.encode("ascii"))
    for name in names:
        stored = places[name][1]
        said = f"{stored.dtype} {stored.shape} {name}".encode("utf-8", "surrogatepass")
        whole.update(len(said).to_bytes(8, "little") + said + found[name])
    return Digests(whole.hexdigest(), found)


def copy_values(place: Place, into: torch.Tensor, piece: bytearray) -> None:
    """Copy a tensor of a file over one in memory, cast to its type.

    Args:
        place: Where it is.
        into: Same shape; any type and device.
        piece: `PIECE_BYTES` to read into.

    Raises:
        OSError: If the file ends early or cannot be read.
    """
    descriptor, stored = place
    dtype = DTYPES[stored.dtype]
    with torch.no_grad():
        if not into.is_contiguous():
            whole = torch.empty(stored.shape, dtype=dtype)
            copy_values(place, whole, piece)
            into.copy_(whole)
            return
        flat, done = into.detach().view(-1), 0
        if into.dtype == dtype and into.device.type == "cpu":
            _read(descriptor, stored.start, memoryview(flat.view(torch.uint8).numpy()))
            return
        for start in range(stored.start, stored.stop, len(piece)):
            numbers = _numbers(descriptor, start, min(len(piece), stored.stop - start), dtype, piece)
            flat[done : done + len(numbers)].copy_(numbers)
            done += len(numbers)


def read_values(place: Place) -> torch.Tensor:
    """A tensor of a file in memory, in its own type."""
    stored = place[1]
    found = torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
    copy_values(place, found, bytearray(PIECE_BYTES))
    return found


def demand_finite(name: str, numbers: torch.Tensor, target: torch.dtype) -> None:
    """Refuse numbers that are not finite, or would not be once they are cast.

    Args:
        name: Of their tensor, for the message.
        numbers: At least one, of any type.
        target: What they are cast to.

    Raises:
        WeightsRefusedError: If there is one.
    """
    if not numbers.is_floating_point():
        return
    # The least and the greatest are NaN if any number is, and rounding keeps their order.
    extremes = torch.stack(torch.aminmax(numbers))
    if not bool(torch.isfinite(extremes).all()):
        raise WeightsRefusedError(f"got numbers in {shown(name)} that are not finite; expected finite ones")
    if not bool(torch.isfinite(extremes.to(target)).all()):
        raise WeightsRefusedError(
            f"got numbers in {shown(name)} that are too large for {str(target).removeprefix('torch.')}, which the "
            "policy has; expected smaller ones"
        )


def _digest(name: str, place: Place, target: torch.dtype, checkpoint: Callable[[], None]) -> bytes:
    descriptor, stored = place
    digest, piece = hashlib.blake2b(digest_size=DIGEST_BYTES), bytearray(min(PIECE_BYTES, max(stored.n_bytes, 1)))
    for start in range(stored.start, stored.stop, len(piece)):
        checkpoint()
        n_bytes = min(len(piece), stored.stop - start)
        numbers = _numbers(descriptor, start, n_bytes, DTYPES[stored.dtype], piece)
        digest.update(memoryview(piece)[:n_bytes])
        demand_finite(name, numbers, target)
    return digest.digest()


def _numbers(descriptor: int, start: int, n_bytes: int, dtype: torch.dtype, piece: bytearray) -> torch.Tensor:
    """Numbers of a file, read into a piece of memory that they stay in."""
    _read(descriptor, start, memoryview(piece)[:n_bytes])
    return torch.frombuffer(piece, dtype=dtype, count=n_bytes // dtype.itemsize)


def _read(descriptor: int, start: int, into: memoryview) -> None:
    """Fill memory with what a file has from a place on."""
    done = 0
    while done < len(into):
        n_read = os.preadv(descriptor, [into[done:]], start + done)
        if not n_read:
            raise OSError("a file of weights ended early")
        done += n_read


def dtype_names(dtypes: Sequence[torch.dtype]) -> str | None:
    """Names of types, each once and in order; None for none."""
    return ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes})) or None
