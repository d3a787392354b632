"""The figure of the demonstration of OAR, from oar.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from oar_findings import row_of
from oar_plans import BASELINE, FLIPS, MEASURES

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Results = Mapping[str, Any]

COLOURS = {"grpo": "#000000", "gradient": "#0072B2", "perturbation": "#D55E00"}
"""Okabe and Ito's, which colour-blind readers can tell apart."""
BARS = {
    "random": "at random",
    "entropy": "highest entropy",
    "nearness": "next to the answer",
    **{name: MEASURES[name][0] for name in ("gradient", "gradient_16", "perturbation")},
}


def draw(results: Results, path: Path) -> None:
    """Accuracy by steps and by time, entropy, ESS/L, and flip rates: means over seeds ± one deviation."""
    figure, axes = plt.subplots(2, 3, figsize=(14, 8), constrained_layout=True)
    by_steps, by_time, entropy, shares, kept, rewritten = axes.flat
    _curves(by_steps, results, "accuracy", "step")
    _curves(by_time, results, "accuracy", "seconds")
    _curves(entropy, results, "entropy", "step")
    _shares(shares, results)
    by_steps.set(xlabel="optimizer step", ylabel="accuracy, held-out problems")
    by_time.set(xlabel="seconds of training", ylabel="accuracy, held-out problems")
    entropy.set(xlabel="optimizer step", ylabel="entropy of the policy, nats per token")
    shares.set(xlabel="optimizer step", ylabel="ESS/L of the weights (1: GRPO)")
    for panel, kind in ((kept, "kept"), (rewritten, "rewritten")):
        _flips(panel, results, kind)
    for panel in axes.flat:
        panel.grid(visible=True, color="0.92")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = by_steps.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curves(panel: Axes, results: Results, column: str, across: str) -> None:
    for method, name in results["methods"].items():
        curves = [run["curve"] for run in results["runs"] if run["method"] == method]
        places = np.array([[point[across] for point in curve] for curve in curves]).mean(axis=0)
        values = np.array([[point[column] for point in curve] for curve in curves])
        label = f"{name} (rate {results['rates'][method]:g})"
        _band(panel, places, values, COLOURS[method], label)


def _shares(panel: Axes, results: Results) -> None:
    for method in results["methods"]:
        if method != BASELINE:
            own = [run["by_step"]["effective_share"] for run in results["runs"] if run["method"] == method]
            _band(panel, np.arange(1, len(own[0]) + 1), np.array(own, dtype=np.float64), COLOURS[method], "")
    panel.axhline(1.0, color=COLOURS[BASELINE], linewidth=1.2)


def _band(panel: Axes, places: Any, values: Any, colour: str, label: str) -> None:  # noqa: ANN401 - arrays
    middle, spread = values.mean(axis=0), values.std(axis=0, ddof=1)  # nan, a gap, where a run logged nothing
    panel.plot(places, middle, color=colour, label=label)
    panel.fill_between(places, middle - spread, middle + spread, color=colour, alpha=0.13, linewidth=0)


def _flips(panel: Axes, results: Results, kind: str) -> None:
    """A bar per way of choosing three tokens, with intervals over completions."""
    rows = [row_of(results["fidelity"]["rates"], flips=kind, measure=name) for name in BARS]
    middle = np.array([row["mean"] for row in rows])
    colours = [COLOURS.get(name.removesuffix("_16"), "0.7") for name in BARS]
    panel.barh(
        range(len(BARS)), middle, xerr=[row["high"] - row["mean"] for row in rows], color=colours, alpha=0.8, height=0.6
    )
    panel.set_yticks(range(len(BARS)), list(BARS.values()))
    panel.invert_yaxis()
    panel.set_xlim(0.0, 1.05)
    panel.set_xlabel(f"share of replacements that flip the answer,\n{FLIPS[kind]}")
