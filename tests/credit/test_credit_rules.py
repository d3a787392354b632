import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit.batches import RULES, mixture_for
from creditd.credit import Blend, LeaveOneOut, MaxAtK, Mixture, OwnReward, Shapley
from creditd.credit.credit_rules import size_weights, without_null_players

ROUNDING = 1e-14
"""Weights are single divisions of small whole numbers."""


@pytest.mark.parametrize("n", [1, 2, 5, 256])
def test_size_weights_are_those_of_the_family(n):
    """q_{k−1} = w_k·k/K, with w_k = 1/k, e_K, e_1 and e_min(k, K)."""
    sizes = np.arange(1, n + 1)
    unit = np.eye(n)
    assert size_weights(Shapley(), n) == pytest.approx((1 / sizes) * sizes / n, abs=ROUNDING)
    assert size_weights(LeaveOneOut(), n) == pytest.approx(unit[-1] * n / n, abs=ROUNDING)
    assert size_weights(OwnReward(), n) == pytest.approx(unit[0] / n, abs=ROUNDING)
    for k in {1, 2, n, n + 3}:
        held = min(k, n)
        assert size_weights(MaxAtK(k=k), n) == pytest.approx(unit[held - 1] * held / n, abs=ROUNDING)
    mixture, (_, weights) = mixture_for(n)
    assert size_weights(mixture, n) == pytest.approx(np.array(weights) * sizes / n, abs=ROUNDING)


def test_named_rules_are_the_ends_of_the_family():
    """max@1 is own reward, max@K is leave-one-out, w_k = 1/k is Shapley, to the last bit."""
    for n in (1, 3, 8):
        assert size_weights(MaxAtK(k=1), n).tobytes() == size_weights(OwnReward(), n).tobytes()
        assert size_weights(MaxAtK(k=n), n).tobytes() == size_weights(LeaveOneOut(), n).tobytes()
        unit = tuple(float(k == n) for k in range(1, n + 1))
        assert size_weights(Mixture(unit), n).tobytes() == size_weights(LeaveOneOut(), n).tobytes()
        first = tuple(float(k == 1) for k in range(1, n + 1))
        assert size_weights(Mixture(first), n).tobytes() == size_weights(OwnReward(), n).tobytes()
        harmonic = tuple(1.0 / k for k in range(1, n + 1))
        assert size_weights(Mixture(harmonic), n) == pytest.approx(size_weights(Shapley(), n), abs=ROUNDING)


@given(st.integers(1, 7), st.integers(0, 5), st.data())
def test_null_players_leave_by_hypergeometric_odds(n, nulls, data):
    """A coalition counts by its members that matter: q'_t = Σ_s q_s·C(n−1, t)·C(K−n, s−t)/C(K−1, s), exactly."""
    total = n + nulls
    q = data.draw(st.lists(st.integers(-8, 8), min_size=total, max_size=total))
    expected = [
        sum(
            Fraction(q[s] * math.comb(n - 1, t) * math.comb(nulls, s - t), math.comb(total - 1, s))
            for s in range(t, total)
        )
        for t in range(n)
    ]
    got = without_null_players(np.array(q, dtype=np.float64), n)
    assert got == pytest.approx([float(x) for x in expected], abs=1e3 * ROUNDING)
    assert got.sum() == pytest.approx(sum(q), abs=1e3 * ROUNDING)


@pytest.mark.parametrize(("total", "n"), [(2, 1), (5, 3), (256, 2), (256, 255)])
def test_shapley_weights_stay_uniform_without_null_players(total, n):
    """1/K on every size becomes 1/n on every size."""
    got = without_null_players(np.full(total, 1.0 / total), n)
    assert got == pytest.approx(np.full(n, 1.0 / n), abs=total * ROUNDING)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 2.0, 3.0)])
def test_a_mixture_fits_one_size(weights):
    """A mixture for another number of candidates is refused."""
    with pytest.raises(ValueError, match="expected 2"):
        size_weights(Mixture(weights), 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaxAtK(k=0), "k ≥ 1"),
        (lambda: Mixture(()), "finite weights"),
        (lambda: Mixture((1.0, math.nan)), "finite weights"),
        (lambda: Blend(Shapley(), OwnReward(), -0.1), "position"),
        (lambda: Blend(Shapley(), OwnReward(), 1.1), "position"),
        (lambda: Blend(Shapley(), OwnReward(), math.nan), "position"),
    ],
)
def test_rules_without_meaning_are_refused(make, message):
    """A rule whose parameters mean nothing cannot be made."""
    with pytest.raises(ValueError, match=message):
        make()


def test_each_rule_has_its_own_name():
    """The type of a rule names it once."""
    names = [rule.type for rule, _ in RULES.values()] + [Mixture.type]
    assert len(set(names)) == len(names) == 8


def test_equal_weights_stay_exactly_equal():
    """Shapley weights beside any number of null players are equal to the last bit: a formula is chosen by that."""
    for total in range(2, 60):
        for n in range(1, total + 1):
            weights = without_null_players(size_weights(Shapley(), total), n)
            assert len(set(weights.tolist())) == 1
            assert abs(n * weights[0] - 1.0) < 1e-15 * n
