"""Counting coalitions: binomial coefficients, chances of a random draw, and the weights of coalition sizes.

Legend: `n` players, `s` the size of a coalition.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]


@lru_cache(maxsize=12)
def binomials(n: int) -> Floats:
    """Binomial coefficients C(a, b) by Pascal's triangle.

    Args:
        n: Largest a and b.

    Returns:
        Shape (n + 1, n + 1), float64, read-only: entry [a, b] is C(a, b), 0 where b > a. Exact up to a = 56,
        relative error below a·2⁻⁵³ above.

    Cost:
        O(n²), remembered.
    """
    table = np.zeros((n + 1, n + 1))
    table[:, 0] = 1.0
    for a in range(1, n + 1):
        table[a, 1 : a + 1] = table[a - 1, :a] + table[a - 1, 1 : a + 1]
    table.flags.writeable = False
    return table


def chance_of_drawing_none(players: Floats, marked: Floats, drawn: int) -> Floats:
    """Probability that a random draw from a coalition misses all of its marked players.

        C(s − u, k) / C(s, k),     k = min(drawn, s): a coalition that is smaller than the draw is drawn whole

    Args:
        players: s, whole numbers from 0 to 1,000 as float64.
        marked: u, whole numbers from 0 to s as float64; broadcasts with `players`. Impossible pairs u > s give 0.
        drawn: Size of the draw, ≥ 1.

    Returns:
        Broadcast shape, float64, in [0, 1]: 1 where nobody is marked, 0 where the draw must hit.

    Cost:
        One look-up per pair; the table of coefficients is remembered.
    """
    s, u = (np.asarray(count).astype(np.int64) for count in np.broadcast_arrays(players, marked))
    k = np.minimum(s, drawn)
    choose = binomials(1 << int(s.max(initial=1)).bit_length())
    missed: Floats = np.where(u <= s, choose[np.maximum(s - u, 0), k], 0.0) / choose[s, k]
    return missed


def check_size_weights(size_weights: Floats, n_players: int) -> None:
    """Refusal of weights that do not fit the sizes of coalitions.

    Args:
        size_weights: q_s for coalitions of s other players, s = 0 … n−1.
        n_players: n.

    Raises:
        ValueError: If there are no players, or the weights do not have shape (n,).

    Cost:
        O(1).
    """
    if n_players < 1:
        raise ValueError(f"credit needs a player: got n = {n_players}, expected n ≥ 1")
    if size_weights.shape != (n_players,):
        raise ValueError(
            f"size_weights must have one entry per coalition size: got {size_weights.shape}, expected ({n_players},)"
        )
