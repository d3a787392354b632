import json
import re

import pytest

import scar_comparison
import scar_findings
import scar_readme
import scar_report
from demo.conftest import DEMO
from demo.scar_fabricated import AREAS, results
from pages import WIDTH
from scar_plans import METHODS

ROOT = DEMO.parents[1]
FOLDER = DEMO / "results"
PAGES = {"README.md": scar_readme.short, "SCAR.md": scar_readme.long}
WINS = {"sparse": 1.0, "uniform": 1.0, "attention": 1.2, "leave_one_out": 1.5, "scar": 2.4}


@pytest.fixture(scope="module")
def recorded():
    """What is stored beside the demonstration, or None in a version that has no results."""
    file = FOLDER / "scar.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def test_the_first_line_says_where_a_cheaper_credit_is_better():
    """Leave-one-out at a higher level and attention with a higher AUROC, each with SCAR's difference."""
    given = results({**WINS, "leave_one_out": 2.9}, {**AREAS, "attention": 0.95})
    line = scar_report.text(given).splitlines()[0]
    assert line.startswith("**Attention is better than SCAR** in the AUROC on held-out notes")
    assert "**Leave-one-out is better than SCAR** in planted reward at the end (SCAR -0.333 [" in line
    assert "SCAR is better than attention in planted reward at the end (SCAR +0.800 [" in line


def test_the_first_line_says_when_none_is():
    """And in what SCAR is better."""
    line = scar_report.text(results(WINS)).splitlines()[0]
    assert line.startswith("**Neither attention nor leave-one-out is better than SCAR** in anything that is compared.")
    assert "SCAR is better than leave-one-out in planted reward at the end (SCAR +0.600 [" in line


def test_nothing_is_better_where_nothing_differs():
    """The same levels and the same AUROC for all."""
    line = scar_findings.headline(results(dict.fromkeys(METHODS, 1.0), dict.fromkeys(AREAS, 0.5)))
    assert "SCAR is better than attention in nothing that is compared." in line


def test_claims_are_judged_in_plain_words():
    """Confirmed, contradicted, or neither; the sentence of the README says the same."""
    given = results({**WINS, "attention": 0.5, "scar": 2.4})
    lines = scar_findings.claims(given).splitlines()
    assert lines[0].startswith("- SCAR above attention: confirmed in the planted reward at the end (+1.267")
    assert lines[1].startswith("- attention above sparse: not confirmed, the opposite holds in the planted reward")
    assert "attention above sparse is contradicted" in scar_findings.order(given)
    same = results(dict.fromkeys(METHODS, 1.0))
    assert "SCAR above attention is not confirmed" in scar_findings.order(same)


def test_policies_that_leave_the_form_are_told():
    """A note that is one unit has no credit to compare; with a unit for each remark there is nothing to say."""
    given = results(WINS)
    assert "leave them out" not in scar_findings.form(given)
    for run in given["runs"]:
        if run["method"] == "sparse":
            run["units"] = [8.0, 1.0, 1.0]
    assert "sparse 3.3" in scar_findings.form(given)
    assert "policies leave them out" in scar_report.text(given)
    assert "policies leave them out" in " ".join(scar_readme.long(given).split())


def test_the_sparse_reward_is_compared_at_its_best_rate_too():
    """0.3 higher at another rate: two thirds of 1.1 are the difference at the end, and the pages say so."""
    text = scar_findings.in_hindsight(results(WINS))
    assert "0.003 is its best at the end on the very seeds that are compared (0.87)" in text
    assert "SCAR: planted reward at the end +0.733 [" in text
    for page in (scar_report.text, *PAGES.values()):
        assert "which favours it: SCAR: planted reward at the end +0.733" in " ".join(page(results(WINS)).split())


def test_a_quick_run_says_that_it_means_nothing():
    """Before anything else."""
    given = results(WINS)
    given["settings"]["quick"] = True
    assert scar_report.text(given).startswith("*A quick run")


def test_the_report_has_every_difference_and_every_area():
    """A row per pair, a row per credit, and the grid's choice in bold."""
    text = scar_report.text(results(WINS))
    assert len(re.findall(r"^\| .* minus .* \|", text, re.MULTILINE)) == len(scar_comparison.PAIRS)
    assert "| attention | 0.600 [0.590, 0.610] (0.50) | – |" in text
    assert "**0.500** | 0.500" in text
    assert "1 of 3" not in text
    assert "| SCAR | 0.001 | 1.60 | 1.20 | 30 (3 of 3) | 1.60 | 8.0 | 1.0 | 0.10 | 0.20 | 1.00 |" in text


def test_sections_are_replaced_and_nothing_else():
    """Twice the same is once; no line is longer than the page's."""
    for section in PAGES.values():
        page = f"before\n{scar_readme.BEGIN}\nold\n{scar_readme.END}\nafter\n"
        once = scar_readme.rewritten(page, section(results(WINS)))
        assert scar_readme.rewritten(once, section(results(WINS))) == once
        assert once.startswith("before\n")
        assert once.endswith("\nafter\n")
        assert "old" not in once
        assert max(len(line) for line in once.splitlines() if not line.startswith("|")) <= WIDTH
    with pytest.raises(ValueError, match="the page has no"):
        scar_readme.rewritten("nothing", "x")


@pytest.mark.parametrize("page", PAGES)
def test_pages_say_what_the_results_say(page, recorded):
    """Each section is the one that the results give."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert scar_readme.rewritten(text, PAGES[page](recorded)) == text


def test_the_report_says_what_the_results_say(recorded):
    """scar_report.md is what the JSON gives, the JSON's differences are those of its runs, and the figure is there."""
    if recorded is None:
        assert not list(FOLDER.glob("scar*"))
        return
    assert (FOLDER / "scar_report.md").read_text(encoding="utf-8") == scar_report.text(recorded)
    assert (FOLDER / "scar_curves.png").read_bytes().startswith(b"\x89PNG")
    assert not recorded["settings"]["quick"]
    assert len(recorded["settings"]["schedule"]["seeds"]) >= 3
    again = {
        "comparisons": scar_comparison.comparisons(recorded["runs"]),
        "auroc_differences": scar_comparison.auroc_differences(recorded["study"]),
        "rates": scar_comparison.best_rates(recorded["grid"]),
    }
    assert json.loads(json.dumps(again)) == {name: recorded[name] for name in again}
