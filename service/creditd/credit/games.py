"""Batches of set games of one size, behind the four questions that every credit rule asks.

Legend: `B` sets, `n` players. A coalition is a set of players; v(S) is its utility in reward units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.credit_rules import Blend, CreditRule, PrefixGain, SetReward, size_weights, without_null_players
from creditd.credit.level_games import grand_utilities, semivalues
from creditd.credit.order_statistics import OrderStatistic
from creditd.credit.tables import player_count, restrict_players, table_semivalues

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """Any utility, given as its 2ⁿ values per set; bit i of the index is player i."""

    type: ClassVar[str] = "table"


Utility: TypeAlias = OrderStatistic | Table


class SetGames(Protocol):
    """B games of n players each."""

    @property
    def n_players(self) -> int:
        """Number of players n ≥ 1."""

    def empty(self) -> Floats:
        """v(∅), shape (B,)."""

    def grand(self) -> Floats:
        """v(N), shape (B,)."""

    def scale(self) -> Floats:
        """Largest magnitude among the utilities that enter, shape (B,)."""

    def prefixes(self) -> Floats:
        """v(first j players) for j = 0 … n−1 in the order given, shape (B, n)."""

    def semivalues(self, weights: Floats) -> Floats:
        """Semivalues with coalition-size weights of shape (n,), shape (B, n)."""


@dataclass(frozen=True)
class OrderStatisticGames:
    """Games of candidates with rewards.

    Attributes:
        rewards: Shape (B, n), float64, reward units, finite.
        utility: Utility of a set of rewards.
    """

    rewards: Floats
    utility: OrderStatistic

    @property
    def n_players(self) -> int:
        """Number of players."""
        return int(self.rewards.shape[1])

    def empty(self) -> Floats:
        """v(∅), shape (B,)."""
        return np.full(len(self.rewards), float(self.utility.empty_utility))

    def grand(self) -> Floats:
        """v(N), shape (B,)."""
        return grand_utilities(self.rewards, self.utility)

    def scale(self) -> Floats:
        """Largest of |v(∅)|, |v(N)| and the magnitudes of the rewards as the utility sees them, shape (B,)."""
        largest: Floats = np.abs(self.utility.prepare(self.rewards)).max(axis=1)
        utilities: Floats = np.maximum(np.abs(self.grand()), abs(float(self.utility.empty_utility)))
        return np.maximum(largest, utilities)

    def prefixes(self) -> Floats:
        """v(first j players), shape (B, n)."""
        columns = [grand_utilities(self.rewards[:, :j], self.utility) for j in range(self.n_players)]
        return np.stack(columns, axis=1)

    def semivalues(self, weights: Floats) -> Floats:
        """Semivalues by the L-statistics kernel, shape (B, n)."""
        return semivalues(self.rewards, self.utility, weights)


@dataclass(frozen=True)
class TableGames:
    """Games given by all their utilities.

    Attributes:
        tables: Shape (B, 2^K), float64, reward units, finite.
        players: Shape (B, n), int64: the bits that play, in the order of the candidates; the others are never present.
        ranks: Shape (B, n), int64: the arithmetic runs in ascending rank, so that players who carry an identity get the
            same bits whatever their order.
    """

    tables: Floats
    players: Integers
    ranks: Integers

    @property
    def n_players(self) -> int:
        """Number of players."""
        return int(self.players.shape[1])

    def empty(self) -> Floats:
        """v(∅), shape (B,)."""
        return self.tables[:, 0].copy()

    def grand(self) -> Floats:
        """v(N), shape (B,)."""
        return self._utilities(self.n_players)

    def scale(self) -> Floats:
        """Largest magnitude in each table, shape (B,)."""
        largest: Floats = np.abs(self.tables).max(axis=1)
        return largest

    def prefixes(self) -> Floats:
        """v(first j players), shape (B, n)."""
        return np.stack([self._utilities(j) for j in range(self.n_players)], axis=1)

    def semivalues(self, weights: Floats) -> Floats:
        """Semivalues by one matrix product per 64 tables, shape (B, n)."""
        order = np.argsort(self.ranks, axis=1, kind="stable")
        in_order = np.arange(self.n_players)
        same = self.n_players == player_count(self.tables.shape[1]) and bool(
            (self.players == in_order).all() and (order == in_order).all()
        )
        tables = self.tables if same else restrict_players(self.tables, np.take_along_axis(self.players, order, axis=1))
        values = table_semivalues(tables, weights)
        result = np.empty_like(values)
        np.put_along_axis(result, order, values, axis=1)
        return result

    def _utilities(self, n_first: int) -> Floats:
        index = (np.int64(1) << self.players[:, :n_first]).sum(axis=1, dtype=np.int64)
        return np.take_along_axis(self.tables, index[:, None], axis=1)[:, 0]


def candidate_credits(games: SetGames, rule: CreditRule, n_candidates: int) -> Floats:
    """Credit of each player of a batch of games of one size.

        semivalue rules: Σ_k w_k · sloo_minus_one(k);  set_reward: (v(N) − v(∅))/n;  prefix_gain: v(N) − v(before i)
        blend: (1 − p)·start + p·end

    Args:
        games: B games of n players.
        rule: Which credit.
        n_candidates: K ≥ n, candidates of each set; K − n of them are null players (collapsed copies), which have
            credit 0 and stand outside the games.

    Returns:
        Shape (B, n), float64, reward units. `shapley` and `set_reward` sum to v(N) − v(∅).

    Raises:
        ValueError: If a `Mixture` is not made for K candidates.

    Cost:
        That of the utility's kernel, once per end of a blend; prefix_gain evaluates n prefixes.

    Reference:
        ShapE-GRPO, arXiv:2603.29871v1 (Shapley); PKPO, arXiv:2505.15201 (max@k).

    Differs from the paper:
        The family, the blend and prefix_gain are creditd's.
    """
    if isinstance(rule, Blend):
        start = candidate_credits(games, rule.start, n_candidates)
        end = candidate_credits(games, rule.end, n_candidates)
        return (1.0 - rule.position) * start + rule.position * end
    if isinstance(rule, SetReward):
        share = (games.grand() - games.empty()) / games.n_players
        return np.repeat(share[:, None], games.n_players, axis=1)
    if isinstance(rule, PrefixGain):
        return games.grand()[:, None] - games.prefixes()
    return games.semivalues(without_null_players(size_weights(rule, n_candidates), games.n_players))
