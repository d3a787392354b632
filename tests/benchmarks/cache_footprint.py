"""What a remembered game takes: in Redis, packed and with a key per coalition, and in the memory of a process."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np
import psutil
import redis

from benchmarks.cache_games import MEMORY_BYTES, SOURCE, TTL_S
from creditd.cache.games import KnownGame, known_game, unpacked
from creditd.cache.keys import GameKey, KeyMaker
from creditd.cache.memory import MemoryCache
from creditd.cache.write_behind import ttl_ms
from redis_servers import RedisServer

T = TypeVar("T")

SETS_PER_ROUND_TRIP = 1024


@dataclass(frozen=True)
class Kind:
    """Games of one kind.

    Attributes:
        name: What stands in the report.
        players: n of a game.
        known: Known coalitions of a game.
        in_redis: How many are written to Redis, packed and coalition by coalition.
        in_memory: How many are remembered by a process.
    """

    name: str
    players: int
    known: int
    in_redis: int
    in_memory: int

    def coalitions(self) -> np.ndarray:
        """Shape (known, n), bool, different rows."""
        if self.known == 1:
            return np.ones((1, self.players), dtype=np.bool_)
        numbers = np.random.default_rng(3).permutation(2**self.players)[: self.known]
        return (numbers[:, None] >> np.arange(self.players) & 1).astype(np.bool_)

    def games(self, count: int) -> Iterable[tuple[GameKey, KnownGame]]:
        """Games, each made when it is asked for."""
        maker, rows, random = KeyMaker(SOURCE), self.coalitions(), np.random.default_rng(4)
        for place in range(count):
            yield maker.game(b"prompt", (self.name, str(place))), known_game(rows, random.standard_normal(self.known))


KINDS = (
    Kind("8 candidates, all 256 coalitions", 8, 256, 512, 4096),
    Kind("one candidate, scored", 1, 1, 4096, 16384),
    Kind("16 units, 512 coalitions", 16, 512, 128, 2048),
)


def in_redis(server: RedisServer, kinds: Sequence[Kind] = KINDS) -> list[dict[str, Any]]:
    """Bytes of Redis for a game of each kind: by what the server uses more than before, and what it says of one key."""
    client = server.client()
    found = []
    for kind in kinds:
        games = list(kind.games(kind.in_redis))
        packed = [(key.text, game.packed(key.check), ttl_ms(key, TTL_S)) for key, game in games]
        single = [
            (f"{SOURCE.prefix}{int(name.rpartition(':')[2], 16) ^ place + 1 << 64:032x}", value, expires)
            for (name, _, expires), (_, game) in zip(packed, games, strict=True)
            for place, value in enumerate(_eights(game.utilities.tobytes()))
        ]
        row: dict[str, Any] = {"kind": kind.name, "games": kind.in_redis, "coalitions": kind.known}
        row["value_bytes"] = len(packed[0][1])
        for way, values in (("packed", packed), ("per_coalition", single)):
            row[way] = _used_more(server, client, values) / kind.in_redis
            row[f"{way}_one_key"] = int(client.memory_usage(values[0][0], samples=0) or 0)
        row["times"] = row["per_coalition"] / row["packed"]
        found.append(row)
    client.flushall()
    return found


def in_process(kinds: Sequence[Kind] = KINDS) -> list[dict[str, Any]]:
    """Bytes of a process for a game of each kind: as the cache counts, as Python allocated, as the system gave."""
    ways: dict[str, Callable[[Kind], MemoryCache]] = {"from_redis": _from_redis, "from_model": _from_model}
    found = []
    for kind in kinds:
        row: dict[str, Any] = {"kind": kind.name, "games": kind.in_memory}
        for way, filled in ways.items():
            estimate, resident = _alone(_resident, filled, kind)
            row[way] = {"estimate": estimate, "allocated": _alone(_allocated, filled, kind), "resident": resident}
        found.append(row)
    return found


def _alone(measure: Callable[..., T], *arguments: Any) -> T:
    """A figure from a fresh process: one that has freed memory uses it again, and the system sees nothing."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()


def _resident(filled: Callable[[Kind], MemoryCache], kind: Kind) -> tuple[float, float]:
    """Bytes of a game, as the cache counts and as the memory of the process grows."""
    filled(replace(kind, in_memory=16))
    gc.collect()
    before = psutil.Process().memory_info().rss
    cache = filled(kind)
    gc.collect()
    return cache.n_bytes / kind.in_memory, (psutil.Process().memory_info().rss - before) / kind.in_memory


def _allocated(filled: Callable[[Kind], MemoryCache], kind: Kind) -> float:
    """Bytes of a game that Python and NumPy allocate."""
    filled(replace(kind, in_memory=16))
    gc.collect()
    tracemalloc.start()
    cache = filled(kind)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    return held / len(cache)


def _from_redis(kind: Kind) -> MemoryCache:
    """A memory of games that came as bytes, which it then holds."""
    cache = MemoryCache(MEMORY_BYTES, TTL_S)
    for key, game in kind.games(kind.in_memory):
        cache.add(key.text, unpacked(game.packed(key.check), key.check, kind.players))
    return cache


def _from_model(kind: Kind) -> MemoryCache:
    """A memory of games that a model was asked about here."""
    cache = MemoryCache(MEMORY_BYTES, TTL_S)
    for key, game in kind.games(kind.in_memory):
        cache.add(key.text, game)
    return cache


def _used_more(server: RedisServer, client: redis.Redis, values: list[tuple[str, bytes, int]]) -> int:
    """Memory that the server uses for values, its connections left out."""
    client.flushall()
    before = _used(client)
    with redis.Redis(host="127.0.0.1", port=server.port) as writer:
        for start in range(0, len(values), SETS_PER_ROUND_TRIP):
            pipeline = writer.pipeline(transaction=False)
            for name, value, expires in values[start : start + SETS_PER_ROUND_TRIP]:
                pipeline.set(name, value, px=expires)
            pipeline.execute()
    return _used(client) - before


def _used(client: redis.Redis) -> int:
    information = client.info("memory")
    return int(information["used_memory"]) - int(information["mem_clients_normal"])


def _eights(value: bytes) -> Iterable[bytes]:
    """Its float64s, one by one."""
    return (value[start : start + 8] for start in range(0, len(value), 8))
