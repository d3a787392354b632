"""What a use case asks of a model and what it makes of the answer, without waiting for either."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import CandidateSets, SetError
from creditd.credit.evaluated_games import EvaluatedMethod
from creditd.credit.set_games import SolvedSets
from creditd.engines.protocol import Prompt, TextFailure

Booleans: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
RememberedBy: TypeAlias = Literal["candidate", "set"]
"""Whether each unit of a text is a game of its own, or all units together are one."""


class CostExceededError(Exception):
    """A request would cost more than the limit; the message names both."""


@dataclass(frozen=True)
class Estimates:
    """How credits under an evaluated utility were found, for B sets and C candidates.

    Attributes:
        standard_errors: Shape (C,), float64, reward units; NaN for exact credits and for candidates that do not play.
        intervals: Shape (C, 2), float64: marginal 95 % intervals; NaN likewise, and where there is too little for one.
        exact: Shape (B,), bool: whether the credits are the rule's values.
        approximate: Shape (B,), bool: whether the sample is too small for the promised coverage.
        methods: How each set was solved.
    """

    standard_errors: Floats
    intervals: Floats
    exact: Booleans
    approximate: Booleans
    methods: tuple[EvaluatedMethod, ...]


@dataclass(frozen=True)
class EvaluatedSets:
    """A batch of sets with what models said of them.

    Attributes:
        sets: The sets, with rewards in place if a model gave them.
        rejected: Sets that have no answer so far, at most one error each, by row.
        given: Credits under a utility that a model evaluated, or None.
        estimates: How those were found, or None.
    """

    sets: CandidateSets
    rejected: tuple[SetError, ...]
    given: SolvedSets | None = None
    estimates: Estimates | None = None


class AsksTexts(Protocol):
    """What a model can be asked about texts, round after round. Not for several threads at a time."""

    @property
    def remembered_by(self) -> RememberedBy | None:
        """What the model's answers are remembered by; None where they are not."""

    def ask(self) -> Sequence[Any]:
        """Texts for the model, as its engine takes them; nothing when it is done. The same until it is told."""

    def tell(self, found: Any) -> None:  # noqa: ANN401 - scores or vectors, as the engine gives them
        """Take what the model says of what was asked last."""


class ModelQuestions(AsksTexts, Protocol):
    """A use case about candidate sets that asks until it has no question left, then answers."""

    def answer(self) -> EvaluatedSets:
        """The sets, once there is no question left."""


def characters_of(prompt: Prompt) -> int:
    """Characters of a prompt, without what a template adds."""
    return len(prompt) if isinstance(prompt, str) else sum(len(message["content"]) for message in prompt)


def check_characters(characters: int, most: int) -> None:
    """Refuse a request whose texts are too long together, before any of them is made.

    Args:
        characters: Of all texts that a model would read, prompts counted with each.
        most: The limit.

    Raises:
        CostExceededError: If there are more.
    """
    if characters > most:
        raise CostExceededError(
            f"the model would read {characters} characters, prompts counted with each text; expected at most {most}"
        )


def failed_text(row: int, position: int | None, failure: TextFailure) -> SetError:
    """The error of a set one of whose texts has no score."""
    if failure.code == "invalid_request":
        return SetError(row, failure.code, "prompt", None, failure.detail)
    return SetError(row, failure.code, "candidates" if position is None else "text", position, failure.detail)
