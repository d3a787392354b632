import asyncio
import contextlib
import json
import threading
import time

import anyio
import anyio.to_thread
import pytest

from creditd.scoring.candidate_credit import score_candidate_sets
from creditd.scoring.deadline import DeadlineExceededError
from creditd.server.resources import Resources
from creditd.server.settings import Settings
from server.running import COMPOSE, GROUP, OAR, PATIENCE_S, SCAR, SCAR_SOLVE, SHAPLEY, gated, nested, on_service
from server.test_errors import problem_of


def held_back(limit, inside, **settings):
    """What `inside(service, responses)` returns while `limit` requests are held by a closed gate; all end in 200."""
    gate, resources = gated(max_requests_in_flight=limit, compute_threads=1, **settings)

    async def ask(service):
        gate.opened.clear()
        responses = []

        async def one():
            responses.append(await service.post(nested()))

        async with anyio.create_task_group() as tasks:
            for _ in range(limit):
                tasks.start_soon(one)
            await service.in_flight(limit)
            result = await inside(service)
            gate.opened.set()
        assert [response.status_code for response in responses] == [200] * limit
        assert (service.resources.in_flight, service.resources.idle.is_set()) == (0, True)
        return result

    return on_service(ask, resources)


def test_one_request_too_many_is_refused():
    """At the limit a request is 503 with Retry-After, and one is taken again when the others are answered."""
    response = held_back(3, lambda service: service.post(nested()))
    document = problem_of(response, "overloaded")
    assert response.headers["retry-after"] == "1"
    assert document["detail"].startswith("3 requests")


@pytest.mark.parametrize("path", [GROUP, SCAR, SCAR_SOLVE, OAR, COMPOSE, "/v1/info"])
def test_the_limit_holds_for_every_versioned_route(path):
    """Whatever is under /v1 is refused at the limit."""
    problem_of(held_back(1, lambda service: service.client.get(path)), "overloaded")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/openapi.json"])
def test_probes_answer_under_load(path):
    """A full service is alive, ready and observable: load is answered per request."""
    response = held_back(1, lambda service: service.client.get(path))
    assert response.status_code == 200


def test_the_event_loop_turns_while_arithmetic_runs():
    """Requests in flight are counted, and the counter is readable, while the threads are busy."""
    response = held_back(4, lambda service: service.client.get("/metrics"))
    assert "creditd_requests_in_flight 4.0" in response.text


@pytest.mark.parametrize(
    "request_of",
    [
        lambda service: service.post("rubbish"),
        lambda service: service.post(nested([[float("nan")]])),
        lambda service: service.post(nested(), "/v1/nope"),
        lambda service: service.client.get(SHAPLEY),
        lambda service: service.post(nested(), **{"X-Request-Timeout-Ms": "x"}),
        lambda service: service.post(b" " * 2000),
    ],
    ids=["not JSON", "no sound set", "404", "405", "no deadline", "too large"],
)
def test_a_failed_request_gives_its_place_back(request_of):
    """Whatever goes wrong, the count of requests in flight returns to 0."""

    async def ask(service):
        response = await request_of(service)
        return response.status_code, service.resources.in_flight, service.resources.idle.is_set()

    status, in_flight, idle = on_service(ask, max_body_bytes=1024)
    assert status >= 400
    assert (in_flight, idle) == (0, True)


def scope_of(headers=()):
    """The ASGI scope of a request for credit."""
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": SHAPLEY, "raw_path": SHAPLEY.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"content-type", b"application/json"), *headers], "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }  # fmt: skip


def test_a_cancelled_request_gives_its_place_back(log):
    """A request that the server cancels while it computes leaves the count at 0 and one log line."""
    gate, resources = gated(compute_threads=1)

    async def ask(service):
        gate.opened.clear()

        async def receive():
            return {"type": "http.request", "body": json.dumps(nested()).encode(), "more_body": False}

        async def send(_):
            raise AssertionError("a cancelled request was answered")

        task = asyncio.ensure_future(service.app(scope_of(), receive, send))
        await service.in_flight(1)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        gate.opened.set()
        return service.resources.in_flight

    assert on_service(ask, resources) == 0
    assert [line["status"] for line in log.requests] == [499]


def test_a_caller_that_leaves_while_sending_gives_its_place_back(log):
    """A body that ends in a disconnect is logged as 499 and costs nothing further."""
    sent = []

    async def ask(service):
        messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

        async def receive():
            return next(messages)

        async def send(message):
            sent.append(message)

        await service.app(scope_of(), receive, send)
        return service.resources.in_flight

    assert on_service(ask) == 0
    assert [(line["status"], line["code"]) for line in log.requests] == [(499, "client_gone")]


