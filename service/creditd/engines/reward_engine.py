"""A reward model of this process that takes texts: tokens, limits, the queue, and what can be said of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import chain, compress
from pathlib import Path
from typing import TypeAlias

import numpy as np
import transformers
from numpy.typing import NDArray

from creditd.engines.coalition_tokens import CoalitionTokens
from creditd.engines.delivery import attended, scored, submitted
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
from creditd.engines.reward_scorers import Variants, read_part, sliced
from creditd.engines.reward_work import RewardWork, UnitTokens, WorkScorer
from creditd.engines.unit_tokens import units_of_tokens
from creditd.engines.work_queue import Answered

Integers: TypeAlias = NDArray[np.int64]


SLICE_BATCHES = 4
"""Batches of tokens that one request has in a row before others have their turn."""


class RewardEngine(LocalEngine[LoadedReward, RewardWork]):
    """A loaded reward model and the thread that runs it: a `TextScorer`."""

    def __init__(self, loaded: LoadedReward, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the thread.

        Args:
            loaded: The model.
            clock: Monotonic seconds.
        """
        self._scorer = WorkScorer(loaded.scorer, loaded.attended)
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
        usage = replace(self._usage_of(work), tokens_spliced=n_spliced)
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
        return submitted(prepared, _slices(prepared), self._batcher, expires_s, partial(_scored, prepared))

    def prepared_attention(
        self, texts: Sequence[VariantTexts], *, alone: bool = False, checkpoint: Callable[[], None] = lambda: None
    ) -> PreparedAttention:
        """Texts as the model reads them for its attention; as `TextScorer.prepared_attention`.

        A token that two units share counts for the one that has most of its characters. A causal model is looked at
        where it reads its reward, at the last token; an encoder at the first one, which its head reads.

        Args:
            texts: Prompts with one completion each.
            alone: Whether each text is run by itself, so that no other changes a bit of its weights.
            checkpoint: Called before each text; what it raises ends the work.

        Raises:
            ModelUnsuitableError: If the attention of this model cannot be told.
            ValueError: If a text has other than one coalition.

        Cost:
            Tokenises each text once. To be run, as much as the reward of each text; of the table of positions by
            positions, which is never made but where the model's own attention makes it, one row.
        """
        if isinstance(self._loaded.attended, ModelUnsuitableError):
            raise ModelUnsuitableError(str(self._loaded.attended))
        if any(one.n_variants != 1 for one in texts):
            raise ValueError("attention is asked of one completion for each text: got other numbers of coalitions")
        failures: dict[int, TextFailure] = {}
        sequences: list[Integers] = []
        units: list[UnitTokens] = []
        for place, one in enumerate(texts):
            checkpoint()
            found = self._read(one)
            if isinstance(found, TextFailure):
                failures[place] = found
            else:
                sequences.append(found[0])
                units.append(found[1])
        work = self._work_of([[sequence] for sequence in sequences] if alone else [sequences], alone=alone)
        work = replace(work, units=tuple(units[place] for place in work.places.tolist()))
        return PreparedAttention(
            len(texts),
            failures,
            self._usage_of(work),
            work if work.parts else None,
            n_units=tuple(len(one.units) for one in texts),
        )

    def attention(self, prepared: PreparedAttention, expires_s: float = float("inf")) -> Future[AttendedTexts]:
        """Ask for the attention to units; as `TextScorer.attention`.

        Args:
            prepared: From `prepared_attention`.
            expires_s: When nobody waits any more, on the clock.

        Returns:
            Weights to come, or an `EngineError`. Cancelling it drops the work if it has not begun.

        Raises:
            EngineOverloadedError: If more tokens wait than the limit.
            EngineStoppedError: If the engine is closed, or its thread has ended.
        """
        return submitted(prepared, _slices(prepared), self._batcher, expires_s, partial(_attended, prepared))

    def token_text(self, token_id: int) -> str:
        """The text that the tokenizer reads as exactly one token; as `TextScorer.token_text`.

        Args:
            token_id: Its number.

        Raises:
            ModelUnsuitableError: If there is no such text or token, or the model has no embedding for it.

        Cost:
            Tokenises some texts of a few letters.
        """
        text = self._loaded.text.token_text(token_id)
        if token_id >= self._loaded.n_embeddings:
            most = self._loaded.n_embeddings - 1
            raise ModelUnsuitableError(f"the model has no embedding for token {token_id}; expected one of 0 to {most}")
        return text

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

    def _usage_of(self, work: RewardWork) -> EngineUsage:
        return EngineUsage(
            evaluations=sum(len(part.distinct[0]) for part in work.parts),
            tokens_computed=self._scorer.n_tokens(work),
            tokens_naive=sum(part.n_naive for part in work.parts),
        )

    def _read(self, one: VariantTexts) -> tuple[Integers, UnitTokens] | TextFailure:
        """The tokens of a completion with its prompt, and the unit of each."""
        lengths = [len(unit) * bool(there) for unit, there in zip(one.units, one.coalitions[0], strict=True)]
        try:
            read = self._loaded.text.read(one.prompt, "".join(compress(one.units, one.coalitions[0].tolist())))
        except ModelUnsuitableError as error:
            return TextFailure("invalid_request", str(error))
        failure = self._failure(read.tokens)
        if failure is not None:
            return failure
        units = units_of_tokens(read.offsets, read.places, lengths)
        return read_part(read.tokens, self._loaded.pad_id), UnitTokens(units, len(lengths))

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


def _slices(prepared: PreparedTexts) -> list[RewardWork]:
    return prepared.work.slices if isinstance(prepared.work, RewardWork) else []


def _in_order(prepared: PreparedTexts, answered: Answered | None) -> Answered | None:
    """What was answered, in the order of the texts and not in that of the slices."""
    return None if answered is None else replace(answered, scores=prepared.work.in_order(answered.scores))


def _scored(prepared: PreparedTexts, answered: Answered | None) -> ScoredTexts:
    return scored(prepared, _in_order(prepared, answered))


def _attended(prepared: PreparedAttention, answered: Answered | None) -> AttendedTexts:
    return attended(prepared, _in_order(prepared, answered))
