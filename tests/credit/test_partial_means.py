import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import closed_oracles, oracles
from credit.batches import ENUMERATED, WORKED, anything, grid
from creditd.credit import CVaR, Max, Mean, Median, Min, Quantile, TopMMean, TrimmedMean, semivalues
from creditd.credit.level_games import grand_utilities

rewards_of_one_set = st.one_of(st.lists(grid, min_size=1, max_size=8), st.lists(anything, min_size=1, max_size=8))
shares = st.one_of(st.floats(0.0, 1.0), st.sampled_from([0.0, 0.1, 0.25, 0.3, 1 / 3, 0.5, 0.7, 1.0]))


def shapley(rewards, utility):
    """Shapley values of one set."""
    values = np.array(rewards, dtype=np.float64)
    return semivalues(values[None, :], utility, np.full(len(values), 1.0 / len(values)))[0]


def grand(rewards, utility):
    """v(N) of one set."""
    return grand_utilities(np.array([rewards], dtype=np.float64), utility)[0]


def agrees(rewards, utility, definition):
    """Whether v(N), Shapley credit and a semivalue of unequal weights are those of the definition, by enumeration."""
    n = len(rewards)
    game = oracles.game_of(rewards, definition)
    allowed = ENUMERATED * oracles.scale_of(game)
    close = [abs(grand(rewards, utility) - game[-1]) <= allowed]
    for weights in ([1.0 / (s + 1) for s in range(n)], [1.0 - 0.375 * s for s in range(n)]):
        got = semivalues(np.array([rewards]), utility, np.array(weights) * np.arange(1, n + 1) / n)[0]
        close.append(np.abs(got - oracles.semivalue_by_subsets(game, n, weights)).max() <= allowed)
    return all(close)


@given(rewards_of_one_set, st.floats(-4, 4))
def test_median_equals_the_mean_over_all_coalitions(rewards, empty):
    """The median of odd and of even sets, with any v(∅)."""
    assert agrees(rewards, Median(empty=empty), closed_oracles.middle(empty=empty))


@given(rewards_of_one_set, shares, st.floats(-4, 4))
def test_quantile_equals_the_mean_over_all_coalitions(rewards, q, empty):
    """The quantile of any share, with any v(∅)."""
    assert agrees(rewards, Quantile(q=q, empty=empty), closed_oracles.at_share(q, empty=empty))


@given(rewards_of_one_set, st.floats(0.0, 0.5, exclude_max=True), st.floats(-4, 4))
def test_trimmed_mean_equals_the_mean_over_all_coalitions(rewards, fraction, empty):
    """The trimmed mean of any share, with any v(∅)."""
    utility = TrimmedMean(fraction=fraction, empty=empty)
    assert agrees(rewards, utility, closed_oracles.trimmed(fraction, empty=empty))


@given(rewards_of_one_set, shares.filter(bool), st.sampled_from(["worst", "best"]), st.floats(-4, 4))
def test_cvar_equals_the_mean_over_all_coalitions(rewards, alpha, tail, empty):
    """The mean of either tail, of any share and with any v(∅)."""
    utility = CVaR(alpha=alpha, empty=empty, tail=tail)
    assert agrees(rewards, utility, closed_oracles.mean_of_tail(alpha, tail, empty=empty))


@given(rewards_of_one_set, st.integers(1, 10), st.floats(-4, 4))
def test_top_m_mean_equals_the_mean_over_all_coalitions(rewards, m, empty):
    """The mean of the best m, also where fewer than m are there."""
    assert agrees(rewards, TopMMean(m=m, empty=empty), closed_oracles.mean_of_best(m, empty=empty))


@given(st.lists(anything, min_size=1, max_size=40), shares)
def test_quantile_is_that_of_numpy(rewards, q):
    """v(N) is numpy's default quantile, and the median numpy's median."""
    scale = max(map(abs, rewards)) or 1.0
    assert abs(grand(rewards, Quantile(q=q, empty=0.0)) - np.quantile(rewards, q)) <= ENUMERATED * scale
    assert abs(grand(rewards, Median(empty=0.0)) - np.median(rewards)) <= ENUMERATED * scale


