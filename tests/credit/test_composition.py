import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import composition_oracles as oracles
from creditd.credit import (
    CandidateSets,
    Max,
    MaxShare,
    SetCreditOptions,
    additive_advantages,
    balanced_tree,
    bounded_advantages,
    owen_values,
    set_credit,
    span_credits,
    unit_contrasts,
)

ENUMERATED = 1e-12
"""Credits equal their enumeration to this share of the largest utility."""
ROUNDING = 1e-12
"""Masses close to this share of the largest magnitude in them."""

worths = st.floats(-1, 1).map(lambda value: round(value, 12)) | st.sampled_from([0.0, -0.0, 0.5, -0.25])
scales = st.sampled_from([1e-3, 1.0, 1e6])
lengths_of = st.lists(st.integers(1, 40), min_size=1, max_size=12)
shares = st.floats(0, 1)
weights = st.floats(1e-3, 1e3)
advantages = st.floats(-10, 10) | st.sampled_from([0.0, -0.0, 1e-300, -1e12])


@st.composite
def texts_of_candidates(draw, max_candidates=3, max_units=3):
    """Tables of the partial texts of some candidates, of equal scale."""
    scale = draw(scales)
    sizes = draw(st.lists(st.integers(1, max_units), min_size=1, max_size=max_candidates))
    return [
        [scale * worth for worth in draw(st.lists(worths, min_size=1 << size, max_size=1 << size))] for size in sizes
    ]


@st.composite
def units_with_credit(draw):
    """Credits of units and their lengths: of any size, cancelling, vanishing, or all of one density."""
    lengths = draw(lengths_of)
    kind = draw(st.sampled_from(["any", "cancel", "none", "even", "offset", "mixed"]))
    n = len(lengths)
    values = draw(st.lists(st.floats(-1e3, 1e3), min_size=n, max_size=n))
    if kind == "cancel":
        values[-1] = -math.fsum(values[:-1])
    elif kind == "none":
        values = [0.0] * n
    elif kind == "even":
        values = [0.25 * length for length in lengths]
    elif kind == "offset":
        values = [value + 1e9 * length for value, length in zip(values, lengths, strict=True)]
    elif kind == "mixed":
        powers = draw(st.lists(st.integers(-200, 80), min_size=n, max_size=n))
        values = [math.copysign(10.0**power, value) for power, value in zip(powers, values, strict=True)]
    return np.array(values), np.array(lengths)


def own_share(tables, k, **options):
    """The share of candidate k among the whole texts of the others."""
    others = [table[-1] for place, table in enumerate(tables) if place != k]
    return MaxShare(np.array(others, dtype=np.float64), **options)


def credits_of(tables, **options):
    """Credits of the units of all candidates."""
    return [span_credits(own_share(tables, k, **options).of_table(np.array(table))) for k, table in enumerate(tables)]


def scale_of(tables, empty=0.0):
    """The largest magnitude of a utility."""
    return max(abs(empty), *(abs(worth) for table in tables for worth in table[1:]))


@given(texts_of_candidates(), st.sampled_from([0.0, 0.25, -2.0]))
def test_span_credits_equal_the_mean_over_all_orders_of_candidates_and_of_their_units(tables, empty):
    """Units of candidates that arrive as blocks: the two-level Owen value, from partial texts of one candidate each."""
    expected = oracles.span_credits_by_orders(tables, empty=empty)
    found = credits_of(tables, empty=empty)
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= ENUMERATED * max(scale_of(tables, empty), 1e-300)


