"""The cache as use cases see it: memory first, then Redis, and nobody evaluates what another request is evaluating.

What is looked for in memory and what is remembered may come from any thread; everything that waits belongs to the event
loop that opened the cache. Without Redis, or while it fails, memory alone remembers.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from creditd.cache.breaker import BreakerState
from creditd.cache.budget import Budget
from creditd.cache.events import CacheEvents, NoEvents, Operation
from creditd.cache.games import MAX_TABLE_PLAYERS, CorruptValueError, KnownGame, unpacked
from creditd.cache.keys import CALLERS, GameKey, UtilitySource, purge_key
from creditd.cache.memory import Contradicted, MemoryCache
from creditd.cache.write_behind import Writable, WriteBehind

WATCH_S = 5.0
"""How often it is looked whether the utilities of a model, or those of callers, were purged."""
FLUSH_S = 1.0
"""How long what was found out last may take to be written when the process ends."""
KEYS_PER_CALL = 1024
BYTES_PER_CALL = 1 << 22
"""Of the values of one call, if they were tables."""
MOST_GAMES_OF_A_FLIGHT = 1 << 15
"""Of a request that others wait for, or that waits for others."""
TIMES_AS_LARGE = 4
"""A flight of so many times the games that a request wants of it is not waited for."""
GAMES_PER_CALLBACK = 1024
"""Games that the event loop puts into the queue of writes at a time."""

log = logging.getLogger("creditd.cache")


class Store(Writable, Protocol):
    """A second level; nothing that it does raises."""

    def state(self, operation: Operation) -> BreakerState:
        """Whether it is asked."""

    async def get(self, keys: Sequence[str], budget: Budget) -> list[bytes | None] | None:
        """Values of keys, None where there is none; None altogether if there is no answer."""

    async def close(self) -> None:
        """Let go of what is held."""


class Flight:
    """Games that one request finds out, for all who want them. Belongs to one event loop.

    Attributes:
        keys: Of the games.
        followed: Whether anybody may wait for them.
        found: What was found out of them so far, by the text of the key.
    """

    def __init__(self, keys: Collection[GameKey], *, followed: bool = True) -> None:
        """All of them are in the air.

        Args:
            keys: Of the games.
            followed: Whether anybody may wait for them.
        """
        self.keys = tuple(keys)
        self.followed = followed
        self.found: dict[str, KnownGame] = {}
        self._flying = {key.text for key in keys} if followed else set()
        self._news = asyncio.Event()

    @property
    def n_flying(self) -> int:
        """Games that are not found out yet."""
        return len(self._flying)

    def land(self, keys: Iterable[GameKey], found: Mapping[str, KnownGame]) -> None:
        """Some of the games are found out, or nobody finds them out any more."""
        self.found.update(found)
        self._flying.difference_update(key.text for key in keys)
        self._news.set()
        self._news = asyncio.Event()

    async def landed(self, keys: Iterable[GameKey]) -> None:
        """Wait until some of the games have landed."""
        wanted = {key.text for key in keys}
        while wanted & self._flying:
            await self._news.wait()


class UtilityCache:
    """Utilities that are remembered."""

    def __init__(
        self,
        memory: MemoryCache,
        store: Store | None = None,
        *,
        ttl_s: float,
        budget_s: float,
        max_queued_bytes: int,
        events: CacheEvents | None = None,
    ) -> None:
        """A cache that is not open yet.

        Args:
            memory: The first level.
            store: The second one, or None.
            ttl_s: How long a value is kept in the second level, seconds.
            budget_s: How long one request may wait for the second level, all its calls together, seconds.
            max_queued_bytes: Of what waits to be written.
            events: Counts what happens.
        """
        self.memory = memory
        self.budget_s = budget_s
        self.events: CacheEvents = NoEvents() if events is None else events
        self._store = store
        self._ttl_s, self._max_queued_bytes = ttl_s, max_queued_bytes
        self._writes: WriteBehind | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flights: dict[str, Flight] = {}
        self._generations: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def queued_bytes(self) -> int:
        """What waits to be written, about."""
        return 0 if self._writes is None else self._writes.n_bytes

    def states(self) -> dict[Operation, BreakerState]:
        """Whether the second level is asked, if there is one."""
        operations: tuple[Operation, ...] = ("read", "write")
        return {} if self._store is None else {operation: self._store.state(operation) for operation in operations}

    @property
    def has_store(self) -> bool:
        """Whether there is a second level."""
        return self._store is not None

    def generation(self, owner: str) -> str:
        """Token of the last purge that is known here, of a model or of `CALLERS`: part of all their keys."""
        return self._generations.get(owner, "")

    async def open(self, models: Sequence[str] = ()) -> None:
        """Begin to write behind requests and to look for purges, on the running event loop.

        Args:
            models: Whose purges are looked for, beside those of what callers supplied.
        """
        owners = (*models, CALLERS)
        self._loop = asyncio.get_running_loop()
        if self._store is None:
            return
        self._writes = WriteBehind(self._store, max_bytes=self._max_queued_bytes, ttl_s=self._ttl_s, events=self.events)
        if await self._look_for_purges(owners):
            log.info("Redis answers: what is remembered is shared")
        else:
            log.warning("Redis does not answer: until it does, this process remembers by itself")
        running: list[Coroutine[Any, Any, None]] = [self._writes.run(), self._watch(owners)]
        self._tasks = [self._loop.create_task(task) for task in running]
        for task in self._tasks:
            task.add_done_callback(_say_why_it_ended)

    async def close(self) -> None:
        """Write what is left, within reason, and let go of Redis."""
        await asyncio.sleep(0)  # what threads have handed over so far is among it
        if self._writes is not None:
            await self._writes.flush(FLUSH_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._store is not None:
            await self._store.close()
        self._tasks, self._writes, self._loop = [], None, None

    def look(self, keys: Iterable[GameKey]) -> dict[str, KnownGame]:
        """What this process knows of games, by the text of their keys; from any thread."""
        texts = [key.text for key in keys]
        found = zip(texts, self.memory.get(texts), strict=True)
        return {text: game for text, game in found if game is not None}

    async def fetch(self, source: UtilitySource, wanted: Mapping[GameKey, int], budget: Budget) -> dict[str, KnownGame]:
        """What Redis knows of games, by the text of their keys; this process remembers it as well.

        What a caller told this process counts before what Redis says, which may have missed it: where the two
        contradict each other in one utility, the account in memory is given back and kept, and nothing of Redis's.

        Args:
            source: Whose utilities they are.
            wanted: Number of players, by key.
            budget: How long is waited.

        Returns:
            The games that are there, sound, and not purged: all that is known of them now.
        """
        found: dict[str, KnownGame] = {}
        if self._store is None:
            return found
        purge = purge_key(source.owner)
        contradicted: Contradicted = "keep" if source.source == "caller" else "join"
        for keys in _calls(wanted):
            values = await self._store.get([purge, *(key.text for key in keys)], budget)
            if values is None:
                break
            if self._was_purged(source, values[0]):
                return {}
            for key, value in zip(keys, values[1:], strict=True):
                if value is None:
                    continue
                try:
                    game = unpacked(value, key.check, wanted[key])
                except CorruptValueError as error:
                    self.events.corrupt(error.reason)
                    continue
                found[key.text] = self._added(source, key, game, contradicted)
        return found

    def remember(self, source: UtilitySource, games: Iterable[tuple[GameKey, KnownGame]]) -> None:
        """Keep what was found out; from any thread.

        Args:
            source: Whose utilities they are. One contradiction of a caller makes all that it said before worthless;
                scores of a model differ by rounding from batch to batch. What Redis has is overwritten with the next
                write that succeeds, and until then is what those find there who do not remember the game themselves.
            games: Keys, and what is known of the games now.
        """
        contradicted: Contradicted = "replace" if source.source == "caller" else "join"
        left = iter(games)
        while portion := list(itertools.islice(left, GAMES_PER_CALLBACK)):
            together = []
            for key, game in portion:
                together.append((key, self._added(source, key, game, contradicted)))
            loop = self._loop  # which closing forgets, on another thread
            if loop is not None and self._store is not None:
                loop.call_soon_threadsafe(self._write, together)

    def take_off(
        self, keys: Collection[GameKey], *, follow: bool = True
    ) -> tuple[Flight, list[tuple[Flight, list[GameKey]]]]:
        """Say what a request is about to find out; on the event loop.

        A request leaves to others what they are finding out, unless they are about many more games: their answer would
        come long after its own. Very large requests neither follow nor are followed.

        Args:
            keys: What it lacks.
            follow: Whether it leaves anything to others.

        Returns:
            The games that it finds out until it calls `land`; and the flights of other requests that find out the rest,
            with the keys of that. A request that waits for others holds no flight, so that none waits for another in a
            circle.
        """
        if len(keys) > MOST_GAMES_OF_A_FLIGHT:
            return Flight(keys, followed=False), []
        own: list[GameKey] = []
        others: dict[Flight, list[GameKey]] = {}
        for key in keys:
            flight = self._flights.get(key.text)
            if flight is None or not follow:
                own.append(key)
            else:
                others.setdefault(flight, []).append(key)
        for flight, wanted in list(others.items()):
            if flight.n_flying > TIMES_AS_LARGE * len(wanted):
                own += others.pop(flight)
        flight = Flight(own)
        for key in own:
            self._flights.setdefault(key.text, flight)
        return flight, list(others.items())

    def land(self, flight: Flight, found: Mapping[str, KnownGame], keys: Collection[GameKey] | None = None) -> None:
        """Let everybody know what a flight found out. On the event loop.

        Args:
            flight: From `take_off`.
            found: By the text of the key; nothing, if it failed.
            keys: Of the games that it goes on with no longer. None: of all.
        """
        if not flight.followed:
            return
        landing = flight.keys if keys is None else keys
        for key in landing:
            if self._flights.get(key.text) is flight:
                del self._flights[key.text]
        flight.land(landing, found)

    def _added(self, source: UtilitySource, key: GameKey, game: KnownGame, contradicted: Contradicted) -> KnownGame:
        """All that is known of a game in this process, now that this is known too."""
        all_known, contradictions = self.memory.add(key.text, game, contradicted=contradicted)
        if contradictions and source.source == "caller":
            self.events.contradicted()
        return all_known

    def _write(self, games: Sequence[tuple[GameKey, KnownGame]]) -> None:
        """Have games written as this process knows them now: another thread may have learned more of them meanwhile."""
        if self._writes is not None:
            known = self.memory.get([key.text for key, _ in games])
            for (key, game), newest in zip(games, known, strict=True):
                self._writes.add(key, newest or game)

    def _was_purged(self, source: UtilitySource, token: bytes | None) -> bool:
        """Whether keys were made before the last purge."""
        self._saw(source.owner, token)
        return self.generation(source.owner) != source.generation

    def _saw(self, owner: str, token: bytes | None) -> None:
        """Take the token of a purge. Of two the later one counts, and one that Redis has lost holds on."""
        if token is not None:
            self._generations[owner] = max(token.decode("latin-1"), self.generation(owner))

    async def _watch(self, owners: Sequence[str]) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            await self._look_for_purges(owners)

    async def _look_for_purges(self, owners: Sequence[str]) -> bool:
        """Take the tokens of the last purges, and give Redis those that it has lost; whether it answered."""
        if self._store is None:
            return False
        keys = [purge_key(owner) for owner in owners]
        tokens = await self._store.get(keys, Budget(self.budget_s))
        if tokens is None:
            return False
        lost = []
        for owner, key, token in zip(owners, keys, tokens, strict=True):
            self._saw(owner, token)
            known = self.generation(owner).encode("latin-1")
            if known != (token or b""):
                # Until everything from before that purge is forgotten.
                lost.append((key, known, round(2e3 * self._ttl_s)))
        if lost:
            await self._store.put(lost)
        return True


def _say_why_it_ended(task: asyncio.Task[None]) -> None:
    """A task that should run as long as the process does has ended by itself: a defect, which costs sharing alone."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("the cache no longer writes to Redis, or no longer looks for purges", exc_info=error)


def _calls(wanted: Mapping[GameKey, int]) -> Iterator[list[GameKey]]:
    """Keys in portions whose values Redis gives in good time."""
    keys = iter(wanted.items())
    while True:
        size, call = 0, []
        for key, n_players in itertools.islice(keys, KEYS_PER_CALL):
            call.append(key)
            size += 8 << min(n_players, MAX_TABLE_PLAYERS)
            if size >= BYTES_PER_CALL:
                break
        if not call:
            return
        yield call
