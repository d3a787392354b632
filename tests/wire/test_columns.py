from typing import get_args

import numpy as np
import pytest

from creditd.credit import candidate_sets
from creditd.credit.candidate_sets import MalformedPolicy, SetError
from creditd.credit.credit_rules import Blend, LeaveOneOut, MaxAtK, Mixture, Shapley
from creditd.credit.flags import Flag
from creditd.credit.games import Table
from creditd.credit.group_advantages import Convention, GroupRule
from creditd.credit.order_statistics import Max, Mean, Min, RthBest, Sum, Threshold, TopM
from creditd.credit.set_advantages import NormalizationType
from creditd.credit.set_credit import SetCreditOptions
from creditd.credit.set_expectations import Expectation
from creditd.credit.token_advantages import TokenPolicy
from creditd.wire import groups, v1
from creditd.wire.arrays import numbered, numbers_or_missing
from creditd.wire.choices import CREDIT_NAMES, UTILITY_NAMES, options_of
from creditd.wire.columns import batch_of
from creditd.wire.errors import ErrorCode
from creditd.wire.limits import RequestLimits
from creditd.wire.validation import WireError

LIMITS = RequestLimits()
ROWS = [[0.5, None, -1.0], [], [2.0]]


def choices(**options):
    """The arithmetic's options of a request with these choices."""
    request = v1.ShapleyRequest.model_validate({"columns": {"rewards": [[1.0]]}, **options})
    return options_of(request, LIMITS)


def batch(**body):
    """The columns of a request."""
    return batch_of(v1.ShapleyRequest.model_validate(body), LIMITS)


def literals(field, model):
    """The values that a literal field of a model allows."""
    return set(get_args(model.model_fields[field].annotation))


# One vocabulary


def test_flags_have_one_name():
    """The wire's flags are the library's, in the order of their bits."""
    assert get_args(v1.FlagName) == Flag(sum(Flag)).wire_names


def test_codes_of_sets_are_codes_of_the_wire():
    """Whatever the library fails a set with, the wire has a code for it."""
    assert set(get_args(candidate_sets.ErrorCode)) <= {code.value for code in ErrorCode}


def test_choices_have_one_name():
    """Normalisations, group rules and conventions are called the same on the wire and in the library."""
    assert literals("type", v1.AdvantageChoice) == set(get_args(NormalizationType))
    assert literals("type", groups.GroupAdvantageChoice) == set(get_args(GroupRule))
    assert literals("convention", groups.GroupRequest) == set(get_args(Convention))


def test_every_utility_and_rule_of_the_wire_has_its_type():
    """The names that `/v1/info` lists are the tags of the schema's unions."""
    by_column = v1.ShapleyRequest.model_json_schema()["anyOf"][-1]["properties"]
    assert set(by_column["utility"]["discriminator"]["mapping"]) == {*UTILITY_NAMES, "model"}
    assert set(by_column["credit"]["discriminator"]["mapping"]) == set(CREDIT_NAMES)


# Options


def test_the_defaults_of_the_wire_are_those_of_the_library():
    """A request without choices asks for what the library does by default, within the limits of the service."""
    expected = SetCreditOptions(max_players=LIMITS.candidates, max_table_players=LIMITS.table_candidates)
    assert choices() == expected


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "max", "empty": 0.5}, Max(empty=0.5)),
        ({"type": "max", "floor": 0.5}, Max(floor=0.5)),
        ({"type": "min", "empty": 1.0}, Min(empty=1.0)),
        ({"type": "sum"}, Sum()),
        ({"type": "mean", "empty": -1.0}, Mean(empty=-1.0)),
        ({"type": "top_m", "m": 3}, TopM(m=3)),
        ({"type": "rth_best", "r": 2, "default": 0.1}, RthBest(r=2, default=0.1)),
        ({"type": "threshold", "threshold": 0.5, "count": 2}, Threshold(threshold=0.5, count=2)),
        ({"type": "table"}, Table()),
    ],
)
def test_a_utility_is_the_librarys(choice, expected):
    """Each utility choice becomes the library's utility with the same parameters."""
    assert choices(utility=choice).utility == expected


