import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import group_oracles
from creditd.credit import Whitening
from creditd.credit.whitening import whitened

AGREEMENT = 1e-11
"""Sums over at most a few hundred tokens, divided by spreads of at least 1/100 of the values."""

values = st.integers(-40, 40).map(lambda n: n / 16)
conventions = st.sampled_from(["trl", "verl", "openrlhf"])


def arrays(pairs):
    """Values and tokens of (value, tokens) pairs."""
    return np.array([x for x, _ in pairs], dtype=np.float64), np.array([n for _, n in pairs], dtype=np.int64)


@given(
    st.lists(st.tuples(values, st.integers(0, 30)), min_size=1, max_size=12),
    conventions,
    st.booleans(),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([None, 1e-2]),
)
def test_a_request_is_whitened_as_if_every_token_stood_there(pairs, convention, lengths, ddof, epsilon):
    """Weighted sums equal plain statistics over values that are written down once per token."""
    x, n = arrays(pairs)
    found = whitened(x, Whitening(convention, ddof=ddof, epsilon=epsilon), n if lengths else None)
    usual = group_oracles.CONVENTIONS[convention]
    how = group_oracles.WhiteningOfTokens(
        convention, usual.ddof if ddof is None else ddof, usual.epsilon if epsilon is None else epsilon
    )
    expected = group_oracles.whitened(x.tolist(), n.tolist() if lengths else None, how)
    assert found == pytest.approx(expected, rel=AGREEMENT, abs=AGREEMENT)


@given(st.lists(st.tuples(values, st.integers(1, 30)), min_size=2, max_size=12), conventions)
def test_a_whitened_request_is_centred_and_order_changes_no_bit(pairs, convention):
    """Σ L·A = 0, a spread of at most 1, and reversed responses have the same bits."""
    x, n = arrays(pairs)
    found = whitened(x, Whitening(convention), n)
    counts = n if convention != "trl" else np.ones_like(n)
    assert abs(math.fsum((counts * found).tolist())) <= 1e-12 * max(1.0, float((counts * np.abs(found)).sum()))
    assert whitened(x[::-1], Whitening(convention), n[::-1]).tobytes() == found[::-1].tobytes()
    squares = math.fsum((counts * found * found).tolist())
    assert squares <= counts.sum() * (1.0 + 1e-9)


@pytest.mark.parametrize(
    ("convention", "winner"),
    [
        ("trl", 1.0 / (math.sqrt(2.0) + 1e-4)),
        ("verl", 1.5 / math.sqrt(1.0 + 1e-8)),
        ("openrlhf", 1.5 / math.sqrt(0.75)),
    ],
)
def test_worked_values_of_the_conventions(convention, winner):
    """The values ±1 over one and three tokens have mean −½, s² = 1 with ddof 1 and ¾ with ddof 0.

    As two responses they have mean 0 and s² = 2.
    """
    found = whitened(np.array([1.0, -1.0]), Whitening(convention), np.array([1, 3]))
    loser = -winner if convention == "trl" else -winner / 3.0
    assert found == pytest.approx([winner, loser], rel=1e-14)


def test_a_floor_under_the_variance_is_not_a_sum():
    """`openrlhf` takes the larger of s² and ε, `verl` their sum, `trl` adds ε to s."""
    x = np.array([0.0, 2.0])
    found = {
        name: float(whitened(x, Whitening(name, ddof=0, epsilon=epsilon))[1])
        for name, epsilon in (("trl", 3.0), ("verl", 8.0), ("openrlhf", 4.0))
    }
    assert found == {"trl": 0.25, "verl": pytest.approx(1 / 3, rel=1e-15), "openrlhf": 0.5}
    assert whitened(x, Whitening("openrlhf", epsilon=0.25))[1] == 1.0


@pytest.mark.parametrize("convention", ["trl", "verl", "openrlhf"])
@pytest.mark.parametrize(("x", "n"), [([], []), ([0.7], [3]), ([0.1, 0.1, 0.1], [1, 2, 3])])
def test_without_a_spread_everything_is_zero(convention, x, n):
    """Nothing, one value or equal values: exactly 0."""
    found = whitened(np.array(x, dtype=np.float64), Whitening(convention), np.array(n, dtype=np.int64))
    assert found.tolist() == [0.0] * len(x)


@pytest.mark.parametrize("convention", ["verl", "openrlhf"])
def test_responses_without_tokens_do_not_count(convention):
    """A response of no tokens has an advantage, but no part in mean and spread; if only equal ones count, all are 0."""
    x = np.array([1.0, 0.0, 9.0])
    found = whitened(x, Whitening(convention), np.array([5, 5, 0]))
    assert found[:2].tobytes() == whitened(x[:2], Whitening(convention), np.array([5, 5])).tobytes()
    assert found[2] == pytest.approx(17.0 * found[0], rel=1e-12)
    assert whitened(x, Whitening(convention), np.array([0, 0, 4])).tolist() == [0.0, 0.0, 0.0]
    assert whitened(x, Whitening(convention), np.array([0, 0, 0])).tolist() == [0.0, 0.0, 0.0]
    assert whitened(x[:2], Whitening(convention, ddof=1), np.array([1, 0])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("convention", ["trl", "verl", "openrlhf"])
def test_tiny_values_keep_their_contrast(convention):
    """Squares of values near 1e-200 leave float64, their spread does not."""
    found = whitened(np.array([1e-200, 3e-200]), Whitening(convention, ddof=0, epsilon=0.0))
    assert found == pytest.approx([-1.0, 1.0], rel=1e-12)


def test_what_makes_no_sense_is_refused():
    """Tokens fit the values and are not negative; nor are ddof and ε."""
    x = np.array([1.0, 0.0])
    for tokens in ([1], [1, -1]):
        with pytest.raises(ValueError, match="n_tokens"):
            whitened(x, Whitening("verl"), np.array(tokens))
    for options in ({"ddof": -1}, {"epsilon": -1e-9}):
        with pytest.raises(ValueError, match="must not be negative"):
            Whitening("trl", **options)
