"""Set utilities that are linear in the sorted rewards, and the one kernel that solves them all exactly.

Legend: `B` sets, `n` players (candidates) of one set, `s` the size of a coalition, `u` how many of its members lie
above a level.

Every utility here is decided by its *level game*: give each player reward 0 or 1, and let `level(s, u)` be the
utility of a coalition of s players of which u have reward 1. Sorting the rewards a_(1) ≤ … ≤ a_(n) cuts any set into
n such games, one for each step Δ_t = a_(t) − a_(t−1), in which the n − t + 1 best players have 1:

    v(S) = reference + Σ_t Δ_t · level(|S|, |S ∩ {t, …, n}|)   for S ≠ ∅,        v(∅) = empty

`max` pays level(s, u) = 1[u ≥ 1], `mean` pays u/s, and so on. A level game has two kinds of players only, so its
value is a pair of numbers, and the value of the set is a cumulative sum over the sorted steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

MAX_PLAYERS = 1000


@dataclass(frozen=True)
class Max:
    """Best reward of the set, v(S) = max r; with `floor` b, v(S) = max(b, max r) and v(∅) = b.

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
    def reference(self) -> float:
        """Utility of a non-empty coalition whose members all stand at the lowest level, reward units."""
        return self.empty_utility

    def prepare(self, rewards: Floats) -> Floats:
        """Rewards as the level games see them, same shape."""
        return rewards if self.floor is None else np.maximum(rewards, self.floor)

    @staticmethod
    def level(s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return np.where(u >= 1, 1.0, 0.0 * s)


@dataclass(frozen=True)
class Min:
    """Worst reward of the set, v(S) = min r.

    Attributes:
        empty: v(∅), reward units. Explicit, because no set of rewards defines it.
    """

    type: ClassVar[str] = "min"
    empty: float

    @property
    def empty_utility(self) -> float:
        """v(∅), reward units."""
        return self.empty

    @property
    def reference(self) -> float:
        """Utility of a non-empty coalition whose members all stand at the lowest level, reward units."""
        return self.empty

    @staticmethod
    def prepare(rewards: Floats) -> Floats:
        """Rewards as the level games see them, same shape."""
        return rewards

    @staticmethod
    def level(s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return np.where((u >= s) & (s >= 1), 1.0, 0.0)


@dataclass(frozen=True)
class Sum:
    """Total reward of the set, v(S) = Σ r.

    Attributes:
        empty: v(∅), reward units.
    """

    type: ClassVar[str] = "sum"
    empty: float = 0.0
    reference: ClassVar[float] = 0.0

    @property
    def empty_utility(self) -> float:
        """v(∅), reward units."""
        return self.empty

    @staticmethod
    def prepare(rewards: Floats) -> Floats:
        """Rewards as the level games see them, same shape."""
        return rewards

    @staticmethod
    def level(s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return u + 0.0 * s


@dataclass(frozen=True)
class Mean:
    """Mean reward of the set, v(S) = Σ r / |S|.

    Attributes:
        empty: v(∅), reward units. Explicit, because no set of rewards defines it.
    """

    type: ClassVar[str] = "mean"
    empty: float

    @property
    def empty_utility(self) -> float:
        """v(∅), reward units."""
        return self.empty

    @property
    def reference(self) -> float:
        """Utility of a non-empty coalition whose members all stand at the lowest level, reward units."""
        return self.empty

    @staticmethod
    def prepare(rewards: Floats) -> Floats:
        """Rewards as the level games see them, same shape."""
        return rewards

    @staticmethod
    def level(s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return u / np.maximum(s, 1.0)


@dataclass(frozen=True)
class TopM:
    """Sum of the m best rewards of the set (of all of them when it holds fewer).

    Attributes:
        m: How many rewards count, ≥ 1.
        empty: v(∅), reward units.
    """

    type: ClassVar[str] = "top_m"
    m: int
    empty: float = 0.0
    reference: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if self.m < 1:
            raise ValueError(f"top_m needs m ≥ 1: got {self.m}")

    @property
    def empty_utility(self) -> float:
        """v(∅), reward units."""
        return self.empty

    @staticmethod
    def prepare(rewards: Floats) -> Floats:
        """Rewards as the level games see them, same shape."""
        return rewards

    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return np.minimum(u, float(self.m)) + 0.0 * s


@dataclass(frozen=True)
class RthBest:
    """The r-th best reward of the set; `default` for a non-empty set of fewer than r candidates.

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
    def reference(self) -> float:
        """Utility of a non-empty coalition whose members all stand at the lowest level, reward units."""
        return self.default

    @staticmethod
    def prepare(rewards: Floats) -> Floats:
        """Rewards as the level games see them, same shape."""
        return rewards

    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return np.where(u >= self.r, 1.0, 0.0 * s)


@dataclass(frozen=True)
class Threshold:
    """1 when at least `count` candidates of the set reach the threshold (reward ≥ threshold), else 0.

    Attributes:
        threshold: Smallest reward that passes, reward units.
        count: How many have to pass, ≥ 1.
        empty: v(∅), in units of the utility (0 to 1).
    """

    type: ClassVar[str] = "threshold"
    threshold: float
    count: int = 1
    empty: float = 0.0
    reference: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"threshold needs count ≥ 1: got {self.count}")

    @property
    def empty_utility(self) -> float:
        """v(∅), reward units."""
        return self.empty

    def prepare(self, rewards: Floats) -> Floats:
        """Rewards as the level games see them, same shape."""
        return (rewards >= self.threshold).astype(np.float64)

    def level(self, s: Floats, u: Floats) -> Floats:
        """Utility of s players of which u have reward 1 and the others 0; s and u broadcast."""
        return np.where(u >= self.count, 1.0, 0.0 * s)


OrderStatistic: TypeAlias = Max | Min | Sum | Mean | TopM | RthBest | Threshold


def grand_utilities(rewards: Floats, utility: OrderStatistic) -> Floats:
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
    n_sets, n = rewards.shape
    if n == 0:
        return np.full(n_sets, utility.empty_utility)
    above = np.arange(n, -1, -1, dtype=np.float64)
    levels = utility.level(np.full(n + 1, float(n)), above)
    weights = levels[:-1] - levels[1:]
    ordered = np.sort(utility.prepare(rewards), axis=-1)
    totals: Floats = np.cumsum(weights * ordered, axis=-1)[:, -1]
    rest = utility.reference * (1.0 - levels[0])
    # `sum` and `top_m` have reference 0; the others reach level 1 at u = s unless the set is too small for its rank.
    return totals + rest if rest else totals


def semivalues(rewards: Floats, utility: OrderStatistic, size_weights: Floats) -> Floats:
    """Semivalue of each candidate: its marginal utility averaged over coalitions, weighted by their size.

        φ_i = Σ_{s=0}^{n−1} q_s · mean over coalitions S of size s without i of [v(S ∪ i) − v(S)]
        φ_(j) = Σ_{t≤j} Δ_t·α(n−t+1) + Σ_{t>j} Δ_t·β(n−t+1) + q_0·(reference − v(∅)),     Δ_1 = a_(1) − reference

    where α(m) and β(m) are the values of a player above and of a player below in the level game with m players above.
    q_s = 1/n is the Shapley value; for `max` it makes α(m) = 1/m and β = 0, the airport game.

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
        O(B · n log n); the coefficients of a (utility, n, q) cost up to O(n³) once and are remembered.

    Reference:
        Littlechild and Owen 1973 for max; ShapE-GRPO, arXiv:2603.29871v1, uses max; PKPO, arXiv:2505.15201, is the
        member q = e_{k−1}·k/n of the family.

    Differs from the paper:
        The paper treats max only, with v(∅) unstated; here v(∅) is always explicit.
    """
    if rewards.ndim != 2 or rewards.shape[1] < 1:
        raise ValueError(f"rewards must have shape (B, n) with n ≥ 1: got {rewards.shape}")
    n = rewards.shape[1]
    if n > MAX_PLAYERS:
        raise ValueError(
            f"binomial coefficients of n players leave float64: got n = {n}, expected at most {MAX_PLAYERS}"
        )
    if size_weights.shape != (n,):
        raise ValueError(
            f"size_weights must have one entry per coalition size: got {size_weights.shape}, expected ({n},)"
        )
    above, below = _level_values(_shape_of(utility), n, size_weights.tobytes())
    prepared = utility.prepare(rewards)
    order = np.argsort(prepared, axis=-1, kind="stable")
    ordered = np.take_along_axis(prepared, order, axis=-1)
    steps = np.diff(ordered, axis=-1, prepend=utility.reference)
    values = np.cumsum(steps * above, axis=-1)
    if below.any():
        gains = np.cumsum((steps * below)[:, ::-1], axis=-1)[:, ::-1]
        values[:, :-1] += gains[:, 1:]
    # Adding +0.0 also turns a −0.0 into 0.0, so that tied candidates agree in the sign of zero.
    values += size_weights[0] * (utility.reference - utility.empty_utility) + 0.0
    result = np.empty_like(values)
    np.put_along_axis(result, order, values, axis=-1)
    return result


def _shape_of(utility: OrderStatistic) -> OrderStatistic:
    """The utility less what does not enter its level game, so that coefficients serve every v(∅) and threshold."""
    if isinstance(utility, Max):
        return Max()
    if isinstance(utility, Min | Mean | Sum):
        return type(utility)(empty=0.0)
    if isinstance(utility, TopM):
        return TopM(m=utility.m)
    if isinstance(utility, RthBest):
        return RthBest(r=utility.r)
    return Threshold(threshold=0.0, count=utility.count)


@lru_cache(maxsize=512)
def _level_values(utility: OrderStatistic, n: int, size_weights: bytes) -> tuple[Floats, Floats]:
    """α(n−t+1) and β(n−t+1) for the sorted steps t = 1 … n: the values of the two kinds of players of each level game.

    The other players of a coalition of size s hold u of the m players above with hypergeometric probability.
    """
    weights = np.frombuffer(size_weights, dtype=np.float64)
    sizes = np.flatnonzero(weights)
    s = sizes[:, None].astype(np.float64)
    u = np.arange(n, dtype=np.float64)[None, :]
    possible = u <= s
    gain_above = np.where(possible, utility.level(s + 1, u + 1) - utility.level(s, u), 0.0) * weights[sizes][:, None]
    gain_below = np.where(possible, utility.level(s + 1, u) - utility.level(s, u), 0.0) * weights[sizes][:, None]
    above, below = np.zeros(n), np.zeros(n)
    for step in range(n):
        m = n - step
        above[step] = _expected_gain(gain_above, sizes, n_others=n - 1, n_above=m - 1)
        if m < n:
            below[step] = _expected_gain(gain_below, sizes, n_others=n - 1, n_above=m)
    above.flags.writeable = below.flags.writeable = False
    return above, below


def _expected_gain(gain: Floats, sizes: NDArray[np.intp], *, n_others: int, n_above: int) -> float:
    """Σ_s Σ_u P(u of the n_above others among s drawn) · gain[s, u]."""
    columns = np.flatnonzero(gain.any(axis=0))
    columns = columns[columns <= n_above]
    if columns.size == 0:
        return 0.0
    choose = binomials(1 << n_others.bit_length())
    drawn_below = sizes[:, None] - columns[None, :]
    possible = (drawn_below >= 0) & (drawn_below <= n_others - n_above)
    ways = choose[n_above, columns][None, :] * choose[n_others - n_above, np.where(possible, drawn_below, 0)]
    probabilities = np.where(possible, ways, 0.0) / choose[n_others, sizes][:, None]
    return float(np.sum(probabilities * gain[:, columns]))


@lru_cache(maxsize=12)
def binomials(n: int) -> Floats:
    """Binomial coefficients C(a, b) by Pascal's triangle.

    Args:
        n: Largest a and b.

    Returns:
        Shape (n + 1, n + 1), float64, read-only: entry [a, b] is C(a, b), 0 where b > a. Exact up to a = 56,
        relative error below a·2⁻⁵³ above.

    Cost:
        O(n²), remembered.
    """
    table = np.zeros((n + 1, n + 1))
    table[:, 0] = 1.0
    for a in range(1, n + 1):
        table[a, 1 : a + 1] = table[a - 1, :a] + table[a - 1, 1 : a + 1]
    table.flags.writeable = False
    return table
