import copy
import inspect
import pickle

import httpx
import numpy as np
import pytest

from creditd.client import Client, Ragged, exceptions
from creditd.client.results import ItemError
from creditd.wire.errors import ERROR_KINDS, ErrorCode, ErrorItem

ITEM = ItemError(code="non_finite_value", pointer="/columns/rewards/values/3", detail="NaN", row=1, candidate=0)
ANSWER = {
    "status": 422,
    "code": "shape_mismatch",
    "request_id": "r",
    "retryable": True,
    "items": (ITEM,),
    "attempts": 3,
    "elapsed_s": 1.5,
}
CLASSES = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if issubclass(kind, Exception)]


def example(kind: type[Exception]) -> Exception:
    """Make one with every attribute set to something that is not its default."""
    if issubclass(kind, exceptions.StatusError):
        return kind("what happened", **ANSWER)
    if kind is exceptions.TransportError:
        return kind("what happened", request_id="r", attempts=2, elapsed_s=0.5)
    if kind is exceptions.ResponseError:
        return kind("what happened", client_version="1", service_version="2", request_id="r")
    if kind is exceptions.NotReadyError:
        return kind("what happened", waited_s=60.0)
    if kind is exceptions.PartialResultError:
        with Client("local:") as client:
            return kind("what happened", client.group([[1.0, float("nan")], [1.0, 0.0]], on_item_error="return"))
    return kind("what happened")


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("again", [lambda error: pickle.loads(pickle.dumps(error)), copy.deepcopy, copy.copy])  # noqa: S301 - own bytes
def test_every_exception_survives_pickling_and_copying_with_its_attributes(kind, again) -> None:
    """Ray pickles exceptions: class, message and attributes arrive whole, also those set later."""
    error = example(kind)
    error.rank = 3
    found = again(error)
    assert type(found) is kind
    assert str(found) == "what happened"
    assert set(vars(found)) == set(vars(error))
    for name, value in vars(error).items():
        if name == "result":
            assert np.array_equal(found.result.advantages.values, value.advantages.values, equal_nan=True)
            assert found.result.errors == value.errors
        else:
            assert getattr(found, name) == value


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_of_the_wire_has_an_exception_class(code, runner, failing, script) -> None:
    """A problem document is raised as the class of its status, with code, items and whether to try again."""
    items = (ErrorItem(pointer="/columns/rewards/values/2", code=code, detail="got NaN"),)
    client = runner.client(script([failing(code, errors=items)] * 10_000), deadline_s=0.001)
    with pytest.raises(exceptions.StatusError) as caught:
        runner.call(client, "shapley", [[1.0], [0.5, 0.2]], request_id="r")
    error = caught.value
    assert type(error) is not exceptions.StatusError
    assert (error.status, error.code, error.retryable) == (
        ERROR_KINDS[code].status,
        code.value,
        ERROR_KINDS[code].retryable,
    )
    assert error.items == (ItemError(code=code.value, pointer=items[0].pointer, detail="got NaN", row=1, candidate=1),)
    assert error.request_id == "r"
    assert "of the test's own making" in str(error)


def test_every_class_is_drawn_in_the_tree_and_exported() -> None:
    """The tree at the top of the module is complete, and every class of it can be imported from `creditd.client`."""
    import creditd.client

    drawn = exceptions.__doc__.split("\n\n")[1]
    for kind in CLASSES:
        assert f"{kind.__name__} " in drawn.replace("\n", " \n")
        assert kind.__name__ in creditd.client.__all__


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, exceptions.InvalidRequestError),
        (403, exceptions.ForbiddenError),
        (408, exceptions.DeadlineExceededError),
        (429, exceptions.OverloadedError),
        (502, exceptions.ServerError),
    ],
)
def test_what_stands_before_the_service_is_understood_by_its_status(status, kind, runner, script) -> None:
    """A proxy's page is no problem document: the class follows from the status, and there is no code."""
    client = runner.client(script([httpx.Response(status, html="<h1>Bad</h1>")] * 100), deadline_s=0.001)
    with pytest.raises(kind) as caught:
        runner.call(client, "shapley", [[1.0]])
    assert (caught.value.status, caught.value.code, caught.value.items) == (status, None, ())


