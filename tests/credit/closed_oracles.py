"""Brute force and exact rational formulas for the utilities with closed forms; nothing here imports the library.

A utility of a list of rewards is a function of that list; the empty list is v(∅). A game is the list of its 2ⁿ
utilities: bit i of an index is player i.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

UtilityOfRewards = Callable[[Sequence[float]], float]
RankWeights = Callable[[int], dict[int, Fraction]]


# Utilities of a list of rewards, straight from their definitions.


def middle(*, empty: float) -> UtilityOfRewards:
    """The middle reward, or the mean of the two middle ones."""

    def utility(rewards: Sequence[float]) -> float:
        if not rewards:
            return empty
        ordered = sorted(rewards)
        half = len(ordered) // 2
        return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2

    return utility


def at_share(q: float, *, empty: float) -> UtilityOfRewards:
    """The reward at the place q·(s − 1) of the sorted ones, counted from 0, linear between neighbours."""

    def utility(rewards: Sequence[float]) -> float:
        if not rewards:
            return empty
        ordered = sorted(rewards)
        place = Fraction(q) * (len(ordered) - 1)
        lower = math.floor(place)
        upper = min(lower + 1, len(ordered) - 1)
        share = float(place - lower)
        return ordered[lower] * (1.0 - share) + ordered[upper] * share

    return utility


def trimmed(fraction: float, *, empty: float) -> UtilityOfRewards:
    """Mean without floor(fraction·s + 1e-9) rewards at each end, but of one or two when nothing would be left."""

    def utility(rewards: Sequence[float]) -> float:
        if not rewards:
            return empty
        ordered = sorted(rewards)
        for _ in range(math.floor(fraction * len(rewards) + 1e-9)):
            if len(ordered) > 2:
                ordered = ordered[1:-1]
        return math.fsum(ordered) / len(ordered)

    return utility


def mean_of_tail(alpha: float, tail: str, *, empty: float) -> UtilityOfRewards:
    """Mean of the first α·s of the rewards from one end, the last of them in part."""

    def utility(rewards: Sequence[float]) -> float:
        if not rewards:
            return empty
        left = counted = Fraction(alpha) * len(rewards)
        parts = []
        for reward in sorted(rewards, reverse=tail == "best"):
            share = max(min(left, Fraction(1)), Fraction(0))
            parts.append(float(share / counted) * reward)
            left -= share
        return math.fsum(parts)

    return utility


def mean_of_best(m: int, *, empty: float) -> UtilityOfRewards:
    """Mean of the m largest rewards, or of all when there are fewer."""

    def utility(rewards: Sequence[float]) -> float:
        if not rewards:
            return empty
        best = sorted(rewards, reverse=True)[:m]
        return math.fsum(best) / len(best)

    return utility


def best_of_a_draw(k: int, *, empty: float = 0.0) -> UtilityOfRewards:
    """Mean of the largest reward over all subsets of min(k, s) rewards."""

    def utility(rewards: Sequence[float]) -> float:
        if not rewards:
            return empty
        draws = [max(draw) for draw in itertools.combinations(rewards, min(k, len(rewards)))]
        return math.fsum(draws) / len(draws)

    return utility


def pass_in_a_draw(threshold: float, k: int, *, empty: float = 0.0) -> UtilityOfRewards:
    """Share of the subsets of min(k, s) rewards in which one reaches the threshold."""

    def utility(rewards: Sequence[float]) -> float:
        if not rewards:
            return empty
        draws = [any(r >= threshold for r in draw) for draw in itertools.combinations(rewards, min(k, len(rewards)))]
        return sum(draws) / len(draws)

    return utility


def everyone(threshold: float, *, empty: float) -> UtilityOfRewards:
    """1 when every reward reaches the threshold, else 0."""
    return lambda rewards: float(all(r >= threshold for r in rewards)) if rewards else empty


# The same utilities by the weight of each rank, 1 the best, among s rewards: v = Σ_r weight_r · (r-th best).


def ranks_of_median(s: int) -> dict[int, Fraction]:
    """The middle rank, or the two in the middle."""
    return {(s + 1) // 2: Fraction(1)} if s % 2 else dict.fromkeys((s // 2, s // 2 + 1), Fraction(1, 2))


def ranks_of_quantile(q: float) -> RankWeights:
    """The two ranks around the place q·(s − 1) from below."""

    def ranks(s: int) -> dict[int, Fraction]:
        place = Fraction(q) * (s - 1)
        lower = math.floor(place)
        weights = {s - lower: 1 - (place - lower)}
        if place > lower:
            weights[s - lower - 1] = place - lower
        return weights

    return ranks


def ranks_of_trimmed_mean(fraction: float) -> RankWeights:
    """The ranks between the two ends that are cut."""

    def ranks(s: int) -> dict[int, Fraction]:
        cut = min(math.floor(fraction * s + 1e-9), (s - 1) // 2)
        return dict.fromkeys(range(cut + 1, s - cut + 1), Fraction(1, s - 2 * cut))

    return ranks


def ranks_of_cvar(alpha: float, tail: str) -> RankWeights:
    """The ranks of a tail, the last one in part."""

    def ranks(s: int) -> dict[int, Fraction]:
        counted = Fraction(alpha) * s
        shares = {place: min(counted - place, Fraction(1)) / counted for place in range(math.ceil(counted))}
        return {place + 1 if tail == "best" else s - place: share for place, share in shares.items()}

    return ranks


def ranks_of_top_m_mean(m: int) -> RankWeights:
    """The best ranks."""
    return lambda s: dict.fromkeys(range(1, min(m, s) + 1), Fraction(1, min(m, s)))


def ranks_of_expected_max(k: int) -> RankWeights:
    """Rank r is the best of a draw when the other drawn ones stand below it."""

    def ranks(s: int) -> dict[int, Fraction]:
        drawn = min(k, s)
        return {r: Fraction(math.comb(s - r, drawn - 1), math.comb(s, drawn)) for r in range(1, s - drawn + 2)}

    return ranks


def rational_semivalues(
    rewards: Sequence[int],
    ranks: RankWeights,
    size_weights: Sequence[Fraction],
    empty: Fraction,
    players: Sequence[int],
) -> list[Fraction]:
    """Σ_s q_s·[mean of v(S ∪ i) − mean of v(S)], in rational arithmetic, for some of the players.

    The means of v over all coalitions of one size, among everyone and among everyone but i, give both terms: a
    coalition of s + 1 out of n holds i with probability (s + 1)/n.
    """
    n = len(rewards)
    everyone_by_size = _means_by_size(_rank_tables(n, ranks), rewards, empty)
    tables = _rank_tables(n - 1, ranks)
    values = []
    for i in players:
        others = [*_means_by_size(tables, [*rewards[:i], *rewards[i + 1 :]], empty), Fraction(0)]
        value = Fraction(0)
        for s, weight in enumerate(size_weights):
            if weight:
                held = Fraction(s + 1, n)
                joined = (everyone_by_size[s + 1] - (1 - held) * others[s + 1]) / held
                value += weight * (joined - others[s])
        values.append(value)
    return values


def _rank_tables(n: int, ranks: RankWeights) -> list[tuple[list[int], int]]:
    """For each size s = 1 … n, the weight of each of n sorted rewards in the mean of v, as numerators over one number.

    The p-th best of all is the r-th best of C(p − 1, r − 1)·C(n − p, s − r) coalitions.
    """
    tables = []
    for s in range(1, n + 1):
        weights = ranks(s)
        common = math.lcm(*(w.denominator for w in weights.values()))
        numerators = [
            sum(
                int(weights[r] * common) * math.comb(p - 1, r - 1) * math.comb(n - p, s - r)
                for r in weights
                if r <= p and s - r <= n - p
            )
            for p in range(1, n + 1)
        ]
        tables.append((numerators, common * math.comb(n, s)))
    return tables


def _means_by_size(tables: list[tuple[list[int], int]], rewards: Sequence[int], empty: Fraction) -> list[Fraction]:
    """Mean of v over the coalitions of each size, from 0."""
    ordered = sorted(rewards, reverse=True)
    means = [Fraction(sum(map(int.__mul__, ordered, numerators)), whole) for numerators, whole in tables]
    return [empty, *means]


# Games of sets that are more than a list of rewards: v of a coalition, given by the numbers of its members.


def game_by_members(n: int, utility: Callable[[list[int]], float], empty: float) -> list[float]:
    """All 2ⁿ utilities."""
    coalitions = [[i for i in range(n) if mask >> i & 1] for mask in range(1 << n)]
    return [utility(members) if members else empty for members in coalitions]


def coverage_game(
    covers: Sequence[Sequence[bool]], topic_weights: Sequence[float], *, count: int = 1, empty: float = 0.0
) -> list[float]:
    """Total weight of the topics that at least `count` members cover."""

    def utility(members: list[int]) -> float:
        coverers = [sum(covers[i][t] for i in members) for t in range(len(topic_weights))]
        return math.fsum(w for w, covered in zip(topic_weights, coverers, strict=True) if covered >= count)

    return game_by_members(len(covers), utility, empty)


def facility_game(scores: Sequence[Sequence[float]], weights: Sequence[float], *, empty: float) -> list[float]:
    """Total over targets of the best score among the members."""

    def utility(members: list[int]) -> float:
        return math.fsum(w * max(scores[i][t] for i in members) for t, w in enumerate(weights))

    return game_by_members(len(scores), utility, empty)


def pair_total(members: list[int], similarities: Sequence[Sequence[float]]) -> float:
    """Sum of the similarities of all pairs of members."""
    return math.fsum(similarities[i][j] for i, j in itertools.combinations(members, 2))


def redundancy_game(
    similarities: Sequence[Sequence[float]], rewards: Sequence[float], *, penalty: float, empty: float
) -> list[float]:
    """Total reward less the penalty on pairs."""
    return game_by_members(
        len(rewards),
        lambda members: math.fsum(rewards[i] for i in members) - penalty * pair_total(members, similarities),
        empty,
    )


def max_minus_similarity_game(
    similarities: Sequence[Sequence[float]], rewards: Sequence[float], *, penalty: float, empty: float
) -> list[float]:
    """Best reward less the penalty on pairs."""
    return game_by_members(
        len(rewards),
        lambda members: max(rewards[i] for i in members) - penalty * pair_total(members, similarities),
        empty,
    )


def mean_pairwise_game(similarities: Sequence[Sequence[float]], *, single: float, empty: float) -> list[float]:
    """Mean of 1 − similarity over the pairs of members."""

    def utility(members: list[int]) -> float:
        if len(members) == 1:
            return single
        distances = [1.0 - similarities[i][j] for i, j in itertools.combinations(members, 2)]
        return math.fsum(distances) / len(distances)

    return game_by_members(len(similarities), utility, empty)


def quality_novelty_game(
    similarities: Sequence[Sequence[float]], rewards: Sequence[float], *, penalty: float, empty: float
) -> list[float]:
    """Total of each member's reward less the penalty on its likeness to the member nearest to it."""

    def utility(members: list[int]) -> float:
        parts = []
        for i in members:
            likeness = [similarities[i][k] for k in members if k != i]
            parts.append(rewards[i] - penalty * (max(likeness) if likeness else 0.0))
        return math.fsum(parts)

    return game_by_members(len(rewards), utility, empty)


