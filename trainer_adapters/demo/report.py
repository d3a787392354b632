"""The text of report.md, from results.json alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comparison
import findings
import task
from plans import STOCK

Results = Mapping[str, Any]

END_COLUMNS = (
    "mean reward", "distinct", "entropy", "well-formed", "collapsed", "max@4 of the rest", "well-formed of the rest",
    "s/step", "in credit",
)  # fmt: skip
PILOT = json.loads((Path(__file__).parent / "pilot.json").read_text(encoding="utf-8"))
"""How the runs at the rate that the grid no longer has ended, in the last pilot."""


def text(results: Results) -> str:
    """The report; its first line says where Shapley does not win."""
    rate = results["settings"]["schedule"]["equal_rate"]
    parts = [
        findings.headline(results),
        "The other rules against set-level GRPO, in max@4; what both choices of the rates do not say alike depends on "
        "the rate:\n\n" + findings.of_rules(results),
        f"![Learning curves](curves.png)\n\n{caption(results)}",
        _introduction(results),
        "## Each rule at its best rate\n\n" + _table(results, "best"),
        _differences(results, "best"),
        f"## All rules at {rate:g}\n\n" + _table(results, "equal"),
        _differences(results, "equal"),
        "## The rates, the format and the control\n\n" + _grid(results),
        findings.of_collapse(results, PILOT),
        _control(results),
        "## The service\n\n" + _service(results),
        "## What this does not show\n\n" + _limits(results),
    ]
    return "\n\n".join(parts) + "\n"


def caption(results: Results) -> str:
    """What the picture shows, with the rates."""
    best, schedule = results["rates"]["best"], results["settings"]["schedule"]
    rates = ", ".join(f"{name} {best[method]:g}" for method, name in results["rules"].items())
    return (
        f"Left: each rule at its best learning rate ({rates}). Right: all rules at {schedule['equal_rate']:g}. Lines "
        f"are means over {len(schedule['seeds'])} seeds, bands one standard deviation; grey lines are the steps "
        "compared."
    )


def early(results: Results) -> str:
    """Which steps stand for early, and since when."""
    *first, last = results["settings"]["schedule"]["compared"]
    since = "; step 20 was added after a pilot, whose curves crossed before 40" if 20 in first else ""
    return f"Rules are compared {findings.at_steps(first)} (early{since}) and {last} (the end)."


def _introduction(results: Results) -> str:
    settings, schedule, machine = results["settings"], results["settings"]["schedule"], results["machine"]
    versions = settings["versions"]
    worth = ", ".join(f"{name} {value:.3f}" for name, value in results["references"].items())
    return (
        f"A Llama of {settings['weights']:,} weights, made from nothing and taught only the format, is trained by "
        f"TRL's GRPO ({settings['prompts_per_step']} prompts × {settings['rollouts_per_prompt']} rollouts a step) to "
        "suggest four gifts to a person whose type it cannot see (`task.py`): dense rewards, the best of the set "
        "counts, a hidden type drawn per rollout. Every method has the same prompts, seeds, hidden types and settings, "
        "and the same second reward for four well-formed gifts. The schedule moves from Shapley to leave-one-out in "
        f"{settings['annealed_over_steps']} steps, in the grid and in the comparison. Evaluation draws "
        f"{settings['evaluated_sets']} sets for prompts that training never saw and averages over types exactly. "
        f"Comparisons use {len(schedule['seeds'])} seeds that neither the choice of learning rates nor the pilots "
        f"used, collapsed ones included. {early(results)}\n\n"
        f"Expected max@4 on the held-out prompts, for orientation: {worth}.\n\n"
        f"Machine: {machine['cpu']}, {machine['cores']} cores, no accelerator; "
        f"{findings.duration(results['wall_seconds'])}; Python {versions['python']}, torch {versions['torch']}, "
        f"TRL {versions['trl']}, transformers {versions['transformers']}; sources {settings['sources']}."
    )


def _table(results: Results, table: str) -> str:
    schedule, runs, rates = results["settings"]["schedule"], findings.of_table(results, table), results["rates"][table]
    compared = schedule["compared"]
    head = ["method", "rate", *(f"max@4, step {step}" for step in compared), *END_COLUMNS]
    rows = [
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for method, name in results["rules"].items():
        figures = [f"{comparison.mean_at(runs, method, 'max_at_k', step):.3f}" for step in compared]
        own = [run for run in runs if run["method"] == method]
        rows.append(f"| {' | '.join([name, f'{rates[method]:g}', *figures, *_ends(own, schedule['steps'])])} |")
    return (
        "Means over seeds. At the end: mean reward of a candidate, distinct candidates of four, entropy of a set in "
        "nats, share of well-formed sets, collapsed seeds, and the other seeds' means. Seconds per step and, of these, "
        "in the adapter and the service.\n\n"
    ) + "\n".join(rows)


def _ends(own: comparison.Runs, last: int) -> list[str]:
    """Cells on the end of a method's runs."""
    method = own[0]["method"]
    reward, distinct, entropy, formed = (
        comparison.mean_at(own, method, metric, last)
        for metric in ("mean_reward", "distinct", "entropy", "well_formed")
    )
    collapsed = [run["seed"] for run in own if comparison.has_collapsed(run)]
    rest = [run for run in own if run["seed"] not in collapsed]
    seconds = sum(run["seconds_per_step"] for run in own) / len(own)
    credit_ms = 1000 * sum(run["seconds_in_credit"] / run["steps"] for run in own) / len(own)
    seeds = f" (seed{'s' if len(collapsed) > 1 else ''} {findings.listed(collapsed)})" if collapsed else ""
    return [
        f"{reward:.3f}",
        f"{distinct:.2f}",
        f"{entropy:.1f}",
        f"{formed:.1%}",
        f"{len(collapsed)} of {len(own)}{seeds}",
        f"{comparison.mean_at(rest, method, 'max_at_k', last):.3f}" if rest else "none left",
        f"{comparison.mean_at(rest, method, 'well_formed', last):.1%}" if rest else "none left",
        f"{seconds:.2f}",
        f"{credit_ms:.0f} ms",
    ]