@pytest.mark.parametrize(
    "content",
    [
        b"<html>hello</html>",
        b"[]",
        b'{"service": {"version": "7.0"}}',
        b'{"service": {"version": "7.0"}, "columns": {"credits": {"values": [1.0], "row_splits": [0, 2]}}}',
    ],
)
def test_an_answer_in_another_schema_names_both_versions(content, runner, script) -> None:
    """Version skew is its own error, not a KeyError."""
    client = runner.client(script([httpx.Response(200, content=content)]))
    with pytest.raises(exceptions.ResponseError) as caught:
        runner.call(client, "shapley", [[1.0]])
    assert caught.value.service_version == ("7.0" if b"7.0" in content else None)
    assert f"client {caught.value.client_version}" in str(caught.value)


def test_an_answer_about_other_sets_is_refused(runner, service) -> None:
    """Row splits that are not those of the request cannot be an answer to it."""

    def other(request: httpx.Request) -> httpx.Response:
        content = request.content.replace(b'"row_splits":[0,1,3]', b'"row_splits":[0,2,3]')
        assert content != request.content
        return service(httpx.Request("POST", request.url, headers={"x-request-id": "r"}, content=content))

    with pytest.raises(exceptions.ResponseError, match="row_splits"):
        runner.call(runner.client(other, wire_format="json"), "shapley", Ragged.from_rows([[1.0], [0.5, 0.2]]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ((b'"status":[0,0]', b'"status":[0]'), r"expected \(2,\)"),
        ((b'"status":[0,0]', b'"status":[0,1]'), "expected one for each of the 1 rows without an answer"),
        ((b'"token_advantages":{"values":[0.0,0.0,', b'"token_advantages":{"values":[0.0,'), "row_splits"),
        ((b'"row_splits":[0,1,3]},"utility_empty"', b'"row_splits":[0,3]},"utility_empty"'), "got 1 rows; expected 2"),
    ],
)
def test_an_answer_of_another_shape_is_refused(damage, message, runner, service) -> None:
    """A column that is too short would be attributed to the wrong sets."""

    def damaged(request: httpx.Request) -> httpx.Response:
        content = service(request).content.replace(*damage)
        assert content != service(request).content
        return httpx.Response(200, content=content)

    columns = {"spans": [[None], [None, None]], "n_tokens": [1, 2], "tokens": {"other": "zero"}}
    with pytest.raises(exceptions.ResponseError, match=message):
        runner.call(runner.client(damaged), "shapley", [[1.0], [0.5, 0.2]], **columns)


@pytest.mark.parametrize(
    ("pointer", "row", "candidate"),
    [
        ("/columns/rewards/values/2", 2, 1),
        ("/columns/spans/starts/0", 0, 0),
        ("/columns/rewards/row_splits/2", 1, None),
        ("/columns/utilities/1", 1, None),
        ("/columns/rewards/values/99", None, None),
        ("/credit/weights/1", None, None),
        ("/utility/empty", None, None),
        ("X-Request-Timeout-Ms", None, None),
        ("", None, None),
    ],
)
def test_a_pointer_names_its_set_and_candidate(pointer, row, candidate, runner, script, failing) -> None:
    """Positions in the flat columns that travelled are of no use to a caller; whole-request offences have none."""
    items = (ErrorItem(pointer=pointer, code=ErrorCode.INVALID_REQUEST, detail="wrong"),)
    client = runner.client(script([failing(ErrorCode.INVALID_REQUEST, errors=items)]))
    with pytest.raises(exceptions.InvalidRequestError) as caught:
        runner.call(client, "shapley", [[1.0], [], [0.5, 0.2]])
    assert [(item.row, item.candidate) for item in caught.value.items] == [(row, candidate)]
    assert pointer in str(caught.value.items[0])


def test_a_redirect_is_not_followed_blindly(runner, script) -> None:
    """Another address is a configuration error, and the message asks about it."""
    client = runner.client(script([httpx.Response(302, headers={"location": "http://login.test"})]))
    with pytest.raises(exceptions.ResponseError, match="is this the address of creditd"):
        runner.call(client, "shapley", [[1.0]])
