"""What utilities need beside rewards, in every form that a caller may have it."""

import json

import httpx
import numpy as np
import pytest

from creditd.client import Client, InvalidRequestError
from creditd.client.results import Ragged
from creditd.wire.catalogue import CATALOGUE

REWARDS = [[0.9, 0.5, 0.9], [0.25, 0.5]]
FEATURES = {
    "labels": [["x", 1, "x"], ["1", 1]],
    "topics": [[["a"], ["a", 2], []], [["b"], ["b"]]],
    "scores": [[[0.5, 0.25], [0.0, 1.0], [0.5, 0.5]], [[1.0, 0.0], [0.75, 0.25]]],
    "unions": [["u", "u", 3], [0, 0]],
}
SIMILARITIES = [[[1.0, 0.5, 0.25], [0.5, 1.0, 0.0], [0.25, 0.0, 1.0]], [[1.0, 0.5], [0.5, 1.0]]]
ONE_NAME = {"labels": "label", "topics": "topics", "scores": "scores", "unions": "union"}
UTILITIES = {entry.name: entry.example["utility"] for entry in CATALOGUE.utilities if entry.name != "table"}
ALL_TERMS = [
    {"utility": {"type": name, **more}}
    for name, more in (
        ("plurality", {}),
        ("coverage", {}),
        ("noisy_or", {}),
        ("redundancy", {"penalty": 0.5}),
        ("max", {}),
    )
]
EVERYTHING = {"utility": {"type": "sum", "terms": ALL_TERMS}, "credit": "owen"}


def sent(*arguments, **options):
    """The columns that a call sends."""
    bodies = []

    def remember(request):
        bodies.append(request.content)
        return httpx.Response(404)

    with (
        Client("http://credit.test", transport=httpx.MockTransport(remember), wire_format="json") as client,
        pytest.raises(Exception, match="404"),
    ):
        client.shapley(*arguments, **options)
    return json.loads(bodies[0])["columns"]


def refused(*arguments, **options):
    """Code and pointer of a refusal."""
    with Client("local:") as client, pytest.raises(InvalidRequestError) as caught:
        client.shapley(*arguments, **options)
    return caught.value.code, caught.value.items[0].pointer


def mappings(*, rewards=True, named=False):
    """The same sets as mappings."""
    sets = []
    for row, of_set in enumerate(REWARDS):
        candidates = [
            {ONE_NAME[column]: rows[row][place] for column, rows in FEATURES.items()} for place in range(len(of_set))
        ]
        for place, reward in enumerate(of_set if rewards else ()):
            one = {"named_rewards": {"a": reward, "b": 1.0}} if named else {"reward": reward}
            candidates[place] |= one
        sets.append({"similarities": SIMILARITIES[row], "candidates": candidates})
    return sets


def flat(rows):
    """Set after set."""
    return [value for row in rows for value in row]


def flat_matrices():
    """Matrices row by row."""
    return [flat(matrix) for matrix in SIMILARITIES]


def test_features_come_set_by_set_flat_or_inside_mappings():
    """All forms are one request, whatever library the numbers are of."""
    expected = sent(REWARDS, **FEATURES, similarities=SIMILARITIES, **EVERYTHING)
    assert expected["similarities"] == {"values": flat(flat_matrices()), "row_splits": [0, 9, 13]}
    assert expected["labels"] == ["x", 1, "x", "1", 1]
    once = {name: flat(rows) for name, rows in FEATURES.items()}
    assert sent(REWARDS, **once, similarities=flat_matrices(), **EVERYTHING) == expected
    assert sent(mappings(), **EVERYTHING) == expected
    arrays = {
        **once,
        "scores": [np.array(rows) for rows in FEATURES["scores"]],
        "similarities": [np.array(matrix) for matrix in SIMILARITIES],
        "topics": [[np.array(["a"]), ["a", 2], ()], [("b",), ["b"]]],
    }
    assert sent(Ragged.from_rows(REWARDS), **arrays, **EVERYTHING) == expected


def test_scalars_of_array_libraries_are_names():
    """A flat list of NumPy integers is flat."""
    labels = list(np.array([3, 1, 3, 2, 2]))
    assert sent(REWARDS, labels=labels, utility="plurality")["labels"] == [3, 1, 3, 2, 2]
    assert sent(REWARDS, labels=np.array([3, 1, 3, 2, 2]), utility="plurality")["labels"] == [3, 1, 3, 2, 2]


@pytest.mark.parametrize("name", UTILITIES)
def test_every_utility_is_answered_from_every_form(name):
    """Columns and mappings have equal credits, and what is not needed is left out of neither."""
    with Client("local:") as client:
        columns = client.shapley(REWARDS, **FEATURES, similarities=SIMILARITIES, utility=UTILITIES[name], credit="owen")
        mapped = client.shapley(mappings(), utility=UTILITIES[name], credit="owen")
    assert columns.credits.values.tobytes() == mapped.credits.values.tobytes()
    assert columns.method == "owen"


