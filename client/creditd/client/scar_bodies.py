"""From columns of completions to the items of a request for token credit; no IO.

Structure is checked here only as far as arrays need it. Everything else is the schema's business, and the values are
the arithmetic's: a NaN travels, so that it costs its own completion and not the request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.client.arrays import Column, Integers, numbers, refusal, sequence, splits_of
from creditd.client.bodies import Choice, names_of_sets, per_set
from creditd.client.mappings import Name
from creditd.wire.errors import ErrorCode

Entries: TypeAlias = list[Any]


@dataclass(frozen=True)
class Completions:
    """Completions as a request has them.

    Attributes:
        prompts: What each answers, as the caller gave it.
        texts: The completions.
        items: One mapping per completion, by the fields of the wire; arrays stay arrays.
        row_splits: Shape (B + 1,), int64, of the tokens that they are said to have.
        ids: The caller's names, which are not sent.
    """

    prompts: list[Any]
    texts: list[str]
    items: list[dict[str, Any]]
    row_splits: Integers
    ids: tuple[Name | None, ...] | None


def completions_of(prompts: Column, completions: Column, columns: dict[str, Column | None]) -> Completions:
    """Completions from columns of any kind.

    Args:
        prompts: One per completion.
        completions: B texts.
        columns: `ids`, and by the caller's names what else is known, or None.

    Returns:
        The same for lists, arrays and tensors.

    Raises:
        InvalidRequestError: If a column has another length, or something that it cannot hold.
    """
    texts = list(sequence(completions, "completions"))
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise refusal(f"/completions/{row}", f"got {type(text).__name__}; expected a text")
    asked = list(per_set(prompts, len(texts), "prompts"))
    items: list[dict[str, Any]] = [{"completion": text} for text in texts]
    ids = columns.get("ids")
    for name, (field, convert) in _FIELDS.items():
        column = columns.get(name)
        if column is None:
            continue
        for item, entry in zip(items, convert(column, len(texts), name), strict=True):
            if entry is not None:
                item[field] = entry
    names = None if ids is None else tuple(per_set(names_of_sets(ids, "ids"), len(texts), "ids"))
    lengths = [len(item.get("token_offsets", ())) for item in items]
    return Completions(prompts=asked, texts=texts, items=items, row_splits=splits_of(lengths), ids=names)


def _plain(column: object, n_rows: int, name: str) -> Entries:
    """A column with one entry per completion."""
    return list(per_set(column, n_rows, name))


def _whole_numbers(column: object, n_rows: int, name: str) -> Entries:
    """A column with one number per completion."""
    return numbers(per_set(column, n_rows, name), lambda row: f"/{name}/{row}")


def _pairs(column: object, n_rows: int, name: str) -> Entries:
    """A column with a list of pairs of integers per completion, as arrays of shape (n, 2)."""
    rows = per_set(column, n_rows, name)
    return [None if row is None else _pairs_of(row, f"{name}/{place}") for place, row in enumerate(rows)]


def _pairs_of(row: object, name: str) -> NDArray[np.int64]:
    pairs = sequence(row, name)
    if len(pairs) == 0:
        return np.empty((0, 2), dtype=np.int64)
    try:
        found = np.array(pairs)
    except (TypeError, ValueError):  # rows of different lengths
        found = np.empty(0)
    if found.ndim != 2 or found.shape[1] != 2:
        raise refusal(
            f"/{name}", "got something else than pairs; expected [start, stop] each", ErrorCode.SHAPE_MISMATCH
        )
    if found.dtype.kind not in "iu":
        raise refusal(f"/{name}", f"got pairs of {found.dtype}; expected integers")
    return found.astype(np.int64, copy=False)


def _masks(column: object, n_rows: int, name: str) -> Entries:
    """A column with a list of truth values, or of 0 and 1, per completion."""
    rows = per_set(column, n_rows, name)
    return [None if row is None else _mask_of(row, f"{name}/{place}") for place, row in enumerate(rows)]


def _mask_of(row: object, name: str) -> list[bool]:
    entries = sequence(row, name)
    for place, entry in enumerate(entries):
        if type(entry) not in {bool, int, float} or entry not in (0, 1):
            raise refusal(f"/{name}/{place}", f"got {entry!r:.40}; expected True or False, or 1 or 0")
    return [bool(entry) for entry in entries]


def _rewards(column: object, n_rows: int, name: str) -> Entries:
    """A column with a list of numbers per completion, one per token."""
    rows = per_set(column, n_rows, name)
    return [None if row is None else _numbers_of(row, f"{name}/{place}") for place, row in enumerate(rows)]


def _numbers_of(row: object, name: str) -> NDArray[np.float64]:
    values = numbers(sequence(row, name), lambda place: f"/{name}/{place}")
    for place, value in enumerate(values):
        if value is None:
            raise refusal(f"/{name}/{place}", "got None; expected a number")
    return np.array(values, dtype=np.float64)


_FIELDS: dict[str, tuple[str, Callable[[Any, int, str], Entries]]] = {
    "prompts": ("prompt", _plain),
    "groups": ("group", _plain),
    "token_offsets": ("token_offsets", _pairs),
    "completion_masks": ("completion_mask", _masks),
    "units": ("units", _pairs),
    "trees": ("tree", _pairs),
    "kl": ("kl", _rewards),
    "other_rewards": ("other_reward", _whole_numbers),
}
"""Columns by the caller's name: the field of an item, and what makes its entries."""


def segmentation_of(segmentation: Choice | None, units: Column | None) -> Choice:
    """Where units come from: what was chosen, else the units that are given, else spans.

    Args:
        segmentation: A name, a mapping, a model of the wire, or None.
        units: The column of units, or None.

    Returns:
        The choice.
    """
    if segmentation is not None:
        return segmentation
    return "span" if units is None else "given"
