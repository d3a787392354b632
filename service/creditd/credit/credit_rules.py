"""The credit family: which rule turns the utilities of a candidate set into one credit per candidate.

All rules but two are semivalues, Σ_k w_k · sloo_minus_one(k) in the notation of PKPO, and differ in the weight w_k
of the coalitions of k − 1 other candidates. For candidates drawn i.i.d. from the policy, Σ credit·∇log π climbs
Σ_k w_k · max@k: Shapley (w_k = 1/k) the harmonic mixture, leave-one-out (all weight on k = K) max@K, own reward
(w = e_1) the mean reward.
Candidates that one response writes one after another are not i.i.d.: later ones react to earlier ones. `PrefixGain`
is then the rule that climbs max@K without bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalitions import binomials

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Shapley:
    """w_k = 1/k: the Shapley value. Efficient: the credits of a set sum to v(N) − v(∅)."""

    type: ClassVar[str] = "shapley"


@dataclass(frozen=True)
class LeaveOneOut:
    """w = e_K: v(N) − v(N∖i), the difference reward. Not efficient; with `max` it is 0 for all but a unique winner."""

    type: ClassVar[str] = "leave_one_out"


@dataclass(frozen=True)
class OwnReward:
    """w = e_1: (v({i}) − v(∅))/K, so that K·credit is the candidate's own reward. Blind to the other candidates."""

    type: ClassVar[str] = "own_reward"


@dataclass(frozen=True)
class SetReward:
    """(v(N) − v(∅))/K to every candidate, as GRPO does with a set-level reward.

    Efficient; weak candidates free-ride.
    """

    type: ClassVar[str] = "set_reward"


@dataclass(frozen=True)
class PrefixGain:
    """v(N) − v(candidates before i), in the order given: a running maximum for `max`.

    Unbiased for max@K for any policy that writes its candidates one after another. Neither efficient nor permutation
    invariant.
    """

    type: ClassVar[str] = "prefix_gain"


@dataclass(frozen=True)
class MaxAtK:
    """w = e_k: the leave-one-out-minus-one estimator of max@k (PKPO, arXiv:2505.15201).

    A set of fewer than k candidates uses its K.

    Attributes:
        k: ≥ 1. k = 1 is `own_reward`, k = K is `leave_one_out`.
    """

    type: ClassVar[str] = "max_at_k"
    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"max_at_k needs k ≥ 1: got {self.k}")


@dataclass(frozen=True)
class Mixture:
    """Any weights w_1 … w_K, for sets of exactly K candidates.

    Attributes:
        weights: w_k for coalitions of k − 1 others, finite.
    """

    type: ClassVar[str] = "mixture"
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.weights or not np.isfinite(self.weights).all():
            raise ValueError(f"mixture needs K finite weights: got {len(self.weights)} weights")


@dataclass(frozen=True)
class Owen:
    """The Owen value: Shapley over unions of candidates, then inside each union. Efficient.

    With one candidate per union, or one union, it is the Shapley value.
    """

    type: ClassVar[str] = "owen"


EndRule: TypeAlias = Shapley | LeaveOneOut | OwnReward | SetReward | PrefixGain | Owen | MaxAtK | Mixture


@dataclass(frozen=True)
class Blend:
    """(1 − position)·start + position·end: a schedule from one rule to another.

    Attributes:
        start: Rule at position 0.
        end: Rule at position 1.
        position: In [0, 1].
    """

    type: ClassVar[str] = "blend"
    start: EndRule
    end: EndRule
    position: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.position <= 1.0:
            raise ValueError(f"blend needs a position in [0, 1]: got {self.position}")


CreditRule: TypeAlias = EndRule | Blend
Semivalue: TypeAlias = Shapley | LeaveOneOut | OwnReward | MaxAtK | Mixture
DefinedRule: TypeAlias = Semivalue | SetReward | PrefixGain
"""Rules whose definition names the coalitions that it compares."""


def ends_of(rule: CreditRule) -> tuple[EndRule, ...]:
    """The rules that a blend mixes, or the rule itself."""
    return (rule.start, rule.end) if isinstance(rule, Blend) else (rule,)


def needs_unions(rule: CreditRule) -> bool:
    """Whether a rule asks which candidates belong together."""
    return any(isinstance(end, Owen) for end in ends_of(rule))


def size_weights(rule: Semivalue, n_candidates: int) -> Floats:
    """Probability weight q_s of the coalitions of s other candidates, s = 0 … K−1.

        q_{k−1} = w_k · k / K

    Args:
        rule: A rule with weights w.
        n_candidates: K ≥ 1.

    Returns:
        Shape (K,), float64. Sums to 1 for `Shapley`, `LeaveOneOut`; to 1/K for `OwnReward`; to k/K for `MaxAtK`.

    Raises:
        ValueError: If a `Mixture` has another number of weights than K.

    Cost:
        O(K).

    Reference:
        PKPO, arXiv:2505.15201; ShapE-GRPO, arXiv:2603.29871v1, is `Shapley`.

    Differs from the paper:
        PKPO fixes one k; the family and its mixtures are creditd's. `MaxAtK` uses min(k, K), so that a set with fewer
        candidates than k still has a credit.
    """
    q = np.zeros(n_candidates)
    if isinstance(rule, Shapley):
        q[:] = 1.0 / n_candidates
    elif isinstance(rule, LeaveOneOut):
        q[-1] = 1.0
    elif isinstance(rule, OwnReward):
        q[0] = 1.0 / n_candidates
    elif isinstance(rule, MaxAtK):
        k = min(rule.k, n_candidates)
        q[k - 1] = k / n_candidates
    else:
        if len(rule.weights) != n_candidates:
            raise ValueError(f"mixture weights must match the set: got {len(rule.weights)}, expected {n_candidates}")
        q[:] = np.asarray(rule.weights) * np.arange(1, n_candidates + 1) / n_candidates
    return q


def without_null_players(weights: Floats, n_players: int) -> Floats:
    """Size weights of the same semivalue after its null players have left the game.

        q'_t = Σ_s q_s · C(n−1, t)·C(K−n, s−t) / C(K−1, s)

    A null player never changes a utility, so a coalition counts by its other members alone.

    Args:
        weights: Shape (K,), float64: q over all K players.
        n_players: n ≤ K, players that remain.

    Returns:
        Shape (n,), float64, with the same sum. The Shapley weights 1/K become 1/n: equal weights stay exactly equal,
        by which their formulas are chosen.

    Cost:
        O(K²).
    """
    n_candidates = len(weights)
    n_null = n_candidates - n_players
    if n_null == 0:
        return weights
    if (weights == weights[0]).all():
        return np.full(n_players, weights[0] * n_candidates / n_players)
    choose = binomials(1 << n_candidates.bit_length())
    s = np.arange(n_candidates)[None, :]
    t = np.arange(n_players)[:, None]
    possible = (s >= t) & (s - t <= n_null)
    ways = choose[n_players - 1, t] * choose[n_null, np.where(possible, s - t, 0)]
    mixed: Floats = np.where(possible, ways, 0.0) / choose[n_candidates - 1, s] * weights
    projected: Floats = mixed.sum(axis=1)
    return projected
