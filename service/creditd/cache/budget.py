"""How long a request may wait for a store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Budget:
    """How long one request may wait for Redis, all its calls together."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._left_s, self._clock = seconds, clock

    @property
    def left_s(self) -> float:
        """Seconds that are left, never below 0."""
        return max(self._left_s, 0.0)

    async def wait_for(self, call: asyncio.Task[T]) -> T | None:
        """The result of a call, or None when the time is over first; the call goes on by itself."""
        started_s = self._clock()
        try:
            await asyncio.wait({call}, timeout=self.left_s)
        finally:
            self._left_s -= self._clock() - started_s
        return call.result() if call.done() else None