@given(texts_of_candidates(max_candidates=4, max_units=3))
def test_span_credits_equal_owen_values_of_the_game_between_all_units(tables):
    """The kernel of unions finds the same in the game of all units of all candidates, 2^(Σ m) utilities of it."""
    sizes = [len(table).bit_length() - 1 for table in tables]
    places = np.cumsum([0, *sizes])
    game = [
        oracles.best_of(tables, [mask >> place & ((1 << size) - 1) for place, size in zip(places, sizes, strict=False)])
        for mask in range(1 << sum(sizes))
    ]
    unions = np.repeat(np.arange(len(sizes)), sizes)
    expected = owen_values(np.array([game]), unions[None])[0]
    assert np.abs(np.concatenate(credits_of(tables)) - expected).max() <= ENUMERATED * max(scale_of(tables), 1e-300)


@given(texts_of_candidates(max_units=4), st.randoms(use_true_random=False))
def test_span_credits_over_a_tree_equal_the_mean_over_its_orders(tables, random):
    """Of one candidate the units arrive as blocks of any tree; the other candidates arrive whole."""
    size = len(tables[0]).bit_length() - 1
    left, merges = list(range(size)), []
    for merge in range(size - 1):
        merges.append(tuple(left.pop(random.randrange(len(left))) for _ in range(2)))
        left.append(size + merge)
    whole = [tables[0], *([0.0, table[-1]] for table in tables[1:])]
    expected = oracles.span_credits_by_orders(whole, trees={0: merges})[0]
    tree = np.array(merges, dtype=np.int64).reshape(-1, 2)
    found = span_credits(own_share(tables, 0).of_table(np.array(tables[0])), tree)
    assert np.abs(found - expected).max() <= ENUMERATED * max(scale_of(tables), 1e-300)


@given(texts_of_candidates(max_candidates=5, max_units=4))
def test_span_credits_sum_to_the_credit_of_their_candidate(tables):
    """Σ x_j = φ, the Shapley value that the kernel of sorted rewards finds from whole texts."""
    rewards = np.array([table[-1] for table in tables])
    batch = CandidateSets(rewards, np.array([0, len(rewards)]), np.array([0]), 1)
    credit = set_credit(batch, SetCreditOptions()).credits
    for one, of_candidate in zip(credits_of(tables), credit, strict=True):
        assert abs(math.fsum(one) - of_candidate) <= ENUMERATED * max(scale_of(tables), 1e-300)


def test_candidates_of_one_unit_have_its_credit():
    """Unions of single players: the Owen value is the Shapley value (.9, .5, .5, .1)."""
    tables = [[0.0, reward] for reward in (0.9, 0.5, 0.5, 0.1)]
    found = np.concatenate(credits_of(tables))
    assert found.tolist() == pytest.approx([0.55833333333, 0.15833333333, 0.15833333333, 0.025], abs=1e-10)


@given(st.floats(-10, 10), st.lists(st.floats(-10, 10), max_size=6), st.sampled_from([0.0, 1.5, -20.0]))
def test_the_share_of_a_candidate_is_its_gain_over_all_coalitions(worth, others, empty):
    """f(y) is the Shapley value of max of a candidate of worth y, and the double sum over the others."""
    found = float(MaxShare(np.array(others), empty)(np.array(worth)))
    scale = max(1.0, abs(empty), abs(worth), *map(abs, others))
    assert abs(found - oracles.share_by_coalitions(worth, others, empty)) <= ENUMERATED * scale
    if empty == 0.0:
        assert abs(found - oracles.share_by_sums(worth, others)) <= ENUMERATED * scale


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=5), st.floats(-2, 2))
def test_a_floor_is_the_floor_of_the_utility(rewards, floor):
    """With a floor the share is the credit that the kernel finds under the same utility."""
    batch = CandidateSets(np.array(rewards), np.array([0, len(rewards)]), np.array([0]), 1)
    credit = set_credit(batch, SetCreditOptions(utility=Max(floor=floor))).credits
    for k, reward in enumerate(rewards):
        share = MaxShare(np.delete(np.array(rewards), k), floor=floor)
        assert float(share(np.array(reward))) == pytest.approx(credit[k], abs=1e-12 * 4)
        assert float(share(np.array(floor))) == 0.0


