"""The moment after which an answer is of no use to anybody: a time, or that its caller has left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


class DeadlineExceededError(Exception):
    """The deadline passed before the work was done."""


@dataclass(frozen=True)
class Deadline:
    """A point in time on a monotonic clock.

    Attributes:
        at_s: When it is too late, on `clock`, seconds.
        clock: Monotonic seconds.
        abandoned: Set once the caller has left.
    """

    at_s: float
    clock: Callable[[], float] = time.monotonic
    abandoned: threading.Event = field(default_factory=threading.Event, compare=False)

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """The deadline that is `seconds` away."""
        return cls(at_s=clock() + seconds, clock=clock)

    @property
    def remaining_s(self) -> float:
        """Seconds left; negative when it has passed."""
        return self.at_s - self.clock()

    def check(self) -> None:
        """Raise if nobody waits any more.

        Raises:
            DeadlineExceededError: If no time is left, or the caller has left.
        """
        if self.remaining_s <= 0 or self.abandoned.is_set():
            raise DeadlineExceededError
