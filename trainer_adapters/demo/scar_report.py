"""The report of the demonstration of SCAR, from scar.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import scar_comparison
import scar_findings
from findings import duration, listed
from scar_comparison import LOWER_IS_BETTER, METRICS, PAIRS
from scar_findings import digits_of, row_of, shown
from scar_plans import CREDITS, KINDS, LAST_POINTS, SCAR, SOURCES

Results = Mapping[str, Any]

BUSY = 0.5
"""A load per core beyond which a machine is not quiet."""


def text(results: Results) -> str:
    """The whole report; its first line says where a cheaper credit is better than SCAR."""
    return (
        "\n\n".join(
            [
                scar_findings.headline(results),
                "# SCAR on planted causes",
                setting(results),
                "## The paper's claims at this scale",
                (
                    "The paper (arXiv 2505.20417) reports SCAR above attention (ABC) above the sparse reward, in the "
                    "reward that is reached."
                ),
                scar_findings.claims(results),
                scar_findings.in_hindsight(results),
                same(results),
                "## What was reached",
                scar_findings.form(results),
                reached(results),
                "![Learning curves and AUROC](scar_curves.png)",
                "## Paired differences",
                _differences(results),
                "## Does credit find the causes",
                areas(results),
                "## |Credit| by kind of unit",
                _magnitudes(results),
                "## Learning rates",
                _grid(results),
                "## What this does not show",
                _limits(results),
            ]
        )
        + "\n"
    )


def setting(results: Results) -> str:
    """What was run."""
    settings, fit = results["settings"], results["reward_model"]
    schedule = settings["schedule"]
    return (
        "A note of up to eight remarks is worth AND + OR + praise·(1 − 2·spoilt), by the nouns that occur in it; a "
        "decoy does nothing. `trainer_adapters/demo/scar_task.py` defines it, and what a cause is; `scar_plans.py` has "
        f"the protocol. {of_model(results)} A policy of {settings['weights']:,} weights starts from one checkpoint and "
        f"is trained for {schedule['steps']} steps of {settings['groups_per_step']} groups of "
        f"{settings['rollouts_per_group']} notes by a plain GRPO loop. All scores, credits and token advantages (GRPO "
        "form) come over HTTP from `/v1/credit/scar` of a live service, whose cache is off so that each method pays "
        f"for itself. {len(schedule['seeds'])} seeds ({listed(schedule['seeds'])}), the same for all methods. "
        f"{took(results)} Of the processor time {fit['seconds']:.0f} s went into teaching the reward model."
    )


def took(results: Results) -> str:
    """How long everything took, in processor time too, and what else the machine did."""
    machine = results["machine"]
    busy = (
        f", beside other work (a load of {results['load_before']:.0f} before it began)"
        if results["load_before"] > BUSY * machine["cores"]
        else ""
    )
    apart = " The sparse runs at other rates were made apart and are not in it." if results["baseline_apart"] else ""
    return (
        f"Everything took {duration(results['processor_seconds'])} of processor time, and "
        f"{duration(results['wall_seconds'])} on {machine['cores']} cores ({machine['cpu']}){busy}.{apart}"
    )


def of_model(results: Results) -> str:
    """How good the reward model is."""
    fit = results["reward_model"]
    return (
        f"The reward model, a Llama that was taught the reward, explains {fit['r_squared']:.1%} of its variance on "
        f"held-out notes ({fit['accuracy']:.2%} right when rounded), and {fit['r_squared_start']:.1%} "
        f"({fit['accuracy_start']:.2%}) on notes as the policy starts with. A decoy, whose presence correlates "
        f"{fit['decoy_correlation']:.2f} with the reward in the taught notes, moves its score by "
        f"{fit['decoy_effect']:+.3f}."
    )


def same(results: Results) -> str:
    """What uniform credit is in the GRPO form."""
    row = row_of(results["comparisons"], method="uniform", against="sparse", metric="final")
    return (
        "In the GRPO form uniform credit is the sparse reward less v(∅), and so has the same advantages but for "
        f"rounding: planted reward at the end {shown(row)}. In PPO they differ; that was not run."
    )


def reached(results: Results) -> str:
    """A row per method: means over seeds, and what it cost."""
    settings, runs = results["settings"], results["runs"]
    rollouts = settings["groups_per_step"] * settings["rollouts_per_group"]
    rows = [
        (
            f"| | rate | planted reward at the end | over the curve | steps to {settings['target']:g} (reached by) | "
            "score at the end | units of a note at the end | evaluations of a note | s in credit, a step | s, a step | "
            "ms of processor, a note |"
        ),
        "|---" * 11 + "|",
    ]
    for method, name in results["methods"].items():
        own = [run for run in runs if run["method"] == method]
        steps = sum(run["steps"] for run in own)
        cells = [
            f"{results['rates'][method]:g}",
            *(f"{scar_comparison.mean(runs, method, metric):.2f}" for metric in ("final", "curve")),
            (
                f"{scar_comparison.mean(runs, method, 'steps'):.0f} "
                f"({sum(map(scar_comparison.has_reached, own))} of {len(own)})"
            ),
            f"{scar_comparison.mean(runs, method, 'score'):.2f}",
            f"{scar_comparison.units_at_end(runs, method):.1f}",
            f"{sum(run['evaluations'] for run in own) / steps / rollouts:.1f}",
            f"{sum(run['seconds_in_credit'] for run in own) / steps:.2f}",
            f"{sum(run['seconds'] for run in own) / steps:.2f}",
            f"{1000 * results['costs'][method]['processor_seconds'] / rollouts:.2f}",
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return (
        f"Means over seeds; the best reward is {results['best_reward']:g}. The end is the mean of the last "
        f"{LAST_POINTS} evaluations, for scores that of the last "
        f"{LAST_POINTS} steps. A run that never reaches {settings['target']:g} counts with its last step. Two "
        "trainings ran at a time against one service: seconds include waiting for each other, and "
        "for whatever else the machine did. Processor time is that of the service for the notes of a first step.\n\n"
    ) + "\n".join(rows)


def areas(results: Results) -> str:
    """AUROC of every credit, with intervals over texts."""
    study = results["study"]
    rows = [
        "| | " + " | ".join(f"{kind}, {source}" for kind in KINDS.values() for source in SOURCES.values()) + " |",
        "|---" * (1 + len(KINDS) * len(SOURCES)) + "|",
    ]
    for name, (title, _, _) in CREDITS.items():
        cells = [_area(study, kind, source, name) for kind in KINDS for source in SOURCES]
        rows.append(f"| {title} | {' | '.join(cells)} |")
    differences = "\n".join(
        f"- {KINDS[row['texts']]}, {SOURCES[row['utilities']]}: SCAR minus {CREDITS[row['against']][0]} {shown(row)}, "
        f"{row['verdict']}"
        for row in results["auroc_differences"]
    )
    number = results["settings"]["schedule"]["study_texts"]
    costs = "; ".join(
        f"{CREDITS[row['credit']][0]} {row['evaluations'] / number:.1f} evaluations and "
        f"{1000 * row['seconds'] / number:.1f} ms"
        for row in study
        if (row["texts"], row["utilities"]) == ("start", "reward model")
    )
    return (
        "AUROC of |credit| for being a cause (a unit that adds something to some set of other units), text by text, "
        f"mean with a 95 % interval over {number} texts of each kind, which have causes and others; in brackets the "
        "correlation of the credit with the planted Shapley values, over all units. Ties count one half, so credit "
        "that is the same for all units has 0.5.\n\n"
        + "\n".join(rows)
        + f"\n\n{differences}\n\nFor a text as the policy starts with, by the reward model: {costs}."
    )


def _area(study: list[dict[str, Any]], kind: str, source: str, name: str) -> str:
    found = [row for row in study if (row["texts"], row["utilities"], row["credit"]) == (kind, source, name)]
    if not found:
        return "–"
    area, correlation = found[0]["auroc"], found[0]["correlation"]
    return f"{area['mean']:.3f} [{area['low']:.3f}, {area['high']:.3f}] ({correlation:.2f})"


def _magnitudes(results: Results) -> str:
    rows = ["| | texts | causes | decoys | others |", "|---" * 5 + "|"]
    for row in results["study"]:
        if row["utilities"] == "reward model":
            cells = ["–" if row[part] is None else f"{row[part]:.3f}" for part in ("causes", "decoys", "others")]
            rows.append(f"| {CREDITS[row['credit']][0]} | {KINDS[row['texts']]} | {' | '.join(cells)} |")
    return "Mean |credit| by the reward model; decoys are units that hold one and no cause.\n\n" + "\n".join(rows)


def _differences(results: Results) -> str:
    names = results["methods"]
    rows = [
        "| | " + " | ".join(f"{title} | " for title in METRICS.values()) + " |",
        "|---" * (1 + 2 * len(METRICS)) + "|",
    ]
    for method, against in PAIRS:
        cells = []
        for metric in METRICS:
            row = row_of(results["comparisons"], method=method, against=against, metric=metric)
            cells.append(f"{shown(row, digits_of(metric))} | {row['verdict']}")
        rows.append(f"| {names[method]} minus {names[against]} | {' | '.join(cells)} |")
    lower = listed(METRICS[metric] for metric in LOWER_IS_BETTER)
    return (
        f"Paired by seed, n = {len(results['settings']['schedule']['seeds'])}, with 95 % t-intervals; an interval that "
        f"holds 0 is called no difference. Less is better in {lower}. {len(PAIRS) * len(METRICS)} intervals are shown "
        "and none is corrected for that: one or two may exclude 0 by chance.\n\n"
    ) + "\n".join(rows)


def _grid(results: Results) -> str:
    schedule, chosen = results["settings"]["schedule"], results["rates"]
    rates = schedule["rates"]
    levels: dict[tuple[str, float], list[float]] = {}
    for run in results["grid"]:
        levels.setdefault((run["method"], run["rate"]), []).append(scar_comparison.measures(run)["curve"])
    rows = ["| | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" * (len(rates) + 1) + "|"]
    for method, name in results["methods"].items():
        means = {rate: sum(levels[method, rate]) / len(levels[method, rate]) for rate in rates}
        cells = [f"**{means[rate]:.3f}**" if rate == chosen[method] else f"{means[rate]:.3f}" for rate in rates]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    at_edge = [name for method, name in results["methods"].items() if chosen[method] in {rates[0], rates[-1]}]
    edge = f" At the edge of the grid, so that a better rate may lie outside it: {listed(at_edge)}." if at_edge else ""
    seeds = schedule["grid_seeds"]
    return (
        f"Planted reward over the whole curve, mean over the seeds of the grid ({listed(seeds)}), which no comparison "
        f"uses; the choice is bold.{edge}\n\n"
    ) + "\n".join(rows)


def _limits(results: Results) -> str:
    schedule = results["settings"]["schedule"]
    return (
        f"Anything beyond one task, one reward model, one small policy, {len(schedule['seeds'])} seeds and "
        f"{len(schedule['rates'])} rates. The loop is GRPO with token advantages, not the paper's PPO with token "
        "rewards. The reward model was taught notes of 0 to 8 remarks, so that a text with absent units is no stranger "
        "to it: kind to leave-one-out and to SCAR. The causes are words that occur anywhere, so that spans are the "
        "right units. Seeds vary what is drawn in a training, not the reward model and not the checkpoint. |Credit| "
        "ranks a spoiler and what it spoils alike as causes; Shapley values of praise that is spoilt cancel, which "
        f"costs {results['methods'][SCAR]} AUROC by definition. A first whole run, "
        "whose policies were free to leave out the marks between remarks and did, found no credit above the sparse "
        "reward; `scar_plans.py` says what was changed after it, so that this is not the first look."
    )
