"""Values over a tree, token rewards and token advantages from their definitions, in plain Python.

Nothing here imports the library under test. A tree of n players is its n − 1 merges, pairs of nodes; node i < n is
player i and node n + k is merge k. A completion is a list of units, each a range of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Merges = Sequence[tuple[int, int]]
Utility = Callable[[frozenset[int]], float]


def chain(n: int) -> list[tuple[int, int]]:
    """Merges of the tree of n ≥ 2 players that adds one after the other, the first two first."""
    return [(0, 1), *((n + k, k + 2) for k in range(n - 2))]


def index_of(coalition: Sequence[bool]) -> int:
    """Index of a coalition in a table: bit i for player i."""
    return sum(1 << i for i, present in enumerate(coalition) if present)


def owen_by_recursion(merges: Merges, utility: Utility) -> list[float]:
    """The recursion of PartitionExplainer: (a, C, w/2), (b, C, w/2), (a, C ∪ b, w/2), (b, C ∪ a, w/2)."""
    n = len(merges) + 1
    members = [frozenset([i]) for i in range(n)]
    for left, right in merges:
        members.append(members[left] | members[right])
    shares: list[list[float]] = [[] for _ in range(n)]

    def visit(node: int, context: frozenset[int], weight: float) -> None:
        if node < n:
            shares[node].append(weight * (utility(context | {node}) - utility(context)))
            return
        left, right = merges[node - n]
        visit(left, context, weight / 2)
        visit(right, context, weight / 2)
        visit(left, context | members[right], weight / 2)
        visit(right, context | members[left], weight / 2)

    visit(2 * n - 2, frozenset(), 1.0)
    return [math.fsum(of_player) for of_player in shares]


def owen_by_orders(merges: Merges, utility: Utility) -> list[float]:
    """Mean marginal utility over the 2^(n−1) orders in which at each node either child arrives first, as a block."""
    n = len(merges) + 1
    orders: list[list[list[int]]] = [[[i]] for i in range(n)]
    for left, right in merges:
        pairs = [(one, other) for one in orders[left] for other in orders[right]]
        orders.append([one + other for one, other in pairs] + [other + one for one, other in pairs])
    gains: list[list[float]] = [[] for _ in range(n)]
    for order in orders[-1]:
        for place, player in enumerate(order):
            before = frozenset(order[:place])
            gains[player].append(utility(before | {player}) - utility(before))
    return [math.fsum(of_player) / len(orders[-1]) for of_player in gains]


@dataclass(frozen=True)
class Told:
    """What is known of a completion.

    Attributes:
        mask: Which tokens are trainable.
        units: Token ranges.
        values: Values of the units, or None.
        empty: v(∅), or None.
        grand: v(P).
        kl: KL term of each token.
        other: Other rewards.
    """

    mask: Sequence[bool]
    units: Sequence[tuple[int, int]]
    values: Sequence[float] | None
    empty: float | None
    grand: float
    kl: Sequence[float]
    other: float


def parts(told: Told, alpha: float) -> dict[str, float]:
    """The entries of the ledger."""
    kl = math.fsum(kl for kl, own in zip(told.kl, told.mask, strict=True) if own)
    if told.empty is None:
        shared = {"units": 0.0, "terminal": told.grand, "remainder": 0.0, "alpha": 0.0}
    elif told.values is None or not told.units:
        shared = {"units": 0.0, "terminal": 0.0, "remainder": told.grand - alpha * told.empty, "alpha": alpha}
    else:
        total = math.fsum(told.values)
        rest = told.grand - told.empty - total
        shared = {
            "units": alpha * total,
            "terminal": (1 - alpha) * told.grand,
            "remainder": alpha * rest,
            "alpha": alpha,
        }
    returned = told.grand - (0.0 if told.empty is None else alpha * told.empty)
    return {"kl": kl, "other_reward": told.other, "total": kl + told.other + returned, **shared}


def rewards(told: Told, alpha: float) -> list[float]:
    """Reward of each token, summed up term by term."""
    result = [[kl] if own else [] for kl, own in zip(told.kl, told.mask, strict=True)]
    own_tokens = [t for t, own in enumerate(told.mask) if own]
    if own_tokens:
        found = parts(told, alpha)
        if found["units"] != 0.0 or (told.values is not None and told.empty is not None):
            for (_, stop), value in zip(told.units, told.values or (), strict=True):
                result[stop - 1].append(alpha * value)
        result[own_tokens[-1]] += [found["terminal"], told.other, found["remainder"]]
    return [math.fsum(terms) for terms in result]


def densities(told: Told, alpha: float) -> list[float]:
    """What each token is worth on the scale of the reward, its unit looked up."""
    found = parts(told, alpha)
    n_own = sum(told.mask)
    result = []
    for t, own in enumerate(told.mask):
        terms = [found["terminal"], told.other, found["remainder"]] if own else []
        if own and told.values is not None and told.empty is not None:
            for (start, stop), value in zip(told.units, told.values, strict=True):
                if start <= t < stop:
                    terms.append(alpha * n_own * value / (stop - start))
        result.append(math.fsum(terms))
    return result


def advantages(group: Sequence[tuple[Sequence[float], float]], ddof: int, epsilon: float) -> list[list[float]] | None:
    """Advantages of the trainable tokens of each completion of a group; None without contrast.

    A completion is the D of its trainable tokens, and its return without KL.
    """
    every = [d for of_completion, _ in group for d in of_completion]
    if len(every) <= ddof or max(every) == min(every):
        return None
    centre = math.fsum(every) / len(every)
    spread = math.sqrt(math.fsum((d - centre) ** 2 for d in every) / (len(every) - ddof))
    baseline = math.fsum(total for _, total in group) / len(group)
    return [[(d - baseline) / (spread + epsilon) for d in of_completion] for of_completion, _ in group]