def test_a_rule_is_the_librarys():
    """Rules become the library's, blends with their ends by name or as objects."""
    assert choices(credit={"type": "max_at_k", "k": 3}).rule == MaxAtK(k=3)
    assert choices(credit={"type": "mixture", "weights": [1.0, 0.5]}).rule == Mixture(weights=(1.0, 0.5))
    ends = ({"from": "shapley", "to": {"type": "leave_one_out"}}, {"from": {"type": "shapley"}, "to": "leave_one_out"})
    for end in ends:
        blend = choices(credit={"type": "blend", **end, "position": 0.25}).rule
        assert blend == Blend(start=Shapley(), end=LeaveOneOut(), position=0.25)


def test_policies_are_the_librarys():
    """Every policy of a request reaches the arithmetic."""
    options = choices(
        tokens={"other": "next", "length_norm": True, "set_reward_weight": 0.5},
        malformed={"failure_reward": -1.0, "extra": "score_all", "duplicates": "collapse", "candidates": 4},
        expect={"group_size": 8, "candidates": 3},
        advantage={"type": "centered", "ddof": 0, "epsilon": 0.5, "baseline": "others"},
        incomplete_group="error",
    )
    assert options.tokens == TokenPolicy(other="next", length_norm=True, set_reward_weight=0.5)
    assert options.malformed == MalformedPolicy(-1.0, "score_all", "collapse", 4)
    assert options.expect == Expectation(group_size=8, candidates=3)
    assert options.fail_incomplete_groups is True
    normalization = options.normalization
    assert (normalization.type, normalization.ddof, normalization.epsilon) == ("centered", 0, 0.5)
    assert normalization.baseline == "others"


def test_contradicting_choices_are_refused():
    """A utility whose own parameters contradict each other is an invalid request at the utility."""
    with pytest.raises(WireError) as caught:
        choices(utility={"type": "max", "empty": 0.5, "floor": 0.25})
    assert (caught.value.code, caught.value.items[0].pointer) == (ErrorCode.INVALID_REQUEST, "/utility")
    with pytest.raises(WireError) as caught:
        choices(advantage={"type": "none", "baseline": "others"})
    assert (caught.value.code, caught.value.items[0].pointer) == (ErrorCode.INVALID_REQUEST, "/advantage")


# Columns


def test_all_forms_are_the_same_columns():
    """Sets, flat values and rows become equal arrays."""
    nested = batch(sets=[{"candidates": [{"reward": r} for r in row]} for row in ROWS])
    flat = batch(columns={"rewards": {"values": [0.5, None, -1.0, 2.0], "row_splits": [0, 3, 3, 4]}})
    rows = batch(columns={"rewards": ROWS})
    for one in (nested, flat, rows):
        np.testing.assert_array_equal(one.sets.rewards, [0.5, np.nan, -1.0, 2.0])
        np.testing.assert_array_equal(one.sets.missing, [False, True, False, False])
        np.testing.assert_array_equal(one.sets.row_splits, [0, 3, 3, 4])
        np.testing.assert_array_equal(one.sets.groups, [0, 1, 2])
        assert (one.sets.n_groups, one.rejected) == (3, ())
    assert (nested.nested, flat.nested, rows.nested) == (True, False, False)


def test_names_become_numbers_by_first_occurrence():
    """Groups are numbered in the order of their first set; 1 and "1" are two names."""
    numbers, count = numbered(["b", "a", "b", 1, "1"])
    assert (numbers.tolist(), count) == ([0, 1, 0, 2, 3], 4)
    groups = batch(columns={"rewards": [[1.0]] * 3, "groups": ["b", "a", "b"]}).sets
    assert (groups.groups.tolist(), groups.n_groups) == ([0, 1, 0], 2)


def test_a_nan_is_not_a_null():
    """A number that is not finite stays apart from one that is not there."""
    numbers, missing = numbers_or_missing([1.0, None, float("nan")])
    assert np.isnan(numbers).tolist() == [False, True, True]
    assert missing.tolist() == [False, True, False]
    assert numbers_or_missing([1.0, float("nan")])[1] is None
    assert numbers_or_missing([])[1] is None


def test_equal_texts_have_equal_codes():
    """Texts are numbered, unknown ones are −1, and no text is kept."""
    sets = [{"candidates": [{"reward": 0.0, "text": t} for t in texts]} for texts in (["x", "y", None], ["y"])]
    assert batch(sets=sets).sets.text_codes.tolist() == [0, 1, -1, 1]
    assert batch(columns={"rewards": [[0.0] * 3], "texts": ["x", None, "x"]}).sets.text_codes.tolist() == [0, -1, 0]
    assert batch(columns={"rewards": [[0.0]]}).sets.text_codes is None


