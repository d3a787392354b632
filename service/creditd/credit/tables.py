"""Exact semivalues of utilities that are given as all 2ⁿ values (tables).

Legend: `B` tables, `n` players. Bit i of a table's index is player i: `tables[:, 0]` is v(∅) and `tables[:, -1]` is
v(N).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalitions import binomials

Floats: TypeAlias = NDArray[np.float64]

TILE_ROWS = 64
MAX_PLAYERS = 16


def player_count(n_values: int) -> int:
    """Number of players n of a table of 2ⁿ values.

    Args:
        n_values: Length of the table.

    Returns:
        n ≥ 0 with 2ⁿ = n_values.

    Raises:
        ValueError: If the length is not a power of two.

    Cost:
        O(1).
    """
    if n_values < 1 or n_values & (n_values - 1):
        raise ValueError(f"a table holds 2**n values: got {n_values}, expected a power of two")
    return n_values.bit_length() - 1


def table_semivalues(tables: Floats, size_weights: Floats) -> Floats:
    """Semivalue of each player, from the utility of every coalition.

        φ_i = Σ_{S ⊆ N∖{i}} q_{|S|} / C(n−1, |S|) · [v(S ∪ i) − v(S)]

    One matrix product per 64 tables. Each tile is padded with zeros to 64 rows, because the last bits of a BLAS product
    depend on its shape; each table is first shifted by the middle of v(∅) and v(N), so that a large offset costs no
    digits.

    Args:
        tables: Shape (B, 2ⁿ), float64, reward units, finite. n ≥ 1.
        size_weights: Shape (n,), float64: q_s for coalitions of s other players; 1/n each is the Shapley value.

    Returns:
        Shape (B, n), float64, reward units. A table's result does not depend on the rest of the batch, to the last bit.
        With q_s = 1/n it sums to v(N) − v(∅) within 1e-9 of its scale.

    Raises:
        ValueError: If the shapes do not fit, or n > 16.

    Cost:
        O(B · n · 2ⁿ) time, O(n · 2ⁿ) memory for the weights, which are remembered for the last few (n, q).

    Reference:
        Shapley 1953. Used for any set utility of ShapE-GRPO, arXiv:2603.29871v1.

    Differs from the paper:
        The paper decomposes max only.
    """
    if tables.ndim != 2:
        raise ValueError(f"tables must have shape (B, 2**n): got {tables.shape}")
    n = player_count(tables.shape[1])
    if not 1 <= n <= MAX_PLAYERS:
        raise ValueError(f"a table of {tables.shape[1]} values has n = {n} players: expected 1 to {MAX_PLAYERS}")
    if size_weights.shape != (n,):
        raise ValueError(
            f"size_weights must have one entry per coalition size: got {size_weights.shape}, expected ({n},)"
        )
    weights = _marginal_weights(n, size_weights.tobytes())
    values = np.empty((tables.shape[0], n))
    tile = np.zeros((TILE_ROWS, tables.shape[1]))
    for start in range(0, tables.shape[0], TILE_ROWS):
        rows = tables[start : start + TILE_ROWS]
        middle = 0.5 * rows[:, :1] + 0.5 * rows[:, -1:]
        tile[: len(rows)] = rows - middle
        tile[len(rows) :] = 0.0
        values[start : start + TILE_ROWS] = (tile @ weights)[: len(rows)]
    return values


def restrict_players(tables: Floats, players: NDArray[np.int64]) -> Floats:
    """Tables of the games among some of the players, in the order named.

    Args:
        tables: Shape (B, 2^K), float64.
        players: Shape (B, n), int64, n ≤ K: entry j names the old player that becomes player j; distinct in each row.

    Returns:
        Shape (B, 2ⁿ), float64, with new[b, {j, …}] = old[b, {players[b, j], …}]: players not named are absent.

    Cost:
        O(B · n · 2ⁿ).
    """
    n = players.shape[1]
    index = np.arange(1 << n)
    old_index = np.zeros((players.shape[0], 1 << n), dtype=np.int64)
    for j in range(n):
        old_index += ((index >> j) & 1)[None, :] << players[:, j : j + 1]
    return np.take_along_axis(tables, old_index, axis=1)


@lru_cache(maxsize=8)
def _marginal_weights(n: int, size_weights: bytes) -> Floats:
    """The (2ⁿ, n) matrix that turns a table into semivalues; every column sums to zero."""
    weights = np.frombuffer(size_weights, dtype=np.float64)
    per_coalition = weights / binomials(n)[n - 1, :n]
    index = np.arange(1 << n)
    members = (index[:, None] >> np.arange(n)[None, :]) & 1
    sizes = members.sum(axis=1)
    joined = np.append(0.0, per_coalition)[sizes]
    left = np.append(per_coalition, 0.0)[sizes]
    matrix: Floats = np.where(members == 1, joined[:, None], -left[:, None])
    matrix.flags.writeable = False
    return matrix
