"""A reward model of this process that takes texts: tokens, limits, the queue, and what can be said of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
import transformers
from numpy.typing import NDArray

from creditd.engines.batching import Answered
from creditd.engines.coalition_tokens import CoalitionTokens
from creditd.engines.delivery import scored, submitted
from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.loading import LoadedReward, load_reward
from creditd.engines.local_engine import LocalEngine
from creditd.engines.model_spec import ModelSpec
from creditd.engines.protocol import (
    AttendedTexts,
    EngineUsage,
    PreparedAttention,
    PreparedTexts,
    ScoredTexts,
    TextFailure,
    VariantTexts,
)
from creditd.engines.reward_scorers import LengthScorer, TrieScorer, Variants, read_part, sliced

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


SLICE_BATCHES = 4
"""Batches of tokens that one request has in a row before others have their turn."""


@dataclass(frozen=True)
class RewardWork:
    """What one request asks of a model.

    Attributes:
        parts: Token sequences, of which one part is run at a time; of one part all that can be shared is.
        places: Shape (V,), int64: which sequence each one of the parts is, part after part.
        alone: Whether each part is run by itself.
    """

    parts: tuple[Variants, ...]
    places: Integers
    alone: bool

    @property
    def slices(self) -> list[RewardWork]:
        """The parts as works of their own."""
        return [RewardWork((part,), np.arange(len(part.sequences)), self.alone) for part in self.parts]


class _WorkScorer:
    """A model as the batcher sees it: works that may share a batch do."""

    def __init__(self, scorer: TrieScorer | LengthScorer) -> None:
        self._scorer = scorer

    def n_tokens(self, work: RewardWork) -> int:
        """Tokens that go through the model."""
        return sum(self._scorer.n_tokens(part) for part in work.parts)

    def score(self, works: Sequence[RewardWork], beat: Callable[[], None]) -> list[Floats]:
        """One array of rewards per work, part after part."""
        shared = [part for work in works if not work.alone for part in work.parts]
        found = iter(self._scorer.score(shared, beat) if shared else ())
        return [
            np.concatenate([self._scorer.score([part], beat)[0] if work.alone else next(found) for part in work.parts])
            for work in works
        ]


class RewardEngine(LocalEngine[LoadedReward, RewardWork]):
    """A loaded reward model and the thread that runs it: a `TextScorer`."""

    def __init__(self, loaded: LoadedReward, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the thread.

        Args:
            loaded: The model.
            clock: Monotonic seconds.
        """
        self._scorer = _WorkScorer(loaded.scorer)
        super().__init__(loaded, self._scorer, clock)

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
    def identity(self) -> str:
        """What decides a score beside the text: weights and their type, code, tokenizer, template, head, length."""
        spec = self._loaded.spec
        files = (self._loaded.fingerprint, transformers.__version__, self._loaded.text.identity)
        return repr((*files, spec.revision, spec.dtype, spec.attention, spec.head, self._loaded.max_tokens))

    def prepared(
        self, texts: Sequence[VariantTexts], *, alone: bool = False, checkpoint: Callable[[], None] = lambda: None
    ) -> PreparedTexts:
        """Texts as the model reads them; nothing is ever cut.

        Args:
            texts: Prompts with their completions.
            alone: Whether each prompt is run by itself, so that no other changes a bit of its rewards.
            checkpoint: Called now and then; what it raises ends the work.

        Returns:
            The work of all variants that fit, and why the others do not.

        Cost:
            Tokenises each unit once wherever that is the same as tokenising each variant.
        """
        found = [self._tokens_of(one, checkpoint) for one in texts]
        failures: dict[int, TextFailure] = {}
        parts: list[list[Integers]] = []
        n_variants = n_spliced = 0
        for one, tokens in zip(texts, found, strict=True):
            kept: list[Integers] = []
            for row in range(one.n_variants):
                if isinstance(tokens, TextFailure):
                    failures[n_variants + row] = tokens
                    continue
                sequence = tokens.sequences[row]
                failure = self._failure(sequence)
                if failure is not None:
                    failures[n_variants + row] = failure
                    continue
                kept.append(read_part(sequence, self._loaded.pad_id))
                n_spliced += len(kept[-1]) * bool(tokens.spliced[row])
            n_variants += one.n_variants
            parts.append(kept)
        work = self._work_of(parts, alone=alone)
        usage = EngineUsage(
            evaluations=sum(len(part.distinct[0]) for part in work.parts),
            tokens_computed=self._scorer.n_tokens(work),
            tokens_naive=sum(part.n_naive for part in work.parts),
            tokens_spliced=n_spliced,
        )
        return PreparedTexts(n_variants, failures, usage, work if work.parts else None)

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
        work = prepared.work
        slices = work.slices if isinstance(work, RewardWork) else ()
        return submitted(prepared, slices, self._batcher, expires_s, partial(_scored, prepared))

    def prepared_attention(
        self, texts: Sequence[VariantTexts], *, alone: bool = False, checkpoint: Callable[[], None] = lambda: None
    ) -> PreparedAttention:
        """Refused: its attention is not read."""
        del texts, alone, checkpoint
        raise ModelUnsuitableError("the attention of this model is not read; expected another credit")

    def attention(self, prepared: PreparedAttention, expires_s: float = float("inf")) -> Future[AttendedTexts]:
        """Refused: nothing can have been prepared for it."""
        del prepared, expires_s
        raise ModelUnsuitableError("the attention of this model is not read; expected another credit")

    def token_text(self, token_id: int) -> str:
        """The text that the tokenizer reads as exactly one token; as `TextScorer.token_text`."""
        return self._loaded.text.token_text(token_id)

    def _work_of(self, parts: list[list[Integers]], *, alone: bool) -> RewardWork:
        """Sequences of each prompt as work: prompts by themselves, or all together in slices."""
        if alone:
            found = [Variants(tuple(part)) for part in parts if part]
            return RewardWork(tuple(found), np.arange(sum(map(len, parts))), alone)
        together = tuple(chain.from_iterable(parts))
        if not together:
            return RewardWork((), np.arange(0), alone)
        most = SLICE_BATCHES * self._loaded.spec.batch_tokens
        slices, places = sliced(self._loaded.scorer, Variants(together), most)
        return RewardWork(tuple(slices), places, alone)

    def _tokens_of(self, texts: VariantTexts, checkpoint: Callable[[], None]) -> CoalitionTokens | TextFailure:
        checkpoint()
        try:
            return self._loaded.text.variants(texts, checkpoint)
        except ModelUnsuitableError as error:
            return TextFailure("invalid_request", str(error))

    def _failure(self, sequence: Integers) -> TextFailure | None:
        longest = self._loaded.max_tokens
        if len(sequence) > longest:
            detail = (
                f"got {len(sequence)} tokens with the prompt; the model reads at most {longest}, and nothing is cut"
            )
            return TextFailure("context_exceeded", detail)
        if not len(sequence):
            return TextFailure("invalid_request", "prompt and text have no token together; expected at least one")
        if int(sequence.max()) >= self._loaded.n_embeddings:
            detail = "the text has a token of the tokenizer that the model has no embedding for"
            return TextFailure("invalid_request", detail)
        return None


def _scored(prepared: PreparedTexts, answered: Answered | None) -> ScoredTexts:
    """The rewards of all variants, in their order and not in that of the slices."""
    if answered is None:
        return scored(prepared, None)
    scores = np.empty(len(answered.scores))
    scores[prepared.work.places] = answered.scores
    return scored(prepared, replace(answered, scores=scores))
