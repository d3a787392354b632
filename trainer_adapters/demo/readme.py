"""The README's section on the demonstration, from results.json alone."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import findings
import report

BEGIN = "<!-- written by trainer_adapters/demo/run.py: begin -->"
END = "<!-- written by trainer_adapters/demo/run.py: end -->"
WIDTH = 120


def section(results: Mapping[str, Any] | None) -> str:
    """What stands between the marks; without results no number and no picture."""
    task = (
        "`make demo` makes a small Llama from nothing, teaches it the format, and trains it with TRL's GRPO against "
        "the live service to suggest four gifts to somebody whose type is hidden, so that hedging pays."
    )
    if results is None:
        return _wrapped(f"{task} It writes its results here; this version has none.")
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
        _wrapped(f"{task} {took}"),
        "![Learning curves of six credit rules](trainer_adapters/demo/results/curves.png)",
        _wrapped(report.caption(results)),
        _wrapped(findings.headline(results)),
        "The other rules against set-level GRPO, in max@4:",
        "\n".join(_wrapped(line, "  ") for line in findings.of_rules(results).splitlines()),
        _wrapped(f"{findings.of_collapse(results, report.PILOT)} {limits}"),
    ]
    return "\n\n".join(parts)


def rewritten(text: str, results: Mapping[str, Any] | None) -> str:
    """The README with a new section."""
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"the README has no {BEGIN} with {END} behind it")
    return f"{before}{BEGIN}\n{section(results)}\n{END}{after}"


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
