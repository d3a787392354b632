"""Semivalues from those coalitions alone whose sizes a rule weighs.

A semivalue that weighs few sizes needs few utilities: leave-one-out those of sizes n−1 and n, own reward those of sizes
0 and 1, max@2 those of sizes 1 and 2. Where a table would need all 2ⁿ, these sums need no more than the rule does.

Legend: `n` players, `R` coalitions, `s` the size of a coalition.
"""

from __future__ import annotations

import itertools
import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalition_plans import Booleans

Floats: TypeAlias = NDArray[np.float64]


def weighed_sizes(size_weights: Floats) -> list[int]:
    """Sizes of the coalitions whose utilities a semivalue uses: s and s + 1 for every weight q_s that is not 0.

    Args:
        size_weights: Shape (n,), float64: q_s for coalitions of s other players.

    Returns:
        Sizes in 0 … n, ascending.

    Cost:
        O(n).
    """
    used = np.flatnonzero(size_weights)
    return sorted({int(s) + step for s in used for step in (0, 1)})


def coalition_count(n_players: int, sizes: list[int]) -> int:
    """Number of coalitions of these sizes: Σ C(n, s)."""
    return sum(math.comb(n_players, s) for s in sizes)


def coalitions_of_sizes(n_players: int, sizes: list[int]) -> Booleans:
    """All coalitions of these sizes.

    Args:
        n_players: n ≥ 1.
        sizes: Distinct sizes in 0 … n.

    Returns:
        Shape (Σ C(n, s), n), bool: size after size in the order given, each in lexicographic order of its members.

    Cost:
        O(n) per row.
    """
    blocks = []
    for size in sizes:
        members = np.array(list(itertools.combinations(range(n_players), size)), dtype=np.int64)
        rows = np.zeros((math.comb(n_players, size), n_players), dtype=bool)
        np.put_along_axis(rows, members.reshape(len(rows), size), values=True, axis=1)
        blocks.append(rows)
    return np.concatenate([np.empty((0, n_players), dtype=bool), *blocks])


def every_coalition(n_players: int) -> Booleans:
    """All 2ⁿ coalitions, in the order of a table: bit i of the row number is player i.

    Args:
        n_players: n ≥ 0.

    Returns:
        Shape (2ⁿ, n), bool.

    Cost:
        O(n · 2ⁿ).
    """
    index = np.arange(1 << n_players)[:, None]
    coalitions: Booleans = (index >> np.arange(n_players)[None, :]) & 1 == 1
    return coalitions


def coalition_semivalues(coalitions: Booleans, utilities: Floats, size_weights: Floats) -> Floats:
    """Semivalue of each player from the utilities of all coalitions of the sizes that carry weight.

        φ_i = Σ_s q_s · (mean of v(S) over |S| = s+1 with i − mean of v(S) over |S| = s without i)

    Utilities are summed one by one in ascending order, after the mean of their size has been taken off.

    Args:
        coalitions: Shape (R, n), bool, distinct; every coalition of each size of `weighed_sizes(size_weights)`, in any
            order. Others are not used.
        utilities: Shape (R,), float64, reward units, finite.
        size_weights: Shape (n,), float64: q_s for coalitions of s other players.

    Returns:
        Shape (n,), float64, reward units. The order of the coalitions changes no bit, and renaming players renames
        their values to the last bit. With q_s = 1/n it sums to v(N) − v(∅) within rounding.

    Raises:
        ValueError: If coalitions of a size that carries weight are missing.

    Cost:
        O(R · n + R log R).
    """
    n = coalitions.shape[1]
    sizes = np.cumsum(coalitions, axis=1)[:, -1]
    values = np.zeros(n)
    joined = np.append(0.0, size_weights)
    left = np.append(size_weights, 0.0)
    for size in weighed_sizes(size_weights):
        rows = np.flatnonzero(sizes == size)
        if len(rows) != math.comb(n, size):
            raise ValueError(
                f"coalitions of size {size} are missing: got {len(rows)}, expected {math.comb(n, size)} of {n} players"
            )
        ordered = rows[np.argsort(utilities[rows], kind="stable")]
        own = utilities[ordered]
        middle = float(np.cumsum(own)[-1]) / len(own)
        inside = np.cumsum(np.where(coalitions[ordered], (own - middle)[:, None], 0.0), axis=0)[-1]
        outside = np.cumsum(np.where(coalitions[ordered], 0.0, (own - middle)[:, None]), axis=0)[-1]
        if size > 0:
            values += joined[size] * (inside / math.comb(n - 1, size - 1) + middle)
        if size < n:
            values -= left[size] * (outside / math.comb(n - 1, size) + middle)
    return values
