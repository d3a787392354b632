"""Games over candidate sets whose Shapley values have a formula, for benchmarks of estimators; NumPy alone.

Every game is a pair: `utilities(coalitions)`, which counts as one evaluation per row, and `shapley_values`, which no
estimator sees. Nothing here imports the library that is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class FacilityLocation:
    """v(S) = mean over targets of the best similarity of a member, v(∅) = 0.

    Attributes:
        similarities: Shape (n, T), ≥ 0.
    """

    similarities: Floats

    def utilities(self, coalitions: Booleans) -> Floats:
        """Utility of each coalition, shape (R,)."""
        total = np.zeros(len(coalitions))
        for column in self.similarities.T:
            total += np.where(coalitions, column, 0.0).max(axis=1)
        return total / self.similarities.shape[1]

    @property
    def shapley_values(self) -> Floats:
        """One airport game per target: each step between sorted similarities is shared by the players above it."""
        n, n_targets = self.similarities.shape
        order = np.argsort(self.similarities, axis=0)
        steps = np.diff(np.take_along_axis(self.similarities, order, axis=0), axis=0, prepend=0.0)
        shares = np.cumsum(steps / np.arange(n, 0, -1)[:, None], axis=0)
        values = np.empty_like(shares)
        np.put_along_axis(values, order, shares, axis=0)
        return values.sum(axis=1) / n_targets


@dataclass(frozen=True)
class Plurality:
    """v(S) = reward of the answer with the most votes, 0 when the lead is shared.

    Attributes:
        answers: Shape (n,), int: the answer of each player, 0 … K−1.
        rewards: Shape (K,).
    """

    answers: NDArray[np.int64]
    rewards: Floats

    def utilities(self, coalitions: Booleans) -> Floats:
        """Utility of each coalition, shape (R,)."""
        votes = np.stack([coalitions[:, self.answers == k].sum(axis=1) for k in range(len(self.rewards))], axis=1)
        lead = votes.max(axis=1, keepdims=True)
        alone = (votes == lead).sum(axis=1) == 1
        return np.where(alone, self.rewards[votes.argmax(axis=1)], 0.0)

    @property
    def shapley_values(self) -> Floats:
        """∫₀¹ of the expected gain when every other player is in with probability t: Gauss nodes are exact for it."""
        nodes, weights = np.polynomial.legendre.leggauss(len(self.answers))
        sizes = np.bincount(self.answers, minlength=len(self.rewards))
        values = np.zeros(len(self.answers))
        for answer in range(len(sizes)):
            others = [int(size) - (k == answer) for k, size in enumerate(sizes)]
            if others[answer] < 0:
                continue
            gain = 0.0
            for node, weight in zip(nodes, weights, strict=True):
                t = 0.5 + 0.5 * float(node)
                counts = [_binomial(size, t) for size in others]
                before = self._expected(counts)
                counts[answer] = np.append(0.0, counts[answer])
                gain += 0.5 * float(weight) * (self._expected(counts) - before)
            values[self.answers == answer] = gain
        return values

    def _expected(self, counts: list[Floats]) -> float:
        """Expected utility when the votes of each answer are independent with these distributions."""
        length = max(map(len, counts))
        padded = np.stack([np.pad(one, (0, length - len(one))) for one in counts])
        below = np.concatenate([np.zeros((len(counts), 1)), np.cumsum(padded, axis=1)[:, :-1]], axis=1)
        expected = 0.0
        for k, reward in enumerate(self.rewards):
            others = np.delete(below, k, axis=0).prod(axis=0)
            expected += float(reward) * float((padded[k] * others).sum())
        return expected


def _binomial(size: int, t: float) -> Floats:
    """Probabilities of 0 … size successes."""
    return np.array([math.comb(size, u) * t**u * (1.0 - t) ** (size - u) for u in range(size + 1)])


@dataclass(frozen=True)
class UnanimityGames:
    """v(S) = Σ of the weights of the teams that S holds completely.

    Attributes:
        teams: Shape (M, n), bool.
        weights: Shape (M,).
    """

    teams: Booleans
    weights: Floats

    def utilities(self, coalitions: Booleans) -> Floats:
        """Utility of each coalition, shape (R,)."""
        total = np.zeros(len(coalitions))
        for team, weight in zip(self.teams, self.weights, strict=True):
            total += weight * coalitions[:, team].all(axis=1)
        return total

    @property
    def shapley_values(self) -> Floats:
        """Each team shares its weight equally."""
        return (self.teams * (self.weights / self.teams.sum(axis=1))[:, None]).sum(axis=0)


@dataclass(frozen=True)
class LogSumExp:
    """v(S) = τ·log(1 + Σ_{i∈S} exp(a_i/τ)): a smooth maximum with an outside option of 0.

    Attributes:
        rewards: a, shape (n,).
        temperature: τ > 0.
    """

    rewards: Floats
    temperature: float = 0.25

    def utilities(self, coalitions: Booleans) -> Floats:
        """Utility of each coalition, shape (R,)."""
        weights = np.exp(self.rewards / self.temperature)
        return self.temperature * np.log1p(np.where(coalitions, weights, 0.0).sum(axis=1))

    @property
    def shapley_values(self) -> Floats:
        """τ∫₀^∞ ds/s · e^(−s)·(1 − e^(−s·w_i))·∫₀¹ Π_{k≠i}(1 − t·(1 − e^(−s·w_k))) dt.

        It follows from log x = ∫₀^∞ (e^(−s) − e^(−s·x))/s ds.
        """
        weights = np.exp(self.rewards / self.temperature)
        nodes, node_weights = np.polynomial.legendre.leggauss(len(weights) // 2 + 1)
        t, t_weights = 0.5 + 0.5 * nodes, 0.5 * node_weights
        grid = np.linspace(-6.0, 60.0, 1200)
        values = np.zeros(len(weights))
        for x in grid:
            log_s = x - math.exp(-x)
            s = math.exp(log_s)
            if s > 745.0:
                continue
            present = -np.expm1(-s * weights)
            factors = 1.0 - t[:, None] * present[None, :]
            inner = (factors.prod(axis=1, keepdims=True) / factors * t_weights[:, None]).sum(axis=0)
            values += math.exp(-s) * present * inner * (1.0 + math.exp(-x))
        return self.temperature * values * (grid[1] - grid[0])


Game = FacilityLocation | Plurality | UnanimityGames | LogSumExp


@dataclass(frozen=True)
class Maximum:
    """v(S) = max a_i, 0 for nobody: what the proxy of the estimators contains.

    Attributes:
        rewards: a, shape (n,).
    """

    rewards: Floats

    def utilities(self, coalitions: Booleans) -> Floats:
        """Utility of each coalition, shape (R,)."""
        best = np.where(coalitions, self.rewards, -np.inf).max(axis=1)
        return np.where(coalitions.any(axis=1), best, 0.0)

    @property
    def shapley_values(self) -> Floats:
        """Each step from one reward to the next is shared by those above it."""
        order = np.argsort(self.rewards)
        steps = np.diff(self.rewards[order], prepend=0.0) / np.arange(len(order), 0, -1)
        values = np.empty(len(order))
        values[order] = np.cumsum(steps)
        return values


GAMES = ("facility_location", "plurality", "unanimity_games", "log_sum_exp")

MAXIMUM = "maximum"
"""Not among the games of which anything is promised, nor among those of which errors are compared."""


def game(name: str, n_players: int, seed: int) -> Game:
    """A random game of its kind.

    Facility location: points of the plane, 32 targets, Gaussian similarity. Plurality: five answers with chances 0.3,
    0.25, 0.2, 0.15 and 0.1, rewards 1, 0, 0, 0.5 and 0. Unanimity games: 40 teams of one to five players with standard
    normal weights. Log-sum-exp: uniform rewards, τ = 1/4. Maximum: standard normal rewards.
    """
    random = np.random.default_rng([seed, n_players, (*GAMES, MAXIMUM).index(name)])
    if name == MAXIMUM:
        return Maximum(random.normal(size=n_players))
    if name == "facility_location":
        points, targets = random.normal(size=(n_players, 2)), random.normal(size=(32, 2))
        squares = ((points[:, None, :] - targets[None, :, :]) ** 2).sum(axis=2)
        return FacilityLocation(np.exp(-squares))
    if name == "plurality":
        answers = random.choice(5, size=n_players, p=[0.3, 0.25, 0.2, 0.15, 0.1])
        return Plurality(answers.astype(np.int64), np.array([1.0, 0.0, 0.0, 0.5, 0.0]))
    if name == "unanimity_games":
        teams = np.zeros((40, n_players), dtype=bool)
        for team in teams:
            team[random.choice(n_players, size=random.integers(1, 6), replace=False)] = True
        return UnanimityGames(teams, random.normal(size=40))
    return LogSumExp(random.uniform(size=n_players))
