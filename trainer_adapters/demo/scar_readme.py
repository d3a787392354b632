"""The sections of README.md and SCAR.md on the demonstration of SCAR, from scar.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import scar_findings
import scar_report
from pages import marks, replaced, wrapped
from scar_comparison import METRICS, mean
from scar_findings import row_of
from scar_plans import CREDITS, KINDS

BEGIN, END = marks("scar_run.py")
FOLDER = "trainer_adapters/demo/results"

Results = Mapping[str, Any]


def rewrite(root: Path, results: Results | None) -> None:
    """Write both sections anew; everything else stays."""
    for name, section in (("README.md", short), ("SCAR.md", long)):
        path = root / name
        path.write_text(rewritten(path.read_text(encoding="utf-8"), section(results)), encoding="utf-8")


def rewritten(text: str, section: str) -> str:
    """A page with a new section between the marks."""
    return replaced(text, section, BEGIN, END)


def short(results: Results | None) -> str:
    """The section of the README; without results no number."""
    task = (
        "`make demo-scar` teaches a small reward model texts with planted causes, and trains a small policy by five "
        "kinds of credit against the live service."
    )
    if results is None:
        return wrapped(f"{task} It writes its results here; this version has none.")
    return wrapped(
        f"{task} {scar_findings.headline(results)} The paper's claims at this scale: {scar_findings.order(results)} "
        f"{scar_findings.in_hindsight(results)} "
        "[SCAR.md](SCAR.md#what-it-does-to-training) has the figures, and "
        f"[the report]({FOLDER}/scar_report.md) the rest."
    )


def long(results: Results | None) -> str:
    """The section of SCAR.md; without results no number and no picture."""
    if results is None:
        return short(None)
    return "\n\n".join(
        [
            wrapped(scar_findings.headline(results)),
            wrapped(scar_report.setting(results)),
            f"![Learning curves of five kinds of credit, and their AUROC]({FOLDER}/scar_curves.png)",
            _table(results),
            wrapped(
                "Means over seeds; AUROC of |credit| for the planted causes, by the reward model, on texts of two "
                f"kinds. {scar_report.same(results)}"
            ),
            "The paper reports SCAR above attention above the sparse reward. At this scale:",
            "\n".join(wrapped(line, "  ") for line in scar_findings.claims(results).splitlines()),
            wrapped(scar_findings.in_hindsight(results)),
            wrapped(scar_findings.form(results)),
            wrapped(
                "It is one task, one reward model and one small policy, trained by GRPO and not by PPO; [the report]"
                f"({FOLDER}/scar_report.md) has every interval, the grid, and what this does not show."
            ),
        ]
    )


def _table(results: Results) -> str:
    """A row per method: what was reached, how well its credit finds causes, and what it cost."""
    rollouts = results["settings"]["groups_per_step"] * results["settings"]["rollouts_per_group"]
    rows = [
        "| | "
        + " | ".join(
            (*(METRICS[metric] for metric in ("final", "steps")), *(f"AUROC, {kind}" for kind in KINDS.values()))
        )
        + " | evaluations of a note | s in credit, a step |",
        "|---" * (5 + len(KINDS)) + "|",
    ]
    for method, name in results["methods"].items():
        own = [run for run in results["runs"] if run["method"] == method]
        steps = sum(run["steps"] for run in own)
        credit = method if method in CREDITS else "uniform"  # the sparse reward says nothing of units
        found = [row_of(results["study"], texts=kind, utilities="reward model", credit=credit) for kind in KINDS]
        cells = [
            f"{mean(results['runs'], method, 'final'):.2f}",
            f"{mean(results['runs'], method, 'steps'):.0f}",
            *(f"{row['auroc']['mean']:.3f}" for row in found),
            f"{sum(run['evaluations'] for run in own) / steps / rollouts:.1f}",
            f"{sum(run['seconds_in_credit'] for run in own) / steps:.2f}",
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)
