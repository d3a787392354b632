"""What caches tell of themselves: counters of the service, or of a test, behind one protocol."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

from creditd.cache.breaker import BreakerState
from creditd.cache.games import Corruption

Operation: TypeAlias = Literal["read", "write"]
Outcome: TypeAlias = Literal["memory", "redis", "shared", "missed"]
"""Where a game was found: in this process, in Redis, with a request that evaluated it at the same time, nowhere."""
Failure: TypeAlias = Literal[
    "timeout", "connection", "credentials", "busy", "read_only", "out_of_memory", "budget", "refused", "unexpected"
]
Drop: TypeAlias = Literal["queue_full", "breaker", "failed", "closed"]


class CacheEvents(Protocol):
    """Counts what happens. Called from any thread."""

    def looked(self, outcome: Outcome, source: str, n_games: int, n_utilities: int) -> None:
        """Games were looked for.

        Args:
            outcome: Where they were found.
            source: Id of the model, or `CALLERS` of the keys.
            n_games: How many.
            n_utilities: Evaluations that this saved, or, where they were missed, did not.
        """

    def corrupt(self, reason: Corruption) -> None:
        """A value was not what its key promised; it counts as missed."""

    def failed(self, operation: Operation, reason: Failure) -> None:
        """Redis did not do what it was asked."""

    def dropped(self, reason: Drop, n_games: int) -> None:
        """Games were not written."""

    def contradicted(self) -> None:
        """A caller supplied other utilities of a game than are remembered, or Redis has others."""

    def breaker(self, operation: Operation, state: BreakerState) -> None:
        """A breaker changed its state."""


class NoEvents:
    """`CacheEvents` that nobody counts."""

    def looked(self, outcome: Outcome, source: str, n_games: int, n_utilities: int) -> None:
        """Nothing."""

    def corrupt(self, reason: Corruption) -> None:
        """Nothing."""

    def failed(self, operation: Operation, reason: Failure) -> None:
        """Nothing."""

    def dropped(self, reason: Drop, n_games: int) -> None:
        """Nothing."""

    def contradicted(self) -> None:
        """Nothing."""

    def breaker(self, operation: Operation, state: BreakerState) -> None:
        """Nothing."""
