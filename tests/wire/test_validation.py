import json
import sys

import pytest
from pydantic import ValidationError

from creditd.wire.errors import MAX_ERRORS, ErrorCode
from creditd.wire.groups import GroupRequest
from creditd.wire.scar import ScarSolveRequest
from creditd.wire.v1 import MAX_REWARD_NAMES, ShapleyRequest
from creditd.wire.validation import WireError, from_validation_error, wire_error

SENT = "said-once-SENT"
ONE_SET = {"sets": [{"candidates": [{"reward": 1.0}]}]}


def failure(body, model=ShapleyRequest):
    """The wire's account of what is wrong with a body."""
    text = body if isinstance(body, str) else json.dumps(body)
    with pytest.raises(ValidationError) as caught:
        model.model_validate_json(text)
    return from_validation_error(caught.value)


def pointers(body, model=ShapleyRequest):
    """Where the offences are."""
    return [item.pointer for item in failure(body, model).items]


@pytest.mark.parametrize(
    ("choice", "pointer"),
    [
        ({"utility": {"type": "top_m", "m": "x"}}, "/utility/m"),
        ({"utility": {"type": "mean"}}, "/utility/empty"),
        ({"utility": {"type": "max", "floor": "x"}}, "/utility/floor"),
        ({"utility": {"type": "nope"}}, "/utility"),
        ({"utility": {}}, "/utility"),
        ({"utility": "max"}, "/utility"),
        ({"credit": {"type": "max_at_k", "k": 0}}, "/credit/k"),
        ({"credit": {"type": "mixture", "weights": [1.0, "x"]}}, "/credit/weights/1"),
        ({"credit": {"type": "blend", "from": {"type": "max_at_k", "k": 0}, "to": "shapley", "position": 0}},
         "/credit/from/k"),
        ({"credit": {"type": "blend", "from": "shapley", "to": {"type": "mixture", "weights": []}, "position": 0}},
         "/credit/to/weights"),
        ({"credit": {"type": "blend", "from": "nope", "to": "shapley", "position": 0}}, "/credit/from"),
        ({"credit": {"type": "blend", "from": "shapley", "to": "shapley", "position": 2}}, "/credit/position"),
        ({"credit": {"type": "blend", "from": "shapley", "position": 0}}, "/credit/to"),
        ({"credit": {"type": "blend", "from": "shapley", "to": {"type": "blend"}, "position": 0}}, "/credit/to"),
        ({"advantage": {"type": "nope"}}, "/advantage/type"),
        ({"advantage": {"epsilon": -1.0}}, "/advantage/epsilon"),
        ({"advantage": {"ddof": True}}, "/advantage/ddof"),
        ({"tokens": {"length_norm": 1}}, "/tokens/length_norm"),
        ({"expect": {"group_size": 0}}, "/expect/group_size"),
        ({"incomplete_group": "ignore"}, "/incomplete_group"),
        ({"malformed": {"failure_reward": None}}, "/malformed/failure_reward"),
        ({"estimator": {"budget": 0}}, "/estimator/budget"),
    ],
)  # fmt: skip
def test_a_pointer_names_what_is_in_the_body(choice, pointer):
    """Pointers of choices have no trace of the models behind them."""
    assert pointers({**ONE_SET, **choice}) == [pointer]


