import asyncio
import gc
import threading
import time

import httpx
import numpy as np
import pytest
from pydantic_core import to_json

from creditd.client import AsyncClient, Client, Evaluator
from creditd.client.exceptions import InvalidRequestError, PartialResultError, ResponseError
from creditd.scoring.deadline import Deadline
from creditd.server.answers import answer_solve
from creditd.server.convert import json_body
from creditd.server.errors import ServiceError
from creditd.wire.errors import problem
from creditd.wire.limits import RequestLimits
from creditd.wire.solve import SolveRequest

SETS = [["ab", "bc", "cd"], ["a", "a"], ["xyz"]]
"""Candidates of three sets: strings, whose union of letters is what they are worth."""
PATIENCE_S = 30.0


def letters(candidates):
    """How many letters some strings use together, and a little for the longest one."""
    return float(len(set("".join(candidates)))) + 0.25 * max(map(len, candidates), default=0)


def many(coalitions):
    """The same for a list of them."""
    return [letters(candidates) for candidates in coalitions]


async def awaited(candidates):
    """The same, to be awaited."""
    await asyncio.sleep(0)
    return letters(candidates)


async def awaited_many(coalitions):
    """The same for a list of them, to be awaited."""
    await asyncio.sleep(0)
    return many(coalitions)


def served(request: httpx.Request) -> httpx.Response:
    """The real route, without a socket."""
    assert request.url.path == "/v1/credit/shapley/solve"
    asked, request_id = SolveRequest.model_validate_json(request.content), request.headers["x-request-id"]
    try:
        answer = answer_solve(
            asked,
            request_id=request_id,
            received_s=0.0,
            limits=RequestLimits(),
            deadline=Deadline.after(PATIENCE_S),
            encode=json_body,
        )
        if answer.refusal is not None:
            raise answer.refusal
    except ServiceError as error:
        found = problem(error.code, error.detail, request_id=request_id, errors=error.items)
        return httpx.Response(found.status, content=found.model_dump_json())
    return httpx.Response(200, content=answer.body)


def local(function, sets=SETS, **options):
    """The result in this process."""
    with Client("local:") as client:
        return client.shapley(sets, utility=function, **options)


def local_async(function, sets=SETS, **options):
    """The result in this process, by the async client."""

    async def run():
        async with AsyncClient("local:") as client:
            return await client.shapley(sets, utility=function, **options)

    return asyncio.run(run())


