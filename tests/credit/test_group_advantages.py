import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import oracles
from credit.batches import CENTRED, WORKED, grid
from creditd.credit import GRPO_EPSILONS, Flag, group_advantages

AGREEMENT = 1e-10
"""The oracle sums exactly, the library in order: a few roundings, divided by a spread of at least 1/16."""

RULES = ("grpo", "dr_grpo", "rloo")
batches = st.lists(
    st.tuples(st.integers(0, 3), st.one_of(st.none(), grid, grid, st.floats(-100, 100).map(lambda x: round(x, 3)))),
    min_size=1,
    max_size=20,
)


def solve(pairs, **options):
    """Advantages of (group, reward or None) pairs, and the flags of four groups."""
    rewards = np.array([np.nan if r is None else r for _, r in pairs])
    groups = np.array([g for g, _ in pairs], dtype=np.int64)
    missing = np.array([r is None for _, r in pairs])
    return group_advantages(rewards, groups, 4, missing=missing, **options)


@pytest.mark.parametrize("rule", RULES)
@given(pairs=batches, ddof=st.sampled_from([0, 1]), epsilon=st.sampled_from([0.0, *GRPO_EPSILONS.values()]))
def test_each_group_is_solved_by_its_formula(rule, pairs, ddof, epsilon):
    """Groups interleaved in any order, with nulls, equal a loop over each group; flags name what is unusual."""
    answer = solve(pairs, rule=rule, ddof=ddof, epsilon=epsilon)
    groups = defaultdict(list)
    for row, (group, _) in enumerate(pairs):
        groups[group].append(row)
    for group in range(4):
        rows = groups[group]
        rewards = [pairs[row][1] for row in rows]
        expected = oracles.advantages_of_group(rewards, rule, ddof=ddof, epsilon=epsilon)
        size = max(map(abs, expected), default=0.0) + 1.0
        assert np.abs(answer.advantages[rows] - expected).max(initial=0.0) <= AGREEMENT * 100 * size
        present = [r for r in rewards if r is not None]
        flags = Flag(int(answer.flags[group]))
        assert (Flag.DEGENERATE_GROUP in flags) == (len(set(present)) <= 1)
        assert (Flag.SINGLE_RESPONSE in flags) == (len(present) == 1)
        assert (Flag.GROUP_INCOMPLETE in flags) == (len(present) < len(rewards))


@given(batches, st.sampled_from(RULES))
def test_advantages_of_a_group_sum_to_zero(pairs, rule):
    """Every rule is centred within each group, as a share of its largest reward over its denominator."""
    answer = solve(pairs, rule=rule)
    for group in range(4):
        own = [a for a, (g, _) in zip(answer.advantages, pairs, strict=True) if g == group]
        rewards = [r for g, r in pairs if g == group and r is not None]
        if rewards:
            denominator = oracles.deviation(rewards, 1) + GRPO_EPSILONS["trl"] if rule == "grpo" else 1.0
            assert abs(math.fsum(own)) <= CENTRED * max(1.0, *map(abs, rewards)) / min(1.0, denominator)


@given(batches, st.sampled_from(RULES), st.randoms(use_true_random=False))
def test_order_and_company_change_no_bit(pairs, rule, random):
    """An advantage is the same to the last bit in any order of its group, and with the other groups taken away."""
    order = list(range(len(pairs)))
    random.shuffle(order)
    answer = solve(pairs, rule=rule)
    shuffled = solve([pairs[i] for i in order], rule=rule)
    assert answer.advantages[order].tobytes() == shuffled.advantages.tobytes()
    assert answer.flags.tobytes() == shuffled.flags.tobytes()
    own = [row for row, (g, _) in enumerate(pairs) if g == pairs[0][0]]
    assert solve([pairs[row] for row in own], rule=rule).advantages.tobytes() == answer.advantages[own].tobytes()


