"""Which versions of a policy's weights there are: the current one, those that were, and those that will come."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Literal

from creditd.engines.errors import WeightVersionMismatchError, WeightVersionUnknownError
from creditd.engines.policy_protocol import WeightPin, WeightState

MOST_REMEMBERED = 1024
"""Versions that were current once, of which the oldest are forgotten."""
MOST_ANNOUNCED = 64
"""Versions that were announced and did not come yet, of which the oldest are forgotten."""


class WeightVersions:
    """The versions of one policy; may be used from any thread.

    A name stands for the same bytes for as long as it is remembered: weights are told apart by their digests.
    """

    def __init__(self, initial: str) -> None:
        """Begin with the weights that were loaded.

        Args:
            initial: Their version.
        """
        self._lock = threading.Lock()
        self._current = initial
        self._past: OrderedDict[str, None] = OrderedDict()
        self._announced: OrderedDict[str, None] = OrderedDict()
        self._digests: dict[str, str | None] = {initial: None}
        self._n_swaps = 0
        self._last_swap_s: float | None = None

    @property
    def current(self) -> str:
        """The version of the weights that are in the model."""
        return self._current

    def state(self) -> WeightState:
        """All that can be said now."""
        with self._lock:
            return WeightState(
                self._current, tuple(self._announced), self._n_swaps, frozenset(self._past), self._last_swap_s
            )

    def announce(self, version: str) -> None:
        """Say that a version will come, so that work may wait for it; nothing happens if it is or was current."""
        with self._lock:
            if version == self._current:
                return
            # A version that was current once may come back: it stays known in either case.
            self._announced[version] = None
            self._announced.move_to_end(version)
            while len(self._announced) > MOST_ANNOUNCED:
                self._forget(self._announced.popitem(last=False)[0])

    def claim(self, version: str, digest: str) -> bool:
        """Say that weights are about to become current under a name.

        Args:
            version: Their name.
            digest: Of their content.

        Returns:
            Whether they are current already.

        Raises:
            WeightVersionMismatchError: If the name stands for other weights.
        """
        with self._lock:
            if version in self._digests and self._digests[version] != digest:
                whose = "the files that the policy was loaded from" if self._digests[version] is None else "other bytes"
                raise WeightVersionMismatchError(
                    "the name of this weight_version stands for " + whose + "; expected a name that was never used"
                )
            self._digests[version] = digest
            return version == self._current

    def disclaim(self, version: str) -> None:
        """Say that claimed weights will not come, so that the name is free unless it was current once."""
        with self._lock:
            self._announced.pop(version, None)
            self._forget(version)

    def make_current(self, version: str, seconds: float) -> None:
        """Say that weights were replaced.

        Args:
            version: What is in the model now.
            seconds: What it took.
        """
        with self._lock:
            self._announced.pop(version, None)
            self._past.pop(version, None)
            if version != self._current:
                self._past[self._current] = None
            self._current = version
            self._n_swaps += 1
            self._last_swap_s = seconds
            while len(self._past) > MOST_REMEMBERED:
                self._forget(self._past.popitem(last=False)[0])

    def readiness(self, pin: WeightPin) -> Literal["ready", "later", "never"]:
        """Whether work with this pin may be run now, waits, or has to fail because another version is current."""
        if pin.version is None or pin.version == self._current:
            return "ready"
        return "later" if pin.if_not_ready == "wait" else "never"

    def demand_known(self, pin: WeightPin) -> None:
        """Refuse a pin to a version that nobody has spoken of.

        Raises:
            WeightVersionUnknownError: If it was neither announced nor ever current, as far as is remembered.
        """
        if pin.version is None or self.knows(pin.version):
            return
        raise WeightVersionUnknownError(
            f"the pinned weight_version was never pushed to this policy; its weights are of version {self._current}"
        )

    def knows(self, version: str) -> bool:
        """Whether a version is or was current, was announced, or is verified and on its way into the model."""
        with self._lock:
            names = (self._past, self._announced, self._digests)
            return version == self._current or any(version in known for known in names)

    def _forget(self, version: str) -> None:
        """Drop the digest of a name that is not in use."""
        if version != self._current and version not in self._past and version not in self._announced:
            self._digests.pop(version, None)


def mismatch(pin: WeightPin, current: str) -> WeightVersionMismatchError:
    """The error for work whose version is not there.

    Args:
        pin: What was asked for.
        current: What there is.
    """
    waited = "when the deadline passed" if pin.if_not_ready == "wait" else "when the work was to be run"
    return WeightVersionMismatchError(f"the weights were of version {current} {waited}; expected the pinned one")
