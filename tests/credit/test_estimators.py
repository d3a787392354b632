import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.candidate_games import GAMES, game
from credit import estimator_oracles as oracles
from credit.batches import EXACT
from creditd.credit import permutation_estimate, permutation_plan, stratified_estimate, stratified_plan
from creditd.credit.coalition_plans import permutation_walks
from creditd.credit.coalition_semivalues import every_coalition
from creditd.credit.estimators import STOPPING_INFLATION, _contrast_variance, _means_of_strata, exact_estimate
from creditd.credit.pair_designs import pair_design
from creditd.credit.student_t import t_quantile

EFFICIENT = 1e-12
"""Efficiency is imposed: what is left is the rounding of a sum."""
INVARIANT = 1e-9
"""A shifted or scaled game goes through the same ridge, whose condition is at most 1e7."""

UNSEEN_SHARE = 0.01
"""Of the spread of the credits: what the standard errors of a game that the proxy spans stay below at 60n."""

METHODS = {
    "stratified": (stratified_plan, stratified_estimate),
    "permutations": (permutation_plan, permutation_estimate),
}


def tabled(n, seed):
    """A game of random utilities: all of them by set, and as a function of rows."""
    values = np.random.default_rng(seed).normal(size=1 << n)
    known = {s: float(values[sum(1 << i for i in s)]) for s in oracles.every_subset(n)}
    return known, lambda rows: values[rows @ (1 << np.arange(n))]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", range(1, 10))
def test_all_utilities_give_the_exact_value(method, n):
    """With 2ⁿ evaluations both estimators equal enumeration, without an error."""
    plan, estimate = METHODS[method]
    known, utilities = tabled(n, n)
    rows = plan(n, 1 << n, 5)
    result = estimate(rows, utilities(rows), seed=5)
    assert np.abs(result.shapley_values - oracles.shapley(known, n)).max() <= EXACT * max(map(abs, known.values()))
    assert result.exact
    assert result.method == "table"
    assert result.standard_errors.tolist() == [0.0] * n
    assert result.intervals is result.degrees_of_freedom is None
    assert not result.interval_approximate
    assert result.efficient


def test_more_players_than_a_table_holds():
    """All utilities of 17 players are summed by size: the value of a game with a formula."""
    source = game("unanimity_games", 17, 0)
    rows = every_coalition(17)
    result = exact_estimate(rows, source.utilities(rows))
    assert np.abs(result.shapley_values - source.shapley_values).max() <= EXACT * np.abs(source.weights).sum()


def pairs_of(design, differences):
    """v(S) − v(N∖S) under both coalitions of every pair."""
    n = design.n_players
    pairs = {}
    for row, d in zip(oracles.subsets_of_rows(design.small), differences.tolist(), strict=True):
        pairs[row] = d
        pairs[frozenset(range(n)) - row] = -d
    return pairs


@given(n=st.integers(4, 9), extra=st.integers(60, 300), seed=st.integers(0, 30))
def test_the_sampled_part_reuses_every_pair(n, extra, seed):
    """The means of the strata are those over the coalitions of each size that hold the player."""
    _, utilities = tabled(n, seed)
    rows = stratified_plan(n, 2 * n + 2 + extra, seed)
    design = pair_design(rows, seed)
    if len(design.strata) < n // 2:
        return
    values = utilities(rows)
    differences = values[design.small_rows] - values[design.large_rows]
    expected = oracles.reuse_of_pairs(pairs_of(design, differences), n)
    assert np.abs(_means_of_strata(design, differences) - expected).max() <= EXACT * np.abs(values).max()


