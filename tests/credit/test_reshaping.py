import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from credit import sensitivity_oracles
from creditd.credit import ReshapeOptions, reshape_weights

PUBLISHED = np.array([0.0, 0.1, 0.5, 1.0, 4.0])
"""The worked example: weights to six digits, from the published code on its first completion."""
PUBLISHED_WEIGHTS = [0.087724, 0.877242, 1.056937, 1.223612, 1.754484]
PUBLISHED_RAW = [0.1, 1.0, 1.204841, 1.394839, 2.0]
DIGITS = 1e-6
ROUNDING = 1e-12
NEAR_THRESHOLD = 1e-6
"""Two ways to the same quantile differ by rounding, and a place that close to it may fall on either side of it."""

sensitivities = st.lists(
    st.one_of(st.sampled_from([0.0, 0.25, 1.0, -0.5]), st.floats(-2, 50), st.floats(0, 1e-3)), max_size=24
).map(lambda values: np.array(values, dtype=np.float64))
options = st.builds(
    ReshapeOptions,
    quantile=st.one_of(st.sampled_from([0.0, 0.25, 0.5]), st.floats(0, 0.99)),
    beta=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 10)),
    floor=st.one_of(st.sampled_from([0.0, 0.1, 1.0]), st.floats(0, 1)),
    preserve_mass=st.booleans(),
)


def test_published_weights_come_back():
    """The worked example of the paper's code, its concentration included: ESS/L .7728, and .3509 for the top tenth."""
    found = reshape_weights(PUBLISHED, ReshapeOptions())
    np.testing.assert_allclose(found.weights, PUBLISHED_WEIGHTS, rtol=0, atol=DIGITS)
    assert found.weight_sum == pytest.approx(5.0, abs=ROUNDING)
    assert found.effective_share == pytest.approx(0.7728, abs=5e-5)
    assert found.top_share == pytest.approx(0.3509, abs=5e-5)
    assert not found.flat
    raw = reshape_weights(PUBLISHED, ReshapeOptions(preserve_mass=False))
    np.testing.assert_allclose(raw.weights, PUBLISHED_RAW, rtol=0, atol=DIGITS)


@given(values=sensitivities, chosen=options)
def test_weights_are_those_of_the_formula(values, chosen):
    """Every weight is that of the formula, evaluated token by token."""
    if not sensitivity_oracles.is_flat(values.tolist()):
        found = sensitivity_oracles.levels(values.tolist())
        places = [(level - min(found)) / (max(found) - min(found)) for level in found]
        threshold = sensitivity_oracles.quantile(places, chosen.quantile)
        assume(all(x == threshold or abs(x - threshold) > ROUNDING for x in places))
        # Where the threshold is rounding itself, both branches differ by more than rounding.
        assume(threshold == 0 or threshold > NEAR_THRESHOLD)
        # What is divided by 1 − τ there is divided by the guard alone.
        assume(threshold < 1 - NEAR_THRESHOLD)
    expected = sensitivity_oracles.weights(
        values.tolist(),
        q=chosen.quantile,
        beta=chosen.beta,
        floor=chosen.floor,
        preserve_mass=chosen.preserve_mass,
    )
    np.testing.assert_allclose(reshape_weights(values, chosen).weights, expected, rtol=1e-8, atol=1e-8)


@given(values=sensitivities, chosen=options)
def test_mass_is_preserved_or_bounded(values, chosen):
    """Weights are not negative; they sum to L, or lie between the floor and 1 + β."""
    found = reshape_weights(values, chosen)
    assert found.weights.shape == values.shape
    assert (found.weights >= 0).all()
    assert found.weight_sum == pytest.approx(math.fsum(found.weights), rel=ROUNDING, abs=ROUNDING)
    if chosen.preserve_mass or found.flat:
        assert found.weight_sum == pytest.approx(len(values), rel=ROUNDING)
    else:
        assert found.weights.min() >= min(chosen.floor, 1.0)
        assert found.weights.max() <= (1 + chosen.beta) * (1 + ROUNDING)


@given(values=sensitivities, chosen=options)
def test_weights_are_ordered_as_sensitivities_are(values, chosen):
    """A token that matters more never weighs less, and equals weigh the same to the last bit."""
    order = np.argsort(values, kind="stable")
    found = reshape_weights(values, chosen).weights[order]
    assert (np.diff(found) >= -ROUNDING * found[1:]).all()
    same = np.diff(values[order]) == 0
    assert (np.diff(found)[same] == 0).all()


@given(values=sensitivities, chosen=options, data=st.data())
def test_a_permutation_permutes_the_weights(values, chosen, data):
    """The weight of a token does not depend on where it stands, nor do the measures of all, to the last bit."""
    order = np.array(data.draw(st.permutations(range(len(values)))), dtype=np.int64)
    one, other = reshape_weights(values, chosen), reshape_weights(values[order], chosen)
    np.testing.assert_array_equal(one.weights[order], other.weights)
    assert (one.weight_sum, one.effective_share, one.top_share) == (
        other.weight_sum,
        other.effective_share,
        other.top_share,
    )