def shapley_by_topic(
    covers: Sequence[Sequence[bool]], topic_weights: Sequence[float], count: int, empty: float
) -> list[float]:
    """Each topic that enough candidates cover is shared by all who cover it."""
    n = len(covers)
    values = [[-empty / n] for _ in range(n)]
    for t, weight in enumerate(topic_weights):
        coverers = [i for i in range(n) if covers[i][t]]
        if len(coverers) >= count:
            for i in coverers:
                values[i].append(weight / len(coverers))
    return [math.fsum(parts) for parts in values]


def shapley_of_mean_pairwise(similarities: Sequence[Sequence[float]], *, empty: float) -> list[float]:
    """A·R_i + B·(T − R_i) − v(∅)/n, with R_i the distances of i and T those of all pairs.

    A = 2(H_n − 1)/(n(n − 1)) and B = −4(H_n − 3/2)/(n(n − 1)(n − 2)). The value of a single candidate is gained by the
    first to arrive and lost by the second, so that it enters nobody's mean.
    """
    n = len(similarities)
    harmonic = sum(Fraction(1, k) for k in range(1, n + 1))
    own = float(2 * (harmonic - 1) / (n * (n - 1)))
    other = float(-4 * (harmonic - Fraction(3, 2)) / (n * (n - 1) * (n - 2)))
    rows = [math.fsum(1.0 - similarities[i][j] for j in range(n) if j != i) for i in range(n)]
    everything = math.fsum(rows) / 2
    return [own * row + other * (everything - row) - empty / n for row in rows]


def shapley_of_quality_novelty(
    similarities: Sequence[Sequence[float]], rewards: Sequence[float], *, penalty: float, empty: float
) -> list[float]:
    """The likeness of each candidate k, sorted into steps Δ_t of which m_t others stand above or at.

    k itself gets Δ_t·m_t/(m_t + 1) of each step and each of the m_t others Δ_t/(m_t(m_t + 1)).
    """
    n = len(rewards)
    parts = [[rewards[i] - empty / n] for i in range(n)]
    for k in range(n):
        others = sorted((similarities[k][j], j) for j in range(n) if j != k)
        level, shares = 0.0, 0.0
        for place, (value, j) in enumerate(others):
            above = n - 1 - place
            step, level = value - level, value
            parts[k].append(-penalty * step * above / (above + 1))
            shares += step / (above * (above + 1))
            parts[j].append(-penalty * shares)
    return [math.fsum(terms) for terms in parts]
