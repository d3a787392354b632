"""The forms of requests of `/v1/credit/scar` and `/v1/credit/scar/solve`: what each segmentation and credit needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from creditd.wire.forms import ALL_IN_GROUPS_OR_NONE, NULL, Form, Schema

_ARRAY: Schema = {"type": "array"}
_ONLY_AUTO: Schema = {"properties": {"type": {"enum": ["auto"]}}}
_OF_TEXT = ("span", "sentence", "lines", "regex")

_CREDITS: Mapping[str, tuple[tuple[str, ...], Schema, Schema]] = {
    "estimated": (("auto", "shapley"), {}, {"tree": NULL}),
    "over a tree": (("owen",), {"estimator": _ONLY_AUTO}, {}),
    "by definition": (("prefix", "leave_one_out", "uniform"), {"estimator": _ONLY_AUTO}, {"tree": NULL}),
}
"""Types of `credit`, with what they say of other choices and of items."""
_WITH_MODEL = {**_CREDITS, "by attention": (("attention",), {"estimator": _ONLY_AUTO}, {"tree": NULL})}


def _forms(
    shapes: Sequence[tuple[str, Sequence[str], Schema, tuple[str, ...]]],
    credits_: Mapping[str, tuple[tuple[str, ...], Schema, Schema]],
) -> tuple[Form, ...]:
    """A form for each shape of items and each kind of credit.

    Args:
        shapes: A title, types of `segmentation`, what is true of an item, and what it needs.
        credits_: By title.
    """
    return tuple(
        Form(
            f"{shape}, {title}",
            choices={"segmentation": segmentations, "credit": types},
            of={
                "items": {
                    "items": {"properties": {**of_item, **of_tree}, "required": list(needed)},
                    **ALL_IN_GROUPS_OR_NONE,
                },
                **others,
            },
        )
        for shape, segmentations, of_item, needed in shapes
        for title, (types, others, of_tree) in credits_.items()
    )


SCAR_FORMS = _forms(
    (
        ("cut by its text", _OF_TEXT, {"units": NULL}, ()),
        ("cut by tokens", ("token",), {"units": NULL, "token_offsets": _ARRAY}, ("token_offsets",)),
        ("cut already", ("given",), {"units": _ARRAY, "token_offsets": _ARRAY}, ("units", "token_offsets")),
    ),
    _WITH_MODEL,
)
