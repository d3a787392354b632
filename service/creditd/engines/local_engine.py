"""What every engine of this process has: a loaded model, the thread that runs it, and an account of both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from creditd.engines.batching import Batcher, Scorer
from creditd.engines.model_spec import ModelSpec
from creditd.engines.protocol import EngineStatus
from creditd.engines.weight_versions import WeightVersions


class Loaded(Protocol):
    """A model in memory, as far as every engine has one."""

    @property
    def spec(self) -> ModelSpec:
        """As it was registered."""

    @property
    def n_bytes(self) -> int:
        """Memory of its weights."""

    @property
    def forward_bytes(self) -> int:
        """Most memory of one forward pass beside the weights."""

    @property
    def max_tokens(self) -> int:
        """Longest sequence."""

    @property
    def reads_tries(self) -> bool:
        """Whether distinct prefixes are computed once."""

    @property
    def attention(self) -> str:
        """What runs its attention, as registrations name it."""

    @property
    def fingerprint(self) -> str:
        """Digest of the files that it was loaded from."""

    @property
    def numerics(self) -> str:
        """What decides the last bits of its numbers."""

    @property
    def is_remembered(self) -> bool:
        """Whether its numbers may be remembered."""


L = TypeVar("L", bound=Loaded)
W = TypeVar("W")


class LocalEngine(Generic[L, W]):
    """A loaded model and the thread that runs it."""

    def __init__(
        self, loaded: L, scorer: Scorer[W], clock: Callable[[], float], versions: WeightVersions | None = None
    ) -> None:
        """Start the thread.

        Args:
            loaded: The model.
            scorer: How it is asked.
            clock: Monotonic seconds.
            versions: Those of its weights, where they can be replaced. None: they stay what was loaded.
        """
        self._loaded = loaded
        self._clock = clock
        self._batcher = Batcher[W](
            scorer,
            batch_tokens=loaded.spec.batch_tokens,
            max_queued_tokens=loaded.spec.max_queued_tokens,
            name=f"creditd-engine-{loaded.spec.id}",
            clock=clock,
            versions=versions,
        )

    @property
    def spec(self) -> ModelSpec:
        """The model, as it was registered."""
        return self._loaded.spec

    @property
    def numerics(self) -> str:
        """What decides the last bits of its numbers beside what it is."""
        return self._loaded.numerics

    @property
    def is_remembered(self) -> bool:
        """Whether its numbers may be remembered: they are those of the files that it was loaded from."""
        return self._loaded.is_remembered

    def status(self) -> EngineStatus:
        """What can be said of the engine now."""
        loaded, batcher = self._loaded, self._batcher
        return EngineStatus(
            spec=loaded.spec,
            backend="local",
            n_bytes=loaded.n_bytes,
            max_tokens=loaded.max_tokens,
            reads_tries=loaded.reads_tries,
            attention=loaded.attention,
            working_bytes=loaded.forward_bytes,
            queued_tokens=batcher.queued_tokens,
            n_batches=batcher.n_batches,
            silent_s=self._clock() - batcher.last_beat_s if batcher.queued_tokens else 0.0,
            alive=batcher.is_alive,
            fingerprint=loaded.fingerprint,
            is_remembered=loaded.is_remembered,
        )

    def close(self, timeout_s: float | None = None) -> None:
        """Finish the batch that is being run, fail what waits, and end the thread."""
        self._batcher.close(timeout_s)
