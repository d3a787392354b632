import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import composition_oracles as oracles
from credit.composed_batches import TWO, answered, batch_of, candidate, options_of, refused
from creditd.credit import (
    Additive,
    Bounded,
    BySensitivity,
    Flag,
    LeaveOneOut,
    MalformedPolicy,
    Normalization,
    ReshapeOptions,
    SetCreditOptions,
    TokenPolicy,
    reshape_weights,
    set_credit,
)

ROUNDING = 1e-12
CLOSED = 1e-9
"""Masses of a set close to this share of the largest, as credits of a set do."""


@st.composite
def composed_sets(draw):
    """Two to four responses to one prompt, with masks, and units with credits of any kind inside some candidates."""
    sets, masks = [], []
    n_tokens = 12
    for _ in range(draw(st.integers(2, 3))):
        mask = np.array(draw(st.lists(st.booleans(), min_size=n_tokens, max_size=n_tokens)))
        members, start = [], draw(st.integers(0, 2))
        for _ in range(draw(st.integers(1, 3))):
            stop = min(n_tokens, start + draw(st.integers(0, 5)))
            members.append(_drawn(draw, start, stop, mask))
            start = min(n_tokens, stop + draw(st.integers(0, 2)))
        sets.append(members)
        masks.append(draw(st.sampled_from([mask, mask, None])) if all(one.parts is None for one in members) else mask)
    return sets, masks, n_tokens


def _drawn(draw, start, stop, mask):
    """A candidate that stands at some tokens, cut into units at some of those that the policy chose."""
    reward = draw(st.floats(-2, 2) | st.sampled_from([0.0, 1.0]))
    places = [place for place in range(start, stop) if mask[place]]
    if not places or draw(st.booleans()):
        return candidate(reward, (start, stop))
    cuts = sorted(draw(st.sets(st.integers(1, len(places)), max_size=3)) | {len(places)})
    units, first = [], 0
    for cut in cuts:
        units.append([places[first], places[cut - 1] + 1])
        first = cut
    values = draw(st.lists(st.floats(-3, 3) | st.just(0.0), min_size=len(units), max_size=len(units)))
    return candidate(reward, (start, stop), units=units, values=values)


@given(
    composed_sets(),
    st.sampled_from([Additive(), Additive(0.25), Bounded(), Bounded(1.0)]),
    st.sampled_from(["pooled", "centered", "none", "batch_scaled", "response_preserving"]),
    st.sampled_from(["set", "zero", "next"]),
    st.booleans(),
)
def test_every_candidate_keeps_its_mass(drawn, inside, normalization, other, length_norm):
    """Σ Â over a candidate is L·ω·A whatever its units are worth; masked tokens have exactly 0 and count nowhere."""
    sets, masks, n_tokens = drawn
    batch = batch_of(*sets, n_tokens=n_tokens, masks=masks, inside=inside, groups=[0] * len(sets))
    options = options_of(
        TokenPolicy(other=other, length_norm=length_norm), normalization=Normalization(type=normalization)
    )
    for members, mask, item in zip(sets, masks, answered(batch, options), strict=True):
        trainable = np.ones(n_tokens, dtype=np.bool_) if mask is None else mask
        tokens = item.token_advantages
        assert not tokens[~trainable].any()
        assert item.ledger.tokens == trainable.sum()
        assert item.ledger.total == math.fsum(tokens)
        for one, advantage, account in zip(members, item.advantages, item.ledger.candidates, strict=True):
            own = np.arange(*one.span)[trainable[slice(*one.span)]]
            assert account.tokens == len(own)
            expected = len(own) * account.length_weight * advantage
            largest = max(float(np.abs(tokens[own]).max(initial=0.0)) * max(len(own), 1), abs(expected), 1e-300)
            assert account.mass == pytest.approx(expected, rel=1e-14)
            assert abs(math.fsum(tokens[own]) - expected) <= ROUNDING * largest
            assert abs(account.token_sum - expected) <= ROUNDING * largest
            assert account.mass_gap == account.token_sum - account.mass
            assert account.absolute_mass == pytest.approx(math.fsum(np.abs(tokens[own])), rel=1e-14)
            if isinstance(inside, Bounded):
                assert (tokens[own] * math.copysign(1.0, advantage) >= 0.0).all()
                assert account.absolute_mass == pytest.approx(abs(expected), rel=1e-12, abs=1e-300)
            for unit in account.units or ():
                assert unit.tokens > 0
            if account.units is not None:
                assert math.fsum(unit.mass for unit in account.units) == pytest.approx(
                    expected, rel=0, abs=ROUNDING * largest
                )


