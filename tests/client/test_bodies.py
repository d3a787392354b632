import json
import math

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.client import Client, InvalidRequestError, Ragged
from creditd.client.arrays import ragged
from creditd.client.bodies import encoded
from creditd.wire import codec, v1
from creditd.wire.utilities import TableUtility

ROWS = [[0.9, None, 0.5], [], [0.25]]
COLUMNS = {
    "groups": ["p", "p", 7],
    "ids": ["a", None, 3],
    "spans": [[[0, 2], None, (3, 5)], [], [[1, 4]]],
    "n_tokens": [6, 2, 5],
    "set_rewards": [0.5, None, -1.0],
    "texts": [["x", None, "y"], [], ["z"]],
}
MAPPINGS = [
    {
        "id": "a",
        "group": "p",
        "n_tokens": 6,
        "set_reward": 0.5,
        "candidates": [
            {"reward": 0.9, "span": [0, 2], "text": "x", "id": "unused but for tables"},
            {"reward": None, "span": None},
            {"reward": 0.5, "span": (3, 5), "text": "y"},
        ],
    },
    {"group": "p", "n_tokens": 2, "candidates": []},
    {
        "id": 3,
        "group": 7,
        "n_tokens": 5,
        "set_reward": -1.0,
        "candidates": [{"reward": 0.25, "span": [1, 4], "text": "z"}],
    },
]
TABLES = [[0.0, 0.3, 0.5, 1.0], [0.0], [0.2, 0.8]]
TABLE_MAPPINGS = [
    {"utilities": TABLES[0], "candidates": [{"id": "x"}, {"id": "c"}]},
    {"utilities": TABLES[1], "candidates": []},
    {"utilities": TABLES[2], "candidates": [{}]},
]


class Tensor:
    """As little of a tensor as any framework has."""

    def __init__(self, values: list) -> None:
        self.values = values
        self.shape = np.shape(values)

    def tolist(self) -> list:
        """Give Python numbers, also from bfloat16."""
        return self.values


def sent(*arguments, method="shapley", **options) -> dict:
    """Return the body that a call sends; it is the same document in both formats."""
    bodies = {}

    def remember(request: httpx.Request) -> httpx.Response:
        bodies[request.headers["content-type"]] = request.content
        return httpx.Response(404)

    for wire_format in ("json", "binary"):
        with (
            Client("http://credit.test", transport=httpx.MockTransport(remember), wire_format=wire_format) as client,
            pytest.raises(Exception, match="404"),
        ):
            getattr(client, method)(*arguments, **options)
    document = json.loads(bodies["application/json"])
    assert listed(codec.decode(bodies[codec.MEDIA_TYPE], arrays=True)) == listed(document)
    return document


def listed(value):
    """A document with lists for arrays, and a name for NaN, which equals nothing."""
    found = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(found, dict):
        return {name: listed(entry) for name, entry in found.items()}
    if isinstance(found, list):
        return [listed(entry) for entry in found]
    return "NaN" if isinstance(found, float) and math.isnan(found) else found


def refused(*arguments, method="shapley", **options) -> tuple[str, str]:
    """Return code and pointer of the refusal of a call, made before anything is sent."""
    with Client("local:") as client, pytest.raises(InvalidRequestError) as caught:
        getattr(client, method)(*arguments, **options)
    assert "expected" in str(caught.value)
    return caught.value.code, caught.value.items[0].pointer


def test_mappings_and_columns_are_one_request() -> None:
    """The same sets in either form are the same bytes, and names that need not travel stay here."""
    assert sent(ROWS, **COLUMNS, tokens={}) == sent(MAPPINGS, tokens={})
    assert "ids" not in sent(MAPPINGS)["columns"]
    assert set(sent(MAPPINGS)["columns"]) == {"rewards", "groups", "set_rewards", "texts"}


def test_tables_need_no_sets() -> None:
    """As mappings, beside sets of nothing, or alone: the tables say how many candidates there are."""
    alone = sent(utilities=TABLES, utility="table")
    assert alone["columns"]["rewards"] == {"values": [None] * 3, "row_splits": [0, 2, 2, 3]}
    assert alone == sent([[None, None], [], [None]], utilities=TABLES, utility={"type": "table"})
    assert alone == sent(
        [[None, None], [], [None]], utilities=Ragged.from_rows(TABLES), utility=TableUtility(type="table")
    )
    mapped = sent(TABLE_MAPPINGS, utility="table")
    assert mapped["columns"].pop("candidate_ids") == ["x", "c", 0]
    assert mapped == alone
    named = sent(utilities=TABLES, utility="table", candidate_ids=["x", "c", 0])
    assert named == sent(utilities=TABLES, utility="table", candidate_ids=[["x", "c"], [], [0]])


