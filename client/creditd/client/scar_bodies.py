"""From columns of completions to the items of a request for token credit; no IO.

Structure is checked here only as far as arrays need it. Everything else is the schema's business, and the values are
the arithmetic's: a NaN travels, so that it costs its own completion and not the request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from creditd.client.arrays import Column, Integers, refusal, sequence, splits_of
from creditd.client.bodies import Choice, names_of_sets, per_set
from creditd.client.item_columns import Entries, masks, numbers_each, one_number_each, pairs, plain
from creditd.client.mappings import Name


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


_FIELDS: dict[str, tuple[str, Callable[[Any, int, str], Entries]]] = {
    "prompts": ("prompt", plain),
    "groups": ("group", plain),
    "token_offsets": ("token_offsets", pairs),
    "completion_masks": ("completion_mask", masks),
    "units": ("units", pairs),
    "trees": ("tree", pairs),
    "kl": ("kl", numbers_each),
    "other_rewards": ("other_reward", one_number_each),
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
