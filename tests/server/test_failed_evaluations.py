import anyio
import pytest

from server.model_gates import Gated, N, costs, happens, numbers_of, remembering, together, waiting
from server.model_services import REWARDS, UTILITY, sets_of
from server.running import PATIENCE_S, on_service

ROW = ("sun", "rain", "wind")


def test_a_leader_that_fails_leaves_the_others_to_ask():
    """One caller hears of the error of the model; one of those who waited asks again, for all the others."""
    gate = Gated()
    gate.fails = 1
    found, _ = together([sets_of(("sun",), **REWARDS)] * N, gate)
    assert [response.status_code for response in found] == [502] + [200] * (N - 1)
    assert sorted(costs(found[1:])) == [(0, 1)] * (N - 2) + [(1, 0)]


def test_a_model_that_always_fails_is_an_error_for_everybody():
    """Everybody asks once, and hears of it."""
    gate = Gated()
    gate.fails = 1 << 30
    found, _ = together([sets_of(("sun",), **REWARDS)] * N, gate)
    assert {(response.status_code, response.json()["code"]) for response in found} == {(502, "engine_failed")}


@pytest.mark.parametrize("asked", [REWARDS, UTILITY])
def test_sets_that_fail_fail_for_everybody(asked):
    """A score that is no number is nobody's: each request asks for itself, and fails by name."""
    gate = Gated()
    found, _ = together([sets_of(("sun", "curse"), ("rain", "wind"), **asked)] * N, gate)
    assert all(numbers_of(response) == numbers_of(found[0]) for response in found)
    assert [one["status"] for one in found[0].json()["sets"]] == ["error", "ok"]
    assert gate.texts["curse" if asked is REWARDS else "curse\n"] == N
    assert gate.texts["rain" if asked is REWARDS else "rain\n"] == 1


def leaving(leave):
    """What followers are answered whose leader leaves while the model is at its text, and what the model heard."""
    gate, found = Gated(), []

    async def ask(service):
        async def follow():
            found.append(await service.post(sets_of(ROW, **UTILITY)))

        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()
            tasks.start_soon(leave, service, scope)
            await happens(gate.begun)
            for _ in range(N):
                tasks.start_soon(follow)
            await waiting(service, N + 1)
            scope.cancel()
            await service.in_flight(N)
            with anyio.fail_after(PATIENCE_S):
                while len(service.resources.cache._flights) != 1:  # noqa: ASYNC110 - a dictionary has no event
                    await anyio.sleep(0.001)
            gate.opened.set()
        assert service.resources.cache._flights == {}

    on_service(ask, remembering(gate))
    assert {response.status_code for response in found} == {200}
    assert sorted(costs(found)) == [(0, 8)] * (N - 1) + [(8, 0)]
    assert all(numbers_of(response) == numbers_of(found[0]) for response in found)
    return gate.texts


def test_a_leader_that_is_cut_off_leaves_the_others_to_ask():
    """When the request that evaluates is cancelled, one of those who waited evaluates for all of them."""

    async def leave(service, scope):
        with scope:
            await service.post(sets_of(ROW, **UTILITY))

    assert max(leaving(leave).values()) <= 2


def test_a_leader_whose_caller_hangs_up_leaves_the_others_to_ask():
    """When the caller of the request that evaluates closes its connection, one of those who waited evaluates."""

    async def leave(service, scope):
        await hang_up(service, sets_of(ROW, **UTILITY), scope)

    assert max(leaving(leave).values()) <= 2


async def hang_up(service, body, scope):
    """Send a request whose connection is closed once a scope is cancelled."""
    request = service.client.build_request("POST", "/v1/credit/shapley", json=body)
    content = request.read()
    messages = iter([{"type": "http.request", "body": content, "more_body": False}])
    told = []

    async def receive():
        message = next(messages, None)
        if message is None:
            with scope:
                await anyio.sleep(10 * PATIENCE_S)
            return {"type": "http.disconnect"}
        return message

    async def send(message):
        told.append(message)

    await service.app(
        {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": request.url.path,
            "raw_path": request.url.raw_path,
            "query_string": b"",
            "scheme": "http",
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": ("127.0.0.1", 1),
            "server": ("service", 80),
        },
        receive,
        send,
    )
    assert not any(message.get("status") == 200 for message in told)


def test_a_leader_whose_deadline_passes_leaves_the_others_to_ask():
    """Whoever waits longer evaluates once the first one has given up."""
    gate, found = Gated(), []

    async def ask(service):
        async def one(**headers):
            found.append(await service.post(sets_of(("sun",), **REWARDS), **headers))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: one(**{"X-Request-Timeout-Ms": "300"}))
            await happens(gate.begun)
            for _ in range(N):
                tasks.start_soon(one)
            with anyio.fail_after(PATIENCE_S):
                while not found:  # noqa: ASYNC110 - a list has no event
                    await anyio.sleep(0.001)
            gate.opened.set()

    on_service(ask, remembering(gate))
    late, *others = found
    assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
    assert sorted(costs(others)) == [(0, 1)] * (N - 1) + [(1, 0)]


def test_a_follower_waits_no_longer_than_its_own_deadline():
    """Who waits for another request has a deadline of its own; the other one goes on."""
    gate, found = Gated(), {}

    async def ask(service):
        async def one(name, **headers):
            found[name] = await service.post(sets_of(("sun",), **REWARDS), **headers)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, "leader")
            await happens(gate.begun)
            await one("follower", **{"X-Request-Timeout-Ms": "100"})
            gate.opened.set()

    on_service(ask, remembering(gate))
    assert (found["follower"].status_code, found["leader"].status_code) == (504, 200)
    assert gate.texts == {"sun": 1}
