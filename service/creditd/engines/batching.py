"""One thread per model owns the device: work waits in a queue, and is run in batches by a budget of tokens.

A request is one work and one future, however many sequences it has. Work that was cancelled or whose deadline has
passed is dropped before it is run. Admission is by tokens: a number of requests says nothing of how long they take.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from creditd.engines.errors import (
    EngineError,
    EngineExpiredError,
    EngineFailedError,
    EngineOverloadedError,
    EngineStoppedError,
)

Floats: TypeAlias = NDArray[np.float64]
T = TypeVar("T")
W = TypeVar("W")
_W_contra = TypeVar("_W_contra", contravariant=True)

log = logging.getLogger("creditd.engines")

LONGEST_RETRY_S = 30.0
"""What is said at most to a caller who is refused."""
_FIRST_GUESS = 1e4
"""Tokens per second before any batch has been timed."""
_TOO_LATE = "the deadline passed before the model was asked"
_MEMORY = 0.8
"""Share of the old estimate of tokens per second in the new one."""


class Scorer(Protocol[_W_contra]):
    """A model as the batcher sees it."""

    def n_tokens(self, work: _W_contra) -> int:
        """What a work costs: tokens that go through the model."""

    def score(self, works: Sequence[_W_contra], beat: Callable[[], None]) -> Sequence[Floats]:
        """One array of scores per work; `beat` is called between forward passes."""


@dataclass(frozen=True)
class Answered:
    """What came of a work.

    Attributes:
        scores: The scorer's array for it.
        queue_s: Seconds that it waited.
        engine_s: Seconds of the device: of its batches, shared by tokens.
    """

    scores: Floats
    queue_s: float
    engine_s: float


class _NobodyWaitsError(Exception):
    """Everybody who asked for a batch has gone while it was run."""


class WorkFuture(Future[Answered]):
    """The scores of a work to come.

    Attributes:
        unwanted: Whether nobody waits for them any more. Work that has begun cannot be cancelled, but ends at its next
            forward pass when all of its batch is unwanted.
    """

    unwanted = False


@dataclass
class _Job(Generic[W]):
    work: W
    n_tokens: int
    expires_s: float
    queued_s: float
    future: WorkFuture = field(default_factory=WorkFuture)


class Batcher(Generic[W]):
    """The queue of a model, and the thread that runs it.

    Attributes:
        n_batches: Batches that were run.
        queued_tokens: Tokens that wait or are being run.
        last_beat_s: When the thread last said that it is alive, on the clock.
    """

    def __init__(
        self,
        scorer: Scorer[W],
        *,
        batch_tokens: int,
        max_queued_tokens: int,
        name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the thread.

        Args:
            scorer: The model.
            batch_tokens: Tokens from which a batch is full; a single work may have more.
            max_queued_tokens: Tokens that wait at most.
            name: Of the thread.
            clock: Monotonic seconds.
        """
        self._scorer = scorer
        self._batch_tokens = batch_tokens
        self._max_queued_tokens = max_queued_tokens
        self._clock = clock
        self._queue: deque[_Job[W]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._tokens_per_s = _FIRST_GUESS
        self.n_batches = 0
        self.queued_tokens = 0
        self.last_beat_s = clock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: W, expires_s: float = float("inf")) -> WorkFuture:
        """Queue a work.

        Args:
            work: What the scorer takes.
            expires_s: When nobody waits any more, on the clock.

        Returns:
            Its scores to come, or an `EngineError`. Cancelling it drops the work if it has not begun; one that has ends
            between two forward passes once it is `unwanted` or expired, if nothing else of its batch is wanted.

        Raises:
            EngineOverloadedError: If more tokens wait than the limit; a work that finds an idle engine is taken
                whatever its size.
            EngineStoppedError: If the engine is closed or its thread has ended.
        """
        job = _Job(work, self._scorer.n_tokens(work), expires_s, self._clock())
        with self._changed:
            if self._closed or not self._thread.is_alive():
                raise EngineStoppedError("the engine is stopped")
            if self._is_too_much(job):
                self._drop_unwanted()
            if self._is_too_much(job):
                wait_s = min(LONGEST_RETRY_S, max(1.0, self.queued_tokens / self._tokens_per_s))
                raise EngineOverloadedError(
                    f"{self.queued_tokens} tokens wait for this model; expected at most {self._max_queued_tokens} "
                    "with those of the request",
                    retry_after_s=wait_s,
                )
            if not self.queued_tokens:
                self.beat()  # silence is counted from the first work on
            self._queue.append(job)
            self.queued_tokens += job.n_tokens
            self._changed.notify()
        return job.future

    def _is_too_much(self, job: _Job[W]) -> bool:
        """Whether a work finds more before it than the limit leaves room for."""
        return bool(self.queued_tokens) and self.queued_tokens + job.n_tokens > self._max_queued_tokens

    def _drop_unwanted(self) -> None:
        """Take from the queue what nobody waits for any more."""
        waiting = list(self._queue)
        self._queue.clear()
        for job in waiting:
            if job.future.cancelled() or job.expires_s <= self._clock():
                self.queued_tokens -= job.n_tokens
                if job.future.set_running_or_notify_cancel():
                    job.future.set_exception(EngineExpiredError(_TOO_LATE))
            else:
                self._queue.append(job)

    def close(self, timeout_s: float | None = None) -> None:
        """Finish the batch that is being run, fail what waits, and end the thread.

        Args:
            timeout_s: How long the batch is waited for; None: as long as it takes.
        """
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)
        self._fail_all(EngineStoppedError("the engine was stopped before this was run"))

    @property
    def is_alive(self) -> bool:
        """Whether the thread can still answer."""
        return self._thread.is_alive() and not self._closed

    def beat(self) -> None:
        """Say that the thread is alive."""
        self.last_beat_s = self._clock()

    def _run(self) -> None:
        try:
            while jobs := self._next_batch():
                self._answer(jobs)
        finally:
            # Whatever ends the thread, nobody is left waiting for it.
            self._closed = True
            self._fail_all(EngineStoppedError("the thread of the engine has ended"))

    def _next_batch(self) -> list[_Job[W]]:
        """Work up to the budget, in the order in which it came; nothing once the engine is closed."""
        with self._changed:
            while not self._closed:
                self.beat()
                jobs: list[_Job[W]] = []
                tokens = 0
                while self._queue and (not jobs or tokens + self._queue[0].n_tokens <= self._batch_tokens):
                    job = self._queue.popleft()
                    if self._is_wanted(job):
                        jobs.append(job)
                        tokens += job.n_tokens
                    else:
                        self.queued_tokens -= job.n_tokens
                if jobs:
                    return jobs
                self._changed.wait()
        return []

    def _is_wanted(self, job: _Job[W]) -> bool:
        """Whether somebody still waits; who does not is told so."""
        if not job.future.set_running_or_notify_cancel():
            return False
        if self._clock() < job.expires_s:
            return True
        job.future.set_exception(EngineExpiredError(_TOO_LATE))
        return False

    def _answer(self, jobs: list[_Job[W]]) -> None:
        """Run a batch, and deliver what came of it once its tokens are no longer counted."""
        begun, tokens = self._clock(), sum(job.n_tokens for job in jobs)
        outcomes: list[Answered | EngineError] = []
        try:
            outcomes = self._outcomes(jobs)
        finally:
            with self._changed:
                self.queued_tokens -= tokens
            self.n_batches += 1
            self.beat()
            # Only what ends the thread leaves a work of the batch without an outcome.
            ended = [EngineStoppedError("the thread of the engine has ended")] * (len(jobs) - len(outcomes))
            for job, outcome in zip(jobs, [*outcomes, *ended], strict=True):
                if isinstance(outcome, Answered):
                    job.future.set_result(outcome)
                else:
                    job.future.set_exception(outcome)
        seconds = self._clock() - begun
        if seconds > 0:
            self._tokens_per_s = _MEMORY * self._tokens_per_s + (1 - _MEMORY) * tokens / seconds

    def _outcomes(self, jobs: list[_Job[W]]) -> list[Answered | EngineError]:
        """The scores of a batch; if it fails, of each work by itself, so that one does not fail the others."""
        begun = self._clock()
        try:
            scores = self._scorer.score([job.work for job in jobs], lambda: self._beat_for(jobs))
            seconds, tokens = self._clock() - begun, sum(job.n_tokens for job in jobs)
            return [
                Answered(found, queue_s=begun - job.queued_s, engine_s=seconds * job.n_tokens / max(tokens, 1))
                for job, found in zip(jobs, scores, strict=True)
            ]
        except _NobodyWaitsError:
            return [EngineExpiredError("nobody waited any more while the model was asked")] * len(jobs)
        except Exception as error:  # noqa: BLE001 - whatever a model raises belongs to whoever asked it
            if len(jobs) > 1:
                return [self._outcomes([job])[0] for job in jobs]
            where = _place_of(error)
            log.error("%s failed: %s at %s", self._thread.name, type(error).__name__, where)  # noqa: TRY400 - its message may hold words of a request
            failure = EngineFailedError(f"the model failed: {type(error).__name__}")
            failure.__cause__ = error
            return [failure]

    def _beat_for(self, jobs: list[_Job[W]]) -> None:
        """Say that the thread is alive, and end a batch that nobody waits for."""
        self.beat()
        now = self._clock()
        if all(job.future.unwanted or job.expires_s <= now for job in jobs):
            raise _NobodyWaitsError

    def _fail_all(self, error: EngineStoppedError) -> None:
        with self._changed:
            jobs = list(self._queue)
            self._queue.clear()
            self.queued_tokens -= sum(job.n_tokens for job in jobs)
        for job in jobs:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)


def _place_of(error: BaseException) -> str:
    """Where an error was raised, without its message, which may hold words of a request."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames[:-4:-1])


def answer_of(asked: WorkFuture, made: Callable[[Answered], T]) -> Future[T]:
    """A future of what is made of a work's scores; cancelling it drops the work.

    Args:
        asked: From `Batcher.submit`.
        made: Called by the thread of the engine, unless nobody waits any more.

    Returns:
        What `made` returns, or the error of either.
    """
    answer: Future[T] = Future()

    def deliver(done: Future[Answered]) -> None:
        if done.cancelled() or not answer.set_running_or_notify_cancel():
            return
        try:
            answer.set_result(made(done.result()))
        except BaseException as error:  # noqa: BLE001 - whatever it is, nobody is left waiting for it
            answer.set_exception(error)

    def give_up(done: Future[T]) -> None:
        if done.cancelled() and not asked.cancel():
            asked.unwanted = True

    asked.add_done_callback(deliver)
    answer.add_done_callback(give_up)
    return answer
