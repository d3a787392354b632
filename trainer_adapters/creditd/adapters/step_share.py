"""What part of a training step its credit takes, and one warning where that is too much of several in a row."""

from __future__ import annotations

import time
import warnings

STEPS_BEFORE_WARNING = 3


class StepShare:
    """Follows the steps of one training.

    Args:
        limit: The share above which it is said, once. None: never.
        remedy: What changes when this is said, or helps.
        what: What takes the time.
        speaks: Whether this process says it; one of several does.
    """

    def __init__(self, limit: float | None, remedy: str, *, what: str = "credit", speaks: bool = True) -> None:
        self._limit, self._remedy, self._what, self._speaks = limit, remedy, what, speaks
        self._last_s: float | None = None
        self._large = 0

    def interrupted(self) -> None:
        """Know that what lies between the last call and the next is not one step."""
        self._last_s = None

    def of_step(self, seconds: float) -> dict[str, float]:
        """The share of a step, under the name that a trainer's log has for it.

        Args:
            seconds: What was taken of it; it began with the last call.

        Returns:
            `credit/share_of_step`; nothing for the first step, whose beginning nobody saw.
        """
        now, last = time.perf_counter(), self._last_s
        self._last_s = now
        if last is None:
            return {}
        share = seconds / max(now - last, 1e-9)
        self._large = self._large + 1 if self._limit is not None and share > self._limit else 0
        if self._large == STEPS_BEFORE_WARNING and self._speaks:
            self._speaks = False  # said once
            warnings.warn(
                f"{self._what} took more than {self._limit:.0%} of each of the last {STEPS_BEFORE_WARNING} steps "
                f"({seconds:.2f} s in this one); {self._remedy}",
                RuntimeWarning,
                stacklevel=3,
            )
        return {"credit/share_of_step": share}
