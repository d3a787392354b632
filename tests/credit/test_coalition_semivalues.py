import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import estimator_oracles as oracles
from credit.batches import EXACT
from creditd.credit.coalition_semivalues import (
    coalition_count,
    coalition_semivalues,
    coalitions_of_sizes,
    every_coalition,
    weighed_sizes,
)

weights_of = st.integers(1, 6).flatmap(
    lambda n: st.lists(st.sampled_from([0.0, 0.5, -1.0, 1.0 / 3.0]), min_size=n, max_size=n)
)


def random_game(n, seed):
    """Utilities by set, and a function of boolean rows."""
    values = np.random.default_rng(seed).normal(size=1 << n)
    game = {s: float(values[sum(1 << i for i in s)]) for s in oracles.every_subset(n)}
    return game, lambda rows: values[rows @ (1 << np.arange(n))]


@given(weights_of, st.integers(0, 50))
def test_semivalues_equal_the_mean_over_coalitions(weights, seed):
    """From the sizes that carry weight alone, the credit is the one by definition."""
    n = len(weights)
    game, utilities = random_game(n, seed)
    q = np.array(weights)
    rows = coalitions_of_sizes(n, weighed_sizes(q))
    assert len(rows) == coalition_count(n, weighed_sizes(q))
    got = coalition_semivalues(rows, utilities(rows), q)
    scale = max(map(abs, game.values())) * (1 + np.abs(q).sum())
    assert np.abs(got - oracles.semivalue(game, n, weights)).max() <= EXACT * scale


@given(st.integers(1, 6), st.integers(0, 50), st.randoms(use_true_random=False))
def test_orders_change_no_bit(n, seed, random):
    """Shuffling the coalitions changes no bit; renaming the players renames the credit to the last bit."""
    _, utilities = random_game(n, seed)
    rows = every_coalition(n)
    q = np.full(n, 1.0 / n)
    plain = coalition_semivalues(rows, utilities(rows), q)
    shuffled = random.sample(range(len(rows)), len(rows))
    assert coalition_semivalues(rows[shuffled], utilities(rows)[shuffled], q).tobytes() == plain.tobytes()
    names = random.sample(range(n), n)
    renamed = coalition_semivalues(rows[:, names], utilities(rows), q)
    assert renamed.tobytes() == plain[names].tobytes()


@given(st.integers(1, 6), st.integers(0, 50))
def test_uniform_weights_are_efficient(n, seed):
    """With q = 1/n the credits sum to v(N) − v(∅)."""
    _, utilities = random_game(n, seed)
    rows = every_coalition(n)
    values = coalition_semivalues(rows, utilities(rows), np.full(n, 1.0 / n))
    assert math.fsum(values) == pytest.approx(utilities(rows)[-1] - utilities(rows)[0], abs=1e-12)


def test_a_missing_coalition_is_an_error():
    """A size that carries weight has to be complete; other sizes may hold anything."""
    rows = every_coalition(4)
    with pytest.raises(ValueError, match=r"size 4 are missing: got 0, expected 1"):
        coalition_semivalues(rows[:-1], np.zeros(15), np.full(4, 0.25))
    assert coalition_semivalues(rows[1:], np.arange(15.0), np.array([0.0, 1.0, 0.0, 0.0])).shape == (4,)


def test_the_order_of_a_table():
    """Bit i of the row number is player i."""
    assert oracles.subsets_of_rows(every_coalition(2)) == [set(), {0}, {1}, {0, 1}]
    assert every_coalition(0).shape == (1, 0)