@given(composed_sets(), st.sampled_from(["set", "zero", "next"]), st.booleans())
def test_nothing_known_inside_is_what_set_credit_says(drawn, other, length_norm):
    """Without parts, tokens get what `/v1/credit/shapley` gives them, to the last bit; masks take tokens out."""
    sets, masks, n_tokens = drawn
    plain = [[candidate(one.reward, one.span) for one in members] for members in sets]
    policy = TokenPolicy(other=other, length_norm=length_norm)
    batch = batch_of(*plain, n_tokens=n_tokens, groups=[0] * len(sets))
    expected = set_credit(batch.sets, SetCreditOptions(tokens=policy))
    found = np.concatenate([item.token_advantages for item in answered(batch, options_of(policy))])
    assert found.tobytes() == expected.token_advantages.tobytes()
    masked = answered(batch_of(*plain, n_tokens=n_tokens, masks=masks, groups=[0] * len(sets)), options_of(policy))
    for item, mask, row in zip(masked, masks, range(len(sets)), strict=True):
        if mask is not None and other == "set" and not length_norm:
            own = slice(n_tokens * row, n_tokens * (row + 1))
            assert item.token_advantages.tolist() == np.where(mask, expected.token_advantages[own], 0.0).tolist()


@pytest.mark.parametrize("inside", [Additive(), Additive(0.5), Bounded(), Bounded(1.0)])
@pytest.mark.parametrize("length_norm", [False, True])
def test_tokens_are_those_of_the_formula(inside, length_norm):
    """Candidates of two responses, token by token, from advantages, slopes and fractions."""
    batch = batch_of(*TWO, inside=inside, groups=[0, 0])
    item = answered(batch, options_of(TokenPolicy(length_norm=length_norm)))[0]
    solved = set_credit(batch.sets, SetCreditOptions())
    expected = np.full(12, solved.set_advantages[0])
    omegas = [9 / 8, 9 / 10] if length_norm else [1.0, 1.0]
    for k, (one, omega) in enumerate(zip(TWO[0], omegas, strict=True)):
        lengths, values = np.diff(one.parts.units)[:, 0].tolist(), one.parts.values.tolist()
        if isinstance(inside, Additive):
            slope = solved.slopes[k]
            spread = (solved.advantages[0] - solved.advantages[1]) / (solved.credits[0] - solved.credits[1])
            assert slope == pytest.approx(spread, rel=1e-12)
            of_units = oracles.additive_by_fractions(
                solved.advantages[k], values, lengths, slope=slope, share=inside.share, length_weight=omega
            )
        else:
            of_units = oracles.bounded_by_fractions(
                solved.advantages[k], values, lengths, share=inside.share, length_weight=omega
            )
        expected[slice(*one.span)] = np.repeat([float(value) for value in of_units], lengths)
    assert item.token_advantages.tolist() == pytest.approx(expected.tolist(), abs=1e-12)
    assert [values.tolist() for values in item.unit_values] == [one.parts.values.tolist() for one in TWO[0]]


@pytest.mark.parametrize(
    "normalization",
    [
        Normalization(),
        Normalization(baseline="others"),
        Normalization(type="batch_scaled"),
        Normalization(type="centered"),
        Normalization(type="response_preserving"),
        Normalization(type="none"),
    ],
)
def test_slopes_say_how_advantages_follow_credits(normalization):
    """Within a set advantages differ by s times what credits differ by, s = K/denominator, or 1."""
    batch = batch_of(*TWO, groups=[0, 0])
    solved = set_credit(batch.sets, SetCreditOptions(normalization=normalization))
    for row in range(2):
        own = slice(2 * row, 2 * row + 2)
        apart = np.diff(solved.advantages[own])[0]
        assert apart == pytest.approx(solved.slopes[own][0] * np.diff(solved.credits[own])[0], rel=1e-12)
    if normalization.type == "centered":
        assert solved.slopes.tolist() == [2.0] * 4
    if normalization.type == "none":
        assert solved.slopes.tolist() == [1.0] * 4


