import math
from collections import defaultdict
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import oracles
from credit.batches import anything
from creditd.credit.group_sums import (
    Groups,
    added_up,
    group_maxima,
    group_means,
    group_standard_deviations,
    group_sums,
    running_sums,
)

ROUNDING = 1e-12
"""A few dozen additions of float64, as a share of the largest number."""

grouped = st.lists(st.tuples(st.integers(0, 3), anything), min_size=1, max_size=24)


def split(pairs):
    """Values and group numbers as columns."""
    return np.array([v for _, v in pairs]), np.array([g for g, _ in pairs], dtype=np.int64)


@given(grouped)
def test_each_group_has_its_own_sum_mean_and_spread(pairs):
    """Sums, means, standard deviations and maxima of a group are those of its values alone."""
    values, groups = split(pairs)
    members = defaultdict(list)
    for group, value in pairs:
        members[group].append(value)
    sums, means = group_sums(values, Groups(groups, 5)), group_means(values, Groups(groups, 5))
    maxima = group_maxima(values, Groups(groups, 5))
    for group in range(5):
        own = members[group]
        scale = max(map(abs, own), default=1.0) or 1.0
        assert abs(sums[group] - math.fsum(own)) <= ROUNDING * scale
        assert abs(means[group] - (oracles.mean(own) if own else 0.0)) <= ROUNDING * scale
        assert maxima[group] == max(own, default=-math.inf)
        for ddof in (0, 1, 2):
            spread = group_standard_deviations(values, Groups(groups, 5), ddof=ddof)[group]
            assert abs(spread - (oracles.deviation(own, ddof) if own else 0.0)) <= ROUNDING * scale


@given(grouped, st.randoms(use_true_random=False))
def test_order_and_company_change_no_bit(pairs, random):
    """A group's sum and spread are the same to the last bit in any order, and with the other groups taken away."""
    values, groups = split(pairs)
    shuffled = list(pairs)
    random.shuffle(shuffled)
    others, their_groups = split(shuffled)
    assert group_sums(values, Groups(groups, 4)).tobytes() == group_sums(others, Groups(their_groups, 4)).tobytes()
    spread = group_standard_deviations(values, Groups(groups, 4), ddof=1)
    assert spread.tobytes() == group_standard_deviations(others, Groups(their_groups, 4), ddof=1).tobytes()
    own = values[groups == groups[0]]
    alone = group_standard_deviations(own, Groups(np.zeros(len(own), dtype=np.int64), 1), ddof=1)
    assert alone[0].tobytes() == spread[groups[0]].tobytes()


def test_too_few_values_have_no_spread():
    """A standard deviation without degrees of freedom is exactly 0."""
    assert group_standard_deviations(np.array([3.0]), Groups(np.array([0]), 2), ddof=1).tolist() == [0.0, 0.0]


uneven = st.lists(st.lists(anything, max_size=9), min_size=1, max_size=6)


@given(uneven, st.integers(0, 40), st.randoms(use_true_random=False))
def test_a_sum_is_taken_one_by_one_in_ascending_order(rows, n_empty, random):
    """Of even groups and uneven ones, in order and mixed: the bits are those of a loop."""
    pairs = [(group, value) for group, row in enumerate(rows) for value in row]
    n_groups = len(rows) + n_empty
    expected = np.zeros(n_groups)
    for group, row in enumerate(rows):
        for value in sorted(row):
            expected[group] += value
    for _ in range(2):
        values, groups = np.array([v for _, v in pairs]), np.array([g for g, _ in pairs], dtype=np.int64)
        before = values.tobytes()
        assert group_sums(values, Groups(groups, n_groups)).tobytes() == expected.tobytes()
        assert values.tobytes() == before
        random.shuffle(pairs)


def test_zeros_have_one_sum():
    """Negative zeros sum to +0, in groups of any shape."""
    for groups in ([0, 0], [0, 1], [0, 0, 1]):
        sums = group_sums(np.full(len(groups), -0.0), Groups(np.array(groups), 2))
        assert np.signbit(sums).tolist() == [False, False]


@pytest.mark.parametrize("n_columns", [1, 2, 3, 7, 64, 100])
@pytest.mark.parametrize("n", [1, 2, 8, 9, 64, 130])
def test_columns_are_added_from_first_to_last(n, n_columns):
    """A column's sums are those of a loop over its numbers, to the last bit, whatever stands beside it."""
    columns = np.random.default_rng(n).normal(size=(n, n_columns)) * 10.0 ** np.arange(n)[::-1, None]
    running = np.array([list(accumulate(column)) for column in columns.T.tolist()]).T
    assert added_up(columns).tobytes() == running[-1].tobytes()
    assert added_up(np.asfortranarray(columns)).tobytes() == running[-1].tobytes()
    assert running_sums(columns).tobytes() == running.tobytes()


@pytest.mark.parametrize("n_columns", [1, 2, 64])
@pytest.mark.parametrize("n", [1, 8, 64])
def test_sums_of_zeros_have_one_sign(n, n_columns):
    """Columns of −0, or of numbers times zero, sum to +0 in any company."""
    for columns in (np.full((n, n_columns), -0.0), np.full((n, n_columns), -3.0) * 0.0):
        assert added_up(columns).tobytes() == np.zeros(n_columns).tobytes()
