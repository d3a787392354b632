import dataclasses
import math

import numpy as np
import pytest

from credit import oracles
from credit.answers import bits, optional, row_of, solve
from credit.batches import (
    EXACT,
    RULES,
    WORKED,
    columns,
    mixture_for,
)
from credit.oracles import OneSet
from creditd.credit import (
    Blend,
    Expectation,
    Flag,
    MalformedPolicy,
    Max,
    Mean,
    Mixture,
    Normalization,
    SetCreditOptions,
    SetReward,
    Shapley,
    Table,
    TokenPolicy,
    set_credit,
)

INF = float("inf")
NAN = float("nan")


def test_groups_without_contrast_give_exactly_zero():
    """One candidate everywhere the same gives advantages of exactly 0 and a flag; the credit stays."""
    answer = solve([[0.1, 0.1, 0.1], [0.1]], epsilon=1e-4)
    assert answer.advantages.tolist() == [0.0] * 4
    assert answer.set_advantages.tolist() == [0.0, 0.0]
    assert answer.credits == pytest.approx([0.1 / 3] * 3 + [0.1], abs=WORKED)
    assert answer.flags.tolist() == [Flag.DEGENERATE_GROUP] * 2


def test_one_response_keeps_its_inner_contrast():
    """G = 1 under `pooled`: the candidates are compared with each other, and the set is flagged."""
    answer = solve([[1.0, 0.0]])
    assert answer.advantages == pytest.approx([math.sqrt(0.5), -math.sqrt(0.5)], abs=WORKED)
    assert answer.set_advantages.tolist() == [0.0]
    assert answer.flags.tolist() == [Flag.SINGLE_RESPONSE]


def test_collapsed_copies_are_null_players():
    """Copies have credit 0, count in K, and leave the others the credit of the game with explicit null players."""
    one = OneSet([0.5, 0.9, 0.5, 0.9, 0.1], texts=[0, 1, 0, 1, -1])
    game = oracles.game_of(one.rewards, oracles.best(empty=0.25))
    for rule, name in (*RULES.values(), mixture_for(5)):
        options = SetCreditOptions(utility=Max(empty=0.25), rule=rule, malformed=MalformedPolicy(duplicates="collapse"))
        answer = set_credit(columns([one]), options)
        expected = oracles.credit_by_definition(game, 5, name, nulls=(2, 3))
        assert answer.credits == pytest.approx(expected, abs=EXACT * 4)
        assert answer.credits[[2, 3]].tolist() == [0.0, 0.0]
        assert answer.flags.tolist() == [Flag.DUPLICATES_COLLAPSED | Flag.SINGLE_RESPONSE]
    kept = set_credit(columns([one]), SetCreditOptions())
    assert kept.credits[0] == kept.credits[2] != 0.0


def test_a_response_without_candidates_counts_with_the_failure_reward():
    """Nothing parsed, or nothing scored, enters the group as one value and one reward; its tokens take A^set."""
    sets = [
        OneSet([1.0, 0.0], spans=[(0, 1), (1, 2)], n_tokens=2),
        OneSet([], spans=[], n_tokens=3),
        OneSet([None], spans=[(0, 1)], n_tokens=1),
    ]
    options = SetCreditOptions(
        utility=Max(empty=0.25),
        normalization=Normalization(type="centered"),
        malformed=MalformedPolicy(failure_reward=-0.5),
        tokens=TokenPolicy(other="zero"),
    )
    answer = set_credit(columns(sets), options)
    # D = (1.75, −.25), −.75 and −.75: the responses have means .75, −.75 and −.75, and rewards 1, −½ and −½.
    assert answer.advantages[:2] == pytest.approx([2.0, 0.0], abs=WORKED)
    assert answer.set_advantages == pytest.approx([1.0, -0.5, -0.5], abs=WORKED)
    assert answer.token_advantages == pytest.approx([2.0, 0.0] + [-0.5] * 4, abs=WORKED)
    assert (answer.utility_empty.tolist(), answer.utility_grand.tolist()) == ([0.25] * 3, [1.0, 0.25, 0.25])
    bare = Flag.NO_CANDIDATES
    assert answer.flags.tolist() == [0, bare, bare | Flag.CANDIDATE_UNSCORED]


def test_tables_of_responses_without_candidates_have_their_own_empty_utility():
    """A table of no players is its v(∅)."""
    sets = [OneSet([], values=[0.75]), OneSet([0.0], values=[0.5, 1.0])]
    answer = set_credit(columns(sets), SetCreditOptions(utility=Table()))
    assert (answer.utility_empty.tolist(), answer.utility_grand.tolist()) == ([0.75, 0.5], [0.75, 1.0])


