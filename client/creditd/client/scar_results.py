"""What comes back of `scar`: token rewards, the units they rest on, and where each return comes from.

Legend: `B` completions, `T` tokens of one, `n` units of one, `U` units over all.
There is NaN wherever there is no number. Rows of a completion without an answer are empty where nobody knows how long
they would be, and else as long as its `token_offsets`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.client.results import Ragged, Result

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, repr=False)
class RaggedSpans:
    """Half-open ranges, several per row.

    Attributes:
        values: Shape (U, 2), int64: [start, stop) after [start, stop).
        row_splits: Shape (B + 1,), int64, from 0 to U: row b is values[row_splits[b]:row_splits[b + 1]].

    Raises:
        ValueError: If the two do not fit each other.
    """

    values: Integers
    row_splits: Integers

    def __post_init__(self) -> None:
        values, splits = self.values, self.row_splits
        if values.ndim != 2 or values.shape[1] != 2 or values.dtype.kind not in "iu":
            raise ValueError(f"values: got shape {values.shape} and dtype {values.dtype}; expected pairs of integers")
        if splits.ndim != 1 or len(splits) < 1 or splits[0] != 0 or splits[-1] != len(values):
            raise ValueError(f"row_splits: expected numbers from 0 to {len(values)}, the number of ranges")
        if (splits[1:] < splits[:-1]).any():
            raise ValueError("row_splits: expected numbers that never fall")

    def __len__(self) -> int:
        return len(self.row_splits) - 1

    def __getitem__(self, row: int) -> Integers:
        """The ranges of one row as a view, shape (n, 2); negative numbers count from the end."""
        place = row + len(self) if row < 0 else row
        if not 0 <= place < len(self):
            raise IndexError(f"got row {row}; expected one of {len(self)} rows")
        return self.values[self.row_splits[place] : self.row_splits[place + 1]]

    def __iter__(self) -> Iterator[Integers]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        return f"RaggedSpans({len(self)} rows, {len(self.values)} ranges)"

    def to_list(self) -> list[list[list[int]]]:
        """Rows as lists of [start, stop]."""
        return [row.tolist() for row in self]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ScarLedger:
    """Where the sum of each completion's token rewards comes from; each of shape (B,), float64, reward units.

    `kl + other_reward + units + terminal + remainder = total = Σ kl + other_reward + v(P) − α·v(∅)`, whatever happened.

    Attributes:
        kl: Σ of the KL terms of trainable tokens, as they were sent.
        other_reward: As it was sent.
        units: α·Σ of the unit values.
        terminal: (1 − α)·v(P).
        remainder: α times what the unit values do not account for; in a fallback all of v(P) − α·v(∅).
        total: The sum of the token rewards; of a completion without a trainable token, whose token rewards are 0, what
            the sum would have been.
        alpha: The α that was used: 0 where v(∅) was refused.
    """

    kl: Floats
    other_reward: Floats
    units: Floats
    terminal: Floats
    remainder: Floats
    total: Floats
    alpha: Floats


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ScarResult(Result):
    """Token rewards of completions, and the credit of their units.

    Attributes:
        token_rewards: B rows of one reward per token; exactly 0 on tokens that are masked.
        token_advantages: B rows of one advantage per token, in the GRPO form, or None if not asked for.
        units: B rows of half-open token ranges, as they were after merging.
        unit_characters: B rows of half-open ranges of the completion's characters; None if no text was sent.
        unit_values: B rows of one credit per unit, reward units; NaN in a fallback.
        standard_errors: B rows of one standard error per unit, NaN for exact ones; None when there is none at all.
        interval_low: B rows of the lower ends of marginal 95 % intervals, NaN where there is none; None without any.
        interval_high: The same of the upper ends.
        utility_empty: v(∅) of the prompt, shape (B,), float64, reward units; NaN where it was refused.
        utility_grand: v(P), shape (B,), float64, reward units.
        gap: Σ unit values − (v(P) − v(∅)), shape (B,), float64: near 0 for efficient values, a fact of the others.
        exact: Shape (B,), bool: whether the unit values are exact; False for estimates, and where there are none.
        methods: How the unit values of each completion were found, or None.
        ledger: Where the sum of the token rewards comes from.
        model: Id of the model that gave the utilities, or None; `usage` says what it read.
        ids: The caller's names of the completions, or None.
    """

    token_rewards: Ragged
    token_advantages: Ragged | None
    units: RaggedSpans
    unit_characters: RaggedSpans | None
    unit_values: Ragged
    standard_errors: Ragged | None
    interval_low: Ragged | None
    interval_high: Ragged | None
    utility_empty: Floats
    utility_grand: Floats
    gap: Floats
    exact: Booleans
    methods: tuple[str | None, ...]
    ledger: ScarLedger
    model: str | None = None
    ids: tuple[str | int | None, ...] | None = None
