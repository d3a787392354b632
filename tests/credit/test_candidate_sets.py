import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit.batches import columns
from credit.oracles import OneSet
from creditd.credit import CandidateSets, MalformedPolicy, SetCreditOptions, SetError, set_credit
from creditd.credit.candidate_sets import SetErrors, check_candidate_sets, find_players

INF = float("inf")
NAN = float("nan")
MOST_TOKENS = 131_072


def checked(sets, *, max_tokens=None, max_players=4, max_table_players=3):
    """Errors of a batch, by row."""
    batch = columns(sets)
    errors = SetErrors(batch.n_sets)
    check_candidate_sets(
        batch, errors, kept=None, max_players=max_players, max_table_players=max_table_players, max_tokens=max_tokens
    )
    found = errors.sorted()
    assert [error.row for error in found] == np.flatnonzero(errors.failed).tolist()
    return found


def played(sets, limit=None, **policy):
    """Players of a batch and the errors of finding them."""
    batch = columns(sets)
    errors = SetErrors(batch.n_sets)
    return find_players(batch, MalformedPolicy(candidates=limit, **policy), errors), errors.sorted()


def place(error: SetError):
    """Where an error points."""
    return error.row, error.code, error.field, error.position


def test_sound_sets_have_no_errors():
    """Finite rewards, nulls, empty sets and disjoint spans in any order pass."""
    sets = [
        OneSet([0.5, None, -1.0], spans=[(4, 6), (0, 0), (0, 4)], n_tokens=6, set_reward=1.0),
        OneSet([], spans=[], n_tokens=0),
    ]
    assert checked(sets, max_tokens=MOST_TOKENS) == ()
    assert checked([OneSet([0.0], values=[0.0, 1.0]), OneSet([], values=[0.5])]) == ()


@pytest.mark.parametrize(("value", "name"), [(NAN, "NaN"), (INF, "Infinity"), (-INF, "-Infinity")])
def test_a_reward_that_is_not_finite_names_its_candidate(value, name):
    """The first reward that is NaN or infinite fails its set alone, by its place in the set."""
    sets = [OneSet([0.5]), OneSet([]), OneSet([0.5, None, value, NAN]), OneSet([0.5])]
    (error,) = checked(sets)
    assert place(error) == (2, "non_finite_value", "reward", 2)
    assert error.detail == f"reward is {name}; expected a finite number of magnitude at most 1e+100 or null"


def test_without_a_column_of_nulls_every_reward_has_to_be_finite():
    """A batch that says nothing about nulls has none, so NaN is an error."""
    batch = dataclasses.replace(columns([OneSet([0.5, NAN]), OneSet([0.5])]), missing=None)
    errors = SetErrors(batch.n_sets)
    check_candidate_sets(batch, errors, kept=None, max_players=4, max_table_players=3, max_tokens=None)
    assert [place(error) for error in errors.sorted()] == [(0, "non_finite_value", "reward", 1)]
    assert find_players(batch, MalformedPolicy(), errors).playing.all()


def test_a_set_with_too_many_candidates_says_how_many():
    """The limit of rewards and the limit of tables are their own."""
    (error,) = checked([OneSet([0.0] * 4), OneSet([0.0] * 5)])
    assert place(error) == (1, "too_many_players", "candidates", None)
    assert error.detail == "the set holds 5 candidates; expected at most 4"
    (error,) = checked([OneSet([0.0] * 3, values=[0.0] * 8), OneSet([0.0] * 4, values=[0.0] * 16)])
    assert place(error) == (1, "too_many_players", "candidates", None)
    assert "at most 3" in error.detail


def test_tables_have_all_their_values():
    """A table has 2^K finite values, K being the candidates listed."""
    sets = [
        OneSet([0.0, 0.0], values=[0.0] * 4),
        OneSet([0.0, 0.0], values=[0.0] * 3),
        OneSet([0.0], values=[0.0, NAN]),
        OneSet([], values=[]),
    ]
    errors = checked(sets)
    assert [place(error) for error in errors] == [
        (1, "shape_mismatch", "utilities", None),
        (2, "non_finite_value", "utilities", 1),
        (3, "shape_mismatch", "utilities", None),
    ]
    assert errors[0].detail == "utilities holds 3 values; expected 2**2 for 2 candidates"


def test_the_rewards_beside_a_table_are_ignored():
    """A table needs no rewards, so NaN among them is no error."""
    assert checked([OneSet([NAN, INF], values=[0.0, 1.0, 2.0, 3.0])]) == ()


def test_a_set_reward_that_is_not_finite_fails_its_set():
    """The reward of a whole response is finite or null."""
    sets = [OneSet([0.0], set_reward=1.0), OneSet([0.0], set_reward=INF), OneSet([0.0])]
    (error,) = checked(sets)
    assert place(error) == (1, "non_finite_value", "set_reward", None)
    assert error.detail == "set_reward is Infinity; expected a finite number of magnitude at most 1e+100 or null"