def test_spans_are_half_open_pairs_and_null_is_empty():
    """Spans become pairs; a candidate without tokens has the empty span."""
    one = {"n_tokens": 9, "candidates": [{"reward": 1.0, "span": [2, 5]}, {"reward": 0.0, "span": None}]}
    sets = batch(sets=[one], tokens={}).sets
    assert (sets.spans.tolist(), sets.n_tokens.tolist()) == ([[2, 5], [0, 0]], [9])
    columns = {"rewards": [[1.0, 0.0]], "n_tokens": [9], "spans": {"starts": [2, 0], "stops": [5, 0]}}
    assert batch(columns=columns, tokens={}).sets.spans.tolist() == [[2, 5], [0, 0]]


def test_tables_are_flat_with_splits():
    """Tables of unequal size become one array with row splits; ids give the order of the arithmetic."""
    sets = [
        {"utilities": [0.0, 1.0, 2.0, 3.0], "candidates": [{"id": "b"}, {"id": "a"}]},
        {"utilities": [0.5, 1.5], "candidates": [{}]},
    ]
    columns = batch(sets=sets, utility={"type": "table"}).sets
    assert columns.tables.tolist() == [0.0, 1.0, 2.0, 3.0, 0.5, 1.5]
    assert columns.table_splits.tolist() == [0, 4, 6]
    assert columns.ranks.tolist() == [1, 0, 0]


def test_ids_rank_numbers_by_value_before_strings():
    """The order of ids is one fixed order of all names."""
    columns = {"rewards": [[0.0] * 4], "candidate_ids": ["a", 10, 9, "B"], "utilities": [[0.0] * 16]}
    assert batch(columns=columns, utility={"type": "table"}).sets.ranks.tolist() == [3, 1, 0, 2]


def test_what_a_set_lacks_rejects_the_set():
    """A set without what the request needs is rejected alone, the first lack of each set."""
    sets = [{"candidates": [{}, {}]}, {"candidates": [{"reward": 1.0}]}, {"candidates": [{"reward": None}]}]
    (error,) = batch(sets=sets).rejected
    assert (error.row, error.position, error.field, error.code) == (0, 0, "reward", "invalid_request")


@pytest.mark.parametrize(
    ("error", "nested", "flat", "rows"),
    [
        (("reward", 1), "/sets/1/candidates/1/reward", "/columns/rewards/values/4", "/columns/rewards/1/1"),
        (("span", 0), "/sets/1/candidates/0/span", "/columns/spans/starts/3", "/columns/spans/starts/3"),
        (("candidates", None), "/sets/1/candidates", "/columns/rewards/row_splits/2", "/columns/rewards/1"),
        (("set_reward", None), "/sets/1/set_reward", "/columns/set_rewards/1", "/columns/set_rewards/1"),
        (("group", None), "/sets/1/group", "/columns/groups/1", "/columns/groups/1"),
        (("n_tokens", None), "/sets/1/n_tokens", "/columns/n_tokens/1", "/columns/n_tokens/1"),
    ],
)
def test_a_pointer_is_in_the_form_of_the_request(error, nested, flat, rows):
    """One error of the arithmetic is three pointers, by the form in which the request came."""
    field, candidate = error
    found = SetError(row=1, code="shape_mismatch", field=field, position=candidate, detail="")
    sizes = (3, 2)
    forms = (
        batch(sets=[{"candidates": [{"reward": 0.0}] * size} for size in sizes]),
        batch(columns={"rewards": {"values": [0.0] * 5, "row_splits": [0, 3, 5]}}),
        batch(columns={"rewards": [[0.0] * size for size in sizes]}),
    )
    assert [form.pointer(found) for form in forms] == [nested, flat, rows]


def test_the_token_budget_is_checked_before_anything_is_allocated():
    """Too many tokens are refused by arithmetic on the counts; a count that fails its own set is none of them."""
    n_sets = RequestLimits().token_advantages // LIMITS.tokens_per_set + 1
    columns = {"rewards": [[1.0]] * n_sets, "spans": {"starts": [0] * n_sets, "stops": [0] * n_sets}}
    with pytest.raises(WireError) as caught:
        batch(columns={**columns, "n_tokens": [LIMITS.tokens_per_set] * n_sets}, tokens={})
    assert caught.value.code is ErrorCode.BUDGET_EXCEEDED
    impossible = batch(columns={**columns, "n_tokens": [2**62] * n_sets}, tokens={})
    assert impossible.sets.n_tokens.tolist() == [2**62] * n_sets
