"""Calls of Redis that end otherwise than they should: cut, crowded out, too late, or answered by something else."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress

import anyio
import pytest

from cache.replicas import (
    BUDGET_S,
    PATIENCE_S,
    agreed,
    asked,
    faults,
    moved,
    on_proxied,
    recovered,
    replica,
    without_cache,
)
from creditd.cache.breaker import FAILURES
from creditd.cache.tiers import KEYS_PER_CALL
from server.model_services import REWARDS, sets_of

pytestmark = pytest.mark.redis


@pytest.mark.parametrize("passes", [0.0, 0.01, 0.5, 0.99])
def test_a_connection_that_is_cut_in_the_middle_of_an_answer_is_a_miss(passes):
    """However much of an answer has come: nothing of it is used, and the next one is asked on a new connection."""
    numbers = itertools.count()

    async def scenario(_, proxy, reference):
        async with replica(proxy.url) as one:
            bodies = [asked(next(numbers)) for _ in range(5)]
            await agreed(one, reference, bodies)
            await one.written()
            for body in bodies:
                before, answered = await one.counters(), proxy.n_answered
                (usage,) = await agreed(one, reference, [body])
                length = proxy.n_answered - answered
                assert usage["evaluations"] == 0
                proxy.cuts_after = int(passes * length)
                (usage,) = await agreed(one, reference, [body])
                await one.written()
                assert usage["evaluations"] > 0
                assert faults(moved(before, await one.counters())) == {"errors read connection": 1.0}
                (usage,) = await agreed(one, reference, [body])
                assert usage["evaluations"] == 0
            assert one.breakers() == ("closed", "closed")
            await recovered(one, reference, proxy.url, numbers)

    on_proxied(scenario)


def test_a_redis_that_is_killed_under_load_fails_no_request():
    """Requests that wait for answers of Redis when it dies are answered, and so are those that follow."""
    numbers = itertools.count()

    async def scenario(server, proxy, reference):
        proxy.delay_s = lambda: 0.02
        async with replica(proxy.url, redis_connections=4) as one:
            bodies = [asked(next(numbers)) for _ in range(40)]
            await agreed(one, reference, bodies[:20])
            await one.written()
            before = await one.counters()
            async with anyio.create_task_group() as tasks:
                for body in bodies:
                    tasks.start_soon(agreed, one, reference, [body])
                await anyio.sleep(0.03)
                server.kill()
            await one.written()
            changes = faults(moved(before, await one.counters()))
            assert {"errors read connection", "errors write connection"} & set(changes)
            assert {name.split()[-1] for name in changes} <= {
                "connection", "budget", "busy", "timeout", "failed", "breaker",
            }  # fmt: skip
            await anyio.to_thread.run_sync(server.start)
            proxy.delay_s = lambda: 0.0
            await recovered(one, reference, proxy.url, numbers)

    on_proxied(scenario)


def test_connections_that_are_all_in_use_are_no_failure_of_redis(caplog):
    """Where a call gets no connection in time, its request goes on without; Redis is asked by the others as before."""
    numbers = itertools.count()

    async def scenario(_, proxy, reference):
        async with replica(proxy.url, redis_connections=1) as one:
            bodies = [asked(next(numbers)) for _ in range(10)]
            await agreed(one, reference, bodies)
            await one.written()
            before = await one.counters()
            proxy.delay_s = lambda: 0.1
            async with anyio.create_task_group() as tasks:
                for body in bodies:
                    tasks.start_soon(agreed, one, reference, [body])
            proxy.delay_s = lambda: 0.0
            changes = moved(before, await one.counters())
            assert changes["errors read busy"] > FAILURES
            assert changes["games redis"] > 0
            assert set(faults(changes)) <= {"errors read busy", "errors write busy", "dropped_writes failed"}
            assert one.breakers() == ("closed", "closed")
            await one.written()
            await recovered(one, reference, proxy.url, numbers)

    on_proxied(scenario)
    assert "left out" not in caplog.text


def test_a_frozen_redis_with_one_connection_is_noticed_once_per_call():
    """Many requests at once wait for the only connection, or for its answer, and none of them longer than it may."""
    numbers = itertools.count()

    async def scenario(server, _, reference):
        async with replica(server.url, redis_connections=1) as one:
            await agreed(one, reference, [asked(next(numbers))])
            await one.written()
            before = await one.counters()
            server.stop()
            async with anyio.create_task_group() as tasks:
                for _ in range(40):
                    tasks.start_soon(agreed, one, reference, [asked(next(numbers))])
            changes = faults(moved(before, await one.counters()))
            assert changes["errors read busy"] > changes.get("errors read timeout", 0)
            server.cont()
            await one.written()
            await recovered(one, reference, server.url, numbers)

    on_proxied(scenario)


def test_all_calls_of_a_request_share_its_time():
    """A request of many games asks Redis several times; when its time is over it goes on with what it has."""
    texts = [f"text {number}" for number in range(2500)]
    body = sets_of(*(texts[start : start + 25] for start in range(0, len(texts), 25)), **REWARDS)

    async def scenario(_, proxy, reference):
        async with replica(proxy.url) as one:
            await agreed(one, reference, [body])
            await one.written()
            (usage,) = await agreed(one, reference, [body])
            assert usage["evaluations"] == 0
            before = await one.counters()
            proxy.delay_s = lambda: 0.6 * BUDGET_S
            (usage,) = await agreed(one, reference, [body])
            proxy.delay_s = lambda: 0.0
            changes = faults(moved(before, await one.counters()))
            assert changes["errors read budget"] == 1
            assert usage["from_cache"] <= KEYS_PER_CALL
            assert usage["evaluations"] == len(texts) - usage["from_cache"]
            assert one.breakers()[0] == "closed"
            await one.written()
            await recovered(one, reference, proxy.url, itertools.count())

    on_proxied(scenario)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "unexpected"),
        (b"+OK\r\n", "unexpected"),
        (b"-ERR unknown command\r\n", "refused"),
        (b"-LOADING Redis is loading the dataset in memory\r\n", "connection"),
        (b"$-1\r\n", "connection"),
        (b"\0" * 100, "unexpected"),
    ],
    ids=["http", "ok", "error", "loading", "nothing", "zeros"],
)
def test_something_else_that_answers_in_place_of_redis_is_left_out(words, reason):
    """Whatever it says to whatever it is asked, nothing of it is taken for a value."""
    numbers = itertools.count()

    async def say(reader, writer):
        with suppress(OSError):
            while await reader.read(1 << 16):
                writer.write(words)
                await writer.drain()
        writer.close()

    async def scenario():
        other = await asyncio.start_server(say, "127.0.0.1", 0)
        port = other.sockets[0].getsockname()[1]
        async with other, without_cache() as reference, replica(f"redis://127.0.0.1:{port}/0") as one:
            with anyio.fail_after(PATIENCE_S):
                while one.breakers()[0] != "open":
                    await agreed(one, reference, [asked(next(numbers))])
            await one.written()
            changes = faults(await one.counters())
            assert changes[f"errors read {reason}"] == FAILURES
            assert {name.split()[0] for name in changes} == {"errors", "dropped_writes"}

    anyio.run(scenario)
