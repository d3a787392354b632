import copy
import math

import pytest

from creditd.credit.set_credit import set_credit
from creditd.wire import v1
from creditd.wire.choices import options_of
from creditd.wire.columns import batch_of
from creditd.wire.errors import ErrorCode
from creditd.wire.limits import RequestLimits
from creditd.wire.validation import WireError
from wire.forms import FORMS, at_pointer, in_form, ragged, sets_with_everything

NAN, INF = float("nan"), float("inf")
LIMITS = RequestLimits()


def failures(body):
    """Errors of a request, with their pointers."""
    request = v1.ShapleyRequest.model_validate(body)
    batch = batch_of(request, LIMITS)
    answer = set_credit(batch.sets, options_of(request, LIMITS), batch.rejected)
    return [(error, batch.pointer(error)) for error in answer.errors]


def only_failure(body):
    """The one error of a request, and the value that its pointer means."""
    [(error, pointer)] = failures(body)
    return error, at_pointer(body, pointer)


def candidate_of(sets):
    """The candidate that is made wrong: the second one of the second set."""
    return sets[1]["candidates"][1]


def changed(field, value, *, named=False):
    """Sets in which a candidate, or its set, has another value."""
    sets = sets_with_everything(named=named)
    target = candidate_of(sets) if field in candidate_of(sets) else sets[1]
    target[field] = value
    return sets


NOISY = {"utility": {"type": "noisy_or"}}
KERNEL = {"utility": {"type": "log_det"}}
WRONG = [
    ({}, "reward", NAN, "non_finite_value", {NAN}),
    ({}, "reward", 1e101, "invalid_request", {1e101}),
    ({"utility": {"type": "plurality"}}, "label", None, "invalid_request", {None}),
    (NOISY, "scores", [0.5, NAN], "non_finite_value", {"row", 12}),
    (NOISY, "scores", [0.5, 2.0], "invalid_request", {"row", 12}),
    (NOISY, "scores", [0.5], "shape_mismatch", {"row", 11}),
    (KERNEL, "similarities", [[1.0, NAN], [0.0, 1.0]], "non_finite_value", {NAN}),
    (KERNEL, "similarities", [[1.0, 0.5], [0.0, 1.0]], "invalid_request", {"row", 20}),
    (KERNEL, "similarities", [[-2.0, 0.0], [0.0, 1.0]], "non_finite_utility", {"row", 20}),
    ({"utility": {"type": "redundancy", "penalty": 1.0}}, "similarities", [[1.0]], "shape_mismatch", {"row", 17}),
    ({"credit": {"type": "owen"}}, "union", None, "invalid_request", {None}),
    ({"tokens": {}}, "span", [5, 99], "shape_mismatch", {"row", 5}),
    ({"tokens": {}}, "n_tokens", -1, "shape_mismatch", {-1}),
    ({}, "set_reward", NAN, "non_finite_value", {NAN}),
]
"""Choices, the field that is made wrong, its value, the code, and what the pointer leads to: the value, the row that
holds it, or the row split that ends it."""


def kind_of(found):
    """A number or a name as it is, `row` for a list, one NaN for all of them."""
    if isinstance(found, list):
        return "row"
    return NAN if isinstance(found, float) and math.isnan(found) else found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("options", "field", "value", "code", "places"), WRONG)
def test_pointers_are_paths_of_the_request(form, options, field, value, code, places):
    """Whatever is wrong with a set, its pointer resolves in the body, in every form, to the value or to its row."""
    error, found = only_failure(in_form(form, changed(field, value), **options))
    assert (error.row, error.code) == (1, code)
    assert kind_of(found) in places


@pytest.mark.parametrize("form", FORMS)
def test_a_set_of_tables_points_at_its_entry(form):
    """An entry of a table is found in every form."""
    sets = [{"utilities": [0.0, 1.0, NAN if row else 0.5, 2.0], "candidates": [{}, {}]} for row in range(2)]
    body = in_form(form, sets, utility={"type": "table"})
    if form != "sets":
        del body["columns"]["row_splits"]
    error, found = only_failure(body)
    assert (error.row, error.position, math.isnan(found)) == (1, 2, True)


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["helpful", "a/b~c"])
def test_pointers_name_the_reward_that_is_wrong(form, name, aggregation):
    """Of several named rewards the pointer leads to the one that is no number, whatever its name."""
    sets = sets_with_everything(named=True)
    candidate_of(sets)["named_rewards"][name] = NAN
    body = in_form(form, sets, aggregation={"type": aggregation})
    error, found = only_failure(body)
    assert (error.row, error.position, error.code) == (1, 1, "non_finite_value")
    assert math.isnan(found)


