import json

import pytest

from creditd.wire.errors import ERROR_KINDS, Problem
from server.hostile import CASES, HUGE, LITERALS, PLACES, Hostile, code_of, one_service, packed, ragged_lies, text
from server.test_binary import packed as with_buffers

MAX_PROBLEM_BYTES = 64 << 10
LIES = {
    "negative": [-1, 1, 2],
    "descending": [0, 2, 1],
    "past the end": [0, 1, 3],
    "far past the end": [0, 1, HUGE],
    "around the numbers of 64 bits": [-(2**62), 2**62, 2],
    "not from 0": [1, 1, 2],
    "too short": [0, 1],
    "empty": [],
}
"""Row splits of two rows of one value each that are none."""


@pytest.fixture(scope="module")
def post():
    """Send a body to one service, which is there for all cases, and have the response."""
    with one_service() as ask:
        yield ask


def refused(post, case: Hostile) -> None:
    """The answer to a body is a small problem of the right status, and nothing is left in flight."""
    response = post(case.body, case.path, case.content_type)
    assert response.headers["content-type"] == "application/problem+json"
    assert len(response.content) < MAX_PROBLEM_BYTES
    problem = Problem.model_validate_json(response.content)
    assert (response.status_code, problem.code.value) == (case.status, case.code), problem
    assert case.status == ERROR_KINDS[problem.code].status
    assert tuple(item.pointer for item in problem.errors) == case.pointers
    assert 15 < len(problem.detail) < 300


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if "MB" in name else ()) for name in CASES])
def test_a_hostile_body_is_refused(post, name):
    """With the right status, code and pointers, in one short sentence."""
    refused(post, CASES[name])


@pytest.mark.parametrize("literal", LITERALS)
@pytest.mark.parametrize("pointer", PLACES)
def test_what_is_no_number_is_refused_wherever_it_stands(post, literal, pointer):
    """Infinite numbers, NaN, booleans, texts and containers in the place of a number."""
    path, around = PLACES[pointer]
    refused(post, text(around.format(literal), code_of(literal, pointer), pointer, path=path))


@pytest.mark.parametrize("column", ragged_lies([]))
@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("form", ["text", "lists", "buffers"])
def test_row_splits_that_lie_are_refused(post, column, lie, form):
    """In every ragged column and in both formats, the row splits are named."""
    body, pointer = ragged_lies(LIES[lie])[column]
    if column == "row_splits" and lie == "too short":
        pointer = "/columns/topics"  # one set of one candidate, and topics of two
    if form == "text":
        refused(post, text(body, "shape_mismatch", pointer))
    else:
        refused(post, packed(with_buffers(body) if form == "buffers" else body, "shape_mismatch", pointer))


SAID_IN_BOTH = [
    name
    for name, case in CASES.items()
    if not case.binary and case.status == 422 and case.pointers != ("",) and "MB" not in name and name != "a key twice"
]


@pytest.mark.parametrize("name", SAID_IN_BOTH)
def test_what_is_refused_in_text_is_refused_in_binary(post, name):
    """The cases of JSON that MessagePack can say have the same answer there."""
    case = CASES[name]
    refused(post, packed(json.loads(case.body), case.code, *case.pointers, path=case.path))
