"""The sections of README.md and OAR.md on the demonstration of OAR, from oar.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import oar_findings
import oar_report
from oar_comparison import CLOCKS, logged, mean
from oar_plans import BASELINE
from pages import marks, replaced, wrapped

BEGIN, END = marks("oar_run.py")
FOLDER = "trainer_adapters/demo/results"

Results = Mapping[str, Any]


def rewrite(root: Path, results: Results | None) -> None:
    """Write both sections anew; everything else stays."""
    for name, section in (("README.md", short), ("OAR.md", long)):
        path = root / name
        path.write_text(rewritten(path.read_text(encoding="utf-8"), section(results)), encoding="utf-8")


def rewritten(text: str, section: str) -> str:
    """A page with a new section between the marks."""
    return replaced(text, section, BEGIN, END)


def short(results: Results | None) -> str:
    """The section of the README; without results no number."""
    task = (
        "`make demo-oar` teaches a small Llama from nothing to write out products until it is partly right, and trains "
        "it with TRL by GRPO, OAR-G and OAR-P from there, the weights handed over to the live service at every step."
    )
    if results is None:
        return wrapped(f"{task} It writes its results here; this version has none.")
    return wrapped(
        f"{task} {oar_findings.headline(results)} A service that was killed in the middle of a run cost one more push "
        "of weights and one more request. [OAR.md](OAR.md#what-it-does-to-training) has the figures, and "
        f"[the report]({FOLDER}/oar_report.md) the rest."
    )


def long(results: Results | None) -> str:
    """The section of OAR.md; without results no number and no picture."""
    if results is None:
        return short(None)
    return "\n\n".join(
        [
            wrapped(oar_findings.headline(results)),
            wrapped(oar_report.setting(results)),
            f"![Accuracy, entropy, ESS/L and fidelity of GRPO, OAR-G and OAR-P]({FOLDER}/oar_curves.png)",
            _table(results),
            wrapped(
                "Means over seeds; at equal time is where a curve is when the quickest run of the seed ends. "
                f"{oar_findings.entropy_kept(results)}"
            ),
            "The paper reports both variants above GRPO, OAR-P as the upper bound, OAR-G nearly free. At this scale:",
            "\n".join(wrapped(line, "  ") for line in oar_findings.claims(results).splitlines()),
            wrapped(oar_findings.in_hindsight(results)),
            wrapped(oar_findings.why_not_free(results)),
            wrapped(oar_findings.outage(results)),
            wrapped(
                "It is one task and one small policy; [the report]"
                f"({FOLDER}/oar_report.md) has every interval, the flip rates, the grid, and what this does not show."
            ),
        ]
    )


def _table(results: Results) -> str:
    """A row per method: what was reached, and what a step cost."""
    timed = oar_findings.reached_at(results, CLOCKS["timed"])
    rows = ["| | accuracy at the end | at equal time | entropy at the end | ESS/L | s, a step |", "|---" * 6 + "|"]
    for method, name in results["methods"].items():
        own = [run for run in results["runs"] if run["method"] == method]
        shares = [value for run in own for value in logged(run, "effective_share")]
        cells = [
            f"{mean(results['runs'], method, 'final'):.3f}",
            f"{timed[method]:.3f}",
            f"{mean(results['runs'], method, 'entropy'):.3f}",
            "1" if method == BASELINE else f"{sum(shares) / len(shares):.3f}",
            f"{oar_findings.step_parts(results, method)['step']:.2f}",
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)
