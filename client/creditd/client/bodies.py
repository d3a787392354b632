"""From what callers have to request bodies; no IO.

Structure is checked here only as far as columns need it. Everything else is the schema's business, and the values are
the arithmetic's: a NaN travels, so that it costs its own set and not the request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json

from creditd.client.arrays import (
    Column,
    Integers,
    Rows,
    Sets,
    matrices,
    numbers,
    ragged,
    refusal,
    sequence,
    span_columns,
    splits_of,
)
from creditd.client.mappings import Name, SetColumns, Wanted, gathered, mappings_in
from creditd.client.packing import listed, packable
from creditd.credit.candidate_sets import ErrorField
from creditd.credit.set_utilities import NEEDS
from creditd.wire import codec
from creditd.wire.errors import ErrorCode

JSON = "application/json"
Choice: TypeAlias = str | Mapping[str, Any] | BaseModel
"""A name, a mapping with `type` and parameters, or a model of `creditd.wire.v1`."""
Options: TypeAlias = Mapping[str, Any] | BaseModel


@dataclass(frozen=True)
class Body:
    """A request body as it travels.

    Attributes:
        content: The document.
        row_splits: Shape (B + 1,), int64, of the rewards in it; of completions, of the tokens that it says they have.
        ids: The caller's names of the sets; they stay here.
        named: Whether its rewards stand under names, as those of whole responses may.
        media_type: Format of the document.
        token_splits: Shape (B + 1,), int64, of the tokens of sets, where `row_splits` are those of candidates and
            there are both; or None.
    """

    content: bytes
    row_splits: Integers
    ids: tuple[Name | None, ...] | None = None
    named: bool = False
    media_type: str = JSON
    token_splits: Integers | None = None

    @property
    def text(self) -> str:
        """The document as JSON, with the bits of every number."""
        if self.media_type == JSON:
            return self.content.decode()
        return encoded(codec.decode(self.content, arrays=True)).decode()


def choice(value: Choice) -> Mapping[str, Any] | BaseModel:
    """A name as the object that the wire wants; anything else as it is."""
    return {"type": value} if isinstance(value, str) else value


def type_of(value: Choice) -> object:
    """The name in a choice."""
    if isinstance(value, str):
        return value
    return value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)


def encoded(body: Mapping[str, Any], media_type: str = JSON) -> bytes:
    """A document in which floats keep their bits and NaN stays NaN; entries that are None are left out.

    Args:
        body: Names and values.
        media_type: JSON, or the binary format, in which columns of numbers are buffers.

    Returns:
        The same document in either format.

    Raises:
        InvalidRequestError: If something in the body has no JSON form.
    """
    given = {name: value for name, value in body.items() if value is not None}
    try:
        if media_type == JSON:
            return to_json(given, inf_nan_mode="constants", fallback=listed)
        return codec.encode({name: packable(value, name) for name, value in given.items()})
    except (PydanticSerializationError, TypeError, ValueError) as error:
        detail = f"got something without a JSON form ({error}); expected numbers, strings, lists and mappings"
        raise refusal("", detail) from None


def wanted_by(utility: Choice, credit: Choice, *, tokens: bool) -> Wanted:
    """What a request needs to know of sets and candidates.

    Args:
        utility: What a set is worth, in any form.
        credit: Which rule shares it out, in any form.
        tokens: Whether token advantages are asked for.

    Returns:
        Names of fields; of a utility or a rule that this client does not know, none: the service knows it or refuses.
    """
    terms = _field(utility, "terms") or ()
    kinds = {type_of(_field(term, "utility")) for term in terms} if terms else {type_of(utility)}
    needed = frozenset().union(*(NEEDS.get(str(kind), frozenset()) for kind in kinds))
    ends = [credit, _field(credit, "from"), _field(credit, "from_"), _field(credit, "to")]
    unions = any(type_of(end) == "owen" for end in ends if end is not None)
    of_sets: list[ErrorField] = []
    of_candidates: list[ErrorField] = ["union"] if unions else []
    for need in sorted(needed):
        (of_sets if need in {"utilities", "similarities"} else of_candidates).append(need)
    return Wanted(of_sets=tuple(of_sets), of_candidates=tuple(of_candidates), tokens=tokens)


def _field(value: Any, name: str) -> Any:  # noqa: ANN401 - a name, a mapping or a model
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def set_columns(sets: Sets | None, extras: Mapping[str, Column | Rows | None], wanted: Wanted) -> SetColumns:
    """Columns of sets in any form.

    Args:
        sets: Rows of rewards, rows by name of the reward, or mappings. None where the utility needs no reward.
        extras: The other columns by name, beside rows only.
        wanted: What the request needs.

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
        return gathered(mappings, wanted)
    if isinstance(sets, Mapping):
        rewards, splits = _named_rewards(sets)
    elif sets is not None:
        values, splits = ragged(sets, "sets")
        rewards = {"rewards": {"values": values, "row_splits": splits.tolist()}}
    else:
        splits = _sizes_without_rewards(given, wanted)
        rewards = {"row_splits": splits.tolist()}
        if "utilities" in wanted.of_sets:
            rewards = {"rewards": {"values": [None] * int(splits[-1]), "row_splits": splits.tolist()}}
    ids = given.pop("ids", None)
    columns = {name: _CONVERTERS[name](column, splits, name) for name, column in given.items()}
    return SetColumns(columns=columns | rewards, row_splits=splits, ids=None if ids is None else _ids(ids, splits))