def test_the_whole_body_fits_the_schema() -> None:
    """Every option in every form is understood by the wire's own model."""
    for options in (
        {"utility": "sum", "credit": "leave_one_out", "advantage": "centered"},
        {
            "utility": {"type": "top_m", "m": np.int64(2)},
            "credit": {
                "type": "blend",
                "from": "shapley",
                "to": {"type": "max_at_k", "k": 2},
                "position": np.float32(0.5),
            },
            "advantage": {"type": "pooled", "ddof": 0},
        },
        {
            "utility": v1.MaxUtility(floor=0.5),
            "credit": v1.MixtureCredit(type="mixture", weights=[1.0, 2.0]),
            "advantage": v1.AdvantageChoice(type="none"),
        },
        {
            "credit": v1.BlendCredit.model_validate(
                {"type": "blend", "from": "shapley", "to": "own_reward", "position": 0.1}
            )
        },
        {"credit": {"type": "mixture", "weights": np.array([0.5, 0.5])}},
        {"tokens": {"length_norm": True}, "malformed": {"extra": "score_all"}, "expect": {"candidates": 4}},
        {"tokens": v1.TokensChoice(), "estimator": "exact", "incomplete_group": "error"},
    ):
        body = sent(MAPPINGS if "tokens" in options else ROWS, **options)
        v1.ShapleyRequest.model_validate_json(json.dumps(body))


@pytest.mark.parametrize(
    "rewards",
    [
        [[0.5, 1.0], [0.0, 2.0]],
        [(0.5, 1), (False, 2)],
        ((0.5, 1.0), (0.0, 2.0)),
        np.array([[0.5, 1.0], [0.0, 2.0]]),
        np.array([[0.5, 1.0], [0.0, 2.0]], dtype=np.float32),
        np.array([[0.5, 1.0], [0.0, 2.0]], dtype=object),
        [np.array([0.5, 1.0], dtype=np.float16), [np.float32(0.0), np.int64(2)]],
        Tensor([[0.5, 1.0], [0.0, 2.0]]),
        [Tensor([0.5, 1.0]), Tensor([0.0, 2.0])],
        Ragged.from_rows([[0.5, 1.0], [0.0, 2.0]]),
        Ragged(values=np.array([0.5, 1.0, 0.0, 2.0]), row_splits=np.array([0, 2, 4], dtype=np.int32)),
    ],
)
def test_numbers_of_any_library_are_taken(rewards) -> None:
    """Lists, tuples, arrays of any width, tensors: the same numbers, for both routes."""
    assert sent(rewards)["columns"]["rewards"] == {"values": [0.5, 1, 0, 2], "row_splits": [0, 2, 4]}
    assert sent(rewards, method="group")["rewards"] == [[0.5, 1], [0, 2]]
    assert sent({"a": rewards}, method="group")["rewards"] == {"a": [[0.5, 1], [0, 2]]}


@pytest.mark.parametrize(
    "n_tokens",
    [
        [[3, 4], [5]],
        [np.array([3, 4], dtype=np.int32), [np.int64(5)]],
        [Tensor([3.0, 4.0]), Tensor([5])],
        Ragged.from_rows([[3, 4], [5]]),
    ],
)
def test_numbers_of_tokens_travel_as_integers(n_tokens) -> None:
    """Whole numbers of any library become integers; others are left for the schema to refuse."""
    body = sent([[0.5, 1.0], [0.0]], method="group", n_tokens=n_tokens, weights=None)
    assert body["n_tokens"] == [[3, 4], [5]]
    assert all(type(n) is int for row in body["n_tokens"] for n in row)
    assert set(body) == {"rewards", "n_tokens", "convention", "advantage"}
    with Client("local:") as client, pytest.raises(InvalidRequestError, match="/n_tokens/0/1"):
        client.group([[0.5, 1.0]], n_tokens=[[3, 4.5]])


