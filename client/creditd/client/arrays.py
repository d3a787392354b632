"""Numbers from lists, arrays and tensors as Python's own, and what is said when they are something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.client.exceptions import InvalidRequestError
from creditd.client.results import ItemError, Ragged
from creditd.wire.errors import ERROR_KINDS, ErrorCode

Integers: TypeAlias = NDArray[np.int64]


class HasToList(Protocol):
    """Arrays of NumPy and tensors of any framework."""

    def tolist(self) -> object:
        """The same as nested lists."""


Row: TypeAlias = Sequence[float | None] | HasToList
Rows: TypeAlias = Sequence[Row] | HasToList | Ragged
Sets: TypeAlias = Rows | Sequence[Mapping[str, Any]] | Mapping[str, Rows]
Numbers: TypeAlias = list[float | None] | NDArray[np.float64]
Column: TypeAlias = Sequence[Any] | HasToList

_PLAIN_NUMBERS = {float, int, type(None)}


def refusal(pointer: str, detail: str, code: ErrorCode = ErrorCode.INVALID_REQUEST) -> InvalidRequestError:
    """The exception of something that the client finds wrong by itself."""
    return InvalidRequestError(
        f"{pointer}: {detail}",
        status=ERROR_KINDS[code].status,
        code=code.value,
        items=(ItemError(code=code.value, pointer=pointer, detail=detail),),
    )


def sequence(value: object, name: str) -> Sequence[Any]:
    """A list, tuple or array as a sequence.

    Args:
        value: What the caller gave.
        name: What it is called in messages, a pointer without its first stroke.

    Returns:
        The list or tuple itself, or the array as a list.

    Raises:
        InvalidRequestError: If it is none of these.
    """
    found = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(found, (str, bytes)) or not isinstance(found, Sequence):
        raise refusal(f"/{name}", f"got {type(value).__name__}; expected a list or an array")
    return found


def splits_of(lengths: Sequence[int]) -> Integers:
    """Row splits of rows of these lengths, shape (B + 1,), int64."""
    return np.append(np.int64(0), np.cumsum(np.array(lengths, dtype=np.int64)))


def ragged(rows: Sets, name: str) -> tuple[Numbers, Integers]:
    """Rows of numbers, flat, and their row splits.

    Args:
        rows: Lists or arrays, an array with two axes, or `Ragged`.
        name: What the rows are called in messages.

    Returns:
        An array of NumPy as an array, anything else as Python numbers and None; the splits have one entry more than
        there are rows.

    Raises:
        InvalidRequestError: If a row is not one axis of numbers.
    """
    if isinstance(rows, Ragged):
        return rows.values, rows.row_splits
    if isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.dtype.kind in "fiub":
        return rows.astype(np.float64).reshape(-1), np.arange(len(rows) + 1, dtype=np.int64) * rows.shape[1]
    shape = getattr(rows, "shape", None)
    if shape is not None and len(shape) != 2:
        raise refusal(f"/{name}", f"got an array of shape {tuple(shape)}; expected two axes", ErrorCode.SHAPE_MISMATCH)
    lists = [sequence(row, f"{name}/{place}") for place, row in enumerate(sequence(rows, name))]
    splits = splits_of([len(row) for row in lists])

    def pointer(flat: int) -> str:
        row = int(np.searchsorted(splits, flat, side="right")) - 1
        return f"/{name}/{row}/{flat - int(splits[row])}"

    return numbers([value for row in lists for value in row], pointer), splits


def numbers(values: Sequence[Any], pointer: Callable[[int], str]) -> list[float | None]:
    """Numbers of any library as Python's own.

    Args:
        values: Numbers and None.
        pointer: Names the place of one.

    Returns:
        The same numbers, float32 and the like widened without a change.

    Raises:
        InvalidRequestError: If something is neither a number nor None.
    """
    if set(map(type, values)) <= _PLAIN_NUMBERS:
        return list(values)
    return [None if value is None else _number(value, pointer, place) for place, value in enumerate(values)]


def span_columns(spans: Sequence[Any], pointer: Callable[[int], str]) -> dict[str, list[int]]:
    """Starts and stops of token ranges; a candidate without tokens has an empty one.

    Args:
        spans: One [start, stop] or None per candidate.
        pointer: Names the place of one.

    Returns:
        The columns of `v1.TokenSpans`.

    Raises:
        InvalidRequestError: If something is not a pair.
    """
    pairs = [(0, 0) if span is None else sequence(span, pointer(place)[1:]) for place, span in enumerate(spans)]
    for place, pair in enumerate(pairs):
        if len(pair) != 2:
            raise refusal(pointer(place), f"got {len(pair)} numbers; expected [start, stop]", ErrorCode.SHAPE_MISMATCH)
    return {"starts": [pair[0] for pair in pairs], "stops": [pair[1] for pair in pairs]}


def matrices(rows: object, name: str) -> dict[str, Any]:
    """One matrix per set, row by row.

    Args:
        rows: An array of shape (B, K, K), or per set a K × K array or its numbers in one row.
        name: What they are called in messages.

    Returns:
        The columns of `creditd.wire.fields.RaggedNumbers`.

    Raises:
        InvalidRequestError: If something is not a matrix of numbers.
    """
    flat = []
    for place, row in enumerate(sequence(rows, name)):
        entries = sequence(row, f"{name}/{place}")
        if entries and (isinstance(entries[0], Sequence) or hasattr(entries[0], "tolist")):
            lines = [sequence(line, f"{name}/{place}") for line in entries]
            if any(len(line) != len(lines) for line in lines):
                detail = (
                    f"got rows of {sorted({len(line) for line in lines})} numbers; expected {len(lines)} in each row"
                )
                raise refusal(f"/{name}/{place}", detail, ErrorCode.SHAPE_MISMATCH)
            entries = [value for line in lines for value in line]
        flat.append(entries)
    values, splits = ragged(flat, name)
    return {"values": values, "row_splits": splits.tolist()}


def _number(value: object, pointer: Callable[[int], str], place: int) -> float:
    try:
        if hasattr(value, "__float__"):  # a string has none, although float() would read it
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise refusal(pointer(place), f"got {type(value).__name__}; expected a number or None")
