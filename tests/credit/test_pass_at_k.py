import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import group_oracles
from creditd.credit.pass_at_k import pass_at_k_advantages

AGREEMENT = 1e-12
"""One product of at most twelve factors against exact sums over all draws; advantages are below 12."""

batches = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=16)


def solve(pairs, k, n_groups=3):
    """Advantages of (group, right) pairs, and which groups have no contrast."""
    right = np.array([r for _, r in pairs], dtype=np.bool_)
    return pass_at_k_advantages(right, np.array([g for g, _ in pairs], dtype=np.int64), n_groups, k=k)


@given(batches, st.integers(1, 6))
def test_advantages_are_means_over_all_draws(pairs, k):
    """Each group equals the mean of the standardised success over the draws that hold a response."""
    advantages, flat = solve(pairs, k)
    for group in range(3):
        rows = [row for row, (g, _) in enumerate(pairs) if g == group]
        expected = group_oracles.pass_at_k([pairs[row][1] for row in rows], k)
        assert flat[group] == (expected is None)
        assert advantages[rows] == pytest.approx(expected or [0.0] * len(rows), rel=0, abs=AGREEMENT)


@given(batches, st.integers(1, 6))
def test_advantages_sum_to_zero_and_order_and_company_change_no_bit(pairs, k):
    """Σ A = 0 in each group; reversed or alone, a response has the same bits; equal outcomes have equal advantages."""
    advantages, _ = solve(pairs, k)
    assert solve(pairs[::-1], k)[0].tobytes() == advantages[::-1].tobytes()
    for group in range(3):
        own = [row for row, (g, _) in enumerate(pairs) if g == group]
        alone, _ = solve([(0, pairs[row][1]) for row in own], k, n_groups=1)
        assert alone.tobytes() == advantages[own].tobytes()
        assert abs(math.fsum(alone)) <= AGREEMENT
        assert len({(r, a) for (g, r), a in zip(pairs, advantages.tolist(), strict=True) if g == group}) <= 2


def test_worked_values():
    """Eight responses, two right, k = 4: ρ = 11/14, .522233 and −.174078 (Pass@k Training, arXiv 2508.10751)."""
    advantages, flat = solve([(0, True)] * 2 + [(0, False)] * 6, 4, n_groups=1)
    assert advantages[:2] == pytest.approx([math.sqrt(3 / 11)] * 2, abs=1e-15)
    assert advantages.round(6).tolist() == [0.522233] * 2 + [-0.174078] * 6
    assert not flat.any()


@pytest.mark.parametrize(
    ("n_right", "n_wrong", "k"), [(0, 4, 2), (4, 0, 1), (3, 1, 2), (2, 3, 4), (1, 1, 3), (1, 0, 1)]
)
def test_without_contrast_everything_is_zero(n_right, n_wrong, k):
    """None right, or fewer than k wrong, so that every draw ends alike: exactly 0."""
    advantages, flat = solve([(0, True)] * n_right + [(0, False)] * n_wrong, k, n_groups=1)
    assert advantages.tolist() == [0.0] * (n_right + n_wrong)
    assert flat.all()


def test_large_groups_stay_finite():
    """A product of ratios stays in range where binomial coefficients do not."""
    size = 4000
    advantages, flat = solve([(0, row == 0) for row in range(size)], 1000, n_groups=1)
    assert not flat.any()
    assert advantages[0] == pytest.approx(math.sqrt(3.0), rel=1e-12)
    assert advantages[1] == pytest.approx(-math.sqrt(3.0) / (size - 1), rel=1e-12)


def test_fewer_than_one_draw_is_refused():
    """There is no draw of no response."""
    with pytest.raises(ValueError, match="k ≥ 1: got 0"):
        solve([(0, True)], 0)
