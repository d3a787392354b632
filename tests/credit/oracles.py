"""Brute force from the definitions, in plain Python; nothing here imports the library under test.

A game of n players is the list of its 2ⁿ utilities: bit i of an index is player i. Shapley values are averages over all
orders in which the players may arrive, other semivalues are averages over coalitions, and everything else is a loop.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

RELATIVE_ROUNDING = 1e-12
"""A spread below this share of the largest number is rounding."""

UtilityOfRewards = Callable[[Sequence[float]], float]


# Utilities of a list of rewards; the empty list is v(∅).


def best(*, empty: float = 0.0, floor: float | None = None) -> UtilityOfRewards:
    """Largest reward; with a floor, never below it."""
    if floor is not None:
        return lambda rewards: max([floor, *rewards])
    return lambda rewards: max(rewards) if rewards else empty


def worst(*, empty: float) -> UtilityOfRewards:
    """Smallest reward."""
    return lambda rewards: min(rewards) if rewards else empty


def total(*, empty: float = 0.0) -> UtilityOfRewards:
    """Sum of the rewards."""
    return lambda rewards: math.fsum(rewards) if rewards else empty


def average(*, empty: float) -> UtilityOfRewards:
    """Mean of the rewards."""
    return lambda rewards: math.fsum(rewards) / len(rewards) if rewards else empty


def total_of_best(m: int, *, empty: float = 0.0) -> UtilityOfRewards:
    """Sum of the m largest rewards, or of all when there are fewer."""
    return lambda rewards: math.fsum(sorted(rewards, reverse=True)[:m]) if rewards else empty


def rth_largest(r: int, *, default: float = 0.0, empty: float | None = None) -> UtilityOfRewards:
    """The r-th largest reward, or `default` when there are fewer than r."""
    nothing = default if empty is None else empty

    def utility(rewards: Sequence[float]) -> float:
        if not rewards:
            return nothing
        return sorted(rewards, reverse=True)[r - 1] if len(rewards) >= r else default

    return utility


def enough(threshold: float, count: int = 1, *, empty: float = 0.0) -> UtilityOfRewards:
    """1 when at least `count` rewards reach the threshold, else 0."""
    return lambda rewards: (1.0 if sum(r >= threshold for r in rewards) >= count else 0.0) if rewards else empty


# Games.


def members_of(mask: int, n: int) -> list[int]:
    """Players of a coalition."""
    return [i for i in range(n) if mask >> i & 1]


def game_of(rewards: Sequence[float], utility: UtilityOfRewards) -> list[float]:
    """All 2ⁿ utilities of a set of rewards."""
    n = len(rewards)
    return [utility([rewards[i] for i in members_of(mask, n)]) for mask in range(1 << n)]


def game_with_null_players(values: Sequence[float], n: int, nulls: Sequence[int]) -> list[float]:
    """The game in which some players change nothing: each coalition has the utility of its other members."""
    drop = sum(1 << i for i in nulls)
    return [values[mask & ~drop] for mask in range(1 << n)]


def scale_of(values: Sequence[float]) -> float:
    """Largest utility in absolute value; 1 for a game of zeros."""
    return max(map(abs, values)) or 1.0


# Credit.


def shapley_by_orders(values: Sequence[float], n: int) -> list[float]:
    """Mean marginal utility over all n! orders of arrival."""
    gains: list[list[float]] = [[] for _ in range(n)]
    for order in itertools.permutations(range(n)):
        mask = 0
        for player in order:
            gains[player].append(values[mask | 1 << player] - values[mask])
            mask |= 1 << player
    return [math.fsum(of_player) / math.factorial(n) for of_player in gains]


def sloo_minus_one(values: Sequence[float], n: int, k: int) -> list[float]:
    """(k/n) · mean of v(S ∪ i) − v(S) over the coalitions S of k − 1 players without i."""
    result = []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        masks = [sum(1 << j for j in chosen) for chosen in itertools.combinations(others, k - 1)]
        result.append(k / n * math.fsum(values[m | 1 << i] - values[m] for m in masks) / len(masks))
    return result


def semivalue_by_subsets(values: Sequence[float], n: int, weights: Sequence[float]) -> list[float]:
    """Σ_k w_k · sloo_minus_one(k)."""
    parts = [sloo_minus_one(values, n, k) for k in range(1, n + 1)]
    return [math.fsum(w * part[i] for w, part in zip(weights, parts, strict=True)) for i in range(n)]


def leave_one_out(values: Sequence[float], n: int) -> list[float]:
    """v(N) − v(N∖i)."""
    return [values[-1] - values[(1 << n) - 1 - (1 << i)] for i in range(n)]


def own_reward(values: Sequence[float], n: int) -> list[float]:
    """(v({i}) − v(∅))/n."""
    return [(values[1 << i] - values[0]) / n for i in range(n)]


def prefix_gain(values: Sequence[float], n: int) -> list[float]:
    """v(N) − v(players before i)."""
    return [values[-1] - values[(1 << i) - 1] for i in range(n)]


def credit_by_definition(
    values: Sequence[float], n: int, rule: tuple[Any, ...], nulls: Sequence[int] = ()
) -> list[float]:
    """Credit by the name of its rule; nulls name players that change nothing (`set_reward` gives them nothing)."""
    values = game_with_null_players(values, n, nulls)
    name, *arguments = rule
    if name == "blend":
        start, end, position = arguments
        pairs = zip(
            credit_by_definition(values, n, start, nulls), credit_by_definition(values, n, end, nulls), strict=True
        )
        return [(1.0 - position) * a + position * b for a, b in pairs]
    if name == "set_reward":
        share = (values[-1] - values[0]) / (n - len(nulls))
        return [0.0 if i in nulls else share for i in range(n)]
    if name == "prefix_gain":
        return [0.0 if i in nulls else gain for i, gain in enumerate(prefix_gain(values, n))]
    if name == "max_at_k":
        return sloo_minus_one(values, n, min(arguments[0], n))
    if name == "mixture":
        return semivalue_by_subsets(values, n, arguments[0])
    return {"shapley": shapley_by_orders, "leave_one_out": leave_one_out, "own_reward": own_reward}[name](values, n)


# Closed forms, for sets too large to enumerate.


def airport(rewards: Sequence[float], empty: float = 0.0) -> list[float]:
    """Shapley value of max: each step between sorted rewards is shared by the candidates above it."""
    order = sorted(range(len(rewards)), key=lambda i: rewards[i])
    credit, shares, below = [0.0] * len(rewards), [], empty
    for rank, i in enumerate(order):
        shares.append((rewards[i] - below) / (len(rewards) - rank))
        below = rewards[i]
        credit[i] = math.fsum(shares)
    return credit


def pkpo(rewards: Sequence[float], k: int) -> list[float]:
    """`sloo_minus_one` of max by its closed form, k ≥ 2: (k/G)/C(G−1, k−1) · Σ_{q=k−2}^{p−1} C(q, k−2)(s_p − s_q)."""
    size = len(rewards)
    order = sorted(range(size), key=lambda i: rewards[i])
    result = [0.0] * size
    denominator = math.comb(size - 1, k - 1)
    for p, i in enumerate(order):
        gains = (math.comb(q, k - 2) / denominator * (rewards[i] - rewards[order[q]]) for q in range(k - 2, p))
        result[i] = k / size * math.fsum(gains)
    return result


def shapley_of_mean(rewards: Sequence[float], empty: float) -> list[float]:
    """(H/n)·a_i − ((H − 1)/(n(n−1)))·Σ of the others − v(∅)/n, with H the n-th harmonic number."""
    n = len(rewards)
    harmonic = math.fsum(1.0 / j for j in range(1, n + 1))
    everything = math.fsum(rewards)
    return [harmonic / n * a - (harmonic - 1.0) / (n * (n - 1)) * (everything - a) - empty / n for a in rewards]


def shapley_of_top_m(rewards: Sequence[float], m: int, empty: float) -> list[float]:
    """Σ_{t ≤ j} Δ_t · min(m, n−t+1)/(n−t+1) − v(∅)/n."""
    n = len(rewards)
    order = sorted(range(n), key=lambda i: rewards[i])
    credit, shares, below = [0.0] * n, [-empty / n], 0.0
    for rank, i in enumerate(order):
        above = n - rank
        shares.append((rewards[i] - below) * min(m, above) / above)
        below = rewards[i]
        credit[i] = math.fsum(shares)
    return credit


def shapley_of_rth_best(rewards: Sequence[float], r: int, default: float, empty: float) -> list[float]:
    """Σ_{t ≤ min(j, n−r+1)} Δ_t/(n−t+1) + (default − v(∅))/n."""
    n = len(rewards)
    order = sorted(range(n), key=lambda i: rewards[i])
    credit, shares, below = [0.0] * n, [(default - empty) / n], default
    for rank, i in enumerate(order):
        if rank <= n - r:
            shares.append((rewards[i] - below) / (n - rank))
            below = rewards[i]
        credit[i] = math.fsum(shares)
    return credit


# Groups of responses.


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float], ddof: int) -> float:
    """Standard deviation about the mean of the values, 0 when too few."""
    if len(values) <= ddof:
        return 0.0
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - ddof))


def only_rounding(spread: float, values: Sequence[float]) -> bool:
    """True when a spread is nothing but rounding."""
    return spread <= RELATIVE_ROUNDING * max(map(abs, values))


def advantages_of_group(
    rewards: Sequence[float | None], rule: str, *, ddof: int = 1, epsilon: float = 1e-4
) -> list[float]:
    """`grpo`, `dr_grpo` or `rloo` of one group; None is a reward that is missing."""
    present = [r for r in rewards if r is not None]
    if len(present) <= 1 or min(present) == max(present):
        return [0.0] * len(rewards)
    result = []
    for place, r in enumerate(rewards):
        if r is None:
            result.append(0.0)
        elif rule == "rloo":
            others = [other for at, other in enumerate(rewards) if at != place and other is not None]
            result.append(r - mean(others))
        elif rule == "dr_grpo":
            result.append(r - mean(present))
        else:
            spread = deviation(present, ddof)
            result.append((r - mean(present)) / (spread + epsilon) if len(present) > ddof else 0.0)
    return result


@dataclass
class Response:
    """A response as the normalisation sees it: D of its candidates (or its stand-in), its reward, its v(∅)."""

    scaled: list[float]
    reward: float
    empty: float


@dataclass
class NormalizedGroup:
    """Advantages of the candidates and of the responses of a group, and the names of what is unusual."""

    candidates: list[list[float]]
    responses: list[float]
    flags: set[str]


def normalize_group(
    group: Sequence[Response],
    kind: str,
    *,
    ddof: int = 1,
    epsilon: float = 1e-4,
    baseline: str = "group",
    spread_of_request: float | None = None,
) -> NormalizedGroup:
    """One group, formula by formula."""
    flags = {"single_response"} if len(group) == 1 else set()
    if kind == "none":
        return NormalizedGroup(
            [[d / len(g.scaled) for d in g.scaled] for g in group], [g.reward - g.empty for g in group], flags
        )
    everything = [d for g in group for d in g.scaled]
    rewards = [g.reward for g in group]
    spread, spread_of_rewards = deviation(everything, ddof), deviation(rewards, ddof)
    flat = only_rounding(spread, everything)
    flat |= kind == "response_preserving" and only_rounding(spread_of_rewards, rewards)
    flat |= len(group) == 1 and (kind not in {"pooled", "centered"} or baseline == "others")
    if flat:
        zeros = [[0.0] * len(g.scaled) for g in group]
        return NormalizedGroup(zeros, [0.0] * len(group), flags | {"degenerate_group"})
    means = [mean(g.scaled) for g in group]
    denominator = {
        "pooled": spread + epsilon,
        "batch_scaled": (spread_of_request or 0.0) + epsilon,
        "centered": 1.0,
        "response_preserving": spread_of_rewards + epsilon,
        "per_slot": spread_of_rewards + epsilon,
    }[kind]
    if kind == "response_preserving" and spread > 100.0 * denominator:
        flags.add("unstable_normalization")

    def centre(values: Sequence[float], at: int) -> float:
        return mean(values) if baseline == "group" else mean([v for place, v in enumerate(values) if place != at])

    if kind == "per_slot":
        candidates = [[0.0] * len(g.scaled) for g in group]
        for slot in range(len(group[0].scaled)):
            column = [g.scaled[slot] for g in group]
            if only_rounding(deviation(column, ddof), column):
                flags.add("degenerate_group")
                continue
            for at, d in enumerate(column):
                candidates[at][slot] = (d - mean(column)) / (deviation(column, ddof) + epsilon)
        if only_rounding(spread_of_rewards, rewards):
            return NormalizedGroup(candidates, [0.0] * len(group), flags)
    else:
        candidates = [[(d - centre(means, at)) / denominator for d in g.scaled] for at, g in enumerate(group)]
    responses = [(r - centre(rewards, at)) / denominator if denominator else 0.0 for at, r in enumerate(rewards)]
    return NormalizedGroup(candidates, responses, flags)


# Tokens.


def tokens_of_response(
    advantages: Sequence[float | None],
    of_set: float,
    spans: Sequence[tuple[int, int]],
    n_tokens: int,
    *,
    other: str = "set",
    length_norm: bool = False,
) -> list[float]:
    """Advantage of each token of one completion; None is a candidate that does not play."""
    playing = [(start, stop, a) for (start, stop), a in zip(spans, advantages, strict=True) if a is not None]
    if not playing:
        return [of_set] * n_tokens
    lengths = [stop - start for start, stop, _ in playing if stop > start]
    result = []
    for t in range(n_tokens):
        inside = [(stop - start, a) for start, stop, a in playing if start <= t < stop]
        after = sorted((start, a) for start, stop, a in playing if t < start < stop)
        if inside:
            ((length, a),) = inside
            result.append(a * sum(lengths) / (len(lengths) * length) if length_norm else a)
        elif other == "next" and after:
            result.append(after[0][1])
        else:
            result.append(0.0 if other == "zero" else of_set)
    return result


# Whole batches.


@dataclass
class OneSet:
    """One candidate set in plain Python; None is a null."""

    rewards: list[float | None]
    group: int = 0
    texts: list[int] | None = None
    values: list[float] | None = None
    spans: list[tuple[int, int]] | None = None
    n_tokens: int = 0
    set_reward: float | None = None
    ranks: list[int] | None = None


@dataclass
class Question:
    """What is asked about a batch."""

    utility: UtilityOfRewards | None
    rule: tuple[Any, ...] = ("shapley",)
    kind: str = "pooled"
    ddof: int = 1
    epsilon: float = 1e-4
    baseline: str = "group"
    failure_reward: float = 0.0
    limit: int | None = None
    extra: str = "truncate"
    duplicates: str = "keep"
    other: str = "set"
    length_norm: bool = False
    set_reward_weight: float = 1.0


@dataclass
class Answer:
    """Of one set; None where a candidate does not play."""

    credits: list[float | None]
    empty: float
    grand: float
    scale: float
    advantages: list[float | None] = field(default_factory=list)
    of_set: float = 0.0
    of_set_reward: float = 0.0
    tokens: list[float] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)


def broken(one: OneSet) -> bool:
    """True for a set with a number that is not finite."""
    numbers = [r for r in one.rewards if r is not None] if one.values is None else one.values
    whole = [] if one.set_reward is None else [one.set_reward]
    return not all(map(math.isfinite, [*numbers, *whole]))


def solve_set(one: OneSet, question: Question) -> Answer:
    """Credits of one set, its copies being explicit null players."""
    candidates, copies, flags = _parts_of(one, question)
    if one.values is not None:
        values = [
            one.values[sum(1 << candidates[j] for j in members_of(mask, len(candidates)))]
            for mask in range(1 << len(candidates))
        ]
    else:
        values = game_of([one.rewards[i] for i in candidates], question.utility)
    values = game_with_null_players(values, len(candidates), copies)
    credit: list[float | None] = [None] * len(one.rewards)
    if candidates:
        shares = credit_by_definition(values, len(candidates), question.rule, copies)
        for i, share in zip(candidates, shares, strict=True):
            credit[i] = share
    return Answer(credit, values[0], values[-1], scale_of(values), flags=flags)


def _parts_of(one: OneSet, question: Question) -> tuple[list[int], list[int], set[str]]:
    """The candidates that are not left out, which of these (by place) are copies, and what is unusual."""
    flags: set[str] = set()
    candidates = []
    for i in range(len(one.rewards)):
        if question.limit is not None and question.extra == "truncate" and i >= question.limit:
            flags.add("candidate_truncated")
        elif one.values is None and one.rewards[i] is None:
            flags.add("candidate_unscored")
        else:
            candidates.append(i)
    copies = []
    if question.duplicates == "collapse" and one.texts is not None:
        known: set[int] = set()
        for place, i in enumerate(candidates):
            if one.texts[i] in known:
                copies.append(place)
                flags.add("duplicates_collapsed")
            elif one.texts[i] >= 0:
                known.add(one.texts[i])
    if not candidates:
        flags.add("no_candidates")
    return candidates, copies, flags


def _response_of(answer: Answer, question: Question) -> Response:
    """D of the candidates, or the one stand-in of a response without candidates."""
    shares = [c for c in answer.credits if c is not None]
    if shares:
        return Response([len(shares) * c for c in shares], answer.grand, answer.empty)
    return Response([question.failure_reward - answer.empty], question.failure_reward, answer.empty)


def solve_batch(sets: Sequence[OneSet], question: Question) -> list[Answer | None]:
    """Every set of a batch, set by set and group by group; None for a set that failed."""
    answers = [None if broken(one) else solve_set(one, question) for one in sets]
    groups = defaultdict(list)
    for row, one in enumerate(sets):
        groups[one.group].append(row)
    responses = {row: _response_of(answer, question) for row, answer in enumerate(answers) if answer is not None}
    everything = [d for response in responses.values() for d in response.scaled]
    overall = deviation(everything, question.ddof) if everything else 0.0
    has_set_rewards = any(one.set_reward is not None for one in sets)
    for rows in groups.values():
        sound = [row for row in rows if answers[row] is not None]
        if not sound:
            continue
        normalized = normalize_group(
            [responses[row] for row in sound],
            question.kind,
            ddof=question.ddof,
            epsilon=question.epsilon,
            baseline=question.baseline,
            spread_of_request=overall,
        )
        whole = advantages_of_group(
            [sets[row].set_reward for row in sound], "grpo", ddof=question.ddof, epsilon=question.epsilon
        )
        lost = len(sound) < len(rows) or (has_set_rewards and any(sets[row].set_reward is None for row in rows))
        for at, row in enumerate(sound):
            answer = answers[row]
            answer.flags |= normalized.flags | ({"group_incomplete"} if lost else set())
            values = iter(normalized.candidates[at])
            answer.advantages = [None if c is None else next(values) for c in answer.credits]
            answer.of_set, answer.of_set_reward = normalized.responses[at], whole[at]
            if sets[row].spans is not None:
                answer.tokens = tokens_of_response(
                    answer.advantages,
                    answer.of_set,
                    sets[row].spans,
                    sets[row].n_tokens,
                    other=question.other,
                    length_norm=question.length_norm,
                )
                if has_set_rewards:
                    answer.tokens = [x + question.set_reward_weight * answer.of_set_reward for x in answer.tokens]
    return answers
