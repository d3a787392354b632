"""The text, from results.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comparison

Results = Mapping[str, Any]


def text(results: Results) -> str:
    """The report; its first line says whether Shapley wins."""
    parts = [headline(results), _introduction(results), _table(results), _differences(results), _grid(results)]
    return "\n\n".join([*parts, _service(results), _limits(results)]) + "\n"


def headline(results: Results) -> str:
    """Whether Shapley is the best of all methods, and better than set-level GRPO, at all steps that are compared."""
    names, runs = results["rules"], results["runs"]
    clauses, wins = [], True
    for step in results["settings"]["schedule"]["compared"]:
        against = comparison.paired(runs, "shapley", results["baseline"], step)
        means = {method: comparison.mean_at(runs, method, "max_at_k", step) for method in names}
        other = max(means.keys() - {"shapley"}, key=lambda method: means[method])
        ahead = comparison.paired(runs, "shapley", other, step)
        place = "the best of the other methods" if means["shapley"] > means[other] else "the best method"
        clauses.append(
            f"at step {step} its max@4 is {_words(against)} set-level GRPO's ({against}) "
            f"and {_words(ahead)} that of {names[other]}, {place} ({ahead})"
        )
        wins = wins and against.low > 0 and means["shapley"] > means[other]
    verdict = "Shapley wins" if wins else "Shapley does not win"
    line = f"**{verdict}**: {'; '.join(clauses)}."
    quick = "*A quick run: it proves the path, its numbers mean nothing.* " if results["settings"]["quick"] else ""
    return quick + line


def _words(difference: comparison.Difference) -> str:
    return {"higher": "higher than", "lower": "lower than", "no difference": "not different from"}[difference.verdict]


def _introduction(results: Results) -> str:
    settings, schedule, limits = results["settings"], results["settings"]["schedule"], results["references"]
    machine = results["machine"]
    worth = ", ".join(f"{name} {value:.3f}" for name, value in limits.items())
    return f"""![Learning curves](curves.png)

A Llama of {settings["weights"]:,} weights, made from nothing and taught only the format, is trained by TRL's GRPO
({settings["prompts_per_step"]} prompts × {settings["rollouts_per_prompt"]} rollouts a step) to suggest four gifts to a
person whose type it cannot see (`task.py`): dense rewards, the best of the set counts, a hidden type drawn per rollout.
Every method has the same prompts, seeds, hidden types and settings, and the same second reward for four well-formed
gifts. Evaluation draws {settings["evaluated_sets"]} sets for prompts that training never saw and averages over types
exactly. Comparisons use {len(schedule["seeds"])} seeds that neither the choice of learning rates nor the pilots used.
The first full pilot compared steps 40 and 200; step 20 was added when it showed that curves cross before 40. Bands in
the figure: ± one standard deviation over seeds; grey lines: the steps that are compared.

Expected max@4 on the held-out prompts, for orientation: {worth}.

Machine: {machine["cpu"]}, {machine["cores"]} cores, no accelerator; {results["wall_seconds"] / 60:.0f} minutes; Python
{machine["python"]}, torch {machine["torch"]}, TRL {machine["trl"]}, transformers {machine["transformers"]}."""


def _table(results: Results) -> str:
    schedule, runs = results["settings"]["schedule"], results["runs"]
    compared = schedule["compared"]
    steps = " | ".join(f"max@4, step {step}" for step in compared)
    rows = [
        f"| method | rate | {steps} | mean reward | distinct | entropy | well-formed | s/step | in credit |",
        "|---" * (8 + len(compared)) + "|",
    ]
    shown = dict(results["rules"])
    if any(run["method"] == "stock" for run in runs):
        shown["stock"] = "control: TRL without creditd"
    for method, name in shown.items():
        own = [run for run in runs if run["method"] == method]
        figures = [f"{comparison.mean_at(runs, method, 'max_at_k', step):.3f}" for step in compared]
        metrics = ("mean_reward", "distinct", "entropy", "well_formed")
        ends = [comparison.mean_at(runs, method, metric, schedule["steps"]) for metric in metrics]
        step_s = sum(run["seconds_per_step"] for run in own) / len(own)
        credit_s = sum(run["seconds_in_credit"] / run["steps"] for run in own) / len(own)
        cells = [name, f"{own[0]['rate']:g}", *figures, f"{ends[0]:.3f}", f"{ends[1]:.2f}", f"{ends[2]:.1f}"]
        cells += [f"{ends[3]:.1%}", f"{step_s:.2f}", f"{1000 * credit_s:.0f} ms" if credit_s else ""]
        rows.append(f"| {' | '.join(cells)} |")
    return (
        "Means over seeds. At the end: mean reward of a candidate, distinct candidates of four, entropy of a set in "
        "nats, share of well-formed sets. Seconds per step and, of these, in the adapter and the service.\n\n"
    ) + "\n".join(rows)


def _differences(results: Results) -> str:
    names, runs, steps = results["rules"], results["runs"], results["settings"]["schedule"]["compared"]
    rows = [
        "| max@4 minus set-level GRPO's | " + " | ".join(f"step {step} | " for step in steps) + " |",
        "|---" * (1 + 2 * len(steps)) + "|",
    ]
    others = [method for method in names if method != results["baseline"]]
    for method in others:
        found = [comparison.paired(runs, method, results["baseline"], step) for step in steps]
        rows.append(f"| {names[method]} | " + " | ".join(f"{one} | {one.verdict}" for one in found) + " |")
    return (
        "Paired differences with 95 % t-intervals over seeds. An interval that holds 0 is called no difference. "
        f"{len(others) * len(steps)} intervals are shown and none is corrected for that.\n\n"
    ) + "\n".join(rows)


def _grid(results: Results) -> str:
    schedule, chosen = results["settings"]["schedule"], results["rates"]
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


def _service(results: Results) -> str:
    asked = sum(run["requests"]["in_trainer_log"] for run in (*results["grid"], *results["runs"]))
    found = sum(run["requests"]["in_service_log"] for run in (*results["grid"], *results["runs"]))
    killed = results["killed_service"]
    return (
        f"Of {asked:,} request ids in the trainers' logs, {found:,} stand in the service's log as answered. A training "
        f"whose service was killed after step {killed['killed_after_step']} of {killed['planned_steps']} ended "
        f"{killed['seconds_from_kill_to_end']:.1f} s later with `{killed['error'].partition(':')[0]}`; its deadline is "
        f"{killed['deadline_s']:g} s."
    )


def _limits(results: Results) -> str:
    schedule = results["settings"]["schedule"]
    stock = ""
    if {run["seed"] for run in results["runs"] if run["method"] == "stock"} == set(schedule["seeds"]):
        difference = comparison.paired(results["runs"], results["baseline"], "stock", schedule["steps"])
        stock = (
            f" Set-level GRPO goes through creditd's `set_reward`; TRL's own trainer with the same rewards, rate and "
            f"seeds is its control: set-level GRPO minus control at step {schedule['steps']} is {difference}, "
            f"{difference.verdict}."
        )
    return (
        "What this does not show: anything beyond one task, one table of rewards, one small model and one grid of "
        "three rates, chosen on one seed by the level at its end, so that early differences are differences of rate "
        "too. Seeds vary weights, lessons, prompts, sampling and hidden types, not the "
        "table. The second reward is there because in pilots without it policies stopped writing four candidates, most "
        f"of all under leave-one-out.{stock}"
    )
