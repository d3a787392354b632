"""Columns from plain Python sets, and the pairs (library object, oracle) that tests run over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from credit import closed_oracles, oracles
from credit.oracles import OneSet
from creditd.credit import (
    AllPass,
    Blend,
    CandidateSets,
    CVaR,
    ExpectedMax,
    LeaveOneOut,
    Max,
    MaxAtK,
    Mean,
    Median,
    Min,
    Mixture,
    OwnReward,
    PassAtK,
    PrefixGain,
    Quantile,
    RthBest,
    SetReward,
    Shapley,
    Sum,
    Threshold,
    TopM,
    TopMMean,
    TrimmedMean,
)

EXACT = 1e-10
"""Exact values equal enumeration to this share of the largest utility (the promise of the library)."""
ENUMERATED = 1e-12
"""Closed forms equal enumeration, and rational arithmetic, to this share of the largest utility."""
EFFICIENCY = 1e-9
"""Credits of an efficient rule close to this share of the largest utility (the promise of the library)."""
CENTRED = 1e-12
"""Centred advantages average to zero within this share of the largest of them."""
WORKED = 1e-9
"""Worked values are written with ten digits after the point."""

UTILITIES = {
    "max": (Max(), oracles.best()),
    "max_empty": (Max(empty=0.25), oracles.best(empty=0.25)),
    "max_floor": (Max(floor=0.25), oracles.best(floor=0.25)),
    "min": (Min(empty=-0.5), oracles.worst(empty=-0.5)),
    "sum": (Sum(empty=0.75), oracles.total(empty=0.75)),
    "mean": (Mean(empty=0.125), oracles.average(empty=0.125)),
    "top_m": (TopM(m=2, empty=-0.25), oracles.total_of_best(2, empty=-0.25)),
    "rth_best": (RthBest(r=2, default=-1.0), oracles.rth_largest(2, default=-1.0)),
    "rth_best_empty": (RthBest(r=3, default=0.5, empty=2.0), oracles.rth_largest(3, default=0.5, empty=2.0)),
    "threshold": (Threshold(threshold=0.25, count=2, empty=0.5), oracles.enough(0.25, 2, empty=0.5)),
    "median": (Median(empty=-0.75), closed_oracles.middle(empty=-0.75)),
    "quantile": (Quantile(q=0.3, empty=0.625), closed_oracles.at_share(0.3, empty=0.625)),
    "trimmed_mean": (TrimmedMean(fraction=0.29, empty=0.375), closed_oracles.trimmed(0.29, empty=0.375)),
    "cvar": (CVaR(alpha=0.3, empty=-0.125), closed_oracles.mean_of_tail(0.3, "worst", empty=-0.125)),
    "cvar_best": (CVaR(alpha=0.7, empty=1.5, tail="best"), closed_oracles.mean_of_tail(0.7, "best", empty=1.5)),
    "top_m_mean": (TopMMean(m=3, empty=0.875), closed_oracles.mean_of_best(3, empty=0.875)),
    "max_at_k": (ExpectedMax(k=3, empty=-0.375), closed_oracles.best_of_a_draw(3, empty=-0.375)),
    "pass_at_k": (PassAtK(threshold=0.25, k=2, empty=0.25), closed_oracles.pass_in_a_draw(0.25, 2, empty=0.25)),
    "all_pass": (AllPass(threshold=-0.5, empty=0.75), closed_oracles.everyone(-0.5, empty=0.75)),
}
"""Every utility of sorted rewards, with v(∅) ≠ 0 wherever it can be, beside its definition."""

RULES = {
    "shapley": (Shapley(), ("shapley",)),
    "leave_one_out": (LeaveOneOut(), ("leave_one_out",)),
    "own_reward": (OwnReward(), ("own_reward",)),
    "set_reward": (SetReward(), ("set_reward",)),
    "prefix_gain": (PrefixGain(), ("prefix_gain",)),
    "max_at_k": (MaxAtK(k=2), ("max_at_k", 2)),
    "blend": (Blend(Shapley(), LeaveOneOut(), 0.375), ("blend", ("shapley",), ("leave_one_out",), 0.375)),
}
"""Every rule that fits sets of any size, beside its definition."""


def mixture_for(n: int) -> tuple[Mixture, tuple]:
    """A mixture with unequal weights of both signs for sets of n candidates, beside its definition."""
    weights = tuple(0.75 - 0.5 * k for k in range(n))
    return Mixture(weights), ("mixture", weights)


grid = st.integers(-16, 16).map(lambda v: v / 8)
"""Rewards with many ties and no rounding."""
anything = st.floats(-1e3, 1e3, allow_nan=False, allow_subnormal=False)
"""Rewards of any sign and of very different sizes."""
rewards_of_sets = st.one_of(st.lists(grid, min_size=1, max_size=6), st.lists(anything, min_size=1, max_size=6))


def games_of_tables(max_players: int, min_players: int = 1) -> st.SearchStrategy[list[float]]:
    """All 2ⁿ utilities of any game, v(∅) included."""
    return st.integers(min_players, max_players).flatmap(
        lambda n: st.lists(st.one_of(grid, anything), min_size=1 << n, max_size=1 << n)
    )


def columns(sets: Sequence[OneSet], *, n_groups: int | None = None) -> CandidateSets:
    """A batch as columns; optional columns appear when a set has them."""
    rewards = [np.nan if r is None else r for one in sets for r in one.rewards]
    spans = [span for one in sets for span in one.spans or []]
    whole = [one.set_reward for one in sets]
    tables = [v for one in sets for v in one.values or []]
    has_tables = any(one.values is not None for one in sets)
    has_set_rewards = any(r is not None for r in whole)
    return CandidateSets(
        rewards=np.array(rewards, dtype=np.float64),
        row_splits=splits(len(one.rewards) for one in sets),
        groups=np.array([one.group for one in sets], dtype=np.int64),
        n_groups=max((one.group for one in sets), default=-1) + 1 if n_groups is None else n_groups,
        missing=np.array([r is None for one in sets for r in one.rewards], dtype=np.bool_),
        spans=np.array(spans, dtype=np.int64).reshape(-1, 2) if any(one.spans is not None for one in sets) else None,
        n_tokens=np.array([one.n_tokens for one in sets], dtype=np.int64),
        set_rewards=np.array([np.nan if r is None else r for r in whole]) if has_set_rewards else None,
        set_rewards_missing=np.array([r is None for r in whole]) if has_set_rewards else None,
        text_codes=_joined([one.texts for one in sets]),
        ranks=_joined([one.ranks for one in sets]),
        tables=np.array(tables, dtype=np.float64) if has_tables else None,
        table_splits=splits(len(one.values or []) for one in sets) if has_tables else None,
    )


def splits(lengths) -> np.ndarray:
    """Row splits of runs of the given lengths."""
    return np.concatenate([[0], np.cumsum(np.fromiter(lengths, dtype=np.int64))]).astype(np.int64)


def _joined(parts: Sequence[list[int] | None]) -> np.ndarray | None:
    """One integer column, or None when no set has it."""
    if all(part is None for part in parts):
        return None
    return np.array([value for part in parts for value in part or []], dtype=np.int64)
