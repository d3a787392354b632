"""A reward model of this process that takes texts: tokens, limits, the queue, and what can be said of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import chain
from pathlib import Path

import numpy as np

from creditd.engines.batching import Answered, Batcher, answer_of
from creditd.engines.errors import EngineStoppedError
from creditd.engines.loading import LoadedReward, load_reward
from creditd.engines.model_spec import ModelSpec
from creditd.engines.protocol import (
    EngineStatus,
    EngineUsage,
    PreparedTexts,
    ScoredTexts,
    TextFailure,
    VariantTexts,
)
from creditd.engines.reward_scorers import Variants


class RewardEngine:
    """A loaded reward model and the thread that runs it: a `TextScorer`."""

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

    @property
    def spec(self) -> ModelSpec:
        """The model, as it was registered."""
        return self._loaded.spec

    @property
    def identity(self) -> str:
        """What decides a score beside the text: model, revision, type of weights, tokenizer, template, head."""
        spec = self._loaded.spec
        return repr((spec.id, spec.revision, spec.dtype, self._loaded.text.identity, spec.head))

    def prepared(self, texts: Sequence[VariantTexts]) -> PreparedTexts:
        """Texts as the model reads them; nothing is ever cut.

        Args:
            texts: Prompts with their completions.

        Returns:
            The work of all variants that fit, and why the others do not.

        Raises:
            ModelUnsuitableError: If a prompt has messages that the model cannot take.

        Cost:
            Tokenises each unit once wherever that is the same as tokenising each variant.
        """
        tokens = [self._loaded.text.variants(one) for one in texts]
        sequences = list(chain.from_iterable(one.sequences for one in tokens))
        spliced = np.concatenate([one.spliced for one in tokens]) if tokens else np.empty(0, dtype=np.bool_)
        failures = {
            place: failure for place, row in enumerate(sequences) if (failure := self._failure(len(row))) is not None
        }
        fitting = [place for place in range(len(sequences)) if place not in failures]
        work = Variants(tuple(sequences[place] for place in fitting)) if fitting else None
        usage = EngineUsage()
        if work is not None:
            usage = EngineUsage(
                evaluations=len(work.distinct[0]),
                tokens_computed=self._loaded.scorer.n_tokens(work),
                tokens_naive=work.n_naive,
                tokens_spliced=sum(len(sequences[place]) for place in fitting if spliced[place]),
            )
        return PreparedTexts(len(sequences), failures, usage, work)

    def submit(self, prepared: PreparedTexts, expires_s: float = float("inf")) -> Future[ScoredTexts]:
        """Ask for the rewards of prepared texts.

        Args:
            prepared: From `prepared`.
            expires_s: When nobody waits any more, on the clock.

        Returns:
            Rewards to come, or an `EngineError`. Cancelling it drops the work if it has not begun.

        Raises:
            EngineOverloadedError: If more tokens wait than the limit.
            EngineStoppedError: If the engine is closed, or its thread has ended.
        """
        if prepared.work is None:
            if not self._batcher.is_alive:
                raise EngineStoppedError("the engine is stopped")
            answer: Future[ScoredTexts] = Future()
            answer.set_result(_scored(prepared, None))
            return answer
        return answer_of(self._batcher.submit(prepared.work, expires_s), lambda answered: _scored(prepared, answered))

    def status(self) -> EngineStatus:
        """What can be said of the engine now."""
        loaded, batcher = self._loaded, self._batcher
        return EngineStatus(
            spec=loaded.spec,
            backend="local",
            n_bytes=loaded.n_bytes,
            max_tokens=loaded.max_tokens,
            reads_tries=loaded.reads_tries,
            attention=str(loaded.model.config._attn_implementation),  # noqa: SLF001 - transformers has no other name
            working_bytes=None,
            queued_tokens=batcher.queued_tokens,
            n_batches=batcher.n_batches,
            silent_s=self._clock() - batcher.last_beat_s if batcher.queued_tokens else 0.0,
            alive=batcher.is_alive,
        )

    def close(self, timeout_s: float | None = None) -> None:
        """Finish the batch that is being run, fail what waits, and end the thread."""
        self._batcher.close(timeout_s)

    def _failure(self, n_tokens: int) -> TextFailure | None:
        longest = self._loaded.max_tokens
        if 0 < n_tokens <= longest:
            return None
        detail = f"got {n_tokens} tokens with the prompt; the model reads 1 to {longest}, and nothing is cut"
        return TextFailure("context_exceeded", detail)


def _scored(prepared: PreparedTexts, answered: Answered | None) -> ScoredTexts:
    """The rewards of all variants, those without one named."""
    rewards, failures, usage = np.full(prepared.n_variants, np.nan), dict(prepared.failures), prepared.usage
    if answered is not None:
        fitting = [place for place in range(prepared.n_variants) if place not in failures]
        rewards[fitting] = answered.scores
        usage += EngineUsage(engine_s=answered.engine_s, queue_s=answered.queue_s)
        for place in np.flatnonzero(~np.isfinite(rewards)).tolist():
            rewards[place] = np.nan
            failures.setdefault(place, TextFailure("non_finite_utility", "the model's score is not a finite number"))
    return ScoredTexts(rewards, failures, usage)
