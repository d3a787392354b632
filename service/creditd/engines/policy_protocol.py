"""What creditd asks of a policy: how much its answer depends on each token of its reasoning, for its current weights.

Legend: `P` tokens of a prompt, `T` of a completion, `R` of them measured.

A request prepares its items once, on any thread, and submits what it prepared; the answer is one future, all of whose
numbers come from one version of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.engines.protocol import Engine, EngineUsage, TextFailure
from creditd.engines.weight_files import StagedWeights, SwapReport

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
SensitivityMethod: TypeAlias = Literal["perturbation", "gradient"]
"""OAR-P, one changed token at a time; OAR-G, a gradient at noisy embeddings."""
ProbeName: TypeAlias = Literal["last", "answer_mean", "answer_joint"]
"""What of the answer is looked at."""


@dataclass(frozen=True)
class ReasonedTokens:
    """A completion whose reasoning is measured against its answer.

    Attributes:
        prompt_ids: Shape (P,), int64: token ids of the prompt as the policy read it; P ≥ 1 where the answer or a
            measured token is the first of the completion.
        completion_ids: Shape (T,), int64: token ids of the completion.
        positions: Shape (R,), int64, ascending: places in the completion that are measured, all before the answer.
        answer: The tokens of the answer in the completion, half-open, not empty.
    """

    prompt_ids: Integers
    completion_ids: Integers
    positions: Integers
    answer: tuple[int, int]


@dataclass(frozen=True)
class SensitivityOptions:
    """How sensitivities are measured.

    Attributes:
        method: By perturbed tokens or by the gradient.
        probe: What of the answer is looked at.
        perturbation_id: The token that stands in for a measured one. None: the tokenizer's padding token, which is
            refused where there is none and where it is the end of the text as well.
        noise_std: Standard deviation of the noise on embeddings, above 0; for the gradient.
        noise_samples: Draws of it, at least 1; for the gradient.
        seed: Of the noise, 0 ≤ seed < 2⁶⁴; for the gradient.
    """

    method: SensitivityMethod
    probe: ProbeName = "answer_mean"
    perturbation_id: int | None = None
    noise_std: float = 1e-3
    noise_samples: int = 1
    seed: int = 0


@dataclass(frozen=True)
class WeightPin:
    """Which weights an answer has to be of.

    Attributes:
        version: Their version. None: whatever is current when the work is run.
        if_not_ready: What to do while another version is current: wait until the deadline, or fail at once.
    """

    version: str | None = None
    if_not_ready: Literal["wait", "fail"] = "wait"


@dataclass(frozen=True)
class WeightState:
    """What a policy says of its weights.

    Attributes:
        current: The version that answers are of.
        announced: Versions that somebody said will come, oldest first.
        n_swaps: How often weights were replaced.
        past: Versions that were current once, as far as they are remembered.
        last_swap_s: Seconds that the last swap took; None before the first.
    """

    current: str
    announced: tuple[str, ...] = ()
    n_swaps: int = 0
    past: frozenset[str] = frozenset()
    last_swap_s: float | None = None

    def seen(self, version: str) -> bool:
        """Whether a version is current, or was and is remembered."""
        return version == self.current or version in self.past


@dataclass(frozen=True)
class PreparedSensitivities:
    """Items as a policy runs them.

    Attributes:
        n_items: How many were asked.
        failures: Why an item cannot be measured, by its place; the others are.
        usage: What they would cost, without seconds.
        work: The engine's own; None if nothing is left to run.
    """

    n_items: int
    failures: Mapping[int, TextFailure]
    usage: EngineUsage
    work: Any


@dataclass(frozen=True)
class MeasuredTokens:
    """Sensitivities of items.

    Attributes:
        sensitivities: For each item shape (R,), float64, nats: of each measured position in its order; signed for
            `answer_joint` by perturbation, else not negative but for rounding. NaN where there is none.
        spreads: For each item the standard error over draws as a share of the mean; None for one draw, by
            perturbation, and where there is none.
        weight_version: The weights that all of them are of.
        failures: Why an item has none, by its place.
        usage: What it cost.
    """

    sensitivities: tuple[Floats, ...]
    spreads: tuple[float | None, ...]
    weight_version: str
    failures: Mapping[int, TextFailure] = field(default_factory=dict)
    usage: EngineUsage = field(default_factory=EngineUsage)


class SensitivityMeasurer(Engine, Protocol):
    """A policy that tells how much its answers depend on the tokens before them."""

    @property
    def weight_version(self) -> str:
        """The version of its current weights; before any swap the digest of the files that it was loaded from."""

    def weight_state(self) -> WeightState:
        """What can be said of its weights now."""

    def announce_weights(self, version: str) -> None:
        """Say that weights of a version will come, so that work that is pinned to it waits."""

    def replace_weights(self, staged: StagedWeights) -> Future[SwapReport]:
        """Have weights verified, and taken between two works if they fit.

        Args:
            staged: The weights; what is spooled of them is removed in the end.

        Returns:
            Their outcome, which cancelling does not change: a report, or an `EngineError`, above all
            `WeightsRefusedError` and `WeightVersionMismatchError`.
        """

    def completion_text(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """The text of a completion, and the characters of each of its tokens.

        Args:
            ids: T token ids.

        Returns:
            The text, and for each token the characters that it adds, half-open and in order; a token that ends inside
            a character has it with the token that completes it.

        Raises:
            ValueError: If a token is not in the vocabulary.

        Cost:
            One incremental decode; may be called from any thread.
        """

    def prepared_sensitivities(
        self,
        items: Sequence[ReasonedTokens],
        options: SensitivityOptions,
        *,
        alone: bool = False,
        checkpoint: Callable[[], None] = lambda: None,
    ) -> PreparedSensitivities:
        """Items as the model runs them; may take a while, and may be called from any thread.

        Args:
            items: Completions with their measured positions and answers.
            options: How they are measured.
            alone: Whether each item is run by itself, so that no other changes a bit of its sensitivities.
            checkpoint: Called now and then; what it raises ends the work.

        Raises:
            ModelUnsuitableError: If the policy cannot be measured so: there is no token to perturb with, say.
            ValueError: If the options have values outside their ranges.
        """

    def sensitivities(
        self,
        prepared: PreparedSensitivities,
        expires_s: float = float("inf"),
        *,
        pin: WeightPin = WeightPin(),
    ) -> Future[MeasuredTokens]:
        """Ask for the sensitivities of prepared items.

        Args:
            prepared: From `prepared_sensitivities`.
            expires_s: When nobody waits any more, on the engine's monotonic clock.
            pin: Which weights the answer has to be of.

        Returns:
            Sensitivities to come, or an `EngineError`; with a pin also `WeightVersionMismatchError`. Cancelling it
            drops the work if it has not begun.

        Raises:
            EngineOverloadedError: If more waits than the engine takes.
            EngineStoppedError: If the engine is closed, or cannot answer any more.
            WeightVersionUnknownError: If the pinned version was neither announced nor ever current.
        """
