"""The report of the demonstration of OAR, from oar.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import oar_comparison
import oar_findings
from findings import duration, listed
from oar_comparison import CLOCKS, METRICS
from oar_findings import row_of, shown
from oar_plans import CLAIMS, FLIPS, GRADIENT, LAST_POINTS, MEASURES, OAR_MEASURES, REPLACEMENTS

Results = Mapping[str, Any]

BUSY = 0.5
"""A load per core beyond which a machine is not quiet."""


def text(results: Results) -> str:
    """The whole report; its first paragraph has the claims with their verdicts."""
    return (
        "\n\n".join(
            [
                oar_findings.headline(results),
                "# OAR on products that are written out",
                setting(results),
                "## The paper's claims at this scale",
                (
                    "The paper (arXiv 2601.07408) reports both variants above GRPO on mathematics, OAR-P as the upper "
                    "bound, and OAR-G nearly free. The rules below were settled beforehand (`oar_plans.py`)."
                ),
                oar_findings.claims(results),
                oar_findings.in_hindsight(results),
                oar_findings.why_not_free(results),
                "## What was reached",
                reached(results),
                "![Learning curves, entropy, weights and fidelity](oar_curves.png)",
                oar_findings.entropy_kept(results),
                "## Paired differences",
                _differences(results),
                "## Do sensitive tokens flip the answer",
                fidelity(results),
                "## A service that dies in the middle",
                oar_findings.outage(results),
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
    settings = results["settings"]
    schedule = settings["schedule"]
    return (
        f"A Llama of {settings['weights']:,} weights is taught from nothing, by {schedule['lessons']} batches of "
        "products of three digits and one that are written out column by column and have errors, until it is partly "
        f"right. {oar_findings.start(results)} From that checkpoint TRL's GRPO trains it for {schedule['steps']} steps "
        f"of {settings['prompts_per_step']} problems with {settings['rollouts_per_prompt']} completions each, of "
        f"{settings['reasoning_tokens']} reasoning tokens; the reward is 1 for a right answer and nothing else. Under "
        "OAR-G and OAR-P every step hands its weights over to a live service, and the token advantages are TRL's own "
        "times the weights that `POST /v1/credit/oar` answers with; one draw of noise, the published defaults. "
        f"{len(schedule['seeds'])} seeds ({listed(schedule['seeds'])}), the same for all methods. "
        f"`trainer_adapters/demo/oar_task.py` defines the task, `oar_plans.py` has the protocol. {took(results)}"
    )


def took(results: Results) -> str:
    """How long everything took, in processor time too, and what else the machine did."""
    machine = results["machine"]
    busy = (
        f", beside other work (a load of {results['load_before']:.0f} before it began)"
        if results["load_before"] > BUSY * machine["cores"]
        else ""
    )
    return (
        f"Everything took {duration(results['wall_seconds'])} on {machine['cores']} cores ({machine['cpu']}){busy}, "
        f"and {duration(results['processor_seconds'])} of processor time in trainings."
    )


def reached(results: Results) -> str:
    """A row per method: means over seeds, and what it cost."""
    runs = results["runs"]
    first = runs[0]["curve"][0]
    timed = {clock: oar_findings.reached_at(results, clock) for clock in CLOCKS.values()}
    rows = [
        (
            "| | rate | accuracy at the end | over the curve | at equal time | at equal processor time | "
            "most probable tokens | form | entropy at the end | ESS/L | top 10 % | spread | s, a step | "
            "processor s, a step | s in credit | s in pushes |"
        ),
        "|---" * 16 + "|",
        (
            f"| at the start | | {first['accuracy']:.3f} | | | | {results['greedy_at_start']:.3f} | "
            f"{first['well_formed']:.3f} | {first['entropy']:.3f} | | | | | | | |"
        ),
    ]
    for method, name in results["methods"].items():
        own = [run for run in runs if run["method"] == method]
        parts = oar_findings.step_parts(results, method)
        cells = [
            f"{results['rates'][method]:g}",
            *(f"{oar_comparison.mean(runs, method, metric):.3f}" for metric in ("final", "curve")),
            *(f"{timed[clock][method]:.3f}" for clock in timed),
            f"{sum(run['greedy'] for run in own) / len(own):.3f}",
            f"{oar_findings.at_end(results, method, 'well_formed'):.3f}",
            f"{oar_comparison.mean(runs, method, 'entropy'):.3f}",
            *(_of_steps(own, column) for column in ("effective_share", "top_share", "spread")),
            f"{parts['step']:.2f}",
            f"{parts['processor']:.2f}",
            f"{parts['credit']:.2f}",
            f"{parts['push']:.2f}",
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return (
        "Means over seeds. Accuracy is that of drawn answers to held-out problems; the end is the mean of the last "
        f"{LAST_POINTS} evaluations. At equal time: where a curve is when the quickest run of the seed ends. ESS/L, "
        "the share of the weights that the largest 10 % of tokens have, and the spread of the draws (which one draw "
        "does not have) are means over steps. Time is that of training without evaluations, processor time that of the "
        f"trainer and of the service together. {results['at_a_time']} trainings ran at a time, each with a service of "
        "its own.\n\n"
    ) + "\n".join(rows)


def _of_steps(runs: list[Mapping[str, Any]], column: str) -> str:
    """Mean over steps and seeds of what was logged; a dash where nothing was."""
    values = [value for run in runs for value in oar_comparison.logged(run, column)]
    return f"{sum(values) / len(values):.3f}" if values else "–"


def _differences(results: Results) -> str:
    names = results["methods"]
    rows = [
        "| | " + " | ".join(f"{title} | " for title in METRICS.values()) + " |",
        "|---" * (1 + 2 * len(METRICS)) + "|",
    ]
    for method, against in CLAIMS:
        cells = []
        for metric in METRICS:
            row = row_of(results["comparisons"], metric=metric, method=method, against=against)
            cells.append(f"{shown(row)} | {row['verdict']}")
        rows.append(f"| {names[method]} minus {names[against]} | {' | '.join(cells)} |")
    times = "\n".join(
        f"- {names[row['method']]}, {'the clock' if row['clock'] == 'seconds' else 'processor time'}: "
        f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}] times a step of GRPO"
        for row in results["ratios"]
    )
    return (
        f"Paired by seed, n = {len(results['settings']['schedule']['seeds'])}, with 95 % t-intervals; an interval that "
        f"holds 0 is called no difference. {len(CLAIMS) * len(METRICS)} intervals are shown and none is corrected for "
        "that.\n\n" + "\n".join(rows) + f"\n\nThe time of a step, geometric means over seeds:\n\n{times}"
    )


def fidelity(results: Results) -> str:
    """Flip rates by measure, differences, correlations, and kinds of tokens."""
    found = results["fidelity"]
    rows = [
        "| | "
        + " | ".join(f"flips, {words} | rank correlation with flips" for words in FLIPS.values())
        + " | rank correlation with OAR-P |",
        "|---" * (2 + 2 * len(FLIPS)) + "|",
    ]
    for name, title in {"random": "tokens at random", **{key: entry[0] for key, entry in MEASURES.items()}}.items():
        cells = []
        for kind in FLIPS:
            cells.append(_interval(row_of(found["rates"], flips=kind, measure=name)))
            cells.append(
                "–" if name == "random" else _interval(row_of(found["correlations"], flips=kind, measure=name))
            )
        agreement = [row for row in found["agreement"] if (row["one"], row["other"]) == (name, "perturbation")]
        cells.append(_interval(agreement[0]) if agreement else "–")
        rows.append(f"| {title} | {' | '.join(cells)} |")
    again = row_of(found["agreement"], one="gradient_again", other=GRADIENT)
    return (
        f"On {found['texts']} completions that the checkpoint drew ({found['right']:.1%} with the right answer), each "
        f"token of the work is replaced by {REPLACEMENTS} others of its kind, one after the other. Shares of "
        "replacements that flip the answer, of the three most sensitive of the "
        f"{results['settings']['reasoning_tokens']} tokens of a completion, with 95 % intervals over completions:\n\n"
        + "\n".join(rows)
        + f"\n\nTwo single draws of OAR-G have a rank correlation of {_interval(again)} with each other.\n\n"
        + oar_findings.flips(results)
        + "\n\n"
        + _kinds(results)
    )


def _kinds(results: Results) -> str:
    rows = [
        "| | tokens | "
        + " | ".join(f"flips, {words}" for words in FLIPS.values())
        + " | "
        + " | ".join(f"weight, {MEASURES[name][0]}" for name in OAR_MEASURES)
        + " |",
        "|---" * (2 + len(FLIPS) + len(OAR_MEASURES)) + "|",
    ]
    for row in results["fidelity"]["kinds"]:
        cells = [f"{row['flips'][kind]:.3f}" for kind in FLIPS] + [
            f"{row['weights'][name]:.2f}" for name in OAR_MEASURES
        ]
        rows.append(f"| {row['kind']} | {row['tokens']} | {' | '.join(cells)} |")
    return (
        f"{oar_findings.saturated(results)}By kind of token: `result` is a digit of a sum, `other digit` one that is "
        "copied, `sign` the rest. A token that is written into a later column matters for the answer when the rest is "
        "written anew; with the rest kept, which is what sensitivities are about, it may not.\n\n"
    ) + "\n".join(rows)


def _interval(row: Mapping[str, Any]) -> str:
    return "–" if row["mean"] is None else f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _grid(results: Results) -> str:
    schedule, chosen = results["settings"]["schedule"], results["rates"]
    rates = schedule["rates"]
    rows = ["| | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" * (len(rates) + 1) + "|"]
    for method, name in results["methods"].items():
        levels = oar_comparison.rate_levels(results["grid"], method)
        cells = [f"**{levels[rate]:.3f}**" if rate == chosen[method] else f"{levels[rate]:.3f}" for rate in rates]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    at_edge = [name for method, name in results["methods"].items() if chosen[method] in {rates[0], rates[-1]}]
    edge = f" At the edge of the grid, so that a better rate may lie outside it: {listed(at_edge)}." if at_edge else ""
    return (
        f"Accuracy over the whole curve, mean over the seeds of the grid ({listed(schedule['grid_seeds'])}), which no "
        f"comparison uses; the choice is bold.{edge}\n\n"
    ) + "\n".join(rows)


def _limits(results: Results) -> str:
    schedule = results["settings"]["schedule"]
    return (
        f"Anything beyond one task, one checkpoint, one small policy, {len(schedule['seeds'])} seeds, "
        f"{len(schedule['rates'])} rates and {schedule['steps']} steps. The reasoning has "
        f"{results['settings']['reasoning_tokens']} tokens of one form, and the same few of them decide the answer in "
        "every completion; the paper's have hundreds, of free text. Seeds vary the problems and what is drawn, not "
        "the checkpoint. The policy is taught by texts with errors, so that what training removes are mostly slips: "
        "where a policy does not know how, credit may matter more or less. The time of a step is that of two cores "
        "without a GPU, with a service on the same machine."
    )