@pytest.mark.parametrize(
    ("utility", "columns"),
    [
        ("coverage", {"topics": FEATURES["topics"]}),
        ({"type": "noisy_or"}, {"scores": FEATURES["scores"]}),
        ({"type": "facility_location"}, {"scores": [np.array(rows) for rows in FEATURES["scores"]]}),
        ("log_det", {"similarities": SIMILARITIES}),
        ("log_det", {"similarities": flat_matrices()}),
        ("log_det", {"similarities": [np.array(matrix) for matrix in SIMILARITIES]}),
        ("mean_pairwise_diversity", {"similarities": SIMILARITIES}),
    ],
)
def test_utilities_of_features_need_no_sets(utility, columns):
    """The columns that go set by set say how many candidates there are; mappings without rewards do, too."""
    with Client("local:") as client:
        alone = client.shapley(utility=utility, **columns)
        mapped = client.shapley(mappings(rewards=False), utility=utility)
        beside = client.shapley(REWARDS, utility=utility, **columns)
    assert alone.credits.row_splits.tolist() == [0, 3, 5]
    for other in (mapped, beside):
        assert other.credits.values.tobytes() == alone.credits.values.tobytes()


def test_equal_matrices_may_be_one_array():
    """An array of shape (B, K, K), and scores of shape (B, K, T)."""
    cube = np.array([SIMILARITIES[0]] * 2)
    assert sent(similarities=cube, utility="log_det")["row_splits"] == [0, 3, 6]
    scores = np.array([FEATURES["scores"][0]] * 2)
    columns = sent(scores=scores, utility="noisy_or")
    assert columns["scores"]["row_splits"] == [0, 2, 4, 6, 8, 10, 12]


def test_named_rewards_come_by_name():
    """A mapping of rows is what mappings with named rewards are."""
    named = {"a": REWARDS, "b": [[1.0] * 3, [1.0] * 2]}
    options = {"utility": "max", "aggregation": {"type": "normalize_then_sum", "weights": {"b": 0.5}}}
    assert sent(named, **options) == sent(mappings(named=True), **options)
    with Client("local:") as client:
        result = client.shapley({"a": np.array([[1.0, 0.0], [0.5, 0.5]])}, groups=["p", "p"])
        assert client.shapley(np.array([[1.0, 0.0], [0.5, 0.5]]), groups=["p", "p"]).advantages.to_list() == (
            result.advantages.to_list()
        )


@pytest.mark.parametrize(
    ("sets", "options", "code", "pointer"),
    [
        (None, {"utility": "max"}, "invalid_request", "/sets"),
        (None, {"utility": "coverage"}, "invalid_request", "/sets"),
        ({}, {}, "invalid_request", "/sets"),
        ({"a": [[1.0]], "b": [[1.0, 2.0]]}, {}, "shape_mismatch", "/sets/b"),
        ({"a": [["x"]]}, {}, "invalid_request", "/sets/a/0/0"),
        (REWARDS, {"utility": "plurality", "labels": [["x"]]}, "shape_mismatch", "/labels"),
        (REWARDS, {"utility": "plurality", "labels": [["x"], ["y", "z"]]}, "shape_mismatch", "/labels/0"),
        (REWARDS, {"utility": "plurality", "labels": ["x"]}, "shape_mismatch", "/columns/labels"),
        (REWARDS, {"utility": "plurality"}, "invalid_request", "/columns/labels"),
        (REWARDS, {"utility": "coverage", "topics": ["a"]}, "invalid_request", "/topics/0"),
        (REWARDS, {"utility": "noisy_or", "scores": [[["x"]]]}, "invalid_request", None),
        (
            [[1.0, 2.0]],
            {"utility": "log_det", "similarities": [[[1.0, 0.0], [0.0]]]},
            "shape_mismatch",
            "/similarities/0",
        ),
        (
            [{"candidates": [{"reward": 1.0}]}],
            {"utility": "plurality"},
            "invalid_request",
            "/sets/0/candidates/0/label",
        ),
        ([{"candidates": []}], {"utility": "log_det"}, "invalid_request", "/sets/0/similarities"),
        ([{"candidates": [{"reward": 1.0}]}], {"credit": "owen"}, "invalid_request", "/sets/0/candidates/0/union"),
        ([{"candidates": [{"named_rewards": 3}]}], {}, "invalid_request", "/sets/0/candidates/0/named_rewards"),
        ([{"candidates": [{"named_rewards": ["a"]}]}], {}, "invalid_request", "/sets/0/candidates/0/named_rewards"),
        (
            [{"candidates": [{"named_rewards": {"a": 1.0}}, {"named_rewards": {"b": 1.0}}]}],
            {},
            "invalid_request",
            "/sets",
        ),
        (
            [{"candidates": [{"named_rewards": {"a": 1.0}}, {"reward": 1.0}]}],
            {},
            "invalid_request",
            "/sets",
        ),
    ],
)
def test_features_that_do_not_fit_are_named(sets, options, code, pointer):
    """What is missing or of another shape is refused where it stands."""
    found = refused(sets, **options)
    assert found[0] == code
    assert pointer in (None, found[1])


def test_an_error_names_the_candidate_that_it_is_about():
    """Pointers to row splits of candidates lead to the candidate whose row they end."""
    sound = [[[0.5, 0.25]] * 3, [[1.0, 0.0]] * 2, [[0.5, 0.5]]]
    with Client("local:") as client:
        for row, place in ((0, 0), (0, 2), (1, 0), (1, 1), (2, 0)):
            wrong = [[list(one) for one in rows] for rows in sound]
            wrong[row][place][1] = 7.0
            errors = client.shapley(scores=wrong, utility="noisy_or", on_item_error="return").errors
            assert [(error.row, error.candidate) for error in errors] == [(row, place)]