@given(st.lists(st.floats(-5, 5), max_size=6), st.lists(st.floats(-5, 5), min_size=2, max_size=20))
def test_the_share_never_falls_and_rises_by_at_most_one(others, worths_):
    """Between 1/K and 1 of each reward unit that a text gains is the candidate's."""
    ordered = np.sort(np.array(worths_))
    rise = np.diff(MaxShare(np.array(others))(ordered))
    gain = np.diff(ordered)
    assert (rise <= gain + 1e-12).all()
    assert (rise >= gain / (len(others) + 1) - 1e-12).all()


def test_the_order_of_the_others_changes_no_bit():
    """The others are sorted before anything is added."""
    rng = np.random.default_rng(3)
    others, y = rng.normal(size=9), rng.normal(size=40)
    expected = MaxShare(others)(y).tobytes()
    for _ in range(5):
        assert MaxShare(rng.permutation(others))(y).tobytes() == expected


def test_what_stands_for_no_unit_is_not_looked_at():
    """A candidate without text is absent, whatever is said of the empty text; the caller's table stays as it is."""
    table = np.array([math.nan, 0.5, 0.25, 1.0])
    game = MaxShare(np.array([0.6])).of_table(table)
    assert game[0] == 0.0
    assert np.isnan(table[0])
    assert np.isfinite(span_credits(game)).all()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (([math.nan],), "finite"),
        (([0.0], math.inf), "finite"),
        (([[0.0]],), "finite"),
        (([0.0], 0.5, 0.25), "empty and floor both define"),
        (([0.0], 0.0, math.nan), "empty and floor both define"),
    ],
)
def test_shares_of_what_is_no_reward_are_refused(arguments, reason):
    """NaN and infinities, and two definitions of v(∅)."""
    with pytest.raises(ValueError, match=reason):
        MaxShare(np.array(arguments[0]), *arguments[1:])


def test_trees_that_do_not_fit_are_refused():
    """A tree has one merge less than there are units."""
    game = np.arange(4.0)
    with pytest.raises(ValueError, match="2 merges, expected 1"):
        span_credits(game, np.array([[0, 1], [2, 2]]))
    with pytest.raises(ValueError, match="power of two"):
        span_credits(np.zeros(3))


def test_a_candidate_without_units_has_no_credits():
    """The table of no unit has one number."""
    assert span_credits(np.zeros(1)).tolist() == []
    assert span_credits(np.zeros(1), balanced_tree(1)).tolist() == []


def test_a_text_utility_is_wrapped_and_the_text_without_units_is_worth_nothing():
    """A judge of texts becomes one of what they are worth to the set; what it refuses stays refused."""
    asked = []

    def judge(prompt, text):
        asked.append((prompt, text))
        return {"good": 1.0, "poor": 0.2, "odd": None}[text]

    share = MaxShare(np.array([0.5, 0.1]))
    wrapped = share.of_texts(judge)
    assert wrapped("p", "") == 0.0
    assert wrapped("p", "good") == float(share(np.array(1.0)))
    assert wrapped("p", "poor") == float(share(np.array(0.2)))
    assert math.isnan(wrapped("p", "odd"))
    assert asked == [("p", "good"), ("p", "poor"), ("p", "odd")]
    assert share.of_texts(judge, absent=" ")("p", " ") == 0.0


def test_a_text_utility_of_batches_is_asked_about_texts_with_units_alone():
    """One call per call, without the texts that have no unit; none where all have none."""
    calls = []

    def judge(prompts, texts):
        calls.append((prompts, texts))
        return [float(len(text)) if text != "odd" else None for text in texts]

    share = MaxShare(np.array([2.5]))
    wrapped = share.of_text_batches(judge)
    found = wrapped(["a", "b", "c", "d"], ["", "ab", "odd", "abcd"])
    assert found[[0, 1, 3]].tolist() == [0.0, float(share(np.array(2.0))), float(share(np.array(4.0)))]
    assert math.isnan(found[2])
    assert wrapped(["a"], [""]).tolist() == [0.0]
    assert calls == [(["b", "c", "d"], ["ab", "odd", "abcd"])]
    with pytest.raises(ValueError, match="gave 1 values, expected 2"):
        share.of_text_batches(lambda _prompts, _texts: [1.0])(["a", "b"], ["a", "b"])


