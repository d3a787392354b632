import dataclasses
import math

import numpy as np
import pytest

from credit.composed_batches import TWO, answered, batch_of, candidate, options_of, refused
from creditd.credit import (
    Additive,
    Bounded,
    BySensitivity,
    ComposeOptions,
    Expectation,
    Flag,
    LeaveOneOut,
    RewardPart,
    SetCreditOptions,
    SetError,
    composed_credit,
)

ONE = [[0, 4]]


@pytest.mark.parametrize(
    ("changes", "code", "field", "entry"),
    [
        ({"units": [[0, 2]], "values": [1.0]}, "shape_mismatch", "units", None),
        ({"units": [[1, 4]], "values": [1.0]}, "shape_mismatch", "units", 0),
        ({"units": [[0, 5]], "values": [1.0]}, "shape_mismatch", "units", 0),
        ({"units": [[-1, 4]], "values": [1.0]}, "shape_mismatch", "units", 0),
        ({"units": [[0, 3], [2, 4]], "values": [1.0, 1.0]}, "shape_mismatch", "units", 1),
        ({"units": [[2, 4], [0, 2]], "values": [1.0, 1.0]}, "shape_mismatch", "units", 0),
        ({"units": [[0, 0], [0, 4]], "values": [1.0, 1.0]}, "shape_mismatch", "units", 0),
        ({"units": [[0, 1], [2, 4]], "values": [1.0, 1.0]}, "shape_mismatch", "units", 1),
        ({"units": ONE, "values": [1.0, 2.0]}, "shape_mismatch", "unit_values", None),
        ({"units": ONE, "values": [math.nan]}, "non_finite_value", "unit_values", 0),
        ({"units": ONE, "values": [1e101]}, "invalid_request", "unit_values", 0),
        ({"units": ONE}, "invalid_request", "unit_values", None),
        ({"values": [1.0]}, "invalid_request", "units", None),
        ({"units": ONE, "values": [1.0], "utilities": [0.0, 1.0]}, "invalid_request", "unit_values", None),
        ({"units": ONE, "utilities": [0.0]}, "shape_mismatch", "utilities", None),
        ({"units": ONE, "utilities": [0.0, math.inf]}, "non_finite_value", "utilities", 1),
        ({"units": ONE, "values": [1.0], "tree": []}, "invalid_request", "tree", None),
        ({"units": ONE, "utilities": [0.0, 1.0], "tree": [[0, 0]]}, "shape_mismatch", "tree", None),
        (
            {"units": [[0, 1], [1, 4]], "utilities": [0.0, 0.0, 0.0, 1.0], "tree": [[0, 0]]},
            "shape_mismatch",
            "tree",
            None,
        ),
        ({"sensitivities": [1.0] * 4}, "invalid_request", "sensitivities", None),
    ],
)
def test_parts_that_do_not_fit_cost_their_set(changes, code, field, entry):
    """A code, the field, the candidate and the entry; the other sets of the request are answered."""
    sets = [[candidate(0.5, (6, 9)), candidate(1.0, (0, 4), **changes)], [candidate(0.3, (0, 4))]]
    found = composed_credit(batch_of(*sets, groups=[0, 0]), ComposeOptions())
    (error,) = found.errors
    assert (error.row, error.position, error.code, error.field, error.entry) == (0, 1, code, field, entry)
    assert "expected" in error.detail or "needs" in error.detail or "takes" in error.detail or "tree" in error.detail
    assert found.items[0] is None
    assert Flag.GROUP_INCOMPLETE in Flag(found.items[1].flags)


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"units": ONE, "values": [1.0]}, "invalid_request", "units"),
        ({"sensitivities": [1.0] * 4, "units": ONE}, "invalid_request", "units"),
        ({"sensitivities": [1.0] * 4, "values": [1.0]}, "invalid_request", "unit_values"),
        ({"sensitivities": [1.0] * 3}, "shape_mismatch", "sensitivities"),
        ({"sensitivities": [1.0, math.inf, 1.0, 1.0]}, "non_finite_value", "sensitivities"),
        ({"sensitivities": [1.0, 1e101, 1.0, 1.0]}, "invalid_request", "sensitivities"),
    ],
)
def test_sensitivities_that_do_not_fit_cost_their_set(changes, code, field):
    """One entry for each token, a usable number or none, and nothing else beside."""
    error = refused(batch_of([candidate(1.0, (0, 4), **changes)], inside=BySensitivity()))
    assert (error.position, error.code, error.field) == (0, code, field)


def test_units_hold_tokens_that_the_policy_chose():
    """A unit of masked tokens alone has nothing to give credit to; masked tokens may stand in units and between."""
    mask = np.array([True, False, False, True, *[True] * 8])
    made = [candidate(1.0, (0, 4), units=units, values=[0.1] * len(units)) for units in ([[0, 1], [3, 4]], [[0, 4]])]
    for one in made:
        assert answered(batch_of([one], masks=[mask]))[0].ledger.candidates[0].tokens == 2
    empty = candidate(1.0, (0, 4), units=[[0, 1], [1, 3], [3, 4]], values=[0.1] * 3)
    error = refused(batch_of([empty], masks=[mask]))
    assert (error.field, error.entry) == ("units", 1)
    assert "no token that the policy chose" in error.detail
    short = refused(batch_of([made[0]], masks=[mask[:5]]))
    assert (short.code, short.field, short.position) == ("shape_mismatch", "completion_mask", None)


