"""Set utilities that average a part of the sorted rewards: the middle, the best, a tail, the place of a quantile.

Legend: `s` the size of a coalition, `u` how many of its members have reward 1 in the level game, so that s − u of its
rewards, the lowest ones, are 0. None of these is defined without rewards: v(∅) is always explicit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.level_games import GivenEmpty

Floats: TypeAlias = NDArray[np.float64]

WHOLE_CANDIDATE = 1e-9
"""Share of a candidate by which a product such as 0.29·100 may fall short of a whole number of candidates."""


@dataclass(frozen=True)
class Median(GivenEmpty):
    """Median reward of the set; of an even number of rewards, the mean of the two in the middle.

    Serves typical quality without regard to outliers, as where rewards come from a noisy judge.

    Attributes:
        empty: v(∅), reward units.
    """

    type: ClassVar[str] = "median"
    empty: float

    @property
    def level_game(self) -> Median:
        """The level game of every v(∅)."""
        return Median(empty=0.0)

    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return np.where(s >= 1, 0.5 * np.sign(2.0 * u - s) + 0.5, 0.0)


@dataclass(frozen=True)
class Quantile(GivenEmpty):
    """Quantile of the rewards of the set, linear between neighbours (the default of `numpy.quantile`).

    Serves a floor or a ceiling that single candidates cannot move: q = 0 is the minimum, 1 the maximum, ½ the median.

    Attributes:
        q: Place among the s sorted rewards, as a share of the way from the first to the last; 0 to 1.
        empty: v(∅), reward units.
    """

    type: ClassVar[str] = "quantile"
    q: float
    empty: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.q <= 1.0:
            raise ValueError(f"quantile needs a share: got q = {self.q}, expected 0 to 1")

    @property
    def level_game(self) -> Quantile:
        """The level game of every v(∅)."""
        return Quantile(q=self.q, empty=0.0)

    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        place = self.q * (s - 1.0)
        return np.where(s >= 1, np.clip(place - (s - u) + 1.0, 0.0, 1.0), 0.0)


@dataclass(frozen=True)
class TrimmedMean(GivenEmpty):
    """Mean of the rewards that remain when a share of them is cut from each end of the sorted set.

    Serves average quality without regard to outliers; 0 is the mean, towards ½ the median.

    Attributes:
        fraction: Share cut from each end, 0 ≤ fraction < ½: floor(fraction·s + 1e-9) rewards, and never all of them
            (one or two in the middle remain).
        empty: v(∅), reward units.
    """

    type: ClassVar[str] = "trimmed_mean"
    fraction: float
    empty: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.fraction < 0.5:
            raise ValueError(f"trimmed_mean needs a share: got fraction = {self.fraction}, expected 0 ≤ fraction < 0.5")

    @property
    def level_game(self) -> TrimmedMean:
        """The level game of every v(∅)."""
        return TrimmedMean(fraction=self.fraction, empty=0.0)

    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        size = np.maximum(s, 1.0)
        cut = np.minimum(np.floor(self.fraction * size + WHOLE_CANDIDATE), np.floor((size - 1.0) / 2.0))
        kept = size - 2.0 * cut
        return np.clip(u - cut, 0.0, kept) / kept


@dataclass(frozen=True)
class CVaR(GivenEmpty):
    """Mean of the worst (or best) α·s rewards of the set, the last of them counted in part.

    Serves risk: `worst` is the conditional value at risk, an objective that hedges; `best` one that explores.

    Attributes:
        alpha: Share α of the rewards that counts, 0 < α ≤ 1; 1 is the mean, and below 1/s the extreme itself.
        empty: v(∅), reward units.
        tail: Which end counts, "worst" or "best".
    """

    type: ClassVar[str] = "cvar"
    alpha: float
    empty: float
    tail: Literal["worst", "best"] = "worst"

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha <= 1.0:
            raise ValueError(f"cvar needs a share: got alpha = {self.alpha}, expected 0 < alpha ≤ 1")
        if self.tail not in {"worst", "best"}:
            raise ValueError(f"cvar has two tails: got {self.tail!r}, expected 'worst' or 'best'")

    @property
    def level_game(self) -> CVaR:
        """The level game of every v(∅)."""
        return CVaR(alpha=self.alpha, empty=0.0, tail=self.tail)

    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        counted = self.alpha * np.maximum(s, 1.0)
        ones = u if self.tail == "best" else counted - (s - u)
        return np.where(s >= 1, np.clip(ones, 0.0, counted) / counted, 0.0)


@dataclass(frozen=True)
class TopMMean(GivenEmpty):
    """Mean of the m best rewards of the set (of all of them when it holds fewer).

    Serves slates of m items that are judged by their average: m = 1 is the maximum, m ≥ |S| the mean.

    Attributes:
        m: How many rewards count, ≥ 1.
        empty: v(∅), reward units.
    """

    type: ClassVar[str] = "top_m_mean"
    m: int
    empty: float

    def __post_init__(self) -> None:
        if self.m < 1:
            raise ValueError(f"top_m_mean needs m: got {self.m}, expected m ≥ 1")

    @property
    def level_game(self) -> TopMMean:
        """The level game of every v(∅)."""
        return TopMMean(m=self.m, empty=0.0)

    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return np.minimum(u, float(self.m)) / np.clip(s, 1.0, float(self.m))
