from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import closed_oracles, oracles
from credit.batches import ENUMERATED, WORKED, anything, grid, rewards_of_sets
from creditd.credit import AllPass, ExpectedMax, Max, Mean, PassAtK, RthBest, Threshold, TopM, semivalues
from creditd.credit.level_games import grand_utilities


def shapley(rewards, utility):
    """Shapley values of one set."""
    values = np.array(rewards, dtype=np.float64)
    return semivalues(values[None, :], utility, np.full(len(values), 1.0 / len(values)))[0]


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8), st.floats(-5, 5))
def test_candidates_at_or_below_the_floor_get_exactly_zero(rewards, floor):
    """A floor gives nothing at all to a candidate that does not rise above it."""
    credit = shapley([*rewards, floor], Max(floor=floor))
    for r, c in zip([*rewards, floor], credit, strict=True):
        assert (c == 0.0 and not np.signbit(c)) if r <= floor else c > 0.0


@given(rewards_of_sets)
def test_players_below_the_threshold_are_null_players(rewards):
    """A candidate that never passes has credit exactly 0 when v(∅) is 0, whatever it is compared with."""
    utility = Threshold(threshold=0.5, count=2)
    for r, c in zip(rewards, shapley(rewards, utility), strict=True):
        assert c == 0.0 or r >= 0.5


def test_worked_values_of_max():
    """The values worked by hand for max, with v(∅), with ties and with a floor."""
    assert shapley([0.9, 0.5, 0.5, 0.1], Max()) == pytest.approx(
        [0.9 - 0.1 * 3 / 4 - 0.4 * 2 / 3, 0.475 / 3, 0.475 / 3, 0.025], abs=WORKED
    )
    rounded = [0.558333, 0.158333, 0.158333, 0.025]
    assert shapley([0.9, 0.5, 0.5, 0.1], Max()).round(6).tolist() == rounded
    with_empty = shapley([0.9, 0.5, 0.5, 0.1], Max(empty=0.5))
    assert with_empty == pytest.approx([0.4 + 0.1 / 3, 0.1 / 3, 0.1 / 3, -0.1], abs=WORKED)
    assert shapley([1.0, 1.0, 2.0], Max()) == pytest.approx([1 / 3, 1 / 3, 4 / 3], abs=WORKED)
    assert shapley([0.9, 0.5, 0.5, 0.1], Max(floor=0.5)) == pytest.approx([0.4, 0.0, 0.0, 0.0], abs=WORKED)
    assert shapley([0.9, 0.5, 0.5, 0.1], Max(floor=0.5))[1:].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Max(empty=0.5, floor=0.25), "both define"),
        (lambda: TopM(m=0), "m ≥ 1"),
        (lambda: RthBest(r=0), "r ≥ 1"),
        (lambda: Threshold(threshold=0.0, count=0), "count ≥ 1"),
        (lambda: ExpectedMax(k=0), "k ≥ 1"),
        (lambda: PassAtK(threshold=0.0, k=0), "k ≥ 1"),
    ],
)
def test_utilities_without_meaning_are_refused(make, message):
    """A utility whose parameters contradict each other cannot be made."""
    with pytest.raises(ValueError, match=message):
        make()


def test_a_floor_may_be_named_twice():
    """`empty` beside a floor is accepted when it is the same number."""
    assert Max(empty=0.5, floor=0.5).empty_utility == 0.5


@given(st.lists(st.one_of(grid, anything), min_size=1, max_size=7), st.integers(1, 9), st.floats(-4, 4))
def test_passes_and_draws_equal_the_mean_over_all_coalitions(rewards, k, empty):
    """Expected maximum, pass@k and all-pass of any k, threshold and v(∅), under Shapley and under unequal weights."""
    threshold = sorted(rewards)[len(rewards) // 2]
    n = len(rewards)
    weights = [1.0 - 0.375 * s for s in range(n)]
    for utility, definition in (
        (ExpectedMax(k=k, empty=empty), closed_oracles.best_of_a_draw(k, empty=empty)),
        (PassAtK(threshold=threshold, k=k, empty=empty), closed_oracles.pass_in_a_draw(threshold, k, empty=empty)),
        (AllPass(threshold=threshold, empty=empty), closed_oracles.everyone(threshold, empty=empty)),
    ):
        game = oracles.game_of(rewards, definition)
        for w in (weights, [1.0 / (s + 1) for s in range(n)]):
            q = np.array(w) * np.arange(1, n + 1) / n
            got = semivalues(np.array([rewards]), utility, q)[0]
            expected = oracles.semivalue_by_subsets(game, n, w)
            assert np.abs(got - expected).max() <= ENUMERATED * oracles.scale_of(game)


@given(st.lists(st.one_of(grid, anything), min_size=1, max_size=9), st.integers(0, 3))
def test_draws_lie_between_the_mean_and_the_maximum(rewards, more):
    """A draw of one is the mean and a draw of everyone the maximum, in v(N) and in credit."""
    n, scale = len(rewards), max(map(abs, rewards)) or 1.0
    pairs = [(ExpectedMax(k=1, empty=0.5), Mean(empty=0.5)), (ExpectedMax(k=n + more, empty=0.5), Max(empty=0.5))]
    for drawn, same in pairs:
        assert np.abs(shapley(rewards, drawn) - shapley(rewards, same)).max() <= ENUMERATED * max(scale, 0.5)
        difference = grand_utilities(np.array([rewards]), drawn) - grand_utilities(np.array([rewards]), same)
        assert abs(difference[0]) <= ENUMERATED * scale


def test_worked_values_of_passes():
    """Two of four pass: pass@2 is 1 − 1/6; all-pass takes from those who fail what v(∅) = 1 was worth."""
    rewards = [1.0, 0.0, 1.0, 0.0]
    assert grand_utilities(np.array([rewards]), PassAtK(threshold=0.5, k=2))[0] == pytest.approx(5 / 6, abs=WORKED)
    assert shapley(rewards, PassAtK(threshold=0.5, k=9)) == pytest.approx([0.5, 0.0, 0.5, 0.0], abs=WORKED)
    assert shapley(rewards, AllPass(threshold=0.5, empty=1.0)) == pytest.approx([0.0, -0.5, 0.0, -0.5], abs=WORKED)
    assert shapley(rewards, AllPass(threshold=0.5, empty=0.0)) == pytest.approx([0.25, -0.25, 0.25, -0.25], abs=WORKED)


@pytest.mark.parametrize(("n", "k"), [(64, 1), (64, 3), (64, 40), (200, 150)])
def test_large_draws_equal_rational_arithmetic(n, k):
    """64 and 200 candidates agree with rational arithmetic, under Shapley and under weights on three sizes."""
    rewards = np.random.default_rng(n + k).integers(-60, 60, size=n).tolist()
    for weights in ([Fraction(1, n)] * n, [Fraction(s in {0, n // 2, n - 1}, 4) for s in range(n)]):
        q = np.array([float(w) for w in weights])
        for utility, values, empty in (
            (ExpectedMax(k=k, empty=0.5), rewards, 0.5),
            (PassAtK(threshold=20.0, k=k, empty=0.25), [int(r >= 20) for r in rewards], 0.25),
        ):
            ranks = closed_oracles.ranks_of_expected_max(k)
            players = range(0, n, n // 8)
            expected = closed_oracles.rational_semivalues(values, ranks, weights, Fraction(empty), players)
            got = semivalues(np.array([rewards], dtype=np.float64), utility, q)[0, list(players)]
            scale = max(map(abs, values))
            assert np.abs(got - [float(value) for value in expected]).max() <= ENUMERATED * scale
