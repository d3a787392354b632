"""Times of the utility cache with a real Redis: from keys to arrays, with the keys, and written, against one MGET.

Ways take turns within one run and one event loop, round after round, so that whatever else the machine does falls on
all of them alike.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np

from benchmarks.cache_games import (
    PATIENCE_S,
    SOURCE,
    TTL_S,
    CountedDrops,
    Workload,
    cache_of,
    store_of,
    write,
)
from benchmarks.measure import Timing, ratio, timing_of
from creditd.cache.budget import Budget
from creditd.cache.games import AskedCoalitions
from creditd.cache.keys import KeyMaker
from creditd.cache.redis import RedisStore
from creditd.engines.protocol import VariantTexts
from creditd.scoring.model_questions import RememberedBy
from creditd.scoring.recollection import Recollection

Way: TypeAlias = Callable[[], Awaitable[float]]
"""Does the work once, and says how many seconds it took."""

WARM_UP = 3
SETS_PER_ROUND_TRIP = 1024
RAW, FETCHED = "one MGET of the packed values", "keys to arrays"
PER_COALITION = "one MGET of a key per coalition"
CONTROL = "one MGET of the packed values, again"
BESIDE = "one MGET of the packed values, beside that"
PACKED, SINGLE = "packed, behind the request", "a SET per coalition, in pipelines"


async def in_turn(ways: Mapping[str, Way], repeats: int, warm_up: int = WARM_UP) -> dict[str, dict[str, Any]]:
    """Each way so many times, in turn; spread and least of each, microseconds, with the garbage collector off."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    names, random = list(ways), np.random.default_rng(5)
    gc.collect()
    gc.disable()
    try:
        for turn in range(-warm_up, repeats):
            # Shuffled, so that no way always finds the processor as the same other one has left it.
            for name in random.permutation(names).tolist():
                taken_s = await ways[name]()
                if turn >= 0:
                    times[name].append(taken_s * 1e6)
    finally:
        gc.enable()
    return {name: {**asdict(timing_of(values)), "least_us": min(values)} for name, values in times.items()}


def times_of(slower: Mapping[str, Any], faster: Mapping[str, Any]) -> dict[str, float]:
    """How many times slower, by medians, by the quartiles that favour the slower one, and by the least times."""
    first, second = (Timing(**{key: one[key] for key in one if key != "least_us"}) for one in (slower, faster))
    return {**ratio(first, second), "of_least": slower["least_us"] / faster["least_us"]}


def coalition_keys(work: Workload) -> list[list[str]]:
    """For each game, a key for each of its coalitions, as long as the game's own."""
    prefix = SOURCE.prefix
    return [
        [f"{prefix}{int(key.text.rpartition(':')[2], 16) ^ place + 1 << 64:032x}" for place in range(len(work.rows))]
        for key in work.keys
    ]