@pytest.mark.parametrize("span", [(-1, 2), (3, 2), (2, 7), (7, 7)])
def test_a_span_outside_its_completion_names_its_candidate(span):
    """Spans stand inside their completion, start before stop."""
    sets = [OneSet([0.0], spans=[(0, 1)], n_tokens=1), OneSet([0.0, 0.0], spans=[(0, 2), span], n_tokens=6)]
    (error,) = checked(sets, max_tokens=MOST_TOKENS)
    assert place(error) == (1, "shape_mismatch", "span", 1)
    assert error.detail == f"span is [{span[0]}, {span[1]}]; expected 0 ≤ start ≤ stop ≤ n_tokens = 6"
    assert checked(sets, max_tokens=None) == ()


def test_overlapping_spans_name_the_later_candidate():
    """Two candidates never own one token; the lowest place in the set that begins inside another is named."""
    sets = [OneSet([0.0] * 3, spans=[(4, 9), (0, 3), (2, 5)], n_tokens=9), OneSet([0.0], spans=[(0, 9)], n_tokens=9)]
    (error,) = checked(sets, max_tokens=MOST_TOKENS)
    assert place(error) == (0, "shape_mismatch", "span", 0)
    assert error.detail == "span [4, 9] overlaps an earlier candidate; expected disjoint spans"


@pytest.mark.parametrize("n_tokens", [-1, MOST_TOKENS + 1])
def test_token_counts_are_in_range(n_tokens):
    """A completion has from 0 to the largest number of tokens."""
    (error,) = checked([OneSet([], spans=[], n_tokens=n_tokens)], max_tokens=MOST_TOKENS)
    assert place(error) == (0, "shape_mismatch", "n_tokens", None)
    assert str(n_tokens) in error.detail


def test_the_first_error_of_a_set_wins():
    """A set with several faults has one error, that of the check that ran first; other sets keep their own."""
    sets = [
        OneSet([NAN] * 5, spans=[(0, 9)] * 5, n_tokens=-3, set_reward=NAN),
        OneSet([0.0, NAN], spans=[(0, 9)] * 2, n_tokens=4, set_reward=NAN),
        OneSet([0.0, 0.0], spans=[(0, 9)] * 2, n_tokens=4, set_reward=NAN),
        OneSet([0.0, 0.0], spans=[(0, 9)] * 2, n_tokens=4, set_reward=0.0),
        OneSet([0.0, 0.0], spans=[(0, 3)] * 2, n_tokens=4, set_reward=0.0),
    ]
    assert [place(error) for error in checked(sets, max_tokens=MOST_TOKENS)] == [
        (0, "too_many_players", "candidates", None),
        (1, "non_finite_value", "reward", 1),
        (2, "non_finite_value", "set_reward", None),
        (3, "shape_mismatch", "span", 0),
        (4, "shape_mismatch", "span", 1),
    ]


def test_columns_that_the_checks_need_are_asked_for():
    """A table without its splits and tokens without spans are errors of the caller, not of a set."""
    bare = CandidateSets(
        rewards=np.zeros(1), row_splits=np.array([0, 1]), groups=np.zeros(1, dtype=np.int64), n_groups=1
    )
    with pytest.raises(ValueError, match="spans and n_tokens"):
        check_candidate_sets(bare, SetErrors(1), kept=None, max_players=4, max_table_players=4, max_tokens=MOST_TOKENS)
    table = CandidateSets(
        rewards=np.zeros(1),
        row_splits=np.array([0, 1]),
        groups=np.zeros(1, dtype=np.int64),
        n_groups=1,
        tables=np.zeros(2),
    )
    with pytest.raises(ValueError, match="table_splits"):
        check_candidate_sets(table, SetErrors(1), kept=None, max_players=4, max_table_players=4, max_tokens=None)


@pytest.mark.parametrize("row_splits", [[1, 2], [0, 1], [0, 3], [0, 2, 1, 2]])
def test_row_splits_that_do_not_cover_the_candidates_are_refused(row_splits):
    """Row splits rise from 0 to the number of candidates."""
    with pytest.raises(ValueError, match="row_splits"):
        CandidateSets(
            rewards=np.zeros(2),
            row_splits=np.array(row_splits),
            groups=np.zeros(len(row_splits) - 1, dtype=np.int64),
            n_groups=1,
        )


def test_groups_name_one_group_per_set():
    """Another number of groups than of sets is refused."""
    with pytest.raises(ValueError, match="got 3, expected 2"):
        CandidateSets(
            rewards=np.zeros(2), row_splits=np.array([0, 1, 2]), groups=np.zeros(3, dtype=np.int64), n_groups=1
        )


@given(st.lists(st.integers(0, 3), max_size=6))
def test_each_candidate_knows_its_set_and_its_place(sizes):
    """Owner and position undo the row splits, sets without candidates included."""
    batch = columns([OneSet([0.0] * size) for size in sizes])
    pairs = [(row, i) for row, size in enumerate(sizes) for i in range(size)]
    assert list(zip(batch.owner.tolist(), batch.position.tolist(), strict=True)) == pairs
    assert (batch.n_sets, batch.sizes.tolist()) == (len(sizes), sizes)


