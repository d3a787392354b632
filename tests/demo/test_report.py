import json
import re

import pytest

import comparison
import readme
import report
from demo.conftest import DEMO
from demo.fabricated import results
from pages import WIDTH

ROOT = DEMO.parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDER = DEMO / "results"
UP, DOWN = (0.1, 0.1), (-0.1, -0.1)


@pytest.fixture(scope="module")
def recorded():
    """What is stored beside the demonstration, or None in a version that has no results."""
    file = FOLDER / "results.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def section():
    """What stands between the marks of the README."""
    return README.partition(readme.BEGIN)[2].partition(readme.END)[0].strip("\n")


def table_after(text, heading):
    """The lines from a heading to the next."""
    return text.partition(f"## {heading}\n")[2].partition("\n## ")[0].splitlines()


def test_the_report_has_both_tables_with_every_difference():
    """A row per rule with its intervals and verdicts, at its best rate and at one for all."""
    text = report.text(results((0.1, -0.1), DOWN))
    (best,) = [line for line in table_after(text, "Each rule at its best rate") if line.startswith("| Shapley | +")]
    (equal,) = [line for line in table_after(text, "All rules at 0.001") if line.startswith("| Shapley | -")]
    assert [cell for cell in best.split(" | ") if cell in {"higher", "lower"}] == ["higher", "lower"]
    assert [cell for cell in equal.split(" | ") if cell in {"higher", "lower"}] == ["lower", "lower"]
    assert "| no difference |" in best  # distinct candidates


def test_collapsed_seeds_stand_in_the_table_beside_the_rest():
    """How many, which, and what the others reached."""
    given = results(UP, UP)
    collapsed = next(run for run in given["runs"] if (run["method"], run["rate"], run["seed"]) == ("shapley", 0.002, 2))
    collapsed["curve"][-1] |= {"well_formed": 0.0, "max_at_k": 0.0}
    lines = table_after(report.text(given), "Each rule at its best rate")
    row = next(line for line in lines if line.startswith("| Shapley | 0.002 |"))
    assert "| 1 of 3 (seed 2) | 0.550 | 100.0% |" in row  # seeds 0 and 1: 0.5 and 0.6 + 0.001, rounded to even


def test_a_rule_of_which_every_seed_collapsed_has_no_rest():
    """Nothing is averaged that is not there."""
    given = results(UP, UP)
    for run in given["runs"]:
        if run["method"] == "shapley":
            run["curve"][-1]["well_formed"] = 0.0
    assert "| 3 of 3 (seeds 0, 1 and 2) | none left | none left |" in report.text(given)


def test_a_service_that_was_lost_too_long_is_not_called_in_time():
    """3.0 s is within 5 s, and 5.5 s is past it."""
    text = report.text(results(UP, UP))
    assert "got SIGKILL after step 5 of 50 ended 3.0 s later with `Lost`, within the deadline" in text
    assert "got SIGSTOP after step 5 of 50 ended 5.5 s later with `Lost`, past the deadline" in text


def test_the_section_of_the_readme_is_replaced_and_nothing_else():
    """Twice the same is once; the caption names the rates; no line is longer than the README's."""
    given = results(UP, UP)
    text = f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n"
    once = readme.rewritten(text, given)
    assert readme.rewritten(once, given) == once
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    assert "set-level GRPO 0.002" in once
    assert "It took 1 minute on 2 cores" in once
    assert max(map(len, once.splitlines())) <= WIDTH
    with pytest.raises(ValueError, match="the page has no"):
        readme.rewritten("nothing", given)


def test_the_readme_says_what_the_results_say(recorded):
    """Its section is the one that the results give."""
    assert readme.rewritten(README, recorded) == README


def test_every_difference_of_the_readme_stands_in_the_results(recorded):
    """Each mean with its interval is a rounded row of the JSON."""
    rows = [row for table in recorded["comparisons"].values() for row in table] if recorded else []
    known = {tuple(f"{row[key]:+.3f}" for key in ("mean", "low", "high")) for row in rows}
    shown = re.findall(r"([+-][\d.]+)\s\[([+-][\d.]+),\s([+-][\d.]+)\]", section())
    assert set(shown) <= known
    assert bool(shown) is bool(recorded)


def test_the_report_says_what_the_results_say(recorded):
    """report.md is what the JSON gives, the JSON's differences are those of its runs, and the figure is there."""
    if recorded is None:
        assert not [file.name for file in FOLDER.glob("*") if file.name in {"report.md", "curves.png"}]
        return
    assert (FOLDER / "report.md").read_text(encoding="utf-8") == report.text(recorded)
    assert (FOLDER / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not recorded["settings"]["quick"]
    steps = recorded["settings"]["schedule"]["compared"]
    for table, rates in recorded["rates"].items():
        runs = comparison.at_rates(recorded["runs"], rates)
        again = comparison.comparisons(runs, list(recorded["rules"]), recorded["baseline"], steps)
        assert json.loads(json.dumps(again)) == recorded["comparisons"][table]