@given(values=sensitivities, chosen=options)
def test_concentration_is_what_it_is_called(values, chosen):
    """ESS/L and the share of the heaviest tenth are those of the weights, and at most 1."""
    found = reshape_weights(values, chosen)
    if not len(values):
        assert (found.weight_sum, found.effective_share, found.top_share) == (0.0, None, None)
        return
    total, squares = math.fsum(found.weights), math.fsum(found.weights**2)
    top = sorted(found.weights.tolist(), reverse=True)[: -(-len(values) // 10)]
    assert found.effective_share == pytest.approx(total**2 / (len(values) * squares), rel=1e-9)
    assert found.top_share == pytest.approx(math.fsum(top) / total, rel=1e-9)
    assert 0 < found.effective_share <= 1 + ROUNDING
    assert 0 < found.top_share <= 1 + ROUNDING


@given(
    value=st.floats(-5, 1e6),
    count=st.integers(2, 20),
    chosen=options,
    noise=st.floats(0, 0.5),
)
def test_what_is_flat_has_weights_of_one(value, count, chosen, noise):
    """Equal sensitivities, or such that differ by rounding of a float32 model, give weights that are exactly 1."""
    values = np.full(count, value)
    levels = math.log1p(max(value, 0.0))
    values[0] = max(math.expm1(levels * (1 - noise * 1e-5)), 0.0) if value > 0 else value
    found = reshape_weights(values, chosen)
    assert found.flat
    np.testing.assert_array_equal(found.weights, np.ones(count))
    assert (found.effective_share, found.weight_sum) == (1.0, float(count))


def test_where_flat_ends():
    """The range counts relative to the largest level, and absolutely where the caller says so."""
    chosen = ReshapeOptions()
    apart = np.array([1.0, 1.0, math.expm1(math.log1p(1.0) * (1 + 1.1e-5))])
    near = np.array([1.0, 1.0, math.expm1(math.log1p(1.0) * (1 + 0.9e-5))])
    assert not reshape_weights(apart, chosen).flat
    assert reshape_weights(near, chosen).flat
    assert not reshape_weights(np.array([0.0, 1e-12, 2e-12]), chosen).flat
    assert reshape_weights(np.array([0.0, 1e-12, 2e-12]), chosen, least_range=1e-6).flat
    assert not reshape_weights(np.array([0.0, 2e-6]), chosen, least_range=1e-6).flat
    assert reshape_weights(np.array([3.0]), chosen).flat


@given(values=sensitivities, chosen=options)
def test_only_the_positive_part_counts(values, chosen):
    """A signed sensitivity below 0 is none: no logarithm of a negative number is taken."""
    np.testing.assert_array_equal(
        reshape_weights(values, chosen).weights, reshape_weights(np.maximum(values, 0.0), chosen).weights
    )
    assert np.isfinite(reshape_weights(values - 3.0, chosen).weights).all()


def test_limits_of_the_knobs():
    """Floor 1 and β = 0 give GRPO; q = 0 weighs nothing down; β boosts the most important token."""
    none = reshape_weights(PUBLISHED, ReshapeOptions(floor=1.0, beta=0.0, preserve_mass=False))
    np.testing.assert_array_equal(none.weights, np.ones(5))
    up = reshape_weights(PUBLISHED, ReshapeOptions(quantile=0.0, preserve_mass=False)).weights
    assert up.min() == 1.0
    assert up.max() == pytest.approx(2.0)
    assert reshape_weights(PUBLISHED, ReshapeOptions(beta=3.0, preserve_mass=False)).weights.max() == pytest.approx(4.0)
    down = reshape_weights(PUBLISHED, ReshapeOptions(floor=0.0, preserve_mass=False)).weights
    assert down.min() == 0.0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"quantile": 1.0}, "quantile: got 1.0"),
        ({"quantile": -0.1}, "quantile: got -0.1"),
        ({"quantile": math.nan}, "quantile: got nan"),
        ({"beta": -1.0}, "beta: got -1.0"),
        ({"beta": math.inf}, "beta: got inf"),
        ({"floor": 1.5}, "floor: got 1.5"),
        ({"floor": math.nan}, "floor: got nan"),
    ],
)
def test_options_outside_their_ranges_are_refused(wrong, said):
    """Each option says what it got and what was expected."""
    with pytest.raises(ValueError, match=said):
        ReshapeOptions(**wrong)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_an_error(value):
    """NaN and infinities are never replaced; the first is named."""
    with pytest.raises(ValueError, match="sensitivity 1: got"):
        reshape_weights(np.array([1.0, value, value]), ReshapeOptions())


def test_shapes_and_ranges_are_checked():
    """Sensitivities have one axis, and a range is not negative."""
    with pytest.raises(ValueError, match=r"got shape \(1, 2\)"):
        reshape_weights(np.ones((1, 2)), ReshapeOptions())
    with pytest.raises(ValueError, match="least_range: got -1"):
        reshape_weights(np.ones(2), ReshapeOptions(), least_range=-1.0)
