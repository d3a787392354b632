import math

import pytest

import oar_comparison
from demo.oar_fabricated import SECONDS, STEPS, results, run
from oar_findings import row_of
from oar_plans import NEARLY_FREE, NOT_FREE

LEVELS = {"grpo": 0.8, "gradient": 0.86, "perturbation": 0.92}


def test_measures_of_a_run():
    """The last three points, all points, and where the curve is at a moment."""
    found = oar_comparison.measures(run("gradient", 0, 0.8), {"seconds": 16.5, "processor_seconds": 66.0})
    assert found["final"] == pytest.approx(0.7)
    assert found["curve"] == pytest.approx(0.65)
    assert found["timed"] == pytest.approx(0.5 + 0.3 * 15 / 30)
    assert found["timed_processor"] == pytest.approx(0.8)
    assert found["entropy"] == pytest.approx(0.06)


def test_moments_beyond_the_curve_are_its_end_and_its_start():
    """A run is never given what it did not reach."""
    one = run("grpo", 0, 0.8)
    assert oar_comparison.at(one, "seconds", 99.0) == pytest.approx(0.8)
    assert oar_comparison.at(one, "seconds", -1.0) == pytest.approx(0.5)


def test_equal_time_is_where_the_quickest_run_of_the_seed_ends():
    """OAR-P takes five times as long as GRPO, so that a fifth of its climb counts."""
    given = results(LEVELS)
    found = row_of(given["comparisons"], metric="timed", method="perturbation", against="grpo")
    assert found["mean"] == pytest.approx(0.5 + 0.42 / 5 - 0.8, abs=1e-3)
    assert found["verdict"] == "lower"


def test_differences_are_paired_by_seed():
    """Two thirds of the difference of the levels are the difference at the end."""
    rows = results(LEVELS)["comparisons"]
    found = row_of(rows, metric="final", method="gradient", against="grpo")
    assert found["mean"] == pytest.approx(0.06 * 2 / 3, abs=1e-3)
    assert found["low"] < found["mean"] < found["high"]
    assert found["verdict"] == "higher"
    with pytest.raises(ValueError, match=r"gradient has seeds \[1\], grpo \[0\]"):
        oar_comparison.paired([run("gradient", 1, 0.8), run("grpo", 0, 0.8)], "gradient", "grpo", "final")


def test_a_step_is_counted_in_steps_of_grpo():
    """By the clock and by processor time."""
    rows = results(LEVELS)["ratios"]
    for clock in ("seconds", "processor_seconds"):
        for method in ("gradient", "perturbation"):
            found = row_of(rows, clock=clock, method=method)
            assert found["mean"] == pytest.approx(SECONDS[method])
            assert found["low"] <= found["mean"] <= found["high"]
    assert row_of(rows, clock="seconds", method="gradient")["verdict"] == "confirmed"
    assert row_of(rows, clock="seconds", method="perturbation")["verdict"] == "contradicted"


def test_nearly_free_has_an_end_on_each_side():
    """Between the two nothing is confirmed and nothing contradicted."""
    assert oar_comparison.freeness(NEARLY_FREE) == "confirmed"
    assert oar_comparison.freeness(math.nextafter(NEARLY_FREE, 2)) == "not confirmed"
    assert oar_comparison.freeness(NOT_FREE) == "not confirmed"
    assert oar_comparison.freeness(math.nextafter(NOT_FREE, 2)) == "contradicted"


def test_verdicts_are_said_of_claims():
    """A difference whose interval holds 0 confirms nothing."""
    assert [oar_comparison.judged(word) for word in ("higher", "lower", "no difference")] == [
        "confirmed",
        "contradicted",
        "not confirmed",
    ]


def test_rates_are_chosen_by_the_whole_curve():
    """The mean over seeds counts, and the smaller rate wins a tie."""
    grid = [run("grpo", seed, level, rate) for rate, level in ((0.2, 0.7), (0.1, 0.7), (0.3, 0.6)) for seed in (0, 1)]
    assert oar_comparison.best_rates(grid) == {"grpo": 0.1}
    grid += [run("grpo", 2, 0.9, 0.2)]
    assert oar_comparison.best_rates(grid) == {"grpo": 0.2}


def test_hindsight_takes_the_best_rate_of_grpo_on_the_seeds_compared():
    """And leaves the others as they are."""
    given = results(LEVELS)
    rate, runs = oar_comparison.hindsight(given["runs"], given["baseline_runs"])
    assert rate == 0.0002
    assert oar_comparison.mean(runs, "grpo", "final") > oar_comparison.mean(given["runs"], "grpo", "final")
    assert oar_comparison.by_seed(runs, "gradient", "final") == oar_comparison.by_seed(
        given["runs"], "gradient", "final"
    )


def test_an_outage_is_compared_with_the_run_that_had_none():
    """At the steps of both: what was pushed once more, and how far the curves are apart."""
    lost = run("gradient", 0, 0.8, steps=STEPS[:3], pushes=1)
    assert oar_comparison.outage_of(lost, run("gradient", 0, 0.8)) == {"pushes_more": 1, "largest_difference": 0.0}
    apart = oar_comparison.outage_of(lost, run("gradient", 0, 0.83))
    assert apart["largest_difference"] == pytest.approx(0.02)


def test_a_step_with_nothing_to_ask_is_no_request():
    """All groups of a step agree: nobody is asked, nothing is pushed, and no weights are logged; that is no 0."""
    quiet = run("gradient", 0, 0.8, steps=STEPS[:3], pushes=1)
    quiet["by_step"]["zero_std"][1] = 1.0
    quiet["by_step"]["effective_share"][1] = None
    quiet["by_step"]["pushes"][1] = 0.0
    assert oar_comparison.asking_steps(quiet) == [step for step in range(1, quiet["steps"] + 1) if step != 2]
    assert set(oar_comparison.logged(quiet, "effective_share")) == {0.8}
    assert len(oar_comparison.logged(quiet, "effective_share")) == quiet["steps"] - 1
    assert oar_comparison.outage_of(quiet, run("gradient", 0, 0.8))["pushes_more"] == 1
