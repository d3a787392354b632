"""Whether the tokens that a measure points at are those whose replacement flips the answer: arithmetic alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import oar_task as task
from comparison import Difference
from oar_plans import FLIPS, MEASURES, OAR_MEASURES, RIVALS

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

QUANTILE = 1.96
"""Of the normal distribution: there are many completions."""
LEAST_TEXTS = 2


def top_places(scores: Floats) -> Integers:
    """The ⌈L/10⌉ places of the largest of L scores; of equal ones the earlier."""
    return np.argsort(-scores, kind="stable")[: math.ceil(len(scores) / 10)]


def ranks(values: Floats) -> Floats:
    """Ranks from 0; equal values share the mean of theirs."""
    _, groups, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[groups]


def rank_correlation(one: Floats, other: Floats) -> float:
    """Spearman's; NaN where one of both says the same of all."""
    first, second = ranks(one), ranks(other)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def over_texts(values: Floats) -> dict[str, Any]:
    """Mean with a 95 % interval over texts; NaN ones are left out, and of fewer than two there is None."""
    known = values[~np.isnan(values)]
    if len(known) < LEAST_TEXTS:
        return {"mean": None, "low": None, "high": None, "texts": len(known)}
    middle = float(known.mean())
    half = QUANTILE * float(known.std(ddof=1)) / math.sqrt(len(known))
    return {"mean": middle, "low": middle - half, "high": middle + half, "texts": len(known)}


def within(row: dict[str, Any], least: float) -> dict[str, Any]:
    """The same with an interval of possible values, from `least` to 1."""
    if row["mean"] is None:
        return row
    return {**row, "low": max(row["low"], least), "high": min(row["high"], 1.0)}


def rates_of_top(scores: Mapping[str, Floats], flips: Floats) -> dict[str, Floats]:
    """Flip rate of the tokens that each measure points at, text by text.

    Args:
        scores: By measure, shape (texts, L).
        flips: Shape (texts, L), the share of replacements at a place that flip the answer.

    Returns:
        By measure, and for `random`, which is every token alike, shape (texts,).
    """
    rates = {
        name: np.array([row[top_places(score)].mean() for score, row in zip(own, flips, strict=True)])
        for name, own in scores.items()
    }
    return {"random": flips.mean(axis=1), **rates}


def summary(scores: Mapping[str, Floats], weights: Mapping[str, Floats], flips: Mapping[str, Floats]) -> dict[str, Any]:
    """Everything that is said of fidelity, ready for JSON.

    Args:
        scores: By key of `MEASURES`, shape (texts, L): the larger, the more a measure points there.
        weights: By key of `OAR_MEASURES`, shape (texts, L).
        flips: By key of `FLIPS`, shape (texts, L).

    Returns:
        `rates`, `differences`, `correlations` with flips and `agreement` among measures, each with intervals over
        texts, and `kinds`: flip rates and weights by kind of token.
    """
    rates, differences, correlations = [], [], []
    for kind in FLIPS:
        found = rates_of_top(scores, flips[kind])
        rates += [{"flips": kind, "measure": name, **within(over_texts(own), 0.0)} for name, own in found.items()]
        for name in OAR_MEASURES:
            for rival in RIVALS:
                part = over_texts(found[name] - found[rival])
                difference = Difference(part["mean"], part["low"], part["high"], part["texts"])
                where = {"flips": kind, "measure": name, "against": rival}
                differences.append({**where, **asdict(difference), "verdict": difference.verdict})
        for name, own in scores.items():
            values = np.array([rank_correlation(*rows) for rows in zip(own, flips[kind], strict=True)])
            correlations.append({"flips": kind, "measure": name, **within(over_texts(values), -1.0)})
    return {
        "rates": rates,
        "differences": differences,
        "correlations": correlations,
        "agreement": [
            {"one": one, "other": other, **within(over_texts(_agreement(scores[one], scores[other])), -1.0)}
            for one, other in _pairs([name for name in MEASURES if name in scores])
        ],
        "kinds": [_of_kind(kind, weights, flips) for kind in task.KINDS],
    }


def _agreement(one: Floats, other: Floats) -> Floats:
    return np.array([rank_correlation(*rows) for rows in zip(one, other, strict=True)])


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Every measure with OAR-P, and draws of OAR-G with each other."""
    against = [(name, names[0]) for name in names[1:]]
    return [*against, ("gradient_again", "gradient")]


def _of_kind(kind: str, weights: Mapping[str, Floats], flips: Mapping[str, Floats]) -> dict[str, Any]:
    places = [place for place in range(task.REASONING) if task.kind_of(place) == kind]
    return {
        "kind": kind,
        "tokens": len(places),
        "flips": {name: float(values[:, places].mean()) for name, values in flips.items()},
        "weights": {name: float(values[:, places].mean()) for name, values in weights.items()},
    }
