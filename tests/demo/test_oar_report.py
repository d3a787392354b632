import json
import re

import pytest

import oar_comparison
import oar_findings
import oar_readme
import oar_report
from demo.conftest import DEMO
from demo.oar_fabricated import results
from oar_plans import CLAIMS, METHODS
from pages import WIDTH

ROOT = DEMO.parents[1]
FOLDER = DEMO / "results"
PAGES = {"README.md": oar_readme.short, "OAR.md": oar_readme.long}
UP = {"grpo": 0.8, "gradient": 0.86, "perturbation": 0.92}
SAME = dict.fromkeys(METHODS, 0.8)
DOWN = {"grpo": 0.9, "gradient": 0.8, "perturbation": 0.7}


@pytest.fixture(scope="module")
def recorded():
    """What is stored beside the demonstration, or None in a version that has no results."""
    file = FOLDER / "oar.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


@pytest.mark.parametrize(("levels", "word"), [(UP, "confirmed"), (SAME, "not confirmed"), (DOWN, "contradicted")])
def test_the_first_line_judges_every_claim(levels, word):
    """In plain words, with the interval, before anything else."""
    line = oar_report.text(results(levels)).splitlines()[0]
    for claim in ("OAR-G above GRPO", "OAR-P above GRPO", "OAR-P above OAR-G"):
        assert f"{claim} is **{word}** (" in line
    assert "That OAR-G is nearly free is **confirmed**: a step takes 1.10 times the processor time" in line


def test_claims_say_what_equal_time_says():
    """At the end OAR-P is above; in the time that GRPO takes it is far below."""
    lines = oar_findings.claims(results(UP)).splitlines()
    assert len(lines) == len(CLAIMS) + 1
    assert re.search(
        r"OAR-P above GRPO: accuracy at the end \+0\.080 .* confirmed;.*equal time -0\.\d+ .*contradicted", lines[1]
    )


def test_fidelity_is_told_for_both_variants():
    """Against random tokens, those of high entropy, and those next to the answer."""
    told = oar_findings.fidelity(results(UP))
    assert told.count("more often than tokens at random") == 2
    assert told.count("more often than those of highest entropy") == 2
    assert told.count("more often than those next to the answer") == 2
    alike = oar_findings.fidelity(results(UP, sensitive=0.1))
    assert alike.count("not otherwise than") == 6


def test_what_flips_anyway_says_little():
    """The report says so where nearly every replacement flips the answer, and only there."""
    given = results(UP)
    assert oar_findings.saturated(given) == ""
    for row in given["fidelity"]["rates"]:
        row["mean"] = 0.9
    assert "90.0% of all replacements flip the answer" in oar_report.text(given)


def test_the_outage_is_counted():
    """One more push, one refusal, the same curve, and the slowest step beside a usual one."""
    told = oar_findings.outage(results(UP))
    assert "unknown (1 time)" in told
    assert "handed them over 1 time more" in told
    assert "took 20.0 s, where 0.5 s is usual" in told
    assert "to the last bit" in told
    given = results(UP)
    given["outage_compared"]["largest_difference"] = 0.25
    assert "differs from that of the same run with a service that lived by at most 0.25" in oar_findings.outage(given)


def test_prices_are_told_with_what_was_not_measured():
    """Completions without a contrast cost nothing, and the share of them is beside what a step costs."""
    told = oar_findings.why_not_free(results(UP))
    assert "25% of the completions under OAR-G and 25% of the completions under OAR-P" in told


def test_grpo_is_compared_at_its_best_rate_too():
    """0.03 higher at another rate: two thirds of that are missing at the end."""
    told = oar_findings.in_hindsight(results(UP))
    assert "0.0002 is GRPO's best at the end on the very seeds that are compared (0.720)" in told
    assert "OAR-G +0.020" in told


def test_a_quick_run_says_that_it_means_nothing():
    """Before anything else."""
    given = results(UP)
    given["settings"]["quick"] = True
    assert oar_report.text(given).startswith("*A quick run")


def test_the_report_has_every_difference_and_every_way_of_choosing():
    """A row per pair, a row per method, the grid's choice in bold, and a row per measure."""
    text = oar_report.text(results(UP))
    assert len(re.findall(r"^\| .* minus .* \|", text, re.MULTILINE)) == len(CLAIMS)
    for title in ("at the start", "GRPO", "OAR-G", "OAR-P", "tokens at random", "next to the answer", "result"):
        assert re.search(rf"^\| {title} \|", text, re.MULTILINE), title
    assert "**0.600** | 0.600" in text
    assert "| OAR-G | 0.0001 | 0.740 | 0.680 |" in text


def test_sections_are_replaced_and_nothing_else():
    """Twice the same is once; no line is longer than the page's."""
    for section in PAGES.values():
        page = f"before\n{oar_readme.BEGIN}\nwhat was there\n{oar_readme.END}\nafter\n"
        once = oar_readme.rewritten(page, section(results(UP)))
        assert oar_readme.rewritten(once, section(results(UP))) == once
        assert once.startswith("before\n")
        assert once.endswith("\nafter\n")
        assert "what was there" not in once
        assert max(len(line) for line in once.splitlines() if not line.startswith("|")) <= WIDTH
    with pytest.raises(ValueError, match="the page has no"):
        oar_readme.rewritten("nothing", "x")


@pytest.mark.parametrize("page", PAGES)
def test_pages_say_what_the_results_say(page, recorded):
    """Each section is the one that the results give."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert oar_readme.rewritten(text, PAGES[page](recorded)) == text


def test_the_report_says_what_the_results_say(recorded):
    """oar_report.md is what the JSON gives, the JSON's numbers are those of its runs, and the figure is there."""
    if recorded is None:
        assert not list(FOLDER.glob("oar*.md"))
        return
    assert (FOLDER / "oar_report.md").read_text(encoding="utf-8") == oar_report.text(recorded)
    assert (FOLDER / "oar_curves.png").read_bytes().startswith(b"\x89PNG")
    assert not recorded["settings"]["quick"]
    assert len(recorded["settings"]["schedule"]["seeds"]) >= 3
    again = {
        "comparisons": oar_comparison.comparisons(recorded["runs"]),
        "ratios": oar_comparison.ratios(recorded["runs"]),
        "rates": oar_comparison.best_rates(recorded["grid"]),
    }
    assert json.loads(json.dumps(again)) == {name: recorded[name] for name in again}
    assert recorded["outage_compared"]["pushes_more"] == 1
