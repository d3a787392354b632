"""An embedding model of this process that takes texts: tokens, limits, the queue, and what can be said of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import numpy as np
import transformers

from creditd.engines.delivery import submitted
from creditd.engines.embedding_loading import LoadedEmbedding, load_embedding
from creditd.engines.local_engine import LocalEngine
from creditd.engines.model_spec import ModelSpec
from creditd.engines.protocol import EmbeddedTexts, EngineUsage, PreparedTexts, TextFailure
from creditd.engines.reward_scorers import Variants
from creditd.engines.work_queue import Answered


class EmbeddingEngine(LocalEngine[LoadedEmbedding, Variants]):
    """A loaded embedding model and the thread that runs it: a `TextEmbedder`.

    Texts are read as they are: no prompt or instruction stands before them, also where the files of the model name one
    for queries. Candidates and targets of a request are texts of one kind, and are compared as such.
    """

    def __init__(self, loaded: LoadedEmbedding, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the thread.

        Args:
            loaded: The model.
            clock: Monotonic seconds.
        """
        super().__init__(loaded, loaded.scorer, clock)

    @classmethod
    def load(cls, spec: ModelSpec, root: Path) -> EmbeddingEngine:
        """The engine of a registered model.

        Args:
            spec: The model.
            root: Directory that all models are in.

        Raises:
            ModelUnsuitableError: If it cannot serve.

        Cost:
            Reading the weights, and some tokens.
        """
        return cls(load_embedding(spec, root))

    @property
    def identity(self) -> str:
        """What decides a vector beside the text: weights and their type, code, tokenizer, pooling, length, revision."""
        spec = self._loaded.spec
        files = (self._loaded.fingerprint, transformers.__version__, self._loaded.text.identity)
        return repr((*files, spec.revision, spec.dtype, spec.attention, self._loaded.pooling, self._loaded.max_tokens))

    def prepared(self, texts: Sequence[str]) -> PreparedTexts:
        """Texts as the model reads them; nothing is ever cut.

        Args:
            texts: V texts; those that are equal are computed once.

        Returns:
            The work of all texts that fit, and why the others do not.

        Cost:
            Tokenises each different text once.
        """
        numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        tokens = self._loaded.text.tokens(list(numbers))
        sequences = [tokens[numbers[text]] for text in texts]
        failures = {
            place: failure for place, row in enumerate(sequences) if (failure := self._failure(len(row))) is not None
        }
        fitting = tuple(row for place, row in enumerate(sequences) if place not in failures)
        if not fitting:
            return PreparedTexts(len(sequences), failures, EngineUsage(), None)
        work = Variants(fitting)
        usage = EngineUsage(
            evaluations=len(work.distinct[0]),
            tokens_computed=self._loaded.scorer.n_tokens(work),
            tokens_naive=work.n_naive,
        )
        return PreparedTexts(len(sequences), failures, usage, work)

    def submit(self, prepared: PreparedTexts, expires_s: float = float("inf")) -> Future[EmbeddedTexts]:
        """Ask for the vectors of prepared texts.

        Args:
            prepared: From `prepared`.
            expires_s: When nobody waits any more, on the clock.

        Returns:
            Vectors to come, or an `EngineError`. Cancelling it drops the work if it has not begun.

        Raises:
            EngineOverloadedError: If more tokens wait than the limit.
            EngineStoppedError: If the engine is closed, or its thread has ended.
        """
        return submitted(prepared, [prepared.work], self._batcher, expires_s, partial(self._embedded, prepared))

    def _failure(self, n_tokens: int) -> TextFailure | None:
        longest = self._loaded.max_tokens
        if 0 < n_tokens <= longest:
            return None
        detail = f"got {n_tokens} tokens; the model reads 1 to {longest}, and nothing is cut"
        return TextFailure("context_exceeded", detail)

    def _embedded(self, prepared: PreparedTexts, answered: Answered | None) -> EmbeddedTexts:
        """The vectors of all texts, those without one named."""
        vectors = np.full((prepared.n_variants, self._loaded.n_dimensions), np.nan)
        failures, usage = dict(prepared.failures), prepared.usage
        if answered is not None:
            fitting = [place for place in range(prepared.n_variants) if place not in failures]
            vectors[fitting] = answered.scores
            usage += EngineUsage(engine_s=answered.engine_s, queue_s=answered.queue_s)
            for place in np.flatnonzero(np.isnan(vectors[:, 0])).tolist():
                detail = "the model's states have no direction: they are zero, or no finite numbers"
                failures.setdefault(place, TextFailure("non_finite_utility", detail))
        return EmbeddedTexts(vectors, failures, usage)
