"""Credit inside candidates from its definition, in plain Python: orders of arrival, sums over coalitions, fractions.

Nothing here imports the library under test. A candidate is a table: what the text of each coalition of its units is
worth, bit j of the index is unit j; what stands for no unit is not looked at. The utility of a set is the largest worth
of the texts in it, and `empty` for a set without a text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import combinations, permutations, product

Table = Sequence[float]
Merges = Sequence[tuple[int, int]]


def best_of(tables: Sequence[Table], present: Sequence[int], empty: float = 0.0) -> float:
    """Utility of the coalition that has of each candidate the units of a bit mask."""
    worths = [table[units] for table, units in zip(tables, present, strict=True) if units]
    return max(worths) if worths else empty


def span_credits_by_orders(tables: Sequence[Table], trees: dict[int, Merges] | None = None, empty: float = 0.0):
    """Mean marginal utility of every unit over all orders in which candidates arrive as blocks.

    The units of a candidate arrive in any order, or in an order of its tree, whose nodes arrive as blocks.
    """
    sizes = [len(table).bit_length() - 1 for table in tables]
    gains = [[[] for _ in range(size)] for size in sizes]
    inner = [
        orders_of_tree(trees[k]) if trees and k in trees else list(permutations(range(size)))
        for k, size in enumerate(sizes)
    ]
    for outer in permutations(range(len(tables))):
        for orders in product(*inner):
            present = [0] * len(tables)
            worth = empty
            for k in outer:
                for unit in orders[k]:
                    present[k] |= 1 << unit
                    now = best_of(tables, present, empty)
                    gains[k][unit].append(now - worth)
                    worth = now
    return [[math.fsum(one) / len(one) for one in units] for units in gains]


def orders_of_tree(merges: Merges) -> list[tuple[int, ...]]:
    """Orders of the units in which at each node of a tree either child arrives first, as a block."""
    n = len(merges) + 1
    orders: list[list[tuple[int, ...]]] = [[(unit,)] for unit in range(n)]
    for left, right in merges:
        pairs = list(product(orders[left], orders[right]))
        orders.append([one + other for one, other in pairs] + [other + one for one, other in pairs])
    return orders[-1]


def share_by_coalitions(worth: float, others: Sequence[float], empty: float = 0.0) -> float:
    """Shapley value of max of a candidate of some worth: its gain over coalitions of the others by their chance."""
    n = len(others) + 1
    terms = []
    for size in range(n):
        for coalition in combinations(others, size):
            before = max(coalition) if coalition else empty
            after = max((worth, *coalition))
            terms.append((after - before) / (n * math.comb(n - 1, size)))
    return math.fsum(terms)


def share_by_sums(worth: float, others: Sequence[float]) -> float:
    """The same by the double sum over the others in ascending order, as it is written down."""
    ranked, n = sorted(others), len(others) + 1
    total = worth
    for s in range(1, n):
        for q in range(s - 1, n - 1):
            total += math.comb(q, s - 1) / math.comb(n - 1, s) * max(worth - ranked[q], 0.0)
    return total / n


def additive_by_fractions(advantage, values, lengths, *, slope, share, length_weight) -> list[Fraction]:
    """ω·[A + λ·s·L·(x_j/ℓ_j − c/L)], exactly."""
    x = [Fraction(value) for value in values]
    tokens, total = sum(lengths), sum(x)
    return [
        Fraction(length_weight)
        * (Fraction(advantage) + Fraction(share) * Fraction(slope) * tokens * (one / length - total / tokens))
        for one, length in zip(x, lengths, strict=True)
    ]


def bounded_by_fractions(advantage, values, lengths, *, share, length_weight) -> list[Fraction]:
    """ω·[A + |A|·λ·d_j/max|d|], exactly; the candidate's own where no unit differs."""
    x = [Fraction(value) for value in values]
    tokens, total = sum(lengths), sum(x)
    contrasts = [one / length - total / tokens for one, length in zip(x, lengths, strict=True)]
    largest, own = max((abs(one) for one in contrasts), default=Fraction(0)), Fraction(advantage)
    moved = [Fraction(share) * one / largest if largest else Fraction(0) for one in contrasts]
    return [Fraction(length_weight) * (own + abs(own) * one) for one in moved]


def subsets(n: int) -> Iterator[int]:
    """All bit masks of n units."""
    return iter(range(1 << n))


def table_of(worth: Callable[[tuple[int, ...]], float], n: int) -> list[float]:
    """A table from a function of units."""
    return [worth(tuple(unit for unit in range(n) if mask >> unit & 1)) for mask in subsets(n)]
