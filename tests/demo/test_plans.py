import pytest

from plans import ANNEALED_OVER, FULL, QUICK, RULES, STOCK

SCHEDULES = [FULL, QUICK]
PILOT_SEEDS = {*range(6), *range(10, 16)}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_rule_has_the_same_grid_and_one_rate_of_it_is_for_all(schedule):
    """Each rule at each rate, on a seed that is compared nowhere."""
    assert {(plan.method, plan.rate) for plan in schedule.grid()} == {(m, r) for m in RULES for r in schedule.rates}
    assert {plan.seed for plan in schedule.grid()}.isdisjoint(schedule.seeds)
    assert list(schedule.rates) == sorted(schedule.rates)
    assert schedule.equal_rate in schedule.rates


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_both_tables_have_every_rule_with_every_seed(schedule):
    """A run that stands in both is made once."""
    best = dict.fromkeys(RULES, schedule.rates[-1]) | {"shapley": schedule.equal_rate}
    plans = schedule.comparison(best)
    assert len(plans) == len(set(plans)) == (2 * len(RULES) - 1) * len(schedule.seeds)
    for rates in schedule.tables(best).values():
        wanted = {(method, rate, seed) for method, rate in rates.items() for seed in schedule.seeds}
        assert wanted <= {(plan.method, plan.rate, plan.seed) for plan in plans}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_control_pairs_with_the_equal_table(schedule):
    """Its seeds are some of those compared, at the equal rate, and the last step compared is the end."""
    assert set(schedule.control_seeds) <= set(schedule.seeds)
    assert {(plan.method, plan.rate) for plan in schedule.control()} == {(STOCK, schedule.equal_rate)}
    assert schedule.compared[-1] == schedule.steps
    assert all(step % schedule.evaluate_every == 0 for step in schedule.compared)


def test_the_whole_run_is_as_long_as_planned():
    """12,000 steps, however the best rates fall; with them as far from the equal rate as can be, exactly."""
    best = dict.fromkeys(RULES, FULL.rates[0])
    plans = [*FULL.grid(), *FULL.comparison(best), *FULL.control()]
    assert sum(plan.steps for plan in plans) == FULL.most_steps == 12_000


def test_the_seeds_of_the_comparison_are_new():
    """No pilot had them; the early steps are those stated; the schedule of annealing ends in the grid too."""
    assert PILOT_SEEDS.isdisjoint(FULL.seeds)
    assert FULL.compared == (20, 40, 200)
    assert FULL.equal_rate == FULL.rates[1]
    assert ANNEALED_OVER < FULL.grid_steps < FULL.steps
