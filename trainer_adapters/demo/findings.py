"""What may be said of a rule: only what holds with every rule at its best rate and with all at one rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comparison
from plans import STOCK

Results = Mapping[str, Any]

SHAPLEY = "shapley"
WORDS = {"higher": "higher", "lower": "lower", "no difference": "not different"}


@dataclass(frozen=True)
class Finding:
    """A method against the baseline at one step, in both tables.

    Attributes:
        step: Where.
        best: The paired difference with every method at its best rate.
        equal: The same with all methods at one rate.
        same_runs: Whether both rates of both methods are the same, so that the tables are one piece of evidence.
    """

    step: int
    best: comparison.Difference
    equal: comparison.Difference
    same_runs: bool

    @property
    def holds(self) -> bool:
        """Whether both tables say the same; else it depends on the rate."""
        return self.best.verdict == self.equal.verdict


def of_table(results: Results, table: str) -> comparison.Runs:
    """The runs of a table, `best` or `equal`."""
    return comparison.at_rates(results["runs"], results["rates"][table])


def finding(results: Results, method: str, step: int) -> Finding:
    """The method against set-level GRPO."""
    baseline, rates = results["baseline"], results["rates"]
    best, equal = (comparison.paired(of_table(results, table), method, baseline, step) for table in ("best", "equal"))
    return Finding(step, best, equal, all(rates["best"][one] == rates["equal"][one] for one in (method, baseline)))


def wins(results: Results, table: str, step: int) -> bool:
    """Whether Shapley is higher than every other rule: each interval lies above 0."""
    runs = of_table(results, table)
    others = [method for method in results["rules"] if method != SHAPLEY]
    return all(comparison.paired(runs, SHAPLEY, other, step).verdict == "higher" for other in others)


def headline(results: Results) -> str:
    """Where Shapley does not win, and at which rates; then how it compares with set-level GRPO."""
    names, rates, steps = results["rules"], results["rates"], results["settings"]["schedule"]["compared"]
    at_best = (
        f"with every rule at its best rate ({names[SHAPLEY]} {rates['best'][SHAPLEY]:g}, "
        f"{names[results['baseline']]} {rates['best'][results['baseline']]:g})"
    )
    at_equal = f"with all rules at {rates['equal'][SHAPLEY]:g}"
    won = {step: tuple(wins(results, table, step) for table in ("best", "equal")) for step in steps}
    outcomes = {
        (False, False): ("**Shapley does not win**", f", neither {at_best} nor {at_equal}"),
        (False, True): ("**Shapley does not win**", f" {at_best}, but does {at_equal}"),
        (True, False): ("**Shapley does not win**", f" {at_equal}, but does {at_best}"),
        (True, True): ("**Shapley wins**", f", both {at_best} and {at_equal}"),
    }
    verdict = "; ".join(
        f"{words} {at_steps(where)}{how}"
        for outcome, (words, how) in outcomes.items()
        if (where := [step for step in steps if won[step] == outcome])
    )
    compared = "; ".join(_compared(finding(results, SHAPLEY, step), rates["equal"][SHAPLEY]) for step in steps)
    quick = "*A quick run: it proves the path, its numbers mean nothing.* " if results["settings"]["quick"] else ""
    return f"{quick}{verdict}. Its max@4 against set-level GRPO's: {compared}."


def _compared(found: Finding, rate: float) -> str:
    best, equal = WORDS[found.best.verdict], WORDS[found.equal.verdict]
    if found.same_runs:
        return f"at step {found.step} {best} ({found.best}; the best rates are {rate:g} too)"
    if found.holds:
        return f"at step {found.step} {best} ({found.best} at the best rates, {found.equal} at {rate:g})"
    return (
        f"at step {found.step} it depends on the rate, {best} at the best rates ({found.best}) and {equal} at {rate:g} "
        f"({found.equal})"
    )


def of_rule(results: Results, method: str) -> str:
    """One sentence on a rule other than Shapley: what both tables say of it, and where they differ."""
    steps, equal = results["settings"]["schedule"]["compared"], results["rates"]["equal"][method]
    found = [finding(results, method, step) for step in steps]
    parts = []
    for verdict, word in WORDS.items():
        agreed = [one for one in found if one.holds and one.best.verdict == verdict]
        shown = [
            f"{one.best}{'' if one.same_runs else f' at the best rates, {one.equal} at {equal:g}'}" for one in agreed
        ]
        parts += [f"{word} at step {one.step} ({text})" for one, text in zip(agreed, shown, strict=True)]
    if differing := [one.step for one in found if not one.holds]:
        parts.append(f"{at_steps(differing)} it depends on the rate")
    name = results["rules"][method]
    return f"{name[0].upper()}{name[1:]}: {'; '.join(parts)}."


def of_rules(results: Results) -> str:
    """A list of all rules but Shapley, each against set-level GRPO."""
    others = [method for method in results["rules"] if method not in {SHAPLEY, results["baseline"]}]
    return "\n".join(f"- {of_rule(results, method)}" for method in others)


def of_collapse(results: Results, pilot: Results) -> str:
    """How many policies lost the format, and that a reward for it did not prevent this."""
    runs, names = results["runs"], {**results["rules"], STOCK: "the control"}
    lost = [run for run in runs if comparison.has_collapsed(run)]
    recovered = sum(comparison.has_recovered(run) for run in runs)
    counts = [
        f"{names[method]} at {rate:g} {sum(_is_of(run, method, rate) for run in lost)} of "
        f"{sum(_is_of(run, method, rate) for run in runs)}"
        for method, rate in dict.fromkeys((run["method"], run["rate"]) for run in lost)
    ]
    earlier = [run for run in pilot["runs"] if run["well_formed"] < comparison.COLLAPSED_BELOW]
    which = listed(dict.fromkeys(names[run["method"]] for run in earlier))
    return (
        f"A policy has collapsed that at the end writes fewer than {comparison.COLLAPSED_BELOW:.0%} of its sets in the "
        f"format: {len(lost)} of the {len(runs)} runs compared{f' ({listed(counts)})' if counts else ''}; {recovered} "
        "more had collapsed at some evaluation and recovered. A second reward for the format, the same for every rule, "
        f"is no guard against it: at {pilot['rate']:g}, in the pilots, {len(earlier)} of {len(pilot['runs'])} runs "
        f"collapsed ({which}), and the grid ends below that rate for this reason."
    )


def _is_of(run: Mapping[str, Any], method: str, rate: float) -> bool:
    return bool(run["method"] == method and run["rate"] == rate)


def at_steps(steps: Sequence[int]) -> str:
    """`at step 20`, or `at steps 20 and 40`."""
    return f"at step{'s' if len(steps) > 1 else ''} {listed(steps)}"


def listed(items: Iterable[object]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    *most, last = [str(item) for item in items]
    return f"{', '.join(most)} and {last}" if most else last


def duration(seconds: float) -> str:
    """Minutes, rounded to whole ones, at least one."""
    minutes = max(1, round(seconds / 60))
    return f"{minutes} minute{'s' if minutes > 1 else ''}"