@given(units_with_credit())
def test_contrasts_cancel_over_the_tokens(units):
    """Σ ℓ_j·d_j = 0 to the rounding of the contrasts themselves, whatever offset all densities share."""
    values, lengths = units
    contrasts = unit_contrasts(values, lengths)
    mass = math.fsum((lengths * contrasts).tolist())
    assert abs(mass) <= ROUNDING * max(float(np.abs(lengths * contrasts).max()), 1e-300)


@given(lengths_of, st.floats(-1e6, 1e6))
def test_an_even_share_has_no_contrast(lengths, density):
    """Credits in proportion to lengths are exactly 0 apart: their rounding is no signal, whatever divides by it."""
    values = np.array([density * length for length in lengths])
    assert unit_contrasts(values, np.array(lengths)).tolist() == [0.0] * len(lengths)


def test_contrasts_below_the_rounding_of_the_utilities_are_none():
    """Credits that are differences of large utilities differ by more than the rounding of those, or not at all."""
    values, lengths = np.array([1e-5, -1e-5]), np.array([1, 1])
    assert unit_contrasts(values, lengths).tolist() == [1e-5, -1e-5]
    assert unit_contrasts(values, lengths, scale=1e8).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("values", "lengths", "reason"),
    [
        ([1.0, 2.0], [1], "one length per credit"),
        ([math.nan, 2.0], [1, 1], "not finite"),
        ([1.0, 2.0], [1, 0], "without tokens"),
    ],
)
def test_units_that_do_not_fit_are_refused(values, lengths, reason):
    """A length for each credit, a token for each unit, a number for each credit."""
    with pytest.raises(ValueError, match=reason):
        unit_contrasts(np.array(values), np.array(lengths))


@given(units_with_credit(), advantages, st.floats(0, 1e5), shares, weights)
def test_additive_keeps_the_mass_of_any_credits(units, advantage, slope, share, weight):
    """Σ ℓ_j·Â_j = ω·L·A whatever the credits are, zero, negative, cancelling or vanishing."""
    values, lengths = units
    tokens = int(lengths.sum())
    found = additive_advantages(
        advantage, unit_contrasts(values, lengths), tokens, slope=slope, share=share, length_weight=weight
    )
    mass = math.fsum((lengths * found).tolist())
    largest = max(float(np.abs(lengths * found).max()), abs(weight * tokens * advantage), 1e-300)
    assert abs(mass - weight * tokens * advantage) <= ROUNDING * largest


@given(units_with_credit(), advantages, st.floats(0, 1e3), shares, weights)
def test_additive_equals_its_formula(units, advantage, slope, share, weight):
    """ω·[A + λ·s·L·d_j], in fractions of the same numbers."""
    values, lengths = units
    found = additive_advantages(
        advantage, unit_contrasts(values, lengths), int(lengths.sum()), slope=slope, share=share, length_weight=weight
    )
    expected = oracles.additive_by_fractions(
        advantage, values.tolist(), lengths.tolist(), slope=slope, share=share, length_weight=weight
    )
    scale = weight * (abs(advantage) + slope * int(lengths.sum()) * float(np.abs(values).max()))
    for one, other in zip(found.tolist(), expected, strict=True):
        assert abs(one - float(other)) <= 4e-12 * max(scale, 1e-300)