def assert_same(one, other):
    """Equal bits."""
    for name in ("credits", "advantages"):
        assert getattr(one, name).values.tobytes() == getattr(other, name).values.tobytes()
    for name in ("utility_empty", "utility_grand", "credit_sum", "gap", "set_advantages", "evaluations"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    assert (one.exact, one.method, one.flags) == (other.exact, other.method, other.flags)
    for name in ("standard_errors", "interval_low", "interval_high", "token_advantages"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        assert a is None or a.values.tobytes() == b.values.tobytes()


# Every way to call


@pytest.mark.parametrize(
    "function",
    [
        letters,
        Evaluator(letters),
        Evaluator(many, batched=True),
        Evaluator(many, batched=True, batch_size=1),
        Evaluator(many, batched=True, batch_size=3, concurrency=4),
        Evaluator(letters, concurrency=4),
        Evaluator(lambda candidates: np.float64(letters(candidates))),
        Evaluator(lambda coalitions: np.array(many(coalitions)), batched=True),
        Evaluator(lambda coalitions: tuple(many(coalitions)), batched=True),
        lambda candidates: np.array(letters(candidates)),
    ],
)
@pytest.mark.parametrize("solve", [local, local_async])
def test_every_way_of_calling_gives_the_same_bits(function, solve):
    """A function, batched or in threads, by either client: equal credits."""
    result = solve(function)
    assert_same(result, local(letters))
    assert result.exact
    assert result.method == "table"
    assert result.evaluations.tolist() == [8, 4, 2]
    np.testing.assert_allclose(result.gap, 0.0, atol=1e-9)
    assert result.credits[1].tolist() == [0.625, 0.625]
    assert result.credits[2].tolist() == [3.75]


@pytest.mark.parametrize(
    "function", [awaited, Evaluator(awaited, concurrency=5), Evaluator(awaited_many, batched=True, concurrency=2)]
)
def test_coroutine_functions_are_awaited(function):
    """The async client awaits, several at a time; the other one says so."""
    assert_same(local_async(function), local(letters))
    with pytest.raises(TypeError, match="coroutine function; expected a plain one: use AsyncClient"):
        local(function)


def test_a_callable_object_may_be_awaited():
    """An object whose call is a coroutine function is one, too."""

    class Judge:
        async def __call__(self, candidates):
            return letters(candidates)

    assert_same(local_async(Judge()), local(letters))
    with pytest.raises(TypeError, match="use AsyncClient"):
        local(Judge())
    with pytest.raises(TypeError, match="gave something to await"):
        local(lambda candidates: FakeAwaitable(letters(candidates)))


class FakeAwaitable:
    """Something to await that no test awaits."""

    def __init__(self, value):
        self.value = value

    def __await__(self):
        yield
        return self.value


def test_a_service_and_local_mode_give_the_same_bits(runner):
    """The function stays here; the service names coalitions, and the answer has the bits of local mode."""
    sets = [[f"{a}{b}" for b in range(6)] for a in range(3)]
    options = {
        "groups": ["p", "p", "q"],
        "ids": ["x", "y", "z"],
        "set_rewards": [0.5, None, 1.0],
        "n_tokens": [7, 8, 9],
        "spans": [[[0, 1], None, [2, 3], [3, 4], [5, 6], [6, 7]]] * 3,
        "candidate_ids": [["f", "e", "d", "c", "b", "a"]] * 3,
        "tokens": {"other": "next"},
        "estimator": {"type": "stratified", "budget": 30, "seed": 2},
        "credit": {"type": "blend", "from": "shapley", "to": "set_reward", "position": 0.25},
        "advantage": "centered",
    }
    seen = []
    client = runner.client(lambda request: seen.append(request) or served(request), wire_format="json")
    result = runner.call(client, "shapley", sets, utility=letters, **options)
    runner.close(client)
    expected = local(letters, sets, **options)
    assert_same(result, expected)
    assert result.ids == ("x", "y", "z")
    assert result.standard_errors is not None
    assert result.token_advantages is not None
    assert len(seen) == 2
    assert len({request.headers["x-request-id"] for request in seen}) == 1
    assert b'"id"' not in seen[0].content


def test_progress_counts_coalitions_over_all_sets():
    """It is called after each call, from the caller's thread, and ends at what was planned."""
    seen = []

    def progress(done, planned):
        seen.append((done, planned, threading.current_thread()))

    local(Evaluator(letters, concurrency=3, progress=progress))
    assert [done for done, _, _ in seen] == list(range(1, 15))
    assert {planned for _, planned, _ in seen} == {14}
    assert {thread for *_, thread in seen} == {threading.current_thread()}
    seen.clear()
    local(Evaluator(many, batched=True, batch_size=5, progress=progress))
    assert [done for done, _, _ in seen] == [5, 10, 14]


def test_early_stopping_evaluates_fewer():
    """With a target that is easily met, less than planned is evaluated, over several rounds of progress."""
    seen = []
    options = {"estimator": {"type": "stratified", "budget": 1000, "target_standard_error": 1e3}}
    evaluator = Evaluator(letters, progress=lambda *numbers: seen.append(numbers))
    result = local(evaluator, [[f"{i}" for i in range(12)]], **options)
    assert result.evaluations.tolist() == [seen[-1][0]]
    assert seen[-1][0] < seen[-1][1] == 1000


def test_no_more_calls_run_at_a_time_than_asked_for():
    """Threads and awaited calls are bounded by `concurrency`."""
    running, most, lock = 0, 0, threading.Lock()

    def slow(candidates):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1
        return letters(candidates)

    for solve in (local, local_async):
        most = 0
        solve(Evaluator(slow, concurrency=3))
        assert 1 <= most <= 3


def test_candidates_come_in_their_order():
    """The function sees the candidates of each coalition in the order of their set, whatever their type; ∅ is []."""
    seen = []
    candidates = [{"a": 1}, None, 3.5, "x"]
    local(lambda some: seen.append(some) or float(len(some)), [candidates])
    assert [] in seen
    assert candidates in seen
    places = [[candidates.index(one) for one in some] for some in seen]
    assert all(found == sorted(found) for found in places)
    assert len(seen) == 16


def test_prefix_gain_keeps_the_order_of_candidates_with_ids():
    """A rule about the order takes the order given, ids or not."""
    plain = local(letters, credit="prefix_gain")
    named = local(letters, credit="prefix_gain", candidate_ids=[["z", "y", "x"], ["q", "p"], ["a"]])
    assert_same(plain, named)


# What is wrong


class BoomError(Exception):
    """An exception of the caller's function."""


@pytest.mark.parametrize("options", [{}, {"concurrency": 4}, {"batched": True, "batch_size": 2}])
@pytest.mark.parametrize("solve", [local, local_async])
def test_an_exception_of_the_function_is_raised_as_it_is(options, solve):
    """The very object that the function raised reaches the caller."""
    error = BoomError("of the caller's own")

    def failing(_):
        raise error

    with pytest.raises(BoomError) as raised:
        solve(Evaluator(failing, **options))
    assert raised.value is error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, BoomError])