def test_each_named_reward_has_a_form_of_its_own():
    """One named reward may come as rows and another one with row splits; pointers follow."""
    names = {"a": [[1.0, 2.0], [3.0, NAN]], "b": ragged([1.0, 2.0, 3.0, 4.0], [2, 2])}
    assert math.isnan(only_failure({"columns": {"named_rewards": names}})[1])
    names = {"a": [[1.0, 2.0], [3.0, 4.0]], "b": ragged([1.0, 2.0, 3.0, NAN], [2, 2])}
    assert math.isnan(only_failure({"columns": {"named_rewards": names}})[1])


@pytest.mark.parametrize("form", FORMS)
def test_a_sum_that_is_too_large_points_at_its_parts(form):
    """Where only the sum of named rewards is too large, the pointer leads to all of them."""
    sets = sets_with_everything(named=True)
    candidate_of(sets)["named_rewards"] = {"helpful": 9e99, "a/b~c": 9e99}
    error, found = only_failure(in_form(form, sets))
    assert (error.row, error.position) == (1, 1)
    assert set(found) == {"helpful", "a/b~c"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("named", "bare"), [(False, False), (True, False), (False, True)], ids=["rewards", "named", "row splits"]
)
def test_a_set_of_the_wrong_size_points_at_its_candidates(form, named, bare):
    """An expectation of another number of candidates leads to the row, or to its end."""
    sets = sets_with_everything(named=named)
    if bare:
        for one in sets:
            for candidate in one["candidates"]:
                del candidate["reward"]
    options = {"utility": {"type": "coverage"}, "expect": {"candidates": 4}}
    body = in_form(form, sets, **options)
    found = [(error.row, at_pointer(body, pointer)) for error, pointer in failures(body)]
    assert [row for row, _ in found] == [1, 2]
    if form == "sets" or (form == "rows" and not bare):
        assert [len(row) for _, row in found] == [2, 3]
    else:
        assert [end for _, end in found] == [6, 9]


def test_a_reward_called_row_splits_is_a_reward():
    """The name of a reward does not change how its column is read."""
    rows = {"row_splits": ragged([1.0, 2.0, 3.0], [1, 2])}
    body = {"columns": {"named_rewards": rows}, "expect": {"candidates": 2}}
    assert only_failure(body)[1] == 1
    body = {"columns": {"named_rewards": {"row_splits": [[1.0], [2.0, 3.0]]}}, "expect": {"candidates": 2}}
    assert only_failure(body)[1] == [1.0]


@pytest.mark.parametrize("form", FORMS)
def test_groups_and_ids_are_found(form):
    """A group of the wrong size, and an id that is there twice, are found in every form."""
    body = in_form(form, sets_with_everything(), expect={"group_size": 2})
    assert {at_pointer(body, pointer) for _, pointer in failures(body)} == {"p"}
    sets = [{"utilities": [0.0, 1.0, 0.5, 2.0], "candidates": [{"id": "x"}, {"id": "x"}]}]
    body = in_form(form, sets, utility={"type": "table"})
    if form != "sets":
        del body["columns"]["row_splits"]
    assert only_failure(body)[1] == "x"


# Structure


def refused(body):
    """Code and pointer of a request that is refused as a whole."""
    with pytest.raises(WireError) as refusal:
        batch_of(v1.ShapleyRequest.model_validate(body), LIMITS)
    return refusal.value.code, refusal.value.items[0].pointer


HUGE = 2**60


