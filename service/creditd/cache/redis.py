"""The second level: Redis, which may be slow, full, wrong or gone, and then costs milliseconds and nothing else.

No call is cancelled from outside: whoever waits stops waiting, and the call ends by its own time limit, so that a
connection never carries the answer to a question that nobody asks any more.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from creditd.cache.breaker import Breaker, BreakerState
from creditd.cache.budget import Budget
from creditd.cache.events import CacheEvents, Drop, Failure, Operation

T = TypeVar("T")

log = logging.getLogger("creditd.cache")

CLOSING_S = 1.0
"""How long calls may take to end when the process does."""


@dataclass(frozen=True)
class RedisChoice:
    """Where Redis is, and how long it is waited for.

    Attributes:
        url: `redis://user@host:port/database`, `rediss://…`, or `unix://…`.
        password: Of the user in the url, or None.
        connections: At most.
        timeout_s: Of one call, seconds.
        connect_timeout_s: Of a new connection, seconds.
        pool_timeout_s: How long a call waits for a free connection, seconds.
    """

    url: str = field(repr=False)
    password: str | None = field(default=None, repr=False)
    connections: int = 16
    timeout_s: float = 0.25
    connect_timeout_s: float = 0.2
    pool_timeout_s: float = 0.05

    def options(self) -> dict[str, Any]:
        """What a connection is made with."""
        given = {} if self.password is None else {"password": self.password}
        return {
            "socket_timeout": self.timeout_s,
            "socket_connect_timeout": self.connect_timeout_s,
            "client_name": "creditd",
            # Of RESP3 nothing is needed here, and with it redis-py 8 no longer looks whether a pooled connection was
            # closed, or still has an answer to give, before it is used again.
            "protocol": 2,
            **given,
        }


_IN_URL = frozenset({"connection_class", "db", "host", "password", "path", "port", "username"})
_DATABASE = re.compile("(/[0-9]*)?")


def check_url(url: str) -> None:
    """Refuse what is no address of Redis, and options that would change how long it is waited for or what it answers.

    Raises:
        ValueError: Without a word of the url, which may hold a password.
    """
    refusal = "redis_url: expected redis://user@host:port/database, rediss://… or unix:///path"
    try:
        given = parse_url(url)
        sound = "path" in given or ("host" in given and _DATABASE.fullmatch(urlsplit(url).path))
        if sound and all(name in _IN_URL or name.startswith("ssl_") for name in given):
            ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
            return
    except Exception as error:
        raise ValueError(refusal) from error
    raise ValueError(f"{refusal}; of options there are db and those of redis-py that begin with ssl_")


class RedisStore:
    """Values by key. Belongs to one event loop; nothing that Redis does raises here."""

    def __init__(self, choice: RedisChoice, events: CacheEvents, clock: Callable[[], float] = time.monotonic) -> None:
        """A store without a connection; the first call makes one.

        Args:
            choice: Where Redis is.
            events: Told what fails.
            clock: Monotonic seconds, of the breakers.

        Raises:
            ValueError: If the url is none of Redis.
        """
        self._choice, self._events, self._clock = choice, events, clock
        pool = BlockingConnectionPool.from_url(
            choice.url,
            max_connections=choice.connections,
            timeout=choice.pool_timeout_s,
            retry=Retry(NoBackoff(), 0),
            **choice.options(),
        )
        self._redis: Redis = Redis(connection_pool=pool)
        self._calls: set[asyncio.Task[Any]] = set()
        self._breakers: dict[Operation, Breaker] = {
            operation: Breaker(clock, report=self._reporter(operation)) for operation in ("read", "write")
        }

    def state(self, operation: Operation) -> BreakerState:
        """The state of a breaker."""
        return self._breakers[operation].state

    async def get(self, keys: Sequence[str], budget: Budget) -> list[bytes | None] | None:
        """Values of keys in one call.

        Args:
            keys: At least one.
            budget: How long is waited.

        Returns:
            One per key, None where there is none; None if Redis did not answer in time, or is not asked.
        """
        if budget.left_s <= 0:
            self._events.failed("read", "budget")
            return None
        call = self._begin("read", lambda: self._values(keys))
        if call is None:
            return None
        answer = await budget.wait_for(call)
        if answer is None and not call.done():
            self._events.failed("read", "budget")
        return answer

    async def put(self, values: Sequence[tuple[str, bytes, int]]) -> Drop | None:
        """Write values in one round trip.

        Args:
            values: Keys, values and how long each is kept, milliseconds.

        Returns:
            Why not all of them were written, or None if they were.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for key, value, ttl_ms in values:
            pipeline.set(key, value, px=ttl_ms)
        call = self._begin("write", pipeline.execute)
        if call is None:
            return "breaker"
        return "failed" if await asyncio.shield(call) is None else None

    async def close(self) -> None:
        """Let calls end by their own time limits, then close the connections."""
        if self._calls:
            limit_s = self._choice.timeout_s + self._choice.connect_timeout_s
            await asyncio.wait(self._calls, timeout=min(limit_s, CLOSING_S))
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def _values(self, keys: Sequence[str]) -> list[bytes | None]:
        answer: object = await self._redis.mget(list(keys))
        # Something else may listen there, or a connection be out of step: then nobody may take it for values.
        found = answer if isinstance(answer, list) else []
        values = [one for one in found if one is None or isinstance(one, bytes)]
        if len(found) != len(keys) or len(values) != len(keys):
            raise exceptions.InvalidResponse("MGET was answered with something else than a value for each key")
        return values

    def _begin(self, operation: Operation, call: Callable[[], Awaitable[T]]) -> asyncio.Task[T | None] | None:
        """Make a call that ends by itself; none while the breaker is open."""
        if not self._breakers[operation].allows():
            return None
        task = asyncio.get_running_loop().create_task(self._guarded(operation, call))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return task

    async def _guarded(self, operation: Operation, call: Callable[[], Awaitable[T]]) -> T | None:
        breaker, started_s = self._breakers[operation], self._clock()
        try:
            answer = await call()
        except Exception as error:  # whatever Redis or its client does, a request goes on without it
            reason = failure_of(error)
            self._events.failed(operation, reason)
            if reason != "busy":
                breaker.failed()
            if reason == "unexpected":
                log.exception("the cache's client of Redis failed in an unexpected way")
            return None
        if self._clock() - started_s > self._choice.timeout_s:
            # Each read was in time and all of them were not: nobody waits so long.
            self._events.failed(operation, "timeout")
            breaker.failed()
        else:
            breaker.succeeded()
        return answer

    def _reporter(self, operation: Operation) -> Callable[[BreakerState], None]:
        def report(state: BreakerState) -> None:
            self._events.breaker(operation, state)
            log.log(
                logging.INFO if state == "closed" else logging.WARNING,
                "Redis: %ss are %s",
                operation,
                {"closed": "made", "half_open": "tried", "open": "left out for a while, after failures"}[state],
            )

        return report


def failure_of(error: Exception) -> Failure:
    """What an exception of the client means, in the words of the counters."""
    kinds: tuple[tuple[type[Exception], Failure], ...] = (
        (exceptions.MaxConnectionsError, "busy"),
        (exceptions.AuthenticationError, "credentials"),
        (exceptions.NoPermissionError, "credentials"),
        (exceptions.ReadOnlyError, "read_only"),
        (exceptions.OutOfMemoryError, "out_of_memory"),
        (exceptions.TimeoutError, "timeout"),
        (TimeoutError, "timeout"),
        (asyncio.TimeoutError, "timeout"),
        (exceptions.ConnectionError, "connection"),
        (OSError, "connection"),
        (exceptions.ResponseError, "refused"),
    )
    if isinstance(error, exceptions.ConnectionError) and "No connection available" in str(error):
        return "busy"
    return next((reason for kind, reason in kinds if isinstance(error, kind)), "unexpected")
