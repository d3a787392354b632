"""Set utilities that add up over topics or targets: weighted coverage and facility location.

Legend: `B` sets, `n` players (candidates) of one set, `T` topics or targets. A topic is covered by a candidate or not;
a target gives each candidate a score and takes the best one. Each topic is a threshold game and each target an airport
game among the same players, so credit adds up over them, exactly and under every semivalue.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalitions import check_size_weights
from creditd.credit.level_games import level_values, semivalues
from creditd.credit.order_statistics import Max, Threshold

Floats: TypeAlias = NDArray[np.float64]

BLOCK_SIZE = 1 << 20
"""Scores that are solved together: bounds the memory of the kernel, and changes no bit."""


@dataclass(frozen=True)
class Coverage:
    """Total weight of the topics that enough candidates of the set cover, v(S) = Σ_t w_t·1[at least `count` cover t].

    Serves breadth: answers, tests or facts that the set as a whole has to cover.

    Attributes:
        count: How many candidates have to cover a topic, ≥ 1.
        empty: v(∅), in units of the weights.
    """

    type: ClassVar[str] = "coverage"
    count: int = 1
    empty: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"coverage needs coverers: got count = {self.count}, expected count ≥ 1")

    @property
    def topic_game(self) -> Threshold:
        """The game of one topic: 1 when enough of the coalition cover it."""
        return Threshold(threshold=1.0, count=self.count)

    @property
    def empty_utility(self) -> float:
        """v(∅), units of the utility."""
        return self.empty


@dataclass(frozen=True)
class CoverageGames:
    """Games of candidates that cover topics.

    A topic that pads a set has weight 0 and no coverer, and changes no bit wherever it stands.

    Attributes:
        covers: Shape (B, n, T), bool: True where the candidate covers the topic.
        topic_weights: Shape (B, T), float64, finite, of either sign.
        utility: How many coverers a topic needs.
    """

    every_semivalue: ClassVar[bool] = True
    covers: NDArray[np.bool_]
    topic_weights: Floats
    utility: Coverage

    def __post_init__(self) -> None:
        expected = (self.covers.shape[0], self.covers.shape[-1])
        if self.covers.ndim != 3 or self.topic_weights.shape != expected:
            raise ValueError(
                f"each topic needs one weight: got covers {self.covers.shape} and weights {self.topic_weights.shape}, "
                "expected (B, n, T) and (B, T)"
            )

    @property
    def n_players(self) -> int:
        """Number of players."""
        return int(self.covers.shape[1])

    def empty(self) -> Floats:
        """v(∅), shape (B,)."""
        return np.full(len(self.covers), float(self.utility.empty))

    def grand(self) -> Floats:
        """v(N), shape (B,): the total weight of the topics that are covered."""
        if self.n_players == 0:
            return self.empty()
        return _totals(np.where(self._coverers() >= self.utility.count, self.topic_weights, 0.0))

    def scale(self) -> Floats:
        """Larger of |v(∅)| and the total magnitude of the weights of covered topics, shape (B,)."""
        covered = _totals(np.where(self._coverers() >= self.utility.count, np.abs(self.topic_weights), 0.0))
        scale: Floats = np.maximum(covered, abs(float(self.utility.empty)))
        return scale

    def restricted(self, players: NDArray[np.int64]) -> CoverageGames:
        """The games among some of the players, shape (m,), in the order named."""
        return replace(self, covers=self.covers[:, players])

    def semivalues(self, weights: Floats) -> Floats:
        """Semivalues, φ_i = Σ_{t covered by i} w_t·α(m_t) − q_0·v(∅) with m_t coverers of t, shape (B, n).

        α(m) is the value of a player above in the threshold game of `count` (`level_values`): 1/m or 0 for Shapley.
        The others of that game have exactly 0, because nobody who does not cover a topic changes whether it is covered.
        """
        above, _ = level_values(self.utility.topic_game, self.n_players, weights)
        worth = self.topic_weights * above[self._coverers()]
        values = np.zeros(self.covers.shape[:2])
        for topic in range(self.covers.shape[2]):
            values += np.where(self.covers[:, :, topic], worth[:, topic, None], 0.0)
        credit: Floats = values - weights[0] * self.utility.empty + 0.0
        return credit

    def _coverers(self) -> NDArray[np.int64]:
        """Number of candidates that cover each topic, shape (B, T)."""
        coverers: NDArray[np.int64] = self.covers.sum(axis=1, dtype=np.int64)
        return coverers


@dataclass(frozen=True)
class FacilityLocation:
    """Total over targets of the best score that the set offers, v(S) = Σ_t w_t·max_{i ∈ S} s_it.

    Serves users or cases of several kinds: each takes the candidate that suits it best, so hedging pays.

    Attributes:
        weights: w_t, one per target, of either sign; None: all 1.
        unserved: b, value of a target when the coalition is empty, score units.
        empty: v(∅), in units of the utility; None means Σ_t w_t·b. With a number here leave `unserved` 0.
    """

    type: ClassVar[str] = "facility_location"
    weights: tuple[float, ...] | None = None
    unserved: float = 0.0
    empty: float | None = None

    def __post_init__(self) -> None:
        if self.empty is not None and self.unserved != 0.0:
            raise ValueError(
                f"empty and unserved both define v(∅): got {self.empty} and {self.unserved}, expected one of them"
            )


@dataclass(frozen=True)
class FacilityLocationGames:
    """Games of candidates that serve targets.

    Attributes:
        scores: Shape (B, n, T), float64, finite: what the target takes from the candidate.
        utility: Weights of the targets and v(∅).
    """

    every_semivalue: ClassVar[bool] = True
    scores: Floats
    utility: FacilityLocation

    def __post_init__(self) -> None:
        if self.scores.ndim != 3:
            raise ValueError(f"scores must have one entry per target: got {self.scores.shape}, expected (B, n, T)")
        weights = self.utility.weights
        if weights is not None and len(weights) != self.scores.shape[2]:
            raise ValueError(
                f"each target needs one weight: got {len(weights)} weights, expected {self.scores.shape[2]}"
            )

    @property
    def n_players(self) -> int:
        """Number of players."""
        return int(self.scores.shape[1])

    def empty(self) -> Floats:
        """v(∅), shape (B,)."""
        return np.full(len(self.scores), self._of_nobody() if self.utility.empty is None else self.utility.empty)

    def grand(self) -> Floats:
        """v(N), shape (B,): each target takes its best score."""
        if self.n_players == 0:
            return self.empty()
        return _totals(self._target_weights() * self.scores.max(axis=1))

    def scale(self) -> Floats:
        """Larger of |v(∅)| and Σ_t |w_t|·max_i |s_it|, shape (B,)."""
        largest = np.abs(self.scores).max(axis=1, initial=0.0)
        scale: Floats = np.maximum(_totals(np.abs(self._target_weights()) * largest), np.abs(self.empty()))
        return scale

    def restricted(self, players: NDArray[np.int64]) -> FacilityLocationGames:
        """The games among some of the players, shape (m,), in the order named."""
        return replace(self, scores=self.scores[:, players])

    def semivalues(self, weights: Floats) -> Floats:
        """Semivalues, φ_i = Σ_t w_t·φ_i(airport game of target t from b), less q_0·v(∅) if given, shape (B, n)."""
        n_sets, n, n_targets = self.scores.shape
        check_size_weights(weights, n)
        target_game = Max(empty=self.utility.unserved)
        values = np.zeros((n_sets, n))
        together = max(1, BLOCK_SIZE // max(1, n_sets * n))
        for start in range(0, n_targets, together):
            columns = self.scores[:, :, start : start + together].transpose(0, 2, 1)
            of_targets = semivalues(columns.reshape(-1, n), target_game, weights).reshape(columns.shape)
            for target, weight in enumerate(self._target_weights()[start : start + together]):
                values += weight * of_targets[:, target]
        credit: Floats = values - weights[0] * (self.utility.empty or 0.0) + 0.0
        return credit

    def _target_weights(self) -> Floats:
        """w_t, shape (T,)."""
        weights = self.utility.weights
        return np.ones(self.scores.shape[2]) if weights is None else np.array(weights, dtype=np.float64)

    def _of_nobody(self) -> float:
        """Σ_t w_t·b, what the empty coalition is worth when every target then has b."""
        return float(_totals(self._target_weights() * self.utility.unserved))


def _totals(terms: Floats) -> Floats:
    """Sums along the last axis, one by one from 0, so that terms of 0 in between change no bit."""
    from_nothing = np.concatenate([np.zeros((*terms.shape[:-1], 1)), terms], axis=-1)
    totals: Floats = np.cumsum(from_nothing, axis=-1)[..., -1]
    return totals