def _differences(results: Results, table: str) -> str:
    names, steps = results["rules"], results["settings"]["schedule"]["compared"]
    runs, baseline = findings.of_table(results, table), results["baseline"]
    columns = [*(f"max@4, step {step}" for step in steps), f"distinct, step {steps[-1]}"]
    rows = [
        "| minus set-level GRPO | " + " | ".join(f"{column} | " for column in columns) + " |",
        "|---" * (1 + 2 * len(columns)) + "|",
    ]
    others = [method for method in names if method != baseline]
    for method in others:
        found = [comparison.paired(runs, method, baseline, step) for step in steps]
        found.append(comparison.paired(runs, method, baseline, steps[-1], "distinct"))
        rows.append(f"| {names[method]} | " + " | ".join(f"{one} | {one.verdict}" for one in found) + " |")
    return (
        "Paired differences with 95 % t-intervals over seeds. An interval that holds 0 is called no difference. "
        f"{len(others) * len(columns)} intervals are shown and none is corrected for that.\n\n"
    ) + "\n".join(rows)


def _grid(results: Results) -> str:
    schedule, chosen = results["settings"]["schedule"], results["rates"]["best"]
    rates = schedule["rates"]
    rows = ["| max@4 | " + " | ".join(f"{rate:g}" for rate in rates) + " |", "|---" * (len(rates) + 1) + "|"]
    levels = {(run["method"], run["rate"]): f"{comparison.level(run):.3f}" for run in results["grid"]}
    for method, name in results["rules"].items():
        cells = [levels[method, rate] for rate in rates]
        cells[rates.index(chosen[method])] = f"**{levels[method, chosen[method]]}**"
        rows.append(f"| {name} | {' | '.join(cells)} |")
    at_edge = [name for method, name in results["rules"].items() if chosen[method] in {rates[0], rates[-1]}]
    edge = f" At the edge of the grid, so that a better rate may lie outside it: {', '.join(at_edge)}."
    return (
        f"The grid of learning rates: seed {schedule['grid_seed']}, {schedule['grid_steps']} steps, mean of the last "
        f"{comparison.LAST_POINTS} evaluations; the choice is bold.{edge if at_edge else ''}\n\n"
    ) + "\n".join(rows)


def _control(results: Results) -> str:
    schedule, baseline = results["settings"]["schedule"], results["baseline"]
    seeds = schedule["control_seeds"]
    rates = {baseline: schedule["equal_rate"], STOCK: schedule["equal_rate"]}
    runs = comparison.of_seeds(comparison.at_rates(results["runs"], rates), seeds)
    found = [(step, comparison.paired(runs, baseline, STOCK, step)) for step in schedule["compared"]]
    size = results["settings"]["rollouts_per_prompt"] * task.K
    factor = math.sqrt((size - 1) / (size - task.K))  # deviations of the same rewards, K copies each and once each
    shown = "; ".join(f"at step {step} {one}, {one.verdict}" for step, one in found)
    return (
        f"The control is TRL's own `GRPOTrainer` without creditd, at {schedule['equal_rate']:g} with {len(seeds)} "
        "seeds. Set-level GRPO goes through creditd's `set_reward`; the sets' reward and the format's are standardised "
        "each within the group and added. TRL's `normalize_then_sum` does that and then whitens the sum over the "
        "batch, and has no setting without it; so the control's reward functions standardise, and TRL adds them with "
        f"`scale_rewards='none'`: the same advantages, but for a factor of {factor:.2f} on the sets' part. Set-level "
        f"GRPO minus control in max@4: {shown}. Few seeds: a small difference would not be seen."
    )


def _service(results: Results) -> str:
    everything = [*results["grid"], *results["runs"]]
    asked, found = (sum(run["requests"][log] for run in everything) for log in ("in_trainer_log", "in_service_log"))
    limit = results["settings"]["end_deadline_s"]
    lost = " ".join(
        f"One whose service got {one['signal']} after step {one['after_step']} of {one['planned_steps']} ended "
        f"{one['seconds_to_end']:.1f} s later with `{one['error'].partition(':')[0]}`, "
        f"{'within' if one['seconds_to_end'] <= limit else 'past'} the deadline."
        for one in results["lost_services"]
    )
    return (
        f"Of {asked:,} request ids in the trainers' logs, {found:,} stand in the service's log as answered; "
        "results.json has of each run how many, the first and the last. Under `raise` a training that loses its "
        f"service has to end within {limit:g} s: the next rollouts, and a request of at most "
        f"{results['settings']['outage_deadline_s']:g} s with all its attempts. {lost}"
    )


def _limits(results: Results) -> str:
    schedule = results["settings"]["schedule"]
    return (
        f"Anything beyond one task, one table of rewards, one small model and one grid of {len(schedule['rates'])} "
        "rates. "
        "The best rates are chosen on one seed by the level at the end of shorter runs, so that differences in the "
        "first table, early ones most of all, are differences of rate too; one rate for all is not fair to every rule "
        "either. Seeds vary weights, lessons, prompts, sampling and hidden types, not the table. The second reward is "
        "there because in pilots without it policies stopped writing four candidates, most of all under leave-one-out."
    )
