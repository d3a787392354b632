import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import oracles, smooth_oracles
from creditd.credit.log_sum_exp import LogSumExp, LogSumExpGames, log_sum_exp_semivalues

EXACT = 1e-12
"""Kernel against enumeration, as a share of the scale of the game."""

grid = st.integers(-8, 8).map(lambda v: v / 4)
anything = st.floats(-1e3, 1e3, allow_nan=False, allow_subnormal=False)
rewards_of_sets = st.one_of(st.lists(grid, min_size=1, max_size=6), st.lists(anything, min_size=1, max_size=6))
temperatures = st.sampled_from([1e-6, 0.05, 1.0, 7.0, 1e4])
utilities = st.one_of(
    st.builds(LogSumExp, temperatures, empty=st.sampled_from([0.0, -0.75, 2.5])),
    st.builds(LogSumExp, temperatures, baseline=st.one_of(grid, anything)),
    st.builds(LogSumExp, temperatures, empty=st.sampled_from([0.0, 2.5]), baseline=st.one_of(grid, anything)),
)


def size_weights(n):
    """Shapley, leave-one-out, own reward, and a sum of the three."""
    first, last = np.zeros(n), np.zeros(n)
    first[0], last[-1] = 1.0 / n, 1.0
    shapley = np.full(n, 1.0 / n)
    return [shapley, last, first, 0.5 * shapley - 2.0 * last + 3.0 * first]


def assert_exact(rewards, utility):
    """Every rule agrees with the enumeration of coalitions, and so do v(∅), v(N) and the scale."""
    n = len(rewards)
    definition = smooth_oracles.log_sum_exp(
        rewards, utility.temperature, empty=utility.empty_utility, baseline=utility.baseline
    )
    values = smooth_oracles.game_of_players(n, definition)
    games = LogSumExpGames(np.array([rewards, rewards[::-1]]), utility)
    scale = games.scale()
    assert np.all(scale >= (1.0 - EXACT) * max(map(abs, values)))
    assert games.empty().tolist() == [utility.empty_utility] * 2
    assert np.abs(games.grand() - values[-1]).max() <= EXACT * scale[0]
    for q in size_weights(n):
        expected = np.array(smooth_oracles.semivalue(values, n, q))
        got = games.semivalues(q)
        assert np.abs(got - [expected, expected[::-1]]).max() <= EXACT * scale[0] * max(1.0, np.abs(q).sum())


@given(rewards_of_sets, utilities)
def test_semivalues_equal_the_mean_over_all_coalitions(rewards, utility):
    """Every rule on every set, with a baseline and without, agrees with the enumeration of coalitions."""
    assert_exact(rewards, utility)