@given(n=st.integers(4, 30), pairs=st.integers(0, 12), seed=st.integers(0, 30))
def test_sizes_without_a_pair_are_stood_in_for(n, pairs, seed):
    """The strata that have pairs stand for all sizes together, each for itself at least."""
    design = pair_design(stratified_plan(n, 2 * n + 2 + 2 * pairs, seed), seed)
    masses = [stratum.mass * (0.5 if stratum.is_middle else 1.0) for stratum in design.strata]
    assert math.fsum(masses) == pytest.approx((n - 1) / 2, abs=1e-12)
    assert min(stratum.mass for stratum in design.strata) >= 1.0 - 1e-12
    if len(design.strata) == n // 2:
        assert {stratum.mass for stratum in design.strata} == {1.0}


@pytest.mark.parametrize("n", [8, 9])
def test_the_variance_of_a_contrast(n):
    """Spread among the pairs with the player and among those without, each moderated by four pairs of all."""
    design = pair_design(stratified_plan(n, 150, 0), 0)
    random = np.random.default_rng(0)
    for stratum in design.strata:
        residuals = random.normal(size=len(stratum.pairs)) + 7.0
        members = stratum.members.astype(bool)
        for player, got in enumerate(_contrast_variance(stratum, residuals, 0.25)):
            inside, outside = residuals[members[player]].tolist(), residuals[~members[player]].tolist()
            if stratum.is_middle:
                expected = (variance([*inside, *(-r for r in outside)]) + 0.25) / len(residuals)
            else:
                pooled = variance(residuals.tolist())
                expected = sum(
                    (
                        ((len(own) - 1) * (variance(own) if len(own) > 1 else 0.0) + 4.0 * pooled)
                        / (len(own) - 1 + 4.0)
                        + 0.25
                    )
                    / len(own)
                    for own in (inside, outside)
                )
            assert got == pytest.approx(expected, rel=1e-9)


def variance(values):
    """Sample variance."""
    mean = oracles.mean(values)
    return math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)


@pytest.mark.parametrize("method", METHODS)
@given(n=st.integers(4, 14), budget=st.integers(60, 400), seed=st.integers(0, 30))
def test_estimates_are_efficient(method, n, budget, seed):
    """The values sum to v(N) − v(∅) whatever the sample."""
    plan, estimate = METHODS[method]
    _, utilities = tabled(n, seed)
    rows = plan(n, budget, seed)
    values = utilities(rows)
    result = estimate(rows, values, seed=seed)
    gap = math.fsum(result.shapley_values) - (values[1] - values[0])
    assert abs(gap) <= EFFICIENT * np.abs(values).max() * n
    assert result.evaluations == len(rows)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize(("offset", "factor"), [(0.0, 1e-30), (3.0, 1.0), (-50.0, 1e6), (0.0, 1e99)])
def test_units_and_offsets_do_not_matter(method, name, offset, factor):
    """Scaled and shifted utilities give scaled values and errors."""
    plan, estimate = METHODS[method]
    rows = plan(11, 330, 2)
    values = game(name, 11, 0).utilities(rows)
    plain = estimate(rows, values, seed=2)
    moved = estimate(rows, factor * (values + offset), seed=2)
    scale = np.abs(values).max() + abs(offset)
    assert np.abs(moved.shapley_values / factor - plain.shapley_values).max() <= INVARIANT * scale
    assert np.abs(moved.standard_errors / abs(factor) - plain.standard_errors).max() <= INVARIANT * scale


def test_a_jump_at_the_empty_coalition_is_shared_equally():
    """v(∅) far from everything else adds the same to all players and nothing to their errors."""
    rows = stratified_plan(12, 360, 0)
    values = game("facility_location", 12, 0).utilities(rows)
    jump = values.copy()
    jump[0] -= 1e4
    plain, jumped = (stratified_estimate(rows, v, seed=0) for v in (values, jump))
    assert jumped.shapley_values == pytest.approx(plain.shapley_values + 1e4 / 12, abs=1e-9)
    assert jumped.standard_errors.tobytes() == plain.standard_errors.tobytes()


def test_a_constant_game_has_no_credit_and_no_error():
    """Nobody changes anything: zeros, with an interval of length 0."""
    rows = stratified_plan(12, 360, 0)
    result = stratified_estimate(rows, np.full(len(rows), 3.25), seed=0)
    assert np.abs(result.shapley_values).max() <= 1e-15
    assert result.standard_errors.max() <= 1e-13


