import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import oracles
from credit.batches import EFFICIENCY, ENUMERATED, EXACT, UTILITIES, anything, grid, rewards_of_sets
from creditd.credit import Max, MaxAtK, Mean, Min, RthBest, Sum, Threshold, TopM, semivalues
from creditd.credit.credit_rules import size_weights
from creditd.credit.level_games import MAX_PLAYERS, grand_utilities, level_values

LARGE_SETS = 1e-10
"""Closed forms of 256 candidates against exact sums, as a share of the largest reward: the promise of the library."""

utilities = st.sampled_from(sorted(UTILITIES))


def shapley(rewards, utility):
    """Shapley values of one set."""
    values = np.array(rewards, dtype=np.float64)
    return semivalues(values[None, :], utility, np.full(len(values), 1.0 / len(values)))[0]


@given(rewards_of_sets, utilities)
def test_shapley_equals_the_mean_over_all_orders(rewards, name):
    """The Shapley value of every utility is the mean marginal utility over all orders of arrival."""
    utility, definition = UTILITIES[name]
    game = oracles.game_of(rewards, definition)
    expected = oracles.shapley_by_orders(game, len(rewards))
    assert np.abs(shapley(rewards, utility) - expected).max() <= EXACT * oracles.scale_of(game)


@pytest.mark.parametrize("name", sorted(UTILITIES))
def test_seven_players_equal_the_mean_over_all_orders(name):
    """Seven candidates with ties, negatives and a repeated best agree with 5,040 orders."""
    utility, definition = UTILITIES[name]
    rewards = [0.25, -3.5, 0.25, 1e3, 1e3, -3.5, 0.1]
    game = oracles.game_of(rewards, definition)
    expected = oracles.shapley_by_orders(game, 7)
    assert np.abs(shapley(rewards, utility) - expected).max() <= EXACT * oracles.scale_of(game)


@pytest.mark.parametrize("name", sorted(UTILITIES))
@pytest.mark.parametrize("n", [8, 9])
def test_semivalues_equal_the_mean_over_all_coalitions(name, n):
    """With unequal weights of both signs, eight and nine candidates agree with the enumeration of coalitions."""
    utility, definition = UTILITIES[name]
    rewards = np.random.default_rng(n).normal(size=n).round(1).tolist()
    weights = [(-1) ** k * (1 + k) / 8 for k in range(n)]
    game = oracles.game_of(rewards, definition)
    expected = oracles.semivalue_by_subsets(game, n, weights)
    q = np.array([w * (k + 1) / n for k, w in enumerate(weights)])
    got = semivalues(np.array([rewards]), utility, q)[0]
    assert np.abs(got - expected).max() <= EXACT * oracles.scale_of(game)


@given(st.lists(st.one_of(grid, anything), min_size=1, max_size=40), utilities)
def test_shapley_is_efficient(rewards, name):
    """The credits of a set sum to v(N) − v(∅)."""
    utility, definition = UTILITIES[name]
    scale = max(abs(definition(rewards)), abs(definition([])), *map(abs, rewards)) or 1.0
    gap = math.fsum(shapley(rewards, utility)) - (definition(rewards) - definition([]))
    assert abs(gap) <= EFFICIENCY * scale


@given(st.lists(grid, min_size=2, max_size=8), utilities, st.integers(0, 7))
def test_equal_rewards_have_equal_bits(rewards, name, k):
    """Candidates of one reward get one credit, to the last bit and to the sign of zero."""
    utility, _ = UTILITIES[name]
    q = size_weights(MaxAtK(k=k + 1), len(rewards))
    for credit in (shapley(rewards, utility), semivalues(np.array([rewards]), utility, q)[0]):
        for reward in set(rewards):
            assert len({credit[i].tobytes() for i, r in enumerate(rewards) if r == reward}) == 1


@given(st.lists(st.one_of(grid, anything), min_size=1, max_size=12), utilities, st.randoms(use_true_random=False))
def test_relabelling_changes_no_bit(rewards, name, random):
    """Permuting the candidates permutes their credits, and leaves v(N), to the last bit."""
    utility, _ = UTILITIES[name]
    order = list(range(len(rewards)))
    random.shuffle(order)
    shuffled = [rewards[i] for i in order]
    assert shapley(rewards, utility)[order].tobytes() == shapley(shuffled, utility).tobytes()
    before, after = (grand_utilities(np.array([each]), utility) for each in (rewards, shuffled))
    assert before.tobytes() == after.tobytes()


