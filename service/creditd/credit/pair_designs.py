"""What a stratified plan alone decides about its estimate: pairs, strata, weights and folds.

Legend: `n` players, `M` complement pairs (S, N∖S) with |S| = s ≤ n/2, `d` = v(S) − v(N∖S) the difference of a pair.

The Shapley value depends on a game through these differences only,

    φ_i = 1/n · (v(N) − v(∅) + Σ_{1≤s<n/2} T_is + T_i,n/2),    T_is = mean of d where i ∈ S − mean of d where i ∉ S

(for s = n/2 both means run over the same pairs, so T is half of it). A plan that holds only some of the pairs of a size
replaces the means by those of the pairs it holds: *maximum sample reuse*, because a pair serves all players.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalition_plans import Booleans, Integers, core_plan, pair_capacity
from creditd.credit.proxies import Columns, triple_columns

Floats: TypeAlias = NDArray[np.float64]

FOLDS = 5
"""Folds of the cross-fitted residuals, and more of them once they would hold more pairs than the next number."""
LARGEST_FOLD = 256
"""Pairs of one fold: leaving it out is a system of this size."""


@dataclass(frozen=True)
class Stratum:
    """The pairs of one size.

    Attributes:
        size: s = |S| of the smaller coalitions.
        is_middle: Whether 2s = n, so that both coalitions of a pair have this size.
        pairs: Shape (c,), int64: places of its pairs among all.
        members: Shape (n, c), float64: 1 where the player is in S, else 0.
        mass: For how many strata it stands: 1, and more where neighbouring sizes have no pair.
        undrawn: Share of the pairs of this size that the plan does not hold, in [0, 1); 0 when exhausted.
    """

    size: int
    is_middle: bool
    pairs: Integers
    members: Floats
    mass: float
    undrawn: float

    @property
    def inside(self) -> Floats:
        """Number of pairs in which each player is in S, shape (n,)."""
        return np.cumsum(self.members, axis=1)[:, -1]


@dataclass(frozen=True)
class PairDesign:
    """A stratified plan as complement pairs.

    Attributes:
        small: Shape (M, n), bool: S of each pair.
        small_rows: Shape (M,), int64: row of S in the plan.
        large_rows: Shape (M,), int64: row of N∖S in the plan.
        sizes: Shape (M,), int64: |S|.
        strata: The sizes of which there are pairs, ascending.
        folds: Shape (M,), int64: fold of each pair, −1 for the singletons and leave-one-outs, which every plan holds.
        pairs_in_open_size: Smallest number of pairs in a size that is not exhausted; None when all are.
        row_weight: Shape (M,), float64: how much the squared residual of a pair adds to the variance of the estimate.
    """

    small: Booleans
    small_rows: Integers
    large_rows: Integers
    sizes: Integers
    strata: tuple[Stratum, ...]
    folds: Integers
    pairs_in_open_size: int | None
    row_weight: Floats

    @property
    def n_players(self) -> int:
        """Number of players."""
        return int(self.small.shape[1])

    @cached_property
    def triples(self) -> Columns:
        """Interactions of three players over the pairs: the part of the proxy that the utilities do not shape."""
        return triple_columns(self.small)

    @property
    def n_folds(self) -> int:
        """Number of folds that hold a pair."""
        return int(self.folds.max(initial=-1)) + 1


def pair_design(plan: Booleans, seed: int) -> PairDesign:
    """The design of a stratified plan of at least 2n + 2 coalitions.

    Args:
        plan: Shape (R, n), bool, n ≥ 3: a plan of `stratified_plan`, R ≥ 2n + 2.
        seed: ≥ 0. Chooses the folds.

    Returns:
        The design; its pairs are the singletons with the leave-one-outs, then the pairs of the plan in its order.

    Cost:
        O(M · n), remembered for the last few plans.
    """
    return _pair_design(plan.tobytes(), plan.shape[1], seed)


@lru_cache(maxsize=4)
def _pair_design(data: bytes, n: int, seed: int) -> PairDesign:
    plan = np.frombuffer(data, dtype=bool).reshape(-1, n)
    n_core = len(core_plan(n))
    drawn = np.arange(n_core, len(plan), 2)
    small_rows = np.concatenate([np.arange(2, 2 + n), drawn])
    large_rows = np.concatenate([np.arange(2 + n, n_core), drawn + 1])
    small = plan[small_rows]
    sizes = small.sum(axis=1)
    masses = _masses(n, np.unique(sizes).tolist())
    strata = tuple(_stratum(small, sizes, size, mass) for size, mass in masses.items())
    row_weight = np.zeros(len(small))
    for stratum in strata:
        # The variance of a difference of two means over s/n and 1 − s/n of the pairs, or of one mean.
        spread = 1.0 if stratum.is_middle else n * n / (stratum.size * (n - stratum.size))
        row_weight[stratum.pairs] = spread * stratum.undrawn / len(stratum.pairs) ** 2
    bits = np.random.PCG64(np.random.SeedSequence([seed, n, n + 1]))
    folds = np.full(len(small), -1)
    n_folds = max(FOLDS, -(-len(drawn) // LARGEST_FOLD))
    folds[n + np.argsort(bits.random_raw(len(drawn)), kind="stable")] = np.arange(len(drawn)) % n_folds
    open_counts = [len(stratum.pairs) for stratum in strata if stratum.undrawn]
    missing = [0] if len(strata) < n // 2 else []
    arrays = (
        small,
        small_rows.astype(np.int64),
        large_rows.astype(np.int64),
        folds.astype(np.int64),
        row_weight,
        sizes.astype(np.int64),
    )
    for array in arrays:
        array.flags.writeable = False
    return PairDesign(
        small=arrays[0],
        small_rows=arrays[1],
        large_rows=arrays[2],
        sizes=arrays[5],
        strata=strata,
        folds=arrays[3],
        pairs_in_open_size=min(open_counts + missing, default=None),
        row_weight=row_weight,
    )


def _masses(n: int, half_sizes: list[int]) -> dict[int, float]:
    """For how many strata each size that has pairs stands; sizes without a pair are interpolated between neighbours."""
    mass = dict.fromkeys(half_sizes, 0.0)
    for size in range(1, n // 2 + 1):
        own = 0.5 if 2 * size == n else 1.0
        above = next((s for s in half_sizes if s >= size), half_sizes[-1])
        below = max((s for s in half_sizes if s <= size), default=above)
        share = 0.5 if above == below else (size - below) / (above - below)
        mass[above] += own * share
        mass[below] += own * (1.0 - share)
    return {size: mass[size] / (0.5 if 2 * size == n else 1.0) for size in half_sizes}


def _stratum(small: Booleans, sizes: Integers, size: int, mass: float) -> Stratum:
    """The pairs of one size."""
    n = small.shape[1]
    pairs = np.flatnonzero(sizes == size).astype(np.int64)
    members = np.ascontiguousarray(small[pairs].T, dtype=np.float64)
    members.flags.writeable = False
    undrawn = 1.0 - len(pairs) / pair_capacity(n, size)
    return Stratum(size, 2 * size == n, pairs, members, mass, undrawn)
