"""Set utilities of sorted rewards, each by its level game: what a coalition pays whose members have reward 0 or 1.

Legend: `r` the rewards of a coalition, `s` its size, `u` how many of its members have reward 1 in the level game.
Every utility is linear in the sorted rewards, so the kernel of `level_games` gives every semivalue of it exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalitions import chance_of_drawing_none
from creditd.credit.level_games import GivenEmpty, LevelUtility
from creditd.credit.partial_means import CVaR, Median, Quantile, TopMMean, TrimmedMean

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Max(LevelUtility):
    """Best reward of the set, v(S) = max r; with `floor` b, v(S) = max(b, max r) and v(∅) = b.

    Serves best-of-n: the user picks one candidate.

    Attributes:
        empty: v(∅), reward units. With a floor it is the floor: leave it 0 or give the same number.
        floor: b, reward units, or None. Every candidate at or below b then gets Shapley credit exactly 0.
    """

    type: ClassVar[str] = "max"
    empty: float = 0.0
    floor: float | None = None

    def __post_init__(self) -> None:
        if self.floor is not None and self.empty not in {0.0, self.floor}:
            raise ValueError(
                f"empty and floor both define v(∅): got {self.empty} and {self.floor}, expected one of them"
            )

    @property
    def empty_utility(self) -> float:
        """v(∅), reward units."""
        return self.empty if self.floor is None else self.floor

    @property
    def level_game(self) -> Max:
        """The level game of every floor and every v(∅)."""
        return Max()

    def prepare(self, rewards: Floats) -> Floats:
        """Rewards as the level games see them, same shape."""
        return rewards if self.floor is None else np.maximum(rewards, self.floor)

    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return np.where(u >= 1, 1.0, 0.0 * s)


@dataclass(frozen=True)
class Min(GivenEmpty):
    """Worst reward of the set, v(S) = min r.

    Serves robustness: every candidate has to be good.

    Attributes:
        empty: v(∅), reward units. Explicit, because no set of rewards defines it.
    """

    type: ClassVar[str] = "min"
    empty: float

    @property
    def level_game(self) -> Min:
        """The level game of every v(∅)."""
        return Min(empty=0.0)

    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return np.where((u >= s) & (s >= 1), 1.0, 0.0)


@dataclass(frozen=True)
class Sum(GivenEmpty):
    """Total reward of the set, v(S) = Σ r.

    Serves additive rewards, where every semivalue is the candidate's own reward, as the plain baseline.

    Attributes:
        empty: v(∅), reward units.
    """

    type: ClassVar[str] = "sum"
    empty: float = 0.0

    @property
    def level_game(self) -> Sum:
        """The level game of every v(∅)."""
        return Sum()

    @property
    def reference(self) -> float:
        """0: a total counts from zero whatever v(∅) is."""
        return 0.0

    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return u + 0.0 * s


@dataclass(frozen=True)
class Mean(GivenEmpty):
    """Mean reward of the set, v(S) = Σ r / |S|.

    Serves average quality, and pass rates of 0/1 rewards.

    Attributes:
        empty: v(∅), reward units. Explicit, because no set of rewards defines it.
    """

    type: ClassVar[str] = "mean"
    empty: float

    @property
    def level_game(self) -> Mean:
        """The level game of every v(∅)."""
        return Mean(empty=0.0)

    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return u / np.maximum(s, 1.0)


@dataclass(frozen=True)
class TopM(GivenEmpty):
    """Sum of the m best rewards of the set (of all of them when it holds fewer).

    Serves slates of m items: the user takes the m best.

    Attributes:
        m: How many rewards count, ≥ 1.
        empty: v(∅), reward units.
    """

    type: ClassVar[str] = "top_m"
    m: int
    empty: float = 0.0

    def __post_init__(self) -> None:
        if self.m < 1:
            raise ValueError(f"top_m needs m ≥ 1: got {self.m}")

    @property
    def level_game(self) -> TopM:
        """The level game of every v(∅)."""
        return TopM(m=self.m)

    @property
    def reference(self) -> float:
        """0: a total counts from zero whatever v(∅) is."""
        return 0.0

    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return np.minimum(u, float(self.m)) + 0.0 * s


@dataclass(frozen=True)
class RthBest(LevelUtility):
    """The r-th best reward of the set; `default` for a non-empty set of fewer than r candidates.

    Serves depth: r candidates have to be good, as where r of them are taken or r − 1 may fail.

    Attributes:
        r: Rank, 1 is the best.
        default: Utility of a non-empty coalition that is too small, reward units.
        empty: v(∅), reward units; None means `default`.
    """

    type: ClassVar[str] = "rth_best"
    r: int
    default: float = 0.0
    empty: float | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"rth_best needs r ≥ 1: got {self.r}")

    @property
    def empty_utility(self) -> float:
        """v(∅), reward units."""
        return self.default if self.empty is None else self.empty

    @property
    def level_game(self) -> RthBest:
        """The level game of every default and every v(∅)."""
        return RthBest(r=self.r)

    @property
    def reference(self) -> float:
        """Utility of a non-empty coalition that is too small, reward units."""
        return self.default

    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return np.where(u >= self.r, 1.0, 0.0 * s)


class PassOrFail(GivenEmpty):
    """A utility of how many candidates reach a threshold."""

    threshold: float

    def prepare(self, rewards: Floats) -> Floats:
        """1 for a candidate that passes and 0 for one that fails, same shape."""
        return (rewards >= self.threshold).astype(np.float64)


@dataclass(frozen=True)
class Threshold(PassOrFail):
    """1 when at least `count` candidates of the set reach the threshold (reward ≥ threshold), else 0.

    Serves verifiable tasks: solved when enough candidates pass; `count` 1 is "any pass".

    Attributes:
        threshold: Smallest reward that passes, reward units.
        count: How many have to pass, ≥ 1.
        empty: v(∅), in units of the utility (0 to 1).
    """

    type: ClassVar[str] = "threshold"
    threshold: float
    count: int = 1
    empty: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"threshold needs count ≥ 1: got {self.count}")

    @property
    def level_game(self) -> Threshold:
        """The level game of every threshold and every v(∅)."""
        return Threshold(threshold=0.0, count=self.count)

    @property
    def reference(self) -> float:
        """0: a coalition without enough passes."""
        return 0.0

    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return np.where(u >= self.count, 1.0, 0.0 * s)


@dataclass(frozen=True)
class AllPass(PassOrFail):
    """1 when every candidate of the set reaches the threshold (reward ≥ threshold), else 0.

    Serves reliability (pass^k): one failure spoils the set.

    Attributes:
        threshold: Smallest reward that passes, reward units.
        empty: v(∅), in units of the utility (0 to 1). Explicit: nobody fails in the empty set, and nobody passes.
    """

    type: ClassVar[str] = "all_pass"
    threshold: float
    empty: float

    @property
    def level_game(self) -> Min:
        """That of `min`: the worst of rewards that are 0 or 1."""
        return Min(empty=0.0)

    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return self.level_game.level(s, u)


@dataclass(frozen=True)
class ExpectedMax(GivenEmpty):
    """Expected best reward of k candidates drawn from the set without replacement (of all when it holds fewer).

    Serves max@k estimated from the set: k = 1 is the mean, k ≥ |S| the maximum.

    Attributes:
        k: How many are drawn, ≥ 1.
        empty: v(∅), reward units.
    """

    type: ClassVar[str] = "max_at_k"
    k: int
    empty: float = 0.0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"max_at_k needs k: got {self.k}, expected k ≥ 1")

    @property
    def level_game(self) -> ExpectedMax:
        """The level game of every v(∅)."""
        return ExpectedMax(k=self.k)

    def level(self, s: Floats, u: Floats) -> Floats:
        """Probability that a draw from s players meets one of the u who have reward 1; s and u broadcast."""
        return 1.0 - chance_of_drawing_none(s, u, self.k)


@dataclass(frozen=True)
class PassAtK(PassOrFail):
    """Probability that one of k candidates drawn from the set passes: 1 − C(failures, k') / C(s, k'), k' = min(k, s).

    Serves pass@k estimated from the set without bias, as code and mathematics benchmarks report it.

    Attributes:
        threshold: Smallest reward that passes, reward units.
        k: How many are drawn, ≥ 1; a smaller set is drawn whole.
        empty: v(∅), in units of the utility (0 to 1).
    """

    type: ClassVar[str] = "pass_at_k"
    threshold: float
    k: int
    empty: float = 0.0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"pass_at_k needs k: got {self.k}, expected k ≥ 1")

    @property
    def level_game(self) -> ExpectedMax:
        """That of `max_at_k`: the best of k rewards that are 0 or 1."""
        return ExpectedMax(k=self.k)

    @property
    def reference(self) -> float:
        """0: a coalition in which nobody passes."""
        return 0.0

    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return self.level_game.level(s, u)


OrderStatistic: TypeAlias = (
    Max
    | Min
    | Sum
    | Mean
    | TopM
    | TopMMean
    | RthBest
    | Median
    | Quantile
    | TrimmedMean
    | CVaR
    | ExpectedMax
    | Threshold
    | AllPass
    | PassAtK
)
"""Every utility of sorted rewards."""
