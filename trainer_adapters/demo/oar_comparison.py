"""What each run of the demonstration of OAR reached, and paired differences between methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from comparison import Difference, interval
from oar_plans import BASELINE, CLAIMS, LAST_POINTS, METHODS, NEARLY_FREE, NOT_FREE

Run = Mapping[str, Any]
Runs = Sequence[Run]

METRICS = {
    "final": "accuracy at the end",
    "curve": "accuracy over the whole curve",
    "timed": "accuracy at equal time",
    "timed_processor": "accuracy at equal processor time",
    "entropy": "entropy at the end, nats per token",
}
CLOCKS = {"timed": "seconds", "timed_processor": "processor_seconds"}
"""What is equal, by metric."""
CLAIMED = {"confirmed": "higher", "contradicted": "lower", "not confirmed": "no difference"}
"""What is said of a claim that one method is above another, and the verdict of the difference."""


def last_mean(run: Run, name: str) -> float:
    """Mean over the last evaluations."""
    return _mean([float(point[name]) for point in run["curve"][-LAST_POINTS:]])


def at(run: Run, clock: str, moment: float) -> float:
    """Accuracy at a moment, between evaluations on a straight line; beyond the last one it is that one's.

    Args:
        run: It.
        clock: `seconds` or `processor_seconds`, of training without evaluations.
        moment: In seconds.

    Returns:
        The share of right answers.
    """
    points = [(float(point[clock]), float(point["accuracy"])) for point in run["curve"]]
    for (before, low), (after, high) in pairwise(points):
        if moment <= after:
            share = (moment - before) / (after - before)
            return low + max(0.0, share) * (high - low)
    return points[-1][1]


def measures(run: Run, ends: Mapping[str, float]) -> dict[str, float]:
    """The metrics of one run.

    Args:
        run: It.
        ends: By clock, when the quickest run of its seed ends.

    Returns:
        By metric.
    """
    return {
        "final": last_mean(run, "accuracy"),
        "curve": over_curve(run),
        **{metric: at(run, clock, ends[clock]) for metric, clock in CLOCKS.items()},
        "entropy": last_mean(run, "entropy"),
    }


def over_curve(run: Run) -> float:
    """Mean accuracy of all evaluations: what rates are chosen by."""
    return _mean([float(point["accuracy"]) for point in run["curve"]])


def by_seed(runs: Runs, method: str, metric: str) -> dict[int, float]:
    """A metric of every run of a method, by seed."""
    found = {}
    for run in runs:
        if run["method"] == method:
            rivals = [other for other in runs if other["seed"] == run["seed"]]
            ends = {clock: min(float(other[clock]) for other in rivals) for clock in CLOCKS.values()}
            found[run["seed"]] = measures(run, ends)[metric]
    return found


def mean(runs: Runs, method: str, metric: str) -> float:
    """The mean over seeds."""
    return _mean(list(by_seed(runs, method, metric).values()))


def paired(runs: Runs, method: str, against: str, metric: str) -> Difference:
    """Method minus the other, seed by seed; both must have the same seeds."""
    return interval(_paired(by_seed(runs, method, metric), by_seed(runs, against, metric), method, against))


def comparisons(runs: Runs) -> list[dict[str, Any]]:
    """Every pair in every metric, ready for JSON."""
    return [
        {
            "metric": metric,
            "method": method,
            "against": against,
            **asdict(difference := paired(runs, method, against, metric)),
            "verdict": difference.verdict,
        }
        for metric in METRICS
        for method, against in CLAIMS
    ]


def step_seconds(runs: Runs, method: str, clock: str) -> dict[int, float]:
    """What a step of training took, by seed."""
    return {run["seed"]: float(run[clock]) / run["steps"] for run in runs if run["method"] == method}


def ratios(runs: Runs) -> list[dict[str, Any]]:
    """What a step takes in units of one of GRPO with the same seed, by method and clock, ready for JSON."""
    rows = []
    for clock in CLOCKS.values():
        theirs = step_seconds(runs, BASELINE, clock)
        for method in METHODS:
            if method != BASELINE:
                ours = step_seconds(runs, method, clock)
                logs = {seed: math.log(value) for seed, value in ours.items()}
                found = interval(_paired(logs, {s: math.log(v) for s, v in theirs.items()}, method, BASELINE))
                of = {name: math.exp(getattr(found, name)) for name in ("mean", "low", "high")}
                rows.append({"clock": clock, "method": method, **of, "verdict": freeness(of["mean"])})
    return rows


def freeness(ratio: float) -> str:
    """Whether a step that takes so many times as long as one of GRPO is nearly free."""
    if ratio <= NEARLY_FREE:
        return "confirmed"
    return "contradicted" if ratio > NOT_FREE else "not confirmed"


def judged(verdict: str) -> str:
    """What the verdict of a difference says of the claim that it is positive."""
    (word,) = [word for word, found in CLAIMED.items() if found == verdict]
    return word


def best_rates(grid: Runs) -> dict[str, float]:
    """The learning rate of each method with the highest mean over curves and seeds; the smaller one at a tie."""
    best = {}
    for method in dict.fromkeys(run["method"] for run in grid):
        levels = rate_levels(grid, method)
        best[method] = max(levels, key=levels.__getitem__)
    return best


def rate_levels(runs: Runs, method: str) -> dict[float, float]:
    """By learning rate, ascending: mean accuracy over curves and seeds."""
    levels: dict[float, list[float]] = {}
    for run in sorted(runs, key=lambda run: float(run["rate"])):
        if run["method"] == method:
            levels.setdefault(run["rate"], []).append(over_curve(run))
    return {rate: _mean(values) for rate, values in levels.items()}


def hindsight(runs: Runs, baseline_runs: Runs) -> tuple[float, Runs]:
    """GRPO's rate with the highest accuracy at the end over the seeds compared, and the runs with it.

    Args:
        runs: The comparison's.
        baseline_runs: GRPO's at every rate, with the same seeds.

    Returns:
        The rate, the smaller one at a tie, and `runs` with GRPO's at that rate in place of its own.
    """
    rates = sorted({run["rate"] for run in baseline_runs})
    of_rates = {rate: [run for run in baseline_runs if run["rate"] == rate] for rate in rates}
    best = max(rates, key=lambda rate: _mean([last_mean(run, "accuracy") for run in of_rates[rate]]))
    return best, [*(run for run in runs if run["method"] != BASELINE), *of_rates[best]]


def logged(run: Run, column: str) -> list[float]:
    """What the steps of a run logged of a column, without the steps that logged nothing."""
    return [float(value) for value in run["by_step"].get(column, ()) if value is not None]


def asking_steps(run: Run) -> list[int]:
    """The steps of a run of OAR that have something to ask, from 1: of some group, not all rewards are equal."""
    return [step for step, share in enumerate(logged(run, "zero_std"), start=1) if share < 1.0]


def outage_of(lost: Run, undisturbed: Run) -> dict[str, Any]:
    """What a run whose service was killed has to do with the one whose service was not, ready for JSON.

    Args:
        lost: The run whose service was killed; it may be shorter.
        undisturbed: The same without.

    Returns:
        `pushes_more`: how often weights were handed over beyond once a request; `largest_difference` between the two
        curves in accuracy and entropy, at the steps of both.
    """
    points = {point["step"]: point for point in undisturbed["curve"]}
    names = ("accuracy", "entropy")
    gaps = [abs(point[name] - points[point["step"]][name]) for point in lost["curve"] for name in names]
    return {
        "pushes_more": int(sum(logged(lost, "pushes"))) - len(asking_steps(lost)),
        "largest_difference": max(gaps),
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _paired(ours: Mapping[int, float], theirs: Mapping[int, float], method: str, against: str) -> list[float]:
    if ours.keys() != theirs.keys():
        raise ValueError(f"{method} has seeds {sorted(ours)}, {against} {sorted(theirs)}; expected the same")
    return [ours[seed] - theirs[seed] for seed in sorted(ours)]
