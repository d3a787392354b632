"""One thread per model owns the device: work waits in a queue, and is run in batches by a budget of tokens.

A request is one work and one future, however many sequences it has. Work that was cancelled or whose deadline has
passed is dropped before it is run. Admission is by tokens: a number of requests says nothing of how long they take.
Weights change in the same thread, between works.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
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
from creditd.engines.policy_protocol import WeightPin
from creditd.engines.weight_versions import WeightVersions
from creditd.engines.work_queue import Answered, Job, Swap, WorkFuture, WorkQueue, fail_all

Floats: TypeAlias = NDArray[np.float64]
T = TypeVar("T")
W = TypeVar("W")
_W_contra = TypeVar("_W_contra", contravariant=True)

log = logging.getLogger("creditd.engines")

LONGEST_RETRY_S = 30.0
"""What is said at most to a caller who is refused."""
_FIRST_GUESS = 1e4
"""Tokens per second before any batch has been timed."""
_MEMORY = 0.8
"""Share of the old estimate of tokens per second in the new one."""


class Scorer(Protocol[_W_contra]):
    """A model as the batcher sees it."""

    def n_tokens(self, work: _W_contra) -> int:
        """What a work costs: tokens that go through the model."""

    def score(self, works: Sequence[_W_contra], beat: Callable[[], None]) -> Sequence[Floats]:
        """One array of scores per work; `beat` is called between forward passes."""


class _NobodyWaitsError(Exception):
    """Everybody who asked for a batch has gone while it was run."""


class Batcher(Generic[W]):
    """The queue of a model, and the thread that runs it.

    Attributes:
        n_batches: Batches that were run.
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
        versions: WeightVersions | None = None,
    ) -> None:
        """Start the thread.

        Args:
            scorer: The model.
            batch_tokens: Tokens from which a batch is full; a single work may have more.
            max_queued_tokens: Tokens that wait at most.
            name: Of the thread.
            clock: Monotonic seconds.
            versions: Those of the model's weights. None: they never change.
        """
        self._scorer = scorer
        self._batch_tokens = batch_tokens
        self._max_queued_tokens = max_queued_tokens
        self._clock = clock
        self._versions = versions or WeightVersions("")
        self._queue: WorkQueue[W] = WorkQueue(self._versions, clock)
        self._changed = threading.Condition()
        self._closed = False
        self._why_stopped = "the engine is stopped"
        self._tokens_per_s = _FIRST_GUESS
        self.n_batches = 0
        self.last_beat_s = clock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: W, expires_s: float = float("inf"), pin: WeightPin = WeightPin()) -> WorkFuture:
        """Queue a work.

        Args:
            work: What the scorer takes.
            expires_s: When nobody waits any more, on the clock.
            pin: Which weights it has to be run under.

        Returns:
            Its scores to come, or an `EngineError`. Cancelling it drops the work if it has not begun; one that has ends
            between two forward passes once it is `unwanted` or expired, if nothing else of its batch is wanted.
            A pin that does not hold when the work is to be run fails it with `WeightVersionMismatchError`: at once, or
            if it is to wait, once it expires.

        Raises:
            EngineOverloadedError: If more tokens wait than the limit; a work that finds an idle engine is taken
                whatever its size. Works that wait for other weights are counted by themselves.
            EngineStoppedError: If the engine is closed or its thread has ended.
            WeightVersionUnknownError: If the pinned version was neither announced nor ever current.
        """
        return self.submit_slices([work], expires_s, pin)

    def submit_slices(
        self, works: Sequence[W], expires_s: float = float("inf"), pin: WeightPin = WeightPin()
    ) -> WorkFuture:
        """Queue a work in slices: others have their turn between two of them, but no change of weights.

        Args:
            works: At least one.
            expires_s: When nobody waits any more, on the clock.
            pin: Which weights all of them have to be run under.

        Returns:
            The scores of all slices to come, one after another; else as `submit`.

        Raises:
            EngineOverloadedError: As `submit`.
            EngineStoppedError: As `submit`.
            WeightVersionUnknownError: As `submit`.
        """
        job = Job(deque((work, self._scorer.n_tokens(work)) for work in works), expires_s, self._clock(), pin)
        n_tokens = job.n_tokens
        with self._changed:
            self._demand_running()
            self._versions.demand_known(pin)
            if self._is_too_much(n_tokens, pin):
                self._queue.drop_unwanted()
            if self._is_too_much(n_tokens, pin):
                wait_s = min(LONGEST_RETRY_S, max(1.0, self.queued_tokens / self._tokens_per_s))
                raise EngineOverloadedError(
                    f"{self._before(pin)} tokens wait for this model; expected at most {self._max_queued_tokens} "
                    "with those of the request",
                    retry_after_s=wait_s,
                )
            if not self.queued_tokens:
                self.beat()  # silence is counted from the first work on
            self._queue.add(job)
            self._changed.notify()
        return job.future

    def swap(self, change: Callable[[Callable[[], None]], T], version: str) -> Future[T]:
        """Queue a change of weights.

        Args:
            change: Makes it, in the thread of the engine, while no work is partly run; takes what it calls now and then
                as a sign of life. An `EngineError` says that nothing was changed. After any other exception nobody
                knows what the weights are: the engine is stopped.
            version: What is current afterwards.

        Returns:
            What `change` returns, once the version is current. Cancelling it drops the change if it has not begun.

        Raises:
            EngineStoppedError: If the engine is closed or its thread has ended.
        """
        swap = Swap(change, version)
        with self._changed:
            self._demand_running()
            self._queue.add_swap(swap)
            self._changed.notify()
        return swap.future

    def refuse(self, version: str) -> None:
        """Say that weights will not come: works that wait for them fail with `WeightVersionUnknownError`.

        Args:
            version: Theirs. If it is or was current, works may wait for it as before.
        """
        with self._changed:
            self._versions.disclaim(version)
            self._queue.drop_refused(version)

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for the device or are being run."""
        return self._queue.queued_tokens

    @property
    def parked_tokens(self) -> int:
        """Tokens of works that wait for other weights."""
        return self._queue.parked_tokens

    def _demand_running(self) -> None:
        if self._closed or not self._thread.is_alive():
            raise EngineStoppedError(self._why_stopped)

    def _before(self, pin: WeightPin) -> int:
        """Tokens that wait for what a work with this pin would wait for."""
        return self.parked_tokens if self._queue.is_for_later(pin) else self.queued_tokens

    def _is_too_much(self, n_tokens: int, pin: WeightPin) -> bool:
        """Whether a work finds more before it than the limit leaves room for."""
        before = self._before(pin)
        return bool(before) and before + n_tokens > self._max_queued_tokens

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
        ended = "the thread of the engine has ended"
        try:
            while turn := self._next_turn():
                if isinstance(turn, Swap):
                    self._change(turn)
                else:
                    self._answer(turn)
            ended = self._why_stopped
        finally:
            # Whatever ends the thread, nobody is left waiting for it.
            self._closed = True
            self._fail_all(EngineStoppedError(ended))

    def _next_turn(self) -> list[Job[W]] | Swap | None:
        """What is run next; nothing once the engine is closed."""
        with self._changed:
            while not self._closed:
                self.beat()
                turn = self._queue.next_turn(self._batch_tokens)
                if turn:
                    return turn
                self._changed.wait(self._queue.until_next_s())
        return None

    def _change(self, swap: Swap) -> None:
        """Change the weights; a change that fails half-way ends the engine before it answers anything more."""
        if not swap.future.set_running_or_notify_cancel():
            return
        begun = self._clock()
        try:
            made = swap.change(self.beat)
        except EngineError as error:
            swap.future.set_exception(error)
            return
        except BaseException as error:
            log.exception("%s: a change of weights failed half-way", self._thread.name)
            self._why_stopped = (
                f"the engine is stopped: a change of weights failed half-way ({type(error).__name__}), so that nobody "
                "knows what its weights are"
            )
            self._closed = True
            failure = EngineStoppedError(self._why_stopped)
            failure.__cause__ = error
            swap.future.set_exception(failure)
            if not isinstance(error, Exception):
                raise
            return
        with self._changed:
            self.beat()  # works that waited for these weights are counted from now on
            self._queue.make_current(swap.version, self._clock() - begun)
        swap.future.set_result(made)

    def _answer(self, jobs: list[Job[W]]) -> None:
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

    def _deliver(self, job: Job[W], outcome: Floats | EngineError) -> None:
        """Take what came of the next slice of a work: its answer if it was the last one, else its next turn."""
        with self._changed:
            if isinstance(outcome, EngineError):
                self._queue.queued_tokens -= job.n_tokens
            else:
                self._queue.queued_tokens -= job.n_next
                job.slices.popleft()
                job.scores.append(outcome)
                if job.slices:
                    self._queue.add_rest(job)
                    return
        if isinstance(outcome, EngineError):
            job.fail(outcome)
        else:
            version = job.version or ""
            job.future.set_result(Answered(np.concatenate(job.scores), job.queue_s, job.engine_s, version))

    def _outcomes(self, slices: Sequence[tuple[W, int]], jobs: list[Job[W]]) -> list[Floats | EngineError]:
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

    def _beat_for(self, jobs: list[Job[W]]) -> None:
        """Say that the thread is alive, and end a batch that nobody waits for."""
        self.beat()
        now = self._clock()
        if all(job.future.unwanted or job.expires_s <= now for job in jobs):
            raise _NobodyWaitsError

    def _fail_all(self, error: EngineStoppedError) -> None:
        with self._changed:
            jobs, swaps = self._queue.drop_all()
        fail_all(jobs, swaps, error)


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
