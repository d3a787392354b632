"""What may be said of the demonstration of OAR, in sentences, from oar.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from findings import listed
from oar_comparison import CLOCKS, METRICS, asking_steps, at, hindsight, judged, last_mean, logged, mean, paired
from oar_plans import (
    BASELINE,
    CLAIMS,
    FLIPS,
    GRADIENT,
    MEASURES,
    NEARLY_FREE,
    NOT_FREE,
    OAR_MEASURES,
    PERTURBATION,
    PUBLISHED_RATIOS,
    RIVALS,
)

Results = Mapping[str, Any]
Row = Mapping[str, Any]

AGAINST = {
    "random": "tokens at random",
    "entropy": "those of highest entropy",
    "nearness": "those next to the answer",
}
DIGITS = 3
SATURATED = 0.8
"""A share of flips among all tokens beyond which nobody can be much better than chance."""


def headline(results: Results) -> str:
    """Every claim of the paper with its verdict, and fidelity, in a few sentences."""
    quick = "*A quick run: it proves the path, its numbers mean nothing.* " if results["settings"]["quick"] else ""
    return f"{quick}{order(results)} {free(results)} {fidelity(results)}"


def order(results: Results) -> str:
    """In one sentence, which of the claims about accuracy are confirmed at the end."""
    names = results["methods"]
    parts = []
    for method, against in CLAIMS:
        row = row_of(results["comparisons"], metric="final", method=method, against=against)
        parts.append(f"{names[method]} above {names[against]} is **{judged(row['verdict'])}** ({shown(row)})")
    return f"In accuracy at the end, {listed(parts)}."


def free(results: Results) -> str:
    """Whether OAR-G is nearly free, and what OAR-P costs."""
    clock, row = (row_of(results["ratios"], method=GRADIENT, clock=clock) for clock in CLOCKS.values())
    other_clock, other = (row_of(results["ratios"], method=PERTURBATION, clock=clock) for clock in CLOCKS.values())
    return (
        f"That {results['methods'][GRADIENT]} is nearly free is **{row['verdict']}**: a step takes {row['mean']:.2f} "
        f"times the processor time of one of GRPO ({clock['mean']:.2f} by the clock; the authors give "
        f"{PUBLISHED_RATIOS[GRADIENT]:g}), one of {results['methods'][PERTURBATION]} {other['mean']:.2f} times "
        f"({other_clock['mean']:.2f}; {PUBLISHED_RATIOS[PERTURBATION]:g})."
    )


def why_not_free(results: Results) -> str:
    """What a step of GRPO consists of here, against which the price is read."""
    own = {method: step_parts(results, method) for method in (GRADIENT, PERTURBATION)}
    names = results["methods"]
    parts = [
        f"{names[method]} {found['credit']:.2f} s of {found['step']:.2f} s, {found['push']:.2f} s of them for handing "
        "over the weights"
        for method, found in own.items()
    ]
    return (
        f"Nearly free means at most {NEARLY_FREE:g} times a step of GRPO; beyond {NOT_FREE:g} times the claim is "
        "contradicted. "
        f"Credit takes, of a step, under {listed(parts)}. {unmeasured(results)} A step of GRPO writes only "
        f"{results['settings']['new_tokens']} tokens per completion here, which is cheap beside reading them all "
        "again; where it writes thousands, one after the other, the ratio may be another one."
    )


def unmeasured(results: Results) -> str:
    """How many completions the adapters measure nothing of, which a price has to be read with."""
    parts = []
    for method in (GRADIENT, PERTURBATION):
        own = [value for run in results["runs"] if run["method"] == method for value in logged(run, "without_contrast")]
        parts.append(f"{sum(own) / len(own):.0%} of the completions under {results['methods'][method]}")
    return (
        f"Completions of groups whose rewards are all equal are not measured: {listed(parts)}, means over steps; a "
        "method that measured all would cost more."
    )


def step_parts(results: Results, method: str) -> dict[str, float]:
    """Seconds of a step of a method, and those in credit and in pushes of weights, means over steps and seeds."""
    own = [run for run in results["runs"] if run["method"] == method]
    steps = sum(run["steps"] for run in own)
    return {
        "step": sum(run["seconds"] for run in own) / steps,
        "processor": sum(run["processor_seconds"] for run in own) / steps,
        "credit": sum(sum(logged(run, "credit_s")) for run in own) / steps,
        "push": sum(sum(logged(run, "push_s")) for run in own) / steps,
    }


def claims(results: Results) -> str:
    """The claims one by one: at the end, over the curve, and at equal time."""
    names = results["methods"]
    lines = []
    for method, against in CLAIMS:
        cells = []
        for metric in ("final", "curve", "timed"):
            row = row_of(results["comparisons"], metric=metric, method=method, against=against)
            cells.append(f"{METRICS[metric]} {shown(row)}, {judged(row['verdict'])}")
        lines.append(f"- {names[method]} above {names[against]}: {'; '.join(cells)}.")
    return "\n".join([*lines, f"- {free(results)}"])


def in_hindsight(results: Results) -> str:
    """Both against GRPO at its best rate on the very seeds compared."""
    names = results["methods"]
    rate, runs = hindsight(results["runs"], results["baseline_runs"])
    parts = []
    for method in (GRADIENT, PERTURBATION):
        found = paired(runs, method, BASELINE, "final")
        parts.append(f"{names[method]} {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}], {found.verdict}")
    return (
        f"All rates were chosen by {_counted(results['settings']['schedule']['grid_seeds'], 'seed')} of the grid. Of "
        f"all rates of the grid, {rate:g} is GRPO's best at the end on the very seeds that are compared "
        f"({mean(runs, BASELINE, 'final'):.3f}). Against that choice in hindsight, which favours GRPO: "
        f"{listed(parts)} (accuracy at the end)."
    )


def fidelity(results: Results) -> str:
    """Whether the most sensitive tokens flip the answer more often than others, when they are replaced."""
    parts = []
    for name in (PERTURBATION, GRADIENT):
        rows = {
            rival: row_of(results["fidelity"]["differences"], flips="kept", measure=name, against=rival)
            for rival in RIVALS
        }
        found = [f"{_word(row)} {AGAINST[rival]} ({shown(row)})" for rival, row in rows.items()]
        rate = row_of(results["fidelity"]["rates"], flips="kept", measure=name)["mean"]
        parts.append(f"the most sensitive by {MEASURES[name][0]} ({rate:.1%} of replacements) {listed(found)}")
    return f"Replaced, tokens flip the answer: {'; '.join(parts)}."


def flips(results: Results) -> str:
    """Differences in flip rates, one by one."""
    lines = []
    for kind, words in FLIPS.items():
        for name in OAR_MEASURES:
            cells = [
                f"against {AGAINST[rival]} {shown(row)}, {row['verdict']}"
                for rival in RIVALS
                for row in [row_of(results["fidelity"]["differences"], flips=kind, measure=name, against=rival)]
            ]
            lines.append(f"- {MEASURES[name][0]}, {words}: {'; '.join(cells)}.")
    return "\n".join(lines)


def outage(results: Results) -> str:
    """What the death of a service cost a run."""
    run, found = results["outage"], results["outage_compared"]
    lost = run["lost"]
    step = asking_steps(run)[lost["weights_before"] - 1]
    seconds = logged(run, "credit_s")
    same = (
        "Its curve is that of the same run with a service that lived, to the last bit"
        if found["largest_difference"] == 0
        else "Its curve differs from that of the same run with a service that lived by at most "
        f"{found['largest_difference']:.2g}"
    )
    return (
        f"In one more run of {results['methods'][run['method']]} the service was killed (SIGKILL) while it computed "
        f"the request of step {step} of {run['steps']}, and started anew at the same address with the weights of the "
        f"checkpoint; it listened again after {lost['seconds']:.1f} s. The client asked again until somebody "
        f"listened, was told that these weights are unknown ({_counted(run['unknown'], 'time')}), and the adapter "
        f"handed them over {_counted(found['pushes_more'], 'time')} more and repeated the request. That step's credit "
        f"took {seconds[step - 1]:.1f} s, where {median(seconds):.1f} s is usual; all {run['steps']} steps were "
        f"made, none without its weights. {same}."
    )


def start(results: Results) -> str:
    """How good the checkpoint is."""
    point = results["runs"][0]["curve"][0]
    return (
        f"It starts at an accuracy of {point['accuracy']:.1%} on {results['settings']['evaluated_problems']} held-out "
        f"problems ({results['greedy_at_start']:.1%} when it always writes the most probable token), and with an "
        f"entropy of {point['entropy']:.3f} nats per token."
    )


def saturated(results: Results) -> str:
    """That nearly everything flips when the rest is written anew, where it does; else nothing."""
    rate = row_of(results["fidelity"]["rates"], flips="rewritten", measure="random")["mean"]
    if rate < SATURATED:
        return ""
    return (
        f"With the rest written anew {rate:.1%} of all replacements flip the answer, because a token that does not "
        "belong leads what follows astray: that says little about any way of choosing. "
    )


def row_of(rows: Sequence[Row], **wanted: str) -> Row:
    """The one row with these entries."""
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return found


def shown(row: Row, digits: int = DIGITS) -> str:
    """A mean with its interval, signed."""
    return f"{row['mean']:+.{digits}f} [{row['low']:+.{digits}f}, {row['high']:+.{digits}f}]"


def entropy_kept(results: Results) -> str:
    """Entropy at the end by method, against the start."""
    names = results["methods"]
    first = results["runs"][0]["curve"][0]["entropy"]
    parts = [f"{name} {mean(results['runs'], method, 'entropy'):.3f}" for method, name in names.items()]
    rows = [
        f"{names[method]} minus {names[against]} {shown(row)}, {row['verdict']}"
        for method, against in CLAIMS
        for row in [row_of(results["comparisons"], metric="entropy", method=method, against=against)]
    ]
    return (
        f"Entropy goes from {first:.3f} nats per token to {listed(parts)} at the end ({'; '.join(rows)}). The authors "
        "report that OAR keeps more of it."
    )


def reached_at(results: Results, clock: str) -> dict[str, float]:
    """By method, accuracy when the quickest run of its seed ends, the mean over seeds."""
    found: dict[str, list[float]] = {}
    for run in results["runs"]:
        ends = min(float(other[clock]) for other in results["runs"] if other["seed"] == run["seed"])
        found.setdefault(run["method"], []).append(at(run, clock, ends))
    return {method: sum(values) / len(values) for method, values in found.items()}


def at_end(results: Results, method: str, name: str) -> float:
    """A column of the curve at the end, the mean over seeds."""
    own = [last_mean(run, name) for run in results["runs"] if run["method"] == method]
    return sum(own) / len(own)


def _word(row: Row) -> str:
    return {"higher": "more often than", "lower": "less often than", "no difference": "not otherwise than"}[
        row["verdict"]
    ]


def _counted(number: int | Sequence[object], noun: str) -> str:
    """`1 time`, `2 times`."""
    n = number if isinstance(number, int) else len(number)
    return f"{n} {noun}{'' if n == 1 else 's'}"