@pytest.mark.parametrize(
    ("columns", "pointer"),
    [
        ({"rewards": [[1.0], ["x"]]}, "/columns/rewards/1/0"),
        ({"rewards": {"values": [1.0, "x"], "row_splits": [0, 2]}}, "/columns/rewards/values/1"),
        ({"rewards": {"values": [1.0], "row_splits": [0, 1.5]}}, "/columns/rewards/row_splits/1"),
        ({"rewards": {"values": [1.0], "row_splits": [0, 2**63]}}, "/columns/rewards/row_splits/1"),
        ({"rewards": {"values": [1.0]}}, "/columns/rewards/row_splits"),
        ({"rewards": 1.0}, "/columns/rewards"),
        ({"rewards": [[1.0]], "groups": [1.5]}, "/columns/groups/0"),
        ({"rewards": [[1.0]], "groups": ["x" * 257]}, "/columns/groups/0"),
        ({"rewards": [[1.0]], "ids": [None]}, "/columns/ids/0"),
        ({"rewards": [[1.0]], "n_tokens": [True]}, "/columns/n_tokens/0"),
        ({"rewards": [[1.0]], "spans": {"starts": [0]}}, "/columns/spans/stops"),
        ({"rewards": [[1.0]], "utilities": [["x"]]}, "/columns/utilities/0/0"),
        ({"rewards": [[1.0]], "utilities": [[None]]}, "/columns/utilities/0/0"),
        ({"rewards": [[1.0]], "texts": [7]}, "/columns/texts/0"),
    ],
)
def test_a_pointer_into_columns_names_the_entry(columns, pointer):
    """The branch that was meant is the one that is told, with the entry that is wrong."""
    assert pointers({"columns": columns}) == [pointer]


@pytest.mark.parametrize(
    ("one", "pointer"),
    [
        ({"candidates": [{"reward": 1.0}, {"reward": "x"}]}, "/sets/0/candidates/1/reward"),
        ({"candidates": [{"reward": True}]}, "/sets/0/candidates/0/reward"),
        ({"candidates": [{"reward": 1.0, "span": [1]}]}, "/sets/0/candidates/0/span"),
        ({"candidates": [{"reward": 1.0, "span": [1, 2, 3]}]}, "/sets/0/candidates/0/span"),
        ({"candidates": [{"reward": 1.0, "id": 1.5}]}, "/sets/0/candidates/0/id"),
        ({"candidates": [{"reward": 1.0, "rewrad": 1.0}]}, "/sets/0/candidates/0/rewrad"),
        ({"candidates": {}}, "/sets/0/candidates"),
        ({}, "/sets/0/candidates"),
        ({"candidates": [], "n_tokens": 2**63}, "/sets/0/n_tokens"),
        ({"candidates": [], "group": []}, "/sets/0/group"),
    ],
)
def test_a_pointer_into_sets_names_the_field(one, pointer):
    """The set, the candidate and the field that are wrong are named."""
    assert pointers({"sets": [one]}) == [pointer]


@pytest.mark.parametrize("body", [{}, {**ONE_SET, "columns": {"rewards": [[1.0]]}}, {"sets": None, "columns": None}])
def test_exactly_one_form_is_asked_for(body):
    """Neither form and both are one offence of the whole body."""
    error = failure(body)
    assert (error.code, [item.pointer for item in error.items]) == (ErrorCode.INVALID_REQUEST, [""])
    assert error.detail == "give exactly one of sets and columns"


def test_an_unknown_field_has_its_own_code():
    """A field that the schema lacks is told apart from a value that is wrong."""
    assert failure({**ONE_SET, "extra": 1}).code is ErrorCode.UNKNOWN_FIELD
    assert failure({**ONE_SET, "utility": {"type": "max", "extra": 1}}).items[0].pointer == "/utility/extra"
    assert failure({**ONE_SET, "utility": {"type": "max", "max": 1}}).items[0].pointer == "/utility/max"
    assert failure({"rewards": [[1.0]], "expect": {"size": 2}}, GroupRequest).items[0].pointer == "/expect/size"


def test_the_name_of_a_field_in_python_is_no_name_on_the_wire():
    """`from` has another name where it is a reserved word; on the wire that is an unknown field."""
    blend = {"type": "blend", "from_": "shapley", "to": "owen", "position": 0.5}
    body = json.dumps({**ONE_SET, "credit": blend})
    with pytest.raises(ValidationError) as caught:
        ShapleyRequest.model_validate_json(body, by_alias=True, by_name=False)
    items = from_validation_error(caught.value).items
    assert {item.pointer: item.code.value for item in items} == {
        "/credit/from": "invalid_request",
        "/credit/from_": "unknown_field",
    }


