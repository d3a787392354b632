"""Sets that are mappings, in the shape of `v1.CandidateSet`, as columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from creditd.client.arrays import (
    Integers,
    Sets,
    matrices,
    numbers,
    ragged,
    refusal,
    sequence,
    span_columns,
    splits_of,
)
from creditd.client.results import Ragged
from creditd.credit.candidate_sets import ErrorField
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
    "label": "label is missing; expected the answer that the candidate gives",
    "topics": "topics is missing; expected a list of what the candidate covers",
    "scores": "scores is missing; expected one number per target",
    "union": "union is missing; expected the name of the candidate's union",
    "span": "span is missing; expected [start, stop], or None for a candidate without tokens",
    "utilities": "utilities is missing; expected 2**K values for the table utility",
    "similarities": "similarities is missing; expected a K × K matrix",
    "prompt": "prompt is missing; expected what the candidates answer, a text or a list of messages",
    "text": "text is missing; expected what the model reads, or None for a candidate that is not scored",
}
_MAY_BE_NONE = {"reward", "label", "union", "span", "text"}


@dataclass(frozen=True)
class Wanted:
    """What a request needs to know.

    Attributes:
        of_sets: Fields of every set: `utilities`, `similarities`, `prompt`.
        of_candidates: Fields of every candidate: `reward`, `label`, `topics`, `scores`, `union`, `text`.
        tokens: Whether token advantages are asked for.
    """

    of_sets: tuple[ErrorField, ...] = ()
    of_candidates: tuple[ErrorField, ...] = ("reward",)
    tokens: bool = False

    def fields(self) -> tuple[list[ErrorField], list[ErrorField]]:
        """Fields of every set and of every candidate, those of tokens included."""
        of_sets, of_candidates = list(self.of_sets), list(self.of_candidates)
        if self.tokens:
            of_sets.append("n_tokens")
            of_candidates.append("span")
        return of_sets, of_candidates


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


def gathered(sets: Mappings, wanted: Wanted) -> SetColumns:
    """Mappings as columns; only what the request needs is sent.

    Args:
        sets: At least one mapping.
        wanted: What the request needs.

    Returns:
        The columns that the same sets would have been given in.

    Raises:
        InvalidRequestError: If a field is unknown, missing where it is needed, or not of the type it should be.
    """
    members = _checked_members(sets, wanted)
    candidates = [candidate for row in members for candidate in row]
    splits = splits_of([len(row) for row in members])
    places = [(row, place) for row, found in enumerate(members) for place in range(len(found))]

    def pointer_to(field: str) -> Callable[[int], str]:
        return lambda flat: f"/sets/{places[flat][0]}/candidates/{places[flat][1]}/{field}"

    columns: dict[str, Any] = _reward_columns(candidates, splits, pointer_to("reward"), wanted)
    groups = _groups(sets)
    if groups:
        columns["groups"] = groups
    if _any_has(sets, "set_reward"):
        whole = [item.get("set_reward") for item in sets]
        columns["set_rewards"] = numbers(whole, lambda row: f"/sets/{row}/set_reward")
    if wanted.tokens:
        columns["n_tokens"] = [item["n_tokens"] for item in sets]
        columns["spans"] = span_columns([candidate["span"] for candidate in candidates], pointer_to("span"))
    columns |= _feature_columns(sets, candidates, splits, pointer_to, wanted)
    if "prompt" in wanted.of_sets:
        columns["prompts"] = [item["prompt"] for item in sets]
    if "text" in wanted.of_candidates or _any_has(candidates, "text"):
        columns["texts"] = [candidate.get("text") for candidate in candidates]
    ids = tuple(item.get("id") for item in sets) if _any_has(sets, "id") else None
    return SetColumns(columns=columns, row_splits=splits, ids=ids)


def _feature_columns(
    sets: Mappings,
    candidates: Mappings,
    splits: Integers,
    pointer_to: Callable[[str], Callable[[int], str]],
    wanted: Wanted,
) -> dict[str, Any]:
    """What the utility and the rule need beside rewards."""
    columns: dict[str, Any] = {}
    for field, column in (("label", "labels"), ("union", "unions")):
        if field in wanted.of_candidates:
            columns[column] = [candidate[field] for candidate in candidates]
    if "topics" in wanted.of_candidates:
        topics = [sequence(candidate["topics"], pointer_to("topics")(i)[1:]) for i, candidate in enumerate(candidates)]
        columns["topics"] = topics
    if "scores" in wanted.of_candidates:
        values, score_splits = ragged([candidate["scores"] for candidate in candidates], "scores")
        columns["scores"] = {"values": values, "row_splits": score_splits.tolist()}
    if "similarities" in wanted.of_sets:
        columns["similarities"] = matrices([item["similarities"] for item in sets], "similarities")
    if "utilities" in wanted.of_sets:
        values, table_splits = ragged([item["utilities"] for item in sets], "utilities")
        columns["utilities"] = {"values": values, "row_splits": table_splits.tolist()}
        if _any_has(candidates, "id"):
            columns["candidate_ids"] = _names_in_order(candidates, splits)
    return columns


def _reward_columns(
    candidates: Mappings, splits: Integers, pointer: Callable[[int], str], wanted: Wanted
) -> dict[str, Any]:
    """Rewards, by name where they have names; the sizes alone where the utility needs no reward and there is none."""
    row_splits = splits.tolist()
    rewards = [candidate.get("reward") for candidate in candidates]
    named = [candidate.get("named_rewards") for candidate in candidates]
    for place, row in enumerate(named):
        if row is not None and not isinstance(row, Mapping):
            where = pointer(place).removesuffix("reward") + "named_rewards"
            raise refusal(where, f"got {type(row).__name__}; expected a mapping from names to numbers")
    names = {frozenset(row) for row in named if row is not None}
    if not names:
        ignored = "reward" not in wanted.of_candidates and "utilities" not in wanted.of_sets
        if ignored and not _any_has(candidates, "reward"):
            return {"row_splits": row_splits}
        return {"rewards": {"values": numbers(rewards, pointer), "row_splits": row_splits}}
    if len(names) > 1 or _any_has(candidates, "reward"):
        detail = (
            "named_rewards have different names, or stand beside reward; expected the same names for all candidates"
        )
        raise refusal("/sets", detail)
    by_name: dict[str, Any] = {}
    for name in sorted(next(iter(names))):
        values = [None if row is None else row[name] for row in named]
        by_name[name] = {"values": numbers(values, pointer), "row_splits": row_splits}
    return {"named_rewards": by_name}


def _checked_members(sets: Mappings, wanted: Wanted) -> list[Mappings]:
    """The candidates of each set, once every field is known and what the request needs is there."""
    of_set, of_candidate = wanted.fields()
    of_set.insert(0, "candidates")
    members: list[Mappings] = []
    for row, item in enumerate(sets):
        _check_fields(item, f"/sets/{row}", _SET_FIELDS, of_set)
        if "utilities" not in wanted.of_sets and item.get("utilities") is not None:
            raise refusal(f"/sets/{row}/utilities", "got utilities; expected them for the table utility only")
        found = sequence(item["candidates"], f"sets/{row}/candidates")
        for place, candidate in enumerate(found):
            _check_fields(candidate, f"/sets/{row}/candidates/{place}", _CANDIDATE_FIELDS, of_candidate)
        members.append(found)
    return members


def _check_fields(item: object, pointer: str, known: frozenset[str], needed: Sequence[str]) -> None:
    if not isinstance(item, Mapping):
        raise refusal(pointer, f"got {type(item).__name__}; expected a mapping")
    if not known.issuperset(item):
        unknown = min(str(field) for field in item if field not in known)
        detail = f"there is no such field; expected some of {', '.join(sorted(known))}"
        raise refusal(f"{pointer}/{unknown}", detail, ErrorCode.UNKNOWN_FIELD)
    for field in needed:
        if field == "reward" and "named_rewards" in item:
            continue
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