@pytest.mark.parametrize(
    ("columns", "code", "pointer"),
    [
        ({"row_splits": [0, HUGE], "topics": [["a"]]}, ErrorCode.SHAPE_MISMATCH, "/columns/row_splits"),
        ({"row_splits": [0, 2], "topics": [["a"]]}, ErrorCode.SHAPE_MISMATCH, "/columns/row_splits"),
        ({"row_splits": [0, 1], "topics": [["a"], ["b"]]}, ErrorCode.SHAPE_MISMATCH, "/columns/topics"),
        ({"row_splits": [0, 2, 1], "topics": [["a"]]}, ErrorCode.SHAPE_MISMATCH, "/columns/row_splits"),
        ({"row_splits": [1, 1], "topics": [["a"]]}, ErrorCode.SHAPE_MISMATCH, "/columns/row_splits"),
        ({"row_splits": [], "topics": [["a"]]}, ErrorCode.SHAPE_MISMATCH, "/columns/row_splits"),
        ({"row_splits": [0], "topics": []}, ErrorCode.INVALID_REQUEST, "/columns/row_splits"),
        ({"row_splits": [0, -HUGE, HUGE], "topics": [["a"]]}, ErrorCode.SHAPE_MISMATCH, "/columns/row_splits"),
        (
            {"row_splits": [0, 1], "topics": {"values": ["a"], "row_splits": [0, HUGE]}},
            ErrorCode.SHAPE_MISMATCH,
            "/columns/topics/row_splits",
        ),
        (
            {"row_splits": [0, HUGE], "topics": {"values": [], "row_splits": [0, 0]}},
            ErrorCode.SHAPE_MISMATCH,
            "/columns/row_splits",
        ),
        ({"topics": [["a"]]}, ErrorCode.INVALID_REQUEST, "/columns/row_splits"),
        ({"row_splits": [0, 1]}, ErrorCode.INVALID_REQUEST, "/columns/topics"),
        (
            {"rewards": [[1.0]], "row_splits": [0, 1], "topics": [["a"]]},
            ErrorCode.INVALID_REQUEST,
            "/columns/row_splits",
        ),
        (
            {"rewards": [[1.0]], "named_rewards": {"a": [[1.0]]}, "topics": [["a"]]},
            ErrorCode.INVALID_REQUEST,
            "/columns/named_rewards",
        ),
        (
            {"named_rewards": {"a": [[1.0]], "b/": [[1.0, 2.0]]}, "topics": [["a"]]},
            ErrorCode.SHAPE_MISMATCH,
            "/columns/named_rewards/b~1",
        ),
        (
            {"named_rewards": {"b/": {"values": [1.0], "row_splits": [0, 2]}}, "topics": [["a"]]},
            ErrorCode.SHAPE_MISMATCH,
            "/columns/named_rewards/b~1/row_splits",
        ),
        ({"row_splits": [0, 1], "topics": [[]], "labels": ["a", "b"]}, ErrorCode.SHAPE_MISMATCH, "/columns/labels"),
        ({"row_splits": [0, 1], "topics": [[]], "unions": []}, ErrorCode.SHAPE_MISMATCH, "/columns/unions"),
        ({"row_splits": [0, 1], "topics": [[]], "utilities": [[0.0]]}, ErrorCode.INVALID_REQUEST, "/columns/utilities"),
    ],
)
def test_columns_that_lie_are_refused_before_anything_is_made(columns, code, pointer):
    """Row splits, columns and names that do not fit refuse the request where they stand; nothing is allocated."""
    assert refused({"columns": columns, "utility": {"type": "coverage"}}) == (code, pointer)


@pytest.mark.parametrize(
    ("utility", "column", "rows"),
    [("noisy_or", "scores", [[0.5]]), ("redundancy", "similarities", [[1.0]])],
)
def test_rows_are_as_many_as_candidates_or_sets(utility, column, rows):
    """Scores have a row per candidate, similarities a row per set."""
    choice = {"type": utility, **({"penalty": 1.0} if utility == "redundancy" else {})}
    body = {"columns": {"rewards": [[1.0, 2.0], [3.0]], column: rows}, "utility": choice}
    assert refused(body) == (ErrorCode.SHAPE_MISMATCH, f"/columns/{column}")


@pytest.mark.parametrize("column", ["topics", "scores"])
def test_a_candidate_has_a_bounded_number_of_targets(column):
    """Up to 4,096 topics or scores of one candidate are taken; one more refuses the request."""
    utility = {"type": "coverage" if column == "topics" else "noisy_or"}
    values = list(range(4097)) if column == "topics" else [0.5] * 4097
    body = {"columns": {"row_splits": [0, 1], column: [values]}, "utility": utility}
    assert refused(body) == (ErrorCode.BUDGET_EXCEEDED, f"/columns/{column}")
    body["columns"][column] = [values[:4096]]
    assert failures(body) == []
    with pytest.raises(ValueError, match="at most 4096"):
        v1.ShapleyRequest.model_validate({"sets": [{"candidates": [{column: values}]}], "utility": utility})


def test_weights_of_names_that_are_not_there_are_refused():
    """Weights name rewards; one of them is not 0."""
    plain, named = [[1.0]], {"a": [[1.0]], "b": [[2.0]]}
    for rewards, weights, pointer in (
        ({"rewards": plain}, {"a": 1.0}, "/aggregation/weights"),
        ({"named_rewards": named}, {"c": 1.0}, "/aggregation/weights/c"),
        ({"named_rewards": named}, {"a": 0.0, "b": 0.0}, "/aggregation/weights"),
    ):
        body = {"columns": rewards, "aggregation": {"weights": weights}}
        assert refused(body) == (ErrorCode.INVALID_REQUEST, pointer)


