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
NUMBERS_PER_CALL = 1 << 16
"""Utilities that are subtracted and multiplied in one call: half a megabyte, which stays in the cache of a core."""
MAX_TILE_PLAYERS = 16
"""Largest n whose (2ⁿ, n) weights are worth their memory; above, a table is folded."""
MAX_PLAYERS = 20


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

    Up to n = 16 one matrix product per 64 tables. Each tile is padded with zeros to 64 rows, because the last bits of a
    BLAS product depend on its shape. Where q_s = q_{n−1−s}, as for Shapley, S and N∖S have opposite weights, and the
    product runs over the differences v(S) − v(N∖S), half as many.
    Above, each table is folded by itself: with the players split in a lower and an upper half, adding up the weighted
    utilities of all coalitions that agree in one half leaves 2^(n/2) sums, and the marginals of that half are sums of
    those. Every addition is elementwise, between halves.
    A large offset costs no digits: differences cancel it, elsewhere the middle of v(∅) and v(N) is subtracted first.

    Args:
        tables: Shape (B, 2ⁿ), float64, reward units, finite. n ≥ 1.
        size_weights: Shape (n,), float64: q_s for coalitions of s other players; 1/n each is the Shapley value.

    Returns:
        Shape (B, n), float64, reward units. A table's result does not depend on the rest of the batch, to the last bit.
        With q_s = 1/n it sums to v(N) − v(∅) within 1e-9 of its scale.

    Raises:
        ValueError: If the shapes do not fit, or n > 20.

    Cost:
        O(B · n · 2ⁿ) time and O(n · 2ⁿ) memory for the weights up to n = 16 (at most 8 MiB per (n, q), the last eight
        are remembered), beside a tile of 64 tables. Above, O(B · 2ⁿ) time; the weights take 16·2ⁿ bytes per (n, q), the
        last two are remembered, and the temporaries below 40·2ⁿ: at most 32 and 40 MiB at n = 20, whatever B.

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
    solve = _tiled_semivalues if n <= MAX_TILE_PLAYERS else _folded_semivalues
    return solve(tables, n, size_weights)


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


def middles(tables: Floats) -> Floats:
    """Reference from which the utilities of a table are counted, (v(∅) + v(N))/2.

    Args:
        tables: Shape (B, 2ⁿ), float64, reward units.

    Returns:
        Shape (B, 1), float64, reward units.

    Cost:
        O(B).
    """
    references: Floats = 0.5 * tables[:, :1] + 0.5 * tables[:, -1:]
    return references


def members(n: int) -> NDArray[np.int64]:
    """Membership of each player in each coalition.

    Args:
        n: Number of players.

    Returns:
        Shape (2ⁿ, n), int64: 1 where bit i of the row's index is set, else 0.

    Cost:
        O(n · 2ⁿ).
    """
    return (np.arange(1 << n)[:, None] >> np.arange(n)[None, :]) & 1


def coalition_weights(n: int, size_weights: Floats) -> tuple[Floats, Floats]:
    """Weights of v(S) in the semivalues of the players inside and outside S.

        φ_i = Σ_{S ∋ i} inside[S] · v(S) − Σ_{S ∌ i} outside[S] · v(S)
        inside[S] = q_{|S|−1} / C(n−1, |S|−1),     outside[S] = q_{|S|} / C(n−1, |S|)

    Args:
        n: Number of players.
        size_weights: Shape (n,), float64: q_s for coalitions of s other players.

    Returns:
        Two arrays of shape (2ⁿ,), float64: inside, 0 at ∅, and outside, 0 at N.

    Cost:
        O(2ⁿ).
    """
    per_coalition = size_weights / binomials(n)[n - 1, :n]
    sizes = np.zeros(1, dtype=np.int64)
    for _ in range(n):
        sizes = np.concatenate([sizes, sizes + 1])
    return np.append(0.0, per_coalition)[sizes], np.append(per_coalition, 0.0)[sizes]


