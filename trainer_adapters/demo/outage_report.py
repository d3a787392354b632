"""Runs of one training with and without Redis: what must be the same in all of them, and which counters moved."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COUNTERS = (
    "credit/evaluations",
    "credit/from_cache",
    "credit/tokens_computed",
    "credit/tokens_naive",
    "credit/seconds",
    "credit/model_seconds",
)
"""Entries of the trainer's log that say what the credit cost: they may move, and are summed over the steps."""
MOVING = frozenset({*COUNTERS, "credit/share_of_step", "credit/request_id", "step_time"})
"""All entries that may move; every other one is compared."""
SHOWN = 5
"""Differences that an error repeats."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: What was done to Redis.
        weights: SHA-256 of the policy's weights after each step.
        curve: Its evaluations.
        log: What the trainer logged, an entry per step.
        service: Counters of the service at the end, by their names in Prometheus' format.
        seconds_per_step: Without the evaluations.
    """

    name: str
    weights: Sequence[str]
    curve: Sequence[Mapping[str, float]]
    log: Sequence[Mapping[str, Any]]
    service: Mapping[str, float]
    seconds_per_step: float


def differences(reference: Run, other: Run) -> list[str]:
    """Where two runs differ by a bit in what no cache may change; equal numbers and equal NaNs are the same."""
    found = []
    for part in ("weights", "curve", "log"):
        ours, theirs = (_unmoved(getattr(run, part)) for run in (reference, other))
        if len(ours) != len(theirs):
            found.append(f"{part}: {len(ours)} entries in {reference.name}, {len(theirs)} in {other.name}")
        found += [
            f"{part} {place}, {name}: {one.get(name)!r} in {reference.name}, {two.get(name)!r} in {other.name}"
            for place, (one, two) in enumerate(zip(ours, theirs, strict=False))
            for name in sorted(one.keys() | two.keys())
            if repr(one.get(name)) != repr(two.get(name))
        ]
    return found


def check_same(runs: Sequence[Run]) -> None:
    """Compare all runs with the first.

    Args:
        runs: At least one.

    Raises:
        RuntimeError: If any of them trained another policy, or logged another number that is no counter.
    """
    found = [line for run in runs[1:] for line in differences(runs[0], run)]
    if found:
        more = f"\nand {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise RuntimeError("the trainings are not the same:\n" + "\n".join(found[:SHOWN]) + more)


def compared(run: Run) -> list[str]:
    """Names of the entries of its log that are compared."""
    return sorted({name for entry in _unmoved(run.log) for name in entry})


def log_digest(run: Run) -> str:
    """SHA-256 of all entries of its log that are compared."""
    return hashlib.sha256(json.dumps(_unmoved(run.log), sort_keys=True).encode()).hexdigest()


def counters(run: Run) -> dict[str, float]:
    """The trainer's counters, summed over the steps, then the service's."""
    sums = {name: math.fsum(entry.get(name, 0.0) for entry in run.log) for name in COUNTERS}
    return {**sums, **run.service}


def moved(runs: Sequence[Run]) -> dict[str, list[float]]:
    """The counters that are not the same in all runs; what a run does not count is 0."""
    all_counters = [counters(run) for run in runs]
    names = list(dict.fromkeys(name for one in all_counters for name in one))
    rows = {name: [one.get(name, 0.0) for one in all_counters] for name in names}
    return {name: row for name, row in rows.items() if len(set(row)) > 1}


def of_steps(run: Run, name: str) -> list[float]:
    """A counter of the trainer, step by step."""
    return [float(entry.get(name, 0.0)) for entry in run.log]


def longest_request_s(run: Run) -> float:
    """What the credit of a step took at most, the model included."""
    times = zip(of_steps(run, "credit/seconds"), of_steps(run, "credit/model_seconds"), strict=True)
    return max(map(sum, times), default=0.0)


def text(runs: Sequence[Run]) -> str:
    """What is the same, and a table each of the counters that moved and of the steps."""
    names = [run.name for run in runs]
    last = runs[0].curve[-1] if runs[0].curve else {}
    same = (
        f"The same bits in all {len(runs)} trainings: weights after each of {len(runs[0].weights)} steps (the last "
        f"{runs[0].weights[-1][:16]}), {len(compared(runs[0]))} entries of the log per step, {len(runs[0].curve)} "
        f"evaluations" + (f" (max@K at the end {last['max_at_k']:.4f})." if last else ".")
    )
    rows = {
        "seconds per step": [run.seconds_per_step for run in runs],
        "seconds of the longest request": [longest_request_s(run) for run in runs],
        **moved(runs),
    }
    by_step = {
        str(place + 1): [of_steps(run, "credit/evaluations")[place] for run in runs]
        for place in range(len(runs[0].log))
    }
    return "\n\n".join(
        (
            same,
            _table("counters that moved", names, rows),
            _table("evaluations of step", names, by_step),
        )
    )


def samples(exposition: str, prefixes: Sequence[str]) -> dict[str, float]:
    """The samples of a page of Prometheus' text format whose names begin with one of the prefixes.

    Args:
        exposition: What `GET /metrics` answers.
        prefixes: Of the names wanted.

    Returns:
        Values by name with labels; the times at which counters were made are left out.
    """
    lines = [line for line in exposition.splitlines() if line.startswith(tuple(prefixes))]
    found = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
    return {name: value for name, value in found.items() if not name.partition("{")[0].endswith("_created")}


def _unmoved(entries: Sequence[Any]) -> list[dict[str, Any]]:
    """Entries without what may move; an entry that is no mapping is one number by itself."""
    return [
        {name: value for name, value in entry.items() if name not in MOVING}
        if isinstance(entry, Mapping)
        else {"itself": entry}
        for entry in entries
    ]


def _table(title: str, names: Sequence[str], rows: Mapping[str, Sequence[float]]) -> str:
    """Aligned columns: a row per key, a column per run."""
    cells = [[title, *names], *([name, *map(_shown, row)] for name, row in rows.items())]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join(
        "  ".join(
            (line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)))
        )
        for line in cells
    )


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3f}"
