"""The first level: what this process knows, bounded by bytes, the least recently used forgotten first."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from creditd.cache.games import KnownGame, joined


class MemoryCache:
    """Games by their key. May be used from several threads at a time."""

    def __init__(self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """An empty cache.

        Args:
            max_bytes: Of all games together; 0 remembers nothing.
            ttl_s: How long a game is remembered after it was put.
            clock: Monotonic seconds.
        """
        self._max_bytes, self._ttl_s, self._clock = max_bytes, ttl_s, clock
        self._games: OrderedDict[str, tuple[KnownGame, float]] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    @property
    def n_bytes(self) -> int:
        """What all games take, about."""
        return self._n_bytes

    def __len__(self) -> int:
        return len(self._games)

    def get(self, keys: Iterable[str]) -> list[KnownGame | None]:
        """What is known of games; those that are found become the most recently used."""
        now, found = self._clock(), []
        with self._lock:
            for key in keys:
                entry = self._games.get(key)
                if entry is not None and entry[1] <= now:
                    self._drop(key)
                    entry = None
                if entry is not None:
                    self._games.move_to_end(key)
                found.append(None if entry is None else entry[0])
        return found

    def add(self, key: str, game: KnownGame, *, distrust: bool = False) -> tuple[KnownGame, int]:
        """Remember what is known of a game, together with what was known before.

        Args:
            key: Of the game.
            game: What is known of it now; it counts where it contradicts what was known before.
            distrust: Whether one contradiction makes all that was known before worthless.

        Returns:
            All that is known, and how many coalitions had another utility before.
        """
        now = self._clock()
        with self._lock:
            before = self._games.get(key)
            if before is not None and before[1] <= now:
                before = None
            together, contradictions = joined(None if before is None else before[0], game)
            if contradictions and distrust:
                together = game
            self._drop(key)
            self._games[key] = (together, now + self._ttl_s)
            self._n_bytes += _bytes_of(key, together)
            while self._n_bytes > self._max_bytes:
                self._drop(next(iter(self._games)))
        return together, contradictions

    def _drop(self, key: str) -> None:
        entry = self._games.pop(key, None)
        if entry is not None:
            self._n_bytes -= _bytes_of(key, entry[0])


def _bytes_of(key: str, game: KnownGame) -> int:
    return len(key) + game.n_bytes
