"""Brute force for estimators, in plain Python; nothing here imports the library under test.

A game is a dictionary from frozensets of players to utilities.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

Coalition = frozenset[int]
Game = dict[Coalition, float]


def every_subset(n: int) -> list[Coalition]:
    """All 2ⁿ coalitions."""
    return [frozenset(chosen) for size in range(n + 1) for chosen in itertools.combinations(range(n), size)]


def game_of(utility: Callable[[Coalition], float], n: int) -> Game:
    """All utilities of a game."""
    return {coalition: utility(coalition) for coalition in every_subset(n)}


def semivalue(game: Game, n: int, weights: Sequence[float]) -> list[float]:
    """Σ_s q_s · mean over coalitions of size s without the player of v(S ∪ i) − v(S)."""
    values = []
    for player in range(n):
        total = []
        for size, weight in enumerate(weights):
            gains = [
                game[frozenset({*chosen, player})] - game[frozenset(chosen)]
                for chosen in itertools.combinations([i for i in range(n) if i != player], size)
            ]
            total.append(weight * math.fsum(gains) / len(gains))
        values.append(math.fsum(total))
    return values


def shapley(game: Game, n: int) -> list[float]:
    """Every size weighs 1/n."""
    return semivalue(game, n, [1.0 / n] * n)


def subsets_of_rows(rows: Iterable[Iterable[bool]]) -> list[Coalition]:
    """Boolean rows as sets of players."""
    return [frozenset(i for i, member in enumerate(row) if member) for row in rows]


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return math.fsum(values) / len(values)


def reuse_of_pairs(pairs: dict[Coalition, float], n: int) -> list[float]:
    """1/n · Σ over sizes k of the mean of v(S) − v(N∖S) over the pairs with the player in a coalition S of size k.

    Args:
        pairs: v(S) − v(N∖S) of every pair, under both of its coalitions (with both signs).
        n: Number of players.
    """
    values = []
    for player in range(n):
        terms = []
        for size in range(1, n):
            own = [d for coalition, d in pairs.items() if len(coalition) == size and player in coalition]
            everyone = [d for coalition, d in pairs.items() if len(coalition) == size]
            terms.append(mean(own or everyone))
        values.append(math.fsum(terms) / n)
    return values


def mean_of_walks(game: Game, orders: Sequence[Sequence[int]], n: int) -> list[list[float]]:
    """For every order, the marginal utilities of the players averaged over the order and its reversal."""
    result = []
    for order in orders:
        gains = [0.0] * n
        for walk in (list(order), list(order)[::-1]):
            arrived: Coalition = frozenset()
            for player in walk:
                joined = arrived | {player}
                gains[player] += 0.5 * (game[joined] - game[arrived])
                arrived = joined
        result.append(gains)
    return result


def solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gauss elimination with pivots."""
    size = len(right)
    rows = [[*row, b] for row, b in zip(matrix, right, strict=True)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda r: abs(rows[r][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for r in range(column + 1, size):
            factor = rows[r][column] / rows[column][column]
            rows[r] = [x - factor * y for x, y in zip(rows[r], rows[column], strict=True)]
    solution = [0.0] * size
    for r in reversed(range(size)):
        known = math.fsum(rows[r][c] * solution[c] for c in range(r + 1, size))
        solution[r] = (rows[r][size] - known) / rows[r][r]
    return solution
