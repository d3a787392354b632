import pytest

import scar_comparison
from demo.scar_fabricated import run, study
from scar_plans import METHODS, SCAR, TARGET

LEVELS = {"sparse": 1.0, "uniform": 1.0, "attention": 1.2, "leave_one_out": 1.5, "scar": 2.4}
APART = (0.0, 0.01, 0.021)


def rows_of(levels):
    """Paired differences between methods of three seeds, which are apart; of SCAR twice as far."""
    runs = [
        run(method, seed, levels[method] + APART[seed] * (2 if method == SCAR else 1))
        for seed in range(3)
        for method in METHODS
    ]
    return {(row["metric"], row["method"], row["against"]): row for row in scar_comparison.comparisons(runs)}


def test_measures_of_a_run():
    """The last three points, all points, the first step at the target, and the last scores."""
    expected = {"final": 2.0, "curve": 1.5, "steps": 20.0, "score": 2.0}
    assert scar_comparison.measures(run("scar", 0, 3.0)) == pytest.approx(expected)
    assert scar_comparison.has_reached(run("scar", 0, TARGET))


def test_a_run_that_never_reaches_the_target_counts_with_its_last_step():
    """And is told from one that reaches it there."""
    assert scar_comparison.measures(run("scar", 0, TARGET - 0.01))["steps"] == 30.0
    assert not scar_comparison.has_reached(run("scar", 0, TARGET - 0.01))


def test_differences_are_paired_by_seed():
    """Two thirds of the difference of the levels are the difference at the end; the interval knows the seeds."""
    rows = rows_of(LEVELS)
    assert rows["final", "attention", "sparse"]["mean"] == pytest.approx(0.2 * 2 / 3)
    assert rows["final", "attention", "sparse"]["low"] == pytest.approx(0.2 * 2 / 3)
    assert rows["final", "scar", "attention"]["low"] < 1.2 * 2 / 3 < rows["final", "scar", "attention"]["high"] + 0.01
    assert rows["final", "scar", "attention"]["verdict"] == "better"
    assert rows["final", "uniform", "sparse"]["verdict"] == "no difference"
    assert rows_of({**LEVELS, "scar": 0.5})["final", "scar", "sparse"]["verdict"] == "worse"


def test_fewer_steps_are_better():
    """A method that reaches the target, when others never do, has a negative difference, which is better."""
    row = rows_of({**LEVELS, "scar": 4.0})["steps", "scar", "sparse"]
    assert row["mean"] < 0
    assert row["verdict"] == "better"


def test_seeds_that_differ_are_refused():
    """Nothing is paired that is no pair."""
    runs = [run(method, seed, 1.0) for method in METHODS for seed in range(3) if (method, seed) != ("sparse", 0)]
    with pytest.raises(ValueError, match=r"uniform has seeds \[0, 1, 2\], sparse \[1, 2\]; expected the same"):
        scar_comparison.comparisons(runs)


def test_the_rate_with_the_highest_curves_over_seeds_is_chosen():
    """The mean over the grid's seeds decides; the smaller rate at a tie."""
    levels = ((0, 3.0, 0.003), (1, 0.5, 0.003), (0, 2.0, 0.001), (1, 2.0, 0.001))
    grid = [run("scar", seed, level, rate) for seed, level, rate in levels]
    tie = [run("sparse", 0, 1.0, 0.003), run("sparse", 0, 1.0, 0.001)]
    assert scar_comparison.best_rates([*grid, *tie]) == {"scar": 0.001, "sparse": 0.001}


def test_aurocs_are_paired_by_text():
    """SCAR less each other credit, for both kinds of texts and both sources."""
    rows = scar_comparison.auroc_differences(study())
    assert {row["against"] for row in rows} == {"uniform", "attention", "leave_one_out", "prefix", "shapley"}
    row = next(row for row in rows if row["against"] == "attention")
    assert row["mean"] == pytest.approx(0.3)
    assert (row["verdict"], row["seeds"]) == ("better", 3)
    assert {row["verdict"] for row in rows if row["against"] == "shapley"} == {"worse"}
