"""A Redis that is killed, frozen, slow or silent costs a request milliseconds, and no answer a bit."""

from __future__ import annotations

import itertools
import time
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from cache.replicas import (
    SLACK_S,
    agreed,
    asked,
    counters_of,
    faults,
    left_out,
    moved,
    on_proxied,
    recovered,
    replica,
    shared,
    without_cache,
)
from creditd.cache.breaker import FAILURES
from redis_servers import RedisServer, free_port

pytestmark = pytest.mark.redis

LEFT_OUT = 10
"""Requests that are asked while Redis is left out."""
STALL_S = 2.0
END_S = 10.0
"""Ten times what the end of a service waits for what is still to be written."""


@asynccontextmanager
async def killed(server, proxy):
    """The process ends as in a crash, and comes back empty."""
    del proxy
    server.kill()
    try:
        yield
    finally:
        await anyio.to_thread.run_sync(server.start)


@asynccontextmanager
async def frozen(server, proxy):
    """The process stands still: connections are accepted by its kernel, and nothing is answered."""
    del proxy
    server.stop()
    try:
        yield
    finally:
        server.cont()


@asynccontextmanager
async def black_hole(server, proxy):
    """Something accepts connections and never says a word."""
    del server
    proxy.silent = True
    try:
        yield
    finally:
        proxy.silent = False


@asynccontextmanager
async def silent_from_the_start(server, proxy):
    """The same, and connections of before are gone."""
    proxy.cut()
    async with black_hole(server, proxy):
        yield


@pytest.mark.parametrize(
    ("fault", "proxied", "reason", "cache_bytes"),
    [
        (killed, False, "connection", 0),
        (killed, True, "connection", 0),
        (killed, False, "connection", 1 << 20),
        (frozen, False, "timeout", 0),
        (frozen, False, "timeout", 1 << 20),
        (black_hole, True, "timeout", 0),
        (silent_from_the_start, True, "timeout", 0),
    ],
)
def test_a_redis_that_is_gone_is_left_out(fault, proxied, reason, cache_bytes):
    """Three requests find it out, the next ones do not ask, and all are answered; once it is back it is used."""
    numbers = itertools.count()

    async def scenario(server, proxy, reference):
        url = proxy.url if proxied else server.url
        async with replica(url, cache_bytes=cache_bytes) as one:
            known = [asked(next(numbers)) for _ in range(5)]
            await agreed(one, reference, known)
            await one.written()
            healthy = await one.counters()
            assert faults(healthy) == {}
            async with fault(server, proxy):
                failed = 0
                while one.breakers()[0] != "open":
                    assert failed < FAILURES
                    await agreed(one, reference, [asked(next(numbers))])
                    with anyio.fail_after(SLACK_S):
                        while (await one.counters()).get(f"errors read {reason}", 0) == failed:  # noqa: ASYNC110
                            await anyio.sleep(0.005)
                    failed += 1
                await one.written()
                noticed, connections = await one.counters(), proxy.n_connections
                changes = faults(moved(healthy, noticed))
                assert changes[f"errors read {reason}"] == FAILURES
                assert {name for name in changes if name.startswith("errors")} <= {
                    f"errors read {reason}", f"errors write {reason}", "errors read budget",
                }  # fmt: skip
                assert {name for name in changes if name.startswith("dropped")} == {"dropped_writes failed"}

                await left_out(one, reference, numbers)
                noticed, connections = await one.counters(), proxy.n_connections
                await agreed(one, reference, [asked(next(numbers)) for _ in range(LEFT_OUT)])
                again = await agreed(one, reference, known)
                await one.written()
                assert set(faults(moved(noticed, await one.counters()))) == {"dropped_writes breaker"}
                assert proxy.n_connections == connections
                assert all((usage["evaluations"] == 0) == bool(cache_bytes) for usage in again)
            await recovered(one, reference, url, numbers)

    on_proxied(scenario)


