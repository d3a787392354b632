"""Callers that leave by the hundred while Redis is slow: no answer ever belongs to another question."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import anyio
import httpx
import pytest

from cache.processes import service_process
from cache.proxy import Proxy
from cache.replicas import (
    PATIENCE_S,
    agreed,
    answer_of,
    asked,
    counters_of,
    faults,
    recovered,
    replica,
    shared,
    without_cache,
)
from creditd.cache.games import header_of, unpacked
from creditd.cache.keys import GameKey
from redis_servers import RedisServer
from server.model_services import UTILITY, sets_of
from server.running import SHAPLEY

pytestmark = pytest.mark.redis

N_LEAVING, N_STAYING, N_AT_ONCE = 350, 100, 25
N_BODIES = 120
"""Different requests: many are asked several times, at once, by callers that stay and callers that leave."""
CONNECTIONS = 8
LONGEST_DELAY_S = 0.04
LEFT = f'creditd_requests_total{{route="{SHAPLEY}",status="499"}}'


def crowd(draw):
    """Requests in random order, with when their caller leaves; None where it stays."""
    leave_s = [draw.uniform(0.0, LONGEST_DELAY_S) for _ in range(N_LEAVING)]
    found = [(asked(draw.randrange(N_BODIES)), leaves_s) for leaves_s in [*leave_s, *[None] * N_STAYING]]
    draw.shuffle(found)
    return found


async def each_of(callers, ask):
    """Ask for all callers, so many at once."""
    places = anyio.Semaphore(N_AT_ONCE)

    async def one(body, leaves_s):
        async with places:
            await ask(body, leaves_s)

    async with anyio.create_task_group() as tasks:
        for body, leaves_s in callers:
            tasks.start_soon(one, body, leaves_s)


async def half_known(url, reference):
    """Have Redis know every other request, so that answers have something that could be mistaken."""
    async with replica(url) as one:
        await agreed(one, reference, [asked(number) for number in range(0, N_BODIES, 2)])
        await one.written()


async def assert_all_is_true(server, reference):
    """Every value of a game is whole and belongs to its key, and what a new replica makes of them is right."""
    client = server.client()
    keys = list(client.scan_iter("creditd:1:model:*"))
    for key in keys:
        value = client.get(key)
        unpacked(value, GameKey.of(key.decode()).check, header_of(value)["n_players"])
    usages = await shared(server.url, reference, [asked(number) for number in range(N_BODIES)])
    assert sum(usage["evaluations"] == 0 for usage in usages) >= N_BODIES // 2


async def hang_up(port, body, leaves_s):
    """Send a request, and close the connection some time later, whatever has come by then."""
    content = json.dumps(body)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {SHAPLEY} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    writer.write(f"{head}\r\n\r\n{content}".encode())
    await writer.drain()
    await anyio.sleep(leaves_s)
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def quiet(client):
    """What `/metrics` says once no request is in flight and nothing waits to be written."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            exposition = (await client.get("/metrics")).text
            if {"creditd_requests_in_flight 0.0", "creditd_cache_queued_bytes 0.0"} <= set(exposition.splitlines()):
                return exposition
            await anyio.sleep(0.01)