@pytest.mark.parametrize("baseline", [None, -2.0, 0.5])
@pytest.mark.parametrize("spread", [0.0, 1e-9, 1.0, 40.0, 700.0, 1e6])
@pytest.mark.parametrize("n", [1, 2, 8, 9])
def test_eight_and_nine_players_equal_the_enumeration(n, spread, baseline):
    """Logits spread over nothing, over ±40, over ±700 and beyond agree with the enumeration."""
    rewards = (spread * np.random.default_rng(n).uniform(-1.0, 1.0, size=n)).tolist()
    rewards[: n // 3] = rewards[:1] * (n // 3)
    assert_exact(rewards, LogSumExp(1.0, empty=0.25, baseline=baseline))


@pytest.mark.parametrize("gap", [3.0, 39.9, 40.1, 45.0, 100.0])
@pytest.mark.parametrize("baseline", [None, -60.0, 60.0])
def test_a_wide_gap_is_a_maximum(gap, baseline):
    """Two clusters of candidates agree with the enumeration on both sides of the widest gap that is integrated over."""
    rewards = [0.0, -0.5, -1.0, -gap, -gap - 0.5, -2.0 * gap]
    assert_exact(rewards, LogSumExp(1.0, empty=0.0, baseline=baseline))


@pytest.mark.parametrize("temperature", [1e-300, 1e-3, 1.0, 1e50, 1e100])
def test_large_rewards_do_not_overflow(temperature):
    """Rewards of 10¹⁰⁰ at any temperature give what the enumeration gives."""
    assert_exact([1e100, -1e100, 0.0, 3.0, 3.0, 9e99], LogSumExp(temperature, empty=-1e100))
    assert_exact([-1e100, -1e100, 5.0], LogSumExp(temperature, baseline=0.0))


@pytest.mark.parametrize(("n_first", "n_second"), [(1, 63), (32, 32), (120, 80), (1, 199)])
@pytest.mark.parametrize(("low", "baseline"), [(0.0, None), (-3.0, None), (-30.0, 0.5), (-700.0, None), (-3.0, -20.0)])
def test_two_kinds_of_candidates_equal_the_sum_over_their_numbers(n_first, n_second, low, baseline):
    """Sets of up to 200 candidates of two rewards agree with the hypergeometric sum over how many of each are there."""
    utility = LogSumExp(2.0, empty=0.5, baseline=baseline)

    def worth(a, b):
        rewards = ([] if baseline is None else [baseline]) + [1.0] * (a > 0) + [low] * (b > 0)
        counts = ([] if baseline is None else [1]) + [a] * (a > 0) + [b] * (b > 0)
        if not a + b:
            return 0.5
        total = math.fsum(c * math.exp((r - max(rewards)) / 2.0) for c, r in zip(counts, rewards, strict=True))
        return max(rewards) + 2.0 * math.log(total)

    n = n_first + n_second
    games = LogSumExpGames(np.array([[1.0] * n_first + [low] * n_second]), utility)
    expected = smooth_oracles.shapley_of_two_kinds(n_first, n_second, worth)
    got = games.semivalues(np.full(n, 1.0 / n))[0, [0, -1]]
    assert np.abs(got - expected).max() <= EXACT * games.scale()[0]


@pytest.mark.parametrize("baseline", [None, 0.0])
@pytest.mark.parametrize("spread", [0.1, 5.0, 300.0])
@pytest.mark.parametrize("n", [64, 200])
def test_large_sets_are_efficient(n, spread, baseline):
    """The values of many candidates sum to v(N) − v(∅), also where they fill more than one page of nodes."""
    rewards = spread * np.random.default_rng(n).normal(size=(1, n))
    games = LogSumExpGames(rewards, LogSumExp(1.0, empty=0.5, baseline=baseline))
    total = math.fsum(games.semivalues(np.full(n, 1.0 / n))[0])
    assert abs(total - (games.grand()[0] - 0.5)) <= EXACT * games.scale()[0]


@pytest.mark.parametrize("n", [9, 64])
def test_low_temperatures_are_the_maximum(n):
    """At a temperature far below every gap the Shapley values are those of the maximum."""
    rewards = np.random.default_rng(n).permutation(np.arange(float(n)))
    values = LogSumExpGames(rewards[None], LogSumExp(1e-9, empty=0.0)).semivalues(np.full(n, 1.0 / n))[0]
    assert np.abs(values - oracles.airport(rewards.tolist())).max() <= EXACT * n


def test_worked_values():
    """One candidate beside its copy: each has half of r + τ·log 2 − v(∅); the one alone has r − v(∅)."""
    utility = LogSumExp(2.0, empty=0.5)
    pair = LogSumExpGames(np.array([[3.0, 3.0]]), utility).semivalues(np.array([0.5, 0.5]))[0]
    assert pair == pytest.approx([0.5 * (3.0 + 2.0 * math.log(2.0) - 0.5)] * 2, abs=1e-15)
    assert LogSumExpGames(np.array([[3.0]]), utility).semivalues(np.array([1.0])).tolist() == [[2.5]]


@given(st.lists(st.one_of(grid, anything), min_size=1, max_size=12), utilities, st.randoms(use_true_random=False))
def test_relabelling_changes_no_bit(rewards, utility, random):
    """Permuting the candidates permutes their credits, and leaves v(N), to the last bit."""
    order = list(range(len(rewards)))
    random.shuffle(order)
    before = LogSumExpGames(np.array([rewards]), utility)
    after = LogSumExpGames(np.array([rewards])[:, order], utility)
    for q in size_weights(len(rewards)):
        assert before.semivalues(q)[0][order].tobytes() == after.semivalues(q)[0].tobytes()
    assert before.grand().tobytes() == after.grand().tobytes()


@given(st.lists(grid, min_size=2, max_size=9), utilities)
def test_equal_rewards_have_equal_bits(rewards, utility):
    """Candidates of one reward have one credit, to the last bit."""
    for q in size_weights(len(rewards)):
        values = LogSumExpGames(np.array([rewards]), utility).semivalues(q)[0]
        for reward in set(rewards):
            assert len({v.tobytes() for r, v in zip(rewards, values, strict=True) if r == reward}) == 1


@pytest.mark.parametrize("baseline", [None, 0.5])
@pytest.mark.parametrize(("n", "n_sets"), [(1, 9), (2, 300), (6, 300), (60, 12)])
def test_a_row_does_not_know_its_batch(n, n_sets, baseline):
    """A set alone and among sets of other spreads has the same credit to the last bit, whatever its number of nodes."""
    random = np.random.default_rng(n)
    rewards = random.normal(size=(n_sets, n)) * random.choice([0.0, 0.1, 1.0, 20.0, 400.0], size=(n_sets, 1))
    together = LogSumExpGames(rewards, LogSumExp(1.0, empty=0.5, baseline=baseline))
    every = [together.semivalues(q) for q in size_weights(n)]
    for rows in [*(slice(i, i + 1) for i in range(9)), slice(3, 12)]:
        part = LogSumExpGames(rewards[rows], together.utility)
        assert part.grand().tobytes() == together.grand()[rows].tobytes()
        for q, values in zip(size_weights(n), every, strict=True):
            assert part.semivalues(q).tobytes() == values[rows].tobytes()


@given(rewards_of_sets, utilities)
def test_the_scale_bounds_the_utilities(rewards, utility):
    """The scale is the largest of what enters: |v(∅)|, |v(N)|, the rewards, and with a baseline τ and max(r, b)."""
    games = LogSumExpGames(np.array([rewards, rewards]), utility)
    entering = [utility.empty_utility, games.grand()[0]]
    if utility.baseline is None:
        entering += rewards
    else:
        entering += [utility.temperature, *(max(r, utility.baseline) for r in rewards)]
    assert games.scale().tolist() == [max(map(abs, entering))] * 2


@given(rewards_of_sets, utilities)
def test_restricted_games_are_the_games_of_the_players_named(rewards, utility):
    """Naming players gives their game in that order, down to none at all."""
    games = LogSumExpGames(np.array([rewards]), utility)
    players = np.arange(len(rewards))[::-2]
    assert games.restricted(players).rewards[0].tolist() == rewards[::-2]
    nobody = games.restricted(np.array([], dtype=np.int64))
    assert nobody.n_players == 0
    assert nobody.grand().tolist() == nobody.empty().tolist() == [utility.empty_utility]
    assert nobody.scale()[0] >= abs(utility.empty_utility)
    assert nobody.semivalues(np.empty(0)).shape == (1, 0)


def test_no_sets_are_no_error():
    """No sets are no error."""
    games = LogSumExpGames(np.empty((0, 3)), LogSumExp(1.0, empty=0.0))
    assert games.grand().shape == games.empty().shape == games.scale().shape == (0,)
    for q in size_weights(3):
        assert games.semivalues(q).shape == (0, 3)


def test_what_does_not_fit_is_refused():
    """Temperatures, utilities of nobody and weights that do not fit are named with what was expected."""
    with pytest.raises(ValueError, match=r"got neither empty nor baseline, expected one of them"):
        LogSumExp(1.0)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"needs a temperature: got .*, expected one in"):
            LogSumExp(temperature, empty=0.0)
    with pytest.raises(ValueError, match=r"finite empty: got nan"):
        LogSumExp(1.0, empty=math.nan)
    with pytest.raises(ValueError, match=r"finite baseline: got inf"):
        LogSumExp(1.0, baseline=math.inf)
    utility = LogSumExp(1.0, empty=0.0)
    with pytest.raises(ValueError, match="log_sum_exp has credit for Shapley, leave-one-out and own reward only"):
        LogSumExpGames(np.zeros((1, 4)), utility).semivalues(np.array([0.1, 0.2, 0.3, 0.4]))
    with pytest.raises(ValueError, match=r"expected \(4,\)"):
        log_sum_exp_semivalues(np.zeros((1, 4)), utility, np.zeros(3))
    with pytest.raises(ValueError, match=r"got n = 0"):
        log_sum_exp_semivalues(np.zeros((1, 0)), utility, np.zeros(0))
