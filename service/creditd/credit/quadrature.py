"""Averages over coalitions as averages over random coalitions, in which each player is present with probability t.

Legend: `n` players, q_s the weight of the coalitions of s other players. The mean marginal utility of a player among
others who are present with probability t is a polynomial of degree n − 1 in t (Owen's multilinear extension), and

    Shapley: φ_i = ∫₀¹ E_t[v(S ∪ i) − v(S)] dt,        t = 0: v({i}) − v(∅),        t = 1: v(N) − v(N∖i)

so ⌈n/2⌉ Gauss–Legendre nodes give the Shapley value exactly, and the two ends are own reward and leave-one-out.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

FLAT = 1e-12
"""Spread of weights, as a share of the largest, that is rounding: weights of players without nulls are recomputed."""

NEWTON_STEPS = 2
"""From errors of 10⁻¹⁶ of the interval; the second changes the last bits at most."""


class SizeParts(NamedTuple):
    """Coalition-size weights as three rules: q_s = even for every s, plus `first` at s = 0, plus `last` at s = n − 1.

    Attributes:
        first: Weight of own reward on top of `even`.
        even: n times this is the weight of the Shapley value.
        last: Weight of leave-one-out on top of `even`; 0 when n = 1, where it is the same as `first`.
    """

    first: float
    even: float
    last: float


def size_parts(size_weights: Floats) -> SizeParts | None:
    """Coalition-size weights as a sum of own reward, Shapley and leave-one-out; None when they are something else.

        q_s = even + first·1[s = 0] + last·1[s = n − 1]

    Args:
        size_weights: Shape (n,), float64: q_s for coalitions of s other players, n ≥ 1.

    Returns:
        The three parts, or None when the weights between the two ends differ by more than rounding. Every q of n ≤ 3
        has parts; n ≤ 2 has `even` = 0.

    Cost:
        O(n).
    """
    n = len(size_weights)
    first, last = float(size_weights[0]), float(size_weights[-1])
    if n == 1:
        return SizeParts(first, 0.0, 0.0)
    inside = size_weights[1:-1]
    if n == 2:
        return SizeParts(first, 0.0, last)
    if float(np.ptp(inside)) > FLAT * float(np.abs(size_weights).max()):
        return None
    even = float(inside[0])
    return SizeParts(first - even, even, last - even)


def three_rules_only(family: str, size_weights: Floats) -> SizeParts:
    """The parts of coalition-size weights, for a family whose kernel knows nothing else.

    Args:
        family: What the message calls the utility.
        size_weights: Shape (n,), float64, n ≥ 1.

    Returns:
        The parts that `size_parts` finds.

    Raises:
        ValueError: If the weights have no such parts.

    Cost:
        O(n).
    """
    parts = size_parts(size_weights)
    if parts is None:
        raise ValueError(
            f"{family} has credit for Shapley, leave-one-out and own reward only: got weights that differ between "
            "coalition sizes 1 to n − 2, expected one number there"
        )
    return parts


@lru_cache(maxsize=64)
def gauss_legendre(n_nodes: int) -> tuple[Floats, Floats]:
    """Gauss–Legendre nodes and weights on [0, 1], with small relative errors also next to the ends.

        ∫₀¹ f(t) dt = Σ_j weight_j · f(node_j)        for every polynomial f of degree below 2·n_nodes

    NumPy's nodes, improved by Newton steps in t, the distance to an end: with x = 1 − 2t, near x = 1,

        P_{k+1} − P_k = [k·(P_k − P_{k−1}) − (2k + 1)·2t·P_k]/(k + 1),        weight = 4t(1 − t)/(m·P_{m−1})²

    which loses no digits, while rounding next to x = 1 costs the powers of 1 − t up to 10⁻¹².

    Args:
        n_nodes: Number of nodes m ≥ 1.

    Returns:
        Nodes in ascending order and weights that sum to 1, each of shape (m,), float64, read-only; symmetric about ½.

    Cost:
        O(m³) once, remembered.
    """
    nodes = 0.5 - 0.5 * np.polynomial.legendre.leggauss(n_nodes)[0][n_nodes // 2 :][::-1]
    for _ in range(NEWTON_STEPS):
        last, before = _legendre_values(nodes, n_nodes)
        nodes = nodes + 2.0 * nodes * (1.0 - nodes) * last / (n_nodes * (before - (1.0 - 2.0 * nodes) * last))
    _, before = _legendre_values(nodes, n_nodes)
    weights = 4.0 * nodes * (1.0 - nodes) / (n_nodes * before) ** 2
    n_mirrored = n_nodes // 2
    nodes = np.concatenate([nodes, 1.0 - nodes[:n_mirrored][::-1]])
    weights = np.concatenate([weights, weights[:n_mirrored][::-1]])
    nodes.flags.writeable = weights.flags.writeable = False
    return nodes, weights


def _legendre_values(nodes: Floats, degree: int) -> tuple[Floats, Floats]:
    """P_m and P_{m−1} at x = 1 − 2t for t in (0, ½]."""
    before, value, step = np.ones_like(nodes), np.ones_like(nodes), np.zeros_like(nodes)
    for k in range(degree):
        step = (k * step - (2 * k + 1) * (2.0 * nodes) * value) / (k + 1)
        before, value = value, value + step
    return value, before


def presence_nodes(parts: SizeParts, n_players: int) -> tuple[Floats, Floats]:
    """Probabilities of presence t and their weights, that give the semivalue but for `first`.

        φ_i = first·(v({i}) − v(∅)) + Σ_j weight_j · E_{t_j}[v(S ∪ i) − v(S)]

    Args:
        parts: The coalition-size weights.
        n_players: n ≥ 1.

    Returns:
        Nodes t and weights, each of shape (m,), float64: ⌈n/2⌉ Gauss–Legendre nodes when `even` is not 0, and t = 1
        when `last` is not 0.

    Cost:
        O(n).
    """
    nodes, weights = np.empty(0), np.empty(0)
    if parts.even:
        nodes, weights = gauss_legendre((n_players + 1) // 2)
        weights = n_players * parts.even * weights
    if parts.last:
        nodes, weights = np.append(nodes, 1.0), np.append(weights, parts.last)
    return nodes, weights
