import asyncio
import contextlib
import json

import anyio
import pytest

from server.running import GROUP, SHAPLEY, gated, nested, on_service
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


@pytest.mark.parametrize("path", [GROUP, "/v1/info"])
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