def test_slopes_by_slot_follow_each_slot():
    """Standardised slot by slot, two responses differ at a slot by the slope of that slot times their credits."""
    batch = batch_of(*TWO, groups=[0, 0])
    solved = set_credit(batch.sets, SetCreditOptions(normalization=Normalization(type="per_slot")))
    for slot in range(2):
        apart = solved.advantages[slot] - solved.advantages[slot + 2]
        expected = solved.slopes[slot] * (solved.credits[slot] - solved.credits[slot + 2])
        assert apart == pytest.approx(expected, rel=1e-12)


def test_a_group_without_contrast_gets_none_inside_either():
    """Where all responses are alike nothing is divided by their spread; `centered` divides not, and units differ."""
    sets = [[candidate(0.5, (0, 4), units=[[0, 1], [1, 4]], values=[0.5, 0.0])] for _ in range(3)]
    batch = batch_of(*sets, n_tokens=4, groups=[0] * 3)
    for item in answered(batch):
        assert item.token_advantages.tolist() == [0.0] * 4
        assert Flag(item.flags) == Flag.DEGENERATE_GROUP
    for item in answered(batch, options_of(normalization=Normalization(type="centered"))):
        assert item.token_advantages.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-12)


@given(composed_sets())
def test_the_set_level_closes_with_length_norm(drawn):
    """Efficient credits, others at A^set and `length_norm`: the mass of a completion is its tokens times A^set."""
    sets, masks, n_tokens = drawn
    batch = batch_of(*sets, n_tokens=n_tokens, masks=masks, groups=[0] * len(sets))
    items = answered(batch, options_of(TokenPolicy(length_norm=True)))
    of_candidates = [one.absolute_mass for item in items for one in item.ledger.candidates]
    largest = max(*of_candidates, *(max(abs(one.ledger.set_mass), np.abs(one.advantages).max()) for one in items))
    for item in items:
        if all(one.tokens for one in item.ledger.candidates):  # an advantage without tokens is carried by none
            assert abs(item.ledger.mass_gap) <= CLOSED * max(largest, 1e-300)
        assert item.ledger.credit_gap == pytest.approx(0.0, abs=1e-12 * 8)


def test_what_does_not_close_is_shown_and_nothing_is_rescaled():
    """Credits that are not efficient, lengths that differ, units that leave something over: the ledger has the gaps."""
    batch = batch_of(*TWO, groups=[0, 0])
    options = options_of(rule=LeaveOneOut())
    solved = set_credit(batch.sets, options.sets)
    item = answered(batch, options)[0]
    ledger, (first, second) = item.ledger, item.ledger.candidates
    assert item.credits.tolist() == solved.credits[:2].tolist() == [0.5, 0.0]
    assert (ledger.credit_sum, ledger.utility_gain, ledger.credit_gap) == (0.5, 1.0, -0.5)
    assert (first.credit, first.unit_sum, first.credit_gap) == (0.5, 0.75, 0.25)
    assert (second.credit, second.unit_sum, second.credit_gap) == (0.0, 0.25, 0.25)
    assert first.token_sum == pytest.approx(4 * item.advantages[0], rel=1e-12)
    assert ledger.mass_gap == pytest.approx(
        4 * item.advantages[0] + 5 * item.advantages[1] + 3 * item.set_advantage - 12 * item.set_advantage, abs=1e-12
    )
    assert abs(ledger.mass_gap) > 0.1
    assert ledger.total == pytest.approx(ledger.candidate_mass + ledger.other_mass, abs=1e-12)
    assert [unit.value for unit in first.units] == [0.5, 0.25]
    assert [unit.tokens for unit in first.units] == [1, 3]
    assert first.units[0].mass == item.token_advantages[1]
    assert first.units[1].mass == pytest.approx(item.token_advantages[2:5].sum(), abs=1e-12)


def test_the_reward_of_a_response_is_added_on_all_tokens():
    """`set_reward` has its own advantage and its own line; candidates are accounted for without it."""
    batch = batch_of(*TWO, groups=[0, 0], set_rewards=np.array([1.0, 0.0]))
    plain = answered(batch_of(*TWO, groups=[0, 0]))[0]
    item = answered(batch, options_of(TokenPolicy(set_reward_weight=0.5)))[0]
    added = 0.5 * item.set_reward_advantage
    assert item.token_advantages.tolist() == (plain.token_advantages + added).tolist()
    assert item.ledger.set_reward_mass == pytest.approx(12 * added, rel=1e-12)
    assert item.ledger.candidates == plain.ledger.candidates
    assert item.ledger.total == math.fsum(item.token_advantages)


