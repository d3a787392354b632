import copy
import pickle

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.client import Client, PartialResultError, Ragged

rows = st.lists(st.lists(st.floats(allow_nan=False), max_size=5), max_size=6)


@given(rows)
def test_ragged_is_its_rows(rows) -> None:
    """From rows and back: length, order, values and views."""
    ragged = Ragged.from_rows(rows)
    assert len(ragged) == len(rows)
    assert ragged.to_list() == rows == [row.tolist() for row in ragged]
    assert ragged.values.dtype == np.float64
    assert ragged.row_splits.dtype == np.int64
    for place in range(len(rows)):
        assert np.array_equal(ragged[place], ragged[place - len(rows)])
        assert ragged[place].base is not None
    for beyond in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError, match=f"got row {beyond}"):
            ragged[beyond]


@pytest.mark.parametrize(
    ("values", "splits"),
    [
        ([1.0, 2.0], [0, 1]),
        ([1.0, 2.0], [1, 2]),
        ([1.0, 2.0], [0, 3, 2]),
        ([1.0, 2.0], []),
        ([1.0, 2.0], [0.0, 2.0]),
        ([[1.0, 2.0]], [0, 2]),
        (["1", "2"], [0, 2]),
        ([1.0, None], [0, 2]),
    ],
)
def test_ragged_checks_its_parts(values, splits) -> None:
    """Values and splits that do not fit are refused, with what was got and what was expected."""
    with pytest.raises(ValueError, match="expected"):
        Ragged(values=np.array(values), row_splits=np.array(splits))


@pytest.mark.parametrize("bad", [[None, 1.0], [[1.0]], 1.0, ["a"]])
def test_ragged_rows_are_numbers(bad) -> None:
    """None has no number, so that it cannot become a NaN by accident."""
    with pytest.raises(ValueError, match="row 1: got"):
        Ragged.from_rows([[1.0], bad])


def test_flags_are_names(runner, script) -> None:
    """Decoded row by row, or asked for by name; a name that does not exist is an error, not False."""
    result = runner.call(runner.client(script()), "shapley", [[0.5, None], [0.5, 0.1], [], [0.2]], groups=[0, 0, 1, 2])
    assert result.flags[0] == ("candidate_unscored",)
    assert result.flags[1] == ()
    assert "no_candidates" in result.flags[2]
    assert result.flags is result.flags
    assert result.has_flag("candidate_unscored").tolist() == [True, False, False, False]
    assert [("single_response" in flags) for flags in result.flags] == result.has_flag("single_response").tolist()
    with pytest.raises(ValueError, match="got flag 'unscored'"):
        result.has_flag("unscored")


def test_results_are_copied_whole_and_shown_short() -> None:
    """A result crosses process borders, and does not fill the screen."""
    with Client("local:") as client:
        result = client.shapley(np.ones((1000, 8)), ids=range(1000))
    for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):  # noqa: S301 - own bytes
        assert np.array_equal(again.advantages.values, result.advantages.values)
        assert again.flags == result.flags
        assert again.usage == result.usage
    assert len(result) == len(result.credits) == 1000
    assert result.ids[-1] == 999
    assert len(repr(result)) < 120
    assert repr(result.credits) == "Ragged(1000 rows, 8000 values)"


def test_some_failing_sets_raise_with_the_others_attached(runner, script) -> None:
    """The message counts the failures and names the first; `on_item_error="return"` returns instead."""
    sets = [[1.0, 0.5], [float("nan")], [0.25], [0.5, float("inf")]]
    client = runner.client(script())
    with pytest.raises(
        PartialResultError, match=r"2 of 4 rows have no answer; first: row 1, position 0 .*reward is NaN"
    ) as caught:
        runner.call(client, "shapley", sets, ids=["a", "b", "c", "d"])
    assert "(id 'b')" in str(caught.value)
    result = caught.value.result
    assert result.ok.tolist() == [True, False, True, False]
    assert [(error.row, error.candidate, error.code) for error in result.errors] == [
        (1, 0, "non_finite_value"),
        (3, 1, "non_finite_value"),
    ]
    assert np.isnan(result.credits[1]).all()
    assert np.isfinite(result.credits[0]).all()
    returned = runner.call(client, "shapley", sets, on_item_error="return")
    assert np.array_equal(returned.credits.values, result.credits.values, equal_nan=True)


def test_some_failing_rows_raise_with_the_others_attached(runner, script) -> None:
    """The same for groups of whole responses."""
    client = runner.client(script())
    rewards = [[1.0, 0.5, 0.0], [0.5, float("nan")], [None, 1.0, 0.0]]
    with pytest.raises(
        PartialResultError, match=r"1 of 3 rows have no answer; first: row 1, position 1 \(/rewards/1/1\)"
    ) as caught:
        runner.call(client, "group", rewards)
    result = caught.value.result
    assert result.flags == ((), (), ("group_incomplete",))
    assert result.advantages[2][0] == 0.0
    assert result.has_flag("group_incomplete").tolist() == [False, False, True]
    assert result.errors == runner.call(client, "group", rewards, on_item_error="return").errors


def test_a_flag_of_a_newer_service_keeps_its_name(runner, service) -> None:
    """A name that this client does not know is passed on, also as a bit."""

    def newer(request: httpx.Request) -> httpx.Response:
        answer = service(request)
        return httpx.Response(200, content=answer.content.replace(b'"flags":[[]', b'"flags":[["brand_new"]'))

    result = runner.call(runner.client(newer), "group", [[1.0, 0.0], [1.0, 1.0]])
    assert result.flags == (("brand_new",), ("degenerate_group",))
    assert result.has_flag("brand_new").tolist() == [True, False]