def marginal_matrix(n: int, size_weights: Floats) -> Floats:
    """Matrix that turns a table into semivalues.

    Args:
        n: Number of players.
        size_weights: Shape (n,), float64: q_s for coalitions of s other players.

    Returns:
        Shape (2ⁿ, n), float64: `coalition_weights`, inside for members and minus outside for the others. Every column
        sums to zero within rounding.

    Cost:
        O(n · 2ⁿ) time and memory.
    """
    inside, outside = coalition_weights(n, size_weights)
    return np.where(members(n) == 1, inside[:, None], -outside[:, None])


def _tiled_semivalues(tables: Floats, n: int, size_weights: Floats) -> Floats:
    """Semivalues by one matrix product per tile of 64 tables, shape (B, n)."""
    weights = _marginal_weights(n, size_weights.tobytes())
    in_pairs = bool((size_weights == size_weights[::-1]).all())
    half = tables.shape[1] // 2
    if in_pairs:
        weights = weights[half:]
    n_tiles = -(-tables.shape[0] // TILE_ROWS)
    per_call = max(1, min(n_tiles, NUMBERS_PER_CALL // (TILE_ROWS * len(weights))))
    values = np.empty((n_tiles, TILE_ROWS, n))
    tiles = np.empty((per_call, TILE_ROWS, len(weights)))
    flat = tiles.reshape(-1, len(weights))
    for first in range(0, n_tiles, per_call):
        rows = tables[first * TILE_ROWS : (first + per_call) * TILE_ROWS]
        if in_pairs:
            np.subtract(rows[:, half:], rows[:, half - 1 :: -1], out=flat[: len(rows)])
        else:
            np.subtract(rows, middles(rows), out=flat[: len(rows)])
        flat[len(rows) :] = 0.0
        # Each tile is a product of its own, so that a table has the same bits in any of them.
        solved = values[first : first + per_call]
        np.matmul(tiles[: len(solved)], weights, out=solved)
    return values.reshape(-1, n)[: tables.shape[0]]


def _folded_semivalues(tables: Floats, n: int, size_weights: Floats) -> Floats:
    """Semivalues by folding one table after the other, shape (B, n)."""
    inside, outside = _folding_weights(n, size_weights.tobytes())
    n_low = n // 2
    values = np.empty((tables.shape[0], n))
    shifts = middles(tables)[:, 0]
    for row, table in enumerate(tables):
        utilities = table - shifts[row]
        with_player = (utilities * inside).reshape(-1, 1 << n_low)
        without = (utilities * outside).reshape(-1, 1 << n_low)
        values[row, :n_low] = _differences(_halved_sums(with_player), _halved_sums(without), n_low)
        values[row, n_low:] = _differences(_halved_sums(with_player.T), _halved_sums(without.T), n - n_low)
    return values


def _differences(with_player: Floats, without: Floats, n: int) -> Floats:
    """Σ of `with_player` over the coalitions of player i less Σ of `without` over the others, shape (n,)."""
    return _halved_sums(np.where(members(n) == 1, with_player[:, None], -without[:, None]))


def _halved_sums(terms: Floats) -> Floats:
    """Sums over the first axis, of length 2^k, by adding its halves k times: elementwise, in one order for each k."""
    while len(terms) > 1:
        half = len(terms) // 2
        terms = terms[:half] + terms[half:]
    total: Floats = terms[0]
    return total


@lru_cache(maxsize=8)
def _marginal_weights(n: int, size_weights: bytes) -> Floats:
    """`marginal_matrix`, remembered."""
    matrix = marginal_matrix(n, np.frombuffer(size_weights, dtype=np.float64))
    matrix.flags.writeable = False
    return matrix


@lru_cache(maxsize=2)
def _folding_weights(n: int, size_weights: bytes) -> tuple[Floats, Floats]:
    """`coalition_weights`, remembered."""
    inside, outside = coalition_weights(n, np.frombuffer(size_weights, dtype=np.float64))
    inside.flags.writeable = outside.flags.writeable = False
    return inside, outside