@pytest.mark.parametrize(("ddof", "winner"), [(1, 1.0), (0, math.sqrt(1.5))])
def test_worked_values_of_grpo(ddof, winner):
    """Rewards 1, ½, 0 have GRPO advantages ±1 with ddof 1 and ±1.2247 with ddof 0."""
    answer = solve([(0, 1.0), (0, 0.5), (0, 0.0)], ddof=ddof, epsilon=0.0)
    assert answer.advantages[:3] == pytest.approx([winner, 0.0, -winner], abs=WORKED)


def test_worked_group_of_four_responses():
    """The best rewards .9, .2, 1, .8 have GRPO advantages .4869, −1.4608, .7652, .2087."""
    answer = solve([(2, 0.9), (2, 0.2), (2, 1.0), (2, 0.8)], epsilon=0.0)
    assert answer.advantages.round(4).tolist() == [0.4869, -1.4608, 0.7652, 0.2087]


def test_worked_values_of_dr_grpo_and_rloo():
    """Rewards 1, ½, 0: r − mean is ±½; r − mean of the others is half as much again."""
    group = [(1, 1.0), (1, 0.5), (1, 0.0)]
    assert solve(group, rule="dr_grpo").advantages == pytest.approx([0.5, 0.0, -0.5], abs=WORKED)
    assert solve(group, rule="rloo").advantages == pytest.approx([0.75, 0.0, -0.75], abs=WORKED)


def test_conventions_differ_in_epsilon():
    """Each framework adds its own ε to the standard deviation."""
    assert GRPO_EPSILONS == {"trl": 1e-4, "verl": 1e-6, "openrlhf": 1e-9}
    for epsilon in GRPO_EPSILONS.values():
        answer = solve([(0, 1.0), (0, 0.5), (0, 0.0)], epsilon=epsilon)
        assert answer.advantages[0] == pytest.approx(0.5 / (0.5 + epsilon), rel=1e-14)
    default = group_advantages(np.array([1.0, 0.5, 0.0]), np.zeros(3, dtype=np.int64), 1)
    assert default.advantages[0] == pytest.approx(0.5 / 0.5001, rel=1e-14)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rewards", [[0.1], [0.1, 0.1, 0.1], [None], [None, 0.3], [1 / 3] * 7])
def test_groups_without_contrast_give_exactly_zero(rule, rewards):
    """One response, equal responses or none at all: the advantage is 0.0 to the bit, and the group is flagged."""
    answer = solve([(1, r) for r in rewards], rule=rule, epsilon=0.0)
    assert answer.advantages.tolist() == [0.0] * len(rewards)
    assert not np.signbit(answer.advantages).any()
    flags = Flag(int(answer.flags[1]))
    assert Flag.DEGENERATE_GROUP in flags
    assert (Flag.SINGLE_RESPONSE in flags) == (sum(r is not None for r in rewards) == 1)


def test_too_many_degrees_of_freedom_give_zero():
    """A group with no more responses than ddof has no standard deviation, and is flagged."""
    answer = solve([(0, 1.0), (0, 2.0)], ddof=2)
    assert answer.advantages.tolist() == [0.0, 0.0]
    assert Flag.DEGENERATE_GROUP in Flag(int(answer.flags[0]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_is_refused(value):
    """NaN and infinities are an error unless they are marked as missing."""
    rewards = np.array([0.0, value])
    groups = np.zeros(2, dtype=np.int64)
    with pytest.raises(ValueError, match="finite"):
        group_advantages(rewards, groups, 1)
    marked = group_advantages(rewards, groups, 1, missing=np.array([False, True]))
    assert marked.advantages.tolist() == [0.0, 0.0]


def test_no_responses_have_no_advantages():
    """An empty batch gives an empty answer."""
    assert group_advantages(np.empty(0), np.empty(0, dtype=np.int64), 0).advantages.shape == (0,)


def test_two_rewards_a_rounding_apart_are_one_deviation_from_their_mean():
    """Numerator and denominator see the same differences, however small they are beside the rewards."""
    rewards = np.array([0.1 + 0.2, 0.3])
    result = group_advantages(rewards, np.zeros(2, dtype=np.int64), 1, epsilon=0.0)
    assert np.abs(result.advantages) == pytest.approx(np.sqrt(0.5), rel=1e-12)
