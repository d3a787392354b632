"""Sets that are mappings, in the shape of `v1.CandidateSet`, as columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from creditd.client.arrays import Integers, Sets, numbers, ragged, refusal, sequence, span_columns, splits_of
from creditd.client.results import Ragged
from creditd.wire import v1
from creditd.wire.errors import ErrorCode

Name: TypeAlias = str | int
Mappings: TypeAlias = Sequence[Mapping[str, Any]]

_SET_FIELDS = frozenset(v1.CandidateSet.model_fields)
_CANDIDATE_FIELDS = frozenset(v1.Candidate.model_fields)
_REASONS = {
    "candidates": "candidates is missing; expected a list of mappings",
    "n_tokens": "n_tokens is missing; expected a number of tokens, because token advantages are asked for",
    "reward": "reward is missing; expected a number, or None for a candidate that was not scored",
    "span": "span is missing; expected [start, stop], or None for a candidate without tokens",
    "utilities": "utilities is missing; expected 2**K values for the table utility",
}
_MAY_BE_NONE = {"reward", "span"}


@dataclass(frozen=True)
class SetColumns:
    """Sets in the columns of the wire.

    Attributes:
        columns: As in `v1.SetColumns`.
        row_splits: Shape (B + 1,), int64.
        ids: The caller's names of the sets.
    """

    columns: dict[str, Any]
    row_splits: Integers
    ids: tuple[Name | None, ...] | None


def mappings_in(sets: Sets | None) -> Mappings | None:
    """The sets if they are mappings, None if they are rows.

    Args:
        sets: What the caller gave.

    Returns:
        The same sets, or None.

    Raises:
        InvalidRequestError: If there are both.
    """
    if sets is None or isinstance(sets, Ragged) or not isinstance(sets, Sequence):
        return None
    found = [item for item in sets if isinstance(item, Mapping)]
    if found and len(found) != len(sets):
        place = next(place for place, item in enumerate(sets) if not isinstance(item, Mapping))
        kind = type(sets[place]).__name__
        raise refusal(f"/sets/{place}", f"got {kind} beside mappings; expected one form for all sets")
    return found or None


def gathered(sets: Mappings, *, table: bool, tokens: bool) -> SetColumns:
    """Mappings as columns; only what the request needs is sent.

    Args:
        sets: At least one mapping.
        table: Whether the utility is a table.
        tokens: Whether token advantages are asked for.

    Returns:
        The columns that the same sets would have been given in.

    Raises:
        InvalidRequestError: If a field is unknown, missing where it is needed, or not of the type it should be.
    """
    members = _checked_members(sets, table=table, tokens=tokens)
    candidates = [candidate for row in members for candidate in row]
    splits = splits_of([len(row) for row in members])
    places = [(row, place) for row, found in enumerate(members) for place in range(len(found))]

    def pointer_to(field: str) -> Callable[[int], str]:
        return lambda flat: f"/sets/{places[flat][0]}/candidates/{places[flat][1]}/{field}"

    rewards = numbers([candidate.get("reward") for candidate in candidates], pointer_to("reward"))
    columns: dict[str, Any] = {"rewards": {"values": rewards, "row_splits": splits.tolist()}}
    groups = _groups(sets)
    if groups:
        columns["groups"] = groups
    if _any_has(sets, "set_reward"):
        whole = [item.get("set_reward") for item in sets]
        columns["set_rewards"] = numbers(whole, lambda row: f"/sets/{row}/set_reward")
    if tokens:
        columns["n_tokens"] = [item["n_tokens"] for item in sets]
        columns["spans"] = span_columns([candidate["span"] for candidate in candidates], pointer_to("span"))
    if table:
        values, table_splits = ragged([item["utilities"] for item in sets], "utilities")
        columns["utilities"] = {"values": values, "row_splits": table_splits.tolist()}
    if table and _any_has(candidates, "id"):
        columns["candidate_ids"] = _names_in_order(candidates, splits)
    if _any_has(candidates, "text"):
        columns["texts"] = [candidate.get("text") for candidate in candidates]
    ids = tuple(item.get("id") for item in sets) if _any_has(sets, "id") else None
    return SetColumns(columns=columns, row_splits=splits, ids=ids)


def _checked_members(sets: Mappings, *, table: bool, tokens: bool) -> list[Mappings]:
    """The candidates of each set, once every field is known and what the request needs is there."""
    of_set = ["candidates", *["utilities"] * table, *["n_tokens"] * tokens]
    of_candidate = [*["reward"] * (not table), *["span"] * tokens]
    members: list[Mappings] = []
    for row, item in enumerate(sets):
        _check_fields(item, f"/sets/{row}", _SET_FIELDS, of_set)
        if not table and item.get("utilities") is not None:
            raise refusal(f"/sets/{row}/utilities", "got utilities; expected them for the table utility only")
        found = sequence(item["candidates"], f"sets/{row}/candidates")
        for place, candidate in enumerate(found):
            _check_fields(candidate, f"/sets/{row}/candidates/{place}", _CANDIDATE_FIELDS, of_candidate)
        members.append(found)
    return members


def _check_fields(item: object, pointer: str, known: frozenset[str], needed: list[str]) -> None:
    if not isinstance(item, Mapping):
        raise refusal(pointer, f"got {type(item).__name__}; expected a mapping")
    if not known.issuperset(item):
        unknown = min(str(field) for field in item if field not in known)
        detail = f"there is no such field; expected some of {', '.join(sorted(known))}"
        raise refusal(f"{pointer}/{unknown}", detail, ErrorCode.UNKNOWN_FIELD)
    for field in needed:
        if field not in item or (item[field] is None and field not in _MAY_BE_NONE):
            raise refusal(f"{pointer}/{field}", _REASONS[field])


def _any_has(items: Mappings, field: str) -> bool:
    return any(item.get(field) is not None for item in items)


def _groups(sets: Mappings) -> list[Name]:
    """Names of the prompts, given for all sets or for none; then there are none."""
    groups = [item.get("group") for item in sets]
    known = [group for group in groups if group is not None]
    if known and len(known) < len(groups):
        detail = "group is missing, but other sets have one; expected it on all sets or on none"
        raise refusal(f"/sets/{groups.index(None)}/group", detail)
    return known


def _names_in_order(candidates: Mappings, splits: Integers) -> list[Name]:
    """Ids of all candidates; a set in which some lack one keeps the order given, as the nested form does."""
    names: list[Name] = []
    for start, stop in pairwise(splits.tolist()):
        found = [candidate.get("id") for candidate in candidates[start:stop]]
        known = [name for name in found if name is not None]
        names.extend(known if len(known) == len(found) else range(stop - start))
    return names
