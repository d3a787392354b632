"""Answers to games that callers evaluate and name: what the same caller supplied before is not asked for again.

What takes processor time runs on the threads of the service; the event loop waits for Redis.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from starlette.types import Receive

from creditd.cache.budget import Budget
from creditd.cache.events import Outcome
from creditd.cache.games import KnownGame, joined, known_game
from creditd.cache.keys import CALLERS, GameKey, KeyMaker, UtilitySource, prompt_bytes
from creditd.cache.tiers import UtilityCache
from creditd.scoring.deadline import Deadline
from creditd.server.answers import Answer, answer_items, refused_as_a_whole
from creditd.server.convert import Encode, envelope
from creditd.server.resources import Resources
from creditd.wire.limits import MAX_CELLS
from creditd.wire.solve import SolveRequest
from creditd.wire.solve_items import SolvedItems, solve_items
from creditd.wire.solve_known import order_of, supplied_by

MOST_UTILITIES = 1 << 16
"""Of one game that are remembered, as many as a request may ask for: each further one would have all written anew."""
KEPT_AT_ONCE_BYTES = 1 << 22
"""Of games that are handed to the cache together: all of a large request at once would take its memory twice."""


async def answer_remembered(
    asked: SolveRequest,
    cache: UtilityCache,
    *,
    resources: Resources,
    deadline: Deadline,
    receive: Receive,
    tenant: bytes,
    request_id: str,
    encode: Encode,
) -> Answer:
    """The answer to `/v1/credit/shapley/solve` where the request names its utility.

    Args:
        asked: The request.
        cache: Where utilities are remembered.
        resources: What the application holds.
        deadline: When the caller stops waiting.
        receive: Where the connection says that the caller has left.
        tenant: Whose remembered utilities may be used.
        request_id: Its identity.
        encode: Writes the answer.

    Returns:
        The body, or a refusal when no item could be answered.

    Raises:
        ServiceError: If the choices contradict each other.
        DeadlineExceededError: If the deadline passes first.
        ClientDisconnect: If the caller leaves first.
    """
    received_s = time.perf_counter()
    supplied = SuppliedBefore(asked, cache, resources.tenant_secret(tenant))
    wanted = await resources.compute(supplied.look, deadline, receive)
    queue_s = time.perf_counter() - received_s
    if wanted and cache.has_store:
        supplied.learn(await cache.fetch(supplied.source, wanted, Budget(cache.budget_s)))

    def solved() -> Answer:
        with refused_as_a_whole():
            answer = solve_items(asked, resources.limits, deadline.check, supplied.by_row)
        supplied.keep(answer, deadline.check)
        return answer_items(asked, answer, partial(envelope, request_id, queue_s), encode)

    return await resources.compute(solved, deadline, receive)


class SuppliedBefore:
    """What is remembered of the games of one request. Not for several threads at a time.

    Attributes:
        source: Whose utilities these are.
    """

    def __init__(self, asked: SolveRequest, cache: UtilityCache, tenant: bytes) -> None:
        """Nothing is looked for yet.

        Args:
            asked: The request; it has a `utility_id`.
            cache: Where utilities are remembered.
            tenant: The caller's secret.
        """
        self._asked, self._cache = asked, cache
        self.source = UtilitySource(
            tenant=tenant,
            source="caller",
            name="",
            identity=_tagged(asked.utility_id),
            generation=cache.generation(CALLERS),
        )
        self._keys: dict[int, GameKey] = {}
        self._known: dict[str, KnownGame] = {}
        self._levels: dict[str, Outcome] = {}

    @property
    def by_row(self) -> Mapping[int, KnownGame]:
        """What is remembered of each item, by its place."""
        return {row: self._known[key.text] for row, key in self._keys.items() if key.text in self._known}

    def look(self) -> Mapping[GameKey, int]:
        """Find the keys, and what this process remembers.

        Returns:
            Games of which Redis may know more than the request or this process, with their numbers of players.

        Cost:
            Half a microsecond for each item and player.
        """
        keys = KeyMaker(self.source)
        for row, item in enumerate(self._asked.items):
            names = item.player_ids or []
            # Whoever names players otherwise gets no answer about them.
            if len(names) == len(set(names)) == item.n_players:
                sorted_names = [_tagged(names[place]) for place in order_of(names).tolist()]
                self._keys[row] = keys.game(prompt_bytes(_tagged(item.prompt_id)), sorted_names)
        self._known = self._cache.look(dict.fromkeys(self._keys.values()))
        self._levels = dict.fromkeys(self._known, "memory")
        wanted: dict[GameKey, int] = {}
        for row, key in self._keys.items():
            item, game = self._asked.items[row], self._known.get(key.text)
            n_known = max(len(item.utilities), 0 if game is None else game.n_known)
            if n_known < min(MOST_UTILITIES, 1 << item.n_players):
                wanted[key] = item.n_players
        return wanted

    def learn(self, games: Mapping[str, KnownGame]) -> None:
        """Take what `UtilityCache.fetch` says: of a game that Redis contradicts, what this process was told."""
        for text, game in games.items():
            before = self._known.get(text)
            if before is None or game.n_known != before.n_known:
                self._levels[text] = "redis"
        self._known |= games

    def keep(self, answer: SolvedItems, checkpoint: Callable[[], None]) -> None:
        """Remember what the request supplied of sound items, and count what was remembered before.

        Of a game that it contradicts nothing else is remembered here, whatever becomes of the write to Redis. Where
        that fails, Redis keeps its old account until a later write of the game succeeds: replicas that do not remember
        the game, and this one if it has no memory (`cache_bytes` 0) or has forgotten it, find the old one there.

        Args:
            answer: To the request.
            checkpoint: Called before each item; what it raises ends the work.
        """
        self._count(answer)
        failed = {error.row for error in answer.errors if error.code != "group_incomplete"}
        games: list[tuple[GameKey, KnownGame]] = []
        n_bytes = 0
        for row, key in self._keys.items():
            checkpoint()
            game = None if row in failed else self._news(row, key)
            if game is None:
                continue
            games.append((key, game))
            n_bytes += game.n_bytes
            if n_bytes > KEPT_AT_ONCE_BYTES:
                self._cache.remember(self.source, games)
                games, n_bytes = [], 0
        self._cache.remember(self.source, games)

    def _news(self, row: int, key: GameKey) -> KnownGame | None:
        """What the request adds to what is known of the game of an item; None if that is nothing, or too much.

        Other requests may have added to it, or contradicted it, since it was looked up: what this process remembers now
        counts, and is joined with the news where it is remembered. Only where it remembers nothing, what Redis had is
        part of the news, so that it is not overwritten by less.
        """
        coalitions, utilities = supplied_by(self._asked.items[row])
        here = self._cache.look([key]).get(key.text)
        before = self._known.get(key.text) if here is None else here
        if not len(coalitions) or (before is not None and np.array_equal(before.utilities_of(coalitions), utilities)):
            return None
        supplied = known_game(coalitions, utilities)
        together, contradictions = joined(before, supplied)
        most = min(MOST_UTILITIES, MAX_CELLS // supplied.n_players)
        if before is None or not contradictions:
            self._known[key.text] = together
            news = together if here is None else supplied
            return news if together.n_known <= most else None
        if supplied.n_known > most:
            # Too much of it still has to replace what it contradicts.
            known = before.utilities_of(coalitions)
            first = np.argsort(np.isnan(known) | (known == utilities), kind="stable")[:most]
            supplied = known_game(coalitions[first], utilities[first])
        self._known[key.text] = supplied
        return supplied

    def _count(self, answer: SolvedItems) -> None:
        """Count each game once: where it was found, or that it was not and its utilities are asked for."""
        games: dict[str, Outcome] = {}
        utilities: Counter[Outcome] = Counter()
        failed = {error.row for error in answer.errors}
        for row, key in self._keys.items():
            item = answer.items[row]
            if item is None or row in failed or not (item.remembered or len(item.next)):
                continue
            outcome = self._levels[key.text] if item.remembered else "missed"
            utilities[outcome] += item.remembered or len(item.next)
            if games.get(key.text, "missed") == "missed":
                games[key.text] = outcome
        n_games = Counter(games.values())
        for outcome in utilities:
            self._cache.events.looked(outcome, CALLERS, n_games[outcome], utilities[outcome])


def _tagged(name: str | int | None) -> str:
    """A name as keys have it: the number 1 and the text "1" are two."""
    return f"i{name}" if isinstance(name, int) else f"s{name}"