@pytest.mark.parametrize("name", ["indicator", "share", "best", "triple"])
def test_what_the_proxy_spans_is_estimated_without_error(name):
    """Games among the proxy's columns come out within the shrinkage of the weakest ridge."""
    n, random = 12, np.random.default_rng(4)
    weights = random.normal(size=n)
    triples = random.normal(size=5)
    teams = [list(team) for team in itertools.islice(itertools.combinations(range(n), 3), 5)]
    truth = {"indicator": weights, "triple": np.zeros(n)}
    rows = stratified_plan(n, 60 * n, 0)

    def utilities(coalitions):
        sizes = np.maximum(coalitions.sum(axis=1), 1)
        if name == "indicator":
            return coalitions @ weights
        if name == "share":
            return (coalitions @ weights) / sizes
        if name == "best":
            return np.where(coalitions, weights, weights.min()).max(axis=1)
        signs = np.where(coalitions, 1.0, -1.0)
        return sum(t * signs[:, team].prod(axis=1) for t, team in zip(triples, teams, strict=True))

    for team, t in zip(teams, triples, strict=True):
        truth["triple"][team] += 2.0 / 3.0 * t
    every = every_coalition(n)
    exact = truth.get(name, exact_estimate(every, utilities(every)).shapley_values)
    result = stratified_estimate(rows, utilities(rows), seed=0)
    # Triples are many and share one scale, so each is shrunk more.
    tolerance = (1e-3 if name == "triple" else 1e-4) * np.abs(weights).max()
    assert np.abs(result.shapley_values - exact).max() <= tolerance
    # What no pair shows has a share in them: small, and not rounding.
    assert 0.0 < result.standard_errors.max() <= UNSEEN_SHARE * np.ptp(exact)


@pytest.mark.parametrize("n", [4, 7, 10])
def test_permutations_are_means_over_walks(n):
    """The audit estimate is the mean marginal utility over its orders and their reversals, its error Student's."""
    known, utilities = tabled(n, n)
    rows = permutation_plan(n, min(300, 2**n - 1), 1)
    orders = permutation_walks(n, len(rows), 1)[1].tolist()
    gains = oracles.mean_of_walks(known, orders, n)
    result = permutation_estimate(rows, utilities(rows), seed=1)
    for player in range(n):
        own = [gain[player] for gain in gains]
        error = math.sqrt(variance(own) / len(own))
        assert result.shapley_values[player] == pytest.approx(oracles.mean(own), abs=1e-12)
        assert result.standard_errors[player] == pytest.approx(error, rel=1e-9)
        if len(rows) >= 10 * n:
            half = t_quantile(0.975, len(own) - 1.0) * error
            low, high = result.intervals[player]
            assert (high - low) / 2 == pytest.approx(half, rel=1e-9)
            assert (high + low) / 2 == pytest.approx(oracles.mean(own), abs=1e-12)


def test_intervals_of_the_default_estimator():
    """t·se around the value, with one degree of freedom less than pairs in the smallest open size."""
    n = 13
    rows = stratified_plan(n, 30 * n, 0)
    result = stratified_estimate(rows, game("plurality", n, 0).utilities(rows), seed=0)
    sizes = rows.sum(axis=1)
    fewest = min(int((sizes == s).sum()) for s in range(2, 7) if (sizes == s).sum() < math.comb(n, s))
    assert result.degrees_of_freedom == fewest - 1
    half = t_quantile(0.975, fewest - 1.0) * result.standard_errors
    assert result.intervals[:, 1] - result.shapley_values == pytest.approx(half, rel=1e-9)
    assert result.shapley_values - result.intervals[:, 0] == pytest.approx(half, rel=1e-9)