def test_masked_tokens_between_units_change_nothing_but_their_places():
    """A tool's words inside a candidate get 0; what the policy wrote gets what it gets without them."""
    plain = [
        [candidate(1.0, (0, 4), units=[[0, 1], [1, 4]], values=[0.5, 0.25]), candidate(0.5, (4, 6))],
        [candidate(0.2, (0, 3)), candidate(0.1, (3, 6))],
    ]
    spread = [
        [candidate(1.0, (1, 8), units=[[1, 2], [4, 8]], values=[0.5, 0.25]), candidate(0.5, (8, 11))],
        plain[1],
    ]
    mask = np.array([False, True, False, False, True, True, False, True, True, False, True, False])
    without = answered(batch_of(*plain, n_tokens=6, groups=[0, 0]))[0]
    masks = [mask, np.arange(12) < 6]
    item = answered(batch_of(*spread, n_tokens=12, masks=masks, groups=[0, 0]))[0]
    assert item.token_advantages[mask].tolist() == without.token_advantages.tolist()
    assert not item.token_advantages[~mask].any()
    assert item.ledger == without.ledger


@given(st.permutations(range(3)))
def test_the_order_of_candidates_changes_no_bit(order):
    """Candidates in another order have the same credits, the same units and the same tokens, where they stand."""
    members = [
        candidate(0.9, (0, 3), units=[[0, 1], [1, 3]], utilities=[0.0, 0.7, 0.1, 0.9]),
        candidate(0.5, (4, 8), units=[[4, 6], [6, 8]], utilities=[0.0, 0.5, 0.5, 0.5]),
        candidate(0.6, (8, 12), units=[[8, 9], [9, 12]], values=[0.5, -0.2]),
    ]
    other = [candidate(0.3, (0, 5))]
    before = answered(batch_of(members, other, groups=[0, 0]))[0]
    after = answered(batch_of([members[place] for place in order], other, groups=[0, 0]))[0]
    assert after.token_advantages.tobytes() == before.token_advantages.tobytes()
    for place, row in enumerate(order):
        assert after.unit_values[place].tobytes() == before.unit_values[row].tobytes()
        assert after.ledger.candidates[place] == before.ledger.candidates[row]


def test_a_set_does_not_depend_on_its_company():
    """The answer about a group is the same to the last bit whatever else is asked in the same call."""
    alone = answered(batch_of(*TWO, groups=[0, 0]))
    more = [[candidate(0.3, (0, 9), units=[[0, 4], [4, 9]], utilities=[0.0, 0.1, 0.2, 0.3])]] * 70
    together = answered(batch_of(*more, *TWO, groups=[*range(70), 70, 70]))[70:]
    for one, other in zip(alone, together, strict=True):
        assert other.token_advantages.tobytes() == one.token_advantages.tobytes()
        assert other.ledger == one.ledger


def test_identical_candidates_are_treated_alike():
    """Two candidates of one reward, with alike units, get alike tokens."""
    alike = [
        candidate(0.5, (0, 4), units=[[0, 1], [1, 4]], utilities=[0.0, 0.4, 0.1, 0.5]),
        candidate(0.5, (5, 9), units=[[5, 6], [6, 9]], utilities=[0.0, 0.4, 0.1, 0.5]),
        candidate(0.8, (9, 12)),
    ]
    item = answered(batch_of(alike, [candidate(0.1, (0, 3))], groups=[0, 0]))[0]
    assert item.token_advantages[0:4].tobytes() == item.token_advantages[5:9].tobytes()
    assert item.unit_values[0].tobytes() == item.unit_values[1].tobytes()


