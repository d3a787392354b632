"""Set utilities that are not order statistics, from their definitions in plain Python; nothing imports the library.

A utility takes the list of players of a coalition; the empty list is v(∅).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from credit import oracles

UtilityOfPlayers = Callable[[Sequence[int]], float]


def game_of_players(n: int, utility: UtilityOfPlayers) -> list[float]:
    """All 2ⁿ utilities of a game."""
    return [utility(oracles.members_of(mask, n)) for mask in range(1 << n)]


def semivalue(values: Sequence[float], n: int, size_weights: Sequence[float]) -> list[float]:
    """Σ_s q_s · mean over coalitions of size s without the player of its marginal utility."""
    family = [float(q) * n / (s + 1) for s, q in enumerate(size_weights)]
    return oracles.semivalue_by_subsets(values, n, family)


def shapley_of_two_kinds(n_first: int, n_second: int, utility: Callable[[int, int], float]) -> tuple[float, float]:
    """Shapley values of one player of each kind, by the hypergeometric sum over how many of each are there."""
    n = n_first + n_second

    def value(ours: int, theirs: int, gain: Callable[[int, int], float]) -> float:
        return math.fsum(
            math.comb(ours - 1, a) * math.comb(theirs, b) / math.comb(n - 1, a + b) / n * gain(a, b)
            for a in range(ours)
            for b in range(theirs + 1)
        )

    return (
        value(n_first, n_second, lambda a, b: utility(a + 1, b) - utility(a, b)),
        value(n_second, n_first, lambda b, a: utility(a, b + 1) - utility(a, b)),
    )


def noisy_or(
    probabilities: Sequence[Sequence[float]], weights: Sequence[float], *, empty: float = 0.0
) -> UtilityOfPlayers:
    """Σ_t w_t · (probability that some candidate covers topic t), with probabilities[i][t]."""

    def covered(chances: Sequence[float]) -> float:
        return 1.0 if 1.0 in chances else -math.expm1(math.fsum(math.log1p(-p) for p in chances))

    def utility(players: Sequence[int]) -> float:
        if not players:
            return empty
        return math.fsum(w * covered([probabilities[i][t] for i in players]) for t, w in enumerate(weights))

    return utility


def log_sum_exp(
    rewards: Sequence[float], temperature: float, *, empty: float, baseline: float | None = None
) -> UtilityOfPlayers:
    """τ·log of the sum of e^{r/τ}, the baseline among the rewards."""
    always = [] if baseline is None else [baseline]

    def utility(players: Sequence[int]) -> float:
        if not players:
            return empty
        present = always + [rewards[i] for i in players]
        top = max(present)
        return top + temperature * math.log(math.fsum(math.exp((r - top) / temperature) for r in present))

    return utility


def plurality(
    labels: Sequence[int], rewards: Sequence[float], *, ties: str = "split", empty: float = 0.0
) -> UtilityOfPlayers:
    """Reward of the answer with the most votes; a tie gives the mean of the tied answers' rewards, or nothing."""
    reward_of = dict(zip(labels, rewards, strict=True))

    def utility(players: Sequence[int]) -> float:
        if not players:
            return empty
        votes = Counter(labels[i] for i in players)
        winners = [label for label, count in votes.items() if count == max(votes.values())]
        if len(winners) > 1 and ties == "lose":
            return 0.0
        return math.fsum(reward_of[label] for label in winners) / len(winners)

    return utility
