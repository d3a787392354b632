"""A reward model that takes texts: tokens, limits, the queue, and what can be said of it from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.engines.batching import Batcher
from creditd.engines.chat import Prompt
from creditd.engines.loading import LoadedReward, load_reward
from creditd.engines.model_spec import ModelSpec
from creditd.engines.reward_scorers import Variants

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Completions:
    """Completions of prompts as tokens, those that fit the model.

    Attributes:
        work: What the engine is asked; None if nothing fits.
        fitting: Shape (F,), int64: which completions the work is about.
        too_long: Tokens of each completion that is longer than the model's context, by its place.
    """

    work: Variants | None
    fitting: Integers
    too_long: dict[int, int]


@dataclass(frozen=True)
class EngineStatus:
    """What an engine says of itself.

    Attributes:
        id: What requests call the model.
        kind: What it is for.
        revision: What its operator calls this state of it.
        dtype: Type of its weights.
        device: Where it runs.
        n_bytes: Memory of its weights.
        max_tokens: Longest sequence.
        reads_tries: Whether distinct prefixes are computed once.
        queued_tokens: Tokens that wait or are being run.
        n_batches: Batches that were run.
        silent_s: Seconds since the last sign of life.
    """

    id: str
    kind: str
    revision: str
    dtype: str
    device: str
    n_bytes: int
    max_tokens: int
    reads_tries: bool
    queued_tokens: int
    n_batches: int
    silent_s: float


class RewardEngine:
    """A loaded reward model and the thread that runs it."""

    def __init__(self, loaded: LoadedReward, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the thread.

        Args:
            loaded: The model.
            clock: Monotonic seconds.
        """
        self._loaded = loaded
        self._clock = clock
        self._batcher = Batcher[Variants](
            loaded.scorer,
            batch_tokens=loaded.spec.batch_tokens,
            max_queued_tokens=loaded.spec.max_queued_tokens,
            name=f"creditd-engine-{loaded.spec.id}",
            clock=clock,
        )

    @classmethod
    def load(cls, spec: ModelSpec, root: Path) -> RewardEngine:
        """The engine of a registered model.

        Args:
            spec: The model.
            root: Directory that all models are in.

        Raises:
            ModelUnsuitableError: If it cannot serve.

        Cost:
            Reading the weights, and some two thousand tokens.
        """
        return cls(load_reward(spec, root))

    def tokens_of(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> Completions:
        """Completions as the model reads them.

        Args:
            prompts: One for each completion.
            completions: What the policy wrote.

        Returns:
            The work, and what does not fit: nothing is ever cut.

        Raises:
            ModelUnsuitableError: If a prompt has messages and the model no template.

        Cost:
            Tokenises each text once.
        """
        rows = [self._loaded.text.tokens(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        too_long = {place: len(row) for place, row in enumerate(rows) if len(row) > self._loaded.max_tokens}
        fitting = np.array([place for place in range(len(rows)) if place not in too_long], dtype=np.int64)
        work = Variants(tuple(rows[place] for place in fitting)) if len(fitting) else None
        return Completions(work, fitting, too_long)

    def submit(self, work: Variants, expires_s: float = float("inf")) -> Future[Floats]:
        """Ask for the rewards of a work.

        Args:
            work: From `tokens_of`.
            expires_s: When nobody waits any more, on the clock.

        Returns:
            One reward per sequence to come, reward units, or an `EngineError`.

        Raises:
            EngineOverloadedError: If more tokens wait than the limit.
            EngineStoppedError: If the engine is closed.
        """
        return self._batcher.submit(work, expires_s)

    @property
    def identity(self) -> str:
        """What decides a score beside the text: model, revision, type of weights, tokenizer, template, head."""
        spec = self._loaded.spec
        return repr((spec.id, spec.revision, spec.dtype, self._loaded.text.identity, spec.head))

    def status(self) -> EngineStatus:
        """What can be said of the engine now."""
        spec, batcher = self._loaded.spec, self._batcher
        return EngineStatus(
            id=spec.id,
            kind=spec.kind,
            revision=spec.revision,
            dtype=spec.dtype,
            device=spec.device,
            n_bytes=self._loaded.n_bytes,
            max_tokens=self._loaded.max_tokens,
            reads_tries=self._loaded.reads_tries,
            queued_tokens=batcher.queued_tokens,
            n_batches=batcher.n_batches,
            silent_s=self._clock() - batcher.last_beat_s,
        )

    def close(self, timeout_s: float | None = None) -> None:
        """Finish the batch that is being run, fail what waits, and end the thread."""
        self._batcher.close(timeout_s)
