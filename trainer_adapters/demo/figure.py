"""The figure, from results.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

import findings

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

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
)


def draw(results: Results, path: Path) -> None:
    """A column per choice of rates, a row per metric: a line per method, the mean over seeds, ± one deviation."""
    settings, best = results["settings"], results["rates"]["best"]
    schedule, rollouts = settings["schedule"], settings["prompts_per_step"] * settings["rollouts_per_prompt"]
    columns = {"best": "each rule at its best rate", "equal": f"all rules at {schedule['equal_rate']:g}"}
    figure, axes = plt.subplots(
        len(PANELS), len(columns), figsize=(11, 11), sharex=True, sharey="row", constrained_layout=True, squeeze=False
    )
    for column, (table, title) in enumerate(columns.items()):
        axes[0, column].set_title(title)
        axes[-1, column].set_xlabel(f"optimizer step ({rollouts} rollouts each)")
        for row, (metric, label) in enumerate(PANELS):
            _panel(axes[row, column], results, table, metric)
            axes[row, 0].set_ylabel(label)
        for step in schedule["compared"]:
            axes[0, column].axvline(step, color="0.75", linewidth=0.8, zorder=0)
    handles, _ = axes[0, 0].get_legend_handles_labels()
    labels = [f"{name} (best rate {best[method]:g})" for method, name in results["rules"].items()]
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(panel: Axes, results: Results, table: str, metric: str) -> None:
    runs = findings.of_table(results, table)
    for method, name in results["rules"].items():
        curves = [run["curve"] for run in runs if run["method"] == method]
        steps = [point["step"] for point in curves[0]]
        values = np.array([[point[metric] for point in curve] for curve in curves])
        mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
        panel.plot(steps, mean, color=COLOURS[method], label=name, linewidth=2 if method == findings.SHAPLEY else 1.4)
        panel.fill_between(steps, mean - spread, mean + spread, color=COLOURS[method], alpha=0.13, linewidth=0)
    panel.grid(visible=True, color="0.92")
    panel.spines[["top", "right"]].set_visible(False)
