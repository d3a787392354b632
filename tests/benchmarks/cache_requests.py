"""What a request pays with the utility cache: evaluations when it is asked again, and time when Redis does not answer.

The real application in one process, with a reward model that is a function and counts what it is asked.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from benchmarks.measure import timing_of
from creditd.engines.fake import FakeEngine
from redis_servers import RedisServer, free_port
from server.model_services import UTILITY, WORDS, fake, sets_of, with_models
from server.running import Service, running

UNITS, BUDGET, SEED = 16, 512, 3
SECONDS_OF_A_BATCH = 0.05
REQUESTS_OF_A_ROUND = 12
LOUD = {"cache_min_evaluation_s": 0}
"""The function takes no time: without this nothing of it would be remembered."""


def scar_request() -> dict[str, Any]:
    """One text of 16 units, credited from 512 evaluations of its parts."""
    words = list(WORDS)
    units = [f"Unit {place} is about {words[place % len(words)]}. " for place in range(UNITS)]
    template = {"type": "sorted", "before": "", "after": ""}
    return sets_of(
        units,
        prompt="What will the weather be?",
        estimator={"type": "auto", "budget": BUDGET, "seed": SEED},
        utility={**UTILITY["utility"], "template": template},
    )


async def evaluations(server: RedisServer) -> list[dict[str, Any]]:
    """One request again and again: to the same process, and to one that begins anew with the same Redis."""
    body, engines = scar_request(), [fake(per_batch_s=SECONDS_OF_A_BATCH) for _ in range(2)]
    found, answers = [], []
    for engine, names in zip(engines, (("first", "again"), ("after a restart", "again after it")), strict=True):
        async with running(with_models(engine, redis_url=server.url)) as service:
            for name in names:
                before, started_s = sum(engine.batches), time.perf_counter()
                answer = (await service.post(body)).json()
                taken_s = time.perf_counter() - started_s
                usage = answer["usage"]
                answers.append(answer["sets"])
                found.append(
                    {
                        "request": name,
                        "evaluations": usage["evaluations"],
                        "texts_that_the_model_read": sum(engine.batches) - before,
                        "from_cache": usage["from_cache"],
                        "ms": taken_s * 1e3,
                    }
                )
    if any(answer != answers[0] for answer in answers):
        raise RuntimeError("a request that was remembered was answered with other numbers")
    return found


class Outages:
    """Times of small requests, every one of which asks for something new, by what Redis does."""

    def __init__(self) -> None:
        self._counter = itertools.count()
        self.times_us: dict[str, list[float]] = {}

    async def round(self) -> None:
        """A fresh application in each state of Redis, and some requests to it."""
        await self._healthy("no cache", cache_bytes=0)
        await self._healthy("memory alone")
        with RedisServer() as server:
            await self._healthy("Redis answers", redis_url=server.url)
            async with self._service(redis_url=server.url) as service:
                await self._request(service)
                server.stop()
                try:
                    await self._failing("Redis is frozen", service)
                finally:
                    server.cont()
        async with self._service(redis_url=f"redis://127.0.0.1:{free_port()}/0") as service:
            await self._failing("connections are refused", service)

    def spreads(self) -> dict[str, Any]:
        """Spread of each state's times."""
        return {name: {**asdict(timing_of(times)), "least_us": min(times)} for name, times in self.times_us.items()}

    async def _healthy(self, name: str, **settings: Any) -> None:
        async with self._service(**settings) as service:
            for _ in range(REQUESTS_OF_A_ROUND):
                self._count(name, await self._request(service))

    async def _failing(self, name: str, service: Service) -> None:
        """Requests until the breaker opens, and then some more."""
        cache = service.resources.cache
        store: Any = cache._store if cache else None
        while store.state("read") == "closed":
            self._count(f"{name}, before the breaker opens", await self._request(service))
        for _ in range(REQUESTS_OF_A_ROUND):
            self._count(f"{name}, after it", await self._request(service))
        if store.state("read") != "open":
            raise RuntimeError("the breaker did not stay open for as long as was measured")

    async def _request(self, service: Service) -> float:
        """One request for three candidates that nobody has asked for, microseconds."""
        body = sets_of((f"sun {next(self._counter)}", "rain", "snow wind"), **UTILITY)
        started_s = time.perf_counter()
        answer = await service.post(body)
        taken_us = (time.perf_counter() - started_s) * 1e6
        if answer.status_code != 200 or answer.json()["usage"]["from_cache"]:
            raise RuntimeError(f"expected a request that is evaluated: {answer.text}")
        return taken_us

    @asynccontextmanager
    async def _service(self, **settings: Any) -> AsyncIterator[Service]:
        """An application that has answered a request without a model."""
        async with running(with_models(_engine(), **LOUD, **settings)) as service:
            await service.post({"sets": [{"candidates": [{"reward": 1.0}, {"reward": 0.5}]}]})
            yield service

    def _count(self, name: str, taken_us: float) -> None:
        self.times_us.setdefault(name, []).append(taken_us)


async def outages(rounds: int) -> dict[str, Any]:
    """Times of requests in every state of Redis, over rounds in which the states take turns."""
    quiet: Callable[[int], None] = logging.getLogger("creditd.cache").setLevel
    quiet(logging.CRITICAL)
    measured = Outages()
    try:
        for _ in range(rounds):
            await measured.round()
    finally:
        quiet(logging.NOTSET)
    return measured.spreads()


def _engine() -> FakeEngine:
    """A reward model that takes no time."""
    return fake()
