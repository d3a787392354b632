import threading

import numpy as np
import pytest

from creditd.scoring.candidate_credit import score_candidate_sets
from creditd.server.inline import is_small
from creditd.server.resources import Resources
from creditd.server.settings import Settings
from creditd.wire import codec
from creditd.wire.buffers import NumbersAndNulls
from creditd.wire.compose import ComposeRequest
from creditd.wire.groups import GroupRequest
from creditd.wire.scar import ScarRequest, ScarSolveRequest
from creditd.wire.solve import SolveRequest
from creditd.wire.v1 import ShapleyRequest
from server.running import columnar, nested, on_service

ROWS = [[0.5, 0.25]] * 8
"""Sixteen candidates."""
TOKENS = {"tokens": {"other": "set"}}


def asked(body):
    """A request in JSON's form."""
    return ShapleyRequest.model_validate(body)


def with_tokens(counts):
    """Columns of one candidate each, with completions of so many tokens."""
    body = columnar([[0.5]] * len(counts), **TOKENS)
    body["columns"] |= {"n_tokens": counts, "spans": {"starts": [0] * len(counts), "stops": [0] * len(counts)}}
    return body


@pytest.mark.parametrize(
    ("body", "size"),
    [
        (columnar(ROWS), 16 + 8 * 8 + 128 * 2),
        ({"columns": {"rewards": ROWS}}, 16 + 8 * 8 + 128 * 2),
        ({"columns": {"named_rewards": {"a": ROWS, "b": ROWS}}}, 2 * (16 + 8 * 8 + 128 * 2)),
        ({"columns": {"rewards": [[], [0.5], [0.5, 0.25]]}}, 3 + 8 * 3 + 128 * 3),
        (nested(ROWS), 16 * 16 + 8 * 8 + 128 * 2),
        (with_tokens([800, 800]), 2 + 8 * 2 + 128 + 200),
        ({"columns": with_tokens([800, 800])["columns"]}, 2 + 8 * 2 + 128),
    ],
)
def test_a_request_is_small_up_to_the_setting(body, size):
    """Candidates count, sets and their different sizes, answers set by set sixteen times, tokens where asked for."""
    assert is_small(asked(body), size)
    assert not is_small(asked(body), size - 1)


@pytest.mark.parametrize(
    "rewards",
    [
        {"values": np.full(16, 0.5), "row_splits": np.arange(0, 17, 2)},
        np.full((8, 2), 0.5),
        NumbersAndNulls(np.full((8, 2), 0.5), np.eye(8, 2, dtype=np.bool_)),
    ],
    ids=["ragged", "two axes", "two axes with nulls"],
)
def test_buffers_count_as_lists_do(rewards):
    """A request in the binary format is as small as the same in JSON."""
    body = ShapleyRequest.model_validate(codec.decode(codec.encode({"columns": {"rewards": rewards}})))
    assert is_small(body, 400)
    assert not is_small(body, 200)


@pytest.mark.parametrize(
    "rows",
    [[[]] * 3000, [[0.5] * size for size in range(1, 40)], [[0.5] * 1000]],
    ids=["many sets", "many sizes", "large sets"],
)
def test_few_candidates_are_not_little_work(rows):
    """Sets without candidates, sets of many sizes and large sets go to a thread, whatever their candidates are."""
    assert sum(map(len, rows)) < 1 << 10
    assert not is_small(asked(columnar(rows)), (1 << 10) * 8)


def test_row_splits_that_lie_are_not_small():
    """Row splits that nobody has looked at yet neither overflow nor cancel out."""
    rewards = {"values": [0.5], "row_splits": [-(2**62), 2**62, -(2**62)]}
    assert not is_small(asked({"columns": {"rewards": rewards}}), 1 << 20)


@pytest.mark.parametrize("count", [2**61, -(2**61)])
def test_a_lie_about_tokens_is_not_small(count):
    """Counts that nobody has looked at yet neither overflow nor cancel out."""
    assert not is_small(asked(with_tokens([count, -count])), 1 << 20)


@pytest.mark.parametrize(
    "body",
    [
        {**columnar(ROWS), "utility": {"type": "log_sum_exp", "temperature": 1.0, "empty": 0.0}},
        {**columnar(ROWS), "credit": {"type": "prefix_gain"}},
        {**columnar(ROWS), "credit": {"type": "owen"}},
        {**columnar(ROWS), "credit": {"type": "blend", "from": "shapley", "to": "leave_one_out", "position": 0.5}},
    ],
)
def test_what_costs_more_than_a_sort_is_not_small(body):
    """Other utilities and rules go to a thread whatever their size."""
    assert not is_small(asked(body), 1 << 20)


def test_other_routes_are_not_small():
    """Groups, conversations and completions go to a thread."""
    for model in (GroupRequest, SolveRequest, ScarRequest, ScarSolveRequest, ComposeRequest):
        for example in model.model_config["json_schema_extra"]["examples"]:
            assert not is_small(model.model_validate(example), 1 << 20)


@pytest.mark.parametrize(("most", "on_the_loop"), [(1 << 14, True), (0, False)])
def test_small_requests_stay_on_the_loop(most, on_the_loop):
    """A small request is answered by the thread that reads it, or by another where the setting says so; alike."""
    threads = []

    def score(*arguments):
        threads.append(threading.get_ident())
        return score_candidate_sets(*arguments)

    async def ask(service):
        threads.clear()
        return await service.post(columnar(), **{"X-Request-Id": "r"})

    response = on_service(ask, Resources(Settings(max_inline_candidates=most), score_sets=score))
    assert response.status_code == 200
    assert [thread == threading.get_ident() for thread in threads] == [on_the_loop]


def test_a_deadline_holds_on_the_loop():
    """A small request whose caller has stopped waiting is 504, as a large one."""

    def score(batch, options, rejected, deadline):
        if batch.n_sets == 4:
            threading.Event().wait(0.05)
        return score_candidate_sets(batch, options, rejected, deadline)

    async def ask(service):
        return await service.post(columnar(), **{"X-Request-Timeout-Ms": "20"})

    response = on_service(ask, Resources(Settings(), score_sets=score))
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
