"""One kernel that solves every utility that is linear in the sorted rewards, exactly.

Legend: `B` sets, `n` players (candidates) of one set, `s` the size of a coalition, `u` how many of its members lie
above a level, `m` how many of all players do.

Every such utility is decided by its *level game*: give each player reward 0 or 1, and let `level(s, u)` be the
utility of a coalition of s players of which u have reward 1. Sorting the rewards a_(1) ≤ … ≤ a_(n) cuts any set into
n such games, one for each step Δ_t = a_(t) − a_(t−1), in which the m = n − t + 1 best players have 1:

    v(S) = reference + Σ_t Δ_t · level(|S|, |S ∩ {t, …, n}|)   for S ≠ ∅,        v(∅) = empty

`max` pays level(s, u) = 1[u ≥ 1], `mean` pays u/s, and so on. A level game has two kinds of players only, so its
value is a pair of numbers, and the value of the set is a cumulative sum over the sorted steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalitions import check_size_weights
from creditd.credit.group_sums import added_up, running_sums

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

MAX_PLAYERS = 1000
"""Largest set whose binomial coefficients stay within float64."""


class LevelUtility(ABC):
    """What the kernel asks of a utility of sorted rewards, with the answers that most of them give.

    A utility is frozen and hashable: the values of its level games are remembered under `level_game`.
    """

    type: ClassVar[str]

    @property
    @abstractmethod
    def empty_utility(self) -> float:
        """v(∅), in units of the utility."""

    @property
    @abstractmethod
    def level_game(self) -> LevelUtility:
        """The utility less what does not enter its level game, so that one game serves every v(∅) and threshold."""

    @property
    def reference(self) -> float:
        """Utility of a non-empty coalition whose members all stand at the lowest level, in units of the utility."""
        return self.empty_utility

    def prepare(self, rewards: Floats) -> Floats:
        """Rewards as the level games see them, same shape."""
        return rewards

    @abstractmethod
    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast; nobody is worth 0."""


class GivenEmpty(LevelUtility):
    """A utility whose v(∅) is one of its attributes."""

    empty: float

    @property
    def empty_utility(self) -> float:
        """v(∅), in units of the utility."""
        return self.empty


@dataclass(frozen=True)
class RankedRewards:
    """The rewards of B sets as a utility sees them, sorted once for every question about them.

    Attributes:
        ascending: Shape (n, B), float64, C-contiguous: set b in column b, lowest reward first.
        places: Shape (B, n), int64: where these rewards stand in the flat (B · n) array that they were taken from.
    """

    ascending: Floats
    places: Integers


def ranked(rewards: Floats, utility: LevelUtility) -> RankedRewards:
    """Rewards as a utility sees them, in ascending order.

    Args:
        rewards: Shape (B, n), float64, reward units, finite.
        utility: The set utility.

    Returns:
        Equal rewards stand in any order: they have equal semivalues, to the last bit.

    Cost:
        O(B · n log n).
    """
    n_sets, n = rewards.shape
    prepared = utility.prepare(rewards)
    places = np.argsort(prepared, axis=-1)
    places += (np.arange(n_sets) * n)[:, None]
    return RankedRewards(ascending=np.ascontiguousarray(prepared.reshape(-1)[places].T), places=places)


def grand_utilities(rewards: Floats, utility: LevelUtility) -> Floats:
    """v(N) of each set: the utility of all the rewards given.

        v(N) = reference + Σ_t Δ_t · level(n, n − t + 1) = Σ_j [level(n, n−j+1) − level(n, n−j)] · a_(j) + …

    Args:
        rewards: Shape (B, n), float64, reward units, finite. n = 0 gives v(∅).
        utility: The set utility.

    Returns:
        Shape (B,), float64, reward units. Permuting a row changes no bit.

    Cost:
        O(B · n log n).
    """
    return ranked_grand_utilities(ranked(rewards, utility), utility)


def ranked_grand_utilities(rewards: RankedRewards, utility: LevelUtility) -> Floats:
    """`grand_utilities` of rewards that are sorted already.

    Args:
        rewards: B sets of n rewards, as `utility` sees them.
        utility: The set utility.

    Returns:
        Shape (B,), float64, reward units.

    Cost:
        O(B · n).
    """
    n, n_sets = rewards.ascending.shape
    if n == 0:
        return np.full(n_sets, float(utility.empty_utility))
    above = np.arange(n, -1, -1, dtype=np.float64)
    levels = utility.level(np.full(n + 1, float(n)), above)
    weights = levels[:-1] - levels[1:]
    totals = added_up(weights[:, None] * rewards.ascending)
    rest = utility.reference * (1.0 - levels[0])
    # `sum` and `top_m` have reference 0; the others reach level 1 at u = s unless the set is too small for its rank.
    return totals + rest if rest else totals


