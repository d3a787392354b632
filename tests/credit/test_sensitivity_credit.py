import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import sensitivity_oracles
from creditd.credit import (
    Flag,
    GroupRuleOptions,
    ReshapeOptions,
    SensitivityBatch,
    SensitivityCreditOptions,
    SensitivityError,
    SensitivityItem,
    group_advantages,
    reshaped_advantages,
    reweighted,
)

ROUNDING = 1e-12
DIGITS = 1e-6
PUBLISHED = np.array([0.0, 0.1, 0.5, 1.0, 4.0])
PUBLISHED_WEIGHTS = np.array([0.087724, 0.877242, 1.056937, 1.223612, 1.754484])
PLAIN = SensitivityCreditOptions()


def completion(n_tokens=7, *, reasoning=(0, 5), answer=(5, 6), advantage=1.0, reward=None, masked=()):
    """A completion whose tokens are trainable but for those that are masked."""
    trainable = np.ones(n_tokens, dtype=np.bool_)
    trainable[list(masked)] = False
    return SensitivityItem(n_tokens, trainable, reasoning, answer, advantage, reward)


def rewarded(reward, **changes):
    """A completion with a reward in the place of an advantage."""
    return completion(advantage=None, reward=reward, **changes)


def credited(item, sensitivities, advantage=1.0, options=ReshapeOptions(), **more):  # noqa: B008 - frozen
    """The credit of one completion alone."""
    groups = np.zeros(1, dtype=np.int64)
    (found,) = reshaped_advantages([item], groups, 1, [sensitivities], np.array([advantage]), options, **more)
    return found


def batch_of(items, groups=None, options=PLAIN, rejected=()):
    """A batch in groups that are given, or in one."""
    numbers = np.zeros(len(items), dtype=np.int64) if groups is None else np.array(groups, dtype=np.int64)
    return SensitivityBatch(items, numbers, 1 + int(numbers.max(initial=-1)), options, rejected)


def solved(batch, sensitivities=PUBLISHED):
    """The answer, where every completion that wants sensitivities has the same ones."""
    for row in batch.wanted:
        batch.tell(row, sensitivities[: len(batch.positions(row))])
    return batch.answer()


@st.composite
def cases(draw):
    """A completion of any mask and ranges, and one sensitivity for each of its reweighted tokens."""
    n_tokens = draw(st.integers(0, 12))
    ends = sorted(draw(st.lists(st.integers(0, n_tokens), min_size=4, max_size=4)))
    reasoning, answer = (ends[0], ends[1]), (ends[2], ends[3])
    has_answer = answer[0] < answer[1] and draw(st.booleans())
    item = SensitivityItem(
        n_tokens=n_tokens,
        trainable=np.array(draw(st.lists(st.booleans(), min_size=n_tokens, max_size=n_tokens)), dtype=np.bool_),
        reasoning=reasoning if draw(st.booleans()) else None,
        answer=answer if has_answer else None,
        advantage=draw(st.floats(-100, 100)),
        reward=None,
    )
    count = len(reweighted(item))
    values = draw(st.lists(st.floats(-1, 20), min_size=count, max_size=count))
    return item, np.array(values, dtype=np.float64)


@given(case=cases())
def test_reweighted_tokens_are_those_of_the_definition(case):
    """Trainable tokens of the reasoning before the answer; none where neither is known."""
    item, _ = case
    start, stop = (0, item.n_tokens) if item.reasoning is None else item.reasoning
    stop = stop if item.answer is None else min(stop, item.answer[0])
    known = item.reasoning is not None or item.answer is not None
    expected = [t for t in range(item.n_tokens) if known and start <= t < stop and item.trainable[t]]
    assert reweighted(item).tolist() == expected


@given(case=cases())
def test_token_advantages_are_advantage_times_weight(case):
    """Every token by the formula: A·w in the reasoning, A outside, exactly 0 where the policy did not choose."""
    item, values = case
    found = credited(item, values, item.advantage)
    inside = dict(zip(reweighted(item).tolist(), sensitivity_oracles.weights(values.tolist()), strict=True))
    # Places at the threshold itself: their weight is the same from both sides, within the guard of the divisors.
    for t in range(item.n_tokens):
        weight = inside.get(t, 1.0) if item.trainable[t] else 0.0
        assert found.weights[t] == pytest.approx(weight, rel=1e-6, abs=1e-6)
        assert found.token_advantages[t] == found.weights[t] * item.advantage
        assert math.isnan(found.sensitivities[t]) == (t not in inside)
    np.testing.assert_array_equal(found.sensitivities[reweighted(item)], values)
    assert not found.token_advantages[~item.trainable].any()


