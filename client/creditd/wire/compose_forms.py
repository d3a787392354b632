"""The forms of requests of `/v1/credit/compose`: where advantages come from, and what is known inside candidates."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from creditd.wire.forms import ALL_IN_GROUPS_OR_NONE, NULL, Form, Schema
from creditd.wire.utilities import ALL_BUT_TABLES, OF_FEATURES, OF_REWARDS, OF_SIMILARITIES

_NO_FIELDS: Schema = {}
_ARRAY: Schema = {"type": "array"}
_NOTHING: Schema = dict.fromkeys(("units", "unit_values", "utilities", "tree", "sensitivities"), NULL)


def _known(*needed: str, without: Collection[str] = ()) -> Schema:
    """A candidate of whose inside some fields are known and no others, but for those that are left open."""
    fields = {**_NOTHING, **dict.fromkeys(needed, _ARRAY)}
    return {"properties": {name: fields[name] for name in fields if name not in without}, "required": list(needed)}


_PARTS: Schema = {"anyOf": [_known(), _known("units", "unit_values"), _known("sensitivities")]}
_PARTIAL_TEXTS: Schema = {"anyOf": [*_PARTS["anyOf"], _known("units", "utilities", without=["tree"])]}
_SHAPLEY: Schema = {"properties": {"type": {"enum": ["shapley"]}}}


def _sets(
    title: str,
    utilities: Collection[str],
    of_candidates: Schema,
    *needed: str,
    of_set: str | None = None,
    parts: Schema = _PARTS,
    of_sets: Schema = _NO_FIELDS,
    **others: Schema,
) -> Form:
    """The form of requests whose advantages come from credits: under some utilities, with what these need."""
    candidate = {"properties": {"advantage": NULL, **of_candidates}, "required": ["span", *needed], "allOf": [parts]}
    fields: Schema = dict.fromkeys(("prompt", "set_advantage", "advantage_slope", "utilities"), NULL) | of_sets
    if of_set is not None:
        fields[of_set] = _ARRAY
    return _form(title, fields, candidate, [of_set] if of_set else [], choices={"utility": utilities}, of=others)


def _given(title: str, *needed: str, parts: Schema, of_sets: Schema = _NO_FIELDS, **choices: Collection[str]) -> Form:
    """The form of requests whose candidates bring advantages, and rewards beside or none."""
    of_candidates = {"named_rewards": NULL, **({} if needed else {"reward": NULL})}
    required = ["span", "advantage", *needed]
    candidate = {"properties": of_candidates, "required": required, "allOf": [parts]}
    fields: Schema = dict.fromkeys(("prompt", "set_reward", "utilities"), NULL) | of_sets
    fields["set_advantage"] = {"type": "number"}
    return _form(title, fields, candidate, ["set_advantage"], choices=choices, of={})


def _form(
    title: str,
    fields: Schema,
    candidate: Schema,
    needed: list[str],
    *,
    choices: Mapping[str, Collection[str]],
    of: Mapping[str, Schema],
) -> Form:
    """The form of requests of which some is true of each set and of each candidate."""
    of_set = {"properties": {**fields, "candidates": {"items": candidate}}, "required": needed}
    return Form(title, choices=choices, of={"sets": {"items": of_set, **ALL_IN_GROUPS_OR_NONE}, **of})


_UNNAMED: Schema = {"named_rewards": NULL}

_UNMASKED: Schema = {"completion_mask": NULL}
_WITHOUT_TOKENS: Schema = {"allOf": [_known(), {"properties": {"span": NULL}}]}
_UNWEIGHTED: Schema = {"properties": {"weights": NULL}}

COMPOSE_FORMS = (
    _sets("rewards", OF_REWARDS, _UNNAMED, "reward"),
    _sets(
        "rewards, of candidates without tokens",
        OF_REWARDS,
        _UNNAMED,
        "reward",
        parts=_WITHOUT_TOKENS,
        of_sets=_UNMASKED,
        aggregation=_UNWEIGHTED,
    ),
    _sets(
        "rewards, and utilities of partial texts", ("max",), _UNNAMED, "reward", parts=_PARTIAL_TEXTS, credit=_SHAPLEY
    ),
    _sets("named rewards", ALL_BUT_TABLES, {"reward": NULL}, "named_rewards"),
    *(_sets(f"{need} per candidate", types, _UNNAMED, need) for need, types in OF_FEATURES.items()),
    _sets("similarities", OF_SIMILARITIES, _UNNAMED, of_set="similarities"),
    _sets("terms", ("sum",), _UNNAMED),
    _sets("tables", ("table",), {}, of_set="utilities"),
    _given("advantages", parts=_PARTS),
    _given("advantages, of candidates without tokens", parts=_WITHOUT_TOKENS, of_sets=_UNMASKED),
    _given("advantages beside rewards", "reward", parts=_PARTIAL_TEXTS, utility=OF_REWARDS),
)