def test_an_interrupt_cancels_what_has_not_begun(error):
    """After an interrupt in one thread no further call begins, and nothing runs on behind the caller's back."""
    calls = []
    held = threading.Event()

    def interrupted(candidates):
        calls.append(candidates)
        if len(calls) == 1:
            raise error
        held.wait(0.05)
        return 0.0

    before = threading.active_count()
    with pytest.raises(error):
        local(Evaluator(interrupted, concurrency=2), [[str(i) for i in range(10)]])
    count = len(calls)
    assert count < 100
    held.set()
    assert threading.active_count() == before
    assert len(calls) == count


def test_other_failures_of_awaited_calls_are_not_left_behind():
    """When several calls fail the first is raised, and the event loop complains about none of the others."""
    complaints = []

    async def failing(_):
        await asyncio.sleep(0)
        raise BoomError

    async def run():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with AsyncClient("local:") as client:
            with pytest.raises(BoomError):
                await client.shapley(SETS, utility=Evaluator(failing, concurrency=8))
        gc.collect()
        await asyncio.sleep(0)

    asyncio.run(run())
    assert complaints == []


@pytest.mark.parametrize(
    ("value", "kind", "sentence"),
    [
        ("1.0", TypeError, "wrong gave str; expected a number"),
        (b"1", TypeError, "wrong gave bytes; expected a number"),
        (None, TypeError, "wrong gave NoneType; expected a number"),
        ([1.0], TypeError, "wrong gave list; expected a number"),
        ({"score": 1.0}, TypeError, "wrong gave dict; expected a number"),
        (np.array([1.0]), TypeError, "wrong gave list; expected a number"),
        (1 + 2j, TypeError, "wrong gave complex; expected a number"),
        (10**400, ValueError, "wrong gave an integer that no float holds"),
    ],
)
def test_what_is_no_number_is_said(value, kind, sentence):
    """The function is named, with what it gave."""

    def wrong(_):
        return value

    with pytest.raises(kind, match=sentence):
        local(wrong)


@pytest.mark.parametrize(
    ("value", "kind", "sentence"),
    [
        (1.0, TypeError, "wrong gave float; expected a list of 14 numbers"),
        ("1" * 14, TypeError, "wrong gave str; expected a list of 14 numbers"),
        (None, TypeError, "wrong gave NoneType; expected a list of 14 numbers"),
        ([1.0] * 13, ValueError, "wrong gave 13 numbers; expected 14, one per coalition"),
        (["1"] * 14, TypeError, "wrong gave str; expected a number"),
        (dict.fromkeys(range(14), 1.0), TypeError, "wrong gave dict; expected a list of 14 numbers"),
        (np.zeros((14, 2)), TypeError, "wrong gave list; expected a number"),
    ],
)
def test_what_is_no_list_of_numbers_is_said(value, kind, sentence):
    """A batched function gives one number per coalition."""

    def wrong(_):
        return value

    with pytest.raises(kind, match=sentence):
        local(Evaluator(wrong, batched=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e200])
