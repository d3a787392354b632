"""The README's section on the demonstration, from results.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import findings
import report
from pages import marks, replaced, wrapped

BEGIN, END = marks("run.py")


def section(results: Mapping[str, Any] | None) -> str:
    """What stands between the marks; without results no number and no picture."""
    task = (
        "`make demo` makes a small Llama from nothing, teaches it the format, and trains it with TRL's GRPO against "
        "the live service to suggest four gifts to somebody whose type is hidden, so that hedging pays."
    )
    if results is None:
        return wrapped(f"{task} It writes its results here; this version has none.")
    schedule, machine = results["settings"]["schedule"], results["machine"]
    took = (
        f"It took {findings.duration(results['wall_seconds'])} on {machine['cores']} cores: {len(results['rules'])} "
        f"rules, {len(schedule['seeds'])} seeds, each rule at the best of {len(schedule['rates'])} learning rates and "
        f"all at one. {report.early(results)}"
    )
    limits = (
        "It is one task and one small model; [the report](trainer_adapters/demo/results/report.md) has both tables, "
        "the grid, the control and what this does not show."
    )
    parts = [
        wrapped(f"{task} {took}"),
        "![Learning curves of six credit rules](trainer_adapters/demo/results/curves.png)",
        wrapped(report.caption(results)),
        wrapped(findings.headline(results)),
        "The other rules against set-level GRPO, in max@4:",
        "\n".join(wrapped(line, "  ") for line in findings.of_rules(results).splitlines()),
        wrapped(f"{findings.of_collapse(results, report.PILOT)} {limits}"),
    ]
    return "\n\n".join(parts)


def rewritten(text: str, results: Mapping[str, Any] | None) -> str:
    """The README with a new section."""
    return replaced(text, section(results), BEGIN, END)
