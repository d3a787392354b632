"""A reward model without a model: scores that are a known function of the text, at a known cost.

For tests and for trying out what stands around an engine, without torch. Nothing in the service chooses it by itself.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np
from numpy.typing import NDArray

from creditd.engines.batching import Batcher
from creditd.engines.delivery import scored, submitted
from creditd.engines.model_spec import ModelSpec
from creditd.engines.protocol import (
    EngineStatus,
    EngineUsage,
    PreparedTexts,
    Prompt,
    ScoredTexts,
    TextFailure,
    VariantTexts,
)


class FakeEngine:
    """A `TextScorer` whose scores are a function that is given; a character is a token.

    Attributes:
        batches: Texts of each batch that was run.
    """

    def __init__(
        self,
        score: Callable[[Prompt, str], float],
        spec: ModelSpec,
        *,
        per_batch_s: float = 0.0,
        per_token_s: float = 0.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Start the thread.

        Args:
            score: Reward of a completion of a prompt.
            spec: What it is called, and its limits.
            per_batch_s: What a batch costs.
            per_token_s: What a token costs beside.
            sleep: Spends the cost.
        """
        self._score, self._spec, self._sleep = score, spec, sleep
        self._per_batch_s, self._per_token_s = per_batch_s, per_token_s
        self.batches: list[int] = []
        self._batcher = Batcher[tuple[tuple[Prompt, str], ...]](
            self, batch_tokens=spec.batch_tokens, max_queued_tokens=spec.max_queued_tokens, name="creditd-engine-fake"
        )

    @property
    def spec(self) -> ModelSpec:
        """What it is called, and its limits."""
        return self._spec

    @property
    def identity(self) -> str:
        """The function's name, which is the same in every process; two functions of one name are one to it."""
        score = self._score
        kind = type(score)
        module = getattr(score, "__module__", None) or kind.__module__
        name = getattr(score, "__qualname__", kind.__qualname__)
        return repr((self._spec.id, self._spec.revision, self._spec.max_tokens, module, name))

    @property
    def numerics(self) -> str:
        """Nothing decides last bits but the function."""
        return "fake"

    @property
    def is_remembered(self) -> bool:
        """Unless it is registered otherwise."""
        return self._spec.is_remembered()

    def n_tokens(self, work: tuple[tuple[Prompt, str], ...]) -> int:
        """Characters."""
        return sum(len(str(prompt)) + len(text) for prompt, text in work)

    def score(
        self, works: Sequence[tuple[tuple[Prompt, str], ...]], beat: Callable[[], None]
    ) -> list[NDArray[np.float64]]:
        """The function's values, once the time of the batch has passed."""
        beat()
        self.batches.append(sum(map(len, works)))
        self._sleep(self._per_batch_s + self._per_token_s * sum(map(self.n_tokens, works)))
        return [np.array([self._score(*pair) for pair in work], dtype=np.float64) for work in works]

    def prepared(
        self, texts: Sequence[VariantTexts], *, alone: bool = False, checkpoint: Callable[[], None] = lambda: None
    ) -> PreparedTexts:
        """Texts as pairs of prompt and completion."""
        del alone  # one text changes no bit of another
        checkpoint()
        pairs = [
            (one.prompt, "".join(itertools.compress(one.units, row)))
            for one in texts
            for row in one.coalitions.tolist()
        ]
        longest = self._spec.max_tokens
        failures = {
            place: TextFailure("context_exceeded", f"got {self.n_tokens((pair,))} tokens; expected at most {longest}")
            for place, pair in enumerate(pairs)
            if longest is not None and self.n_tokens((pair,)) > longest
        }
        work = tuple(pair for place, pair in enumerate(pairs) if place not in failures)
        tokens = self.n_tokens(work)
        usage = EngineUsage(evaluations=len(set(map(repr, work))), tokens_computed=tokens, tokens_naive=tokens)
        return PreparedTexts(len(pairs), failures, usage, work or None)

    def submit(self, prepared: PreparedTexts, expires_s: float = float("inf")) -> Future[ScoredTexts]:
        """Ask for the values; as `TextScorer.submit`."""
        return submitted(prepared, [prepared.work], self._batcher, expires_s, partial(scored, prepared))

    def status(self) -> EngineStatus:
        """What can be said of it now."""
        batcher = self._batcher
        return EngineStatus(
            spec=self._spec,
            backend="fake",
            n_bytes=None,
            max_tokens=self._spec.max_tokens,
            reads_tries=None,
            attention=None,
            working_bytes=None,
            queued_tokens=batcher.queued_tokens,
            n_batches=batcher.n_batches,
            silent_s=time.monotonic() - batcher.last_beat_s if batcher.queued_tokens else 0.0,
            alive=batcher.is_alive,
            is_remembered=self.is_remembered,
        )

    def close(self, timeout_s: float | None = None) -> None:
        """End the thread."""
        self._batcher.close(timeout_s)