@given(case=cases())
def test_mass_is_preserved(case):
    """Token advantages sum to A times the trainable tokens, their magnitudes likewise, and no sign differs."""
    item, values = case
    found = credited(item, values, item.advantage)
    count = int(item.trainable.sum())
    assert found.token_advantages.sum() == pytest.approx(item.advantage * count, rel=1e-11, abs=ROUNDING)
    assert np.abs(found.token_advantages).sum() == pytest.approx(abs(item.advantage) * count, rel=1e-11, abs=ROUNDING)
    assert (found.token_advantages * item.advantage >= 0).all()
    assert found.weight_sum == pytest.approx(len(values), rel=ROUNDING)
    assert found.n_reweighted == len(values)


def test_published_completion():
    """The worked example stands on the tokens of the reasoning; the conclusion and the answer keep weight 1."""
    found = credited(completion(masked=()), PUBLISHED, -2.0, spreads=[0.25])
    np.testing.assert_allclose(found.weights, [*PUBLISHED_WEIGHTS, 1, 1], rtol=0, atol=DIGITS)
    np.testing.assert_allclose(found.token_advantages, [*-2 * PUBLISHED_WEIGHTS, -2, -2], rtol=0, atol=2 * DIGITS)
    assert (found.advantage, found.n_reweighted, found.spread) == (-2.0, 5, 0.25)
    assert (found.reasoning, found.answer, found.flags) == ((0, 5), (5, 6), 0)
    assert found.effective_share == pytest.approx(0.7728, abs=5e-5)
    assert found.top_share == pytest.approx(0.3509, abs=5e-5)


def test_masked_tokens_of_the_reasoning_are_not_counted():
    """Tokens that a tool wrote are no part of L: the others have the weights of the reasoning without them."""
    found = credited(completion(9, reasoning=(0, 7), answer=(7, 9), masked=(1, 4, 8)), PUBLISHED)
    np.testing.assert_allclose(found.weights[[0, 2, 3, 5, 6]], PUBLISHED_WEIGHTS, rtol=0, atol=DIGITS)
    assert found.weights[[1, 4, 7, 8]].tolist() == [0, 0, 1, 0]


@given(copies=st.integers(2, 5), others=st.lists(cases(), max_size=4), data=st.data())
def test_identical_completions_get_identical_weights(copies, others, data):
    """Each copy has the weights that it has alone, to the last bit, wherever it stands in whatever company."""
    alone = credited(completion(), PUBLISHED).weights
    rows = [(completion(), PUBLISHED)] * copies + others
    order = data.draw(st.permutations(range(len(rows))))
    found = reshaped_advantages(
        [rows[i][0] for i in order],
        np.zeros(len(rows), dtype=np.int64),
        1,
        [rows[i][1] for i in order],
        np.ones(len(rows)),
        ReshapeOptions(),
    )
    for place, i in enumerate(order):
        if i < copies:
            np.testing.assert_array_equal(found[place].weights, alone)


def test_without_an_answer_every_token_has_the_plain_advantage():
    """No answer found: A on each trainable token, flagged, and nothing is asked."""
    batch = batch_of([completion(reasoning=None, answer=None, advantage=0.5, masked=(2,))])
    assert batch.wanted == ()
    (found,) = batch.answer().items
    assert found.token_advantages.tolist() == [0.5, 0.5, 0, 0.5, 0.5, 0.5, 0.5]
    assert Flag(found.flags).wire_names == ("answer_not_found",)
    assert (found.n_reweighted, found.weight_sum, found.effective_share, found.top_share) == (0, 0.0, None, None)
    assert np.isnan(found.sensitivities).all()


def test_flat_sensitivities_are_grpo():
    """Equal sensitivities, and a single reweighted token: the plain advantage, flagged."""
    for item, values in ((completion(), np.full(5, 0.3)), (completion(reasoning=(1, 2)), np.array([7.0]))):
        found = credited(item, values, 0.5)
        assert found.token_advantages.tolist() == [0.5] * 7
        assert Flag(found.flags).wire_names == ("flat_sensitivity",)
        assert found.effective_share == 1.0
    near = np.array([0.0, 1e-7, 2e-7, 3e-7, 4e-7])
    assert credited(completion(), near).flags == 0
    assert credited(completion(), near, least_range=1e-6).flags == int(Flag.FLAT_SENSITIVITY)