class Readings:
    """The ways to read what a Redis has of a workload."""

    def __init__(self, url: str, work: Workload, events: CountedDrops) -> None:
        self._work, self._events = work, events
        self._store: RedisStore = store_of(url, events)
        # The service's own client, which nothing else asks: the same library, settings and connection for all ways.
        self._redis = self._store._redis
        self._names = [key.text for key in work.keys]
        self._single = [key for keys in coalition_keys(work) for key in keys]
        self._wanted = dict.fromkeys(work.keys, work.candidates)

    async def close(self) -> None:
        """Let go of the connection."""
        await self._store.close()

    async def raw(self) -> float:
        """One MGET, until the list of bytes is there."""
        started_s = time.perf_counter()
        values = await self._redis.mget(self._names)
        taken_s = time.perf_counter() - started_s
        self._check(None not in values)
        return taken_s

    async def fetched(self) -> float:
        """The cache of a replica that remembers nothing, until the arrays are filled."""
        work, cache = self._work, cache_of(self._store, self._events)
        arrays = np.empty_like(work.utilities)
        started_s = time.perf_counter()
        games = await cache.fetch(SOURCE, self._wanted, Budget(PATIENCE_S))
        asked = AskedCoalitions(work.rows)
        for place, name in enumerate(self._names):
            arrays[place] = games[name].utilities_of(asked)
        taken_s = time.perf_counter() - started_s
        self._check(np.array_equal(arrays, work.utilities))
        return taken_s

    async def single(self) -> float:
        """One MGET of a key per coalition, until the array is there."""
        started_s = time.perf_counter()
        values = await self._redis.mget(self._single)
        found = np.frombuffer(b"".join(values))
        taken_s = time.perf_counter() - started_s
        self._check(np.array_equal(found, self._work.utilities.ravel()))
        return taken_s

    def keyed(self, texts: list[VariantTexts], by: RememberedBy, expected: np.ndarray) -> Way:
        """From texts to arrays: the keys as well, and what they find in a Redis that another replica has filled."""

        async def way() -> float:
            cache = cache_of(self._store, self._events)
            started_s = time.perf_counter()
            found = Recollection(texts, KeyMaker(SOURCE), by=by)
            found.learn(cache.look(found.missing))
            found.learn(await cache.fetch(SOURCE, found.missing, Budget(PATIENCE_S)))
            left = found.missing
            taken_s = time.perf_counter() - started_s
            self._check(not left and np.array_equal(found.answer().rewards, expected))
            return taken_s

        return way

    async def remembered(self, texts: list[VariantTexts], by: RememberedBy) -> Way:
        """From texts to arrays by the memory of the process alone."""
        cache = cache_of(self._store, self._events)
        await cache.fetch(SOURCE, Recollection(texts, KeyMaker(SOURCE), by=by).missing, Budget(PATIENCE_S))

        async def way() -> float:
            started_s = time.perf_counter()
            found = Recollection(texts, KeyMaker(SOURCE), by=by)
            found.learn(cache.look(found.missing))
            left = found.missing
            taken_s = time.perf_counter() - started_s
            self._check(not left)
            return taken_s

        return way

    async def keys_alone(self, texts: list[VariantTexts], by: RememberedBy) -> float:
        """Nothing but the keys."""
        started_s = time.perf_counter()
        Recollection(texts, KeyMaker(SOURCE), by=by)
        return time.perf_counter() - started_s

    def _check(self, fine: bool) -> None:  # noqa: FBT001  # an assertion
        if not fine or self._events.n_bad:
            raise RuntimeError("what was read is not what was written, or Redis failed: nothing was measured")


async def reading_times(url: str, workloads: list[Workload], repeats: int) -> dict[str, Any]:
    """Times of all ways. Redis holds the games of the first workload already, packed and coalition by coalition."""
    events = CountedDrops()
    first = workloads[0]
    for work in workloads[1:]:
        await write(url, work.known, events)
    await write(url, first.known_alone, events)
    readings = Readings(url, first, events)
    found = await in_turn({RAW: readings.raw, FETCHED: readings.fetched, CONTROL: readings.raw}, repeats)
    # By itself: it leaves a client and a server behind that are slower for whoever comes next.
    found |= await in_turn({PER_COALITION: readings.single, BESIDE: readings.raw}, repeats)
    ways: dict[str, Way] = {}
    for work in workloads:
        name = f"{work.length:,} characters"
        ways[f"{name}: texts to arrays"] = readings.keyed(work.texts, "set", work.utilities.ravel())
        ways[f"{name}: texts to arrays, from memory"] = await readings.remembered(work.texts, "set")
        ways[f"{name}: of these, keys"] = lambda work=work: readings.keys_alone(work.texts, "set")
    alone = np.array([game.utilities[0] for _, game in first.known_alone])
    name = f"{first.length:,} characters, each candidate by itself"
    ways[f"{name}: texts to arrays"] = readings.keyed(first.alone, "candidate", alone)
    ways[f"{name}: texts to arrays, from memory"] = await readings.remembered(first.alone, "candidate")
    found |= await in_turn(ways, repeats)
    await readings.close()
    return found


async def writing_times(url: str, work: Workload, repeats: int) -> dict[str, Any]:
    """Times of writing all utilities of a workload to an empty Redis; afterwards it has them in both ways."""
    events = CountedDrops()
    store = store_of(url, events)
    client = store._redis
    keys = [key for keys in coalition_keys(work) for key in keys]
    values = work.utilities.ravel().tobytes()
    known = work.known

    async def packed() -> float:
        await client.flushall()
        return await write(url, known, events)

    async def single() -> float:
        await client.flushall()
        started_s = time.perf_counter()
        for start in range(0, len(keys), SETS_PER_ROUND_TRIP):
            pipeline = client.pipeline(transaction=False)
            for place in range(start, min(start + SETS_PER_ROUND_TRIP, len(keys))):
                pipeline.set(keys[place], values[8 * place : 8 * place + 8], px=round(1e3 * TTL_S))
            await pipeline.execute()
        return time.perf_counter() - started_s

    found = await in_turn({PACKED: packed, SINGLE: single}, repeats, warm_up=1)
    await single()
    await write(url, known, events)
    await store.close()
    if events.n_bad:
        raise RuntimeError("Redis failed while it was written to: nothing was measured")
    await asyncio.sleep(0)
    return found
