import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.credit.coalitions import binomials, chance_of_drawing_none, check_size_weights

ROUNDING = 2.0**-53


def test_binomial_coefficients_are_exact_while_float64_can_hold_them():
    """Pascal's triangle equals whole-number binomials up to 56, and to rounding above."""
    assert all(binomials(64)[a, b] == math.comb(a, b) for a in range(57) for b in range(a + 1))
    assert binomials(1024)[1000, 500] == pytest.approx(math.comb(1000, 500), rel=1000 * ROUNDING)


@given(st.integers(1, 1000), st.data())
def test_the_chance_of_drawing_none_is_a_ratio_of_binomials(players, data):
    """C(s − u, k) / C(s, k) in whole numbers, up to a thousand players, also where the draw takes everyone."""
    marked, drawn = data.draw(st.integers(0, players)), data.draw(st.integers(1, 1200))
    k = min(players, drawn)
    expected = Fraction(math.comb(players - marked, k), math.comb(players, k))
    got = chance_of_drawing_none(np.array([float(players)] * 2), np.array([float(marked), 0.0]), drawn)
    assert got[0] == pytest.approx(float(expected), rel=2 * players * ROUNDING, abs=0.0)
    assert got[1] == 1.0


def test_an_empty_draw_misses_everyone():
    """A coalition of nobody has nobody to draw; more marked players than there are cannot be missed."""
    assert chance_of_drawing_none(np.zeros(1), np.zeros(1), 3).tolist() == [1.0]
    assert chance_of_drawing_none(np.array([2.0]), np.array([3.0]), 1).tolist() == [0.0]
    assert chance_of_drawing_none(np.empty(0), np.empty(0), 1).shape == (0,)


@pytest.mark.parametrize(("weights", "n", "message"), [(np.ones(0), 0, "n ≥ 1"), (np.ones(2), 3, "expected \\(3,\\)")])
def test_weights_that_do_not_fit_are_refused(weights, n, message):
    """There is one weight per coalition size, and somebody to play."""
    check_size_weights(np.ones(3), 3)
    with pytest.raises(ValueError, match=message):
        check_size_weights(weights, n)
