import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import group_oracles
from creditd.credit.max_at_k import leave_one_out_advantages, max_at_k_advantages

AGREEMENT = 1e-13
"""A cumulative sum of at most ten steps against exact sums over all draws, as a share of the largest reward."""

amounts = st.one_of(st.sampled_from([-1.0, -0.5, -0.0, 0.0, 0.5, 1.0]), st.floats(-4.0, 4.0).map(lambda x: round(x, 3)))
batches = st.lists(st.tuples(st.integers(0, 2), amounts), min_size=1, max_size=16)


def solve(pairs, k, n_groups=3):
    """Advantages of (group, reward) pairs; k = None asks for leave-one-out."""
    rewards, groups = np.array([r for _, r in pairs]), np.array([g for g, _ in pairs], dtype=np.int64)
    if k is None:
        return leave_one_out_advantages(rewards, groups, n_groups)
    return max_at_k_advantages(rewards, groups, n_groups, k=k)


def definition(rewards, k):
    """The same by enumeration."""
    if k is None:
        return group_oracles.leave_one_out(rewards)
    return [0.0] if k > 1 and len(rewards) == 1 else group_oracles.max_at_k(rewards, k)


@given(batches, st.one_of(st.none(), st.integers(1, 6)))
def test_advantages_are_mean_gains_over_all_draws(pairs, k):
    """Each group equals the mean gain of the best over the draws of others.

    A group of fewer than k uses them all; a single response has no others to be drawn with, which k = 1 does not mind.
    """
    advantages = solve(pairs, k)
    for group in range(3):
        rows = [row for row, (g, _) in enumerate(pairs) if g == group]
        expected = definition([pairs[row][1] for row in rows], k)
        assert advantages[rows] == pytest.approx(expected, rel=0, abs=AGREEMENT * 4.0 * 6)


@given(batches, st.one_of(st.none(), st.integers(1, 6)))
def test_order_and_company_change_no_bit_and_ties_have_equal_bits(pairs, k):
    """Reversed or alone, a response has the same bits, and so have equal rewards of a group, −0 and 0 among them."""
    advantages = solve(pairs, k)
    assert solve(pairs[::-1], k).tobytes() == advantages[::-1].tobytes()
    own = [row for row, (g, _) in enumerate(pairs) if g == pairs[0][0]]
    assert solve([(0, pairs[row][1]) for row in own], k, n_groups=1).tobytes() == advantages[own].tobytes()
    seen = {}
    for pair, advantage in zip(pairs, advantages, strict=True):
        assert seen.setdefault(pair, advantage.tobytes()) == advantage.tobytes()


@given(batches)
def test_all_draws_are_leave_one_out(pairs):
    """A k of at least the size of every group of two or more is leave-one-out, and is never negative."""
    many, out = solve(pairs, len(pairs) + 1), solve(pairs, None)
    counts = np.bincount([g for g, _ in pairs], minlength=3)
    larger = np.array([counts[g] > 1 for g, _ in pairs])
    assert many[larger].tobytes() == out[larger].tobytes()
    assert (many[larger] >= 0.0).all()


@given(st.lists(amounts, min_size=2, max_size=8))
def test_harmonic_weights_give_the_shapley_value_of_max(rewards):
    """Σ_k (1/k)·A(k) shares the best reward without a rest: the identity that ties PKPO to Shapley."""
    total = sum(solve([(0, r) for r in rewards], k, n_groups=1) / k for k in range(1, len(rewards) + 1))
    assert math.fsum(total) == pytest.approx(max(rewards), abs=1e-12)


def test_worked_values():
    """Rewards .9, .4, .4, .2: k = 3 pays the best ¾·(.9 − .4); k = 2 pays steps .2 and .5 by ranks; k = 1 is r/4."""
    pairs = [(0, 0.9), (0, 0.4), (0, 0.4), (0, 0.2)]
    assert solve(pairs, 3, n_groups=1) == pytest.approx([0.375, 0.0, 0.0, 0.0], abs=1e-15)
    assert solve(pairs, 2, n_groups=1) == pytest.approx([0.85 / 3, 0.1 / 3, 0.1 / 3, 0.0], abs=1e-15)
    assert solve(pairs, 1, n_groups=1).tolist() == [0.225, 0.1, 0.1, 0.05]
    assert solve(pairs, None, n_groups=1).tolist() == [0.5, 0.0, 0.0, 0.0]


def test_large_groups_stay_finite():
    """Ratios of binomial coefficients stay in range where the coefficients do not."""
    size, k = 4000, 1500
    advantages = solve([(0, float(row == 0)) for row in range(size)], k, n_groups=1)
    assert advantages[0] == pytest.approx(k / size, rel=1e-15)
    assert not advantages[1:].any()


def test_fewer_than_one_draw_is_refused():
    """There is no draw of no response."""
    with pytest.raises(ValueError, match="k ≥ 1: got 0"):
        solve([(0, 1.0)], 0)