def test_a_utility_that_cannot_be_used_fails_its_set(value, runner):
    """The others are answered; the error names the set."""

    def sometimes(candidates):
        return value if list(candidates) == ["a"] else letters(candidates)

    client = runner.client(served, wire_format="json")
    with pytest.raises(PartialResultError, match="1 of 3 rows have no answer") as partial:
        runner.call(client, "shapley", SETS, utility=sometimes)
    result = partial.value.result
    assert [error.row for error in result.errors] == [1]
    assert result.errors[0].code == ("invalid_request" if value == 1e200 else "non_finite_utility")
    assert np.isnan(result.credits[1]).all()
    assert result.ok.tolist() == [True, False, True]
    expected = local(letters)
    assert result.credits[0].tobytes() == expected.credits[0].tobytes()
    runner.close(client)
    with pytest.raises(InvalidRequestError, match="no item could be answered") as refused:
        local(lambda _: value)
    assert refused.value.items[0].row == 0


def test_nan_among_the_sets_of_local_mode():
    """Local mode answers the others, in the words of the service."""
    result = local(
        lambda candidates: float("nan") if candidates == ["a"] else letters(candidates), on_item_error="return"
    )
    assert [str(error.code) for error in result.errors] == ["non_finite_utility"]
    assert result.errors[0].detail.startswith("utility of players [0] is NaN")


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"utilities": [[0.0, 1.0]]}, "/utilities"),
        ({"labels": ["a"]}, "/labels"),
        ({"texts": ["a"]}, "/texts"),
        ({"scores": [[1.0]]}, "/scores"),
        ({"unions": [1]}, "/unions"),
        ({"aggregation": "sum_then_normalize"}, "/aggregation"),
        ({"malformed": {"duplicates": "collapse"}}, "/malformed"),
        ({"groups": ["p"]}, "/groups"),
        ({"candidate_ids": [["a", "b"]]}, "/candidate_ids"),
        ({"n_tokens": [1], "tokens": {}}, "/n_tokens"),
        ({"set_rewards": 3.0}, "/set_rewards"),
    ],
)
def test_what_a_function_does_not_take_is_refused(options, pointer):
    """Columns and choices that say nothing about such a utility are refused, not passed over; so are wrong lengths."""
    with pytest.raises(InvalidRequestError) as refused:
        local(letters, **options)
    assert refused.value.items[0].pointer == pointer


@pytest.mark.parametrize("sets", [None, "abc", 3, ["abc"], [[]], [["a"], 4]])
def test_sets_are_lists_of_candidates(sets):
    """Anything else is refused before the function is called."""
    with pytest.raises(InvalidRequestError):
        local(lambda _: pytest.fail("called"), sets)


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"batch_size": 0}, ValueError), ({"concurrency": 0}, ValueError), ({"function": 3}, TypeError)],
)
def test_an_evaluator_makes_sense(options, kind):
    """Numbers are at least 1, and a function can be called."""
    with pytest.raises(kind):
        Evaluator(**{"function": letters, **options})


def test_a_refusal_ends_the_conversation(runner):
    """What the service refuses is raised as on every other call."""
    client = runner.client(served, wire_format="json")
    with pytest.raises(InvalidRequestError, match="owen has no plan"):
        runner.call(client, "shapley", SETS, utility=letters, credit="owen")
    with pytest.raises(InvalidRequestError, match="owen has no plan"):
        local(letters, credit="owen")
    with pytest.raises(InvalidRequestError, match="the budget is too small"):
        runner.call(client, "shapley", [list("abcdefghij")], utility=letters, estimator={"budget": 3})
    runner.close(client)


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: answer.pop("done"),
        lambda answer: answer.pop("items"),
        lambda answer: answer["items"][0].update(status="magic"),
        lambda answer: answer["items"][0].update(next=[["x"]]),
        lambda answer: answer.update(done="yes"),
        lambda answer: answer["items"][0].pop("credits", None) or answer["items"].pop(),
    ],
)
def test_an_answer_of_another_shape_is_a_response_error(runner, change):
    """An answer that is not in the schema is said to be none, at whatever round."""

    def damaged(request):
        answer = served(request).json()
        change(answer)
        return httpx.Response(200, content=to_json(answer))

    client = runner.client(damaged, wire_format="json")
    with pytest.raises(ResponseError, match="not in the schema"):
        runner.call(client, "shapley", SETS, utility=letters)
    runner.close(client)


def test_calls_with_a_function_are_not_recorded(tmp_path, runner):
    """A conversation is many exchanges and no request that could be repeated without its function: none is kept."""
    client = runner.client(served, record=tmp_path, wire_format="json")
    runner.call(client, "shapley", SETS, utility=letters)
    runner.close(client)
    assert list(tmp_path.iterdir()) == []
