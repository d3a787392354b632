"""Answers of `set_credit` to plain rewards, and where the candidates of a set stand in them."""

import math

from credit.batches import (
    columns,
)
from credit.oracles import OneSet
from creditd.credit import (
    Normalization,
    SetCreditOptions,
    set_credit,
)


def solve(rows, groups=None, *, kind="pooled", epsilon=0.0, **more):
    """Answer for sets of plain rewards."""
    groups = [0] * len(rows) if groups is None else groups
    sets = [OneSet(list(row), group=group) for row, group in zip(rows, groups, strict=True)]
    return set_credit(columns(sets), SetCreditOptions(normalization=Normalization(type=kind, epsilon=epsilon), **more))


def row_of(values, answer, row):
    """The candidates of one set."""
    return values[answer.row_splits[row] : answer.row_splits[row + 1]]


def optional(values):
    """A list with None for NaN."""
    return [None if math.isnan(v) else v for v in values]


def bits(answer, row):
    """All numbers of one set, as bytes."""
    parts = (row_of(answer.credits, answer, row), row_of(answer.advantages, answer, row))
    numbers = (answer.set_advantages, answer.credit_sums, answer.gaps, answer.utility_grand, answer.utility_empty)
    return [part.tobytes() for part in (*parts, *(values[row] for values in numbers), answer.flags[row])]
