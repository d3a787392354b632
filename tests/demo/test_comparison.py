import pytest

import comparison
from demo.fabricated import run


def test_the_interval_is_student_s():
    """Differences 1, 2, 3: mean 2, s = 1, t(2) = 4.3027, half width 4.3027/√3."""
    found = comparison.interval([1.0, 2.0, 3.0])
    assert found.mean == pytest.approx(2.0)
    assert found.high - found.mean == pytest.approx(4.3027 / 3**0.5)
    assert found.mean - found.low == pytest.approx(4.3027 / 3**0.5)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([1.0, 2.0, 3.0], "no difference"),
        ([1.0, 1.1, 0.9], "higher"),
        ([-1.0, -1.1, -0.9], "lower"),
        ([0.0, 0.0], "no difference"),
    ],
)
def test_an_interval_that_holds_zero_is_no_difference(differences, verdict):
    """The word follows from the interval alone."""
    assert comparison.interval(differences).verdict == verdict


def test_differences_are_paired_by_seed():
    """The order of the runs does not matter, and a constant difference has an interval of no width."""
    runs = [run("a", 1, (0.3, 0.6)), run("b", 2, (0.1, 0.9)), run("a", 2, (0.2, 1.0)), run("b", 1, (0.2, 0.5))]
    assert comparison.paired(runs, "a", "b", 200).low == pytest.approx(0.1)
    assert comparison.paired(runs, "a", "b", 200).high == pytest.approx(0.1)


def test_unequal_seeds_are_refused():
    """A pair that lacks one side is no pair."""
    with pytest.raises(ValueError, match="seeds"):
        comparison.paired([run("a", 1, (0, 0)), run("a", 2, (0, 0)), run("b", 1, (0, 0))], "a", "b", 20)


def test_the_best_rate_of_each_method_is_taken():
    """By the mean of the last evaluations; at a tie the smaller rate."""
    grid = [
        run("a", 0, (0.9, 0.5), rate=0.003), run("a", 0, (0.7, 0.6), rate=0.001),
        run("b", 0, (0.1, 0.5), rate=0.003), run("b", 0, (0.1, 0.5), rate=0.001),
    ]  # fmt: skip
    assert comparison.best_rates(grid) == {"a": 0.003, "b": 0.001}


def test_only_the_last_evaluations_choose_the_rate():
    """What a run was worth early does not count."""
    early = {
        **run("a", 0, (0, 0)),
        "curve": [{"step": step, "max_at_k": value} for step, value in enumerate([9, 1, 2, 3])],
    }
    assert comparison.level(early) == pytest.approx(2.0)


def test_a_table_holds_the_runs_at_its_rates():
    """A method that has another rate there, or none, is not in it."""
    runs = [run("a", 1, (0, 0), 0.001), run("a", 1, (0, 0), 0.002), run("b", 1, (0, 0), 0.001)]
    assert comparison.at_rates(runs, {"a": 0.002}) == [runs[1]]
    assert comparison.at_rates(runs, {"a": 0.001, "b": 0.001}) == [runs[0], runs[2]]


@pytest.mark.parametrize(
    ("shares", "collapsed", "recovered"),
    [((1.0, 1.0), False, False), ((0.4, 1.0), False, True), ((1.0, 0.4), True, False), ((0.5, 0.5), False, False)],
)
def test_a_run_has_collapsed_when_its_last_sets_are_malformed(shares, collapsed, recovered):
    """Fewer than half well-formed at the end is collapse; fewer earlier is a recovery."""
    one = {"curve": [{"well_formed": share} for share in shares]}
    assert comparison.has_collapsed(one) is collapsed
    assert comparison.has_recovered(one) is recovered


def test_the_json_has_every_difference():
    """max@K at every step, distinct candidates at the last, of every method but the baseline."""
    runs = [run(method, seed, (seed, 2 * seed)) for method in "ab" for seed in range(2)]
    rows = comparison.comparisons(runs, ["a", "b"], "a", [20, 200])
    assert [(row["metric"], row["step"], row["method"]) for row in rows] == [
        ("max_at_k", 20, "b"), ("max_at_k", 200, "b"), ("distinct", 200, "b"),
    ]  # fmt: skip
    assert all((row["mean"], row["verdict"]) == (0.0, "no difference") for row in rows)