@pytest.mark.parametrize(
    ("per_player", "has_interval", "approximate"),
    [(5, False, False), (9.9, False, False), (12, True, True), (29.9, True, True), (30, True, False)],
)
@pytest.mark.parametrize("n", [12, 15])
def test_small_samples_say_so(n, per_player, has_interval, approximate):
    """No interval below 10 evaluations per player or 8 pairs in an open size; below 30 it is approximate."""
    rows = stratified_plan(n, int(per_player * n), 0)
    result = stratified_estimate(rows, game("log_sum_exp", n, 0).utilities(rows), seed=0)
    assert (result.intervals is not None) == has_interval
    assert (result.degrees_of_freedom is not None) == has_interval
    assert result.interval_approximate == approximate
    assert result.standard_errors is not None


def test_a_size_with_one_pair_has_no_standard_error():
    """Where no spread can be seen no error is reported, with and without pairs in every size."""
    for budget in (2 * 20 + 2, 2 * 20 + 6, 2 * 20 + 20):
        rows = stratified_plan(20, budget, 0)
        result = stratified_estimate(rows, game("plurality", 20, 0).utilities(rows), seed=0)
        assert result.standard_errors is None
        assert result.intervals is None
        assert np.isfinite(result.shapley_values).all()


@pytest.mark.parametrize(("budget", "has_errors", "has_interval", "approximate"), [
    (30, False, False, False), (80, True, False, False), (400, True, True, True), (3600, True, True, False),
])  # fmt: skip
def test_few_permutations_say_so(budget, has_errors, has_interval, approximate):
    """One pair of orders has no error, fewer than eight no interval, fewer than 256 an approximate one."""
    rows = permutation_plan(12, budget, 0)
    result = permutation_estimate(rows, game("plurality", 12, 0).utilities(rows), seed=0)
    assert (result.standard_errors is not None) == has_errors
    assert (result.intervals is not None) == has_interval
    assert result.interval_approximate == approximate


@pytest.mark.parametrize("method", METHODS)
def test_errors_grow_when_they_decide_when_to_stop(method):
    """Early stopping multiplies standard errors and intervals by 1.3 and leaves the values alone."""
    plan, estimate = METHODS[method]
    rows = plan(12, 400, 0)
    values = game("plurality", 12, 0).utilities(rows)
    fixed, stopped = (estimate(rows, values, seed=0, stopped_early=early) for early in (False, True))
    assert stopped.shapley_values.tobytes() == fixed.shapley_values.tobytes()
    assert stopped.standard_errors == pytest.approx(STOPPING_INFLATION * fixed.standard_errors, rel=1e-12)
    lengths = [result.intervals[:, 1] - result.intervals[:, 0] for result in (fixed, stopped)]
    assert lengths[1] == pytest.approx(1.3 * lengths[0], rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_estimates_repeat_to_the_last_bit(method):
    """The same utilities and seed give the same bits, whatever was estimated in between."""
    plan, estimate = METHODS[method]
    rows = plan(14, 500, 3)
    values = game("plurality", 14, 0).utilities(rows)
    first = estimate(rows, values, seed=3)
    other = plan(9, 200, 1)
    estimate(other, game("plurality", 9, 0).utilities(other), seed=1)
    again = estimate(rows.copy(), values.copy(), seed=3)
    for name in ("shapley_values", "standard_errors", "intervals"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_coalitions_that_are_no_plan_are_refused(method):
    """Other coalitions, another seed, too few of them, or shapes that do not fit are errors."""
    plan, estimate = METHODS[method]
    rows = plan(8, 100, 0)
    with pytest.raises(ValueError, match="must be the"):
        estimate(rows, np.zeros(len(rows)), seed=1)
    with pytest.raises(ValueError, match="needs"):
        estimate(rows[:10], np.zeros(10), seed=0)
    with pytest.raises(ValueError, match="got"):
        estimate(rows, np.zeros(3), seed=0)
    with pytest.raises(ValueError, match="all coalitions: got 90, expected 256"):
        exact_estimate(rows[:90], np.zeros(90))