def test_a_null_costs_a_candidate_only_where_it_counts():
    """A null under weight 0 is passed over; under any other weight the candidate does not play. A NaN is no null."""
    named = {"a": [[1.0, None]], "b": [[2.0, 3.0]]}
    body = {"columns": {"named_rewards": named}, "aggregation": {"weights": {"a": 0.0}}}
    batch = batch_of(v1.ShapleyRequest.model_validate(body), LIMITS)
    assert (batch.sets.rewards.tolist(), batch.sets.missing) == ([2.0, 3.0], None)
    counted = copy.deepcopy(body)
    counted["aggregation"]["weights"] = {"a": 1e-6}
    assert batch_of(v1.ShapleyRequest.model_validate(counted), LIMITS).sets.missing.tolist() == [False, True]
    body["columns"]["named_rewards"]["a"][0][1] = NAN
    assert failures(body) == []


def test_labels_and_topics_of_other_types_are_other_names():
    """The integer 1 and the string "1" are two labels, two topics and two unions; a weight is named by digits."""
    columns = {
        "rewards": [[1.0, 0.0]],
        "labels": [1, "1"],
        "unions": [1, "1"],
        "topics": [[1], ["1"]],
    }
    request = v1.ShapleyRequest.model_validate(
        {
            "columns": columns,
            "credit": {"type": "owen"},
            "utility": {
                "type": "sum",
                "terms": [
                    {"utility": {"type": "plurality"}},
                    {"utility": {"type": "coverage", "weights": {"1": 2.5}}},
                ],
            },
        }
    )
    features = batch_of(request, LIMITS).sets.features
    assert features.labels.tolist() == [0, 1]
    assert features.unions.tolist() == [0, 1]
    assert features.topics.tolist() == [0, 1]
    assert features.topic_weights.tolist() == [2.5, 2.5]


def test_a_topic_counts_once_per_candidate():
    """Topics are sorted, integers first, and each of a candidate stands once."""
    columns = {"row_splits": [0, 2], "topics": [["b", "a", "b", 10], [9, 9]]}
    features = batch_of(
        v1.ShapleyRequest.model_validate({"columns": columns, "utility": {"type": "coverage"}}), LIMITS
    ).sets.features
    assert features.topics.tolist() == [1, 2, 3, 0]
    assert features.topic_splits.tolist() == [0, 3, 4]


def test_a_sum_takes_one_coverage():
    """Candidates have one list of topics, so a sum has one coverage of them."""
    terms = [{"utility": {"type": "coverage"}}] * 2
    request = v1.ShapleyRequest.model_validate(
        {"columns": {"row_splits": [0, 1], "topics": [["a"]]}, "utility": {"type": "sum", "terms": terms}}
    )
    with pytest.raises(WireError, match="one coverage") as refusal:
        options_of(request, LIMITS)
    assert refusal.value.items[0].pointer == "/utility"


@pytest.mark.parametrize(
    "utility",
    [
        {"type": "facility_location", "unserved": 1.0},
        {"type": "sum", "terms": [{"utility": {"type": "max"}}], "empty": 1.0},
        {"type": "sum", "terms": []},
        {"type": "sum", "terms": [{"utility": {"type": "max"}}] * 17},
        {"type": "sum", "terms": [{"utility": {"type": "table"}}]},
        {"type": "sum", "terms": [{"utility": {"type": "sum", "terms": []}}]},
        {"type": "log_sum_exp", "temperature": 0.0, "empty": 0.0},
        {"type": "log_sum_exp", "temperature": NAN, "empty": 0.0},
        {"type": "cvar", "alpha": 0.0, "empty": 0.0},
        {"type": "trimmed_mean", "fraction": 0.5, "empty": 0.0},
        {"type": "quantile", "q": 1.5, "empty": 0.0},
        {"type": "min"},
        {"type": "noisy_or", "weights": []},
        {"type": "noisy_or", "weights": [1.0] * 4097},
        {"type": "coverage", "weights": {str(i): 1.0 for i in range(4097)}},
        {"type": "redundancy", "penalty": 1e7},
    ],
)
def test_utilities_that_make_no_sense_are_refused(utility):
    """Parameters out of range, sums within sums and lists that are too long do not fit the schema."""
    body = {"columns": {"rewards": [[1.0]]}, "utility": utility}
    with pytest.raises(ValueError, match="validation error"):
        v1.ShapleyRequest.model_validate(body)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("values", [(1e308, 1e308), (1e308, -1e308), (INF, -INF)])
def test_rewards_whose_sum_leaves_the_numbers_fail_their_set(form, values):
    """Overflow is no warning and no number: it fails the set at the reward that is too large."""
    sets = sets_with_everything(named=True)
    candidate_of(sets)["named_rewards"] = dict(zip(("helpful", "a/b~c"), values, strict=True))
    weights = {"helpful": 1e6, "a/b~c": 1e6}
    for kind in ("sum_then_normalize", "normalize_then_sum"):
        error, found = only_failure(in_form(form, sets, aggregation={"type": kind, "weights": weights}))
        assert (error.row, error.position) == (1, 1)
        assert found in values