@given(units_with_credit(), advantages, shares, weights)
def test_bounded_turns_no_sign_and_keeps_both_masses(units, advantage, share, weight):
    """Signed and absolute mass are the candidate's, no token is against it, and none is moved by more than λ·|A|."""
    values, lengths = units
    found = bounded_advantages(advantage, unit_contrasts(values, lengths), share=share, length_weight=weight)
    own = weight * advantage
    assert (found * math.copysign(1.0, advantage) >= 0.0).all()
    assert (np.abs(found - own) <= abs(own) * (share + ROUNDING) + 1e-320).all()
    tokens = int(lengths.sum())
    for masses in (lengths * found, lengths * np.abs(found)):
        total = math.fsum(masses.tolist())
        assert abs(abs(total) - abs(tokens * own)) <= ROUNDING * max(abs(tokens * own), 1e-300)


@given(units_with_credit(), st.floats(-1e3, 1e3), shares, weights)
def test_bounded_equals_its_formula(units, advantage, share, weight):
    """ω·[A + |A|·λ·d_j/max|d|], in fractions of the same numbers."""
    values, lengths = units
    contrasts = unit_contrasts(values, lengths)
    found = bounded_advantages(advantage, contrasts, share=share, length_weight=weight)
    if not contrasts.any():
        assert found.tolist() == [weight * advantage] * len(lengths)
        return
    exact = [
        one - sum(values.tolist()) / int(lengths.sum()) * length for one, length in zip(values, lengths, strict=True)
    ]
    if max(map(abs, exact)) <= 1e-6 * float(np.abs(values).max()):
        return  # few digits of the contrast are left in the numbers, and the fractions see others
    expected = oracles.bounded_by_fractions(
        advantage, values.tolist(), lengths.tolist(), share=share, length_weight=weight
    )
    for one, other in zip(found.tolist(), expected, strict=True):
        assert abs(one - float(other)) <= 1e-9 * max(weight * abs(advantage), 1e-300)


@given(units_with_credit(), shares, weights)
def test_no_advantage_stays_none(units, share, weight):
    """A = 0 gives exactly 0 on every token, bounded."""
    values, lengths = units
    found = bounded_advantages(0.0, unit_contrasts(values, lengths), share=share, length_weight=weight)
    assert found.tolist() == [0.0] * len(lengths)


def test_the_full_share_of_the_worst_unit_is_nothing():
    """Bounded with λ = 1 takes all from the unit that is furthest below, exactly, and doubles none beyond."""
    found = bounded_advantages(2.0, unit_contrasts(np.array([0.0, 1.0, 0.5]), np.array([1, 1, 1])), share=1.0)
    assert found.tolist() == [0.0, 4.0, 2.0]
    against = bounded_advantages(-2.0, unit_contrasts(np.array([0.0, 1.0, 0.5]), np.array([1, 1, 1])), share=1.0)
    assert against.tolist() == [-4.0, 0.0, -2.0]


def test_units_of_equal_density_are_alike_to_the_last_bit():
    """Equal credits of equal lengths get equal advantages, whatever stands between them."""
    contrasts = unit_contrasts(np.array([0.1, 0.7, 0.1, 0.3]), np.array([3, 1, 3, 2]))
    assert contrasts[0] == contrasts[2]
    for found in (additive_advantages(0.3, contrasts, 9, slope=4.0), bounded_advantages(0.3, contrasts)):
        assert found[0] == found[2]


def test_a_worked_candidate():
    """A = 1, s = 4, two units of one and three tokens with credits .5 and .25: d = (.3125, −.1041667)."""
    contrasts = unit_contrasts(np.array([0.5, 0.25]), np.array([1, 3]))
    assert contrasts.tolist() == pytest.approx([0.3125, -0.3125 / 3], abs=1e-15)
    assert additive_advantages(1.0, contrasts, 4, slope=4.0).tolist() == pytest.approx([6.0, -2 / 3], abs=1e-12)
    assert bounded_advantages(1.0, contrasts).tolist() == pytest.approx([1.5, 1 - 1 / 6], abs=1e-12)