def _named_rewards(named: Mapping[str, Any]) -> tuple[dict[str, Any], Integers]:
    """Rewards by name, which are about the same candidates."""
    found = {name: ragged(rows, f"sets/{name}") for name, rows in named.items()}
    if not found:
        raise refusal("/sets", "got no rewards; expected at least one name")
    first, (_, splits) = next(iter(found.items()))
    for name, (_, other) in found.items():
        if not np.array_equal(other, splits):
            detail = f"rows have other lengths than those of {first!r}; expected the same candidates in all rewards"
            raise refusal(f"/sets/{name}", detail, ErrorCode.SHAPE_MISMATCH)
    columns = {name: {"values": values, "row_splits": splits.tolist()} for name, (values, _) in found.items()}
    return {"named_rewards": columns}, splits


def _sizes_without_rewards(given: Mapping[str, Any], wanted: Wanted) -> Integers:
    """Row splits of candidates by the columns that go set by set."""
    if "utilities" in wanted.of_sets and "utilities" in given:
        return _sizes_of_tables(given["utilities"])
    if "reward" in wanted.of_candidates:
        raise refusal("/sets", "got None; expected sets, because this utility needs rewards")
    if "similarities" in given:
        rows = [
            sequence(row, f"similarities/{place}")
            for place, row in enumerate(sequence(given["similarities"], "similarities"))
        ]
        return splits_of(
            [len(row) if row and not isinstance(row[0], (int, float)) else math.isqrt(len(row)) for row in rows]
        )
    for name in ("labels", "scores", "topics", "unions"):
        if name in given:
            rows = [sequence(row, f"{name}/{place}") for place, row in enumerate(sequence(given[name], name))]
            return splits_of([len(row) for row in rows])
    texts = sequence(given.get("texts", ()), "texts")
    if any(map(_is_list, texts)):
        return splits_of([len(sequence(row, f"texts/{place}")) for place, row in enumerate(texts)])
    if "text" in wanted.of_candidates:
        detail = "expected the texts of each set in a list of its own: nothing else says how many candidates it has"
        raise refusal("/texts", f"got {'one flat list' if texts else 'none'}; {detail}")
    raise refusal("/sets", "got None; expected sets, or columns that this utility needs, set by set")


def _sizes_of_tables(utilities: Rows) -> Integers:
    """Row splits of the candidates that tables are about."""
    _, splits = ragged(utilities, "utilities")
    sizes = []
    for row, length in enumerate(np.diff(splits).tolist()):
        if length < 1 or length & (length - 1):
            raise refusal(
                f"/utilities/{row}", f"got {length} values; expected 2**K for K candidates", ErrorCode.SHAPE_MISMATCH
            )
        sizes.append(length.bit_length() - 1)
    return splits_of(sizes)


def names_of_sets(ids: object, name: str) -> tuple[Name | None, ...]:
    """The caller's names of sets."""
    return tuple(sequence(ids, name))


def _ids(ids: object, splits: Integers) -> tuple[Name | None, ...]:
    names = names_of_sets(ids, "ids")
    if len(names) != len(splits) - 1:
        raise refusal("/ids", f"got {len(names)} entries; expected {len(splits) - 1}", ErrorCode.SHAPE_MISMATCH)
    return names


def per_set(column: object, n_sets: int, name: str) -> Sequence[Any]:
    """A column with one entry per set, of any type, as a sequence of that length."""
    entries = sequence(column, name)
    if len(entries) != n_sets:
        raise refusal(f"/{name}", f"got {len(entries)} entries; expected {n_sets}", ErrorCode.SHAPE_MISMATCH)
    return entries


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


def span_pairs(column: object, splits: Integers, name: str) -> Sequence[Any]:
    """Token ranges, flat: an array with two axes is flat already, anything else goes set by set."""
    entries = sequence(column, name)
    return entries if len(getattr(column, "shape", ())) == 2 else _nested(entries, splits, name)


def _spans(column: object, splits: Integers, name: str) -> dict[str, list[int]]:
    """Token ranges as columns."""
    return span_columns(span_pairs(column, splits, name), lambda place: f"/{name}/{place}")


def per_candidate(column: object, splits: Integers, name: str) -> Sequence[Any]:
    """A column with one entry per candidate, flat or set by set."""
    entries = sequence(column, name)
    nested = len(entries) > 0 and _is_list(entries[0])
    return _nested(entries, splits, name) if nested else entries


def _lists(column: object, name: str) -> list[Sequence[Any]]:
    """A column of lists."""
    return [sequence(entry, f"{name}/{place}") for place, entry in enumerate(sequence(column, name))]


def _rows_of_candidates(column: object, splits: Integers, name: str) -> list[Sequence[Any]]:
    """A column with one list per candidate, flat or set by set."""
    entries = _lists(column, name)
    deep = len(entries) == len(splits) - 1 and all(
        len(entry) == size and all(_is_list(part) for part in entry)
        for entry, size in zip(entries, np.diff(splits).tolist(), strict=True)
    )
    flat = [part for entry in entries for part in entry] if deep else entries
    return [sequence(part, name) for part in flat]


def _scores(column: object, splits: Integers, name: str) -> dict[str, Any]:
    """One row of numbers per candidate."""
    values, row_splits = ragged(_rows_of_candidates(column, splits, name), name)
    return {"values": values, "row_splits": row_splits.tolist()}


def _matrices(column: object, _: Integers, name: str) -> dict[str, Any]:
    """One matrix per set."""
    return matrices(column, name)


def _is_list(value: object) -> bool:
    """Whether something is a list or an array; a scalar of an array library is none."""
    found: Any = value.tolist() if hasattr(value, "tolist") else value
    return isinstance(found, (list, tuple))


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
    "texts": per_candidate,
    "prompts": _plain,
    "candidate_ids": per_candidate,
    "labels": per_candidate,
    "unions": per_candidate,
    "topics": _rows_of_candidates,
    "scores": _scores,
    "similarities": _matrices,
}
