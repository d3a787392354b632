"""What a running service holds: its settings, its threads, its counters, and whether it is shutting down."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from creditd.cache.keys import tenant_secret
from creditd.cache.memory import MemoryCache
from creditd.cache.redis import RedisStore
from creditd.cache.tiers import UtilityCache
from creditd.credit.candidate_sets import CandidateSets, SetError
from creditd.credit.set_credit import SetCreditOptions, SetCredits
from creditd.credit.set_games import SolvedSets
from creditd.engines.registry import Registry
from creditd.engines.weight_uploads import WeightUploads
from creditd.scoring.candidate_credit import score_candidate_sets
from creditd.scoring.deadline import Deadline, DeadlineExceededError
from creditd.server.errors import ServiceError
from creditd.server.metrics import Metrics
from creditd.server.settings import Settings
from creditd.wire.errors import ErrorCode
from creditd.wire.limits import RequestLimits

T = TypeVar("T")

READERS = 2
"""Threads that make tokens of texts."""
WEIGHT_THREADS = 2
"""Threads that write shards of weights, and as many that look through weights of a directory."""
LONGEST_SWEEP_S = 60.0
"""How long shards that nobody completes may lie longer than they should."""
CLOSING_S = 10.0
"""How long a model may take to finish its last batch when the process ends."""


class CandidateScorer(Protocol):
    """Answers a batch of candidate sets; `creditd.scoring.candidate_credit` is the one."""

    def __call__(
        self,
        batch: CandidateSets,
        options: SetCreditOptions,
        rejected: tuple[SetError, ...],
        deadline: Deadline,
        given: SolvedSets | None = None,
    ) -> SetCredits:
        """One answer or one error per set."""


@dataclass
class Resources:
    """Opened and closed with the application; routes find it on `request.app.state.resources`.

    Attributes:
        settings: Checked settings.
        score_sets: The use case behind `/v1/credit/shapley`.
        engines: The models that requests may name, loaded.
        metrics: Counters of this process.
        cache: Utilities that are remembered; None before the resources are open, and where nothing is.
        uploads: Shards of weights that arrive; None before the resources are open, and where there is no policy.
        weight_threads: How many threads write them.
        clock: Monotonic seconds, by which Redis is left out for a while after failures.
        draining: Whether new work is refused because the process is about to end.
        warm: Whether the first computation has been done, so that the first request does not pay for imports and
            tables.
        in_flight: Requests that are not answered yet, those whose body is still arriving included.
        answering: Requests whose body is here, being worked on or waiting for a thread.
        held_bytes: What is kept of the bodies of all requests, and of answers that are not read yet.
        idle: Set while no request is in flight.
        abandoned: Whether requests were cut off, so that nobody waits for what the threads still compute.
    """

    settings: Settings
    score_sets: CandidateScorer = score_candidate_sets
    engines: Registry = field(default_factory=Registry)
    metrics: Metrics = field(default_factory=Metrics)
    cache: UtilityCache | None = None
    uploads: WeightUploads | None = None
    weight_threads: anyio.CapacityLimiter | None = None
    clock: Callable[[], float] = time.monotonic
    draining: bool = False
    warm: bool = False
    in_flight: int = 0
    answering: int = 0
    held_bytes: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    abandoned: bool = False
    _threads: ThreadPoolExecutor | None = None
    _readers: ThreadPoolExecutor | None = None
    _stagers: ThreadPoolExecutor | None = None
    _sweeper: asyncio.Task[None] | None = None

    @property
    def limits(self) -> RequestLimits:
        """Bounds of one request."""
        return RequestLimits(
            sets=self.settings.max_sets,
            candidates=self.settings.max_candidates,
            all_candidates=self.settings.max_all_candidates,
            table_candidates=self.settings.max_table_candidates,
            token_advantages=self.settings.max_token_advantages,
            tokens_per_set=self.settings.max_tokens_per_set,
            units=self.settings.max_units,
            evaluations=self.settings.max_evaluations,
            model_characters=self.settings.max_model_characters,
            span_characters=self.settings.max_span_characters,
            policy_tokens=self.settings.max_policy_tokens,
        )

    def enter(self) -> None:
        """Count one more request in flight.

        Raises:
            ServiceError: If the process is about to end, or as many are answered as the setting allows.
        """
        if self.draining:
            raise ServiceError(ErrorCode.DRAINING, "the service is shutting down; try again elsewhere or later")
        self._check_load()
        self.in_flight += 1
        self.idle.clear()
        self.metrics.in_flight.set(self.in_flight)

    def leave(self) -> None:
        """Count one request less."""
        self.in_flight -= 1
        self.metrics.in_flight.set(self.in_flight)
        if not self.in_flight:
            self.idle.set()

    def _check_load(self) -> None:
        """Refuse one more request where there are as many as the setting allows."""
        limit = self.settings.max_requests_in_flight
        if self.answering >= limit:
            raise ServiceError(ErrorCode.OVERLOADED, f"{limit} requests are in flight, the limit; try again later")

    @contextmanager
    def answers(self) -> Iterator[None]:
        """Count a request whose body is here while it is answered.

        A body that is still arriving counts for nothing here: callers that send slowly, or not at all, keep nobody
        else out. A request that came before the process began to end is answered.

        Raises:
            ServiceError: If there are as many as the setting allows.
        """
        self._check_load()
        self.answering += 1
        try:
            yield
        finally:
            self.answering -= 1

    @contextmanager
    def hold(self) -> Iterator[HeldBytes]:
        """Count the bytes of one request for as long as they are kept."""
        held = HeldBytes(self)
        try:
            yield held
        finally:
            self.count_held(-held.count)

    def count_held(self, count: int) -> None:
        """Count bytes that are held from now on, or, below 0, no longer."""
        self.held_bytes += count
        self.metrics.held_bytes.set(self.held_bytes)

    async def open(self) -> None:
        """Start the threads and the cache, on the event loop of the application."""
        self.idle.set()
        self._threads = ThreadPoolExecutor(self.settings.compute_threads, thread_name_prefix="creditd-compute")
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="creditd-texts")
        self.cache = cache_of(self.settings, self.metrics, self.clock)
        if self.cache is not None:
            await self.cache.open(self.engines.ids)
        if self.engines.policies:
            self._stagers = ThreadPoolExecutor(WEIGHT_THREADS, thread_name_prefix="creditd-weights")
            self.weight_threads = anyio.CapacityLimiter(WEIGHT_THREADS)
            self.uploads = await anyio.to_thread.run_sync(self._spool)
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep(self.uploads))

    def _spool(self) -> WeightUploads:
        """Where shards arrive."""
        settings = self.settings
        return WeightUploads(
            settings.weights_spool or Path(tempfile.gettempdir()),
            max_bytes=settings.max_weight_bytes,
            max_shard_bytes=settings.max_shard_bytes,
            ttl_s=settings.weights_upload_ttl_s,
            clock=self.clock,
        )

    async def _sweep(self, uploads: WeightUploads) -> None:
        """Drop, now and then, shards whose others never came."""
        while True:
            await asyncio.sleep(min(LONGEST_SWEEP_S, self.settings.weights_upload_ttl_s))
            await anyio.to_thread.run_sync(uploads.sweep, limiter=self.weight_threads)

    async def close(self) -> None:
        """Finish what the threads and the models have begun, unless it is abandoned, drop what they have not, and stop.

        A model that does not finish in time is left to the end of the process.
        """
        if self.cache is not None:
            await self.cache.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.engines.close(timeout_s=0.0 if self.abandoned else CLOSING_S)
        if self.uploads is not None:
            await anyio.to_thread.run_sync(self.uploads.close)
        for pool in (self._readers, self._threads, self._stagers):
            if pool is not None:
                pool.shutdown(wait=not self.abandoned, cancel_futures=True)
        self._readers = self._threads = self._stagers = self.uploads = self._sweeper = None

    def tenant_secret(self, tenant: bytes) -> bytes:
        """What a caller's keys of remembered utilities are hashed with."""
        secret = self.settings.cache_secret
        return tenant_secret(b"" if secret is None else secret.get_secret_value().encode(), tenant)

    @property
    def stalled(self) -> tuple[str, ...]:
        """Models that a restart would help: their thread has ended, or has shown no sign of life for too long.

        A remote model that is silent is not among them.
        """
        longest = self.settings.engine_stall_s
        return tuple(
            one.spec.id
            for one in self.engines.statuses()
            if not one.alive or (one.backend != "remote" and one.silent_s > longest)
        )

    async def compute(self, work: Callable[[], T], deadline: Deadline, receive: Receive) -> T:
        """Run arithmetic off the event loop, for as long as somebody waits for it.

        Args:
            work: What to compute.
            deadline: When the caller stops waiting; abandoned here if the caller leaves.
            receive: Where the connection says that the caller has left, after its whole body has come.

        Returns:
            What `work` returns.

        Raises:
            DeadlineExceededError: If the deadline passes first.
            ClientDisconnect: If the caller leaves first. In both cases work that has not begun never begins, and work
                that has ends where it next looks at its deadline.
        """
        return await self._on(self._threads, work, deadline, receive)

    async def read(self, work: Callable[[], T], deadline: Deadline, receive: Receive) -> T:
        """Run what makes tokens of texts, on threads of its own: tokenizers take turns, and arithmetic does not wait.

        Arguments, result and errors as those of `compute`.
        """
        return await self._on(self._readers, work, deadline, receive)

    async def stage(self, work: Callable[[], T], deadline: Deadline, receive: Receive) -> T:
        """Run what looks through the files of weights, on threads of its own: they may be many gigabytes.

        Arguments, result and errors as those of `compute`.
        """
        return await self._on(self._stagers, work, deadline, receive)

    async def _on(
        self, pool: ThreadPoolExecutor | None, work: Callable[[], T], deadline: Deadline, receive: Receive
    ) -> T:
        if pool is None:
            raise RuntimeError("the resources are not open")
        return await self.wait_for(asyncio.get_running_loop().run_in_executor(pool, work), deadline, receive)

    async def wait_for(self, future: asyncio.Future[T], deadline: Deadline, receive: Receive) -> T:
        """Wait for something for as long as somebody waits for it in turn.

        Args:
            future: What is to come; cancelled if nobody waits for it any more.
            deadline: When the caller stops waiting; abandoned here if it comes first.
            receive: Where the connection says that the caller has left.

        Returns:
            What has come.

        Raises:
            DeadlineExceededError: If the deadline passes first.
            ClientDisconnect: If the caller leaves first.
        """
        leaving = asyncio.ensure_future(_left(receive))
        try:
            waited_for: set[asyncio.Future[Any]] = {future, leaving}
            await asyncio.wait(waited_for, timeout=max(deadline.remaining_s, 0.0), return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                return await future
            if leaving.done():
                raise ClientDisconnect
            raise DeadlineExceededError
        finally:
            if not future.done():
                deadline.abandoned.set()
            leaving.cancel()
            future.cancel()


def cache_of(settings: Settings, metrics: Metrics, clock: Callable[[], float]) -> UtilityCache | None:
    """The cache that the settings ask for, not open yet; None if they ask for none."""
    choice = settings.redis
    if choice is None and not settings.cache_bytes:
        return None
    store = None
    if choice is not None:
        timeout_s = max(choice.timeout_s, settings.cache_budget_s)
        store = RedisStore(replace(choice, timeout_s=timeout_s), metrics.cache, clock)
    return UtilityCache(
        MemoryCache(settings.cache_bytes, settings.cache_ttl_s),
        store,
        ttl_s=settings.cache_ttl_s,
        budget_s=settings.cache_budget_s,
        max_queued_bytes=settings.cache_queued_bytes,
        events=metrics.cache,
    )


async def _left(receive: Receive) -> None:
    """Return once the caller is gone."""
    if (await receive())["type"] != "http.disconnect":
        await asyncio.Event().wait()  # a body that goes on behind its end is no departure


class HeldBytes:
    """The bytes of one body."""

    def __init__(self, resources: Resources) -> None:
        self.resources = resources
        self.count = 0

    def add(self, count: int) -> None:
        """Count some more.

        Raises:
            ServiceError: If the bodies of all requests together are larger than the setting allows.
        """
        limit = self.resources.settings.max_held_bytes
        if self.resources.held_bytes + count > limit:
            detail = (
                f"bodies and unread answers of all requests are larger than {limit} bytes, the limit; try again later"
            )
            raise ServiceError(ErrorCode.OVERLOADED, detail, headers={"Connection": "close"})
        self.count += count
        self.resources.count_held(count)

    def release(self, count: int) -> None:
        """Count some less, which are not kept any more."""
        self.count -= count
        self.resources.count_held(-count)


def resources_of(request: Request) -> Resources:
    """The resources of the application that received a request."""
    resources: Resources = request.app.state.resources
    return resources
