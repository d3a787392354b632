"""Which coalitions an estimator evaluates, and in which order: pure functions of the players, the budget and a seed.

Legend: `n` players, `R` coalitions, `s` the size of a coalition. A plan is a boolean matrix with one coalition per row;
True means that the player is in.

Plans are *prefix-stable*: the plan of a larger budget starts with the plan of a smaller one. Whoever knows the players,
the seed and the utilities found so far can therefore go on where another process stopped.

Random numbers are the raw 64-bit words of PCG64, whose stream NumPy guarantees across versions (the distributions of
`Generator` carry no such promise); a random order is the order of such words.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Booleans: TypeAlias = NDArray[np.bool_]
Integers: TypeAlias = NDArray[np.int64]

EARLY_ROUNDS = 8
"""Rounds in which the middle size is not left out: as many pairs as an interval needs."""
ORDERS_PER_DRAW = 16
"""Random orders of the players drawn at once: part of the definition of a plan."""


def core_plan(n_players: int) -> Booleans:
    """The coalitions that every stratified plan starts with: ∅, N, all singletons, all leave-one-outs.

    They make the largest strata exact, and a jump at v(∅) harmless.

    Args:
        n_players: n ≥ 1.

    Returns:
        Shape (min(2n + 2, 2ⁿ), n), bool, distinct rows.

    Cost:
        O(n²).
    """
    singletons = np.eye(n_players, dtype=bool)
    ends = np.array([[False] * n_players, [True] * n_players])
    rows = [ends, singletons, ~singletons][: min(n_players, 3)]
    return np.concatenate(rows)


@lru_cache(maxsize=16)
def stratified_plan(n_players: int, n_evaluations: int, seed: int) -> Booleans:
    """Complement pairs of coalitions, all sizes alike, none twice.

        ∅, N, the singletons, the leave-one-outs; then rounds of pairs (S, N∖S), one of each size 2 ≤ |S| ≤ n/2

    A round visits the sizes in random order. The middle size n/2 is its own complement and is visited in the first 8
    rounds and in every second one after the 16th, so that every size from 2 to n−2 gets as many coalitions as another
    and none lacks pairs early; a size whose coalitions are used up is left out.
    Small coalitions (|S| ≤ n/3) are cut from random orders of the players, disjoint ones from one order, so that each
    player is in equally many of them.

    Args:
        n_players: n ≥ 1.
        n_evaluations: Largest number of coalitions, ≥ 0. Pairs are not split, so a plan may be one coalition shorter.
        seed: ≥ 0.

    Returns:
        Shape (R, n), bool, read-only, R ≤ n_evaluations distinct rows. All 2ⁿ coalitions when n_evaluations ≥ 2ⁿ.
        The plan of more evaluations starts with this one.

    Raises:
        ValueError: If n < 1, or n_evaluations or seed is negative.

    Cost:
        O(R · n log n), remembered for the last few plans.

    Reference:
        Strata of one size: Maleki et al., arXiv:1306.4265; complement pairs: Improving KernelSHAP, arXiv:2012.01536.

    Differs from the paper:
        Both draw with replacement. The core, the rounds and the balanced small coalitions are creditd's.
    """
    _check(n_players, n_evaluations, seed)
    core = core_plan(n_players)
    order = _order_of_sizes(n_players, (n_evaluations - len(core)) // 2, seed)
    plan = np.empty((len(core) + 2 * len(order), n_players), dtype=bool)
    plan[: len(core)] = core
    for size in np.unique(order).tolist():
        places = len(core) + 2 * np.flatnonzero(order == size)
        small = _Stratum(n_players, size, seed).first(len(places))
        plan[places] = small
        plan[places + 1] = ~small
    plan = plan[:n_evaluations]
    plan.flags.writeable = False
    return plan


@lru_cache(maxsize=16)
def permutation_plan(n_players: int, n_evaluations: int, seed: int) -> Booleans:
    """The prefixes of random orders of the players and of their reversals, each coalition once.

    Orders are drawn one after another; one counts when the new coalitions of its walk and of the walk back all fit.

    Args:
        n_players: n ≥ 1.
        n_evaluations: Largest number of coalitions, ≥ 0.
        seed: ≥ 0.

    Returns:
        Shape (R, n), bool, read-only, R ≤ n_evaluations distinct rows. All 2ⁿ coalitions when n_evaluations ≥ 2ⁿ: what
        min(2ⁿ, n_evaluations)/2 orders have not met follows in the order of its bits. The plan of more evaluations
        starts with this one.

    Raises:
        ValueError: If n < 1, or n_evaluations or seed is negative.

    Cost:
        O(n²) per order, remembered for the last few plans.

    Reference:
        Castro et al. 2009; antithetic orders: Mitchell et al., arXiv:2104.12199.

    Differs from the paper:
        The budget counts distinct coalitions, not visits.
    """
    return permutation_walks(n_players, n_evaluations, seed)[0]


@lru_cache(maxsize=16)
def permutation_walks(n_players: int, n_evaluations: int, seed: int) -> tuple[Booleans, Integers, Integers]:
    """The permutation plan together with its walks.

    Args:
        n_players: n ≥ 1.
        n_evaluations: Largest number of coalitions, ≥ 0.
        seed: ≥ 0.

    Returns:
        The plan, shape (R, n); the orders, shape (P, n), int64, first to arrive first; and, for each order, the rows of
        the plan that hold its prefixes from ∅ to N and those of the walk back, shape (P, 2, n + 1), int64.

    Raises:
        ValueError: If n < 1, or n_evaluations or seed is negative.

    Cost:
        O(P · n²), remembered for the last few plans.
    """
    _check(n_players, n_evaluations, seed)
    everything = 2**n_players
    ends = np.array([[False] * n_players, [True] * n_players])[: min(n_evaluations, everything)]
    rows: list[Booleans] = [ends]
    places = {key: row for row, key in enumerate(row_keys(ends))}
    orders: list[Integers] = []
    walks: list[list[list[int]]] = []
    words = _words(n_players, 0, seed)
    for _ in range(min(n_evaluations, everything) // 2):
        order = next(words)
        ranks = np.argsort(order)
        there = ranks[None, :] < np.arange(n_players + 1)[:, None]
        prefixes = np.concatenate([there, ~there[::-1]])
        keys = row_keys(prefixes)
        new = {key: row for row, key in enumerate(keys) if key not in places}
        if len(places) + len(new) > n_evaluations:
            break
        places.update({key: len(places) + j for j, key in enumerate(new)})
        rows.append(prefixes[list(new.values())])
        orders.append(order)
        walks.append([[places[key] for key in keys[: n_players + 1]], [places[key] for key in keys[n_players + 1 :]]])
    if everything <= n_evaluations:
        bits = (np.arange(everything)[:, None] >> np.arange(n_players)[None, :]) & 1 == 1
        rows.append(bits[[key not in places for key in row_keys(bits)]])
    plan = np.concatenate(rows)
    of_orders = np.array(orders, dtype=np.int64).reshape(-1, n_players)
    of_walks = np.array(walks, dtype=np.int64).reshape(-1, 2, n_players + 1)
    plan.flags.writeable = of_orders.flags.writeable = of_walks.flags.writeable = False
    return plan, of_orders, of_walks


def row_keys(coalitions: Booleans) -> list[bytes]:
    """One hashable key per coalition.

    Args:
        coalitions: Shape (R, n), bool.

    Returns:
        R keys of ⌈n/8⌉ bytes, equal exactly where rows are equal.

    Cost:
        O(R · n).
    """
    packed = np.packbits(coalitions, axis=1)
    width = packed.shape[1]
    data = packed.tobytes()
    return [data[start : start + width] for start in range(0, len(data), width)]


def pair_capacity(n_players: int, size: int) -> int:
    """Number of complement pairs whose smaller coalition has this size: C(n, s), half of it for s = n/2."""
    return math.comb(n_players, size) // (2 if 2 * size == n_players else 1)


def _check(n_players: int, n_evaluations: int, seed: int) -> None:
    """Refuse what no plan exists for."""
    if n_players < 1 or n_evaluations < 0 or seed < 0:
        raise ValueError(
            f"a plan needs n_players ≥ 1, n_evaluations ≥ 0 and seed ≥ 0: got {n_players}, {n_evaluations} and {seed}"
        )


def _words(n_players: int, stream: int, seed: int) -> Iterator[Integers]:
    """Random orders of the players, without end; streams of one seed are independent."""
    bits = np.random.PCG64(np.random.SeedSequence([seed, n_players, stream]))
    while True:
        words = bits.random_raw(ORDERS_PER_DRAW * n_players).reshape(ORDERS_PER_DRAW, n_players)
        yield from np.argsort(words, axis=1, kind="stable").astype(np.int64, copy=False)


def _order_of_sizes(n_players: int, n_pairs: int, seed: int) -> Integers:
    """Size of the smaller coalition of each pair, in the order of the plan; fewer than n_pairs when all are used up."""
    left = {size: pair_capacity(n_players, size) for size in range(2, n_players // 2 + 1)}
    bits = np.random.PCG64(np.random.SeedSequence([seed, n_players, 1]))
    order: list[int] = []
    finished_rounds = 0
    while left and len(order) < n_pairs:
        with_middle = finished_rounds < EARLY_ROUNDS or (
            finished_rounds >= 2 * EARLY_ROUNDS and finished_rounds % 2 == 1
        )
        sizes = np.array([size for size in left if with_middle or 2 * size != n_players or len(left) == 1])
        for size in sizes[np.argsort(bits.random_raw(len(sizes)), kind="stable")].tolist():
            order.append(size)
            left[size] -= 1
            if left[size] == 0:
                del left[size]
        finished_rounds += 1
    return np.array(order[: max(n_pairs, 0)], dtype=np.int64)


class _Stratum:
    """Distinct random coalitions of one size, one of each complement pair, always in the same order."""

    def __init__(self, n_players: int, size: int, seed: int) -> None:
        self._n, self._size = n_players, size
        self._capacity = pair_capacity(n_players, size)
        self._orders = _words(n_players, size, seed)
        self._seen: set[bytes] = set()
        self._rows: list[Booleans] = []

    def first(self, count: int) -> Booleans:
        """The first `count` coalitions, shape (count, n)."""
        while len(self._seen) < count:
            # Drawing gets slow once most draws are repetitions, so the second half is enumerated.
            self._take(self._rest() if 2 * len(self._seen) >= self._capacity else self._draw())
        return np.concatenate(self._rows)[:count]

    def _draw(self) -> Booleans:
        """Coalitions of the next random orders."""
        orders = np.stack(list(itertools.islice(self._orders, ORDERS_PER_DRAW)))
        # Disjoint coalitions of nearly half the players are nearly complements, that is, one pair twice.
        per_order = self._n // self._size if 3 * self._size <= self._n else 1
        members = orders[:, : per_order * self._size].reshape(-1, self._size)
        return _rows_of(members, self._n)

    def _rest(self) -> Booleans:
        """All coalitions of the size, in random order."""
        every = np.array(list(itertools.combinations(range(self._n), self._size)), dtype=np.int64)
        first = next(self._orders)[0]
        bits = np.random.PCG64(np.random.SeedSequence([int(first), self._n, self._size]))
        return _rows_of(every[np.argsort(bits.random_raw(len(every)), kind="stable")], self._n)

    def _take(self, rows: Booleans) -> None:
        """Keep the rows that are new."""
        if 2 * self._size == self._n:
            rows = np.where(rows[:, :1], rows, ~rows)
        new = []
        for row, key in enumerate(row_keys(rows)):
            if key not in self._seen:
                self._seen.add(key)
                new.append(row)
        self._rows.append(rows[new])


def _rows_of(members: Integers, n_players: int) -> Booleans:
    """Boolean rows of lists of members, shape (R, n)."""
    rows = np.zeros((len(members), n_players), dtype=bool)
    np.put_along_axis(rows, members, values=True, axis=1)
    return rows