def test_surplus_candidates_are_not_players():
    """`truncate` takes surplus candidates out of the game and their tokens to the others; `score_all` keeps them."""
    one = OneSet([0.5, 0.0, 9.0], spans=[(0, 1), (1, 2), (2, 3)], n_tokens=4)
    options = SetCreditOptions(
        normalization=Normalization(type="none"), malformed=MalformedPolicy(candidates=2), tokens=TokenPolicy()
    )
    answer = set_credit(columns([one]), options)
    assert optional(answer.credits) == [0.5, 0.0, None]
    assert answer.token_advantages.tolist() == [0.5, 0.0, 0.5, 0.5]
    assert answer.flags.tolist() == [Flag.CANDIDATE_TRUNCATED | Flag.SINGLE_RESPONSE]
    everyone = dataclasses.replace(options, malformed=MalformedPolicy(candidates=2, extra="score_all"))
    assert set_credit(columns([one]), everyone).utility_grand.tolist() == [9.0]


def test_a_failed_set_leaves_its_group_to_the_others():
    """The sound sets of a group are solved without the failed one and flagged; other groups are untouched."""
    rows = [[1.0, 0.0], [0.5, NAN], [0.25, 0.5], [0.5], [0.75]]
    answer = solve(rows, groups=[0, 0, 0, 1, 1])
    without = solve([rows[i] for i in (0, 2, 3, 4)], groups=[0, 0, 1, 1])
    assert answer.ok.tolist() == [True, False, True, True, True]
    (error,) = answer.errors
    assert (error.row, error.code, error.field, error.position) == (1, "non_finite_value", "reward", 1)
    for row, other in ((0, 0), (2, 1), (3, 2), (4, 3)):
        assert bits(answer, row)[:-1] == bits(without, other)[:-1]
    assert answer.flags.tolist() == [Flag.GROUP_INCOMPLETE, 0, Flag.GROUP_INCOMPLETE, 0, 0]
    assert np.isnan(row_of(answer.credits, answer, 1)).all()


def test_an_incomplete_group_can_be_an_error():
    """On request a group fails as a whole; the set that caused it keeps its own error."""
    answer = solve([[1.0], [NAN], [0.5], [0.5]], groups=[0, 0, 1, 1], fail_incomplete_groups=True)
    assert [(e.row, e.code, e.field) for e in answer.errors] == [
        (0, "group_incomplete", "group"),
        (1, "non_finite_value", "reward"),
    ]
    assert answer.ok.tolist() == [False, False, True, True]
    assert answer.flags.tolist() == [0, 0, Flag.DEGENERATE_GROUP, Flag.DEGENERATE_GROUP]


def test_a_batch_in_which_everything_failed_is_answered():
    """When no set is sound there are errors only."""
    answer = solve([[NAN], [INF]])
    assert answer.ok.tolist() == [False, False]
    assert np.isnan(answer.advantages).all()
    assert np.isnan(answer.set_advantages).all()


def test_groups_of_another_size_than_expected_are_errors():
    """The caller's group size holds for each group, failed sets counted."""
    answer = solve([[1.0], [0.0], [0.5]], groups=[0, 0, 1], expect=Expectation(group_size=2))
    (error,) = answer.errors
    assert (error.row, error.code, error.field) == (2, "group_size_mismatch", "group")
    assert error.detail == "the group holds 1 sets in this request; expected 2"
    assert solve([[1.0], [NAN]], expect=Expectation(group_size=2)).ok.tolist() == [True, False]


def test_sets_of_another_size_than_expected_are_errors():
    """Fewer or more candidates than expected are an error; surplus ones that are truncated do not count."""
    rows = [[1.0, 0.0], [1.0], [1.0, 0.0, 0.5]]
    answer = solve(rows, expect=Expectation(candidates=2))
    assert [(error.row, error.code, error.field) for error in answer.errors] == [
        (1, "shape_mismatch", "candidates"),
        (2, "shape_mismatch", "candidates"),
    ]
    assert answer.errors[0].detail == "the set holds 1 candidates; expected 2"
    answer = solve(rows, expect=Expectation(candidates=2), malformed=MalformedPolicy(candidates=2))
    assert [error.row for error in answer.errors] == [1]
    answer = solve(rows, expect=Expectation(candidates=3), malformed=MalformedPolicy(candidates=2))
    assert [error.row for error in answer.errors] == [0, 1, 2]


@pytest.mark.parametrize("rule", [Mixture((1.0, 2.0)), Blend(Shapley(), Mixture((1.0, 2.0)), 0.5)])
def test_a_mixture_fails_the_sets_it_does_not_fit(rule):
    """Sets with another number of candidates than weights fail alone; sets without candidates do not."""
    answer = solve([[1.0, 0.0], [1.0], []], rule=rule)
    (error,) = answer.errors
    assert (error.row, error.code, error.field) == (1, "shape_mismatch", "candidates")
    assert error.detail == "the set has 1 candidates; expected 2, one per mixture weight"


def test_per_slot_fails_uneven_groups_alone():
    """Under `per_slot` the sets of a group have equally many candidates, at least one; other groups are answered."""
    answer = solve([[1.0], [1.0, 2.0], [1.0], [3.0], []], groups=[0, 0, 1, 1, 2], kind="per_slot")
    assert [(e.row, e.code, e.field) for e in answer.errors] == [
        (row, "shape_mismatch", "candidates") for row in (0, 1, 4)
    ]
    assert "got 1 to 2" in answer.errors[0].detail
    assert answer.ok.tolist() == [False, False, True, True, False]