def test_a_strange_name_is_escaped_and_cut():
    """A pointer follows RFC 6901, and a name in it is at most 64 characters."""
    assert pointers({**ONE_SET, "a/b~c": 1}) == ["/a~1b~0c"]
    assert pointers({**ONE_SET, "x" * 1000: 1}) == ["/" + "x" * 64]


def test_at_most_ten_offences_are_told():
    """However many fields are wrong, ten are named, in a fixed order."""
    error = failure({**ONE_SET, **{f"f{number:03}": 1 for number in range(300)}})
    assert [item.pointer for item in error.items] == [f"/f{number:03}" for number in range(MAX_ERRORS)]


def test_the_work_grows_with_the_findings_and_not_with_their_square():
    """Twice as many wrong fields cost twice as many calls: a body of them must not stop the event loop."""

    def calls(n_fields):
        with pytest.raises(ValidationError) as caught:
            ShapleyRequest.model_validate({f"f{number}": 1 for number in range(n_fields)})
        count = 0

        def watch(*_):
            nonlocal count
            count += 1

        before = sys.getprofile()
        sys.setprofile(watch)
        try:
            from_validation_error(caught.value)
        finally:
            sys.setprofile(before)
        return count

    assert calls(800) < 3 * calls(400)


BAD = 500_000


@pytest.mark.parametrize(
    "body",
    [
        '{"columns": {"rewards": [[' + ",".join(['"x"'] * BAD) + "]]}}",
        '{"columns": {"rewards": {"values": [' + ",".join(['"x"'] * BAD) + '], "row_splits": [0]}}}',
        '{"columns": {"rewards": [' + ",".join(['["x"]'] * BAD) + "]}}",
        '{"columns": {"rewards": [[1.0]], "groups": [' + ",".join(["1.5"] * BAD) + "]}}",
        '{"columns": {"rewards": [[1.0]], "texts": [' + ",".join(["1"] * BAD) + "]}}",
        '{"sets": [' + ",".join(["1"] * BAD) + "]}",
        '{"sets": [{"candidates": [' + ",".join(["1"] * BAD) + "]}]}",
        '{"sets": [{"candidates": [], "utilities": [' + ",".join(['"x"'] * BAD) + "]}]}",
    ],
    ids=["rows", "values", "short rows", "groups", "texts", "sets", "candidates", "utilities"],
)
def test_half_a_million_wrong_entries_are_few_findings(body):
    """Lists stop at their first wrong entry, so a hostile body makes a handful of findings."""
    with pytest.raises(ValidationError) as caught:
        ShapleyRequest.model_validate_json(body)
    assert caught.value.error_count() <= MAX_ERRORS
    assert from_validation_error(caught.value).items[0].pointer.count("/") >= 2


@pytest.mark.parametrize(
    "body",
    [
        {"sets": [{"candidates": [{"reward": SENT}]}]},
        {**ONE_SET, "credit": {"type": SENT}},
        {**ONE_SET, "advantage": {"type": SENT}},
        {**ONE_SET, "dry_run": SENT},
        {"columns": {"rewards": [[SENT]], "groups": [{SENT: 1}]}},
        {**ONE_SET, "extra": SENT},
    ],
)
def test_an_account_repeats_no_value(body):
    """No value of the input is in a message or in the exception's text."""
    error = failure(body)
    assert SENT not in f"{error} {error.detail} {error.items!r}"


@pytest.mark.parametrize("body", ["", "{", "nul", '{"a": 1', '{"sets": [1,]}', '"x"', "1", "[1]", '{"a": "\\ud800"}'])
def test_what_is_not_json_is_told_at_the_root(body):
    """A body that is no JSON object is one offence of the whole body."""
    error = failure(body)
    assert [item.pointer for item in error.items] == [""]
    assert error.code is ErrorCode.INVALID_REQUEST


