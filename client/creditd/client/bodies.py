"""From what callers have to request bodies; no IO.

Structure is checked here only as far as columns need it. Everything else is the schema's business, and the values are
the arithmetic's: a NaN travels, so that it costs its own set and not the request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json

from creditd.client.arrays import (
    Column,
    Integers,
    Rows,
    Sets,
    numbers,
    ragged,
    refusal,
    sequence,
    span_columns,
    splits_of,
)
from creditd.client.mappings import Name, SetColumns, gathered, mappings_in
from creditd.wire.errors import ErrorCode

Choice: TypeAlias = str | Mapping[str, Any] | BaseModel
"""A name, a mapping with `type` and parameters, or a model of `creditd.wire.v1`."""
Options: TypeAlias = Mapping[str, Any] | BaseModel


@dataclass(frozen=True)
class Body:
    """A request body as it travels.

    Attributes:
        content: JSON.
        row_splits: Shape (B + 1,), int64, of the rewards in it.
        ids: The caller's names of the sets; they stay here.
        named: Whether its rewards stand under names, as those of whole responses may.
    """

    content: bytes
    row_splits: Integers
    ids: tuple[Name | None, ...] | None = None
    named: bool = False


def choice(value: Choice) -> Mapping[str, Any] | BaseModel:
    """A name as the object that the wire wants; anything else as it is."""
    return {"type": value} if isinstance(value, str) else value


def type_of(value: Choice) -> object:
    """The name in a choice."""
    if isinstance(value, str):
        return value
    return value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)


def encoded(body: Mapping[str, Any]) -> bytes:
    """JSON in which floats keep their bits and NaN stays NaN; entries that are None are left out.

    Args:
        body: Names and values.

    Returns:
        UTF-8.

    Raises:
        InvalidRequestError: If something in the body has no JSON form.
    """
    given = {name: value for name, value in body.items() if value is not None}
    try:
        return to_json(given, inf_nan_mode="constants", fallback=_listed)
    except (PydanticSerializationError, TypeError, ValueError) as error:
        detail = f"got something without a JSON form ({error}); expected numbers, strings, lists and mappings"
        raise refusal("", detail) from None


def set_columns(
    sets: Sets | None, extras: Mapping[str, Column | Rows | None], *, table: bool, tokens: bool
) -> SetColumns:
    """Columns of sets in any form.

    Args:
        sets: Rows of rewards, or mappings. None for tables without more data.
        extras: The other columns by name, beside rows only.
        table: Whether the utility is a table.
        tokens: Whether token advantages are asked for.

    Returns:
        The same columns for the same sets in every form.

    Raises:
        InvalidRequestError: If something is missing or not of the type it should be.
    """
    given = {name: column for name, column in extras.items() if column is not None}
    mappings = mappings_in(sets)
    if mappings is not None:
        for name in given:
            raise refusal(f"/{name}", "got a column beside sets that are mappings; expected it inside the mappings")
        return gathered(mappings, table=table, tokens=tokens)
    if sets is not None:
        values, splits = ragged(sets, "sets")
    elif table and "utilities" in given:
        values, splits = _bare_candidates(given["utilities"])
    else:
        raise refusal("/sets", "got None; expected sets, or utilities with the table utility")
    ids = given.pop("ids", None)
    columns = {name: _CONVERTERS[name](column, splits, name) for name, column in given.items()}
    columns["rewards"] = {"values": values, "row_splits": splits.tolist()}
    return SetColumns(columns=columns, row_splits=splits, ids=None if ids is None else _ids(ids, splits))


def group_rewards(rewards: Rows | Mapping[str, Rows]) -> tuple[Any, Integers, bool]:
    """Rewards of whole responses as the wire wants them.

    Args:
        rewards: One row per prompt, or such rows by name.

    Returns:
        Rows of Python numbers and None, or a mapping of them; the row splits of the first; whether there are names.

    Raises:
        InvalidRequestError: If a row is not one axis of numbers, or there is no name.
    """
    if not isinstance(rewards, Mapping):
        rows, splits = _rows(rewards, "rewards")
        return rows, splits, False
    found = {name: _rows(entry, f"rewards/{name}") for name, entry in rewards.items()}
    for _, splits in found.values():
        return {name: rows for name, (rows, _) in found.items()}, splits, True
    raise refusal("/rewards", "got no names; expected at least one reward")


def token_counts(n_tokens: Rows) -> list[list[Any]]:
    """Rows of numbers of tokens; floats of arrays that are integers become integers.

    Args:
        n_tokens: One row per prompt.

    Returns:
        Rows of Python numbers; what is no integer is left for the schema to refuse.

    Raises:
        InvalidRequestError: If a row is not one axis of numbers.
    """
    rows, _ = _rows(n_tokens, "n_tokens")
    return [[int(n) if isinstance(n, float) and n.is_integer() else n for n in row] for row in rows]


def _rows(rows: Rows, name: str) -> tuple[list[list[float | None]], Integers]:
    """Rows of numbers, and their row splits."""
    values, splits = ragged(rows, name)
    return [values[start:stop] for start, stop in pairwise(splits.tolist())], splits


def _listed(value: object) -> object:
    """Arrays, tensors and their scalars as Python's own; JSON knows no other types."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__}")


