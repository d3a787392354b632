"""A Redis that refuses: full, read-only, with another password or fewer rights. What it still does is still used."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager

import anyio
import pytest

from cache.replicas import PATIENCE_S, agreed, asked, faults, left_out, moved, recovered, replica, shared, without_cache
from creditd.cache.breaker import FAILURES
from redis_servers import RedisServer

pytestmark = pytest.mark.redis

N_KNOWN = 5
GAMES = "creditd:1:model:*"
ROOM_BYTES, FILLER_BYTES = 500_000, 5_000
FIRST, SECOND = "the-first-password", "the-second-password"


async def until(true, what):
    """Wait for something that a server does by itself."""
    with anyio.fail_after(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - the server has no event for it
            await anyio.sleep(0.01)
    assert true(), what


@asynccontextmanager
async def full(server):
    """No memory for another value, and none that may be given up."""
    server.client().config_set("maxmemory", 1)
    try:
        yield server.url
    finally:
        server.client().config_set("maxmemory", 0)


@asynccontextmanager
async def without_rights(server):
    """The user may read and not write."""
    server.client().acl_setuser("default", enabled=True, commands=["-set"])
    try:
        yield server.url
    finally:
        server.client().acl_setuser("default", enabled=True, commands=["+set"])


@asynccontextmanager
async def demoted(server):
    """It is made the replica of another server, as in a failover, and later the first again."""
    server.client().config_set("repl-diskless-sync-delay", 0)
    with RedisServer("--replicaof", f"127.0.0.1 {server.port}", "--repl-diskless-sync-delay", "0") as copy:
        await until(lambda: copy.client().dbsize() == server.client().dbsize(), "the copy is complete")
        try:
            yield copy.url
        finally:
            copy.client().replicaof("NO", "ONE")
            await until(lambda: copy.client().info("replication")["role"] == "master", "the copy is promoted")
            server.client().replicaof("127.0.0.1", copy.port)
            await until(lambda: server.client().info("replication")["master_link_status"] == "up", "they are linked")
            server.client().replicaof("NO", "ONE")


@pytest.mark.parametrize(
    ("refusing", "reason"),
    [(full, "out_of_memory"), (without_rights, "credentials"), (demoted, "read_only")],
)
def test_a_redis_that_refuses_to_write_is_read(refusing, reason):
    """Writes are left out and reads go on; when it takes writes again they are made."""
    numbers = itertools.count()

    async def scenario(server):
        async with without_cache() as reference:
            known = [asked(next(numbers)) for _ in range(N_KNOWN)]
            async with replica(server.url) as one:
                await agreed(one, reference, known)
                await one.written()
            async with refusing(server) as url, replica(url) as one:
                for failed in range(FAILURES):
                    assert one.breakers() == ("closed", "closed")
                    await agreed(one, reference, [asked(next(numbers))])
                    await one.written()
                    changes = faults(await one.counters())
                    assert changes.pop("dropped_writes failed") > failed
                    assert changes == {f"errors write {reason}": failed + 1}
                assert one.breakers() == ("closed", "open")
                before = await one.counters()
                usages = await agreed(one, reference, known)
                await agreed(one, reference, [asked(next(numbers)) for _ in range(N_KNOWN)])
                await one.written()
                changes = moved(before, await one.counters())
                assert not any(usage["evaluations"] for usage in usages)
                assert changes["games redis"] > 0
                assert set(faults(changes)) == {"dropped_writes breaker"}
                assert one.breakers() == ("closed", "open")
            async with replica(server.url) as one:
                await recovered(one, reference, server.url, numbers)

    with RedisServer() as server:
        anyio.run(scenario, server)


def test_writes_are_made_again_when_redis_takes_them():
    """The replica that was refused goes on by itself: after a while one write is tried, then all are made."""
    numbers = itertools.count()

    async def scenario(server):
        async with without_cache() as reference, replica(server.url) as one:
            async with full(server):
                await left_out(one, reference, numbers, reads="closed")
            await recovered(one, reference, server.url, numbers)

    with RedisServer() as server:
        anyio.run(scenario, server)


def test_values_that_redis_gave_up_are_misses():
    """A Redis that evicts for room serves what it still has, takes what is new, and nothing fails."""
    numbers = itertools.count()
    bodies = [asked(next(numbers)) for _ in range(40)]

    async def scenario(server):
        client = server.client()
        async with without_cache() as reference, replica(server.url) as one:
            await agreed(one, reference, bodies)
            await one.written()
            n_written = len(client.keys(GAMES))
            client.config_set("maxmemory-policy", "allkeys-lru")
            client.config_set("maxmemory", client.info("memory")["used_memory"] + ROOM_BYTES)
            fillers = itertools.count()
            while len(client.keys(GAMES)) > n_written // 2:
                client.set(f"filler {next(fillers)}", b"x" * FILLER_BYTES)
            usages = await agreed(one, reference, bodies)
            await one.written()
            assert any(usage["evaluations"] for usage in usages)
            assert any(usage["from_cache"] for usage in usages)
            assert faults(await one.counters()) == {}
            await recovered(one, reference, server.url, numbers)

    with RedisServer() as server:
        anyio.run(scenario, server)


def test_a_password_that_was_changed_is_said_and_costs_no_answer(caplog):
    """Connections of before are gone and new ones are refused, until the password is the right one again."""
    numbers = itertools.count()

    async def scenario(server, admin):
        settings = {"redis_password": FIRST}
        async with without_cache() as reference, replica(server.url, **settings) as one:
            known = [asked(next(numbers)) for _ in range(N_KNOWN)]
            await agreed(one, reference, known)
            await one.written()
            assert not any(usage["evaluations"] for usage in await shared(server.url, reference, known, **settings))
            before = await one.counters()
            admin.config_set("requirepass", SECOND)
            admin.client_kill_filter(_type="normal", skipme=True)
            await left_out(one, reference, numbers)
            noticed = await one.counters()
            changes = faults(moved(before, noticed))
            assert changes["errors read credentials"] == changes["errors write credentials"] == FAILURES
            assert {name.split()[0] for name in changes} == {"errors", "dropped_writes"}
            assert {name for name in changes if name.startswith("errors")} == {
                "errors read credentials", "errors write credentials",
            }  # fmt: skip
            await agreed(one, reference, known)
            await one.written()
            assert set(faults(moved(noticed, await one.counters()))) == {"dropped_writes breaker"}
            admin.config_set("requirepass", FIRST)
            await recovered(one, reference, server.url, numbers, **settings)

    with RedisServer("--requirepass", FIRST, password=FIRST) as server:
        anyio.run(scenario, server, server.client())
    assert "left out" in caplog.text
    assert FIRST not in caplog.text
    assert SECOND not in caplog.text


def test_a_wrong_password_at_boot_is_no_reason_not_to_start():
    """The service is ready and answers; the counters say what is wrong."""

    async def scenario(server):
        async with without_cache() as reference, replica(server.url, redis_password=SECOND) as one:
            await agreed(one, reference, map(asked, range(N_KNOWN)))
            await one.written()
            changes = faults(await one.counters())
            assert changes["errors read credentials"] == changes["errors write credentials"] == FAILURES

    with RedisServer("--requirepass", FIRST, password=FIRST) as server:
        anyio.run(scenario, server)


def test_connections_that_redis_ends_again_and_again_cost_no_answer():
    """An operator who ends all connections between any two requests is not noticed."""

    async def scenario(server):
        async with without_cache() as reference, replica(server.url) as one:
            bodies = [asked(number) for number in range(2 * N_KNOWN)]
            for body in bodies:
                await agreed(one, reference, [body])
                await one.written()
                server.client().client_kill_filter(_type="normal", skipme=True)
            usages = await agreed(one, reference, bodies)
            assert not any(usage["evaluations"] for usage in usages)
            assert faults(await one.counters()) == {}

    with RedisServer() as server:
        anyio.run(scenario, server)