def test_alternatives_are_told_together():
    """A value that may be one of several types names them all in one entry."""
    error = failure({"sets": [{"id": 1.5, "candidates": []}]})
    assert len(error.items) == 1
    assert "string" in error.detail
    assert "integer" in error.detail


def test_messages_say_what_is_expected():
    """Each entry says what would be right, in the words of the wire and not of the library behind it."""
    assert failure({}, GroupRequest).detail == "/rewards: the field is required"
    assert failure({"rewards": []}, GroupRequest).items[0].detail.startswith("got nothing; expected at least one entry")
    many = {str(number): 1.0 for number in range(MAX_REWARD_NAMES + 1)}
    too_many = failure({"sets": [{"candidates": [{"named_rewards": many}]}]})
    assert too_many.detail == f"/sets/0/candidates/0/named_rewards: expected at most {MAX_REWARD_NAMES} entries"
    assert failure({"sets": [{"candidates": [{"span": [1]}]}]}).detail.endswith("span: expected at least 2 entries")
    assert failure("").detail == "the body is empty; expected a JSON object"
    assert "nested too deeply" in failure("[" * 10_000).detail
    assert "expected one of" in failure({**ONE_SET, "utility": {"type": "nope"}}).detail
    assert failure({**ONE_SET, "dry_run": 1}).detail == "/dry_run: expected a valid boolean"


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"items": [{"completion": "a", "id": "x" * 257}]},
         "/items/0/id: expected at most 256 characters, or expected a valid integer"),
        ({"segmentation": {"type": "regex", "pattern": ""}}, "/segmentation/pattern: expected at least 1 character"),
        ({"segmentation": {"type": "regex", "pattern": "x" * 1025}},
         "/segmentation/pattern: expected at most 1024 characters"),
        ({"alpha": 1.5}, "/alpha: expected less than or equal to 1"),
        ({"estimator": {"target_standard_error": 0}}, "/estimator/target_standard_error: expected greater than 0"),
        ({"batch_size": 1.5}, "/batch_size: expected a valid integer"),
        ({"incomplete_group": "ignore"}, "/incomplete_group: expected 'flag' or 'error'"),
    ],
)  # fmt: skip
def test_limits_are_told_in_the_words_of_the_wire(body, detail):
    """Of strings, numbers and choices, whatever the library behind the wire calls them."""
    assert failure({"items": [{"completion": "a"}], **body}, ScarSolveRequest).detail == detail


@pytest.mark.parametrize(
    ("kind", "context", "detail"),
    [
        ("string_pattern_mismatch", {"pattern": "^a$"}, "expected a string that matches ^a$"),
        ("string_not_ascii", {}, "expected ASCII characters alone"),
        ("string_unicode", {}, "expected a valid string, unable to parse raw data as a unicode string"),
        ("int_parsing_size", {}, "expected an integer of fewer digits"),
        ("finite_number", {}, "expected a finite number"),
        ("multiple_of", {"multiple_of": 2}, "expected a multiple of 2"),
        ("invalid_key", {}, "expected strings as names of fields"),
        ("none_required", {}, "expected null"),
        ("tuple_type", {}, "expected a valid array"),
        ("bool_type", {}, "expected a valid boolean"),
        ("bytes_too_long", {"max_length": 1}, "expected at most 1 byte"),
    ],
)
def test_no_kind_of_finding_is_told_as_the_library_tells_it(kind, context, detail):
    """What a value should be is what was expected."""
    found = ValidationError.from_exception_data("body", [{"type": kind, "loc": (), "input": SENT, "ctx": context}])
    assert from_validation_error(found).detail == detail


def test_a_single_offence_is_its_own_error():
    """The error of one offence carries its code in both places."""
    error = wire_error(ErrorCode.SHAPE_MISMATCH, "/columns/ids", "got 1; expected 2")
    assert isinstance(error, WireError)
    assert (error.code, error.items[0].code, error.detail) == (
        ErrorCode.SHAPE_MISMATCH, ErrorCode.SHAPE_MISMATCH, "/columns/ids: got 1; expected 2",
    )  # fmt: skip
