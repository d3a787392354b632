"""What the rest of creditd asks of a model, whatever runs it: texts go in, a number or the reason why not comes out.

Legend: `V` variants of all texts of a request, one after another.

A request prepares its texts once, on any thread, and submits what it prepared; the answer is one future.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.engines.model_spec import ModelSpec

Booleans: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
Prompt: TypeAlias = str | Sequence[Mapping[str, str]]
"""A text, or chat messages with `role` and `content`."""


@dataclass(frozen=True)
class VariantTexts:
    """A prompt and completions of it that are made of the same units.

    Attributes:
        prompt: What all variants answer.
        units: n texts, in the order in which they stand.
        coalitions: Shape (V, n), bool: a completion is the units of a row, one after another, with nothing between.
        adds_special_tokens: Whether the model's tokenizer adds its special tokens around a prompt that is a string;
            not, where the text has them written out. A template writes those of messages. What is said of such texts
            is not remembered: their keys would be those of others.
    """

    prompt: Prompt
    units: tuple[str, ...]
    coalitions: Booleans
    adds_special_tokens: bool = True

    @property
    def n_variants(self) -> int:
        """Number of completions V."""
        return len(self.coalitions)


@dataclass(frozen=True)
class EngineUsage:
    """What a request cost, or would cost.

    Attributes:
        evaluations: Different texts that the model scores.
        from_cache: Utilities that were remembered instead.
        tokens_computed: Tokens that go through the model; 0 before a remote model has said how many.
        tokens_naive: Tokens of all variants one by one.
        tokens_spliced: Those of `tokens_naive` in variants that were put together from the tokens of their units.
        engine_s: Seconds of the device, shared with others of a batch by tokens.
        queue_s: Seconds that the work waited.
    """

    evaluations: int = 0
    from_cache: int = 0
    tokens_computed: int = 0
    tokens_naive: int = 0
    tokens_spliced: int = 0
    engine_s: float = 0.0
    queue_s: float = 0.0

    def __add__(self, other: EngineUsage) -> EngineUsage:
        """The cost of both."""
        return EngineUsage(
            evaluations=self.evaluations + other.evaluations,
            from_cache=self.from_cache + other.from_cache,
            tokens_computed=self.tokens_computed + other.tokens_computed,
            tokens_naive=self.tokens_naive + other.tokens_naive,
            tokens_spliced=self.tokens_spliced + other.tokens_spliced,
            engine_s=self.engine_s + other.engine_s,
            queue_s=self.queue_s + other.queue_s,
        )


@dataclass(frozen=True)
class TextFailure:
    """Why one text has no number, while others have.

    Attributes:
        code: `context_exceeded` for what does not fit the model, `invalid_request` for messages that it cannot take,
            `non_finite_utility` for a score that is no finite number, `engine_failed` for what a remote model refused.
        detail: One sentence without any word of the text.
    """

    code: Literal["context_exceeded", "invalid_request", "non_finite_utility", "engine_failed"]
    detail: str


@dataclass(frozen=True)
class PreparedTexts:
    """Texts as an engine runs them.

    Attributes:
        n_variants: V.
        failures: Why a variant cannot be scored, by its place; the others are.
        usage: What they would cost, without seconds.
        work: The engine's own; None if nothing fits.
    """

    n_variants: int
    failures: Mapping[int, TextFailure]
    usage: EngineUsage
    work: Any


@dataclass(frozen=True)
class PreparedAttention(PreparedTexts):
    """Texts as an engine runs them for their attention; one variant each.

    Attributes:
        n_units: Units of each text.
    """

    n_units: tuple[int, ...]


@dataclass(frozen=True)
class ScoredTexts:
    """Rewards of texts.

    Attributes:
        rewards: Shape (V,), float64, reward units; NaN where there is none.
        failures: Why a variant has none, by its place.
        usage: What it cost.
    """

    rewards: Floats
    failures: Mapping[int, TextFailure] = field(default_factory=dict)
    usage: EngineUsage = field(default_factory=EngineUsage)


@dataclass(frozen=True)
class AttendedTexts:
    """How much a reward model looks at the units of texts where it reads their rewards.

    Attributes:
        weights: For each text shape (n,), float64, not negative: the attention that the last layer pays to the tokens
            of each unit from the position that the head reads, as the mean over its heads. The rest of 1 goes to the
            prompt, the template and special tokens. NaN where there is none.
        failures: Why a text has none, by its place.
        usage: What it cost.
    """

    weights: tuple[Floats, ...]
    failures: Mapping[int, TextFailure] = field(default_factory=dict)
    usage: EngineUsage = field(default_factory=EngineUsage)


@dataclass(frozen=True)
class EngineStatus:
    """What an engine says of itself.

    Attributes:
        spec: The model, as it was registered.
        backend: `local` for a model in this process, `remote` for one that another server runs, `fake` for none.
        n_bytes: Memory of its weights; None where it is not known.
        max_tokens: Longest sequence; None where it is not known.
        reads_tries: Whether distinct prefixes are computed once; None where it is not known.
        attention: What runs its attention; None where it is not known.
        working_bytes: Memory beside the weights, at most; None where it is not known.
        queued_tokens: Tokens that wait or are being run.
        n_batches: Batches that were run.
        silent_s: Seconds since the last sign of life while there is work; 0 when there is none.
        alive: Whether it can still answer.
        fingerprint: Digest of the files that it is loaded from; None where there are none.
        is_remembered: Whether its numbers may be remembered.
    """

    spec: ModelSpec
    backend: Literal["local", "remote", "fake"]
    n_bytes: int | None
    max_tokens: int | None
    reads_tries: bool | None
    attention: str | None
    working_bytes: int | None
    queued_tokens: int
    n_batches: int
    silent_s: float
    alive: bool
    fingerprint: str | None = None
    is_remembered: bool = False


class Engine(Protocol):
    """What every engine has."""

    @property
    def spec(self) -> ModelSpec:
        """The model, as it was registered."""

    @property
    def identity(self) -> str:
        """Everything that decides its numbers beside the texts, up to rounding; the same in every process."""

    @property
    def numerics(self) -> str:
        """What decides their last bits beside `identity`: the machine, the libraries, sizes of passes."""

    @property
    def is_remembered(self) -> bool:
        """Whether its numbers may be remembered: equal texts under an equal `identity` have equal ones."""

    def status(self) -> EngineStatus:
        """What can be said of it now."""

    def close(self, timeout_s: float | None = None) -> None:
        """Finish what is being run, fail what waits, and let go of what is held."""


class TextScorer(Engine, Protocol):
    """A reward model that takes texts."""

    def prepared(
        self, texts: Sequence[VariantTexts], *, alone: bool = False, checkpoint: Callable[[], None] = lambda: None
    ) -> PreparedTexts:
        """Texts as the model reads them; may take a while, and may be called from any thread.

        Args:
            texts: Prompts with their completions.
            alone: Whether each prompt is run by itself, so that no other changes a bit of its rewards.
            checkpoint: Called now and then; what it raises ends the work.
        """

    def submit(self, prepared: PreparedTexts, expires_s: float = float("inf")) -> Future[ScoredTexts]:
        """Ask for the rewards of prepared texts.

        Args:
            prepared: From `prepared`.
            expires_s: When nobody waits any more, on the engine's monotonic clock.

        Returns:
            Rewards to come, or an `EngineError`. Cancelling it drops the work if it has not begun.

        Raises:
            EngineOverloadedError: If more waits than the engine takes.
            EngineStoppedError: If the engine is closed, or cannot answer any more.
        """

    def prepared_attention(
        self, texts: Sequence[VariantTexts], *, alone: bool = False, checkpoint: Callable[[], None] = lambda: None
    ) -> PreparedAttention:
        """Texts as the model reads them for its attention; as `prepared`.

        Args:
            texts: Prompts with one completion each: one coalition, in which units that are not there have no weight.
            alone: Whether each text is run by itself, so that no other changes a bit of its weights.
            checkpoint: Called now and then; what it raises ends the work.

        Raises:
            ModelUnsuitableError: If the attention of this model cannot be told; the message says why.
            ValueError: If a text has other than one coalition.
        """

    def attention(self, prepared: PreparedAttention, expires_s: float = float("inf")) -> Future[AttendedTexts]:
        """Ask for the attention to the units of prepared texts.

        Args:
            prepared: From `prepared_attention`.
            expires_s: When nobody waits any more, on the engine's monotonic clock.

        Returns:
            Weights to come, or an `EngineError`, in the one queue of the engine; else as `submit`.

        Raises:
            EngineOverloadedError: As `submit`.
            EngineStoppedError: As `submit`.
        """

    def token_text(self, token_id: int) -> str:
        """The text that the tokenizer reads as exactly one token, whatever stands around it: that of a special token.

        Args:
            token_id: Its number in the tokenizer's vocabulary.

        Raises:
            ModelUnsuitableError: If there is no such text, or no such token, or the tokenizer is not here.
        """


class TextEmbedder(Engine, Protocol):
    """A model that gives a vector for a text."""

    def prepared(self, texts: Sequence[str]) -> PreparedTexts:
        """Texts as the model reads them; may be called from any thread."""

    def submit(self, prepared: PreparedTexts, expires_s: float = float("inf")) -> Future[EmbeddedTexts]:
        """Ask for the vectors of prepared texts; as `TextScorer.submit`."""


@dataclass(frozen=True)
class EmbeddedTexts:
    """Vectors of texts.

    Attributes:
        vectors: Shape (V, H), float64, of length 1 each; NaN where there is none.
        failures: Why a text has none, by its place.
        usage: What it cost.
    """

    vectors: Floats
    failures: Mapping[int, TextFailure] = field(default_factory=dict)
    usage: EngineUsage = field(default_factory=EngineUsage)
