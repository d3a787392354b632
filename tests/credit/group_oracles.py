"""Advantages of whole responses by their definitions, in plain Python; nothing here imports the library under test.

Draws are enumerated, tokens are written out one by one, and a group is a list in which None is a missing reward.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

Row = Sequence["float | None"]


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return math.fsum(values) / len(values)


def variance(values: Sequence[float], ddof: int) -> float:
    """Variance about the mean of the values."""
    centre = mean(values)
    return math.fsum((value - centre) ** 2 for value in values) / (len(values) - ddof)


def pass_at_k(right: Sequence[bool], k: int) -> list[float] | None:
    """Mean over the draws of k with a response of (success − ρ)/σ, over all draws; None where all draws end alike."""
    draws = list(itertools.combinations(range(len(right)), k))
    successes = [float(any(right[i] for i in draw)) for draw in draws]
    if not draws or len(set(successes)) == 1:
        return None
    rho, sigma = mean(successes), math.sqrt(variance(successes, 0))
    return [
        mean([(success - rho) / sigma for draw, success in zip(draws, successes, strict=True) if i in draw])
        for i in range(len(right))
    ]


def max_at_k(rewards: Sequence[float], k: int) -> list[float]:
    """(k/G)·mean over draws of k − 1 others of the gain of the best by the response; max of nothing is 0."""
    size = len(rewards)
    k = min(k, size)
    result = []
    for i, own in enumerate(rewards):
        others = [r for j, r in enumerate(rewards) if j != i]
        draws = list(itertools.combinations(others, k - 1))
        result.append(k / size * mean([max([*draw, own]) - max(draw, default=0.0) for draw in draws]))
    return result


def leave_one_out(rewards: Sequence[float]) -> list[float]:
    """Best of all less best of the others; best of nothing is 0."""
    return [max(rewards) - max([r for j, r in enumerate(rewards) if j != i], default=0.0) for i in range(len(rewards))]


@dataclass(frozen=True)
class WhiteningOfTokens:
    """A convention: whether tokens are counted, ddof, and how ε enters."""

    name: str
    ddof: int
    epsilon: float

    def divisor(self, spread: float) -> float:
        """What centred values are divided by."""
        if self.name == "trl":
            return math.sqrt(spread) + self.epsilon
        return math.sqrt(spread + self.epsilon) if self.name == "verl" else math.sqrt(max(spread, self.epsilon))


CONVENTIONS = {
    "trl": WhiteningOfTokens("trl", 1, 1e-4),
    "verl": WhiteningOfTokens("verl", 1, 1e-8),
    "openrlhf": WhiteningOfTokens("openrlhf", 0, 1e-8),
}


def whitened(values: Sequence[float], lengths: Sequence[int] | None, how: WhiteningOfTokens) -> list[float]:
    """Every value written down once per token, brought to mean 0 and spread 1."""
    if lengths is None or how.name == "trl":
        lengths = [1] * len(values)
    tokens = [value for value, length in zip(values, lengths, strict=True) for _ in range(length)]
    if len(tokens) <= how.ddof or len(set(tokens)) <= 1:
        return [0.0] * len(values)
    centre, divisor = mean(tokens), how.divisor(variance(tokens, how.ddof))
    return [(value - centre) / divisor for value in values]


def has_contrast(row: Row) -> bool:
    """Whether at least two rewards of a group differ."""
    return len({r for r in row if r is not None}) > 1


def centred(row: Row, rule: str, *, ddof: int, epsilon: float) -> list[float]:
    """`grpo`, `dr_grpo` or `rloo` of one group; 0 without contrast and for None."""
    present = [r for r in row if r is not None]
    if not has_contrast(row) or (rule == "grpo" and len(present) <= ddof):
        return [0.0] * len(row)
    divisor = math.sqrt(variance(present, ddof)) + epsilon if rule == "grpo" else 1.0
    factor = len(present) / (len(present) - 1) if rule == "rloo" else 1.0
    return [0.0 if r is None else factor * (r - mean(present)) / divisor for r in row]


def drawn(row: Row, rule: str, *, k: int, threshold: float) -> list[float]:
    """`pass_at_k`, `max_at_k` or `leave_one_out` of one group; 0 for None, and where `pass_at_k` has no contrast."""
    present = [r for r in row if r is not None]
    if rule == "pass_at_k":
        found = pass_at_k([r >= threshold for r in present], k) or [0.0] * len(present)
    elif rule == "leave_one_out":
        found = leave_one_out(present)
    else:
        found = max_at_k(present, k) if k == 1 or len(present) > 1 else [0.0] * len(present)
    values = iter(found)
    return [0.0 if r is None else next(values) for r in row]


def gdpo(
    named: Sequence[Sequence[Row]],
    weights: Sequence[float],
    lengths: Sequence[Sequence[int]] | None,
    how: WhiteningOfTokens | None,
    *,
    ddof: int,
    epsilon: float,
) -> list[list[float]]:
    """Rows of advantages from rows of each named reward; with one name and divisor 1 it is `reinforce++_baseline`."""
    return whitened_rows(
        [
            [
                math.fsum(w * part for w, part in zip(weights, parts, strict=True))
                for parts in zip(*(centred(row, "grpo", ddof=ddof, epsilon=epsilon) for row in rows), strict=True)
            ]
            for rows in zip(*named, strict=True)
        ],
        [
            [
                any(r is not None and w for w, r in zip(weights, rewards, strict=True))
                for rewards in zip(*rows, strict=True)
            ]
            for rows in zip(*named, strict=True)
        ],
        [
            any(w and has_contrast(row) for w, row in zip(weights, rows, strict=True))
            for rows in zip(*named, strict=True)
        ],
        lengths,
        how,
    )


def whitened_rows(
    rows: Sequence[Sequence[float]],
    scored: Sequence[Sequence[bool]],
    alive: Sequence[bool],
    lengths: Sequence[Sequence[int]] | None,
    how: WhiteningOfTokens | None,
) -> list[list[float]]:
    """Rows whitened together over their scored responses; rows that are not alive, and responses not scored, are 0."""
    places = [(i, j) for i, row in enumerate(rows) for j in range(len(row)) if scored[i][j]]
    values = [rows[i][j] for i, j in places]
    if how is not None and values:
        values = whitened(values, None if lengths is None else [lengths[i][j] for i, j in places], how)
    found = dict(zip(places, values, strict=True))
    return [[found.get((i, j), 0.0) if alive[i] else 0.0 for j in range(len(row))] for i, row in enumerate(rows)]
