"""The order in which an engine runs what waits for it: works in batches, and changes of weights between them.

A work is in slices, of which all are run under one version of the weights. A change of weights is run once no work is
partly run, and after the works that came before it and are pinned to the weights that it replaces; all others let it
pass. A work that is pinned to weights that are not there yet is put aside, where it holds up nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from creditd.engines.errors import EngineError, EngineExpiredError, WeightVersionUnknownError
from creditd.engines.policy_protocol import WeightPin
from creditd.engines.weight_versions import WeightVersions, mismatch

Floats: TypeAlias = NDArray[np.float64]
W = TypeVar("W")

_LONGEST_WAIT_S = 3600.0
_TOO_LATE = "the deadline passed before the model was asked"


@dataclass(frozen=True)
class Answered:
    """What came of a work.

    Attributes:
        scores: The scorer's array for it.
        queue_s: Seconds that it waited.
        engine_s: Seconds of the device: of its batches, shared by tokens.
        weight_version: The weights that all of it was run under; empty where they never change.
    """

    scores: Floats
    queue_s: float
    engine_s: float
    weight_version: str = ""


class WorkFuture(Future[Answered]):
    """The scores of a work to come.

    Attributes:
        unwanted: Whether nobody waits for them any more. Work that has begun cannot be cancelled, but ends at its next
            forward pass when all of its batch is unwanted.
    """

    unwanted = False


@dataclass
class Job(Generic[W]):
    """A work in slices, of which one is run at a time.

    Attributes:
        slices: Those that have not been run, with their tokens.
        expires_s: When nobody waits any more.
        waits_since_s: When it was queued last.
        pin: Which weights it has to be run under.
        place: How many works and changes of weights came before it.
        version: The weights that it is run under; None before it has begun.
        future: The scores of all slices.
        scores: Those of the slices that were run.
        queue_s: What it waited so far.
        engine_s: What it took of the device so far.
    """

    slices: deque[tuple[W, int]]
    expires_s: float
    waits_since_s: float
    pin: WeightPin = field(default_factory=WeightPin)
    place: int = 0
    version: str | None = None
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


@dataclass
class Swap:
    """A change of weights that waits for its turn.

    Attributes:
        change: Makes it; takes what is called now and then as a sign of life.
        version: What is current afterwards.
        place: How many works and changes of weights came before it.
        future: What `change` returns.
    """

    change: Callable[[Callable[[], None]], Any]
    version: str
    place: int = 0
    future: Future[Any] = field(default_factory=Future)


class WorkQueue(Generic[W]):
    """What waits for an engine; used under the lock of its batcher.

    Attributes:
        queued_tokens: Tokens that wait for the device or are being run.
        parked_tokens: Tokens of works that wait for other weights.
    """

    def __init__(self, versions: WeightVersions, clock: Callable[[], float]) -> None:
        """Begin with nothing.

        Args:
            versions: Those of the weights.
            clock: Monotonic seconds.
        """
        self._versions, self._clock = versions, clock
        self._jobs: deque[Job[W]] = deque()
        self._parked: list[Job[W]] = []
        self._swaps: deque[Swap] = deque()
        self._n_placed = 0
        self.queued_tokens = 0
        self.parked_tokens = 0

    def is_for_later(self, pin: WeightPin) -> bool:
        """Whether work with this pin would be put aside."""
        return self._versions.readiness(pin) == "later"

    def add(self, job: Job[W]) -> None:
        """Queue a work, or put it aside."""
        job.place = self._next_place()
        if self.is_for_later(job.pin):
            self._parked.append(job)
            self.parked_tokens += job.n_tokens
        else:
            self._jobs.append(job)
            self.queued_tokens += job.n_tokens

    def add_swap(self, swap: Swap) -> None:
        """Queue a change of weights."""
        swap.place = self._next_place()
        self._swaps.append(swap)

    def add_rest(self, job: Job[W]) -> None:
        """Queue what is left of a work that has begun; its tokens are counted already."""
        job.waits_since_s = self._clock()
        self._jobs.append(job)

    def next_turn(self, batch_tokens: int) -> list[Job[W]] | Swap:
        """What is run next.

        Args:
            batch_tokens: Tokens from which a batch is full; a single work may have more.

        Returns:
            A change of weights, or works up to the budget in the order in which they came; none if nothing is to be
            run now.
        """
        self._parked = [job for job in self._parked if self._is_wanted(job, parked=True)]
        if self._swaps:
            self.drop_unwanted()
            if not any(self._precedes_swaps(job) for job in self._jobs):
                return self._swaps.popleft()
        jobs: list[Job[W]] = []
        passed_over: list[Job[W]] = []
        tokens = 0
        while self._jobs and (not jobs or tokens + self._jobs[0].n_next <= batch_tokens):
            job = self._jobs.popleft()
            if not self._is_wanted(job):
                continue
            if self._swaps and not self._precedes_swaps(job):
                passed_over.append(job)
            elif self._is_taken(job):
                jobs.append(job)
                tokens += job.n_next
        self._jobs.extendleft(reversed(passed_over))
        return jobs

    def make_current(self, version: str, seconds: float) -> None:
        """Say that weights were replaced; works that waited for them go before all others."""
        self._versions.make_current(version, seconds)
        ready = [job for job in self._parked if not self.is_for_later(job.pin)]
        self._parked = [job for job in self._parked if self.is_for_later(job.pin)]
        n_tokens = sum(job.n_tokens for job in ready)
        self.parked_tokens -= n_tokens
        self.queued_tokens += n_tokens
        self._jobs.extendleft(reversed(ready))

    def drop_refused(self, version: str) -> None:
        """Fail works that wait for weights which were refused, unless the version is known all the same."""
        if self._versions.knows(version):
            return
        refused = [job for job in self._parked if job.pin.version == version]
        self._parked = [job for job in self._parked if job.pin.version != version]
        for job in refused:
            self.parked_tokens -= job.n_tokens
            job.fail(
                WeightVersionUnknownError(
                    "the weights of the pinned weight_version were pushed and refused; those of the policy are of "
                    f"version {self._versions.current}"
                )
            )

    def drop_unwanted(self) -> None:
        """Take out what nobody waits for any more."""
        self._parked = [job for job in self._parked if self._is_wanted(job, parked=True)]
        self._jobs = deque([job for job in self._jobs if self._is_wanted(job)])

    def drop_all(self) -> tuple[list[Job[W]], list[Swap]]:
        """Take out everything."""
        jobs, swaps = [*self._jobs, *self._parked], list(self._swaps)
        self.queued_tokens -= sum(job.n_tokens for job in self._jobs)
        self.parked_tokens = 0
        self._jobs.clear()
        self._parked.clear()
        self._swaps.clear()
        return jobs, swaps

    def until_next_s(self) -> float | None:
        """Seconds until something that was put aside has to be looked at again; None where nothing has."""
        soonest = min((job.expires_s for job in self._parked), default=float("inf"))
        return None if soonest == float("inf") else min(_LONGEST_WAIT_S, max(0.0, soonest - self._clock()))

    def _next_place(self) -> int:
        self._n_placed += 1
        return self._n_placed

    def _precedes_swaps(self, job: Job[W]) -> bool:
        """Whether a work is run before the next change of weights: it could not be run as it should afterwards."""
        if job.version is not None:
            return True
        return job.pin.version == self._versions.current and job.place < self._swaps[0].place

    def _is_taken(self, job: Job[W]) -> bool:
        """Whether a work may be run now; else it was put aside, failed, or cancelled in this moment."""
        if job.version is None:
            readiness = self._versions.readiness(job.pin)
            if readiness == "later":
                self.queued_tokens -= job.n_tokens
                self.parked_tokens += job.n_tokens
                self._parked.append(job)
                return False
            if readiness == "never":
                self.queued_tokens -= job.n_tokens
                job.fail(mismatch(job.pin, self._versions.current))
                return False
            if not job.future.set_running_or_notify_cancel():
                self.queued_tokens -= job.n_tokens
                return False
            job.version = self._versions.current
        return True

    def _is_wanted(self, job: Job[W], *, parked: bool = False) -> bool:
        """Whether somebody still waits; what nobody waits for is told so, and counts no more."""
        if not (job.future.cancelled() or job.future.unwanted or job.expires_s <= self._clock()):
            return True
        if parked:
            self.parked_tokens -= job.n_tokens
        else:
            self.queued_tokens -= job.n_tokens
        has_begun = job.version is not None
        if has_begun or job.pin.version in {None, self._versions.current}:
            job.fail(EngineExpiredError(_TOO_LATE))
        else:
            job.fail(mismatch(job.pin, self._versions.current))
        return False


def fail_all(jobs: Iterable[Job[Any]], swaps: Iterable[Swap], error: EngineError) -> None:
    """Tell everybody who waits that there will be nothing.

    Args:
        jobs: Works.
        swaps: Changes of weights.
        error: Why.
    """
    for job in jobs:
        job.fail(error)
    for swap in swaps:
        if swap.future.set_running_or_notify_cancel():
            swap.future.set_exception(error)
