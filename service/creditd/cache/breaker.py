"""When a store is asked at all: not while it has just failed, then once to see, then as before."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Literal, TypeAlias

BreakerState: TypeAlias = Literal["closed", "half_open", "open"]

FAILURES = 3
"""Failures in a row that open a breaker, none of them older than the window."""
WINDOW_S = 5.0
FIRST_OPEN_S = 2.0
"""How long it is open the first time; each further time twice as long."""
LONGEST_OPEN_S = 30.0
PROBE_S = 5.0
"""A probe that has told nothing for so long is forgotten, and another one may be made."""


class Breaker:
    """Lets calls through until they fail, then one in a while until that one succeeds."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        report: Callable[[BreakerState], None] = lambda _: None,
    ) -> None:
        """A closed breaker.

        Args:
            clock: Monotonic seconds.
            jitter: A number from 0 to 1: each time that it is open is up to a quarter longer, so that replicas do not
                all ask at once.
            report: Told each new state.
        """
        self._clock, self._jitter, self._report = clock, jitter, report
        self._failed_at: list[float] = []
        self._open_s = FIRST_OPEN_S
        self._until = 0.0
        self._state: BreakerState = "closed"
        self._lock = threading.Lock()

    @property
    def state(self) -> BreakerState:
        """Whether calls are let through: all, none, or, once it has been open for long enough, one to see."""
        if self._state == "open" and self._clock() >= self._until:
            return "half_open"
        return self._state

    def allows(self) -> bool:
        """Whether a call may be made now. Whoever is let through says how it ended."""
        with self._lock:
            if self._state == "closed":
                return True
            if self._clock() < self._until:
                return False
            self._until = self._clock() + PROBE_S
            self._become("half_open")
            return True

    def succeeded(self) -> None:
        """A call went well."""
        with self._lock:
            self._failed_at.clear()
            self._open_s = FIRST_OPEN_S
            self._become("closed")

    def failed(self) -> None:
        """A call failed."""
        with self._lock:
            now = self._clock()
            if self._state == "open":
                return  # it began before the breaker opened
            self._failed_at = [*(at for at in self._failed_at if at > now - WINDOW_S), now]
            if self._state == "closed" and len(self._failed_at) < FAILURES:
                return
            self._until = now + self._open_s * (1.0 + 0.25 * self._jitter())
            self._open_s = min(2.0 * self._open_s, LONGEST_OPEN_S)
            self._failed_at.clear()
            self._become("open")

    def _become(self, state: BreakerState) -> None:
        if state != self._state:
            self._state = state
            self._report(state)