def test_a_stall_of_seconds_is_noticed_in_milliseconds():
    """Redis that is busy for two seconds is waited for no longer than a request may wait."""
    numbers = itertools.count()

    async def scenario(server, _, reference):
        async with replica(server.url) as one:
            await agreed(one, reference, [asked(next(numbers))])
            await one.written()
            before = await one.counters()
            async with anyio.create_task_group() as stall:
                client = server.client()
                stall.start_soon(anyio.to_thread.run_sync, client.execute_command, "DEBUG", "SLEEP", STALL_S)
                await anyio.sleep(0.1)
                await agreed(one, reference, [asked(next(numbers)) for _ in range(FAILURES + LEFT_OUT)])
                changes = faults(moved(before, await one.counters()))
            assert changes["errors read timeout"] > 0
            assert set(changes) <= {
                "errors read timeout", "errors read budget", "errors write timeout", "dropped_writes failed",
                "dropped_writes breaker",
            }  # fmt: skip
            await one.written()
            await recovered(one, reference, server.url, numbers)

    on_proxied(scenario)


def test_a_redis_that_restarted_is_empty_and_nothing_else():
    """What it knew is missed and written again; connections of before cost no request anything."""
    numbers = itertools.count()

    async def scenario(server, _, reference):
        async with replica(server.url) as one:
            bodies = [asked(next(numbers)) for _ in range(5)]
            await agreed(one, reference, bodies)
            await one.written()
            before = await one.counters()
            await anyio.to_thread.run_sync(server.restart)
            usages = await agreed(one, reference, bodies)
            await one.written()
            changes = moved(before, await one.counters())
            assert all(usage["evaluations"] for usage in usages)
            assert faults(changes) == {}
            assert changes["games missed"] > 0
            assert not any(usage["evaluations"] for usage in await shared(server.url, reference, bodies))
            await recovered(one, reference, server.url, numbers)

    on_proxied(scenario)


def test_a_redis_that_is_not_there_at_boot_is_used_once_it_comes():
    """The service starts, is ready and answers; when Redis has come up it is asked."""
    numbers, port = itertools.count(), free_port()
    url = f"redis://127.0.0.1:{port}/0"

    async def scenario():
        async with without_cache() as reference, replica(url) as one:
            await agreed(one, reference, [asked(next(numbers)) for _ in range(5)])
            await one.written()
            changes = faults(await one.counters())
            assert changes["errors read connection"] == FAILURES
            assert one.breakers()[0] == "open"
            server = RedisServer(port=port)
            await anyio.to_thread.run_sync(server.start)
            try:
                await recovered(one, reference, url, numbers)
            finally:
                server.close()

    anyio.run(scenario)


@pytest.mark.parametrize("fault", [killed, frozen])
def test_a_service_ends_in_good_time_without_redis(fault):
    """What waits to be written when Redis is gone keeps no process alive."""
    numbers = itertools.count()

    async def scenario(server, proxy, reference):
        async with AsyncExitStack() as lifespan:
            one = await lifespan.enter_async_context(replica(server.url))
            await agreed(one, reference, [asked(next(numbers)) for _ in range(3)])
            async with fault(server, proxy):
                await agreed(one, reference, [asked(next(numbers)) for _ in range(2)])
                started_s = time.monotonic()
                await lifespan.aclose()
                assert time.monotonic() - started_s < END_S
        changes = faults(counters_of(one.service.resources.metrics.exposition().decode()))
        assert sum(count for name, count in changes.items() if name.startswith("dropped_writes")) > 0

    on_proxied(scenario)


def test_breakers_go_by_the_clock_of_the_machine():
    """Seconds after Redis failed it is tried by itself, and used."""
    numbers = itertools.count()

    async def scenario(server, _, reference):
        async with replica(server.url, clock=time.monotonic) as one:
            server.stop()
            await left_out(one, reference, numbers)
            server.cont()
            with anyio.fail_after(10 * SLACK_S):
                while one.breakers() != ("closed", "closed"):
                    await agreed(one, reference, [asked(next(numbers))])
                    await anyio.sleep(0.05)
            body = asked(next(numbers))
            await agreed(one, reference, [body])
            await one.written()
            assert [usage["evaluations"] for usage in await shared(server.url, reference, [body])] == [0]

    on_proxied(scenario)
