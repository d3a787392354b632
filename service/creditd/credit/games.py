"""Batches of set games of one size, behind the four questions that every credit rule asks.

Legend: `B` sets, `n` players. A coalition is a set of players; v(S) is its utility in reward units.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.credit_rules import (
    Blend,
    CreditRule,
    Owen,
    PrefixGain,
    SetReward,
    size_weights,
    without_null_players,
)
from creditd.credit.level_games import RankedRewards, ranked, ranked_grand_utilities, ranked_semivalues
from creditd.credit.order_statistics import OrderStatistic
from creditd.credit.owen import owen_values
from creditd.credit.tables import player_count, restrict_players, table_semivalues

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

MAX_ENUMERATED_PLAYERS = 16
"""A game of n players that has no formula is solved from its 2ⁿ utilities."""


@dataclass(frozen=True)
class Table:
    """Any utility, given as its 2ⁿ values per set; bit i of the index is player i."""

    type: ClassVar[str] = "table"


class SetGames(Protocol):
    """B games of n players each.

    Attributes:
        every_semivalue: Whether `semivalues` takes any weights, and not those of Shapley, own reward and leave-one-out
            alone.
    """

    every_semivalue: ClassVar[bool]

    @property
    def n_players(self) -> int:
        """Number of players n ≥ 1."""

    def empty(self) -> Floats:
        """v(∅), shape (B,)."""

    def grand(self) -> Floats:
        """v(N), shape (B,)."""

    def scale(self) -> Floats:
        """Largest magnitude among the utilities that enter, shape (B,)."""

    def restricted(self, players: Integers) -> SetGames:
        """The games among some players, named by position, in the order named; players has shape (m,), m ≥ 0."""

    def semivalues(self, weights: Floats) -> Floats:
        """Semivalues with coalition-size weights of shape (n,), shape (B, n)."""


@dataclass(frozen=True)
class OrderStatisticGames:
    """Games of candidates with rewards.

    Attributes:
        rewards: Shape (B, n), float64, reward units, finite.
        utility: Utility of a set of rewards.
    """

    every_semivalue: ClassVar[bool] = True
    rewards: Floats
    utility: OrderStatistic

    @property
    def n_players(self) -> int:
        """Number of players."""
        return int(self.rewards.shape[1])

    @cached_property
    def _ranked(self) -> RankedRewards:
        return ranked(self.rewards, self.utility)

    @cached_property
    def _grand(self) -> Floats:
        return ranked_grand_utilities(self._ranked, self.utility)

    def empty(self) -> Floats:
        """v(∅), shape (B,)."""
        return np.full(len(self.rewards), float(self.utility.empty_utility))

    def grand(self) -> Floats:
        """v(N), shape (B,)."""
        return self._grand

    def scale(self) -> Floats:
        """Largest of |v(∅)|, |v(N)| and the magnitudes of the rewards as the utility sees them, shape (B,)."""
        lowest, highest = self._ranked.ascending[0], self._ranked.ascending[-1]
        utilities = np.maximum(np.abs(self._grand), abs(float(self.utility.empty_utility)))
        largest: Floats = np.maximum(np.maximum(np.abs(lowest), np.abs(highest)), utilities)
        return largest

    def restricted(self, players: Integers) -> OrderStatisticGames:
        """The games among some players."""
        return OrderStatisticGames(rewards=self.rewards[:, players], utility=self.utility)

    def semivalues(self, weights: Floats) -> Floats:
        """Semivalues by the L-statistics kernel, shape (B, n)."""
        return ranked_semivalues(self._ranked, self.utility, weights)


@dataclass(frozen=True)
class TableGames:
    """Games given by all their utilities.

    Attributes:
        tables: Shape (B, 2^K), float64, reward units, finite.
        players: Shape (B, n), int64: the bits that play, in the order of the candidates; the others are never present.
        ranks: Shape (B, n), int64: the arithmetic runs in ascending rank, so that players who carry an identity get the
            same bits whatever their order.
    """

    every_semivalue: ClassVar[bool] = True
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
        index = (np.int64(1) << self.players).sum(axis=1, dtype=np.int64)
        return np.take_along_axis(self.tables, index[:, None], axis=1)[:, 0]

    def scale(self) -> Floats:
        """Largest magnitude in each table, shape (B,)."""
        largest: Floats = np.abs(self.tables).max(axis=1)
        return largest

    def restricted(self, players: Integers) -> TableGames:
        """The games among some players."""
        return TableGames(tables=self.tables, players=self.players[:, players], ranks=self.ranks[:, players])

    def semivalues(self, weights: Floats) -> Floats:
        """Semivalues by one matrix product per 64 tables, shape (B, n)."""
        tables, order = self.in_order()
        return _at(order, table_semivalues(tables, weights))

    def in_order(self) -> tuple[Floats, Integers]:
        """Tables of the players alone in ascending rank, shape (B, 2ⁿ), and which player stands where, shape (B, n)."""
        order = np.argsort(self.ranks, axis=1, kind="stable")
        in_order = np.arange(self.n_players)
        same = self.n_players == player_count(self.tables.shape[1]) and bool(
            (self.players == in_order).all() and (order == in_order).all()
        )
        if same:
            return self.tables, order
        return restrict_players(self.tables, np.take_along_axis(self.players, order, axis=1)), order


@dataclass(frozen=True)
class WeightedGames:
    """Games that are weighted sums of other games of the same players, v = Σ_t w_t · v_t.

    Attributes:
        weights: w_t, one per term.
        games: B games of n players per term.
    """

    every_semivalue: ClassVar[bool] = True
    weights: tuple[float, ...]
    games: tuple[SetGames, ...]

    @property
    def n_players(self) -> int:
        """Number of players."""
        return self.games[0].n_players

    def empty(self) -> Floats:
        """v(∅), shape (B,)."""
        return self._total([games.empty() for games in self.games])

    def grand(self) -> Floats:
        """v(N), shape (B,)."""
        return self._total([games.grand() for games in self.games])

    def scale(self) -> Floats:
        """Σ_t |w_t| · scale of the term, shape (B,)."""
        scales = [abs(weight) * games.scale() for weight, games in zip(self.weights, self.games, strict=True)]
        total: Floats = np.cumsum(scales, axis=0)[-1]
        return total

    def restricted(self, players: Integers) -> WeightedGames:
        """The games among some players."""
        return WeightedGames(weights=self.weights, games=tuple(games.restricted(players) for games in self.games))

    def semivalues(self, weights: Floats) -> Floats:
        """The weighted sum of the terms' semivalues, shape (B, n)."""
        return self._total([any_semivalues(games, weights) for games in self.games])

    def _total(self, parts: list[Floats]) -> Floats:
        weighted = [weight * part for weight, part in zip(self.weights, parts, strict=True)]
        total: Floats = np.cumsum(weighted, axis=0)[-1]
        return total


