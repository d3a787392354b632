"""Set utilities that set quality against similarity between the candidates.

Legend: `B` sets, `n` players (candidates) of one set, `r_i` rewards, `s_ij` similarities, `λ` the penalty, `s` the size
of a coalition without the player, `q_s` its weight. By symmetry the players of a random coalition of size s hold each
other player with chance s/(n − 1) and each pair of other players with chance s(s − 1)/((n − 1)(n − 2)): that is why a
utility of pairs needs row sums only.

Similarities are symmetric, which the caller checks, and their diagonal is never read. Rows are sorted before they are
summed, so permuting the candidates permutes their credit to the last bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalitions import binomials, check_size_weights
from creditd.credit.level_games import semivalues
from creditd.credit.order_statistics import Max

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Redundancy:
    """Total reward less what the candidates share in pairs, v(S) = Σ_{i ∈ S} r_i − λ·Σ_{i<j ∈ S} s_ij.

    Serves collections where each item counts and a repetition costs: facts, tests, features.

    Attributes:
        penalty: λ, reward units per unit of similarity.
        empty: v(∅), reward units.
    """

    type: ClassVar[str] = "redundancy"
    penalty: float
    empty: float = 0.0

    def grand(self, similarities: Floats, rewards: Floats) -> Floats:
        """v(N) for n ≥ 1, shape (B,)."""
        return _sorted_sums(rewards) - self.penalty * _pair_sums(similarities)

    def scale(self, similarities: Floats, rewards: Floats) -> Floats:
        """Σ_i |r_i| + |λ|·Σ_{i<j} |s_ij|, shape (B,)."""
        return _sorted_sums(np.abs(rewards)) + abs(self.penalty) * _pair_sums(np.abs(similarities))

    def semivalues(self, similarities: Floats, rewards: Floats, weights: Floats) -> Floats:
        """φ_i = Σ_s q_s·r_i − λ·Σ_s q_s·s/(n−1)·Σ_{j≠i} s_ij, less q_0·v(∅), shape (B, n)."""
        own = _own_shares(rewards, weights, self.empty)
        return own - self.penalty * _pair_shares(similarities, weights)

    @property
    def empty_utility(self) -> float:
        """v(∅), units of the utility."""
        return self.empty


@dataclass(frozen=True)
class MaxMinusSimilarity:
    """Best reward less what the candidates share in pairs, v(S) = max r − λ·Σ_{i<j ∈ S} s_ij.

    Serves best-of-n with exploration: the user picks one, and samples that repeat each other are wasted.

    Attributes:
        penalty: λ, reward units per unit of similarity.
        empty: v(∅), reward units.
    """

    type: ClassVar[str] = "max_minus_similarity"
    penalty: float
    empty: float = 0.0

    def grand(self, similarities: Floats, rewards: Floats) -> Floats:
        """v(N) for n ≥ 1, shape (B,)."""
        best: Floats = rewards.max(axis=-1)
        return best - self.penalty * _pair_sums(similarities)

    def scale(self, similarities: Floats, rewards: Floats) -> Floats:
        """max_i |r_i| + |λ|·Σ_{i<j} |s_ij|, shape (B,)."""
        largest: Floats = np.abs(rewards).max(axis=-1, initial=0.0)
        return largest + abs(self.penalty) * _pair_sums(np.abs(similarities))

    def semivalues(self, similarities: Floats, rewards: Floats, weights: Floats) -> Floats:
        """φ_i = φ_i(airport game) − λ·Σ_s q_s·s/(n−1)·Σ_{j≠i} s_ij, shape (B, n)."""
        of_best = semivalues(rewards, Max(empty=self.empty), weights)
        return of_best - self.penalty * _pair_shares(similarities, weights)

    @property
    def empty_utility(self) -> float:
        """v(∅), units of the utility."""
        return self.empty


@dataclass(frozen=True)
class MeanPairwiseDiversity:
    """Mean over the pairs of the set of 1 − s_ij; it does not use the rewards.

    Serves diversity alone, as a term beside a reward, whatever the number of candidates.

    Attributes:
        empty: v(∅).
        single: v of one candidate, which has no pair.
    """

    type: ClassVar[str] = "mean_pairwise_diversity"
    empty: float = 0.0
    single: float = 0.0

    def grand(self, similarities: Floats, rewards: Floats) -> Floats:
        """v(N) for n ≥ 1, shape (B,)."""
        n = rewards.shape[1]
        if n == 1:
            return np.full(len(rewards), float(self.single))
        mean: Floats = _pair_sums(1.0 - similarities) / (0.5 * n * (n - 1))
        return mean

    def scale(self, similarities: Floats, rewards: Floats) -> Floats:
        """Larger of |v of one candidate| and max_{i≠j} |1 − s_ij|, shape (B,)."""
        del rewards
        largest = np.abs(_without_diagonal(1.0 - similarities)).max(axis=(1, 2), initial=0.0)
        scale: Floats = np.maximum(largest, abs(float(self.single)))
        return scale

    def semivalues(self, similarities: Floats, rewards: Floats, weights: Floats) -> Floats:
        """Semivalues by the mean distance d_i of i to the others and the mean distance d_−i among the others, (B, n).

            φ_i = q_0·(single − v(∅)) + q_1·(d_i − single) + Σ_{s≥2} 2·q_s/(s + 1)·(d_i − d_−i)

        Of the pairs of S ∪ i a share 2/(s + 1) holds i, and the means over random S are d_i and d_−i.
        """
        n = rewards.shape[1]
        values: Floats = np.full(rewards.shape, weights[0] * (self.single - self.empty))
        if n == 1:
            return values
        rows = _row_sums(1.0 - similarities)
        to_others = rows / (n - 1)
        values = values + weights[1] * (to_others - self.single)
        if n == 2:
            return values
        among_others = (0.5 * _sorted_sums(rows)[:, None] - rows) / (0.5 * (n - 1) * (n - 2))
        share = np.cumsum(2.0 * weights[2:] / np.arange(3.0, n + 1.0))[-1]
        credit: Floats = values + share * (to_others - among_others)
        return credit

    @property
    def empty_utility(self) -> float:
        """v(∅), units of the utility."""
        return self.empty


@dataclass(frozen=True)
class QualityNovelty:
    """Total of rewards less likeness to the nearest other, v(S) = Σ_{i ∈ S} [r_i − λ·max_{k ∈ S∖i} s_ik].

    Serves quality with novelty: a candidate costs what its nearest neighbour already offers. A candidate alone is like
    nobody: the maximum over nobody is 0.

    Attributes:
        penalty: λ, reward units per unit of similarity.
        empty: v(∅), reward units.
    """

    type: ClassVar[str] = "quality_novelty"
    penalty: float
    empty: float = 0.0

    def grand(self, similarities: Floats, rewards: Floats) -> Floats:
        """v(N) for n ≥ 1, shape (B,)."""
        if rewards.shape[1] == 1:
            return rewards[:, 0]
        nearest: Floats = _off_diagonal(similarities).max(axis=-1)
        return _sorted_sums(rewards - self.penalty * nearest)

    def scale(self, similarities: Floats, rewards: Floats) -> Floats:
        """Σ_i [|r_i| + |λ|·max_{k≠i} |s_ik|], shape (B,)."""
        largest: Floats = np.abs(_without_diagonal(similarities)).max(axis=-1, initial=0.0)
        return _sorted_sums(np.abs(rewards) + abs(self.penalty) * largest)

    def semivalues(self, similarities: Floats, rewards: Floats, weights: Floats) -> Floats:
        """φ_i = Σ_s q_s·r_i − λ·[Σ_s q_s·E max of s others + Σ_{k≠i} share of i in the likeness of k], less q_0·v(∅).

        The likeness of k counts where k is present, which it is in a coalition of size s with chance s/(n−1): among the
        n − 1 others it is an airport game with weights q_{s+1}·(s+1)/(n−1) for coalitions of s. Shape (B, n).
        """
        n_sets, n = rewards.shape
        own = _own_shares(rewards, weights, self.empty)
        if n == 1:
            return own
        others = _off_diagonal(similarities)
        present = weights[1:] * np.arange(1.0, n) / (n - 1)
        of_others = semivalues(others.reshape(-1, n - 1), Max(), present).reshape(others.shape)
        shares = np.empty((n_sets, n, n))
        shares[:, ~np.eye(n, dtype=np.bool_)] = of_others.reshape(n_sets, n * (n - 1))
        joining = np.cumsum(np.sort(others, axis=-1) * _expected_maximum_weights(weights), axis=-1)[..., -1]
        shares[:, np.arange(n), np.arange(n)] = joining
        return own - self.penalty * _sorted_sums(shares.transpose(0, 2, 1))

    @property
    def empty_utility(self) -> float:
        """v(∅), units of the utility."""
        return self.empty


DiversityUtility: TypeAlias = Redundancy | MaxMinusSimilarity | MeanPairwiseDiversity | QualityNovelty
"""Every utility of rewards and similarities."""


@dataclass(frozen=True)
class DiversityGames:
    """Games of candidates with rewards and pairwise similarities.

    Attributes:
        similarities: Shape (B, n, n), float64, symmetric, finite off the diagonal; the diagonal is not read.
        rewards: Shape (B, n), float64, reward units, finite.
        utility: Utility of a set of rewards and similarities.
    """

    every_semivalue: ClassVar[bool] = True
    similarities: Floats
    rewards: Floats
    utility: DiversityUtility

    def __post_init__(self) -> None:
        expected = (*self.rewards.shape, self.rewards.shape[-1])
        if self.rewards.ndim != 2 or self.similarities.shape != expected:
            raise ValueError(
                f"each pair of candidates needs a similarity: got {self.similarities.shape} beside rewards "
                f"{self.rewards.shape}, expected (B, n, n) and (B, n)"
            )

    @property
    def n_players(self) -> int:
        """Number of players."""
        return int(self.rewards.shape[1])

    def empty(self) -> Floats:
        """v(∅), shape (B,)."""
        return np.full(len(self.rewards), float(self.utility.empty))

    def grand(self) -> Floats:
        """v(N), shape (B,)."""
        # Adding +0.0 turns a −0.0 into 0.0, as in semivalues: the order of −0.0 and 0.0 must not show.
        return self.utility.grand(self.similarities, self.rewards) + 0.0 if self.n_players else self.empty()

    def scale(self) -> Floats:
        """Largest of |v(∅)| and a bound of |v(S)| by the magnitudes of rewards and similarities, shape (B,)."""
        bound = self.utility.scale(self.similarities, self.rewards)
        scale: Floats = np.maximum(bound, abs(float(self.utility.empty)))
        return scale

    def restricted(self, players: NDArray[np.int64]) -> DiversityGames:
        """The games among some of the players, shape (m,), in the order named."""
        similarities = self.similarities[:, players[:, None], players[None, :]]
        return replace(self, similarities=similarities, rewards=self.rewards[:, players])

    def semivalues(self, weights: Floats) -> Floats:
        """Semivalues with coalition-size weights of shape (n,), shape (B, n).

        Permuting the candidates permutes them to the last bit, equal candidates get equal bits, and a set does not know
        its batch; with q_s = 1/n they sum to v(N) − v(∅).
        """
        check_size_weights(weights, self.n_players)
        return self.utility.semivalues(self.similarities, self.rewards, weights) + 0.0


def _without_diagonal(matrices: Floats) -> Floats:
    """The matrices with 0 on the diagonal, shape (B, n, n)."""
    return np.where(np.eye(matrices.shape[-1], dtype=np.bool_), 0.0, matrices)


def _off_diagonal(matrices: Floats) -> Floats:
    """The entries of each row but that of the diagonal, shape (B, n, n − 1)."""
    n = matrices.shape[-1]
    return matrices[:, ~np.eye(n, dtype=np.bool_)].reshape(len(matrices), n, n - 1)


def _sorted_sums(values: Floats) -> Floats:
    """Sums along the last axis, one by one in ascending order; 0 for nothing."""
    if values.shape[-1] == 0:
        return np.zeros(values.shape[:-1])
    sums: Floats = np.cumsum(np.sort(values, axis=-1), axis=-1)[..., -1]
    return sums


def _row_sums(matrices: Floats) -> Floats:
    """Σ_{j≠i} x_ij, shape (B, n)."""
    return _sorted_sums(_without_diagonal(matrices))


def _pair_sums(matrices: Floats) -> Floats:
    """Σ_{i<j} x_ij, shape (B,)."""
    return 0.5 * _sorted_sums(_row_sums(matrices))


def _own_shares(rewards: Floats, weights: Floats, empty: float) -> Floats:
    """Semivalues of the sum of the rewards, Σ_s q_s·r_i − q_0·v(∅), shape (B, n)."""
    shares: Floats = np.cumsum(weights)[-1] * rewards - weights[0] * empty
    return shares


def _pair_shares(similarities: Floats, weights: Floats) -> Floats:
    """Semivalues of the sum over pairs: i meets each other player with chance s/(n−1), shape (B, n)."""
    n = len(weights)
    met = np.cumsum(weights * np.arange(n, dtype=np.float64))[-1] / max(n - 1, 1)
    shares: Floats = met * _row_sums(similarities)
    return shares


def _expected_maximum_weights(weights: Floats) -> Floats:
    """Weight of each of the n − 1 sorted others in Σ_s q_s·E[max of s of them], shape (n − 1,).

    The j-th lowest is the maximum of C(j − 1, s − 1) of the C(n − 1, s) coalitions of size s; nobody has maximum 0.
    """
    n_others = len(weights) - 1
    choose = binomials(1 << n_others.bit_length())
    chances = choose[:n_others, :n_others] / choose[n_others, 1 : n_others + 1]
    of_places: Floats = np.cumsum(chances * weights[1:], axis=-1)[:, -1]
    return of_places