def test_surplus_candidates_are_truncated_or_scored():
    """Beyond the number asked for, candidates leave the game or stay in it, as the policy says."""
    sets = [OneSet([0.0, 1.0, None]), OneSet([2.0])]
    players, _ = played(sets, limit=2)
    assert players.playing.tolist() == [True, True, False, True]
    assert players.truncated.tolist() == [False, False, True, False]
    assert not players.unscored.any()
    players, _ = played(sets, limit=2, extra="score_all")
    assert players.playing.tolist() == [True, True, False, True]
    assert players.unscored.tolist() == [False, False, True, False]
    assert not players.truncated.any()


def test_duplicates_are_kept_or_collapsed():
    """Copies of a known text after its first become null players; −1 is a text of which nothing is known."""
    sets = [OneSet([0.5, 0.5, 0.5, 0.1, 0.1], texts=[7, 3, 7, -1, -1]), OneSet([0.9, 0.5], texts=[7, 3])]
    players, errors = played(sets, duplicates="collapse")
    assert players.copies.tolist() == [False, False, True, False, False, False, False]
    assert players.playing.tolist() == [True, True, False, True, True, True, True]
    assert errors == ()
    players, _ = played(sets)
    assert players.playing.all()
    assert not players.copies.any()


def test_a_copy_of_a_candidate_without_reward_is_not_a_copy():
    """The first scored candidate of a text plays, whatever stood before it."""
    players, errors = played([OneSet([None, 0.5, 0.5], texts=[1, 1, 1])], duplicates="collapse")
    assert players.playing.tolist() == [False, True, False]
    assert players.copies.tolist() == [False, False, True]
    assert errors == ()


def test_one_text_with_two_rewards_is_an_error():
    """The first candidate whose reward differs from that of its text is named; beyond the limit nobody looks."""
    sets = [OneSet([0.5, 0.1, 0.1, 0.5, 0.6], texts=[4, 5, 5, 4, 4]), OneSet([0.5, 0.5], texts=[4, 4])]
    _, (error,) = played(sets, duplicates="collapse")
    assert place(error) == (0, "invalid_request", "reward", 4)
    assert error.detail == "reward is 0.6 for a text that has another reward earlier in the set"
    _, errors = played(sets, limit=4, duplicates="collapse")
    assert errors == ()
    _, (error,) = played([OneSet([0.5, 0.1, 0.6, 0.2], texts=[9, 2, 9, 2])], duplicates="collapse")
    assert error.position == 2


def test_copies_in_a_table_need_no_reward():
    """In a table the rewards play no part, so copies are collapsed whatever stands there."""
    sets = [OneSet([NAN, 1.0], texts=[2, 2], values=[0.0, 1.0, 1.0, 1.0])]
    players, errors = played(sets, duplicates="collapse")
    assert players.copies.tolist() == [False, True]
    assert errors == ()


@given(
    st.lists(st.lists(st.tuples(st.sampled_from([None, 0.5]), st.integers(-1, 2)), max_size=5), max_size=4),
    st.sampled_from([None, 2, 3]),
    st.sampled_from(["truncate", "score_all"]),
    st.sampled_from(["keep", "collapse"]),
)
def test_every_candidate_has_one_part(rows, limit, extra, duplicates):
    """A candidate plays, or is a copy, or is unscored, or is surplus: exactly one of the four."""
    sets = [OneSet([r for r, _ in row], texts=[code for _, code in row]) for row in rows]
    players, _ = played(sets, limit=limit, extra=extra, duplicates=duplicates)
    parts = np.stack([players.playing, players.copies, players.truncated, players.unscored])
    assert (parts.sum(axis=0) == 1).all()


@pytest.mark.parametrize("value", [1.01e100, -1e308])
def test_a_reward_too_large_to_square_fails_its_set(value):
    """Finite numbers whose squares leave float64 are errors, so that no infinity ever comes of a reward."""
    (error,) = checked([OneSet([1.0, value]), OneSet([1e100, -1e100])])
    assert place(error) == (0, "invalid_request", "reward", 1)


def test_the_largest_rewards_give_finite_numbers():
    """Numbers at the limit come through the whole computation."""
    result = set_credit(columns([OneSet([1e100, -1e100]), OneSet([-1e100, 3.0])]), SetCreditOptions())
    assert not result.errors
    assert np.isfinite(result.credits).all()
    assert np.isfinite(result.advantages).all()


def test_surplus_candidates_do_not_count_for_the_limit():
    """A policy that writes hundreds of items costs an error only where they would play."""
    sets = columns([OneSet([0.5] * 300), OneSet([1.0])])
    assert [error.code for error in set_credit(sets, SetCreditOptions()).errors] == ["too_many_players"]
    policies = (MalformedPolicy(candidates=4), MalformedPolicy(candidates=4, extra="score_all"))
    kept, scored = (set_credit(sets, SetCreditOptions(malformed=policy)) for policy in policies)
    assert (kept.errors, len(scored.errors)) == ((), 1)
    assert np.isfinite(kept.credits[:4]).all()
    assert np.isnan(kept.credits[4:300]).all()
