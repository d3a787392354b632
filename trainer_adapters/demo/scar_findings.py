"""What may be said of the demonstration of SCAR, in sentences, from scar.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comparison import Difference
from findings import listed
from scar_comparison import METRICS, hindsight, mean, paired, units_at_end, verdict
from scar_plans import SCAR
from scar_task import REMARKS

Results = Mapping[str, Any]
Row = Mapping[str, Any]

RIVALS = ("attention", "leave_one_out")
"""Cheaper credits: where one of them is better than SCAR, nobody needs SCAR there."""
CLAIMS = ((SCAR, "attention"), ("attention", "sparse"), (SCAR, "sparse"))
"""The order that the paper reports."""
CLAIMED_IN = ("final", "score")
TEXTS = {"taught": "held-out notes of the reward model", "start": "notes as the policy starts with"}


def headline(results: Results) -> str:
    """Where attention or leave-one-out is better than SCAR; and where SCAR is better than they."""
    quick = "*A quick run: it proves the path, its numbers mean nothing.* " if results["settings"]["quick"] else ""
    names = results["methods"]
    lost = {rival: _against(results, rival, "worse") for rival in RIVALS}
    won = {rival: _against(results, rival, "better") for rival in RIVALS}
    parts = [
        f"**{_capital(names[rival])} is better than SCAR** in {listed(where)}."
        for rival, where in lost.items()
        if where
    ]
    if not parts:
        parts = ["**Neither attention nor leave-one-out is better than SCAR** in anything that is compared."]
    for rival, where in won.items():
        found = f"in {listed(where)}" if where else "in nothing that is compared"
        parts.append(f"SCAR is better than {names[rival]} {found}.")
    return f"{quick}{' '.join(parts)} {trained(results)}"


def trained(results: Results) -> str:
    """SCAR against the sparse reward and leave-one-out in training, with every number."""
    names = results["methods"]
    parts = []
    for against in ("sparse", "leave_one_out"):
        row = row_of(results["comparisons"], method=SCAR, against=against, metric="final")
        ours, theirs = (mean(results["runs"], method, "final") for method in (SCAR, against))
        parts.append(f"{names[against]} ({ours:.2f} against {theirs:.2f}; {shown(row)}, {row['verdict']})")
    texts = {
        method: results["costs"][method]["evaluations"] / results["costs"]["sparse"]["evaluations"]
        for method in ("leave_one_out", SCAR)
    }
    return (
        f"In training, SCAR's planted reward at the end compares with that of {listed(parts)}; for a first step the "
        f"model reads {texts['leave_one_out']:.0f} times as many texts as for the sparse reward under leave-one-out, "
        f"and {texts[SCAR]:.0f} times under SCAR."
    )


def form(results: Results) -> str:
    """Whether policies still write the remarks that units are, or have left that form."""
    counts = {name: units_at_end(results["runs"], method) for method, name in results["methods"].items()}
    shares = listed(f"{name} {count:.1f}" for name, count in counts.items())
    text = f"A note of the form that policies start with has {REMARKS} units; in the last steps they have {shares}."
    if all(REMARKS / 2 <= count <= 2 * REMARKS for count in counts.values()):
        return text
    return (
        f"{text} Nothing rewards the marks between remarks, and policies leave them out or write more of them: then "
        "units are no longer remarks, a note that is one unit has the sparse reward whatever the credit, and what was "
        "reached says less about credit than the AUROC does."
    )


def in_hindsight(results: Results) -> str:
    """SCAR and leave-one-out against the sparse reward at its best rate on the very seeds compared."""
    names, sparse = results["methods"], results["baseline"]
    rate, runs = hindsight(results["runs"], results["baseline_runs"])
    parts = []
    for method in (SCAR, "leave_one_out"):
        found = {metric: paired(runs, method, sparse, metric) for metric in ("final", "curve", "steps")}
        cells = [
            f"{METRICS[metric]} {of_digits(one, digits_of(metric))}, {verdict(one, metric)}"
            for metric, one in found.items()
        ]
        parts.append(f"{names[method]}: {'; '.join(cells)}.")
    return (
        f"The rate of {names[sparse]} was chosen by few seeds, as all rates were. Of all rates of the grid, {rate:g} "
        f"is its best at the end on the very seeds that are compared ({mean(runs, sparse, 'final'):.2f}). Against that "
        f"choice in hindsight, which favours it: {' '.join(parts)}"
    )


def claims(results: Results) -> str:
    """The paper's order, claim by claim: confirmed or not, at this scale."""
    names = results["methods"]
    return "\n".join(
        f"- {names[method]} above {names[against]}: {_judgement(results, method, against)}"
        for method, against in CLAIMS
    )


def order(results: Results) -> str:
    """In one sentence, which of the paper's claims are confirmed in the planted reward at the end."""
    names = results["methods"]
    verdicts = {
        claim: row_of(results["comparisons"], method=claim[0], against=claim[1], metric="final")["verdict"]
        for claim in CLAIMS
    }
    words = {"better": "is confirmed", "worse": "is contradicted", "no difference": "is not confirmed"}
    return (
        "; ".join(f"{names[a]} above {names[b]} {words[found]}" for (a, b), found in verdicts.items())
        + " (planted reward at the end)."
    )


def row_of(rows: Sequence[Row], **wanted: str) -> Row:
    """The one row with these entries."""
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return found


def shown(row: Row, digits: int = 3) -> str:
    """A mean with its interval, signed."""
    return of_digits(Difference(row["mean"], row["low"], row["high"], 0), digits)


def of_digits(difference: Difference, digits: int) -> str:
    """A difference with its interval, signed, with so many decimals."""
    return f"{difference.mean:+.{digits}f} [{difference.low:+.{digits}f}, {difference.high:+.{digits}f}]"


def digits_of(metric: str) -> int:
    """Decimals of a metric: steps have one."""
    return 1 if metric == "steps" else 3


def _against(results: Results, rival: str, wanted: str) -> list[str]:
    """Measures in which SCAR has this verdict against the rival, each with SCAR's difference."""
    of_runs = [
        f"{METRICS[row['metric']]} (SCAR {shown(row, digits_of(row['metric']))})"
        for row in results["comparisons"]
        if (row["method"], row["against"], row["verdict"]) == (SCAR, rival, wanted)
    ]
    of_texts = [
        f"the AUROC on {TEXTS[row['texts']]} (SCAR {shown(row)})"
        for row in results["auroc_differences"]
        if (row["utilities"], row["against"], row["verdict"]) == ("reward model", rival, wanted)
    ]
    return [*of_runs, *of_texts]


def _judgement(results: Results, method: str, against: str) -> str:
    words = {"better": "confirmed", "worse": "not confirmed, the opposite holds", "no difference": "not confirmed"}
    rows = {
        metric: row_of(results["comparisons"], method=method, against=against, metric=metric) for metric in CLAIMED_IN
    }
    return "; ".join(f"{words[row['verdict']]} in the {METRICS[metric]} ({shown(row)})" for metric, row in rows.items())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