@given(st.lists(st.one_of(grid, anything), min_size=1, max_size=12))
def test_the_ends_are_the_plain_utilities(rewards):
    """Each family ends in the mean, the median and the extremes, in v(N) and in credit."""
    n, scale = len(rewards), max(0.5, *map(abs, rewards))
    mean, best, worst = Mean(empty=0.5), Max(empty=0.5), Min(empty=0.5)
    for utility, same in (
        (Quantile(q=0.0, empty=0.5), worst),
        (Quantile(q=0.5, empty=0.5), Median(empty=0.5)),
        (Quantile(q=1.0, empty=0.5), best),
        (TrimmedMean(fraction=0.0, empty=0.5), mean),
        (TrimmedMean(fraction=math.nextafter(0.5, 0.0), empty=0.5), Median(empty=0.5)),
        (CVaR(alpha=1.0, empty=0.5), mean),
        (CVaR(alpha=1e-300, empty=0.5), worst),
        (CVaR(alpha=1.0 / (n + 1), empty=0.5, tail="best"), best),
        (TopMMean(m=1, empty=0.5), best),
        (TopMMean(m=n, empty=0.5), mean),
    ):
        assert np.abs(shapley(rewards, utility) - shapley(rewards, same)).max() <= ENUMERATED * scale
        assert abs(grand(rewards, utility) - grand(rewards, same)) <= ENUMERATED * scale


def test_a_product_just_below_a_whole_number_cuts_that_number():
    """0.29·100 is 28.999… in float64, and 29 candidates are cut from each end."""
    rewards = np.arange(100.0) ** 2
    assert 0.29 * 100 < 29
    assert grand(rewards, TrimmedMean(fraction=0.29, empty=0.0)) == pytest.approx(rewards[29:71].mean(), rel=WORKED)


def test_worked_values():
    """Values worked by hand: a median of three, the worst third of three, a counted half."""
    assert shapley([1.0, 2.0, 6.0], Median(empty=0.0)) == pytest.approx([-5 / 6, -1 / 12, 35 / 12], abs=WORKED)
    assert grand([1.0, 2.0, 6.0], CVaR(alpha=0.5, empty=0.0)) == pytest.approx((1.0 + 0.5 * 2.0) / 1.5, abs=WORKED)
    assert grand([1.0, 2.0, 6.0], CVaR(alpha=0.5, empty=0.0, tail="best")) == pytest.approx(7.0 / 1.5, abs=WORKED)
    assert grand([1.0, 2.0, 3.0, 10.0], Quantile(q=0.25, empty=0.0)) == pytest.approx(1.75, abs=WORKED)


LARGE = {
    "median": (Median(empty=0.5), closed_oracles.ranks_of_median),
    "quantile": (Quantile(q=0.1, empty=0.5), closed_oracles.ranks_of_quantile(0.1)),
    "quantile_high": (Quantile(q=0.97, empty=0.5), closed_oracles.ranks_of_quantile(0.97)),
    "trimmed_mean": (TrimmedMean(fraction=0.47, empty=0.5), closed_oracles.ranks_of_trimmed_mean(0.47)),
    "cvar": (CVaR(alpha=0.04, empty=0.5), closed_oracles.ranks_of_cvar(0.04, "worst")),
    "cvar_best": (CVaR(alpha=0.03, empty=0.5, tail="best"), closed_oracles.ranks_of_cvar(0.03, "best")),
    "top_m_mean": (TopMMean(m=7, empty=0.5), closed_oracles.ranks_of_top_m_mean(7)),
}


@pytest.mark.parametrize("name", sorted(LARGE))
@pytest.mark.parametrize("n", [64, 200])
def test_large_sets_equal_rational_arithmetic(name, n):
    """64 and 200 candidates agree with rational arithmetic, under Shapley and under weights on three sizes."""
    utility, ranks = LARGE[name]
    rewards = np.random.default_rng(n).integers(-60, 60, size=n).tolist()
    players = range(0, n, n // 8)
    for weights in ([Fraction(1, n)] * n, [Fraction(s in {0, n // 2, n - 1}, 4) for s in range(n)]):
        expected = closed_oracles.rational_semivalues(rewards, ranks, weights, Fraction(1, 2), players)
        q = np.array([float(w) for w in weights])
        got = semivalues(np.array([rewards], dtype=np.float64), utility, q)[0, list(players)]
        assert np.abs(got - [float(value) for value in expected]).max() <= ENUMERATED * max(map(abs, rewards))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quantile(q=1.5, empty=0.0), "got q = 1.5, expected 0 to 1"),
        (lambda: Quantile(q=math.nan, empty=0.0), "got q = nan"),
        (lambda: TrimmedMean(fraction=0.5, empty=0.0), "got fraction = 0.5"),
        (lambda: TrimmedMean(fraction=-0.1, empty=0.0), "got fraction = -0.1"),
        (lambda: CVaR(alpha=0.0, empty=0.0), "got alpha = 0.0"),
        (lambda: CVaR(alpha=0.5, empty=0.0, tail="middle"), "got 'middle'"),
        (lambda: TopMMean(m=0, empty=0.0), "got 0, expected m ≥ 1"),
    ],
)
def test_utilities_without_meaning_are_refused(make, message):
    """A share outside its range, an unknown tail or nobody at the top cannot be made."""
    with pytest.raises(ValueError, match=message):
        make()
