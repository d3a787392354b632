"""One round of questions to a model: what is remembered is not asked, what others are asking is waited for.

What takes processor time runs on the threads of the service; the event loop waits for the engine, for Redis, and for
other requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from starlette.types import Receive

from creditd.cache.budget import Budget
from creditd.cache.events import Outcome
from creditd.cache.games import KnownGame, joined
from creditd.cache.keys import GameKey, KeyMaker, UtilitySource
from creditd.cache.tiers import Flight, UtilityCache
from creditd.engines.errors import (
    EngineError,
    EngineExpiredError,
    EngineOverloadedError,
    ModelUnsuitableError,
    WeightVersionMismatchError,
    WeightVersionUnknownError,
)
from creditd.engines.protocol import EngineUsage, PreparedTexts, ScoredTexts
from creditd.engines.registry import AnyEngine
from creditd.scoring.deadline import Deadline, DeadlineExceededError
from creditd.scoring.model_questions import AsksTexts, RememberedBy
from creditd.scoring.recollection import Recollection
from creditd.server.errors import ServiceError
from creditd.server.resources import Resources
from creditd.wire.errors import ErrorCode

T = TypeVar("T")
P = TypeVar("P", bound=PreparedTexts)

PATIENCE = 0.5
"""Part of the time that a round has for which it waits for what other requests find out."""


@dataclass(frozen=True)
class Caller:
    """Who waits, and for how long.

    Attributes:
        resources: What the application holds.
        deadline: When the caller stops waiting.
        receive: Where the connection says that the caller has left.
        tenant: Whose utilities may be used.
        budget: How long Redis is waited for.
        alone: Whether each prompt is run by itself, so that no other changes a bit.
    """

    resources: Resources
    deadline: Deadline
    receive: Receive
    tenant: bytes
    budget: Budget
    alone: bool

    async def read(self, work: Callable[[], T]) -> T:
        """Tokens of texts, off the event loop."""
        return await self.resources.read(work, self.deadline, self.receive)

    async def run(self, work: Callable[[], T]) -> T:
        """Arithmetic, off the event loop."""
        return await self.resources.compute(work, self.deadline, self.receive)

    async def wait_for(self, future: asyncio.Future[T]) -> T:
        """Something that others do."""
        return await self.resources.wait_for(future, self.deadline, self.receive)


@dataclass
class Round:
    """What a model is asked at once.

    Attributes:
        texts: As its engine takes them; none if there is no question left.
        recollection: What is remembered of them; None where nothing is.
        missing: Games that are not known completely, with their numbers of players.
    """

    texts: Sequence[Any]
    recollection: Recollection | None = None
    missing: Mapping[GameKey, int] = field(default_factory=dict)


class ModelRounds:
    """The conversation of one request with one model."""

    def __init__(self, engine: AnyEngine, caller: Caller, *, counts: bool = True, rendering: str = "delete") -> None:
        """Nothing is asked yet.

        Args:
            engine: The model.
            caller: Who waits for it.
            counts: Whether what is remembered has saved something; not if only a price is asked for.
            rendering: What stands for absent units, which is part of what utilities are remembered by.
        """
        self._engine, self._caller, self._counts, self._rendering = engine, caller, counts, rendering
        self._cache = caller.resources.cache if engine.is_remembered else None
        self._known: dict[str, KnownGame] = {}
        """What this request knows of each game, round after round: no cache has to hold on to it meanwhile."""

    def round_of(self, questions: AsksTexts) -> Round:
        """What is asked next, and what this process remembers of it; off the event loop."""
        return self.round_from(questions.ask(), questions.remembered_by)

    def round_from(self, texts: Sequence[Any], by: RememberedBy | None) -> Round:
        """Texts as a round, and what this process remembers of them; off the event loop."""
        cache = self._cache
        if not texts or cache is None or by is None:
            return Round(texts)
        recollection = Recollection(texts, KeyMaker(self._source(cache)), by=by, whole=self._caller.alone)
        self._learn(recollection, cache.look(recollection.missing), "memory")
        return Round(texts, recollection, recollection.missing)

    async def price(self, asked: Round) -> EngineUsage:
        """What the answers of a round would cost now."""
        texts = asked.texts
        known = EngineUsage()
        if asked.recollection is not None:
            fetched = await self._fetched(asked.recollection, asked.missing)
            await self._caller.run(partial(self._learned, asked.recollection, fetched))
            texts = await self._caller.run(partial(asked.recollection.ask, tuple(asked.missing)))
            known = asked.recollection.answer().usage
        return known + await self.price_of(self._reading(texts))

    async def price_of(self, reading: Callable[[], PreparedTexts]) -> EngineUsage:
        """What texts would cost that are read so, on a thread.

        Raises:
            ServiceError: If the model cannot take such texts.
            DeadlineExceededError: If the deadline passes first.
            ClientDisconnect: If the caller leaves first.
        """
        with errors_of_the_service(self._engine.spec.id):
            return (await self._caller.read(reading)).usage

    async def answers(self, asked: Round) -> Any:  # noqa: ANN401 - scores or vectors
        """What the model says of a round.

        Raises:
            ServiceError: If the model fails or is overloaded.
            DeadlineExceededError: If the deadline passes first.
            ClientDisconnect: If the caller leaves first.
        """
        recollection, cache = asked.recollection, self._cache
        if recollection is None or cache is None:
            found = await self._asked(asked.texts)
            self._caller.resources.metrics.count_engine(self._engine.spec.id, found.usage)
            return found
        missing, follow = asked.missing, True
        patient_s = (1.0 - PATIENCE) * self._caller.deadline.remaining_s
        while missing:
            flight, others = cache.take_off(missing, follow=follow)
            found_out: dict[str, KnownGame] = {}
            try:
                if flight.keys:
                    await self._fly(cache, flight, recollection, found_out, missing)
            finally:
                cache.land(flight, found_out)
            if not others:
                break  # all that was missing was its own
            follow = await self._followed(others, patient_s)
            missing = await self._caller.run(partial(self._shared, recollection, [one.found for one, _ in others]))
        return recollection.answer()

    async def _followed(self, others: Iterable[tuple[Flight, Sequence[GameKey]]], needed_s: float) -> bool:
        """Wait for what others find out.

        Args:
            others: Who finds out what.
            needed_s: What has to be left until the deadline, to find it out here.

        Returns:
            Whether there is time to wait for others again.
        """
        waits = [asyncio.ensure_future(flight.landed(keys)) for flight, keys in others]
        limit_s = max(self._caller.deadline.remaining_s - needed_s, 0.0)
        try:
            _, flying = await self._caller.wait_for(asyncio.ensure_future(asyncio.wait(waits, timeout=limit_s)))
        finally:
            for wait in waits:
                wait.cancel()
        return not flying and self._caller.deadline.remaining_s > needed_s

    async def _fly(
        self,
        cache: UtilityCache,
        flight: Flight,
        recollection: Recollection,
        found_out: dict[str, KnownGame],
        missing: Mapping[GameKey, int],
    ) -> None:
        """Find out what nobody else is finding out: from Redis, then from the model."""
        own = {key: missing[key] for key in flight.keys} if flight.followed else missing
        if flight.followed and (landed := cache.look(own)):
            # Somebody may have found it out between the last look and now.
            found_out.update(landed)
            still = await self._caller.run(partial(self._shared, recollection, [landed]))
            own = {key: n_players for key, n_players in own.items() if key in still}
        fetched = await self._fetched(recollection, own)
        if fetched:
            found_out.update(fetched)
            still = await self._caller.run(partial(self._learned, recollection, fetched))
            if flight.followed:
                cache.land(flight, found_out, [key for key in own if key not in still])
        texts = await self._caller.run(partial(recollection.ask, flight.keys))
        if not texts:
            return
        found = await self._asked(texts)
        self._caller.resources.metrics.count_engine(self._engine.spec.id, found.usage)
        await self._caller.run(partial(self._take, cache, recollection, found, found_out))

    def _take(
        self, cache: UtilityCache, recollection: Recollection, found: ScoredTexts, found_out: dict[str, KnownGame]
    ) -> None:
        """Keep what the model said, together with all that this request knows of the same games."""
        cache.events.looked("missed", self._engine.spec.id, recollection.n_asked, found.usage.evaluations)
        told = recollection.tell(found)
        for key, game in told:
            found_out[key.text] = self._known[key.text] = joined(self._known.get(key.text), game)[0]
        seconds = found.usage.engine_s / max(found.usage.evaluations, 1)
        if seconds >= self._caller.resources.settings.cache_min_evaluation_s:
            cache.remember(recollection.source, [(key, self._known[key.text]) for key in dict(told)])

    async def _fetched(self, recollection: Recollection, wanted: Mapping[GameKey, int]) -> dict[str, KnownGame]:
        """What Redis knows of games."""
        cache = self._cache
        if cache is None or not cache.has_store or not wanted:
            return {}
        return await cache.fetch(recollection.source, wanted, self._caller.budget)

    def _learned(self, recollection: Recollection, games: Mapping[str, KnownGame]) -> Mapping[GameKey, int]:
        """Learn what Redis knows; what is missing still."""
        self._learn(recollection, games, "redis")
        return recollection.missing

    def _shared(self, recollection: Recollection, found: Iterable[Mapping[str, KnownGame]]) -> Mapping[GameKey, int]:
        """Learn what other requests found out; what is missing still."""
        for games in found:
            self._learn(recollection, games, "shared")
        return recollection.missing

    def _learn(self, recollection: Recollection, games: Mapping[str, KnownGame], level: Outcome) -> None:
        for text, game in games.items():
            # What this request was told itself counts.
            self._known[text] = joined(game, self._known[text])[0] if text in self._known else game
        n_games, n_utilities = recollection.learn(games)
        if n_games and self._counts and self._cache is not None:
            self._cache.events.looked(level, self._engine.spec.id, n_games, n_utilities)

    def _source(self, cache: UtilityCache) -> UtilitySource:
        """Whose utilities these are."""
        engine, caller = self._engine, self._caller
        return UtilitySource(
            tenant=caller.resources.tenant_secret(caller.tenant),
            source="model",
            name=engine.spec.id,
            identity=engine.identity,
            rendering=self._rendering,
            generation=cache.generation(engine.spec.id),
            numerics=engine.numerics if caller.alone else "",
        )

    def _reading(self, texts: Sequence[Any]) -> Callable[[], PreparedTexts]:
        """The work of making tokens of texts; what takes long ends with the deadline."""
        prepared: Callable[..., PreparedTexts] = self._engine.prepared
        if self._engine.spec.kind == "embedding":
            return partial(prepared, texts)
        return partial(prepared, texts, alone=self._caller.alone, checkpoint=self._caller.deadline.check)

    async def _asked(self, texts: Sequence[Any]) -> Any:  # noqa: ANN401 - scores or vectors
        """One question and its answer."""
        return await self.said(self._reading(texts), self._engine.submit)

    async def said(self, reading: Callable[[], P], submit: Callable[[P, float], Future[T]]) -> T:
        """What the model says of something; every way to say nothing is an error of the service.

        Args:
            reading: Makes of texts what the model takes, on a thread.
            submit: Asks about it, until when somebody waits.

        Raises:
            ServiceError: If the model fails or is overloaded, or cannot take such texts.
            DeadlineExceededError: If the deadline passes first.
            ClientDisconnect: If the caller leaves first.
        """
        caller = self._caller
        with errors_of_the_service(self._engine.spec.id):
            prepared = await caller.read(reading)
            return await caller.wait_for(asyncio.wrap_future(submit(prepared, caller.deadline.at_s)))


@contextmanager
def errors_of_the_service(name: str) -> Iterator[None]:
    """What a model refuses, raised as the error of the service that says the same.

    Args:
        name: Of the model.
    """
    try:
        yield
    except EngineExpiredError:
        raise DeadlineExceededError from None
    except EngineOverloadedError as error:
        wait = {"Retry-After": str(max(1, round(error.retry_after_s)))}
        raise ServiceError(ErrorCode.OVERLOADED, f"model {name}: {error}", headers=wait) from None
    except ModelUnsuitableError as error:
        raise ServiceError(ErrorCode.INVALID_REQUEST, f"model {name}: {error}") from None
    except WeightVersionUnknownError as error:
        raise ServiceError(ErrorCode.WEIGHT_VERSION_UNKNOWN, f"model {name}: {error}") from None
    except WeightVersionMismatchError as error:
        raise ServiceError(ErrorCode.WEIGHT_VERSION_MISMATCH, f"model {name}: {error}") from None
    except EngineError as error:
        raise ServiceError(ErrorCode.ENGINE_FAILED, f"model {name}: {error}") from error
