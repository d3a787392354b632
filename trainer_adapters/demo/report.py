"""The figure and the text, from results.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import comparison

Results = Mapping[str, Any]

COLOURS = {
    "set_reward": "#000000",
    "own_reward": "#E69F00",
    "shapley": "#D55E00",
    "leave_one_out": "#0072B2",
    "annealed": "#009E73",
    "prefix_gain": "#CC79A7",
}
"""Okabe and Ito's, which colour-blind readers can tell apart."""
PANELS = (
    ("max_at_k", "expected max@4, held-out prompts"),
    ("mean_reward", "mean reward of a candidate"),
    ("distinct", "distinct candidates of four"),
    ("entropy", "entropy of a set, nats"),
)


def draw(results: Results, path: Path) -> None:
    """Four panels over the steps: a line per method, the mean over seeds, in a band of one standard deviation."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharex=True, constrained_layout=True)
    for panel, (metric, label) in zip(axes.flat, PANELS, strict=True):
        _panel(panel, results, metric)
        panel.set_ylabel(label)
    schedule = results["settings"]["schedule"]
    for step in (schedule["early"], schedule["steps"]):
        axes[0, 0].axvline(step, color="0.75", linewidth=0.8, zorder=0)
    for panel in axes[1]:
        panel.set_xlabel("optimizer step (256 rollouts each)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(panel: Axes, results: Results, metric: str) -> None:
    for method, name in results["rules"].items():
        curves = [run["curve"] for run in results["runs"] if run["method"] == method]
        steps = [point["step"] for point in curves[0]]
        values = np.array([[point[metric] for point in curve] for curve in curves])
        mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
        label = f"{name} (rate {results['rates'][method]:g})"
        panel.plot(steps, mean, color=COLOURS[method], label=label, linewidth=2 if method == "shapley" else 1.4)
        panel.fill_between(steps, mean - spread, mean + spread, color=COLOURS[method], alpha=0.13, linewidth=0)
    panel.grid(visible=True, color="0.92")
    panel.spines[["top", "right"]].set_visible(False)


def text(results: Results) -> str:
    """The report; its first line says whether Shapley wins."""
    parts = [headline(results), _introduction(results), _table(results), _differences(results), _grid(results)]
    return "\n\n".join([*parts, _service(results), _limits(results)]) + "\n"


def headline(results: Results) -> str:
    """Whether Shapley is the best of all methods, and better than set-level GRPO, at both stated steps."""
    schedule, names, runs = results["settings"]["schedule"], results["rules"], results["runs"]
    clauses, wins = [], True
    for step in (schedule["early"], schedule["steps"]):
        against = comparison.paired(runs, "shapley", results["baseline"], step)
        means = {method: comparison.mean_at(runs, method, "max_at_k", step) for method in names}
        best = max(means, key=lambda method: means[method])
        clause = f"at step {step} its max@4 is {_words(against)} set-level GRPO's ({against})"
        if best == "shapley":
            clause += " and the highest mean of all methods"
        else:
            behind = comparison.paired(runs, "shapley", best, step)
            clause += f", and {_words(behind)} that of {names[best]}, the highest mean ({behind})"
        clauses.append(clause)
        wins = wins and best == "shapley" and against.low > 0
    verdict = "Shapley wins" if wins else "Shapley does not win"
    line = f"**{verdict}**: {'; '.join(clauses)}."
    return f"*A quick run: it proves the path, its numbers mean nothing.* {line}" if results["settings"]["quick"] else line


def _words(difference: comparison.Difference) -> str:
    return {"higher": "higher than", "lower": "lower than", "no difference": "not different from"}[difference.verdict]


def _introduction(results: Results) -> str:
    settings, schedule, limits = results["settings"], results["settings"]["schedule"], results["references"]
    machine = results["machine"]
    worth = ", ".join(f"{name} {value:.3f}" for name, value in limits.items())
    return f"""![Learning curves](curves.png)

A Llama of {settings["weights"]:,} weights, made from nothing and taught only the format, is trained by TRL's GRPO
({settings["prompts_per_step"]} prompts × {settings["rollouts_per_prompt"]} rollouts a step) to suggest four gifts to a
person whose type it cannot see (`task.py`). Dense rewards, best of the set, a hidden type drawn per rollout. Differences are
paired by seed, over {len(schedule["seeds"])} seeds that the choice of learning rates has not seen. The steps
{schedule["early"]} (a fifth of the run) and {schedule["steps"]} (its end) were fixed before any result. Bands in the figure:
± one standard deviation over seeds.

Expected max@4 on the held-out prompts, for orientation: {worth}.

