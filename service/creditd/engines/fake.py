"""A reward model without a model: scores that are a known function of the text, at a known cost.

For tests and for trying out what stands around an engine, without torch. Nothing in the service chooses it by itself.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.engines.batching import Batcher
from creditd.engines.delivery import attended, scored, submitted
from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.model_spec import ModelSpec
from creditd.engines.protocol import (
    AttendedTexts,
    EngineStatus,
    EngineUsage,
    PreparedAttention,
    PreparedTexts,
    Prompt,
    ScoredTexts,
    TextFailure,
    VariantTexts,
)

Attention: TypeAlias = Callable[[Prompt, tuple[str, ...]], Sequence[float]]
"""Weights of the units of a completion of a prompt."""


@dataclass(frozen=True)
class _Work:
    """Pairs of prompt and completion; with their units where it is their attention that is asked for."""

    pairs: tuple[tuple[Prompt, str], ...]
    units: tuple[tuple[str, ...], ...] | None = None


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
        attention: Attention | None = None,
    ) -> None:
        """Start the thread.

        Args:
            score: Reward of a completion of a prompt.
            spec: What it is called, and its limits.
            per_batch_s: What a batch costs.
            per_token_s: What a token costs beside.
            sleep: Spends the cost.
            attention: Weights of the units of a completion of a prompt. None: it has no attention.
        """
        self._attention = attention
        self._score, self._spec, self._sleep = score, spec, sleep
        self._per_batch_s, self._per_token_s = per_batch_s, per_token_s
        self.batches: list[int] = []
        self._batcher = Batcher[_Work](
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

    def n_tokens(self, work: _Work) -> int:
        """Characters."""
        return sum(map(_length, work.pairs))

    def score(self, works: Sequence[_Work], beat: Callable[[], None]) -> list[NDArray[np.float64]]:
        """The functions' values, once the time of the batch has passed."""
        beat()
        self.batches.append(sum(len(work.pairs) for work in works))
        self._sleep(self._per_batch_s + self._per_token_s * sum(map(self.n_tokens, works)))
        return [np.array(self._values(work), dtype=np.float64) for work in works]

    def _values(self, work: _Work) -> list[float]:
        if work.units is None or self._attention is None:
            return [self._score(*pair) for pair in work.pairs]
        asked = zip(work.pairs, work.units, strict=True)
        return [weight for (prompt, _), units in asked for weight in self._attention(prompt, units)]

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
            place: TextFailure("context_exceeded", f"got {_length(pair)} tokens; expected at most {longest}")
            for place, pair in enumerate(pairs)
            if longest is not None and _length(pair) > longest
        }
        work = _Work(tuple(pair for place, pair in enumerate(pairs) if place not in failures))
        tokens = self.n_tokens(work)
        usage = EngineUsage(evaluations=len(set(map(repr, work.pairs))), tokens_computed=tokens, tokens_naive=tokens)
        return PreparedTexts(len(pairs), failures, usage, work if work.pairs else None)

    def submit(self, prepared: PreparedTexts, expires_s: float = float("inf")) -> Future[ScoredTexts]:
        """Ask for the values; as `TextScorer.submit`."""
        return submitted(prepared, [prepared.work], self._batcher, expires_s, partial(scored, prepared))

    def prepared_attention(
        self, texts: Sequence[VariantTexts], *, alone: bool = False, checkpoint: Callable[[], None] = lambda: None
    ) -> PreparedAttention:
        """Texts with their units; as `TextScorer.prepared_attention`."""
        if self._attention is None:
            raise ModelUnsuitableError("this model has no attention; expected one that is made with a function for it")
        if any(one.n_variants != 1 for one in texts):
            raise ValueError("attention is asked of one completion for each text: got other numbers of coalitions")
        found = self.prepared(texts, alone=alone, checkpoint=checkpoint)
        units = tuple(one.units for place, one in enumerate(texts) if place not in found.failures)
        work = None if found.work is None else _Work(found.work.pairs, units)
        return PreparedAttention(
            found.n_variants, found.failures, found.usage, work, n_units=tuple(len(one.units) for one in texts)
        )

    def attention(self, prepared: PreparedAttention, expires_s: float = float("inf")) -> Future[AttendedTexts]:
        """Ask for the weights; as `TextScorer.attention`."""
        return submitted(prepared, [prepared.work], self._batcher, expires_s, partial(attended, prepared))

    def token_text(self, token_id: int) -> str:
        """The character of a code point."""
        if 0 <= token_id <= sys.maxunicode and chr(token_id).encode(errors="ignore"):
            return chr(token_id)
        raise ModelUnsuitableError(f"got token {token_id}; expected the code point of a character")

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


def _length(pair: tuple[Prompt, str]) -> int:
    return len(str(pair[0])) + len(pair[1])