def enumerated(games: SetGames) -> TableGames:
    """The same games as tables of all their utilities.

    Args:
        games: B games of n players.

    Returns:
        B tables of 2ⁿ values whose players are those of the games, in their order.

    Raises:
        ValueError: If there are more than 16 players.

    Cost:
        2ⁿ evaluations of B games.
    """
    n = games.n_players
    if n > MAX_ENUMERATED_PLAYERS:
        raise ValueError(f"2**n utilities of n players: got n = {n}, expected at most {MAX_ENUMERATED_PLAYERS}")
    bits = np.arange(n)
    utilities = [games.restricted(bits[(mask >> bits) & 1 == 1]).grand() for mask in range(1 << n)]
    players = np.repeat(bits[None, :], len(utilities[0]), axis=0)
    return TableGames(tables=np.stack(utilities, axis=1), players=players, ranks=players)


def has_formula(weights: Floats) -> bool:
    """Whether semivalues with these size weights have a formula under every utility.

    Args:
        weights: Shape (n,), float64.

    Returns:
        True for equal weights (Shapley) and for weights on the smallest and the largest coalitions alone (own reward,
        leave-one-out).

    Cost:
        O(n).
    """
    return bool((weights == weights[0]).all()) or not weights[1:-1].any()


def any_semivalues(games: SetGames, weights: Floats) -> Floats:
    """Semivalues with any size weights, by enumeration where the games have a formula for some weights only.

    Args:
        games: B games of n players.
        weights: Shape (n,), float64.

    Returns:
        Shape (B, n), float64, reward units.

    Raises:
        ValueError: If enumeration is needed for more than 16 players.

    Cost:
        That of the games' kernel, or 2ⁿ evaluations.
    """
    by_formula = games.every_semivalue or has_formula(weights)
    return (games if by_formula else enumerated(games)).semivalues(weights)


def _at(order: Integers, values: Floats) -> Floats:
    """Values of ordered players, back at the players' places."""
    result = np.empty_like(values)
    np.put_along_axis(result, order, values, axis=1)
    return result


def _owen(games: SetGames, unions: Integers | None) -> Floats:
    """Owen values, by the table of the games."""
    if unions is None:
        raise ValueError("the Owen value needs a union for each player")
    tables, order = (games if isinstance(games, TableGames) else enumerated(games)).in_order()
    return _at(order, owen_values(tables, np.take_along_axis(unions, order, axis=1)))


def candidate_credits(games: SetGames, rule: CreditRule, n_candidates: int, unions: Integers | None = None) -> Floats:
    """Credit of each player of a batch of games of one size.

        semivalue rules: Σ_k w_k · sloo_minus_one(k);  set_reward: (v(N) − v(∅))/n;  prefix_gain: v(N) − v(before i)
        blend: (1 − p)·start + p·end;  owen: Shapley over unions, then inside each

    Args:
        games: B games of n players.
        rule: Which credit.
        n_candidates: K ≥ n, candidates of each set; K − n of them are null players (collapsed copies), which have
            credit 0 and stand outside the games.
        unions: Shape (B, n), int64, for `Owen`: players of one union share a number.

    Returns:
        Shape (B, n), float64, reward units. `shapley`, `owen` and `set_reward` sum to v(N) − v(∅).

    Raises:
        ValueError: If a `Mixture` is not made for K candidates, `Owen` has no unions, or a rule that needs the table of
            the games has more than 16 players.

    Cost:
        That of the utility's kernel, once per end of a blend; prefix_gain evaluates n prefixes; owen, and rules without
        a formula under the utility, 2ⁿ coalitions.

    Reference:
        ShapE-GRPO, arXiv:2603.29871v1 (Shapley); PKPO, arXiv:2505.15201 (max@k).

    Differs from the paper:
        The family, the blend and prefix_gain are creditd's.
    """
    if isinstance(rule, Blend):
        start = candidate_credits(games, rule.start, n_candidates, unions)
        end = candidate_credits(games, rule.end, n_candidates, unions)
        return (1.0 - rule.position) * start + rule.position * end
    if isinstance(rule, SetReward):
        share = (games.grand() - games.empty()) / games.n_players
        return np.repeat(share[:, None], games.n_players, axis=1)
    if isinstance(rule, PrefixGain):
        before = [games.restricted(np.arange(j)).grand() for j in range(games.n_players)]
        return games.grand()[:, None] - np.stack(before, axis=1)
    if isinstance(rule, Owen):
        return _owen(games, unions)
    return any_semivalues(games, without_null_players(size_weights(rule, n_candidates), games.n_players))