def semivalues(rewards: Floats, utility: LevelUtility, size_weights: Floats) -> Floats:
    """Semivalue of each candidate: its marginal utility averaged over coalitions, weighted by their size.

        φ_i = Σ_{s=0}^{n−1} q_s · mean over coalitions S of size s without i of [v(S ∪ i) − v(S)]
        φ_(j) = Σ_{t≤j} Δ_t·α(n−t+1) + Σ_{t>j} Δ_t·β(n−t+1) + q_0·(reference − v(∅)),     Δ_1 = a_(1) − reference

    where α(m) and β(m) are the values of a player above and of a player below in the level game with m players above
    (`level_values`). q_s = 1/n is the Shapley value; for `max` it makes α(m) = 1/m and β = 0, the airport game.

    Args:
        rewards: Shape (B, n), float64, reward units, finite; any sign, ties allowed. n ≥ 1.
        utility: The set utility.
        size_weights: Shape (n,), float64: q_s for coalitions of s other candidates, s = 0 … n−1.

    Returns:
        Shape (B, n), float64, reward units. Equal rewards get equal bits; permuting a row permutes its result to the
        last bit; a row does not depend on the rest of the batch. With q_s = 1/n it sums to v(N) − v(∅).

    Raises:
        ValueError: If the shapes do not fit, or n > 1,000.

    Cost:
        O(B · n log n); the coefficients of a (utility, n, q) cost O(n²) once and are remembered.

    Reference:
        Littlechild and Owen 1973 for max; ShapE-GRPO, arXiv:2603.29871v1, uses max; PKPO, arXiv:2505.15201, is the
        member q = e_{k−1}·k/n of the family.

    Differs from the paper:
        The paper treats max only, with v(∅) unstated; here v(∅) is always explicit.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 1:
        raise ValueError(f"rewards must have shape (B, n) with n ≥ 1: got {rewards.shape}")
    return ranked_semivalues(ranked(rewards, utility), utility, size_weights)


def ranked_semivalues(rewards: RankedRewards, utility: LevelUtility, size_weights: Floats) -> Floats:
    """`semivalues` of rewards that are sorted already.

    Args:
        rewards: B sets of n ≥ 1 rewards, as `utility` sees them.
        utility: The set utility.
        size_weights: Shape (n,), float64.

    Returns:
        Shape (B, n), float64, reward units, in the order that the rewards had before they were sorted.

    Raises:
        ValueError: If the weights do not have shape (n,), or n > 1,000.

    Cost:
        O(B · n); the coefficients of a (utility, n, q) cost O(n²) once and are remembered.
    """
    ascending = rewards.ascending
    above, below = (values[:0:-1, None] for values in level_values(utility, len(ascending), size_weights))
    steps = ascending.copy()
    steps[1:] -= ascending[:-1]
    steps[0] -= utility.reference
    values = running_sums(steps * above)
    if below.any():
        values[:-1] += running_sums((steps * below)[::-1])[::-1][1:]
    # Adding +0.0 also turns a −0.0 into 0.0, so that tied candidates agree in the sign of zero.
    values += size_weights[0] * (utility.reference - utility.empty_utility) + 0.0
    result = np.empty(rewards.places.shape)
    result.reshape(-1)[rewards.places] = values.T
    return result


def level_values(utility: LevelUtility, n_players: int, size_weights: Floats) -> tuple[Floats, Floats]:
    """Semivalues of the two kinds of players of each level game: α(m) of a player above, β(m) of a player below.

        α(m) = Σ_s q_s Σ_u P(u of the m − 1 others above are among s drawn) · [level(s + 1, u + 1) − level(s, u)]
        β(m) = Σ_s q_s Σ_u P(u of the m others above are among s drawn) · [level(s + 1, u) − level(s, u)]

    Args:
        utility: The set utility; v(∅) and thresholds do not enter.
        n_players: n ≥ 1.
        size_weights: Shape (n,), float64: q_s for coalitions of s other players, s = 0 … n−1.

    Returns:
        α and β, each of shape (n + 1,), float64, read-only, indexed by m; 0 where there is no such player: α(0), β(n).
        With q_s = 1/n, m·α(m) + (n − m)·β(m) = level(n, m).

    Raises:
        ValueError: If the weights do not have shape (n,), or n > 1,000.

    Cost:
        O(n²), and once for each (level game, n, q): remembered for the last 512.
    """
    if n_players > MAX_PLAYERS:
        raise ValueError(
            f"binomial coefficients of n players leave float64: got n = {n_players}, expected at most {MAX_PLAYERS}"
        )
    check_size_weights(size_weights, n_players)
    return _level_values(utility.level_game, n_players, size_weights.tobytes())


@lru_cache(maxsize=512)
def _level_values(utility: LevelUtility, n: int, size_weights: bytes) -> tuple[Floats, Floats]:
    """α(m) and β(m) for m = 0 … n, built up over the number s of others.

    Column u holds the expected gain when u of the s others are above. A random coalition that is smaller than s misses
    somebody: it is a random coalition of the s − 1 who remain when one of the s, above with chance u/s, is left out.
    The coalition of all s others adds its own gain. Every step is a mean of two neighbours, so errors do not grow.
    """
    weights = np.frombuffer(size_weights, dtype=np.float64)
    gains = np.zeros((2, 1))
    for s in range(n):
        size, u = np.full(s + 1, float(s)), np.arange(s + 1.0)
        if s > 0:
            fewer = gains
            gains = np.zeros((2, s + 1))
            gains[:, 1:] = u[1:] / s * fewer
            gains[:, :-1] += (size - u)[:-1] / s * fewer
        if weights[s]:
            before = utility.level(size, u)
            gains[0] += weights[s] * (utility.level(size + 1.0, u + 1.0) - before)
            gains[1] += weights[s] * (utility.level(size + 1.0, u) - before)
    above, below = np.append(0.0, gains[0]), np.append(gains[1], 0.0)
    above.flags.writeable = below.flags.writeable = False
    return above, below
