"""Plurality votes: candidates that give the same answer vote for it, and the set is worth the answer that wins.

Legend: `B` sets, `n` players, `K` answers (classes of candidates with one label) in a set; answer k has m_k candidates
and reward R_k. While the others are present with probability t, the votes of the answers are independent, answer k has
Binomial(m_k, t) of them, and a candidate of answer a changes the winner in two ways only: its vote lifts a to the level
y of the leaders (it joins a tie), or it lifts a from level y to y + 1 (it breaks the tie). With p_k and F_k the
probabilities that answer k has y votes and fewer than y, one polynomial says what both are worth,

    Q_a(u) = Σ_{k≠a} (R_a − R_k)·p_k·Π_{j≠a,k}(F_j + u·p_j),        joins: ∫₀¹(1 − u)·Q_a du,        breaks: ∫₀¹u·Q_a du

because the mean over T tied answers, a division by T, is an integral of u^{T−1}: every tied answer arrives at a random
time, and the first wins. Both integrals are exact with a few Gauss–Legendre nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.level_games import MAX_PLAYERS
from creditd.credit.noisy_or import first_of_ties
from creditd.credit.quadrature import gauss_legendre, presence_nodes, three_rules_only

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

CHUNK_ELEMENTS = 1 << 18
"""Elements of the largest temporary array; some ten of them live at a time."""
TIES = ("split", "lose")


@dataclass(frozen=True)
class Plurality:
    """Reward of the answer with the most votes in the set.

    Attributes:
        ties: `split`, a tie is worth the mean reward of the tied answers (one of them is drawn); `lose`, it is worth 0.
        empty: v(∅), reward units.
    """

    type: ClassVar[str] = "plurality"
    ties: str = "split"
    empty: float = 0.0

    def __post_init__(self) -> None:
        if self.ties not in TIES:
            raise ValueError(f"plurality has no such ties: got {self.ties!r}, expected one of {', '.join(TIES)}")
        if not math.isfinite(self.empty):
            raise ValueError(f"plurality needs a finite empty: got {self.empty}, expected a finite number")

    @property
    def empty_utility(self) -> float:
        """v(∅), units of the utility."""
        return self.empty


@dataclass(frozen=True)
class PluralityGames:
    """Games of candidates that vote.

    Attributes:
        labels: Shape (B, n), int64: the answer of each candidate, any numbers; equal labels of a set are one answer.
        rewards: Shape (B, n), float64, reward units, finite: the same for all candidates of an answer (that of the
            first one is used).
        utility: What a tie and the empty set are worth.
    """

    every_semivalue: ClassVar[bool] = False
    labels: Integers
    rewards: Floats
    utility: Plurality

    @property
    def n_players(self) -> int:
        """Number of players."""
        return int(self.labels.shape[1])

    def empty(self) -> Floats:
        """v(∅), shape (B,)."""
        return np.full(len(self.labels), float(self.utility.empty))

    def grand(self) -> Floats:
        """v(N), shape (B,); v(∅) without players."""
        if self.n_players == 0:
            return self.empty()
        answers = _answers_of(self.labels, self.rewards)
        leads = answers.sizes == answers.sizes[:, -1:]
        n_tied = np.count_nonzero(leads, axis=1)
        total: Floats = np.cumsum(np.where(leads, answers.rewards / n_tied[:, None], 0.0), axis=1)[:, -1]
        return total if self.utility.ties == "split" else np.where(n_tied == 1, answers.rewards[:, -1], 0.0)

    def scale(self) -> Floats:
        """Largest of |v(∅)| and the magnitudes of the rewards, shape (B,)."""
        largest: Floats = np.abs(self.rewards).max(axis=1, initial=abs(float(self.utility.empty)))
        return largest

    def restricted(self, players: Integers) -> PluralityGames:
        """The same games among the players named, in that order."""
        return PluralityGames(self.labels[:, players], self.rewards[:, players], self.utility)

    def semivalues(self, weights: Floats) -> Floats:
        """Semivalues of sums of Shapley, own reward and leave-one-out, shape (B, n)."""
        if self.n_players == 0:
            return np.empty((len(self.labels), 0))
        return plurality_semivalues(self.labels, self.rewards, self.utility, weights)


class _Answers(NamedTuple):
    """The answers of B sets, ascending by size, then by reward; sets with fewer than n begin with answers of size 0.

    Attributes:
        sizes: Shape (B, n), int64: m_k.
        rewards: Shape (B, n), float64: R_k, 0 where m_k is 0.
        of_candidates: Shape (B, n), int64: the position of each candidate's answer.
    """

    sizes: Integers
    rewards: Floats
    of_candidates: Integers


def _answers_of(labels: Integers, rewards: Floats) -> _Answers:
    n_sets, n = labels.shape
    row = np.arange(n_sets)[:, None]
    order = np.argsort(labels, axis=1, kind="stable")
    ordered = np.take_along_axis(labels, order, axis=1)
    starts = np.ones((n_sets, n), dtype=bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    number = np.empty((n_sets, n), dtype=np.int64)
    np.put_along_axis(number, order, np.cumsum(starts, axis=1) - 1, axis=1)
    sizes = np.bincount((row * n + number).ravel(), minlength=n_sets * n).reshape(n_sets, n).astype(np.int64)
    of_answers = np.zeros((n_sets, n))
    sets, positions = np.nonzero(starts)
    firsts = order[sets, positions]
    of_answers[sets, number[sets, firsts]] = rewards[sets, firsts]
    rank = np.lexsort((of_answers, sizes), axis=1)
    position_of = np.empty((n_sets, n), dtype=np.int64)
    np.put_along_axis(position_of, rank, np.broadcast_to(np.arange(n), (n_sets, n)), axis=1)
    return _Answers(
        sizes=np.take_along_axis(sizes, rank, axis=1),
        rewards=np.take_along_axis(of_answers, rank, axis=1),
        of_candidates=np.take_along_axis(position_of, number, axis=1),
    )


def plurality_semivalues(labels: Integers, rewards: Floats, utility: Plurality, size_weights: Floats) -> Floats:
    """Semivalue of each candidate in a plurality vote.

        φ_i = q_0·(R_a − v(∅)) + Σ_t weight_t Σ_{y≥1} [P(m_a − 1, y − 1)·join_a(y) + P(m_a − 1, y)·break_a(y)]

    for a candidate of answer a, with P(m, y) the probability of y votes out of m present with probability t. `split`
    takes join and break from Q_a (above). `lose`: a vote that joins takes R_k from a single leader k, and one that
    breaks a tie, or a single leader's lead, brings R_a.

    Args:
        labels: Shape (B, n), int64: the answer of each candidate. n ≥ 1.
        rewards: Shape (B, n), float64, reward units, finite, one per answer.
        utility: What a tie and the empty set are worth.
        size_weights: Shape (n,), float64: q_s for coalitions of s other players; any sum of Shapley (1/n each), own
            reward (s = 0) and leave-one-out (s = n − 1).

    Returns:
        Shape (B, n), float64, reward units. Candidates of one answer get equal bits, and so do answers of equal size
        and reward; permuting a set permutes its result to the last bit, and naming its answers otherwise changes
        nothing; a set does not depend on the rest of the batch. With q_s = 1/n it sums to v(N) − v(∅).

    Raises:
        ValueError: If the shapes do not fit, n > 1,000, or the weights are no sum of the three rules.

    Cost:
        O(n²K) per set for `split`, at most n³/4 steps of some twenty operations when every answer is another; O(n²) for
        `lose`. Bounded memory.

    Reference:
        Owen 1972 for the integral over t. A set utility in the sense of ShapE-GRPO, arXiv:2603.29871v1.

    Differs from the paper:
        The paper decomposes max only.
    """
    n_sets, n = labels.shape
    if labels.shape != rewards.shape:
        raise ValueError(f"labels and rewards must have one shape: got {labels.shape} and {rewards.shape}")
    if not 1 <= n <= MAX_PLAYERS:
        raise ValueError(f"plurality needs 1 to {MAX_PLAYERS} players: got n = {n}")
    if size_weights.shape != (n,):
        raise ValueError(
            f"size_weights must have one entry per coalition size: got {size_weights.shape}, expected ({n},)"
        )
    nodes, weights = presence_nodes(three_rules_only(utility.type, size_weights), n)
    answers = _answers_of(labels, rewards)
    n_answers = np.count_nonzero(answers.sizes, axis=1)
    values = np.zeros((n_sets, n))
    if nodes.size:
        for k in np.unique(n_answers[n_answers > 1]).tolist():
            rows = np.flatnonzero(n_answers == k)
            rows = rows[np.lexsort((answers.sizes[rows, -1], answers.sizes[rows, -2]))]
            sizes = np.ascontiguousarray(answers.sizes[rows, n - k :].T)
            of_answers = np.ascontiguousarray(answers.rewards[rows, n - k :].T)
            gains = _vote_gains(sizes, of_answers, utility.ties, nodes, weights)
            values[rows, n - k :] = np.take_along_axis(gains, first_of_ties((sizes, of_answers)), axis=0).T
    values += size_weights[0] * (answers.rewards - utility.empty) + 0.0
    return np.take_along_axis(values, answers.of_candidates, axis=1)


def _vote_gains(sizes: Integers, rewards: Floats, ties: str, nodes: Floats, weights: Floats) -> Floats:
    """Σ_t weight_t · (mean gain of a vote for each answer in a non-empty coalition), shape (K, b); sizes ascending.

    The sums run over levels, over u and over t, each in its order, so that no chunk changes a bit. Nobody can meet the
    leaders above the size of the second largest answer.
    """
    n_answers, n_sets = sizes.shape
    if ties == "split":
        arrivals, arrival_weights = gauss_legendre((n_answers + 1) // 2)
        joining, breaking = arrival_weights * (1.0 - arrivals), arrival_weights * arrivals
        # Q depends on differences alone.
        rewards = rewards - (0.5 * rewards.min(axis=0) + 0.5 * rewards.max(axis=0))
    else:
        arrivals, joining, breaking = np.array([0.0, 1.0]), np.array([1.0, 0.0]), np.array([-1.0, 1.0])
    u_step = min(len(arrivals), max(1, CHUNK_ELEMENTS // (n_answers * len(nodes))))
    b_step = max(1, CHUNK_ELEMENTS // (n_answers * u_step * len(nodes)))
    result = np.zeros((n_answers, n_sets))
    for b_start in range(0, n_sets, b_step):
        columns = slice(b_start, b_start + b_step)
        m, r = sizes[:, columns], rewards[:, columns]
        needed = np.unique(np.concatenate([m.ravel(), m.ravel() - 1]))
        levels = np.arange(int(m[-2].max()) + 1)
        t_step = max(1, min(len(nodes), CHUNK_ELEMENTS // max(len(needed) * len(levels), n_answers * u_step)))
        itself, others = np.searchsorted(needed, m), np.searchsorted(needed, m - 1)
        for t_start in range(0, len(nodes), t_step):
            chances = _binomial_chances(needed, len(levels) - 1, nodes[t_start : t_start + t_step])
            fewer = np.zeros_like(chances)
            fewer[:, 1:] = np.cumsum(chances[:, :-1], axis=1)
            # Certainty without its rounding, so that answers too small for a level change no bit of the others.
            fewer[levels[None, :] > needed[:, None]] = 1.0
            gains = np.zeros((n_answers, chances.shape[2], m.shape[1]))
            for y in levels[1:].tolist():
                # The answers below these have fewer than y candidates in every set: their factors are exactly 1.
                able = n_answers - int(np.count_nonzero(m >= y, axis=0).max())
                level, below = (np.moveaxis(each[itself[able:], y], 2, 1) for each in (chances, fewer))
                join, loosen = np.zeros_like(gains[able:]), np.zeros_like(gains[able:])
                for u_start in range(0, len(arrivals), u_step):
                    times = slice(u_start, u_start + u_step)
                    join_gains, break_gains = _level_gains(level, below, r[able:], ties, arrivals[times])
                    for u in range(join_gains.shape[1]):
                        join += joining[times][u] * join_gains[:, u]
                        loosen += breaking[times][u] * break_gains[:, u]
                gains[able:] += np.moveaxis(chances[others[able:], y - 1], 2, 1) * join
                gains[able:] += np.moveaxis(chances[others[able:], y], 2, 1) * loosen
            for j, weight in enumerate(weights[t_start : t_start + t_step]):
                result[:, columns] += weight * gains[:, j]
    return result


def _level_gains(level: Floats, below: Floats, rewards: Floats, ties: str, arrivals: Floats) -> tuple[Floats, Floats]:
    """What joining and breaking are worth at one level, at each u, each of shape (K, u, t, b).

    `split`: Q_a(u) for both. `lose`: −Σ_{k≠a} R_k·p_k·Π_{j≠a,k}(F_j + u·p_j), of which u = 0 counts, and
    R_a·Π_{j≠a}(F_j + u·p_j), of which the difference between u = 1 and u = 0 counts.
    Three sums over the other answers, from those before a and those after it: nothing is divided.
    """
    n_answers = len(level)
    factors = below[:, None] + arrivals[None, :, None, None] * level[:, None]
    steps = np.broadcast_to(level[:, None], factors.shape)
    r = rewards[:, None, None, :]
    products, slopes, totals = np.empty_like(factors), np.empty_like(factors), np.empty_like(factors)
    products[0], slopes[0], totals[0] = 1.0, 0.0, 0.0
    for k in range(1, n_answers):
        before = products[k - 1] * steps[k - 1]
        slopes[k] = slopes[k - 1] * factors[k - 1] + before
        totals[k] = totals[k - 1] * factors[k - 1] + before * r[k - 1]
        products[k] = products[k - 1] * factors[k - 1]
    product = np.ones(factors.shape[1:])
    slope, total = np.zeros(factors.shape[1:]), np.zeros(factors.shape[1:])
    for k in range(n_answers - 2, -1, -1):
        after = product * steps[k + 1]
        slope = slope * factors[k + 1] + after
        total = total * factors[k + 1] + after * r[k + 1]
        product = product * factors[k + 1]
        slopes[k] = slopes[k] * product + products[k] * slope
        totals[k] = totals[k] * product + products[k] * total
        products[k] *= product
    if ties == "lose":
        return -totals, r * products
    gains = r * slopes - totals
    return gains, gains


def _binomial_chances(sizes: Integers, largest_count: int, probabilities: Floats) -> Floats:
    """P(y of m are present) for each m of the ascending sizes, y and t, shape (m, y + 1, t), by Pascal's recursion."""
    result = np.empty((len(sizes), largest_count + 1, len(probabilities)))
    chances = np.zeros((largest_count + 1, len(probabilities)))
    chances[0] = 1.0
    absent = 1.0 - probabilities
    row = 0
    for m in range(int(sizes[-1]) + 1):
        if m:
            arriving = chances[:-1] * probabilities
            chances *= absent
            chances[1:] += arriving
        if m == sizes[row]:
            result[row] = chances
            row += 1
    return result
