"""Columns with one entry per completion as the entries of items; no IO.

Each function takes a column as the caller has it, the number of completions and the column's name, and gives as many
entries, None where there is none; InvalidRequestError names what it cannot hold.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.client.arrays import numbers, refusal, sequence
from creditd.client.bodies import per_set
from creditd.wire.buffers import NumbersAndNulls
from creditd.wire.errors import ErrorCode

Entries: TypeAlias = list[Any]


def plain(column: object, n_rows: int, name: str) -> Entries:
    """A column with one entry per completion."""
    return list(per_set(column, n_rows, name))


def one_number_each(column: object, n_rows: int, name: str) -> Entries:
    """A column with one number per completion."""
    return numbers(per_set(column, n_rows, name), lambda row: f"/{name}/{row}")


def pairs(column: object, n_rows: int, name: str) -> Entries:
    """A column with a list of pairs of integers per completion, as arrays of shape (n, 2)."""
    rows = per_set(column, n_rows, name)
    return [None if row is None else _pairs_of(row, f"{name}/{place}") for place, row in enumerate(rows)]


def _pairs_of(row: object, name: str) -> NDArray[np.int64]:
    given = sequence(row, name)
    if len(given) == 0:
        return np.empty((0, 2), dtype=np.int64)
    try:
        found = np.array(given)
    except (TypeError, ValueError):  # rows of different lengths
        found = np.empty(0)
    if found.ndim != 2 or found.shape[1] != 2:
        raise refusal(
            f"/{name}", "got something else than pairs; expected [start, stop] each", ErrorCode.SHAPE_MISMATCH
        )
    if found.dtype.kind not in "iu":
        raise refusal(f"/{name}", f"got pairs of {found.dtype}; expected integers")
    return found.astype(np.int64, copy=False)


def masks(column: object, n_rows: int, name: str) -> Entries:
    """A column with a list of truth values, or of 0 and 1, per completion."""
    rows = per_set(column, n_rows, name)
    return [None if row is None else _mask_of(row, f"{name}/{place}") for place, row in enumerate(rows)]


def _mask_of(row: object, name: str) -> list[bool]:
    entries = sequence(row, name)
    for place, entry in enumerate(entries):
        if type(entry) not in {bool, int, float} or entry not in (0, 1):
            raise refusal(f"/{name}/{place}", f"got {entry!r:.40}; expected True or False, or 1 or 0")
    return [bool(entry) for entry in entries]


def numbers_each(column: object, n_rows: int, name: str) -> Entries:
    """A column with a list of numbers per completion, one per token."""
    rows = per_set(column, n_rows, name)
    return [None if row is None else _numbers_of(row, f"{name}/{place}") for place, row in enumerate(rows)]


def _numbers_of(row: object, name: str) -> NDArray[np.float64]:
    values = numbers(sequence(row, name), lambda place: f"/{name}/{place}")
    for place, value in enumerate(values):
        if value is None:
            raise refusal(f"/{name}/{place}", "got None; expected a number")
    return np.array(values, dtype=np.float64)


def numbers_and_nulls(column: object, n_rows: int, name: str) -> Entries:
    """A column with a list of numbers per completion, one per token, None or NaN where there is none."""
    rows = per_set(column, n_rows, name)
    return [None if row is None else _known_of(row, f"{name}/{place}") for place, row in enumerate(rows)]


def _known_of(row: object, name: str) -> NDArray[np.float64] | NumbersAndNulls:
    values = numbers(sequence(row, name), lambda place: f"/{name}/{place}")
    found = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    missing = np.isnan(found)
    return NumbersAndNulls(values=np.where(missing, 0.0, found), missing=missing) if missing.any() else found


def token_ids(column: object, n_rows: int, name: str) -> Entries:
    """A column with a list of token ids per completion, as arrays of shape (n,), int64."""
    rows = per_set(column, n_rows, name)
    return [None if row is None else _ids_of(row, f"{name}/{place}") for place, row in enumerate(rows)]


def _ids_of(row: object, name: str) -> NDArray[np.int64]:
    ids = sequence(row, name)
    for place, number in enumerate(ids):
        if isinstance(number, bool) or not isinstance(number, int | np.integer):
            raise refusal(f"/{name}/{place}", f"got {type(number).__name__}; expected the number of a token")
    try:
        return np.array(ids, dtype=np.int64)
    except OverflowError:
        raise refusal(f"/{name}", "got a number of more than 64 bits; expected numbers of tokens") from None


def ranges(column: object, n_rows: int, name: str) -> Entries:
    """A column with one half-open range, or None, per completion."""
    rows = per_set(column, n_rows, name)
    return [None if row is None else _range_of(row, f"{name}/{place}") for place, row in enumerate(rows)]


def _range_of(row: object, name: str) -> list[int]:
    ends = sequence(row, name)
    if len(ends) != 2:
        raise refusal(f"/{name}", f"got {len(ends)} numbers; expected [start, stop]", ErrorCode.SHAPE_MISMATCH)
    for place, end in enumerate(ends):
        if isinstance(end, bool) or not isinstance(end, int | np.integer):
            raise refusal(f"/{name}/{place}", f"got {type(end).__name__}; expected the place of a token")
    return [int(end) for end in ends]
