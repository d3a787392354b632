"""From columns of completions to the items of a request for reshaped advantages; no IO.

Structure is checked here only as far as arrays need it. Everything else is the schema's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from creditd.client.arrays import Column, Integers, refusal, sequence, splits_of
from creditd.client.bodies import Choice, choice, names_of_sets, per_set
from creditd.client.item_columns import (
    Entries,
    masks,
    numbers_and_nulls,
    one_number_each,
    pairs,
    plain,
    ranges,
    token_ids,
)
from creditd.client.mappings import Name
from creditd.client.results import Ragged

_FIELDS: dict[str, tuple[str, Callable[[Any, int, str], Entries]]] = {
    "prompt_ids": ("prompt_ids", token_ids),
    "completion_ids": ("completion_ids", token_ids),
    "completion_masks": ("completion_mask", masks),
    "groups": ("group", plain),
    "reasoning": ("reasoning", ranges),
    "answers": ("answer", ranges),
    "advantages": ("advantage", one_number_each),
    "rewards": ("reward", one_number_each),
    "sensitivities": ("sensitivities", numbers_and_nulls),
    "completions": ("completion", plain),
    "token_offsets": ("token_offsets", pairs),
}
"""Columns by the caller's name: the field of an item, and what makes its entries."""
_TOKENS = ("completion_ids", "sensitivities")
"""Fields that say how many tokens a completion has."""


@dataclass(frozen=True)
class ReasonedCompletions:
    """Completions as a request has them.

    Attributes:
        items: One mapping per completion, by the fields of the wire; arrays stay arrays.
        row_splits: Shape (B + 1,), int64, of their tokens.
        ids: The caller's names, which are not sent.
    """

    items: list[dict[str, Any]]
    row_splits: Integers
    ids: tuple[Name | None, ...] | None


def completions_of(columns: Mapping[str, Column | Ragged | None], ids: Column | None) -> ReasonedCompletions:
    """Completions from columns of any kind.

    Args:
        columns: By the caller's names what is known of B completions, or None.
        ids: The caller's names of the completions, or None.

    Returns:
        The same for lists, arrays and tensors.

    Raises:
        InvalidRequestError: If a column has another length, or something that it cannot hold.
    """
    columns = {name: list(column) if isinstance(column, Ragged) else column for name, column in columns.items()}
    of_tokens = next((name for name in _TOKENS if columns[name] is not None), None)
    if of_tokens is None:
        raise refusal(
            "/items", "got neither completion_ids nor sensitivities; expected one of them to say which tokens there are"
        )
    n_rows = len(sequence(columns[of_tokens], of_tokens))
    items: list[dict[str, Any]] = [{} for _ in range(n_rows)]
    for name, (field, convert) in _FIELDS.items():
        column = columns[name]
        if column is None:
            continue
        for item, entry in zip(items, convert(column, n_rows, name), strict=True):
            if entry is not None:
                item[field] = entry
    names = None if ids is None else tuple(per_set(names_of_sets(ids, "ids"), n_rows, "ids"))
    return ReasonedCompletions(items, splits_of([n_tokens(item) for item in items]), names)


def n_tokens(item: Mapping[str, Any]) -> int:
    """Tokens of a completion by the first field of its item that says so; 0 without any."""
    return next((len(item[name]) for name in _TOKENS if item.get(name) is not None), 0)


def sensitivity_of(sensitivity: Choice | None, sensitivities: Column | Ragged | None) -> Mapping[str, Any] | BaseModel:
    """How sensitivities are found: what was chosen, else the ones that are given, else the gradient.

    Args:
        sensitivity: A name, a mapping, a model of the wire, or None.
        sensitivities: The column of sensitivities, or None.

    Returns:
        The choice, as the wire wants it.
    """
    if sensitivity is not None:
        return choice(sensitivity)
    return choice("gradient" if sensitivities is None else "given")
