"""What each run of the demonstration of SCAR reached, and paired differences between methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from comparison import Difference, interval
from scar_plans import BASELINE, LAST_POINTS, METHODS, SCAR, TARGET

Runs = Sequence[Mapping[str, Any]]

METRICS = {
    "final": "planted reward at the end",
    "curve": "planted reward over the whole curve",
    "steps": f"steps to a planted reward of {TARGET:g}",
    "score": "score of the reward model at the end",
}
LOWER_IS_BETTER = ("steps",)
PAIRS = (
    *((method, BASELINE) for method in METHODS if method != BASELINE),
    *((SCAR, method) for method in METHODS if method not in {BASELINE, SCAR}),
)
"""Every method against the sparse one, and SCAR against all others."""


def measures(run: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of one run; the steps to the target are those of the whole run if it was never reached."""
    rewards = [float(point["reward"]) for point in run["curve"]]
    reached = [point["step"] for point in run["curve"] if point["reward"] >= TARGET]
    scores = run["scores"][-LAST_POINTS:]
    return {
        "final": math.fsum(rewards[-LAST_POINTS:]) / len(rewards[-LAST_POINTS:]),
        "curve": math.fsum(rewards) / len(rewards),
        "steps": float(reached[0] if reached else run["steps"]),
        "score": math.fsum(scores) / len(scores),
    }


def has_reached(run: Mapping[str, Any]) -> bool:
    """Whether the target was reached at some evaluation."""
    return any(point["reward"] >= TARGET for point in run["curve"])


def units_at_end(runs: Runs, method: str) -> float:
    """Units of a note in the last steps, the mean over seeds; a note of the form that is taught has one per remark."""
    counts = [count for run in runs if run["method"] == method for count in run["units"][-LAST_POINTS:]]
    return math.fsum(counts) / len(counts)


def by_seed(runs: Runs, method: str, metric: str) -> dict[int, float]:
    """A metric of every run of a method, by seed."""
    return {run["seed"]: measures(run)[metric] for run in runs if run["method"] == method}


def mean(runs: Runs, method: str, metric: str) -> float:
    """The mean over seeds."""
    values = by_seed(runs, method, metric)
    return math.fsum(values.values()) / len(values)


def paired(runs: Runs, method: str, against: str, metric: str) -> Difference:
    """Method minus the other, seed by seed; both must have the same seeds."""
    ours, theirs = by_seed(runs, method, metric), by_seed(runs, against, metric)
    if ours.keys() != theirs.keys():
        raise ValueError(f"{method} has seeds {sorted(ours)}, {against} {sorted(theirs)}; expected the same")
    return interval([ours[seed] - theirs[seed] for seed in sorted(ours)])


def verdict(difference: Difference, metric: str) -> str:
    """`better`, `worse`, or `no difference` for an interval that holds 0."""
    if difference.low <= 0 <= difference.high:
        return "no difference"
    return "better" if (difference.low > 0) != (metric in LOWER_IS_BETTER) else "worse"


def hindsight(runs: Runs, baseline_runs: Runs) -> tuple[float, Runs]:
    """The baseline's rate with the highest planted reward at the end over the seeds compared, and the runs with it.

    Args:
        runs: The comparison's.
        baseline_runs: The baseline's at every rate, with the same seeds.

    Returns:
        The rate, the smaller one at a tie, and `runs` with the baseline's at that rate in place of its own.
    """
    of_rates = {
        rate: [run for run in baseline_runs if run["rate"] == rate]
        for rate in sorted({r["rate"] for r in baseline_runs})
    }
    best = max(of_rates, key=lambda rate: mean(of_rates[rate], BASELINE, "final"))
    return best, [*(run for run in runs if run["method"] != BASELINE), *of_rates[best]]


def comparisons(runs: Runs) -> list[dict[str, Any]]:
    """Every pair in every metric, ready for JSON."""
    return [
        {
            "metric": metric,
            "method": method,
            "against": against,
            **asdict(difference := paired(runs, method, against, metric)),
            "verdict": verdict(difference, metric),
        }
        for metric in METRICS
        for method, against in PAIRS
    ]


def best_rates(grid: Runs) -> dict[str, float]:
    """The learning rate of each method with the highest mean over curves and seeds; the smaller one at a tie."""
    levels: dict[str, dict[float, list[float]]] = {}
    for run in grid:
        levels.setdefault(run["method"], {}).setdefault(run["rate"], []).append(measures(run)["curve"])
    best = {}
    for method, of_rates in levels.items():
        means = {rate: math.fsum(values) / len(values) for rate, values in sorted(of_rates.items())}
        best[method] = max(means, key=means.__getitem__)
    return best


def auroc_differences(study: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """SCAR's AUROC less that of every other credit, text by text, with 95 % intervals over texts."""
    found = {(row["texts"], row["utilities"], row["credit"]): row["aurocs"] for row in study}
    rows = []
    for (kind, source, credit), areas in found.items():
        if credit != SCAR:
            differences = [one - other for one, other in zip(found[kind, source, SCAR], areas, strict=True)]
            n = len(differences)
            middle = math.fsum(differences) / n
            half = 1.96 * math.sqrt(math.fsum((value - middle) ** 2 for value in differences) / (n - 1) / n)
            where = {"texts": kind, "utilities": source, "against": credit}
            difference = Difference(middle, middle - half, middle + half, n)
            rows.append({**where, **asdict(difference), "verdict": verdict(difference, "auroc")})
    return rows
