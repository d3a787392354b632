import pytest

from oar_plans import BASELINE, FULL, GRADIENT, METHODS, QUICK

BEST = dict(zip(METHODS, FULL.rates, strict=True))


@pytest.mark.parametrize("schedule", [FULL, QUICK])
def test_methods_have_the_same_grid_and_the_same_seeds(schedule):
    """Nobody has more to choose from, and no seed of the comparison chose a rate."""
    grid = schedule.grid()
    for method in METHODS:
        assert {(plan.rate, plan.seed) for plan in grid if plan.method == method} == {
            (rate, seed) for rate in schedule.rates for seed in schedule.grid_seeds
        }
    assert not set(schedule.seeds) & set(schedule.grid_seeds)
    assert len({plan.steps for plan in [*grid, *schedule.comparison(dict.fromkeys(METHODS, 1.0))]}) == 1
    assert tuple(sorted(set(schedule.rates))) == schedule.rates


def test_a_whole_run_has_seeds_enough():
    """At least three, as are evaluations at the end, which the last step is one of."""
    assert len(FULL.seeds) >= 3
    assert FULL.steps % FULL.evaluate_every == 0
    assert {plan.rate for plan in FULL.comparison(BEST) if plan.method == GRADIENT} == {BEST[GRADIENT]}
    assert {(plan.rate, plan.seed) for plan in FULL.baseline()} == {
        (rate, seed) for rate in FULL.rates for seed in FULL.seeds
    }
    assert {plan.method for plan in FULL.baseline()} == {BASELINE}


@pytest.mark.parametrize("schedule", [FULL, QUICK])
def test_the_outage_repeats_a_run_of_the_comparison(schedule):
    """Its first steps, so that it can be compared with it, evaluated at the same ones."""
    best = dict.fromkeys(METHODS, schedule.rates[0])
    plan = schedule.outage(best)
    (same,) = [
        other
        for other in schedule.comparison(best)
        if (other.method, other.rate, other.seed) == (plan.method, plan.rate, plan.seed)
    ]
    assert plan.steps <= same.steps
    assert plan.steps % plan.evaluate_every == 0
    assert plan.evaluate_every == same.evaluate_every
    assert 1 <= plan.killed_in_step < plan.steps
    names = [one.name for one in [*schedule.grid(), *schedule.comparison(best), plan]]
    assert len(set(names)) == len(names)