@given(st.lists(st.lists(anything, min_size=5, max_size=5), min_size=2, max_size=9), utilities)
def test_a_row_does_not_know_its_batch(rows, name):
    """A set alone and in any company has the same credit to the last bit."""
    utility, _ = UTILITIES[name]
    q = np.full(5, 0.2)
    together = semivalues(np.array(rows), utility, q)
    alone = np.concatenate([semivalues(np.array([row]), utility, q) for row in rows])
    assert together.tobytes() == alone.tobytes()
    grand = grand_utilities(np.array(rows), utility)
    assert grand.tobytes() == b"".join(grand_utilities(np.array([row]), utility).tobytes() for row in rows)


@given(rewards_of_sets, utilities)
def test_grand_utility_is_the_utility_of_everyone(rewards, name):
    """v(N) is the utility of all the rewards, in every row of a batch."""
    utility, definition = UTILITIES[name]
    scale = max(abs(definition(rewards)), *map(abs, rewards)) or 1.0
    got = grand_utilities(np.array([rewards, rewards[::-1]]), utility)
    assert np.abs(got - definition(rewards)).max() <= EXACT * scale


@pytest.mark.parametrize("name", sorted(UTILITIES))
def test_nobody_has_the_utility_of_the_empty_set(name):
    """A set without candidates has utility v(∅)."""
    utility, definition = UTILITIES[name]
    assert grand_utilities(np.empty((3, 0)), utility).tolist() == [definition([])] * 3
    assert utility.empty_utility == definition([])


@given(rewards_of_sets, utilities, st.floats(-4, 4))
def test_another_empty_utility_moves_everyone_alike(rewards, name, shift):
    """Raising v(∅) by δ lowers every Shapley value by δ/n."""
    utility, _ = UTILITIES[name]
    if utility.type == "max" and utility.floor is not None:
        utility = Max()
    at, moved = (shapley(rewards, dataclasses.replace(utility, empty=e)) for e in (0.0, shift))
    scale = max(map(abs, [1.0, shift, *rewards])) * len(rewards)
    assert np.abs(at - moved - shift / len(rewards)).max() <= EXACT * scale


def test_large_sets_equal_the_closed_forms():
    """256 candidates agree with the closed form of every utility that has one."""
    rewards = np.random.default_rng(256).normal(size=256).round(2).tolist()
    scale = max(map(abs, rewards))
    assert np.abs(shapley(rewards, Max(empty=0.3)) - oracles.airport(rewards, 0.3)).max() <= LARGE_SETS * scale
    negative = [-credit for credit in oracles.airport([-r for r in rewards], -0.3)]
    assert np.abs(shapley(rewards, Min(empty=0.3)) - negative).max() <= LARGE_SETS * scale
    mean = oracles.shapley_of_mean(rewards, 0.3)
    assert np.abs(shapley(rewards, Mean(empty=0.3)) - mean).max() <= LARGE_SETS * scale
    total = [r - 0.3 / 256 for r in rewards]
    assert np.abs(shapley(rewards, Sum(empty=0.3)) - total).max() <= LARGE_SETS * scale
    top = oracles.shapley_of_top_m(rewards, 17, 0.3)
    assert np.abs(shapley(rewards, TopM(m=17, empty=0.3)) - top).max() <= LARGE_SETS * scale
    rank = oracles.shapley_of_rth_best(rewards, 40, -0.2, 0.3)
    assert np.abs(shapley(rewards, RthBest(r=40, default=-0.2, empty=0.3)) - rank).max() <= LARGE_SETS * scale


@pytest.mark.parametrize("k", [2, 17, 128, 255, 256])
def test_large_sets_equal_pkpo(k):
    """max@k of 256 candidates is PKPO's closed form, in whole binomial coefficients."""
    rewards = np.random.default_rng(k).normal(size=256).round(2).tolist()
    got = semivalues(np.array([rewards]), Max(), size_weights(MaxAtK(k=k), 256))[0]
    assert np.abs(got - oracles.pkpo(rewards, k)).max() <= LARGE_SETS * max(map(abs, rewards))


def test_harmonic_sum_of_pkpo_is_shapley():
    """Σ_k (1/k)·max@k, each by PKPO's closed form, is the Shapley value of max."""
    rewards = [0.3, -1.0, 0.3, 2.0, 0.7, 0.65]
    parts = [[r / 6 for r in rewards], *(oracles.pkpo(rewards, k) for k in range(2, 7))]
    harmonic = [math.fsum(part[i] / k for k, part in enumerate(parts, 1)) for i in range(6)]
    assert np.abs(shapley(rewards, Max()) - harmonic).max() <= EXACT * 2.0


