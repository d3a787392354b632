"""Pooled connections to a real Redis."""

import asyncio

import pytest

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