def test_a_candidate_of_masked_tokens_has_no_units():
    """Nothing is shared out among none; its advantage is in the account, with a mass of 0."""
    mask = np.arange(12) >= 4
    one = candidate(1.0, (0, 4), units=np.empty((0, 2)), utilities=[0.0])
    item = answered(batch_of([one, candidate(0.5, (4, 8))], masks=[mask]))[0]
    assert item.unit_values[0].tolist() == []
    assert item.ledger.candidates[0].mass == 0.0
    assert item.token_advantages[:4].tolist() == [0.0] * 4


def test_utilities_of_partial_texts_need_max_and_shapley():
    """The function that makes credit of them is that of one utility and one rule; others are refused."""
    one = candidate(1.0, (0, 4), units=ONE, utilities=[0.0, 1.0])
    error = refused(batch_of([one]), options_of(rule=LeaveOneOut()))
    assert (error.field, error.position) == ("utilities", 0)
    assert "leave_one_out" in error.detail
    assert refused(batch_of([one], given=True, scored=False, set_advantages=[0.0])).field == "utilities"


def test_named_rewards_that_are_normalised_one_by_one_have_no_one_slope():
    """Additive credit needs one; bounded does not."""
    one = candidate(1.0, (0, 4), units=[[0, 1], [1, 4]], values=[0.5, 0.5])
    parts = (RewardPart(1.0, np.array([0.5])), RewardPart(1.0, np.array([0.5])))
    assert refused(batch_of([one], parts=parts)).field == "inside"
    assert answered(batch_of([one], inside=Bounded(), parts=parts))[0].ledger.candidates[0].units is not None


def test_limits_of_units():
    """So many units, and with utilities so many of a table."""
    one = candidate(1.0, (0, 4), units=[[k, k + 1] for k in range(4)], values=[0.1] * 4)
    error = refused(batch_of([one]), ComposeOptions(max_units=3))
    assert (error.code, error.detail) == ("too_many_players", "got 4 units; expected at most 3")
    table = candidate(1.0, (0, 4), units=[[k, k + 1] for k in range(4)], utilities=[*[0.1] * 15, 1.0])
    options = ComposeOptions(SetCreditOptions(max_table_players=3))
    assert refused(batch_of([table]), options).code == "too_many_players"
    assert answered(batch_of([table]), ComposeOptions(SetCreditOptions(max_table_players=4)))


def test_errors_of_sets_are_those_of_set_credit():
    """NaN rewards, spans that overlap, sizes that were expected: as on the other route; the first error counts."""
    broken = [candidate(math.nan, (0, 4)), candidate(0.5, (4, 8))]
    assert refused(batch_of(broken)).code == "non_finite_value"
    overlap = [candidate(1.0, (0, 4)), candidate(0.5, (3, 8))]
    assert refused(batch_of(overlap)).field == "span"
    expect = options_of(expect=Expectation(group_size=2))
    assert refused(batch_of([candidate(1.0, (0, 4))]), expect).code == "group_size_mismatch"
    known = SetError(0, "invalid_request", "reward", 0, "reward is missing")
    found = composed_credit(batch_of(broken, [candidate(0.1, (0, 4))]), ComposeOptions(), (known,))
    assert found.errors == (known,)
    assert found.items[1] is not None


def test_somebody_who_waits_no_longer_ends_the_work():
    """The checkpoint is called for each set, and what it raises ends everything."""
    calls = []

    def leave():
        calls.append(1)
        if len(calls) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        composed_credit(batch_of(*TWO, groups=[0, 0]), ComposeOptions(), (), leave)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_shares_lie_between_none_and_all(share):
    """λ in [0, 1]."""
    for kind in (Additive, Bounded):
        with pytest.raises(ValueError, match="0 ≤ share ≤ 1"):
            kind(share)


def test_columns_that_do_not_fit_are_refused():
    """One mask and one choice per set, one part per candidate."""
    batch = batch_of(*TWO)
    for changes in ({"parts": ()}, {"masks": ()}, {"inside": ()}, {"slopes": np.zeros(3)}):
        with pytest.raises(ValueError, match="expected"):
            dataclasses.replace(batch, **changes)


def test_columns_that_are_needed_are_named():
    """Without spans, or without token counts, there is nothing to give an advantage to."""
    batch = batch_of(*TWO)
    for lacking in ({"spans": None}, {"n_tokens": None}):
        with pytest.raises(ValueError, match="need spans and n_tokens"):
            composed_credit(
                dataclasses.replace(batch, sets=dataclasses.replace(batch.sets, **lacking)), ComposeOptions()
            )
