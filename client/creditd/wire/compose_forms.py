"""The forms of requests of `/v1/credit/compose`: where advantages come from, and what is known inside candidates."""

from __future__ import annotations

from collections.abc import Collection

from creditd.wire.forms import ALL_IN_GROUPS_OR_NONE, NULL, Form, Schema
from creditd.wire.utilities import ALL_BUT_TABLES, OF_FEATURES, OF_REWARDS, OF_SIMILARITIES

_ARRAY: Schema = {"type": "array"}
_NUMBER: Schema = {"type": "number"}
_NOTHING: Schema = dict.fromkeys(("units", "unit_values", "utilities", "tree", "sensitivities"), NULL)
_BY_SENSITIVITY: Schema = {"type": "object", "properties": {"type": {"enum": ["sensitivity"]}}, "required": ["type"]}
_BY_UNITS: Schema = {"not": _BY_SENSITIVITY}


def _parts(*needed: str, **optional: Schema) -> Schema:
    """A candidate of whose inside nothing is known, or all of some fields; others may be there as well."""
    known = {**_NOTHING, **dict.fromkeys(needed, _ARRAY)}
    for name in optional:
        known.pop(name)
    return {"anyOf": [{"properties": _NOTHING}, {"properties": known, "required": list(needed)}]}


_VALUES = _parts("units", "unit_values")
_PARTIAL_TEXTS = _parts("units", "utilities", tree=_ARRAY)
_SENSITIVITIES = _parts("sensitivities")


def _sets(
    title: str,
    utilities: Collection[str],
    of_candidates: Schema,
    *needed: str,
    of_set: str | None = None,
    parts: Schema = _VALUES,
    **others: Schema,
) -> Form:
    """The form of requests whose advantages come from credits: under some utilities, with what these need."""
    candidate = {"properties": {"advantage": NULL, **of_candidates}, "required": ["span", *needed], **parts}
    fields: Schema = {"candidates": {"items": candidate}, "prompt": NULL, "set_advantage": NULL}
    fields |= {"utilities": NULL, "advantage_slope": NULL}
    if of_set is not None:
        fields[of_set] = _ARRAY
    return _form(title, fields, [of_set] if of_set else [], parts, choices={"utility": utilities}, **others)


def _given(title: str, parts: Schema) -> Form:
    """The form of requests whose candidates have advantages."""
    candidate = {"properties": {"advantage": _NUMBER}, "required": ["span", "advantage"], **parts}
    fields: Schema = {"candidates": {"items": candidate}, "prompt": NULL, "utilities": NULL, "set_reward": NULL}
    return _form(title, fields | {"set_advantage": _NUMBER}, ["set_advantage"], parts, choices={})


def _form(
    title: str,
    fields: Schema,
    needed: list[str],
    parts: Schema,
    *,
    choices: dict[str, Collection[str]],
    **others: Schema,
) -> Form:
    by_sensitivity = parts is _SENSITIVITIES
    fields["inside"] = NULL if by_sensitivity else _BY_UNITS
    of_sets: Schema = {"items": {"properties": fields, "required": needed}, **ALL_IN_GROUPS_OR_NONE}
    return Form(
        title,
        present=("inside",) if by_sensitivity else (),
        choices=choices,
        of={"sets": of_sets, "inside": _BY_SENSITIVITY if by_sensitivity else _BY_UNITS, **others},
    )


_REWARD: Schema = {"reward": _NUMBER, "named_rewards": NULL}
_SHAPLEY: Schema = {"properties": {"type": {"enum": ["shapley"]}}}

COMPOSE_FORMS = (
    _sets("rewards, and credit of units", OF_REWARDS, _REWARD, "reward"),
    _sets(
        "rewards, and utilities of partial texts", ("max",), _REWARD, "reward", parts=_PARTIAL_TEXTS, credit=_SHAPLEY
    ),
    _sets("rewards, and sensitivities", OF_REWARDS, _REWARD, "reward", parts=_SENSITIVITIES),
    _sets("named rewards", ALL_BUT_TABLES, {"reward": NULL}, "named_rewards"),
    *(_sets(f"{need} per candidate", types, {"named_rewards": NULL}, need) for need, types in OF_FEATURES.items()),
    _sets("similarities", OF_SIMILARITIES, {"named_rewards": NULL}, of_set="similarities"),
    _sets("terms", ("sum",), {"named_rewards": NULL}),
    _sets("tables", ("table",), {}, of_set="utilities"),
    _given("advantages, and credit of units", _VALUES),
    _given("advantages, and sensitivities", _SENSITIVITIES),
)
