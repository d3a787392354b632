"""What the cache of utilities does, as Prometheus counters."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from creditd.cache.breaker import BreakerState
from creditd.cache.events import CacheEvents, Drop, Failure, Operation, Outcome
from creditd.cache.games import Corruption
from creditd.cache.tiers import UtilityCache

_BREAKER_VALUES: dict[BreakerState, int] = {"closed": 0, "half_open": 1, "open": 2}


class CacheMetrics(CacheEvents):
    """Counters of one application's cache; `CacheEvents`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._games = Counter(
            "creditd_cache_games",
            "Games that were looked for, by where they were found.",
            ("outcome",),
            registry=registry,
        )
        self._saved = Counter(
            "creditd_cache_evaluations_saved",
            "Utilities that were remembered, by the model that would have had to give them, or (callers), and where.",
            ("source", "level"),
            registry=registry,
        )
        self._corrupt = Counter(
            "creditd_cache_corrupt",
            "Values in Redis that were not what their key promised; they count as missed.",
            ("reason",),
            registry=registry,
        )
        self._errors = Counter(
            "creditd_cache_errors",
            "Calls of Redis that failed or were given up.",
            ("operation", "reason"),
            registry=registry,
        )
        self._dropped = Counter(
            "creditd_cache_dropped_writes", "Games that were not written to Redis.", ("reason",), registry=registry
        )
        self._contradictions = Counter(
            "creditd_cache_contradictions",
            "Games of which a caller supplied, or Redis had, other utilities than this process remembered.",
            registry=registry,
        )
        self._breaker = Gauge(
            "creditd_cache_breaker",
            "Whether Redis is asked: 0 yes, 1 once to see, 2 not for a while.",
            ("operation",),
            registry=registry,
        )
        self._memory_bytes = Gauge(
            "creditd_cache_memory_bytes", "Utilities that this process remembers, about.", registry=registry
        )
        self._memory_games = Gauge(
            "creditd_cache_memory_games", "Games that this process remembers.", registry=registry
        )
        self._queued_bytes = Gauge(
            "creditd_cache_queued_bytes", "Utilities that wait to be written to Redis, about.", registry=registry
        )
        for operation in ("read", "write"):
            self._breaker.labels(operation).set(0)

    def looked(self, outcome: Outcome, source: str, n_games: int, n_utilities: int) -> None:
        """Count games by where they were found, and the evaluations that this saved."""
        self._games.labels(outcome).inc(n_games)
        if outcome != "missed":
            self._saved.labels(source, outcome).inc(n_utilities)

    def corrupt(self, reason: Corruption) -> None:
        """Count a value that was not what its key promised."""
        self._corrupt.labels(reason).inc()

    def failed(self, operation: Operation, reason: Failure) -> None:
        """Count a call that failed."""
        self._errors.labels(operation, reason).inc()

    def dropped(self, reason: Drop, n_games: int) -> None:
        """Count games that were not written."""
        self._dropped.labels(reason).inc(n_games)

    def contradicted(self) -> None:
        """Count a game of which a caller or Redis says something else than is remembered."""
        self._contradictions.inc()

    def breaker(self, operation: Operation, state: BreakerState) -> None:
        """Note the state of a breaker."""
        self._breaker.labels(operation).set(_BREAKER_VALUES[state])

    def look_at(self, cache: UtilityCache | None) -> None:
        """Take what the cache says of its size, and of its breakers, whose time may be over without anybody asking."""
        if cache is not None:
            for operation, state in cache.states().items():
                self.breaker(operation, state)
            self._memory_bytes.set(cache.memory.n_bytes)
            self._memory_games.set(len(cache.memory))
            self._queued_bytes.set(cache.queued_bytes)
