"""From lists and buffers of numbers and names, as they travel, to the arrays of the arithmetic.

What came as a buffer is taken as it is, a read-only array without an object per number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.wire.buffers import NumbersAndNulls
from creditd.wire.errors import ErrorCode
from creditd.wire.fields import Ragged, RaggedNames, RaggedNumbers
from creditd.wire.validation import wire_error

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]
Values: TypeAlias = Sequence[Any] | NDArray[Any] | NumbersAndNulls
"""Entries of a column: a list, or what a buffer holds."""


def numbers_or_missing(values: Values) -> tuple[Floats, Booleans | None]:
    """Numbers with NaN for null, and where the nulls are (None when there is none).

    Args:
        values: Numbers and nulls.

    Returns:
        Two arrays of the same length. A NaN that the caller sent is not a null.
    """
    if isinstance(values, NumbersAndNulls):
        return np.where(values.missing, np.nan, values.values), values.missing
    if isinstance(values, np.ndarray):
        return values.astype(np.float64, copy=False), None
    array = np.array(values, dtype=np.float64)
    if not np.isnan(array).any():
        return array, None
    missing = np.fromiter((value is None for value in values), dtype=np.bool_, count=len(values))
    return array, missing if missing.any() else None


def numbered(names: Iterable[str | int] | Integers) -> tuple[Integers, int]:
    """Each name as the number of its first occurrence, and how many different names there are."""
    if isinstance(names, np.ndarray):
        changes = names[1:] > names[:-1]
        if len(names) and (changes | (names[1:] == names[:-1])).all():
            numbers = np.append(0, np.cumsum(changes))
            return numbers, int(numbers[-1]) + 1
        _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
        order = np.argsort(first)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        return place[inverse.reshape(-1)], len(order)
    seen: dict[str | int, int] = {}
    numbers = np.array([seen.setdefault(name, len(seen)) for name in names], dtype=np.int64)
    return numbers, len(seen)


def group_numbers(names: Sequence[str | int | None], base: str) -> tuple[Integers, int]:
    """The group of each set or item, each its own if none has a name.

    Args:
        names: Names of the prompts, all of them or none.
        base: Pointer to the list that they stand in.

    Returns:
        One number per entry, and how many groups there are.

    Raises:
        WireError: If only some have a name.
    """
    known = [name for name in names if name is not None]
    if not known:
        return np.arange(len(names)), len(names)
    if len(known) < len(names):
        detail = f"group is missing, but other {base[1:]} have one; expected it on all {base[1:]} or on none"
        raise wire_error(ErrorCode.INVALID_REQUEST, f"{base}/{names.index(None)}/group", detail)
    return numbered(known)


def optional_numbers(names: Values) -> Integers:
    """As `numbered`, −1 for null."""
    if isinstance(names, np.ndarray):
        return numbered(names)[0]
    if isinstance(names, NumbersAndNulls):
        found = np.full(len(names), -1, dtype=np.int64)
        found[~names.missing] = numbered(names.values[~names.missing])[0]
        return found
    seen: dict[str | int, int] = {}
    return np.array([-1 if name is None else seen.setdefault(name, len(seen)) for name in names], dtype=np.int64)


def ranks_of(names: Sequence[str | int] | Integers) -> tuple[Integers, list[str | int]]:
    """Rank of each name in a fixed order of all names, numbers by value before strings; and the names in that order."""
    if isinstance(names, np.ndarray):
        distinct, ranks = np.unique(names, return_inverse=True)
        return ranks.reshape(-1).astype(np.int64, copy=False), distinct.tolist()
    different = set(names)
    integers = sorted(name for name in different if isinstance(name, int))
    ordered: list[str | int] = [*integers, *sorted(name for name in different if isinstance(name, str))]
    order = {name: rank for rank, name in enumerate(ordered)}
    return np.array([order[name] for name in names], dtype=np.int64), ordered


def splits_of(lengths: Sequence[int]) -> Integers:
    """Row splits of rows of these lengths, one entry more than there are rows."""
    return np.append(np.int64(0), np.cumsum(np.array(lengths, dtype=np.int64)))


def flat(ragged: Ragged | RaggedNumbers | RaggedNames | Values, pointer: str) -> tuple[Any, Integers]:
    """Values and row splits of a ragged array in either form.

    Args:
        ragged: Rows, lists or an array of two axes, or values with row splits.
        pointer: Where it stands in the request.

    Returns:
        Values row after row, and their row splits.

    Raises:
        WireError: If the row splits are not.
    """
    if not isinstance(ragged, Ragged | RaggedNumbers | RaggedNames):
        values, lengths = flat_rows(ragged)
        return values, splits_of(lengths)
    return ragged.values, checked_splits(ragged.row_splits, f"{pointer}/row_splits", len(ragged.values))


def flat_rows(rows: Values) -> tuple[Values, list[int]]:
    """Rows, one after another.

    Args:
        rows: Lists of numbers, or an array of two axes.

    Returns:
        All entries, and the length of each row.
    """
    if isinstance(rows, NumbersAndNulls):
        flat_values = NumbersAndNulls(values=rows.values.reshape(-1), missing=rows.missing.reshape(-1))
        return flat_values, [rows.values.shape[1]] * len(rows)
    if isinstance(rows, np.ndarray):
        return rows.reshape(-1), [rows.shape[1]] * len(rows)
    return [value for row in rows for value in row], [len(row) for row in rows]


def checked_splits(row_splits: Sequence[int] | Integers, pointer: str, n_values: int | None = None) -> Integers:
    """Row splits as an array.

    Args:
        row_splits: What was sent.
        pointer: Where it stands in the request.
        n_values: What they have to end with, or None.

    Returns:
        Shape (rows + 1,), int64.

    Raises:
        WireError: If they do not rise from 0.
    """
    splits = np.asarray(row_splits, dtype=np.int64)
    ends = "" if n_values is None else f" to {n_values}, the number of values"
    wrong_end = len(splits) > 0 and n_values is not None and splits[-1] != n_values
    if len(splits) < 1 or splits[0] != 0 or wrong_end or (np.diff(splits) < 0).any():
        raise wire_error(ErrorCode.SHAPE_MISMATCH, pointer, f"expected numbers that never fall, from 0{ends}")
    return splits