def test_an_empty_reasoning_is_no_fault():
    """Nothing to reweight: the plain advantage, without a flag and without a question."""
    batch = batch_of([completion(reasoning=(3, 3)), completion(answer=(0, 1), reasoning=None)])
    assert batch.wanted == ()
    assert [(item.flags, item.token_advantages.tolist()) for item in batch.answer().items] == [(0, [1.0] * 7)] * 2


@given(
    rewards=st.lists(st.floats(-5, 5), min_size=1, max_size=8),
    rule=st.sampled_from(["grpo", "dr_grpo", "rloo", "leave_one_out", "reinforce++_baseline"]),
    data=st.data(),
)
def test_rewards_become_group_advantages(rewards, rule, data):
    """The advantage of each completion is that of `group_advantages`, with its flags."""
    groups = data.draw(st.lists(st.integers(0, 2), min_size=len(rewards), max_size=len(rewards)))
    items = [rewarded(reward, masked=(0, 1)) for reward in rewards]
    options = SensitivityCreditOptions(advantage=GroupRuleOptions(rule=rule, ddof=0, epsilon=0.5))
    answer = solved(batch_of(items, groups, options))
    expected = group_advantages(
        np.array(rewards),
        np.array(groups),
        1 + max(groups),
        rule=rule,
        ddof=0,
        epsilon=0.5,
        n_tokens=np.full(len(rewards), 5),
    )
    assert [item.advantage for item in answer.items] == expected.advantages.tolist()
    assert [item.flags for item in answer.items] == [int(expected.flags[group]) for group in groups]
    assert not answer.errors


def test_rules_have_their_options():
    """pass@k needs its k and its threshold, and gets them."""
    rule = GroupRuleOptions(rule="pass_at_k", k=4, threshold=0.5)
    items = [rewarded(reward) for reward in (1.0, 1.0, 0, 0, 0, 0, 0, 0)]
    answer = solved(batch_of(items, options=SensitivityCreditOptions(advantage=rule)))
    assert answer.items[0].advantage == pytest.approx(0.522233, abs=DIGITS)
    assert answer.items[7].advantage == pytest.approx(-0.174078, abs=DIGITS)


def test_a_failed_completion_is_left_out_of_its_group():
    """The others are compared without it, flagged; groups that are whole, and ready advantages, are not touched."""
    items = [rewarded(1.0), rewarded(0.0), rewarded(5.0), rewarded(1.0), rewarded(0.0)]
    batch = batch_of(items, [0, 0, 0, 1, 1])
    batch.fail(2, "context_exceeded", "completion_ids", "too long")
    answer = solved(batch)
    expected = group_advantages(np.array([1.0, 0.0]), np.zeros(2, dtype=np.int64), 1).advantages
    assert [answer.items[row].advantage for row in (0, 1, 3, 4)] == [*expected, *expected]
    assert [Flag(answer.items[row].flags).wire_names for row in (0, 1)] == [("group_incomplete",)] * 2
    assert [answer.items[row].flags for row in (3, 4)] == [0, 0]
    assert answer.items[2] is None
    assert answer.errors == (SensitivityError(2, "context_exceeded", "completion_ids", None, "too long"),)

    ready = batch_of([completion(), completion()])
    ready.fail(0, "engine_failed", "completion_ids", "no number")
    assert solved(ready).items[1].flags == 0


def test_a_failed_completion_can_take_its_group_with_it():
    """Where the caller says so, before anything is asked as well as after; the first cause stays."""
    options = SensitivityCreditOptions(fail_incomplete_groups=True)
    items = [rewarded(math.nan), rewarded(0.0), rewarded(1.0), rewarded(0.0)]
    batch = batch_of(items, [0, 0, 1, 1], options)
    assert batch.wanted == (2, 3)
    batch.fail(3, "engine_failed", "completion_ids", "no number")
    answer = solved(batch)
    assert [error.code for error in answer.errors] == [
        "non_finite_value",
        "group_incomplete",
        "group_incomplete",
        "engine_failed",
    ]
    assert answer.items == (None,) * 4


def test_groups_of_another_size_are_refused():
    """A missing rollout is an error and never a silent baseline."""
    batch = batch_of([rewarded(1.0), rewarded(0.0), rewarded(0.5)], [0, 0, 1], SensitivityCreditOptions(group_size=2))
    (error,) = batch.errors
    assert (error.row, error.code, error.field) == (2, "group_size_mismatch", "group")
    assert error.detail == "the group holds 1 items in this request; expected 2"
    assert [item is None for item in solved(batch).items] == [False, False, True]