def test_credits_of_partial_texts_are_those_of_the_orders_of_arrival():
    """A table of partial texts gives two-level Owen values, which sum to the candidate's credit; a tree nests them."""
    tables = [[0.0, 0.7, 0.1, 0.9], [0.0, 0.2, 0.6, 0.3, 0.1, 0.6, 0.7, 0.6], [0.0, 0.8]]
    members = [
        candidate(0.9, (0, 4), units=[[0, 2], [2, 4]], utilities=tables[0]),
        candidate(0.6, (4, 8), units=[[4, 5], [5, 7], [7, 8]], utilities=tables[1]),
        candidate(0.8, (8, 12), units=[[8, 12]], utilities=tables[2]),
    ]
    item = answered(batch_of(members))[0]
    expected = oracles.span_credits_by_orders(tables)
    for found, other in zip(item.unit_values, expected, strict=True):
        assert found.tolist() == pytest.approx(other, abs=1e-13)
    for account in item.ledger.candidates:
        assert account.credit_gap == pytest.approx(0.0, abs=1e-13)
    tree = ((1, 2), (0, 3))
    nested = dataclasses.replace(members[1].parts, tree=np.array(tree))
    members[1] = SimpleNamespace(**{**vars(members[1]), "parts": nested})
    over_tree = answered(batch_of(members))[0].unit_values[1]
    whole = [[0.0, 0.9], tables[1], [0.0, 0.8]]
    assert over_tree.tolist() == pytest.approx(oracles.span_credits_by_orders(whole, {1: tree})[1], abs=1e-13)
    assert not np.allclose(over_tree, item.unit_values[1])


def test_partial_texts_that_end_beside_the_reward_leave_a_gap():
    """A model rounds: the worth of the whole text is what is shared out, the reward says what the credit is."""
    members = [candidate(0.9, (0, 4), units=[[0, 4]], utilities=[0.0, 0.895]), candidate(0.6, (4, 8))]
    (account, _) = answered(batch_of(members))[0].ledger.candidates
    assert account.unit_sum == pytest.approx(0.595)
    assert account.credit_gap == pytest.approx(-0.005, abs=1e-12)


def test_partial_texts_that_end_elsewhere_than_the_reward_are_of_another_candidate():
    """More than rounding is a mistake of the caller's."""
    members = [candidate(0.9, (0, 4), units=[[0, 4]], utilities=[0.0, 0.88]), candidate(0.6, (4, 8))]
    error = refused(batch_of(members))
    assert (error.code, error.field, error.position, error.entry) == ("invalid_request", "utilities", 0, 1)
    assert error.detail.startswith("got 0.88 for all units; expected the candidate's reward, 0.9")


def test_candidates_that_do_not_play_are_left_out():
    """Unscored and surplus candidates: their tokens are other tokens, and they are none of the others of a share."""
    members = [
        candidate(0.9, (0, 4), units=[[0, 2], [2, 4]], utilities=[0.0, 0.7, 0.1, 0.9]),
        candidate(None, (4, 8), units=[[4, 8]], values=[5.0]),
        candidate(0.6, (8, 12)),
    ]
    item = answered(batch_of(members, [candidate(0.2, (0, 4))], groups=[0, 0]))[0]
    expected = oracles.span_credits_by_orders([[0.0, 0.7, 0.1, 0.9], [0.0, 0.6]])[0]
    assert item.unit_values[0].tolist() == pytest.approx(expected, abs=1e-13)
    assert item.unit_values[1] is None
    assert item.token_advantages[4:8].tolist() == [item.set_advantage] * 4
    account = item.ledger.candidates[1]
    assert (account.credit, account.mass, account.mass_gap, account.units) == (None, None, None, None)
    assert Flag.CANDIDATE_UNSCORED in Flag(item.flags)
    surplus = answered(batch_of([members[0], members[2]]), options_of(malformed=MalformedPolicy(candidates=1)))[0]
    assert surplus.unit_values[0].tolist() == pytest.approx([0.75, 0.15], abs=1e-13)


def test_a_collapsed_copy_is_worth_nothing_inside_either():
    """A null player has the credit 0, and so have its units; its tokens get its advantage."""
    members = [
        candidate(0.9, (0, 4), units=[[0, 2], [2, 4]], utilities=[0.0, 0.7, 0.1, 0.9]),
        candidate(0.9, (4, 8), units=[[4, 6], [6, 8]], utilities=[0.0, 0.7, 0.1, 0.9]),
    ]
    batch = batch_of(members, text_codes=np.array([0, 0]))
    item = answered(batch, options_of(malformed=MalformedPolicy(duplicates="collapse")))[0]
    assert item.credits.tolist() == [0.9, 0.0]
    assert [values.tolist() for values in item.unit_values] == [pytest.approx([0.75, 0.15], abs=1e-13), [0.0, 0.0]]
    assert item.token_advantages[4:8].tolist() == [item.advantages[1]] * 4


