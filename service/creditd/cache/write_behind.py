"""What is to be written to Redis behind the requests that made it: a bounded queue, and one task that empties it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from creditd.cache.events import CacheEvents, Drop
from creditd.cache.games import KnownGame
from creditd.cache.keys import GameKey

BATCH_BYTES = 1 << 20
"""Bytes of one round trip, about."""
BATCH_GAMES = 256
"""Their commands are put together on the event loop, a hundredth of a second at a time."""
TTL_SPREAD = 0.1
"""A value is kept up to so much longer than the setting says, so that not all of a training step expire at once."""


class Writable(Protocol):
    """Where values go."""

    async def put(self, values: Sequence[tuple[str, bytes, int]]) -> Drop | None:
        """Write values: keys, bytes, and milliseconds to keep them; why they were not written, or None."""


class WriteBehind:
    """Games that wait to be written, the newest account of each. Belongs to one event loop."""

    def __init__(self, store: Writable, *, max_bytes: int, ttl_s: float, events: CacheEvents) -> None:
        """An empty queue; `run` empties it.

        Args:
            store: Where values go.
            max_bytes: Of all that waits; the oldest is dropped for the newest.
            ttl_s: How long a value is kept, seconds.
            events: Told what is dropped.
        """
        self._store, self._max_bytes, self._ttl_s, self._events = store, max_bytes, ttl_s, events
        self._waiting: OrderedDict[GameKey, KnownGame] = OrderedDict()
        self._n_bytes = 0
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()

    @property
    def n_bytes(self) -> int:
        """What waits, about."""
        return self._n_bytes

    def add(self, key: GameKey, game: KnownGame) -> None:
        """Have a game written when there is time; one that is larger than all that may wait is dropped."""
        self._forget(key)
        if game.n_bytes > self._max_bytes:
            self._events.dropped("queue_full", 1)
            return
        self._waiting[key] = game
        self._n_bytes += game.n_bytes
        while self._n_bytes > self._max_bytes:
            self._forget(next(iter(self._waiting)))
            self._events.dropped("queue_full", 1)
        self._filled.set()
        self._emptied.clear()

    async def run(self) -> None:
        """Write what waits, for as long as the process runs."""
        while True:
            await self._filled.wait()
            if self._waiting:  # a round trip without values would pass for one that succeeded
                await self._write_some()
            if not self._waiting:
                self._filled.clear()
                self._emptied.set()

    async def flush(self, timeout_s: float) -> None:
        """Wait until all is written, no longer than so long; what is left is dropped."""
        try:
            await asyncio.wait_for(self._emptied.wait(), timeout_s)
        except asyncio.TimeoutError:
            self._events.dropped("closed", len(self._waiting))

    async def _write_some(self) -> None:
        """One round trip."""
        batch: list[tuple[str, bytes, int]] = []
        size = 0
        while self._waiting and len(batch) < BATCH_GAMES and size < BATCH_BYTES:
            key, game = next(iter(self._waiting.items()))
            self._forget(key)
            value = game.packed(key.check)
            batch.append((key.text, value, ttl_ms(key, self._ttl_s)))
            size += len(value)
        lost = await self._store.put(batch)
        if lost is not None:
            self._events.dropped(lost, len(batch))
        await asyncio.sleep(0)

    def _forget(self, key: GameKey) -> None:
        game = self._waiting.pop(key, None)
        if game is not None:
            self._n_bytes -= game.n_bytes


def ttl_ms(key: GameKey, ttl_s: float) -> int:
    """How long the value of a key is kept: the setting and a part of `TTL_SPREAD` of it that the key decides."""
    part = int.from_bytes(key.check[:4], "little") / 2**32
    return max(1, round(1e3 * ttl_s * (1.0 + TTL_SPREAD * part)))