@pytest.mark.parametrize(
    ("item", "code", "field", "said"),
    [
        (completion(reasoning=(0, 8)), "shape_mismatch", "reasoning", "got [0, 8); expected a range within [0, 7)"),
        (completion(reasoning=(3, 2)), "shape_mismatch", "reasoning", "got [3, 2)"),
        (completion(reasoning=(-1, 2)), "shape_mismatch", "reasoning", "got [-1, 2)"),
        (completion(answer=(5, 9)), "shape_mismatch", "answer", "got [5, 9)"),
        (completion(answer=(5, 5)), "shape_mismatch", "answer", "expected at least one token"),
        (completion(answer=(4, 6)), "shape_mismatch", "answer", "behind the reasoning, which stops at 5"),
        (completion(reasoning=(3, 5), answer=(0, 1)), "shape_mismatch", "answer", "from token 0 on"),
        (completion(advantage=math.nan), "non_finite_value", "advantage", "got nan"),
        (completion(advantage=2e90), "non_finite_value", "advantage", "got 2e+90"),
        (rewarded(-math.inf), "non_finite_value", "reward", "got -inf"),
        (completion(advantage=None), "invalid_request", "advantage", "got neither"),
        (completion(reward=1.0), "invalid_request", "advantage", "got both"),
        (dataclasses.replace(completion(), n_tokens=6), "shape_mismatch", "completion_mask", "each of 6 tokens"),
    ],
)
def test_what_does_not_fit_fails_its_completion(item, code, field, said):
    """One completion that is wrong costs no other."""
    batch = batch_of([completion(), item], [0, 1])
    (error,) = batch.errors
    assert (error.row, error.code, error.field) == (1, code, field)
    assert said in error.detail
    answer = solved(batch)
    assert answer.items[1] is None
    np.testing.assert_allclose(answer.items[0].weights[:5], PUBLISHED_WEIGHTS, rtol=0, atol=DIGITS)


def test_a_sensitivity_that_is_missing_is_named():
    """NaN at a reweighted token fails its completion at that token; nothing is replaced."""
    batch = batch_of([completion(masked=(0, 1)), completion()])
    batch.tell(0, np.array([1.0, math.nan, 2.0]))
    answer = solved(batch)
    (error,) = answer.errors
    assert (error.row, error.code, error.field, error.position) == (0, "non_finite_value", "sensitivities", 3)
    assert error.detail == "no finite sensitivity at token 3; expected one for each token that is reweighted"
    assert answer.items[0] is None
    assert answer.items[1] is not None


def test_rejected_completions_keep_their_place():
    """What the caller could not read has no item, and its error comes back."""
    error = SensitivityError(0, "shape_mismatch", "token_offsets", 3, "got backwards")
    batch = batch_of([None, completion()], rejected=[error])
    answer = solved(batch)
    assert answer.errors == (error,)
    assert answer.items[0] is None
    assert answer.items[1].n_reweighted == 5


def test_sensitivities_come_once_and_in_full():
    """A completion that wants none takes none; one that has not been told keeps the answer back."""
    batch = batch_of([completion()])
    with pytest.raises(ValueError, match="tell them first"):
        batch.answer()
    with pytest.raises(ValueError, match=r"got shape \(4,\), expected \(5,\)"):
        batch.tell(0, np.ones(4))
    batch.tell(0, PUBLISHED, 0.5)
    assert batch.answer().items[0].spread == 0.5
    with pytest.raises(ValueError, match="completion 0 wants no sensitivities"):
        batch.tell(0, PUBLISHED)


def test_rows_that_do_not_fit_are_refused():
    """Lists of another length, and sensitivities for other tokens, say what they got."""
    groups, ones = np.zeros(1, dtype=np.int64), np.ones(1)
    with pytest.raises(ValueError, match="got 1 groups, 2 sensitivities and 1 advantages; expected 1 of each"):
        reshaped_advantages([completion()], groups, 1, [PUBLISHED] * 2, ones, ReshapeOptions())
    for wrong in (np.ones(4), None):
        with pytest.raises(ValueError, match="got sensitivities of shape"):
            reshaped_advantages([completion()], groups, 1, [wrong], ones, ReshapeOptions())


def test_no_completions():
    """Nothing in, nothing out."""
    answer = batch_of([]).answer()
    assert (answer.items, answer.errors) == ((), ())
