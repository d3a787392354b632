"""From parts of a document to what the formats hold: columns of numbers as arrays, everything else as JSON has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_jsonable_python

from creditd.wire.buffers import NumbersAndNulls

_OF_NUMBERS = frozenset({"values", "rewards", "set_rewards", "utilities"})
_OF_INTEGERS = frozenset({"row_splits", "starts", "stops", "n_tokens", "groups", "candidate_ids", "labels", "unions"})
"""Fields whose lists travel as buffers when all of their entries are what the name says."""


def packable(value: Any, name: str) -> Any:  # noqa: ANN401 - any part of a document
    """A part of a document with its columns of numbers as arrays, and everything else as JSON would have it."""
    if isinstance(value, Mapping):
        return {str(key): packable(entry, key) for key, entry in value.items()}
    if isinstance(value, np.ndarray | NumbersAndNulls):
        return value
    if isinstance(value, list) and value:
        if isinstance(value[0], Mapping):
            return [packable(entry, name) for entry in value]
        if name in _OF_NUMBERS or name in _OF_INTEGERS:
            array = _packed_rows(value, integers=name in _OF_INTEGERS)
            if array is not None:
                return array
    return to_jsonable_python(value, inf_nan_mode="constants", fallback=listed)


def _packed_rows(values: list[Any], *, integers: bool) -> NDArray[Any] | NumbersAndNulls | None:
    """A list of numbers, or of equally long lists of them, as an array; None if it is something else."""
    if not isinstance(values[0], list):
        return _packed(values, integers=integers)
    width = len(values[0])
    if width == 0 or not all(isinstance(row, list) and len(row) == width for row in values):
        return None
    flat = _packed([value for row in values for value in row], integers=integers)
    if isinstance(flat, NumbersAndNulls):
        return NumbersAndNulls(values=flat.values.reshape(-1, width), missing=flat.missing.reshape(-1, width))
    return None if flat is None else flat.reshape(-1, width)


def _packed(values: list[Any], *, integers: bool) -> NDArray[Any] | NumbersAndNulls | None:
    """A list of numbers as an array; None if it has something else in it, which the schema may have words for."""
    kinds = set(map(type, values))
    nulls = type(None) in kinds
    kinds.discard(type(None))
    if not kinds or not kinds <= ({int} if integers else {int, float}):
        return None
    dtype = np.int64 if kinds == {int} else np.float64
    try:
        array = np.array([0 if value is None else value for value in values] if nulls else values, dtype=dtype)
    except OverflowError:
        return None
    if not nulls:
        return array
    missing = np.fromiter((value is None for value in values), dtype=np.bool_, count=len(values))
    return NumbersAndNulls(values=array, missing=missing)


def listed(value: object) -> object:
    """Arrays, tensors and their scalars as Python's own; JSON knows no other types."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__}")