def test_callers_that_hang_up_leave_nothing_behind(tmp_path):
    """A process whose callers close their connections at any moment answers the others, and Redis holds the truth."""
    draw = random.Random(1)  # noqa: S311 - test data

    async def crowded(server, proxy, reference, url):
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:

            async def ask(body, leaves_s):
                if leaves_s is not None:
                    await hang_up(httpx.URL(url).port, body, leaves_s)
                    return
                response = await client.post(SHAPLEY, json=body)
                assert response.status_code == 200, response.text
                assert answer_of(response.json()).document == (await reference.answer(body)).document

            async def found_in_redis(callers):
                # Where others keep the machine busy, Redis may be left out for a while.
                with anyio.fail_after(PATIENCE_S):
                    before = counters_of(await quiet(client)).get("games redis", 0)
                    while counters_of(await quiet(client)).get("games redis", 0) == before:
                        await each_of(callers(), ask)

            proxy.delay_s = lambda: draw.uniform(0.0, LONGEST_DELAY_S)
            await found_in_redis(lambda: crowd(draw))
            proxy.delay_s = lambda: 0.0
            exposition = await quiet(client)
            (left,) = [line for line in exposition.splitlines() if line.startswith(LEFT)]
            assert float(left.split()[-1]) > N_LEAVING / 2
            assert not any(name.startswith("corrupt") for name in faults(counters_of(exposition)))
            assert (await client.get("/readyz")).text == "ready\n"
            connected = [one["name"] for one in server.client().client_list()]
            assert connected.count("creditd") <= CONNECTIONS
            # As many requests as there are connections, and more, find what they ask for.
            await found_in_redis(lambda: [(asked(number), None) for number in range(0, N_BODIES, 2)])
            found = faults(counters_of(await quiet(client)))
            assert not any(name.startswith("corrupt") or name.endswith("unexpected") for name in found)

    async def scenario(server):
        async with Proxy(server.port) as proxy, without_cache() as reference:
            await half_known(server.url, reference)
            settings = {"redis_url": proxy.url, "cache_bytes": 0, "redis_connections": CONNECTIONS}
            with service_process(tmp_path, **settings) as url:
                await crowded(server, proxy, reference, url)
            await assert_all_is_true(server, reference)

    with RedisServer() as server:
        anyio.run(scenario, server)
    assert "Traceback" not in (tmp_path / "service.log").read_text(encoding="utf-8")


def test_requests_that_are_cancelled_leave_nothing_behind():
    """Requests whose task is cancelled wherever it stands, as by a server that ends, take nobody's answer."""
    draw = random.Random(2)  # noqa: S311 - test data

    async def scenario(server):
        async with Proxy(server.port) as proxy, without_cache() as reference:
            await half_known(server.url, reference)
            async with replica(proxy.url, redis_connections=CONNECTIONS) as one:
                cancelled = 0

                async def ask(body, leaves_s):
                    nonlocal cancelled
                    if leaves_s is None:
                        await agreed(one, reference, [body])
                        return
                    with anyio.move_on_after(leaves_s) as limit:
                        await one.service.post(body)
                    cancelled += limit.cancelled_caught

                proxy.delay_s = lambda: draw.uniform(0.0, LONGEST_DELAY_S)
                await each_of(crowd(draw), ask)
                proxy.delay_s = lambda: 0.0
                assert cancelled > N_LEAVING / 2
                await one.written()
                found = await one.counters()
                assert found["games redis"] > 0
                assert not any(name.startswith("corrupt") for name in faults(found))
                await one.service.in_flight(0)
                assert not one.service.resources.cache._flights
                await recovered(one, reference, proxy.url, iter(range(N_BODIES, 10 * N_BODIES)))
            await assert_all_is_true(server, reference)

    with RedisServer() as server:
        anyio.run(scenario, server)


@pytest.mark.parametrize("leaves_s", [0.0, 0.02, 0.06, 0.1])
def test_others_go_on_when_the_one_that_asks_for_all_leaves(leaves_s):
    """Of many callers with one question one asks Redis and the model; wherever it leaves, the others are answered."""
    body = sets_of(("sun", "rain", "snow wind"), ("sun", "fog"), **UTILITY)

    async def scenario(server):
        async with Proxy(server.port) as proxy, without_cache() as reference, replica(proxy.url) as one:
            await agreed(one, reference, [asked(0)])
            proxy.delay_s = lambda: 0.05
            async with anyio.create_task_group() as tasks:
                with anyio.move_on_after(leaves_s):
                    tasks.start_soon(agreed, one, reference, [body] * 2)
                    for _ in range(10):
                        tasks.start_soon(agreed, one, reference, [body])
                    await one.service.post(body)
            await one.written()
            proxy.delay_s = lambda: 0.0
            assert not one.service.resources.cache._flights
            assert [usage["evaluations"] for usage in await shared(server.url, reference, [body])] == [0]

    with RedisServer() as server:
        anyio.run(scenario, server)
