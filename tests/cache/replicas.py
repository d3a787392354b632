"""Replicas of a service whose model has a number of its own for every text, and what their counters say."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio

from cache.proxy import Proxy
from creditd.engines.registry import Registry
from creditd.server.resources import Resources
from creditd.server.settings import Settings
from redis_servers import RedisServer
from server.model_services import REWARDS, UTILITY, columns_of, fake, sets_of
from server.running import Service, running

BUDGET_S = 0.25
"""What a request may wait for Redis: the setting's default."""
SLACK_S = 10 * BUDGET_S
"""Within which a request is answered while Redis fails."""
PATIENCE_S = 30.0
"""How long a test waits for something that takes milliseconds."""
LONG_S = 60.0
"""Longer than Redis is ever left out."""
N_KINDS = 5


def worth(prompt: Any, text: str) -> float:
    """A number from 0 to 1 that no other prompt and text have."""
    digest = hashlib.blake2b(repr((prompt, text)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def asked(number: int) -> dict[str, Any]:
    """A request that shares no text with that of another number; five kinds take turns."""
    n = f"in request {number}"
    rows = (f"sun {n}", f"rain {n}", f"snow wind {n}"), (f"sun {n}", f"fog {n}", f"rain {n}")
    longer = tuple(f"{word} {n}" for word in ("sun", "rain", "wind", "snow", "fog", "hail", "ice"))
    estimate = {"estimator": {"type": "stratified", "budget": 40, "seed": number}}
    kinds: tuple[Callable[[], dict[str, Any]], ...] = (
        lambda: sets_of(*rows, **UTILITY),
        lambda: sets_of(*rows, **REWARDS),
        lambda: sets_of(*rows, **UTILITY, deterministic=True),
        lambda: sets_of(longer, **UTILITY, **estimate),
        lambda: columns_of(*rows, **REWARDS, deterministic=True),
    )
    return kinds[number % N_KINDS]()


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds


class Answer(NamedTuple):
    """What a request was told, and what that cost."""

    document: dict[str, Any]
    usage: dict[str, Any]


class Replica(NamedTuple):
    """A service, and the clock by which it leaves Redis out."""

    service: Service
    clock: Clock

    async def answer(self, body: Any) -> Answer:
        """The answer to a request, within the time that it may take, from a service that stays ready."""
        started_s = time.monotonic()
        response = await self.service.post(body)
        took_s = time.monotonic() - started_s
        assert response.status_code == 200, response.text
        assert took_s < SLACK_S
        ready = await self.service.client.get("/readyz")
        assert (ready.status_code, ready.text) == (200, "ready\n")
        return answer_of(response.json())

    async def counters(self) -> dict[str, float]:
        """Counters of the cache, as `errors read timeout`."""
        return counters_of((await self.service.client.get("/metrics")).text)

    def breakers(self) -> tuple[str, str]:
        """States of those for reads and for writes."""
        store = self.service.resources.cache._store
        return store.state("read"), store.state("write")

    async def written(self) -> None:
        """Wait until nothing waits to be written, whether it was written or dropped."""
        await self.service.resources.cache._writes.flush(PATIENCE_S)


def answer_of(document: dict[str, Any]) -> Answer:
    """An answer without what is another each time."""
    del document["request_id"]
    return Answer(document, document.pop("usage"))


def counters_of(exposition: str) -> dict[str, float]:
    """Counters of the cache in what `/metrics` says."""
    found = {}
    for line in exposition.splitlines():
        name, _, value = line.rpartition(" ")
        family, _, labels = name.partition("{")
        if family.startswith("creditd_cache_") and family.endswith("_total"):
            words = [label.split('"')[1] for label in labels.rstrip("}").split(",") if label]
            found[" ".join([family.removeprefix("creditd_cache_").removesuffix("_total"), *words])] = float(value)
    return found


def moved(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """How far counters moved, those that did."""
    return {name: value - before.get(name, 0.0) for name, value in after.items() if value != before.get(name, 0.0)}


def faults(changes: dict[str, float]) -> dict[str, float]:
    """What moved of the counters that stand still where all is well."""
    harmless = {"games", "evaluations_saved"}
    return {name: value for name, value in changes.items() if value and name.split()[0] not in harmless}


@asynccontextmanager
async def replica(redis_url: str | None, *, score=worth, clock=None, **settings: Any) -> AsyncIterator[Replica]:
    """A service that shares what it knows through Redis, and, unless the settings say otherwise, has no memory."""
    clock = Clock() if clock is None else clock
    given = {"cache_bytes": 0, "cache_min_evaluation_s": 0, **settings}
    model = fake(score=score)
    held = Resources(Settings(redis_url=redis_url, **given), engines=Registry({"rm": model}), clock=clock)
    async with running(held) as service:
        yield Replica(service, clock)


@asynccontextmanager
async def without_cache() -> AsyncIterator[Replica]:
    """A service that remembers nothing: the reference."""
    async with replica(None) as found:
        assert found.service.resources.cache is None
        yield found


async def agreed(one: Replica, reference: Replica, bodies: Iterable[Any]) -> list[dict[str, Any]]:
    """Ask both, one request after the other, for the same answers to the last bit; what the answers of one cost."""
    usages = []
    for body in bodies:
        found, expected = await one.answer(body), await reference.answer(body)
        assert found.document == expected.document
        assert expected.usage["from_cache"] == 0
        usages.append(found.usage)
    return usages


async def shared(redis_url: str, reference: Replica, bodies: Iterable[Any], **settings: Any) -> list[dict[str, Any]]:
    """What the answers of a new replica cost, which knows what Redis knows."""
    async with replica(redis_url, **settings) as new:
        usages = await agreed(new, reference, bodies)
        assert faults(await new.counters()) == {}
    return usages


async def left_out(one: Replica, reference: Replica, numbers: Iterator[int], *, reads="open", writes="open") -> None:
    """Ask, and have written, until Redis is left out."""
    with anyio.fail_after(PATIENCE_S):
        while one.breakers() != (reads, writes):
            await agreed(one, reference, [asked(next(numbers))])
            await one.written()


async def recovered(one: Replica, reference: Replica, redis_url: str, numbers: Iterator[int], **settings: Any) -> None:
    """A fault is over: Redis is read and written again, as soon as it is tried, and other replicas see it."""
    with anyio.fail_after(PATIENCE_S):
        while one.breakers() != ("closed", "closed"):
            one.clock.advance(LONG_S)
            await agreed(one, reference, [asked(next(numbers))])
            await one.written()
    bodies = [asked(number) for number in itertools.islice(numbers, N_KINDS)]
    before = await one.counters()
    first = await agreed(one, reference, bodies)
    await one.written()
    second = await agreed(one, reference, bodies)
    assert faults(moved(before, await one.counters())) == {}
    others = await shared(redis_url, reference, bodies, **settings)
    assert all(usage["evaluations"] for usage in first)
    assert not any(usage["evaluations"] for usage in second + others)
    assert all(usage["from_cache"] for usage in second + others)


def on_proxied(test):
    """Run a test of a server, a proxy before it and the reference."""

    async def inner():
        with RedisServer("--enable-debug-command", "yes") as server:
            async with Proxy(server.port) as proxy, without_cache() as reference:
                await test(server, proxy, reference)

    anyio.run(inner)
