"""The forms of requests of `/v1/credit/oar`: where sensitivities, ranges and advantages come from."""

from __future__ import annotations

from collections.abc import Iterator

from creditd.wire.forms import ALL_IN_GROUPS_OR_NONE, NULL, Form, Schema

_ARRAY: Schema = {"type": "array"}
_MODEL_FIELDS = ("model", "weight_version")
_FOUND = ("tags", "hashes", "boxed", "last_line")
_SENSITIVITIES: dict[str, tuple[tuple[str, ...], tuple[str, ...], Schema, tuple[str, ...]]] = {
    "from a policy": (
        ("perturbation", "gradient"),
        ("model",),
        {"prompt_ids": _ARRAY, "completion_ids": _ARRAY, "sensitivities": NULL},
        ("prompt_ids", "completion_ids"),
    ),
    "given": (("given",), (), {"sensitivities": _ARRAY}, ("sensitivities",)),
}
"""By title: types of `sensitivity`, fields of the request that they need, what is true of an item, what it needs."""
_VALUES: dict[str, tuple[Schema, str]] = {
    "advantages": ({"advantage": {"type": "number"}, "reward": NULL}, "advantage"),
    "rewards": ({"reward": {"type": "number"}, "advantage": NULL}, "reward"),
}
_IN_TOKENS = "ranges found in tokens"
_NO_TEXT: Schema = {"completion": NULL, "token_offsets": NULL}
_NO_RANGES: Schema = {"answer": NULL, "reasoning": NULL}
_RANGES: tuple[tuple[str, tuple[str, ...], Schema, tuple[str, ...]], ...] = (
    ("ranges given", ("given",), _NO_TEXT, ()),
    (
        "ranges found in a text",
        _FOUND,
        {**_NO_RANGES, "completion": {"type": "string"}, "token_offsets": _ARRAY},
        ("completion", "token_offsets"),
    ),
    (_IN_TOKENS, _FOUND, {**_NO_RANGES, **_NO_TEXT}, ()),
)
"""A title, types of `parser`, what is true of an item, what it needs."""


def _forms() -> Iterator[Form]:
    """A form for each origin of sensitivities, ranges and advantages."""
    for title, (types, present, of_item, needed) in _SENSITIVITIES.items():
        asks = "model" in present
        for value, (of_value, name) in _VALUES.items():
            for where, parsers, of_range, needs in _RANGES:
                if not asks and where == _IN_TOKENS:
                    continue
                properties = {**of_item, **of_value, **of_range}
                of_items: Schema = {"items": {"properties": properties, "required": [*needed, name, *needs]}}
                yield Form(
                    f"sensitivities {title}, {value}, {where}",
                    present=present,
                    absent=() if asks else _MODEL_FIELDS,
                    choices={"sensitivity": types, "parser": parsers},
                    of={"items": {**of_items, **ALL_IN_GROUPS_OR_NONE}},
                )


OAR_FORMS = tuple(_forms())
