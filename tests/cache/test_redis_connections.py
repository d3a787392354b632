"""Pooled connections to a real Redis."""

import asyncio
import itertools

import pytest

from creditd.cache.breaker import FAILURES
from creditd.cache.budget import Budget
from creditd.cache.events import NoEvents
from creditd.cache.redis import RedisChoice, RedisStore
from redis_servers import RedisServer

pytestmark = pytest.mark.redis

CONNECTIONS = 8
PATIENCE_S = 30.0


class Failures(NoEvents):
    """What failed, in order."""

    def __init__(self):
        self.reasons = []

    def failed(self, operation, reason):
        """Keep it."""
        self.reasons.append((operation, reason))


def test_a_call_that_took_too_long_is_a_failure_though_it_succeeded():
    """A Redis that answers, but later than a request would wait, is left out like one that does not."""

    async def slow(server):
        events, now = Failures(), itertools.count(step=0.3)
        store = RedisStore(RedisChoice(server.url), events, lambda: next(now))
        found = [await store.get(["creditd:1:caller:x"], Budget(PATIENCE_S)) for _ in range(FAILURES)]
        state = store.state("read")
        await store.close()
        return found, events.reasons, state

    with RedisServer() as server:
        found, reasons, state = asyncio.run(slow(server))
    assert found == [[None]] * FAILURES
    assert reasons == [("read", "timeout")] * FAILURES
    assert state == "open"


def test_connections_that_redis_closed_are_not_used_again():
    """After a restart of Redis, connections of before cost no failure: each is looked at before it is used."""

    async def restarted(server):
        events = Failures()
        store = RedisStore(RedisChoice(server.url, connections=CONNECTIONS), events)

        async def reads():
            budgets = [Budget(PATIENCE_S) for _ in range(CONNECTIONS)]
            return await asyncio.gather(*(store.get(["creditd:1:caller:x"], budget) for budget in budgets))

        await reads()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.restart)
        found = await reads()
        await store.close()
        return found, events.reasons

    with RedisServer() as server:
        found, reasons = asyncio.run(restarted(server))
    assert reasons == []
    assert found == [[None]] * CONNECTIONS
