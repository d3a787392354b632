"""The first level: what this process knows, bounded by bytes, the least recently used forgotten first."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Literal, TypeAlias

from creditd.cache.games import KnownGame, joined

_Entry: TypeAlias = tuple[KnownGame, float, int]
"""A game, when it is forgotten, and what it takes."""
Contradicted: TypeAlias = Literal["join", "replace", "keep"]
"""What becomes of two accounts of a game where a utility differs: both together, of which the newer one counts there;
the newer one alone; the one that was there alone."""


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
        self._games: OrderedDict[str, _Entry] = OrderedDict()
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
        now = self._clock()
        found: list[KnownGame | None] = []
        with self._lock:
            for key in keys:
                entry = self._games.get(key)
                if entry is None:
                    found.append(None)
                elif entry[1] <= now:
                    self._drop(key)
                    found.append(None)
                else:
                    self._games.move_to_end(key)
                    found.append(entry[0])
        return found

    def add(self, key: str, game: KnownGame, *, contradicted: Contradicted = "join") -> tuple[KnownGame, int]:
        """Remember what is known of a game, together with what was known before; not what is larger than all there is.

        Args:
            key: Of the game.
            game: What is known of it now.
            contradicted: What is remembered if it contradicts what was known before.

        Returns:
            All that is known, and how many coalitions had another utility before.
        """
        now = self._clock()
        with self._lock:
            together, contradictions = game, 0
            before = self._games.get(key)
            if before is not None:
                if before[1] > now:
                    together, contradictions = joined(before[0], game)
                if contradictions and contradicted == "keep":
                    return before[0], contradictions
                if contradictions and contradicted == "replace":
                    together = game
                self._drop(key)
            n_bytes = len(key) + together.n_bytes
            if n_bytes > self._max_bytes:
                return together, contradictions
            self._games[key] = (together, now + self._ttl_s, n_bytes)
            self._n_bytes += n_bytes
            while self._n_bytes > self._max_bytes:
                self._drop(next(iter(self._games)))
        return together, contradictions

    def _drop(self, key: str) -> None:
        entry = self._games.pop(key, None)
        if entry is not None:
            self._n_bytes -= entry[2]