def _bare_candidates(utilities: Rows) -> tuple[list[float | None], Integers]:
    """Candidates without data, as many as the tables are about."""
    _, splits = ragged(utilities, "utilities")
    sizes = []
    for row, length in enumerate(np.diff(splits).tolist()):
        if length < 1 or length & (length - 1):
            raise refusal(
                f"/utilities/{row}", f"got {length} values; expected 2**K for K candidates", ErrorCode.SHAPE_MISMATCH
            )
        sizes.append(length.bit_length() - 1)
    return [None] * sum(sizes), splits_of(sizes)


def _ids(ids: object, splits: Integers) -> tuple[Name | None, ...]:
    names = tuple(sequence(ids, "ids"))
    if len(names) != len(splits) - 1:
        raise refusal("/ids", f"got {len(names)} entries; expected {len(splits) - 1}", ErrorCode.SHAPE_MISMATCH)
    return names


def _plain(column: object, _: Integers, name: str) -> Sequence[Any]:
    """A column with one entry per set, of any type."""
    return sequence(column, name)


def _set_numbers(column: object, _: Integers, name: str) -> list[float | None]:
    """A column with one number per set."""
    return numbers(sequence(column, name), lambda place: f"/{name}/{place}")


def _tables(column: Any, _: Integers, name: str) -> dict[str, Any]:  # noqa: ANN401 - ragged() finds out what it is
    """One table per set."""
    values, splits = ragged(column, name)
    return {"values": values, "row_splits": splits.tolist()}


def _spans(column: object, splits: Integers, name: str) -> dict[str, list[int]]:
    """Token ranges: an array with two axes is flat, anything else goes set by set."""
    entries = sequence(column, name)
    flat = entries if len(getattr(column, "shape", ())) == 2 else _nested(entries, splits, name)
    return span_columns(flat, lambda place: f"/{name}/{place}")


def _per_candidate(column: object, splits: Integers, name: str) -> Sequence[Any]:
    """A column with one entry per candidate, flat or set by set."""
    entries = sequence(column, name)
    nested = len(entries) > 0 and (isinstance(entries[0], (list, tuple)) or hasattr(entries[0], "tolist"))
    return _nested(entries, splits, name) if nested else entries


def _nested(column: Sequence[Any], splits: Integers, name: str) -> list[Any]:
    """A column given set by set, flat."""
    if len(column) != len(splits) - 1:
        raise refusal(f"/{name}", f"got {len(column)} sets; expected {len(splits) - 1}", ErrorCode.SHAPE_MISMATCH)
    flat: list[Any] = []
    for row, (entry, size) in enumerate(zip(column, np.diff(splits).tolist(), strict=True)):
        entries = sequence(entry, f"{name}/{row}")
        if len(entries) != size:
            raise refusal(
                f"/{name}/{row}",
                f"got {len(entries)} entries; expected {size}, one per candidate",
                ErrorCode.SHAPE_MISMATCH,
            )
        flat.extend(entries)
    return flat


_CONVERTERS: dict[str, Callable[[Any, Integers, str], Any]] = {
    "groups": _plain,
    "n_tokens": _plain,
    "set_rewards": _set_numbers,
    "utilities": _tables,
    "spans": _spans,
    "texts": _per_candidate,
    "candidate_ids": _per_candidate,
}