def test_sensitivities_weigh_the_tokens_of_each_candidate_alone():
    """Weights of the candidate's own trainable tokens, times ω·A; flat ones weigh 1 and are flagged."""
    mask = np.ones(12, dtype=np.bool_)
    mask[2] = False
    measured = [0.1, math.nan, 0.5, 1.0]
    members = [
        candidate(1.0, (1, 5), sensitivities=measured),
        candidate(0.5, (6, 11), sensitivities=[2.0] * 5),
    ]
    other = [candidate(0.2, (0, 4)), candidate(0.1, (4, 12))]
    options = ReshapeOptions(quantile=0.5, beta=2.0)
    policy = TokenPolicy(length_norm=True)
    batch = batch_of(members, other, masks=[mask, None], groups=[0, 0], inside=BySensitivity(options))
    item, plain = answered(batch, options_of(policy))
    shape = reshape_weights(np.array([0.1, 0.5, 1.0]), options)
    account = item.ledger.candidates[0]
    expected = account.length_weight * item.advantages[0] * shape.weights
    assert item.token_advantages[[1, 3, 4]].tolist() == expected.tolist()
    assert item.token_advantages[2] == 0.0
    assert item.token_advantages[6:11].tolist() == [item.ledger.candidates[1].length_weight * item.advantages[1]] * 5
    assert (account.effective_share, account.top_share) == (shape.effective_share, shape.top_share)
    assert (account.n_reweighted, item.ledger.candidates[1].n_reweighted) == (3, 5)
    assert account.mass_gap == pytest.approx(0.0, abs=1e-14)
    assert Flag(item.flags) == Flag.FLAT_SENSITIVITY
    assert Flag(plain.flags) == Flag(0)


def test_tokens_without_a_sensitivity_weigh_one():
    """An answer inside a candidate, say: the others are weighed against each other, and the mass is what it was."""
    measured = [0.1, 0.5, 1.0, 4.0, math.nan, math.nan]
    nothing = [math.nan] * 4
    members = [candidate(1.0, (0, 6), sensitivities=measured), candidate(0.5, (6, 10), sensitivities=nothing)]
    item = answered(batch_of(members, inside=BySensitivity()))[0]
    weights = reshape_weights(np.array(measured[:4]), ReshapeOptions()).weights
    advantage, other = item.advantages.tolist()
    assert item.token_advantages[:4].tolist() == (advantage * weights).tolist()
    assert item.token_advantages[4:6].tolist() == [advantage] * 2
    assert item.token_advantages[6:10].tolist() == [other] * 4
    first, second = item.ledger.candidates
    assert (first.n_reweighted, second.n_reweighted) == (4, 0)
    assert first.mass_gap == pytest.approx(0.0, abs=1e-14)
    assert (second.effective_share, second.top_share) == (None, None)
    assert Flag(item.flags) == Flag.SINGLE_RESPONSE


def test_weights_that_keep_no_mass_leave_a_gap():
    """Without `preserve_mass` the sum of the weights is what it is, and the ledger shows what that costs."""
    members = [candidate(1.0, (0, 4), sensitivities=[0.0, 0.5, 1.0, 4.0]), candidate(0.5, (6, 11))]
    inside = BySensitivity(ReshapeOptions(preserve_mass=False))
    item = answered(batch_of(members, inside=inside))[0]
    weights = reshape_weights(np.array([0.0, 0.5, 1.0, 4.0]), inside.reshape).weights
    account = item.ledger.candidates[0]
    assert account.mass_gap == pytest.approx((weights.sum() - 4) * item.advantages[0], rel=1e-12)
    assert abs(account.mass_gap) > 0.1


def given_sets(**changes):
    """One response whose candidates bring advantages, and rewards unless asked otherwise."""
    members = [
        candidate(0.9, (0, 4), advantage=1.5, units=[[0, 1], [1, 4]], values=[0.5, 0.1]),
        candidate(0.6, (4, 8), advantage=-0.5, units=[[4, 6], [6, 8]], values=[0.1, 0.2]),
        candidate(0.2, (8, 10), advantage=None),
    ]
    return batch_of(members, given=True, **{"set_advantages": [0.25], **changes})


