"""How well credit finds the planted causes, on fixed texts: AUROC and correlation, text by text."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

import scar_task as task
from creditd.client import Client
from scar_plans import CREDITS, DEADLINE_S, KINDS, MODEL, OF_MODELS_ALONE, SEGMENTATION, SOURCES

Floats: TypeAlias = NDArray[np.float64]
Booleans: TypeAlias = NDArray[np.bool_]

SEED = 11
EQUAL = 1e-9
"""|credits| that differ by less, relative to the largest of the text, are ties: rounding must decide nothing."""


@dataclass(frozen=True)
class Texts:
    """Texts with their truth.

    Attributes:
        themes: Rows of the prompts.
        notes: The texts.
        offsets: Characters of the words of each.
        units: The texts of the units of each.
        truths: The planted truth of each.
    """

    themes: list[int]
    notes: list[str]
    offsets: list[list[tuple[int, int]]]
    units: list[list[str]]
    truths: list[task.Truth]


def texts(kind: str, number: int) -> Texts:
    """Texts of a kind that have a unit which is a cause and one which is none: what AUROC is defined for."""
    rng = np.random.default_rng([task.SEED, SEED, list(KINDS).index(kind)])
    found = Texts([], [], [], [], [])
    while len(found.notes) < number:
        theme = int(rng.integers(len(task.THEMES)))
        note = task.taught_note(rng, theme) if kind == "taught" else task.start_note(rng)
        words = note.split()
        units = [" ".join(words[place : place + 3]) for place in range(0, len(words), 3)]
        truth = task.truth(theme, units)
        if truth.causes.any() and not truth.causes.all():
            ends = np.cumsum([len(word) + 1 for word in words]) - 1
            spans = list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True))
            for column, entry in zip(vars(found).values(), (theme, note, spans, units, truth), strict=True):
                column.append(entry)
    return found


def judged(client: Client, number: int) -> list[dict[str, Any]]:
    """A row per kind of texts, source of utilities and credit.

    Args:
        client: Of the live service.
        number: Texts of each kind.

    Returns:
        Rows with the AUROC, the correlation with the planted Shapley values, the |credit| of units by their kind, and
        what was evaluated in how many seconds; each mean with its interval over texts.
    """
    rows = []
    for kind in KINDS:
        given = texts(kind, number)
        for source in SOURCES:
            for name in CREDITS:
                if source == "reward model" or name not in OF_MODELS_ALONE:
                    values, cost = _credit(client, given, name, by_model=source == "reward model")
                    rows.append({"texts": kind, "utilities": source, "credit": name, **measures(given, values), **cost})
    return rows


def measures(given: Texts, values: Sequence[Floats]) -> dict[str, Any]:
    """AUROC per text and its mean, the correlation with planted Shapley values, and the mean |credit| by kind of unit.

    Args:
        given: The texts.
        values: One credit per unit of each text.

    Returns:
        Numbers that JSON can hold.

    Raises:
        ValueError: If a text has another number of credits than units.
    """
    for place, (units, found) in enumerate(zip(given.units, values, strict=True)):
        if len(units) != len(found):
            raise ValueError(f"text {place}: got {len(found)} credits; expected one for each of its {len(units)} units")
    areas = [auroc(np.abs(found), truth.causes) for found, truth in zip(values, given.truths, strict=True)]
    credit = np.concatenate(values)
    shapley = np.concatenate([truth.shapley for truth in given.truths])
    causes = np.concatenate([truth.causes for truth in given.truths])
    decoys = np.array([task.has_decoy(int(role)) for truth in given.truths for role in truth.roles])
    constant = bool(np.ptp(credit) == 0)
    return {
        "auroc": interval_over_texts(areas),
        "aurocs": [round(area, 4) for area in areas],
        "correlation": None if constant else float(np.corrcoef(credit, shapley)[0, 1]),
        "causes": float(np.abs(credit[causes]).mean()),
        "decoys": float(np.abs(credit[decoys & ~causes]).mean()) if (decoys & ~causes).any() else None,
        "others": float(np.abs(credit[~decoys & ~causes]).mean()),
    }


def auroc(scores: Floats, labels: Booleans) -> float:
    """Probability that one of the labelled has a larger score than one of the others, ties counting one half."""
    tolerance = EQUAL * float(np.abs(scores).max())
    differences = scores[labels][:, None] - scores[~labels][None, :]
    return float(np.where(np.abs(differences) <= tolerance, 0.5, differences > 0).mean())


def interval_over_texts(values: Sequence[float]) -> dict[str, float]:
    """Mean ± 1.96 · s/√n of many values."""
    n = len(values)
    mean = math.fsum(values) / n
    half = 1.96 * math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return {"mean": mean, "low": mean - half, "high": mean + half, "texts": n}


def _credit(client: Client, given: Texts, name: str, *, by_model: bool) -> tuple[list[Floats], dict[str, Any]]:
    """Unit values of one credit, from the model of the service or from a function of this process."""
    _, credit, estimator = CREDITS[name]
    calls = 0

    def planted(prompt: str, text: str) -> float:
        nonlocal calls
        calls += 1
        return task.reward(task.PROMPTS.index(prompt), text)

    started = time.perf_counter()
    result = client.scar(
        [task.PROMPTS[theme] for theme in given.themes],
        given.notes,
        model=MODEL if by_model else None,
        utility=None if by_model else planted,
        token_offsets=given.offsets,
        groups=list(range(len(given.notes))),
        segmentation=SEGMENTATION,
        credit=credit,
        estimator=estimator,
        deadline_s=DEADLINE_S,
    )
    seconds = time.perf_counter() - started
    evaluations = result.usage.evaluations if by_model else calls
    methods = sorted({method or "none" for method in result.methods})
    return list(result.unit_values), {"evaluations": evaluations, "seconds": seconds, "methods": methods}