def test_per_slot_looks_at_the_sets_that_are_left():
    """A failed set of another size does not make its group uneven."""
    assert solve([[1.0], [NAN, 2.0], [3.0]], kind="per_slot").ok.tolist() == [True, False, True]


def test_failed_sets_have_tokens_without_numbers():
    """A failed set has NaN on its tokens, or no tokens when their count is what is wrong."""
    sets = [
        OneSet([NAN], spans=[(0, 1)], n_tokens=2),
        OneSet([0.5], spans=[(0, 1)], n_tokens=2),
        OneSet([0.5], spans=[(0, 1)], n_tokens=-1),
        OneSet([0.0], spans=[(0, 1)], n_tokens=1),
    ]
    options = SetCreditOptions(normalization=Normalization(type="centered"), tokens=TokenPolicy())
    answer = set_credit(columns(sets), options)
    assert answer.token_splits.tolist() == [0, 2, 4, 4, 5]
    assert optional(answer.token_advantages) == [None, None, 0.25, 0.25, -0.25]


def test_a_missing_set_reward_gives_zero_and_a_flag():
    """A response without its own reward has set-reward advantage 0, and its whole group is flagged."""
    sets = [OneSet([0.5], set_reward=1.0), OneSet([1.0], set_reward=0.0), OneSet([0.25])]
    answer = set_credit(columns(sets), SetCreditOptions(normalization=Normalization(epsilon=0.0)))
    half = math.sqrt(0.5)
    assert answer.set_reward_advantages == pytest.approx([half, -half, 0.0], abs=WORKED)
    assert answer.flags.tolist() == [Flag.GROUP_INCOMPLETE] * 3
    assert solve([[0.5]]).set_reward_advantages is None


def test_the_set_reward_of_a_failed_set_is_left_out():
    """The baseline of set rewards holds sound sets only."""
    sets = [OneSet([0.5], set_reward=1.0), OneSet([1.0], set_reward=0.0), OneSet([NAN], set_reward=9.0)]
    answer = set_credit(columns(sets), SetCreditOptions(normalization=Normalization(epsilon=0.0)))
    half = math.sqrt(0.5)
    assert optional(answer.set_reward_advantages) == pytest.approx([half, -half, None], abs=WORKED)


def test_tokens_are_answered_when_asked_for():
    """Without a token policy there are no tokens; with one, the spans are needed."""
    batch = columns([OneSet([0.5])])
    assert set_credit(batch, SetCreditOptions()).token_advantages is None
    with pytest.raises(ValueError, match="spans and n_tokens"):
        set_credit(batch, SetCreditOptions(tokens=TokenPolicy()))


def test_a_table_utility_needs_tables():
    """A table utility without tables is an error of the caller."""
    for rewards in ([0.5], []):
        with pytest.raises(ValueError, match="tables and table_splits"):
            set_credit(columns([OneSet(rewards)]), SetCreditOptions(utility=Table()))


@pytest.mark.parametrize("tokens", [None, TokenPolicy()])
def test_no_sets_have_no_answer(tokens):
    """An empty batch gives an empty answer."""
    batch = dataclasses.replace(columns([]), spans=np.empty((0, 2), dtype=np.int64))
    answer = set_credit(batch, SetCreditOptions(tokens=tokens))
    assert answer.credits.shape == answer.flags.shape == answer.gaps.shape == (0,)
    assert answer.errors == ()


@pytest.mark.parametrize("rule", [SetReward(), Shapley()])
def test_a_linear_utility_pays_every_candidate_the_same_way(rule):
    """The mean of one reward repeated pays everyone alike under both efficient rules."""
    answer = solve([[0.5, 0.5], [0.5, 0.5]], utility=Mean(empty=0.0), rule=rule)
    assert answer.credits == pytest.approx([0.25] * 4, abs=WORKED)


def test_rounding_of_large_utilities_is_no_contrast():
    """Credits that are 0 but for the rounding of the utilities they come from give no advantage, ε = 0 or not."""
    symmetric = [0.3, 0.1, 0.1, 0.7, 0.1, 0.7, 0.7, 0.3]
    batch = columns([OneSet([0.0] * 3, values=symmetric), OneSet([0.0] * 3, values=symmetric)])
    for kind in ("pooled", "centered", "batch_scaled"):
        answer = set_credit(
            batch, SetCreditOptions(utility=Table(), normalization=Normalization(type=kind, epsilon=0.0))
        )
        assert np.abs(answer.credits).max() < 1e-15
        assert not answer.advantages.any()
        assert (answer.flags & Flag.DEGENERATE_GROUP).all()


def test_a_checkpoint_ends_the_computation_between_kernel_calls():
    """What the checkpoint raises goes to the caller, before the next number of players is solved."""
    calls = []

    def checkpoint():
        calls.append(len(calls))
        if len(calls) == 2:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        set_credit(columns([OneSet([1.0] * n) for n in (1, 2, 3)]), SetCreditOptions(), (), checkpoint)
    assert calls == [0, 1]
