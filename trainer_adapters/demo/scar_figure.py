"""The figure of the demonstration of SCAR, from scar.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from scar_findings import row_of
from scar_plans import CREDITS, KINDS

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Results = Mapping[str, Any]

COLOURS = {
    "sparse": "#000000",
    "uniform": "#999999",
    "attention": "#E69F00",
    "leave_one_out": "#0072B2",
    "scar": "#D55E00",
}
"""Okabe and Ito's and a grey, which colour-blind readers can tell apart."""
DASHES = {"uniform": (0, (4, 3))}
"""What lies on another line is broken."""


def draw(results: Results, path: Path) -> None:
    """Left: the planted reward, a line per method, the mean over seeds ± one deviation. Right: AUROC with intervals."""
    figure, (curves, bars) = plt.subplots(1, 2, figsize=(11, 4.5), constrained_layout=True)
    rates = results["rates"]
    for method, name in results["methods"].items():
        points = [run["curve"] for run in results["runs"] if run["method"] == method]
        steps = [point["step"] for point in points[0]]
        values = np.array([[point["reward"] for point in curve] for curve in points])
        middle, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
        label = f"{name} (rate {rates[method]:g})"
        curves.plot(steps, middle, color=COLOURS[method], label=label, linestyle=DASHES.get(method, "-"))
        curves.fill_between(steps, middle - spread, middle + spread, color=COLOURS[method], alpha=0.12, linewidth=0)
    curves.axhline(results["settings"]["target"], color="0.6", linewidth=0.8, zorder=0)
    curves.set_xlabel("optimizer step")
    curves.set_ylabel(f"planted reward (best {results['best_reward']:g})")
    curves.legend(frameon=False)
    _areas(bars, results)
    for panel in (curves, bars):
        panel.grid(visible=True, color="0.92")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _areas(panel: Axes, results: Results) -> None:
    """A point per credit and kind of texts, with its interval over texts."""
    for shift, (kind, marker) in enumerate(zip(KINDS, "os", strict=True)):
        rows = [
            row_of(results["study"], texts=kind, utilities="reward model", credit=name)["auroc"] for name in CREDITS
        ]
        places = np.arange(len(CREDITS)) + 0.2 * (shift - 0.5)
        middle = np.array([row["mean"] for row in rows])
        half = middle - np.array([row["low"] for row in rows])
        panel.errorbar(middle, places, xerr=half, fmt=marker, color=("#0072B2", "#D55E00")[shift], label=KINDS[kind])
    panel.set_yticks(range(len(CREDITS)), [title for title, _, _ in CREDITS.values()])
    panel.invert_yaxis()
    panel.axvline(0.5, color="0.6", linewidth=0.8, zorder=0)
    panel.set_xlabel("AUROC of |credit| for the planted causes")
    panel.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=1)
