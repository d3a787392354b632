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
    """A work in slices, of which one is run at a time.

    Attributes:
        slices: Those that have not been run, with their tokens.
        expires_s: When nobody waits any more.
        waits_since_s: When it was queued last.
        future: The scores of all slices.
        scores: Those of the slices that were run.
        queue_s: What it waited so far.
        engine_s: What it took of the device so far.
    """

    slices: deque[tuple[W, int]]
    expires_s: float
    waits_since_s: float
    future: WorkFuture = field(default_factory=WorkFuture)
    scores: list[Floats] = field(default_factory=list)
    queue_s: float = 0.0
    engine_s: float = 0.0

    @property
    def n_tokens(self) -> int:
        """Tokens that have not been run."""
        return sum(n_tokens for _, n_tokens in self.slices)

    @property
    def n_next(self) -> int:
        """Tokens of the next slice."""
        return self.slices[0][1]

    def fail(self, error: EngineError) -> None:
        """Say that there will be no scores, if anybody still waits."""
        if self.future.running() or self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


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
        return self.submit_slices([work], expires_s)

    def submit_slices(self, works: Sequence[W], expires_s: float = float("inf")) -> WorkFuture:
        """Queue a work in slices: others have their turn between two of them.

        Args:
            works: At least one.
            expires_s: When nobody waits any more, on the clock.

        Returns:
            The scores of all slices to come, one after another; else as `submit`.

        Raises:
            EngineOverloadedError: As `submit`.
            EngineStoppedError: As `submit`.
        """
        job = _Job(deque((work, self._scorer.n_tokens(work)) for work in works), expires_s, self._clock())
        n_tokens = job.n_tokens
        with self._changed:
            if self._closed or not self._thread.is_alive():
                raise EngineStoppedError("the engine is stopped")
            if self._is_too_much(n_tokens):
                self._drop_unwanted()
            if self._is_too_much(n_tokens):
                wait_s = min(LONGEST_RETRY_S, max(1.0, self.queued_tokens / self._tokens_per_s))
                raise EngineOverloadedError(
                    f"{self.queued_tokens} tokens wait for this model; expected at most {self._max_queued_tokens} "
                    "with those of the request",
                    retry_after_s=wait_s,
                )
            if not self.queued_tokens:
                self.beat()  # silence is counted from the first work on
            self._queue.append(job)
            self.queued_tokens += n_tokens
            self._changed.notify()
        return job.future

    def _is_too_much(self, n_tokens: int) -> bool:
        """Whether a work finds more before it than the limit leaves room for."""
        return bool(self.queued_tokens) and self.queued_tokens + n_tokens > self._max_queued_tokens

    def _drop_unwanted(self) -> None:
        """Take from the queue what nobody waits for any more."""
        waiting = list(self._queue)
        self._queue.clear()
        self._queue.extend(job for job in waiting if self._is_wanted(job))

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
                while self._queue and (not jobs or tokens + self._queue[0].n_next <= self._batch_tokens):
                    job = self._queue.popleft()
                    if not self._is_wanted(job):
                        continue
                    if job.future.running() or job.future.set_running_or_notify_cancel():
                        jobs.append(job)
                        tokens += job.n_next
                    else:
                        self.queued_tokens -= job.n_tokens
                if jobs:
                    return jobs
                self._changed.wait()
        return []

    def _is_wanted(self, job: _Job[W]) -> bool:
        """Whether somebody still waits; what nobody waits for is told so, and counts no more."""
        if not (job.future.cancelled() or job.future.unwanted or job.expires_s <= self._clock()):
            return True
        self.queued_tokens -= job.n_tokens
        job.fail(EngineExpiredError(_TOO_LATE))
        return False

    def _answer(self, jobs: list[_Job[W]]) -> None:
        """Run a slice of each work, and deliver those that are done once their tokens are no longer counted."""
        begun, tokens = self._clock(), sum(job.n_next for job in jobs)
        outcomes: list[Floats | EngineError] = []
        try:
            outcomes = self._outcomes([job.slices[0] for job in jobs], jobs)
        finally:
            self.n_batches += 1
            self.beat()
            ended = self._clock()
            # Only what ends the thread leaves a work of the batch without an outcome.
            lost = [EngineStoppedError("the thread of the engine has ended")] * (len(jobs) - len(outcomes))
            for job, outcome in zip(jobs, [*outcomes, *lost], strict=True):
                job.queue_s += begun - job.waits_since_s
                job.engine_s += (ended - begun) * job.n_next / max(tokens, 1)
                self._deliver(job, outcome)
        if ended > begun:
            self._tokens_per_s = _MEMORY * self._tokens_per_s + (1 - _MEMORY) * tokens / (ended - begun)

    def _deliver(self, job: _Job[W], outcome: Floats | EngineError) -> None:
        """Take what came of the next slice of a work: its answer if it was the last one, else its next turn."""
        with self._changed:
            if isinstance(outcome, EngineError):
                self.queued_tokens -= job.n_tokens
            else:
                self.queued_tokens -= job.n_next
                job.slices.popleft()
                job.scores.append(outcome)
                if job.slices:
                    job.waits_since_s = self._clock()
                    self._queue.append(job)
                    return
        if isinstance(outcome, EngineError):
            job.fail(outcome)
        else:
            job.future.set_result(Answered(np.concatenate(job.scores), job.queue_s, job.engine_s))

    def _outcomes(self, slices: Sequence[tuple[W, int]], jobs: list[_Job[W]]) -> list[Floats | EngineError]:
        """The scores of a batch; if it fails, of each slice by itself, so that one does not fail the others."""
        try:
            scores = self._scorer.score([work for work, _ in slices], lambda: self._beat_for(jobs))
            return [found for _, found in zip(slices, scores, strict=True)]
        except _NobodyWaitsError:
            return [EngineExpiredError("nobody waited any more while the model was asked")] * len(jobs)
        except Exception as error:  # noqa: BLE001 - whatever a model raises belongs to whoever asked it
            if len(jobs) > 1:
                return [self._outcomes([one], [job])[0] for one, job in zip(slices, jobs, strict=True)]
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
            job.fail(error)


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
