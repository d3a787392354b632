"""Sets of candidates of which everything is known, and what they are worth by definition; nothing imports the library.

A utility is a name and its parameters, as on the wire; a sum of utilities is a list of weights with such pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from credit import closed_oracles, oracles, smooth_oracles, table_oracles

Choice = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class KnownSet:
    """One set of K candidates.

    Attributes:
        rewards: K rewards; None for a candidate that was not scored.
        labels: The answer of each candidate; candidates of one answer have one reward.
        topics: What each candidate covers.
        scores: What each candidate is worth to each target, in [0, 1].
        vectors: One vector per candidate; their inner products are the similarities.
        unions: The union of each candidate.
    """

    rewards: tuple[float | None, ...]
    labels: tuple[int, ...]
    topics: tuple[frozenset[int], ...]
    scores: tuple[tuple[float, ...], ...]
    vectors: tuple[tuple[float, ...], ...]
    unions: tuple[int, ...]

    @property
    def size(self) -> int:
        """K."""
        return len(self.rewards)

    @property
    def similarities(self) -> list[list[float]]:
        """Inner products of the vectors: symmetric, with no negative eigenvalue."""
        return [
            [math.fsum(a * b for a, b in zip(one, other, strict=True)) for other in self.vectors]
            for one in self.vectors
        ]

    def only(self, places: Sequence[int]) -> KnownSet:
        """The same set with the candidates at these places alone, in this order."""
        columns = (self.rewards, self.labels, self.topics, self.scores, self.vectors, self.unions)
        return KnownSet(*(tuple(column[place] for place in places) for column in columns))


def _of_rewards(utility: Callable[[Sequence[float]], float]) -> Callable[[KnownSet], list[float]]:
    return lambda one: oracles.game_of(one.rewards, utility)


def game_of(one: KnownSet, choice: Choice | list[tuple[float, Choice]]) -> list[float]:
    """All 2ᴷ utilities of a set whose candidates are all scored."""
    if isinstance(choice, list):
        games = [(weight, game_of(one, term)) for weight, term in choice]
        return [math.fsum(weight * game[mask] for weight, game in games) for mask in range(1 << one.size)]
    name, parameters = choice
    return _GAMES[name](**parameters)(one)


def empty_of(choice: Choice | list[tuple[float, Choice]]) -> float:
    """v(∅)."""
    nobody = KnownSet((), (), (), (), (), ())
    return game_of(nobody, choice)[0]


def _coverage(weights: dict[int, float], count: int, empty: float) -> Callable[[KnownSet], list[float]]:
    names = sorted(weights)
    return lambda one: (
        closed_oracles.coverage_game(
            [[name in topics for name in names] for topics in one.topics],
            [weights[name] for name in names],
            count=count,
            empty=empty,
        )
        if one.size
        else [empty]
    )


def _facility(weights: Sequence[float], empty: float) -> Callable[[KnownSet], list[float]]:
    return lambda one: closed_oracles.facility_game(one.scores, weights, empty=empty)


def _noisy(weights: Sequence[float], empty: float) -> Callable[[KnownSet], list[float]]:
    return lambda one: smooth_oracles.game_of_players(
        one.size, smooth_oracles.noisy_or(one.scores, weights, empty=empty)
    )


def _soft(**parameters: Any) -> Callable[[KnownSet], list[float]]:
    return lambda one: smooth_oracles.game_of_players(one.size, smooth_oracles.log_sum_exp(one.rewards, **parameters))


def _votes(**parameters: Any) -> Callable[[KnownSet], list[float]]:
    return lambda one: smooth_oracles.game_of_players(
        one.size, smooth_oracles.plurality(one.labels, one.rewards, **parameters)
    )


def _of_pairs(game: Callable[..., list[float]]) -> Callable[..., Callable[[KnownSet], list[float]]]:
    return lambda **parameters: lambda one: game(one.similarities, one.rewards, **parameters)


_GAMES: dict[str, Callable[..., Callable[[KnownSet], list[float]]]] = {
    "max": lambda **parameters: _of_rewards(oracles.best(**parameters)),
    "min": lambda **parameters: _of_rewards(oracles.worst(**parameters)),
    "sum": lambda **parameters: _of_rewards(oracles.total(**parameters)),
    "mean": lambda **parameters: _of_rewards(oracles.average(**parameters)),
    "median": lambda **parameters: _of_rewards(closed_oracles.middle(**parameters)),
    "quantile": lambda q, empty: _of_rewards(closed_oracles.at_share(q, empty=empty)),
    "trimmed_mean": lambda fraction, empty: _of_rewards(closed_oracles.trimmed(fraction, empty=empty)),
    "cvar": lambda alpha, tail, empty: _of_rewards(closed_oracles.mean_of_tail(alpha, tail, empty=empty)),
    "top_m": lambda m, empty: _of_rewards(oracles.total_of_best(m, empty=empty)),
    "top_m_mean": lambda m, empty: _of_rewards(closed_oracles.mean_of_best(m, empty=empty)),
    "rth_best": lambda r, **parameters: _of_rewards(oracles.rth_largest(r, **parameters)),
    "max_at_k": lambda k, empty: _of_rewards(closed_oracles.best_of_a_draw(k, empty=empty)),
    "pass_at_k": lambda threshold, k, empty: _of_rewards(closed_oracles.pass_in_a_draw(threshold, k, empty=empty)),
    "threshold": lambda threshold, count, empty: _of_rewards(oracles.enough(threshold, count, empty=empty)),
    "all_pass": lambda threshold, empty: _of_rewards(closed_oracles.everyone(threshold, empty=empty)),
    "log_sum_exp": _soft,
    "plurality": _votes,
    "coverage": _coverage,
    "facility_location": _facility,
    "noisy_or": _noisy,
    "redundancy": _of_pairs(closed_oracles.redundancy_game),
    "max_minus_similarity": _of_pairs(closed_oracles.max_minus_similarity_game),
    "quality_novelty": _of_pairs(closed_oracles.quality_novelty_game),
    "mean_pairwise_diversity": lambda **parameters: (
        lambda one: closed_oracles.mean_pairwise_game(one.similarities, **parameters)
    ),
    "log_det": lambda form, empty: lambda one: table_oracles.log_det_game(one.similarities, form, empty),
}


def credit_of(
    values: Sequence[float], rule: tuple[Any, ...], unions: Sequence[int], nulls: Sequence[int] = ()
) -> list[float]:
    """Credit by the name of its rule, `owen` among them, alone or at an end of a blend; nulls change nothing."""
    n = len(unions)
    if rule[0] == "blend":
        start, end = (credit_of(values, each, unions, nulls) for each in rule[1:3])
        return [(1.0 - rule[3]) * a + rule[3] * b for a, b in zip(start, end, strict=True)]
    if rule[0] == "owen":
        return table_oracles.owen_by_orders(oracles.game_with_null_players(values, n, nulls), unions)
    return oracles.credit_by_definition(values, n, rule, nulls)