@pytest.mark.parametrize(
    ("rewards", "options", "code", "pointer", "place"),
    [
        ({}, {}, "invalid_request", "/rewards", (None, None)),
        ({"a": [["x"]]}, {}, "invalid_request", "/rewards/a/0/0", (None, None)),
        ({"a": [[1.0], [2.0]], "7": [[1.0], [2.0, 3.0]]}, {}, "shape_mismatch", "/rewards/a/1", (1, None)),
        ({"7": [[math.nan, 1.0]]}, {}, "non_finite_value", "/rewards/7/0/0", (0, 0)),
        ([[1.0, 2.0]], {"n_tokens": [[1]]}, "shape_mismatch", "/n_tokens/0", (0, None)),
        ([[1.0, 2.0]], {"n_tokens": [[1, -2]]}, "invalid_request", "/n_tokens/0/1", (0, 1)),
        ({"a": [[1.0]]}, {"weights": {"b": 1.0}}, "invalid_request", "/weights/b", (None, None)),
        ([[1.0, 0.5]], {"advantage": {"type": "pass_at_k", "k": 1}}, "invalid_request", "/rewards/0/1", (0, 1)),
    ],
)
def test_rewards_that_do_not_fit_are_named(rewards, options, code, pointer, place) -> None:
    """Pointers go through the names of rewards; row and place are found behind names that look like numbers."""
    with Client("local:") as client, pytest.raises(InvalidRequestError) as caught:
        client.group(rewards, **options)
    item = caught.value.items[0]
    assert (item.code, item.pointer) == (code, pointer)
    assert (item.row, item.candidate) == place


@pytest.mark.parametrize("spans", [np.array([[0, 1], [1, 3], [2, 4]]), [[(0, 1), (1, 3)], [np.array([2, 4])]]])
def test_spans_are_flat_as_an_array_and_nested_as_lists(spans) -> None:
    """A list of pairs would be ambiguous, so that lists go set by set."""
    columns = sent([[1.0, 2.0], [3.0]], spans=spans, n_tokens=np.array([4, 4]), tokens={})["columns"]
    assert columns["spans"] == {"starts": [0, 1, 2], "stops": [1, 3, 4]}
    assert columns["n_tokens"] == [4, 4]


@given(
    st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), min_size=1), min_size=1, max_size=4)
)
def test_numbers_travel_with_all_their_bits(rows) -> None:
    """What the schema reads is what was given, to the last bit and the sign of zero."""
    values, splits = ragged(rows, "sets")
    body = encoded({"columns": {"rewards": {"values": values, "row_splits": splits.tolist()}}})
    found = v1.ShapleyRequest.model_validate_json(body).columns.rewards.values
    assert np.array(found).tobytes() == np.concatenate(rows).tobytes()


def test_nan_travels_and_none_is_null(runner, script) -> None:
    """A NaN is the arithmetic's business, a None is a candidate that was not scored."""
    service = script()
    with pytest.raises(Exception, match="NaN"):
        runner.call(
            runner.client(service, wire_format="json"),
            "shapley",
            [[math.nan, None, 1.0], [math.inf, -math.inf], [0.5]],
        )
    assert b'"values":[NaN,null,1.0,Infinity,-Infinity,0.5]' in service.seen[0].content


@pytest.mark.parametrize(
    ("sets", "code", "pointer"),
    [
        (None, "invalid_request", "/sets"),
        ("abc", "invalid_request", "/sets"),
        (0.5, "invalid_request", "/sets"),
        ([0.5, 0.2], "invalid_request", "/sets/0"),
        ([[0.5], "ab"], "invalid_request", "/sets/1"),
        (np.array([0.5, 0.2]), "shape_mismatch", "/sets"),
        (np.zeros((1, 2, 3)), "shape_mismatch", "/sets"),
        ([[0.5], [1.0, "0.7"]], "invalid_request", "/sets/1/1"),
        ([[0.5, [1.0]], [1.0]], "invalid_request", "/sets/0/1"),
        ([[0.5], [1j]], "invalid_request", "/sets/1/0"),
        ([[np.float32(0.5)], [1.0, 10**400]], "invalid_request", "/sets/1/1"),
        ([[0.5], [np.array([1.0, 2.0])]], "invalid_request", "/sets/1/0"),
        (np.array([["a"]]), "invalid_request", "/sets/0/0"),
        ([{"candidates": []}, [0.5]], "invalid_request", "/sets/1"),
        ([{"candidate": []}], "unknown_field", "/sets/0/candidate"),
        ([{"group": 1}], "invalid_request", "/sets/0/candidates"),
        ([{"candidates": {}}], "invalid_request", "/sets/0/candidates"),
        ([{"candidates": [0.5]}], "invalid_request", "/sets/0/candidates/0"),
        ([{"candidates": [{"reward": 1.0}, {"score": 1.0}]}], "unknown_field", "/sets/0/candidates/1/score"),
        ([{"candidates": []}, {"candidates": [{"reward": 1.0}, {}]}], "invalid_request", "/sets/1/candidates/1/reward"),
        ([{"candidates": [{"reward": "1"}]}], "invalid_request", "/sets/0/candidates/0/reward"),
        ([{"candidates": [], "group": 1}, {"candidates": []}], "invalid_request", "/sets/1/group"),
        ([{"candidates": [], "set_reward": "1"}], "invalid_request", "/sets/0/set_reward"),
        ([{"candidates": [], "utilities": [0.0]}], "invalid_request", "/sets/0/utilities"),
        ([], "invalid_request", "/columns/rewards"),
    ],
)
def test_sets_of_the_wrong_form_are_named(sets, code, pointer) -> None:
    """The message says what was got and what was expected; the pointer says where."""
    assert refused(sets) == (code, pointer)


