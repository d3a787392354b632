"""Paired differences between methods over seeds, and what may be said of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Runs = Sequence[Mapping[str, Any]]

T_QUANTILES = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448,
)  # fmt: skip
"""97.5 % quantiles of Student's t for 1 to 14 degrees of freedom."""

LAST_POINTS = 3
"""One evaluation of one run is too noisy to choose by."""
COLLAPSED_BELOW = 0.5
"""A policy that writes fewer of its sets in the format has collapsed."""


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences over seeds with its 95 % t-interval.

    Attributes:
        mean: Of the differences.
        low: Lower end.
        high: Upper end.
        seeds: How many.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """`higher`, `lower`, or `no difference` for an interval that holds 0."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "no difference"

    def __str__(self) -> str:
        """Mean and interval, signed."""
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def interval(differences: Sequence[float]) -> Difference:
    """Mean ± t · s/√n of 2 to 15 differences, s with divisor n − 1."""
    n = len(differences)
    mean = math.fsum(differences) / n
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in differences) / (n - 1))
    half = T_QUANTILES[n - 2] * spread / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, n)


def at_rates(runs: Runs, rates: Mapping[str, float]) -> Runs:
    """The runs of one table: those of each method at the rate that it has there."""
    return [run for run in runs if run["rate"] == rates.get(run["method"])]


def of_seeds(runs: Runs, seeds: Collection[int]) -> Runs:
    """The runs of some seeds."""
    return [run for run in runs if run["seed"] in seeds]


def has_collapsed(run: Mapping[str, Any]) -> bool:
    """Whether the policy has collapsed at the end."""
    return float(run["curve"][-1]["well_formed"]) < COLLAPSED_BELOW


def has_recovered(run: Mapping[str, Any]) -> bool:
    """Whether the policy had collapsed at some evaluation, and has not at the end."""
    return not has_collapsed(run) and any(point["well_formed"] < COLLAPSED_BELOW for point in run["curve"])


def at_step(runs: Runs, method: str, metric: str, step: int) -> dict[int, float]:
    """A metric of every run of a method at one step, by seed."""
    return {
        run["seed"]: float(point[metric])
        for run in runs
        if run["method"] == method
        for point in run["curve"]
        if point["step"] == step
    }


def mean_at(runs: Runs, method: str, metric: str, step: int) -> float:
    """The mean over seeds."""
    values = at_step(runs, method, metric, step)
    return math.fsum(values.values()) / len(values)


def paired(runs: Runs, method: str, baseline: str, step: int, metric: str = "max_at_k") -> Difference:
    """Method minus baseline, seed by seed; both must have the same seeds."""
    ours, theirs = at_step(runs, method, metric, step), at_step(runs, baseline, metric, step)
    if ours.keys() != theirs.keys():
        raise ValueError(f"{method} has seeds {sorted(ours)}, {baseline} {sorted(theirs)}; expected the same")
    return interval([ours[seed] - theirs[seed] for seed in sorted(ours)])


def level(run: Mapping[str, Any]) -> float:
    """Mean max@K of the last evaluations of a run: what learning rates are chosen by."""
    last = run["curve"][-LAST_POINTS:]
    return math.fsum(point["max_at_k"] for point in last) / len(last)


def best_rates(grid: Runs) -> dict[str, float]:
    """The learning rate of each method whose run has the highest level; the smaller one at a tie."""
    best: dict[str, Mapping[str, Any]] = {}
    for run in sorted(grid, key=lambda run: float(run["rate"])):
        if run["method"] not in best or level(run) > level(best[run["method"]]):
            best[run["method"]] = run
    return {method: float(run["rate"]) for method, run in best.items()}


def comparisons(runs: Runs, methods: Sequence[str], baseline: str, steps: Sequence[int]) -> list[dict[str, Any]]:
    """Every method against the baseline, ready for JSON: max@K at every step, distinct candidates at the last."""
    rows = []
    for metric, step in [*(("max_at_k", step) for step in steps), ("distinct", steps[-1])]:
        for method in methods:
            if method != baseline:
                found = paired(runs, method, baseline, step, metric)
                where = {"metric": metric, "step": step, "method": method}
                rows.append({**where, **asdict(found), "verdict": found.verdict})
    return rows
