"""Games that resemble the one at hand and whose Shapley values are known: the control variates of the estimator.

Legend: `n` players, `M` complement pairs (S, N∖S), `p` columns. A column is a game f, given by its differences
f(S) − f(N∖S) over the pairs and by its Shapley values. What the columns explain of a game is solved exactly; only the
rest is estimated from the sample.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalition_plans import Booleans

Floats: TypeAlias = NDArray[np.float64]

Columns: TypeAlias = tuple[Floats, Floats]
"""Differences, shape (M, p), and Shapley values, shape (n, p), of p games."""


def indicator_columns(small: Booleans) -> Columns:
    """The games 1[i ∈ S], one per player: they span every additive game.

    Args:
        small: Shape (M, n), bool: S of each pair.

    Returns:
        n columns; Shapley values are the identity matrix.

    Cost:
        O(M · n).
    """
    return np.where(small, 1.0, -1.0), np.eye(small.shape[1])


def share_columns(small: Booleans) -> Columns:
    """The games 1[i ∈ S]/|S|, one per player: they span every weighted mean.

        φ_i = H_n/n,    φ_j = (1 − H_n)/(n(n−1)) for j ≠ i,    H_n the n-th harmonic number

    Args:
        small: Shape (M, n), bool, 1 ≤ |S| < n.

    Returns:
        n columns; each one's Shapley values sum to 1/n.

    Cost:
        O(M · n).
    """
    n = small.shape[1]
    sizes = small.sum(axis=1, keepdims=True)
    harmonic = float(np.cumsum(1.0 / np.arange(1, n + 1))[-1])
    values = np.full((n, n), (1.0 - harmonic) / (n * (n - 1)))
    np.fill_diagonal(values, harmonic / n)
    return small / sizes - ~small / (n - sizes), values


def any_columns(small: Booleans, strengths: Floats) -> Columns:
    """The games 1[S meets the m strongest players], m = 1 … n−1: they span every maximum in this order of players.

        φ_i = 1/m for the m strongest, 0 for the others

    Args:
        small: Shape (M, n), bool.
        strengths: Shape (n,), float64; ties are broken by the number of the player.

    Returns:
        n − 1 columns; each one's Shapley values sum to 1.

    Cost:
        O(M · n).
    """
    order = np.argsort(-strengths, kind="stable")
    ordered = small[:, order]
    met = np.logical_or.accumulate(ordered, axis=1)[:, :-1]
    met_by_others = np.logical_or.accumulate(~ordered, axis=1)[:, :-1]
    return met.astype(np.float64) - met_by_others, _equal_shares(order)


def all_columns(small: Booleans, strengths: Floats) -> Columns:
    """The games 1[S holds the m strongest players], m = 1 … n−1: bottlenecks.

        φ_i = 1/m for the m strongest, 0 for the others

    Args:
        small: Shape (M, n), bool.
        strengths: Shape (n,), float64; ties are broken by the number of the player.

    Returns:
        n − 1 columns; each one's Shapley values sum to 1.

    Cost:
        O(M · n).
    """
    order = np.argsort(-strengths, kind="stable")
    ordered = small[:, order]
    held = np.logical_and.accumulate(ordered, axis=1)[:, :-1]
    held_by_others = np.logical_and.accumulate(~ordered, axis=1)[:, :-1]
    return held.astype(np.float64) - held_by_others, _equal_shares(order)


def maximum_column(columns: Columns, strengths: Floats) -> Columns:
    """The game max of the strengths of S, relative to the weakest player and to the range of the strengths.

    Args:
        columns: Those of `any_columns` for the same strengths.
        strengths: Shape (n,), float64.

    Returns:
        One column, the columns given weighted with the steps between sorted strengths; zero when all are equal.

    Cost:
        O(M · n).
    """
    differences, values = columns
    descending = -np.sort(-strengths)
    steps = descending[:-1] - descending[1:]
    span = descending[0] - descending[-1]
    steps = steps / span if span > 0.0 else steps
    return (
        np.cumsum(differences * steps, axis=1)[:, -1:],
        np.cumsum(values * steps, axis=1)[:, -1:],
    )


def _equal_shares(order: NDArray[np.int64]) -> Floats:
    """Shape (n, n−1): column m−1 pays 1/m to each of the first m players of the order."""
    n = len(order)
    first = np.arange(n)[:, None] <= np.arange(n - 1)[None, :]
    values = np.empty((n, n - 1))
    values[order] = first / np.arange(1, n)
    return values
