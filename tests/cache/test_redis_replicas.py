"""Processes that share a Redis: what one evaluated no other evaluates again, and none needs the others or Redis."""

from __future__ import annotations

import os
import signal

import anyio
import pytest

from cache.processes import BODIES, BUDGET, ask, counters, in_redis, one_long_text, service_process
from cache.replicas import agreed, asked, replica, shared, without_cache
from redis_servers import RedisServer

pytestmark = pytest.mark.redis


def test_processes_share_their_work(tmp_path):
    """The second process evaluates nothing, nor does the first after a crash; without Redis the bits are equal."""
    first, second, pid = tmp_path / "first", tmp_path / "second", tmp_path / "pid"
    first.mkdir()
    second.mkdir()
    evaluated, remembered = [], []
    with RedisServer() as server:
        with service_process(second, redis_url=server.url) as other:
            with service_process(first, pid_file=pid, redis_url=server.url) as one:
                evaluated += ask(one)
                in_redis(server, len(BODIES))
                remembered += ask(one) + ask(other)
                os.kill(int(pid.read_text(encoding="utf-8")), signal.SIGKILL)
            assert counters(other)["games redis"] == len(BODIES)
            assert counters(other)["evaluations_saved redis rm"] == len(BODIES) * BUDGET
            assert "games missed" not in counters(other)
            with service_process(first, redis_url=server.url) as one:
                remembered += ask(one)
                assert counters(one)["games redis"] == len(BODIES)
                assert "games missed" not in counters(one)
            server.kill()
            remembered += ask(other)
        with service_process(first, redis_url=server.url) as one:
            evaluated += ask(one)
            assert counters(one)["errors read connection"] > 0
    with service_process(first, cache_bytes=0) as one:
        evaluated += ask(one)
    assert [(answer.usage["evaluations"], answer.usage["from_cache"]) for answer in evaluated] == [(BUDGET, 0)] * 6
    assert [(answer.usage["evaluations"], answer.usage["from_cache"]) for answer in remembered] == [(0, BUDGET)] * 8
    for number, answer in enumerate(evaluated + remembered):
        assert answer.document == evaluated[-len(BODIES) :][number % len(BODIES)].document


def test_a_larger_budget_evaluates_what_is_new():
    """What a smaller budget evaluated in another replica is a part of what a larger one needs."""

    async def scenario(server):
        async with without_cache() as reference:
            async with replica(server.url) as one:
                (small,) = await agreed(one, reference, [one_long_text(estimator={"budget": BUDGET // 2})])
                await one.written()
            async with replica(server.url) as one:
                (large,) = await agreed(one, reference, [one_long_text()])
                await one.written()
            (again,) = await shared(server.url, reference, [one_long_text()])
            assert (small["evaluations"], small["from_cache"]) == (BUDGET // 2, 0)
            assert (large["evaluations"], large["from_cache"]) == (BUDGET // 2, BUDGET // 2)
            assert (again["evaluations"], again["from_cache"]) == (0, BUDGET)

    with RedisServer() as server:
        anyio.run(scenario, server)


def test_replicas_share_while_both_evaluate():
    """Requests that two replicas get at the same time are answered by both; afterwards a third evaluates nothing."""
    bodies = [asked(number) for number in range(20)]

    async def scenario(server):
        async with (
            without_cache() as reference,
            replica(server.url, cache_bytes=1 << 20) as one,
            replica(server.url, cache_bytes=1 << 20) as other,
        ):
            async with anyio.create_task_group() as tasks:
                for body in bodies:
                    tasks.start_soon(agreed, one, reference, [body])
                    tasks.start_soon(agreed, other, reference, [body])
            await one.written()
            await other.written()
            usages = await shared(server.url, reference, bodies)
            assert not any(usage["evaluations"] for usage in usages)

    with RedisServer() as server:
        anyio.run(scenario, server)