@pytest.mark.parametrize(
    ("sets", "pointer"),
    [
        ([{"candidates": []}], "/sets/0/n_tokens"),
        ([{"n_tokens": 3, "candidates": [{"reward": 1.0}]}], "/sets/0/candidates/0/span"),
        ([{"n_tokens": 3, "candidates": [{"reward": 1.0, "span": [1]}]}], "/sets/0/candidates/0/span"),
        ([{"n_tokens": 3, "candidates": [{"reward": 1.0, "span": 4}]}], "/sets/0/candidates/0/span"),
    ],
)
def test_tokens_need_spans(sets, pointer) -> None:
    """When token advantages are asked for, a span that is missing is named."""
    assert refused(sets, tokens={})[1] == pointer


@pytest.mark.parametrize(
    ("columns", "code", "pointer"),
    [
        ({"groups": "ab"}, "invalid_request", "/groups"),
        ({"groups": ["a"]}, "shape_mismatch", "/columns/groups"),
        ({"ids": ["a"]}, "shape_mismatch", "/ids"),
        ({"set_rewards": [1.0, "x"]}, "invalid_request", "/set_rewards/1"),
        ({"spans": [[(0, 1)], [(0, 1)]]}, "shape_mismatch", "/spans/0"),
        ({"spans": [[(0, 1), (1, 2)]]}, "shape_mismatch", "/spans"),
        ({"spans": [[(0, 1), (1, 2, 3)], [(0, 1)]]}, "shape_mismatch", "/spans/1"),
        ({"texts": ["a", "b"]}, "shape_mismatch", "/columns/texts"),
        ({"texts": [["a"], ["b"]]}, "shape_mismatch", "/texts/0"),
        ({"utilities": [[0.0, "x"]]}, "invalid_request", "/utilities/0/1"),
    ],
)
def test_columns_that_do_not_fit_are_named(columns, code, pointer) -> None:
    """A column has as many entries as there are sets or candidates."""
    assert refused([[1.0, 2.0], [3.0]], **columns) == (code, pointer)


def test_columns_do_not_go_with_mappings() -> None:
    """What is said in two places could differ."""
    assert refused([{"candidates": []}], groups=["a"]) == ("invalid_request", "/groups")


def test_a_table_has_a_power_of_two_values() -> None:
    """Otherwise nobody knows how many candidates it is about."""
    assert refused(utilities=[[0.0, 1.0, 2.0]], utility="table") == ("shape_mismatch", "/utilities/0")
    assert refused([{"candidates": []}], utility="table") == ("invalid_request", "/sets/0/utilities")
    with Client("local:") as client, pytest.raises(InvalidRequestError, match="/columns/utilities"):
        client.shapley([[1.0]], utility="table")


def test_what_has_no_json_form_is_refused() -> None:
    """An object of the caller's own is no option, and neither is a text that is not Unicode."""
    assert refused([[1.0]], utility={"type": "max", "empty": object()})[0] == "invalid_request"
    assert refused([[1.0]], texts=["\ud800"])[0] == "invalid_request"


@pytest.mark.parametrize(
    ("options", "code", "pointer"),
    [
        ({"utility": "mode"}, "invalid_request", "/utility"),
        ({"utility": "mean"}, "invalid_request", "/utility/empty"),
        ({"credit": {"type": "max_at_k"}}, "invalid_request", "/credit/k"),
        ({"advantage": {"type": "pooled", "epsilon": math.nan}}, "invalid_request", "/advantage/epsilon"),
        ({"expect": {"candidate": 4}}, "unknown_field", "/expect/candidate"),
        ({"incomplete_group": "ignore"}, "invalid_request", "/incomplete_group"),
    ],
)
def test_choices_are_the_schemas_business(options, code, pointer) -> None:
    """A choice that does not exist is refused by the same schema here and there, with a pointer."""
    with Client("local:") as client, pytest.raises(InvalidRequestError) as caught:
        client.shapley([[1.0]], **options)
    assert (caught.value.code, caught.value.items[0].pointer) == (code, pointer)
