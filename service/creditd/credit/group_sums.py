"""Sums, means and standard deviations per group, independent of the order inside a group and of the rest of the batch.

Legend: `N` values, each belonging to one of `n_groups` groups by an integer index.
A plain `numpy.sum` changes its last bits with the shape of its input; these sums run sequentially over sorted values,
so the same group gives the same bits in any batch and in any order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_MAGNITUDE = 1e100
"""Largest magnitude of a reward or a utility: sums of squares of larger ones leave float64."""
MAX_PADDING = 4
"""Groups are summed as rows of a table when that has at most this many times as many cells as there are values."""


def group_sums(values: NDArray[np.float64], groups: NDArray[np.int64], n_groups: int) -> NDArray[np.float64]:
    """Sum of the values of each group, added one by one in ascending order.

    Args:
        values: Shape (N,), float64. Finite.
        groups: Shape (N,), int64, each in [0, n_groups).
        n_groups: Number of groups; a group without values sums to 0.

    Returns:
        Shape (n_groups,), float64. Permuting the values of a group, or adding other groups, changes no bit.

    Cost:
        O(N log N): one sort of short rows, or of all values where groups are too uneven for a table.
    """
    counts = np.bincount(groups, minlength=n_groups)
    width = int(counts.max(initial=0))
    if width == 0:
        return np.zeros(n_groups)
    if n_groups * width > MAX_PADDING * len(values):
        order = np.lexsort((values, groups))
        return np.bincount(groups[order], weights=values[order], minlength=n_groups).astype(np.float64, copy=False)
    rows = _rows(values, groups, counts, width)
    rows.sort(axis=1)
    rows[np.arange(width) >= counts[:, None]] = 0.0
    # A sum of zeros is +0 whatever their signs, as if it had begun with a zero.
    sums: NDArray[np.float64] = np.cumsum(rows, axis=1)[:, -1] + 0.0
    return sums


def _rows(
    values: NDArray[np.float64], groups: NDArray[np.int64], counts: NDArray[np.int64], width: int
) -> NDArray[np.float64]:
    """The values of each group in a row of their own, shape (n_groups, width), filled up with +inf; a copy."""
    if (groups[1:] < groups[:-1]).any():
        order = np.argsort(groups, kind="stable")
        values, groups = values[order], groups[order]
    if len(values) == len(counts) * width:
        return values.reshape(len(counts), width).copy()
    rows = np.full((len(counts), width), np.inf)
    starts = np.cumsum(counts) - counts
    rows[groups, np.arange(len(values)) - starts[groups]] = values
    return rows


def group_means(values: NDArray[np.float64], groups: NDArray[np.int64], n_groups: int) -> NDArray[np.float64]:
    """Mean of the values of each group; 0 for a group without values.

    Args:
        values: Shape (N,), float64. Finite.
        groups: Shape (N,), int64, each in [0, n_groups).
        n_groups: Number of groups.

    Returns:
        Shape (n_groups,), float64, with the bit guarantees of `group_sums`.

    Cost:
        O(N log N).
    """
    counts = np.bincount(groups, minlength=n_groups)
    return group_sums(values, groups, n_groups) / np.maximum(counts, 1)


def group_standard_deviations(
    values: NDArray[np.float64], groups: NDArray[np.int64], n_groups: int, *, ddof: int
) -> NDArray[np.float64]:
    """Standard deviation of each group about its own mean, divisor (count − ddof).

    Args:
        values: Shape (N,), float64. Finite.
        groups: Shape (N,), int64, each in [0, n_groups).
        n_groups: Number of groups.
        ddof: Subtracted from the count; 1 for the sample standard deviation.

    Returns:
        Shape (n_groups,), float64, ≥ 0; exactly 0 where count ≤ ddof. Bit guarantees of `group_sums`.

    Cost:
        O(N log N).
    """
    counts = np.bincount(groups, minlength=n_groups)
    deviations = values - group_means(values, groups, n_groups)[groups]
    squares = group_sums(deviations * deviations, groups, n_groups)
    return np.where(counts > ddof, np.sqrt(squares / np.maximum(counts - ddof, 1)), 0.0)


def group_maxima(values: NDArray[np.float64], groups: NDArray[np.int64], n_groups: int) -> NDArray[np.float64]:
    """Largest value of each group; −inf for a group without values.

    Args:
        values: Shape (N,), float64.
        groups: Shape (N,), int64, each in [0, n_groups).
        n_groups: Number of groups.

    Returns:
        Shape (n_groups,), float64, each one of the group's values.

    Cost:
        O(N).
    """
    maxima = np.full(n_groups, -np.inf)
    np.maximum.at(maxima, groups, values)
    return maxima