Machine: {machine["cpu"]}, {machine["cores"]} cores, no accelerator; {results["wall_seconds"] / 60:.0f} minutes; Python
{machine["python"]}, torch {machine["torch"]}, TRL {machine["trl"]}, transformers {machine["transformers"]}."""


def _table(results: Results) -> str:
    schedule, runs = results["settings"]["schedule"], results["runs"]
    early, last = schedule["early"], schedule["steps"]
    rows = [
        f"| method | rate | max@4, step {early} | max@4, step {last} | mean reward | distinct | entropy | s/step | in credit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    shown = dict(results["rules"])
    if any(run["method"] == "stock" for run in runs):
        shown["stock"] = "control: TRL without creditd"
    for method, name in shown.items():
        own = [run for run in runs if run["method"] == method]
        figures = [f"{comparison.mean_at(runs, method, 'max_at_k', step):.3f}" for step in (early, last)]
        ends = [comparison.mean_at(runs, method, metric, last) for metric in ("mean_reward", "distinct", "entropy")]
        step_s = sum(run["seconds_per_step"] for run in own) / len(own)
        credit_s = sum(run["seconds_in_credit"] / run["steps"] for run in own) / len(own)
        cells = [name, f"{own[0]['rate']:g}", *figures, f"{ends[0]:.3f}", f"{ends[1]:.2f}", f"{ends[2]:.1f}"]
        rows.append("| " + " | ".join([*cells, f"{step_s:.2f}", f"{1000 * credit_s:.0f} ms"]) + " |")
    return "Means over seeds; the four columns without a step are at the end.\n\n" + "\n".join(rows)


def _differences(results: Results) -> str:
    schedule, names, runs = results["settings"]["schedule"], results["rules"], results["runs"]
    steps = (schedule["early"], schedule["steps"])
    rows = [f"| max@4 minus that of set-level GRPO | step {steps[0]} | | step {steps[1]} | |", "|---|---|---|---|---|"]
    for method, name in names.items():
        if method != results["baseline"]:
            found = [comparison.paired(runs, method, results["baseline"], step) for step in steps]
            rows.append(f"| {name} | " + " | ".join(f"{one} | {one.verdict}" for one in found) + " |")
    return (
        "Paired differences with 95 % t-intervals over seeds. An interval that holds 0 is called no difference. Ten intervals "
        "are shown and none is corrected for that.\n\n" + "\n".join(rows)
    )


def _grid(results: Results) -> str:
    schedule = results["settings"]["schedule"]
    rates = schedule["rates"]
    rows = [f"| max@4, step {schedule['grid_steps']} | " + " | ".join(f"{rate:g}" for rate in rates) + " |"]
    rows.append("|---" * (len(rates) + 1) + "|")
    at_edge = []
    for method, name in results["rules"].items():
        cells = []
        for rate in rates:
            runs = [run for run in results["grid"] if run["method"] == method and run["rate"] == rate]
            value = f"{comparison.mean_at(runs, method, 'max_at_k', schedule['grid_steps']):.3f}"
            cells.append(f"**{value}**" if rate == results["rates"][method] else value)
        if results["rates"][method] in {rates[0], rates[-1]}:
            at_edge.append(name)
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    edge = f" The choice lies at the edge of the grid, so that a better rate may lie outside it, for: {', '.join(at_edge)}."
    return (
        f"The grid of learning rates, seed {schedule['grid_seed']}, {schedule['grid_steps']} steps; the choice is bold."
        + (edge if at_edge else "")
        + "\n\n"
        + "\n".join(rows)
    )


def _service(results: Results) -> str:
    asked = sum(run["requests"]["in_trainer_log"] for run in (*results["grid"], *results["runs"]))
    found = sum(run["requests"]["in_service_log"] for run in (*results["grid"], *results["runs"]))
    killed = results["killed_service"]
    return (
        f"Of {asked:,} request ids in the trainers' logs, {found:,} stand in the service's log as answered. A training whose "
        f"service was killed after step {killed['killed_after_step']} of {killed['planned_steps']} ended "
        f"{killed['seconds_from_kill_to_end']:.1f} s later with `{killed['error'].partition(':')[0]}`; its deadline is "
        f"{killed['deadline_s']:g} s."
    )


def _limits(results: Results) -> str:
    schedule = results["settings"]["schedule"]
    stock = ""
    if {run["seed"] for run in results["runs"] if run["method"] == "stock"} == set(schedule["seeds"]):
        difference = comparison.paired(results["runs"], results["baseline"], "stock", schedule["steps"])
        stock = (
            f" Set-level GRPO goes through creditd's `set_reward`; TRL's own trainer with the same reward, rate and seeds "
            f"is its control: the difference is {difference}, {difference.verdict}."
        )
    return (
        "What this does not show: one task, one table of rewards, one small model, one grid of three rates chosen on one "
        "seed. Seeds vary weights, lessons, prompts, sampling and hidden types, not the table. Every answer has exactly four "
        f"candidates by construction.{stock}"
    )
