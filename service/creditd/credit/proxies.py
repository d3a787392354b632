"""Games that resemble the one at hand and whose Shapley values are known: the control variates of the estimator.

Legend: `n` players, `M` complement pairs (S, N∖S), `p` columns. A column is a game f, given by its differences
f(S) − f(N∖S) over the pairs and by its Shapley values. What the columns explain of a game is solved exactly; only the
rest is estimated from the sample.
"""

from __future__ import annotations

import itertools
import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalition_plans import Booleans

Floats: TypeAlias = NDArray[np.float64]

Columns: TypeAlias = tuple[Floats, Floats]
"""Differences, shape (M, p), and Shapley values, shape (n, p), of p games."""

MAX_TRIPLES = 300
"""Most columns that stand for interactions of three players."""
LANDMARKS = 600
"""Pairs that the directions of their span are found on."""
NEGLIGIBLE = 1e-9
"""Directions with an eigenvalue this small beside the largest are rounding."""


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
    return _columns_of_the_strongest(np.logical_or, small, strengths)


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
    return _columns_of_the_strongest(np.logical_and, small, strengths)


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


def triple_columns(small: Booleans, most: int = MAX_TRIPLES, n_landmarks: int = LANDMARKS) -> Columns:
    """The interactions of three players, or their leading directions when there are more than `most`.

        f(S) = σ_i·σ_j·σ_k with σ = 1 for members of S and −1 for others,    φ = 2/3 for i, j and k, 0 for the others

    With the additive games these are all games of order four or less as far as differences of pairs go: interactions of
    an even number of players have the same sign in S and N∖S. The kernel of the span of all triples,

        k(S, T) = (p³ − (3n − 2)·p)/6 / C(n, 3),    p = Σ σ_i(S)·σ_i(T),    φ_i(k(·, T)) = 2/3·τ_i·e_i/C(n, 3),

    e_i the sum of τ_j·τ_k over pairs without i, is diagonalised on the first pairs; the directions of its largest
    eigenvalues are continued to the others.

    Args:
        small: Shape (M, n), bool, n ≥ 3.
        most: Largest number of columns.
        n_landmarks: Pairs that the directions are found on.

    Returns:
        At most `most` columns: the triples in lexicographic order, or mixtures of them.

    Cost:
        O(M · n · most), and an eigendecomposition of n_landmarks rows.

    Reference:
        Interactions of odd order alone matter: Fumagalli et al., arXiv:2602.01399.

    Differs from the paper:
        Directions of the span of all triples in place of a search for some.
    """
    n = small.shape[1]
    signs = np.where(small, 1.0, -1.0)
    triples = np.array(list(itertools.islice(itertools.combinations(range(n), 3), most + 1)), dtype=np.int64)
    if len(triples) <= most:
        members = np.zeros((n, len(triples)))
        members[triples.T, np.arange(len(triples))] = 1.0
        return 2.0 * signs[:, triples[:, 0]] * signs[:, triples[:, 1]] * signs[:, triples[:, 2]], members * (2.0 / 3.0)
    landmarks = signs[:n_landmarks]
    every = math.comb(n, 3)
    eigenvalues, vectors = np.linalg.eigh(_sums_of_triples(landmarks @ landmarks.T, n) / every)
    leading = np.flatnonzero(eigenvalues > NEGLIGIBLE * eigenvalues[-1])[-most:]
    basis = vectors[:, leading] / np.sqrt(eigenvalues[leading])
    others = np.cumsum(landmarks, axis=1)[:, -1:] - landmarks
    values = (2.0 / 3.0 / every) * landmarks * (others * others - (n - 1)) / 2.0
    return 2.0 * (_sums_of_triples(signs @ landmarks.T, n) / every) @ basis, values.T @ basis


def _sums_of_triples(products: Floats, n: int) -> Floats:
    """Sum of the products of three of n signs, given the sum of the signs."""
    sums: Floats = (products * products - (3.0 * n - 2.0)) * products / 6.0
    return sums


def _columns_of_the_strongest(fold: np.ufunc, small: Booleans, strengths: Floats) -> Columns:
    """Games of the m strongest players, m = 1 … n−1, who count as one by `fold`: `logical_or` or `logical_and`."""
    order = np.argsort(-strengths, kind="stable")
    ordered = small[:, order]
    paid = fold.accumulate(ordered, axis=1)[:, :-1]
    paid_to_others = fold.accumulate(~ordered, axis=1)[:, :-1]
    return paid.astype(np.float64) - paid_to_others, _equal_shares(order)


def _equal_shares(order: NDArray[np.int64]) -> Floats:
    """Shape (n, n−1): column m−1 pays 1/m to each of the first m players of the order."""
    n = len(order)
    first = np.arange(n)[:, None] <= np.arange(n - 1)[None, :]
    values = np.empty((n, n - 1))
    values[order] = first / np.arange(1, n)
    return values
