"""Sums, means and standard deviations per group, independent of the order inside a group and of the rest of the batch.

Legend: `N` values, each belonging to one of `n_groups` groups by an integer index.
A plain `numpy.sum` changes its last bits with the shape of its input; these sums run sequentially over sorted values,
so the same group gives the same bits in any batch and in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

MAX_MAGNITUDE = 1e100
"""Largest magnitude of a reward or a utility: sums of squares of larger ones leave float64."""
MAX_PADDING = 4
"""Groups are summed as rows of a table when that has at most this many times as many cells as there are values."""

LONG_ROW = 8
"""Rows are added one to the next where they are this many times as long as there are rows."""


@dataclass(frozen=True)
class Groups:
    """Which group each of N values belongs to; what is learned of the groups serves every column of values.

    Attributes:
        index: Shape (N,), int64, each in [0, n_groups).
        n_groups: Number of groups; a group may have no value.
    """

    index: NDArray[np.int64]
    n_groups: int

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Values of each group, shape (n_groups,)."""
        return np.bincount(self.index, minlength=self.n_groups)

    @cached_property
    def width(self) -> int:
        """Values of the largest group."""
        return int(self.counts.max(initial=0))

    @cached_property
    def even(self) -> bool:
        """Whether all groups have equally many values."""
        return len(self.index) == self.n_groups * self.width

    @property
    def fits_a_table(self) -> bool:
        """Whether a row for each group wastes little memory."""
        return self.n_groups * self.width <= MAX_PADDING * len(self.index)

    @cached_property
    def _order(self) -> NDArray[np.int64] | None:
        """Values in the order of their groups; None where they are in it."""
        return np.argsort(self.index, kind="stable") if (self.index[1:] < self.index[:-1]).any() else None

    @cached_property
    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column of each value, in the order of the groups."""
        index = self.index if self._order is None else self.index[self._order]
        starts = np.cumsum(self.counts) - self.counts
        return index, np.arange(len(index)) - starts[index]

    def rows(self, values: NDArray[np.float64], fill: float) -> NDArray[np.float64]:
        """The values of each group in a row of their own.

        Args:
            values: Shape (N,), float64.
            fill: What stands behind the values of a group that is smaller than the largest.

        Returns:
            Shape (n_groups, width), float64; perhaps a view of the values.
        """
        ordered = values if self._order is None else values[self._order]
        if self.even:
            return ordered.reshape(self.n_groups, self.width)
        rows = np.full((self.n_groups, self.width), fill)
        rows[self._places] = ordered
        return rows


def group_sums(values: NDArray[np.float64], groups: Groups) -> NDArray[np.float64]:
    """Sum of the values of each group, added one by one in ascending order.

    Args:
        values: Shape (N,), float64. Finite.
        groups: Groups of the values; a group without values sums to 0.

    Returns:
        Shape (n_groups,), float64. Permuting the values of a group, or adding other groups, changes no bit.

    Cost:
        O(N log N): one sort of short rows, or of all values where groups are too uneven for a table.
    """
    if groups.width == 0:
        return np.zeros(groups.n_groups)
    if not groups.fits_a_table:
        order = np.lexsort((values, groups.index))
        sums = np.bincount(groups.index[order], weights=values[order], minlength=groups.n_groups)
        return sums.astype(np.float64, copy=False)
    rows = np.sort(groups.rows(values, np.inf), axis=1)
    if not groups.even:
        rows[np.arange(groups.width) >= groups.counts[:, None]] = 0.0
    return added_up(rows.T)


def added_up(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of columns, from the first row to the last.

    Args:
        columns: Shape (n, B), float64, n ≥ 1.

    Returns:
        Shape (B,), float64: the same bits for a column whatever stands beside it. A sum of zeros is +0 whatever their
        signs.

    Cost:
        O(n·B).
    """
    # NumPy adds whole rows where the columns lie side by side; a single column it would add up in pairs.
    alone = columns.shape[1] == 1
    sums = np.cumsum(columns, axis=0)[-1] if alone else np.add.reduce(np.ascontiguousarray(columns), axis=0)
    # Whether a sum begins with a zero of its own is NumPy's affair, and shows in the sign of a zero.
    total: NDArray[np.float64] = sums + 0.0
    return total


def running_sums(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of columns up to each row.

    Args:
        columns: Shape (n, B), float64.

    Returns:
        Shape (n, B), float64: the same bits for a column whatever stands beside it.

    Cost:
        O(n·B).
    """
    n, width = columns.shape
    if width < LONG_ROW * n:
        return np.cumsum(np.ascontiguousarray(columns.T), axis=1).T
    sums = np.empty((n, width))
    sums[:1] = columns[:1]
    for row in range(1, n):
        np.add(sums[row - 1], columns[row], out=sums[row])
    return sums


def group_means(values: NDArray[np.float64], groups: Groups) -> NDArray[np.float64]:
    """Mean of the values of each group; 0 for a group without values.

    Args:
        values: Shape (N,), float64. Finite.
        groups: Groups of the values.

    Returns:
        Shape (n_groups,), float64, with the bit guarantees of `group_sums`.

    Cost:
        O(N log N).
    """
    return group_sums(values, groups) / np.maximum(groups.counts, 1)


def group_standard_deviations(values: NDArray[np.float64], groups: Groups, *, ddof: int) -> NDArray[np.float64]:
    """Standard deviation of each group about its own mean, divisor (count − ddof).

    Args:
        values: Shape (N,), float64. Finite.
        groups: Groups of the values.
        ddof: Subtracted from the count; 1 for the sample standard deviation.

    Returns:
        Shape (n_groups,), float64, ≥ 0; exactly 0 where count ≤ ddof. Bit guarantees of `group_sums`.

    Cost:
        O(N log N).
    """
    counts = groups.counts
    deviations = values - group_means(values, groups)[groups.index]
    squares = group_sums(deviations * deviations, groups)
    return np.where(counts > ddof, np.sqrt(squares / np.maximum(counts - ddof, 1)), 0.0)


def group_maxima(values: NDArray[np.float64], groups: Groups) -> NDArray[np.float64]:
    """Largest value of each group; −inf for a group without values.

    Args:
        values: Shape (N,), float64.
        groups: Groups of the values.

    Returns:
        Shape (n_groups,), float64, each one of the group's values.

    Cost:
        O(N).
    """
    if groups.width and groups.fits_a_table:
        maxima: NDArray[np.float64] = np.maximum.reduce(np.ascontiguousarray(groups.rows(values, -np.inf).T))
        return maxima
    maxima = np.full(groups.n_groups, -np.inf)
    np.maximum.at(maxima, groups.index, values)
    return maxima