def test_the_largest_set_is_finite():
    """A thousand candidates have finite, efficient credits; one more is refused."""
    rewards = np.linspace(0.0, 1.0, MAX_PLAYERS)[None, :]
    credit = semivalues(rewards, TopM(m=30), np.full(MAX_PLAYERS, 1.0 / MAX_PLAYERS))
    assert abs(credit.sum() - rewards[0, -30:].sum()) <= EFFICIENCY * 30
    with pytest.raises(ValueError, match="1001"):
        semivalues(np.zeros((1, 1001)), Max(), np.full(1001, 1.0 / 1001))


@pytest.mark.parametrize(
    ("rewards", "weights", "message"),
    [
        (np.zeros(3), np.ones(3), "shape"),
        (np.zeros((2, 0)), np.ones(0), "n ≥ 1"),
        (np.zeros((2, 3)), np.ones(2), "one entry per coalition size"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(rewards, weights, message):
    """Rewards are two-dimensional and not empty, and weights are one per coalition size."""
    with pytest.raises(ValueError, match=message):
        semivalues(rewards, Max(), weights)


def test_no_sets_have_no_credit():
    """An empty batch gives an empty answer of the right shape."""
    assert semivalues(np.empty((0, 3)), Max(), np.full(3, 1 / 3)).shape == (0, 3)
    assert grand_utilities(np.empty((0, 3)), Max()).shape == (0,)


def test_tied_zeros_of_either_sign_get_equal_bits():
    """−0.0 and 0.0 are equal rewards, so their credits are equal to the bit, under negative weights too."""
    for weights in ([0.5, 0.5], [-0.5, 1.5]):
        values = semivalues(np.array([[-0.0, 0.0], [0.0, -0.0]]), Max(), np.array(weights))
        assert not np.signbit(values).any()


@given(st.integers(1, 12), utilities)
def test_two_kinds_of_players_share_the_utility_of_everyone(n, name):
    """With Shapley weights m players above and n − m below share level(n, m); nobody is above 0 or below n."""
    utility, _ = UTILITIES[name]
    above, below = level_values(utility, n, np.full(n, 1.0 / n))
    assert above.shape == below.shape == (n + 1,)
    assert above[0] == below[n] == 0.0
    m = np.arange(n + 1.0)
    levels = utility.level(np.full(n + 1, float(n)), m)
    assert np.abs(m * above + (n - m) * below - levels).max() <= ENUMERATED * n


def test_values_of_a_level_game_are_those_of_its_players():
    """Two of five players above, 2 of whom have to be present: each above has ½ of the value, each below nothing."""
    above, below = level_values(Threshold(threshold=7.0, count=2, empty=3.0), 5, np.full(5, 0.2))
    assert above == pytest.approx([0.0, 0.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5], abs=ENUMERATED)
    assert below.tolist() == [0.0] * 6
    above, below = level_values(Mean(empty=2.0), 2, np.array([0.25, 0.75]))
    assert above == pytest.approx([0.0, 0.25 + 0.75 * 0.5, 0.25], abs=ENUMERATED)
    assert below == pytest.approx([0.0, -0.75 * 0.5, 0.0], abs=ENUMERATED)


@pytest.mark.parametrize("name", sorted(UTILITIES))
def test_coefficients_do_not_know_the_empty_set(name):
    """Utilities that differ in v(∅) alone are one level game."""
    utility, _ = UTILITIES[name]
    other = dataclasses.replace(utility, **{"floor" if name == "max_floor" else "empty": 9.0})
    assert hash(utility.level_game) == hash(other.level_game)
    assert utility.level_game == other.level_game == utility.level_game.level_game


@given(st.lists(st.integers(-8, 8), min_size=1, max_size=9), utilities)
def test_magnitudes_up_to_the_limit_stay_finite(rewards, name):
    """Rewards of up to 1e100 give finite credits and a finite v(N)."""
    utility, _ = UTILITIES[name]
    values = np.array([rewards]) * 1e99
    credit = semivalues(values, utility, np.full(len(rewards), 1.0 / len(rewards)))
    assert np.isfinite(credit).all()
    assert np.isfinite(grand_utilities(values, utility)).all()
