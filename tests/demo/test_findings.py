import re

import pytest

import findings
from demo.fabricated import results, run

UP, DOWN = (0.1, 0.1), (-0.1, -0.1)
PILOT = {"rate": 0.003, "runs": [run("shapley", 0, (0, 0)) | {"well_formed": share} for share in (0.1, 0.9)]}


@pytest.mark.parametrize(
    ("best", "equal", "starts"),
    [
        (UP, UP, "**Shapley wins** at steps 20 and 200, both"),
        (DOWN, DOWN, "**Shapley does not win** at steps 20 and 200, neither"),
        (DOWN, UP, "**Shapley does not win** at steps 20 and 200 with every rule at its best rate"),
        (UP, DOWN, "**Shapley does not win** at steps 20 and 200 with all rules at 0.001, but does"),
        ((0.1, -0.1), (0.1, -0.1), "**Shapley does not win** at step 200, neither"),
        ((0.0, 0.1), (0.0, 0.1), "**Shapley does not win** at step 20, neither"),
    ],
)
def test_the_headline_begins_with_where_shapley_does_not_win(best, equal, starts):
    """And says at which rates; only a win in both tables is one."""
    line = findings.headline(results(best, equal))
    assert line.startswith(starts)
    assert "\n" not in line
    assert "Shapley 0.002" in line
    assert "0.001" in line


def test_a_rule_that_is_better_than_shapley_takes_its_win():
    """Higher than set-level GRPO is no win when another rule is higher still."""
    given = results(UP, UP, leave_one_out=(0.0, 0.2))
    line = findings.headline(given)
    assert line.startswith("**Shapley does not win** at step 200, neither")
    assert "**Shapley wins** at step 20, both" in line


def test_what_the_tables_say_differently_depends_on_the_rate():
    """Both intervals are shown, and neither is stated as a truth about the rule."""
    line = findings.headline(results((-0.1, 0.1), (0.1, 0.1)))
    assert re.search(
        r"at step 20 it depends on the rate, lower at the best rates \(-0\.100 .*and higher at 0\.001", line
    )
    assert re.search(r"at step 200 higher \(\+0\.100 \[.*\] at the best rates, \+0\.100 \[.*\] at 0\.001\)", line)


def test_a_sentence_on_a_rule_has_only_what_both_tables_say():
    """The step where they differ is named, without a direction."""
    given = results(UP, UP, leave_one_out=(0.05, 0.05))
    for run_ in given["runs"]:
        if (run_["method"], run_["rate"]) == ("leave_one_out", 0.001):
            run_["curve"][0]["max_at_k"] -= 0.2
    sentence = findings.of_rule(given, "leave_one_out")
    assert sentence.startswith("Leave-one-out: higher at step 200 (+0.050 [")
    assert sentence.endswith("; at step 20 it depends on the rate.")
    assert "lower" not in sentence


def test_the_same_runs_in_both_tables_are_one_piece_of_evidence():
    """When the best rates are the equal one, one interval is shown, and the text says so."""
    given = results(UP, UP, same_runs=True)
    assert findings.finding(given, "shapley", 20).same_runs
    assert findings.headline(given).count("the best rates are 0.001 too") == 2
    assert findings.of_rule(given, "leave_one_out").count("[") == 2


def test_a_quick_run_says_that_it_means_nothing():
    """Before anything else."""
    given = results(UP, UP)
    given["settings"]["quick"] = True
    assert findings.headline(given).startswith("*A quick run")


def test_collapse_is_counted_from_the_runs():
    """The number, the rule and the rate of those that collapsed, and what the pilots saw."""
    given = results(UP, UP)
    given["runs"][2]["curve"][-1]["well_formed"] = 0.1
    given["runs"][3]["curve"][0]["well_formed"] = 0.1
    text = findings.of_collapse(given, PILOT)
    assert "1 of the 20 runs compared (Shapley at 0.002 1 of 3); 1 more" in text
    assert "at 0.003, in the pilots, 1 of 2 runs collapsed (Shapley)" in text
    assert "0 of the 20 runs compared; 0 more" in findings.of_collapse(results(UP, UP), PILOT)


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.0, "1 minute"), (89.0, "1 minute"), (91.0, "2 minutes"), (1020.0, "17 minutes")]
)
def test_minutes_are_counted(seconds, text):
    """One of them is no plural."""
    assert findings.duration(seconds) == text


def test_lists_read_as_english():
    """One, two and three."""
    assert [findings.listed(range(1, n + 1)) for n in (1, 2, 3)] == ["1", "1 and 2", "1, 2 and 3"]
