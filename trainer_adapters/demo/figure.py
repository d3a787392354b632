"""The figure, from results.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

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
    ("entropy", "entropy of a set, nats"),
)


def draw(results: Results, path: Path) -> None:
    """Four panels over the steps: a line per method, the mean over seeds, in a band of one standard deviation."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharex=True, constrained_layout=True)
    for panel, (metric, label) in zip(axes.flat, PANELS, strict=True):
        _panel(panel, results, metric)
        panel.set_ylabel(label)
    for step in results["settings"]["schedule"]["compared"]:
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