async def trickling(service, inside, first=b"{", headers=()):
    """What `inside()` returns while a request is in flight of whose body the first bytes alone have come."""
    over, asked = asyncio.Event(), 0

    async def receive():
        nonlocal asked
        asked += 1
        if asked > 1:
            await over.wait()
        return {"type": "http.request", "body": first, "more_body": True}

    async def send(_):
        raise AssertionError("a request without an end was answered")

    task = asyncio.ensure_future(service.app(scope_of(headers), receive, send))
    await service.in_flight(1)
    while asked < 2:  # noqa: ASYNC110  # nothing tells that the first bytes were read
        await anyio.sleep(0.001)
    result = await inside()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return result


def test_a_body_that_does_not_arrive_keeps_nobody_out():
    """A request whose body is still arriving takes no place from those that can be answered."""

    async def ask(service):
        return await trickling(service, lambda: service.post(nested()))

    assert on_service(ask, max_requests_in_flight=1).status_code == 200


def test_a_body_has_to_arrive_in_time():
    """A body that stops is 504 at the setting, long before the deadline of its request, and says what was slow."""

    async def ask(service):
        async def receive():
            await anyio.sleep(PATIENCE_S)

        sent = []

        async def send(message):
            sent.append(message)

        await service.app(scope_of(), receive, send)
        return sent, service.resources.in_flight

    (start, body), in_flight = on_service(ask, body_timeout_s=0.05)
    assert (start["status"], in_flight) == (504, 0)
    document = json.loads(body["body"])
    assert document["code"] == "deadline_exceeded"
    assert document["detail"] == "the body was not here within 0.05 s of its head"


def test_all_bodies_together_are_bounded():
    """Bytes of bodies are counted over all requests, refused beyond the setting, and given back."""

    async def ask(service):
        def kept():
            return service.resources.held_bytes

        refused = await trickling(service, lambda: service.post(nested()), first=b" " * 1800)
        assert kept() == 0
        return refused, await service.post(nested()), kept()

    refused, answered, kept = on_service(ask, max_held_bytes=2048)
    document = problem_of(refused, "overloaded")
    assert "bodies and unread answers of all requests are larger than 2048 bytes" in document["detail"]
    assert refused.headers["retry-after"] == "1"
    assert (answered.status_code, kept) == (200, 0)


def test_work_of_a_caller_who_left_ends(log):
    """A computation ends where it next looks at its deadline once its caller has gone, and 499 is what the log says."""
    begun, ended = threading.Event(), threading.Event()

    def score(batch, options, rejected, deadline):
        if batch.n_sets != 4:
            return score_candidate_sets(batch, options, rejected, deadline)
        begun.set()
        until = time.monotonic() + 2 * PATIENCE_S
        while time.monotonic() < until:
            try:
                deadline.check()
            except DeadlineExceededError:
                ended.set()
                raise
            time.sleep(0.001)
        raise AssertionError("the work was never told to end")

    async def ask(service):
        sent = False

        async def receive():
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": json.dumps(nested()).encode(), "more_body": False}
            await anyio.to_thread.run_sync(begun.wait, PATIENCE_S)
            return {"type": "http.disconnect"}

        async def send(_):
            """Nobody reads it."""

        await service.app(scope_of(), receive, send)
        return await anyio.to_thread.run_sync(ended.wait, PATIENCE_S)

    assert on_service(ask, Resources(Settings(max_inline_candidates=0), score_sets=score))
    assert [line["status"] for line in log.requests] == [499]


def test_an_answer_that_waits_to_be_written_is_held():
    """The bytes of an answer count while its caller does not take them, and no longer."""

    async def ask(service):
        writing, read = asyncio.Event(), asyncio.Event()

        async def receive():
            return {"type": "http.request", "body": json.dumps(nested()).encode(), "more_body": False}

        async def send(message):
            if message["type"] == "http.response.body":
                writing.set()
                await read.wait()
                sizes.append(len(message["body"]))

        sizes = []
        task = asyncio.ensure_future(service.app(scope_of(), receive, send))
        await writing.wait()
        held = service.resources.held_bytes
        read.set()
        await task
        return held, sizes[0], service.resources.held_bytes

    held, size, after = on_service(ask)
    assert held == size > 0
    assert after == 0
