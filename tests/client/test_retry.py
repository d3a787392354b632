import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.client import exceptions
from creditd.client.retry import retry_after, retry_delay
from creditd.wire.errors import ErrorCode

SETS = [[0.9, 0.5], [0.1, None]]
WALL_S = 1_763_000_000.0
REFUSED = httpx.ConnectError("refused")
LOST = httpx.ReadError("lost")
failures = st.sampled_from([408, 429, 502, 503, 504, REFUSED, LOST, httpx.RemoteProtocolError("cut")])
seconds = st.floats(0, 400)
chances = st.floats(0, 1, exclude_max=True)


@given(st.integers(1, 10_000), failures, seconds, chances)
def test_without_a_header_the_delay_is_uniform_below_a_doubling_bound(attempt, failure, elapsed_s, chance) -> None:
    """Full jitter: a random share of 0.5, 1, 2, 4, 8, 8, … seconds, and nothing that reaches over the deadline."""
    delay_s = retry_delay(attempt, failure, {}, elapsed_s=elapsed_s, deadline_s=300, chance=chance, wall_s=WALL_S)
    wanted_s = chance * min(8.0, 0.5 * 2 ** (min(attempt, 6) - 1))
    assert delay_s == (wanted_s if wanted_s < 300 - elapsed_s else None)


@given(st.integers(1, 20), failures, st.floats(0, 290), seconds, chances)
def test_retry_after_is_never_undercut_and_hardly_exceeded(attempt, failure, elapsed_s, asked_s, chance) -> None:
    """A `Retry-After` is obeyed, with at most half a second of jitter on top, or nothing is tried any more."""
    headers = {"retry-after": repr(asked_s)}
    delay_s = retry_delay(attempt, failure, headers, elapsed_s=elapsed_s, deadline_s=300, chance=chance, wall_s=WALL_S)
    if asked_s <= 300 - elapsed_s:
        assert delay_s is None or asked_s <= delay_s <= asked_s + 0.5
        assert delay_s is not None or asked_s + 0.5 >= 300 - elapsed_s
    else:
        assert delay_s is None


def test_a_500_is_tried_four_times() -> None:
    """A defect that a request meets every time does not hold its caller until the deadline."""
    limits = {"elapsed_s": 0, "deadline_s": 300, "chance": 0.5, "wall_s": WALL_S}
    delays = [retry_delay(attempt, 500, {}, **limits) for attempt in (1, 2, 3, 4, 5)]
    assert delays == [0.25, 0.5, 1.0, None, None]


