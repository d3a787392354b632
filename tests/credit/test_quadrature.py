import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.credit.quadrature import gauss_legendre, presence_nodes, size_parts, three_rules_only


@pytest.mark.parametrize("n_nodes", [1, 2, 5, 32, 100, 500])
def test_polynomials_are_integrated_exactly(n_nodes):
    """As many nodes as m integrate every power below 2m of t and of 1 − t over [0, 1], with small relative errors."""
    nodes, weights = gauss_legendre(n_nodes)
    assert np.all((nodes > 0.0) & (nodes < 1.0) & (np.diff(nodes, prepend=0.0) > 0.0))
    for power in range(2 * n_nodes):
        exact = pytest.approx(1.0 / (power + 1), rel=1e-13)
        assert math.fsum(weights * nodes**power) == exact
        assert math.fsum(weights * (1.0 - nodes) ** power) == exact


@given(st.integers(1, 9), st.floats(-2, 2), st.floats(-2, 2), st.floats(-2, 2))
def test_parts_add_up_to_the_weights(n, first, even, last):
    """Any sum of own reward, Shapley and leave-one-out is taken apart, and put together again."""
    q = np.full(n, even)
    q[0] += first
    q[-1] += last
    parts = size_parts(q)
    again = np.full(n, parts.even)
    again[0] += parts.first
    again[-1] += parts.last
    assert np.abs(again - q).max() <= 1e-12


@given(st.integers(1, 9))
def test_nodes_give_every_coalition_size_its_weight(n):
    """The probability that s of n − 1 others are present, averaged over the nodes, is q_s."""
    q = np.full(n, 0.3)
    q[0], q[-1] = 0.7, -0.2
    parts = size_parts(q)
    nodes, weights = presence_nodes(parts, n)
    for s in range(n):
        chances = math.comb(n - 1, s) * nodes**s * (1.0 - nodes) ** (n - 1 - s)
        assert math.fsum(weights * chances) + (parts.first if s == 0 else 0.0) == pytest.approx(q[s], abs=1e-13)


def test_rounding_of_even_weights_is_forgiven():
    """Weights that were computed as 1/n in another way still are those of Shapley; others have no parts."""
    q = np.full(8, 1.0 / 8)
    assert size_parts(q + 1e-15 * np.arange(8)) is not None
    assert size_parts(q + 1e-9 * np.arange(8)) is None
    with pytest.raises(ValueError, match="log_sum_exp has credit for Shapley, leave-one-out and own reward only"):
        three_rules_only("log_sum_exp", q + 1e-9 * np.arange(8))
