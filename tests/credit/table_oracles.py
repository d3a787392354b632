"""Semivalues of single players, Owen values and log-determinants from their definitions, in plain Python.

Nothing here imports the library under test. Bit i of the index of a game's value is player i.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction


def semivalue_of_player(values: Sequence[float], n: int, size_weights: Sequence[float], player: int) -> float:
    """Σ_s q_s · mean of v(S ∪ i) − v(S) over the coalitions S of s others, with no rounding in the sum."""
    per_coalition = [q / math.comb(n - 1, s) for s, q in enumerate(size_weights)]
    bit = 1 << player
    return math.fsum(
        weight * v
        for mask in range(1 << n)
        if not mask & bit
        for weight in [per_coalition[mask.bit_count()]]
        for v in (values[mask | bit], -values[mask])
    )


def owen_by_orders(values: Sequence[float], unions: Sequence[int]) -> list[float]:
    """Mean marginal utility over the orders in which unions arrive one after the other, each as a block."""
    n = len(unions)
    blocks = [[i for i in range(n) if unions[i] == union] for union in sorted(set(unions))]
    gains: list[list[float]] = [[] for _ in range(n)]
    n_orders = 0
    for order_of_blocks in itertools.permutations(blocks):
        for orders in itertools.product(*map(itertools.permutations, order_of_blocks)):
            n_orders += 1
            mask = 0
            for player in itertools.chain(*orders):
                gains[player].append(values[mask | 1 << player] - values[mask])
                mask |= 1 << player
    return [math.fsum(of_player) / n_orders for of_player in gains]


def quotient_game(values: Sequence[float], unions: Sequence[int]) -> list[float]:
    """The game whose players are the unions, in ascending order of their numbers."""
    names = sorted(set(unions))
    return [
        values[sum(1 << i for i, union in enumerate(unions) if chosen >> names.index(union) & 1)]
        for chosen in range(1 << len(names))
    ]


def determinant(matrix: Sequence[Sequence[Fraction]]) -> Fraction:
    """Determinant by elimination in rational numbers: exact."""
    rows = [list(row) for row in matrix]
    result = Fraction(1)
    for k in range(len(rows)):
        swap = next((r for r in range(k, len(rows)) if rows[r][k]), None)
        if swap is None:
            return Fraction(0)
        if swap != k:
            rows[k], rows[swap] = rows[swap], rows[k]
            result = -result
        result *= rows[k][k]
        for r in range(k + 1, len(rows)):
            factor = rows[r][k] / rows[k][k]
            rows[r] = [x - factor * y for x, y in zip(rows[r], rows[k], strict=True)]
    return result


def logarithm(number: Fraction) -> float:
    """Natural logarithm of a positive rational number, also far from and very near to 1."""
    if abs(number - 1) < Fraction(1, 2):
        return math.log1p(float(number - 1))
    exponent = number.numerator.bit_length() - number.denominator.bit_length()
    return math.fsum([math.log1p(float(number / Fraction(2) ** exponent - 1)), exponent * math.log(2.0)])


def log_det_game(kernel: Sequence[Sequence[float]], form: str, empty: float = 0.0) -> list[float]:
    """Log det(I + L_S), or log det(L_S), of every coalition S; v(∅) as given."""
    n = len(kernel)
    values = [empty]
    for mask in range(1, 1 << n):
        chosen = [i for i in range(n) if mask >> i & 1]
        matrix = [
            [Fraction(float(kernel[i][j])) + (1 if i == j and form == "identity_plus" else 0) for j in chosen]
            for i in chosen
        ]
        values.append(logarithm(determinant(matrix)))
    return values