@pytest.mark.parametrize("failure", [400, 401, 404, 405, 413, 415, 422, httpx.UnsupportedProtocol("ftp")])
def test_what_cannot_get_better_is_not_tried_again(failure) -> None:
    """The same request would fail the same way."""
    assert retry_delay(1, failure, {}, elapsed_s=0, deadline_s=300, chance=0, wall_s=WALL_S) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "Thu, 13 Nov 2025 02:13:25 GMT"}, 5.0),
        ({"retry-after": "Thu, 13 Nov 2025 02:13:25 GMT", "date": "Thu, 13 Nov 2025 02:13:22 GMT"}, 3.0),
        ({"retry-after": "Thu, 13 Nov 2025 01:00:00 GMT"}, 0.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e999"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers, expected) -> None:
    """A date is measured by the service's own clock when it says so, and nonsense is as good as nothing."""
    assert retry_after(headers, WALL_S) == expected


def test_a_request_that_fails_is_sent_again_as_it_was(runner, clock, script, failing) -> None:
    """Every attempt carries the same body and request id, counts its predecessors and states the time that is left."""
    service = script([REFUSED, failing(ErrorCode.OVERLOADED, {"Retry-After": "3"}), LOST])
    result = runner.call(runner.client(service, deadline_s=100, wire_format="json"), "shapley", SETS)
    assert clock.pauses == [0.25, 3.25, 1.0]
    assert len({request.content for request in service.seen}) == 1
    assert {request.headers["x-request-id"] for request in service.seen} == {result.request_id}
    assert [request.headers["x-retry-count"] for request in service.seen] == ["0", "1", "2", "3"]
    assert [request.headers["x-request-timeout-ms"] for request in service.seen] == [
        "100000",
        "99750",
        "96500",
        "95500",
    ]
    assert [request.extensions["timeout"]["read"] for request in service.seen] == [100, 99.75, 96.5, 95.5]
    assert json.loads(service.seen[0].content)["columns"]["rewards"] == {
        "values": [0.9, 0.5, 0.1, None],
        "row_splits": [0, 2, 4],
    }


def test_connecting_takes_less_than_the_deadline(runner, script) -> None:
    """An address that swallows packets is tried more than once."""
    service = script([httpx.ConnectTimeout("silence")])
    runner.call(runner.client(service), "shapley", SETS)
    assert [request.extensions["timeout"]["connect"] for request in service.seen] == [10, 10]


@pytest.mark.parametrize("code", [ErrorCode.INVALID_REQUEST, ErrorCode.UNAUTHORIZED, ErrorCode.NOT_FOUND])
def test_a_refusal_is_raised_at_once(code, runner, clock, script, failing) -> None:
    """Nothing that is wrong for good is sent twice."""
    service = script([failing(code)])
    with pytest.raises(exceptions.StatusError) as caught:
        runner.call(runner.client(service), "shapley", SETS)
    assert (len(service.seen), clock.pauses, caught.value.attempts) == (1, [], 1)


def test_the_deadline_bounds_attempts_and_pauses_together(runner, clock, script, failing) -> None:
    """When the next delay does not fit, the last error is raised at once, saying how hard was tried."""
    service = script([failing(ErrorCode.OVERLOADED)] * 1000)
    start = clock.now
    with pytest.raises(exceptions.OverloadedError, match=r"\(8 attempts in 15.8 s\)") as caught:
        runner.call(runner.client(service, deadline_s=300), "shapley", SETS, deadline_s=16)
    assert clock.pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert clock.now - start <= 16
    assert caught.value.attempts == len(service.seen) == 8


def test_time_spent_in_attempts_counts(runner, clock, failing) -> None:
    """A slow failure uses up the deadline as a pause does."""

    def slow(_: httpx.Request) -> httpx.Response:
        clock.now += 6.0
        return failing(ErrorCode.INTERNAL)

    with pytest.raises(exceptions.ServerError) as caught:
        runner.call(runner.client(slow, deadline_s=10), "shapley", SETS)
    assert caught.value.attempts == 2
    assert caught.value.elapsed_s == pytest.approx(12.25)


def test_an_attempt_that_outlasts_the_deadline_is_its_own_error(runner, clock) -> None:
    """No answer in time is DeadlineExceededError, with the code that the service would use."""

    def silent(_: httpx.Request) -> httpx.Response:
        clock.now += 20.0
        raise httpx.ReadTimeout("silence")

    with pytest.raises(exceptions.DeadlineExceededError, match="within 20 s") as caught:
        runner.call(runner.client(silent, deadline_s=20), "shapley", SETS)
    assert (caught.value.code, caught.value.status, caught.value.retryable) == ("deadline_exceeded", 504, True)
    assert isinstance(caught.value.__cause__, httpx.ReadTimeout)


def test_an_overlong_pause_does_not_lead_to_another_attempt(runner, clock, script, failing) -> None:
    """A machine that sleeps through the deadline wakes up to the last error."""
    service = script([failing(ErrorCode.OVERLOADED)] * 2)

    def oversleep(seconds: float) -> None:
        clock.now += seconds + 100

    client = runner.client(service, deadline_s=50)

    async def oversleep_async(seconds: float) -> None:
        oversleep(seconds)

    client._sleep = oversleep_async if runner.is_async else oversleep
    with pytest.raises(exceptions.OverloadedError):
        runner.call(client, "shapley", SETS)
    assert len(service.seen) == 1


def test_no_connection_at_all_is_a_transport_error(runner, script) -> None:
    """The message names the address, the cause and the number of attempts."""
    service = script([REFUSED] * 1000)
    with pytest.raises(
        exceptions.TransportError, match=r"http://credit.test: ConnectError: refused \(\d+ attempts"
    ) as caught:
        runner.call(runner.client(service, deadline_s=5), "shapley", SETS)
    assert caught.value.attempts == len(service.seen) > 1
    assert isinstance(caught.value.__cause__, httpx.ConnectError)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf")])
def test_a_deadline_is_a_finite_positive_number(wrong, runner, script) -> None:
    """Waiting for ever cannot be asked for, neither of a client nor of a call."""
    with pytest.raises(ValueError, match="deadline_s"):
        runner.client(script(), deadline_s=wrong)
    with pytest.raises(ValueError, match="deadline_s"):
        runner.call(runner.client(script()), "shapley", SETS, deadline_s=wrong)
