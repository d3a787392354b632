"""The forms of requests of `/v1/credit/compose`: where advantages come from, and what is known inside candidates."""

from __future__ import annotations

from collections.abc import Collection

from creditd.wire.forms import ALL_IN_GROUPS_OR_NONE, NULL, Form, Schema
from creditd.wire.utilities import ALL_BUT_TABLES, OF_FEATURES, OF_REWARDS, OF_SIMILARITIES

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
    **others: Schema,
) -> Form:
    """The form of requests whose advantages come from credits: under some utilities, with what these need."""
    candidate = {"properties": {"advantage": NULL, **of_candidates}, "required": ["span", *needed], **parts}
    fields: Schema = dict.fromkeys(("prompt", "set_advantage", "advantage_slope", "utilities"), NULL)
    if of_set is not None:
        fields[of_set] = _ARRAY
    of_sets = {"properties": {**fields, "candidates": {"items": candidate}}, "required": [of_set] if of_set else []}
    return Form(
        title, choices={"utility": utilities}, of={"sets": {"items": of_sets, **ALL_IN_GROUPS_OR_NONE}, **others}
    )


def _given() -> Form:
    """The form of requests whose candidates bring advantages."""
    candidate = {"required": ["span", "advantage"], **_PARTIAL_TEXTS}
    fields: Schema = {"prompt": NULL, "set_reward": NULL, "candidates": {"items": candidate}}
    return Form("advantages", of={"sets": {"items": {"properties": fields}, **ALL_IN_GROUPS_OR_NONE}})


_UNNAMED: Schema = {"named_rewards": NULL}

COMPOSE_FORMS = (
    _sets("rewards", OF_REWARDS, _UNNAMED, "reward"),
    _sets(
        "rewards, and utilities of partial texts", ("max",), _UNNAMED, "reward", parts=_PARTIAL_TEXTS, credit=_SHAPLEY
    ),
    _sets("named rewards", ALL_BUT_TABLES, {"reward": NULL}, "named_rewards"),
    *(_sets(f"{need} per candidate", types, _UNNAMED, need) for need, types in OF_FEATURES.items()),
    _sets("similarities", OF_SIMILARITIES, _UNNAMED, of_set="similarities"),
    _sets("terms", ("sum",), _UNNAMED),
    _sets("tables", ("table",), {}, of_set="utilities"),
    _given(),
)