def test_given_advantages_are_used_as_they_are():
    """Bounded by default; tokens outside candidates, and of candidates without an advantage, get A^set."""
    item = answered(given_sets())[0]
    expected = [
        *[1.5 * 1.5, *[1.5 * (1 - 1 / 6)] * 3],
        *[-0.75, -0.75, -0.25, -0.25],
        *[0.25] * 4,
    ]
    assert item.token_advantages.tolist() == pytest.approx(expected, abs=1e-12)
    assert item.advantages.tolist() == pytest.approx([1.5, -0.5, math.nan], nan_ok=True)
    assert item.credits.tolist() == pytest.approx([17 / 30, 4 / 15, 1 / 15], abs=1e-12)
    assert item.set_advantage == 0.25
    assert Flag(item.flags) == Flag.CANDIDATE_UNSCORED
    assert item.ledger.set_mass == pytest.approx(3.0)
    assert item.ledger.candidates[0].credit_gap == pytest.approx(0.6 - item.credits[0])


def test_given_advantages_need_no_rewards():
    """Without rewards there are no credits and no utilities, and nothing is said of them."""
    item = answered(given_sets(scored=False))[0]
    assert item.credits is None
    assert (item.utility_empty, item.utility_grand) == (None, None)
    assert (item.ledger.credit_sum, item.ledger.utility_gain, item.ledger.credit_gap) == (None, None, None)
    assert [account.credit for account in item.ledger.candidates] == [None] * 3
    assert item.ledger.candidates[0].unit_sum == 0.6
    assert item.token_advantages.tolist() == answered(given_sets())[0].token_advantages.tolist()
    assert Flag(item.flags) == Flag.CANDIDATE_UNSCORED


def test_given_advantages_take_a_slope_for_additive_credit():
    """Additive beside given advantages: what one reward unit is in advantages is the caller's to say."""
    item = answered(given_sets(inside=Additive(0.5), slopes=[3.0]))[0]
    contrasts = [0.5 - 0.15, (0.1 / 3) - 0.15]
    expected = [1.5 + 0.5 * 3.0 * 4 * contrast for contrast in contrasts]
    assert item.token_advantages[[0, 1]].tolist() == pytest.approx(expected, abs=1e-12)
    assert refused(given_sets(inside=Additive(), slopes=[math.nan])).field == "advantage_slope"
    assert refused(given_sets(inside=Additive())).field == "advantage_slope"
    assert refused(given_sets(inside=Additive(), slopes=[-1.0])).code == "invalid_request"


def test_given_advantages_without_any_are_a_response_without_candidates():
    """All advantages null: all tokens get A^set, flagged."""
    members = [candidate(0.9, (0, 4), units=[[0, 4]], values=[1.0])]
    batch = batch_of(members, given=True, set_advantages=[0.5])
    item = answered(batch, options_of(TokenPolicy(other="zero")))[0]
    assert item.token_advantages.tolist() == [0.5] * 12
    assert Flag(item.flags) == Flag.NO_CANDIDATES | Flag.CANDIDATE_UNSCORED


def test_given_advantages_need_that_of_the_set():
    """A^set is what tokens outside the candidates get: nobody makes one up."""
    members = [candidate(0.9, (0, 4), advantage=1.0)]
    for columns in ({}, {"set_advantages": [math.nan]}):
        error = refused(batch_of(members, given=True, **columns))
        assert (error.code, error.field, error.position) == ("invalid_request", "set_advantage", None)
    options = options_of(TokenPolicy(other="zero"))
    item = answered(batch_of(members, given=True, set_advantages=[0.5]), options)[0]
    assert item.token_advantages.tolist() == [1.0] * 4 + [0.0] * 8
    assert (item.set_advantage, item.ledger.set_mass, item.ledger.mass_gap) == (0.5, 6.0, -2.0)


def test_very_large_contrasts_are_flagged():
    """Credits of units that spread far wider than the advantages are divided by: the numbers are right, and large."""
    large = candidate(0.5, (0, 4), units=[[0, 1], [1, 4]], values=[500.0, -499.5])
    sets = [[large], [candidate(0.4, (0, 4))]]
    assert Flag.UNSTABLE_NORMALIZATION in Flag(answered(batch_of(*sets, groups=[0, 0]))[0].flags)
    for choice in ("centered", "none"):
        options = options_of(normalization=Normalization(type=choice))
        assert Flag.UNSTABLE_NORMALIZATION not in Flag(answered(batch_of(*sets, groups=[0, 0]), options)[0].flags)
    bounded = answered(batch_of(*sets, groups=[0, 0], inside=Bounded()))[0]
    assert Flag.UNSTABLE_NORMALIZATION not in Flag(bounded.flags)
