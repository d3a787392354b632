"""The forms of requests of `/v1/credit/scar` and `/v1/credit/scar/solve`: what each segmentation and credit needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from creditd.wire.forms import ALL_IN_GROUPS_OR_NONE, NULL, Form, Schema

_ARRAY: Schema = {"type": "array"}
_ONLY_AUTO: Schema = {"properties": {"type": {"enum": ["auto"]}}}
_NO_TREE: Schema = {"properties": {"tree": NULL}}
_OF_TEXT = ("span", "sentence", "lines", "regex")

Credit: TypeAlias = tuple[tuple[str, ...], Schema, Schema]
"""Types of `credit`, and what they say of other choices and of items."""
_CREDITS: Mapping[str, Credit] = {
    "estimated": (("auto", "shapley"), {}, _NO_TREE),
    "over a tree": (("owen",), {"estimator": _ONLY_AUTO}, {}),
    "by definition": (("prefix", "leave_one_out", "uniform"), {"estimator": _ONLY_AUTO}, _NO_TREE),
}
_WITH_MODEL = {**_CREDITS, "by attention": (("attention",), {"estimator": _ONLY_AUTO}, _NO_TREE)}


_SHARED: Schema = {
    "allOf": [
        ALL_IN_GROUPS_OR_NONE,
        {
            "anyOf": [
                {"items": {"properties": {"prompt_id": {"type": ["string", "integer"]}}, "required": ["prompt_id"]}},
                {"items": {"properties": {"prompt_id": NULL}}},
            ]
        },
    ]
}
"""Of items that have a group or none, and the name of a prompt or none."""


def _item(fields: Schema, *needed: str) -> Schema:
    """Keywords of an item of which some fields are so, and are needed."""
    return {"properties": fields, "required": list(needed)}


def _forms(
    shapes: Sequence[tuple[str, Sequence[str], Schema]], credits_: Mapping[str, Credit], of_items: Schema
) -> tuple[Form, ...]:
    """A form for each shape of items and each kind of credit.

    Args:
        shapes: A title, types of `segmentation`, what is true of an item.
        credits_: By title.
        of_items: What is true of all items together.
    """
    return tuple(
        Form(
            f"{shape}, {title}",
            choices={"segmentation": segmentations, "credit": types},
            of={"items": {"items": {**of_item, **of_tree}, **of_items}, **others},
        )
        for shape, segmentations, of_item in shapes
        for title, (types, others, of_tree) in credits_.items()
    )


SCAR_FORMS = _forms(
    (
        ("cut by the text", _OF_TEXT, {"allOf": [_item({"units": NULL})]}),
        ("cut by tokens", ("token",), {"allOf": [_item({"units": NULL, "token_offsets": _ARRAY}, "token_offsets")]}),
        (
            "cut already",
            ("given",),
            {"allOf": [_item({"units": _ARRAY, "token_offsets": _ARRAY}, "units", "token_offsets")]},
        ),
    ),
    _WITH_MODEL,
    ALL_IN_GROUPS_OR_NONE,
)

_TEXT: Schema = {"completion": {"type": "string"}, "n_tokens": NULL}
_NO_TEXT: Schema = {"completion": NULL, "token_offsets": NULL, "n_tokens": {"type": "integer"}, "units": _ARRAY}
SCAR_SOLVE_FORMS = _forms(
    (
        (
            "cut by the text",
            _OF_TEXT,
            {"allOf": [_item({**_TEXT, "units": NULL, "token_offsets": NULL}, "completion")]},
        ),
        (
            "cut by the text for tokens",
            _OF_TEXT,
            {"allOf": [_item({**_TEXT, "units": NULL, "token_offsets": _ARRAY}, "completion", "token_offsets")]},
        ),
        (
            "cut by tokens",
            ("token",),
            {"allOf": [_item({**_TEXT, "units": NULL, "token_offsets": _ARRAY}, "completion", "token_offsets")]},
        ),
        (
            "cut already",
            ("given",),
            {
                "anyOf": [
                    _item({**_TEXT, "units": _ARRAY, "token_offsets": _ARRAY}, "completion", "token_offsets", "units"),
                    _item(_NO_TEXT, "n_tokens", "units"),
                ]
            },
        ),
    ),
    _CREDITS,
    _SHARED,
)
