"""What is asked about the reasoning of completions, and what is answered: the words of `sensitivity_credit`.

Legend: `N` completions; of one of them `T` tokens, of which `R` are reweighted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]
TokenRange: TypeAlias = tuple[int, int]

SensitivityErrorCode: TypeAlias = Literal[
    "shape_mismatch",
    "non_finite_value",
    "budget_exceeded",
    "group_size_mismatch",
    "group_incomplete",
    "invalid_request",
    "non_finite_utility",
    "context_exceeded",
    "engine_failed",
]
SensitivityField: TypeAlias = Literal[
    "prompt_ids",
    "completion_ids",
    "completion_mask",
    "completion",
    "token_offsets",
    "reasoning",
    "answer",
    "advantage",
    "reward",
    "sensitivities",
    "group",
]

MAX_OUTCOME_MAGNITUDE = 1e90
"""Largest magnitude of an advantage and of a reward: times the weights of a completion it stays in range."""


@dataclass(frozen=True)
class SensitivityError:
    """Why one completion has no answer.

    Attributes:
        row: The completion.
        code: Stable name of the kind of failure.
        field: The value that is wrong.
        position: Place of the offending entry of that value, or None.
        detail: One sentence, "got …, expected …".
    """

    row: int
    code: SensitivityErrorCode
    field: SensitivityField
    position: int | None
    detail: str


@dataclass(frozen=True)
class SensitivityItem:
    """One completion.

    Attributes:
        n_tokens: T.
        trainable: Shape (T,), bool; True for the tokens that the policy chose.
        reasoning: Its reasoning, a half-open token range. None with an answer: everything before the answer. None
            without one: no answer was found, so nothing is reweighted, which is flagged.
        answer: Its answer, a half-open token range, not empty. None with a reasoning: the sensitivities are the
            caller's, and where the answer stands is not known.
        advantage: Its advantage, or None where it has a reward.
        reward: Its reward, or None where it has an advantage.
    """

    n_tokens: int
    trainable: Booleans
    reasoning: TokenRange | None
    answer: TokenRange | None
    advantage: float | None
    reward: float | None

    @property
    def answer_found(self) -> bool:
        """Whether it is known what to reweight."""
        return self.reasoning is not None or self.answer is not None


@dataclass(frozen=True)
class SensitivityCredit:
    """Everything about one completion.

    Attributes:
        token_advantages: Shape (T,), float64: advantage times weight; exactly 0 where not trainable.
        weights: Shape (T,), float64: 0 where not trainable, 1 for trainable tokens that are not reweighted.
        sensitivities: Shape (T,), float64, nats or the caller's unit; NaN where none was measured.
        n_reweighted: R.
        weight_sum: Σ w over the reweighted tokens.
        effective_share: (Σ w)²/(R·Σ w²) of them; None without such tokens.
        top_share: Share of Σ w that the ⌈R/10⌉ heaviest of them have; None without such tokens.
        spread: Standard error of the sensitivities over their mean; None where it is not known.
        reasoning: The reasoning as it was given or found, half-open, or None.
        answer: The answer, half-open, or None.
        advantage: A, the advantage of the completion.
        flags: Bits of `Flag`.
    """

    token_advantages: Floats
    weights: Floats
    sensitivities: Floats
    n_reweighted: int
    weight_sum: float
    effective_share: float | None
    top_share: float | None
    spread: float | None
    reasoning: TokenRange | None
    answer: TokenRange | None
    advantage: float
    flags: int


@dataclass(frozen=True)
class SensitivityCredits:
    """Answers to N completions.

    Attributes:
        items: One per completion; None for one that failed.
        errors: At most one per completion, by row.
    """

    items: tuple[SensitivityCredit | None, ...]
    errors: tuple[SensitivityError, ...]


def reweighted(item: SensitivityItem) -> Integers:
    """Tokens of a completion that are reweighted: the trainable ones of its reasoning that stand before its answer.

    Args:
        item: The completion, without an error (`item_error`).

    Returns:
        Shape (R,), int64, ascending, in [0, T): t with reasoning[0] ≤ t < reasoning[1], t < answer[0] and
        trainable[t]. None where no answer was found; all trainable tokens before the answer where only that is known.

    Cost:
        O(T).
    """
    if not item.answer_found:
        return np.empty(0, dtype=np.int64)
    start, stop = (0, item.n_tokens) if item.reasoning is None else item.reasoning
    if item.answer is not None:
        stop = min(stop, item.answer[0])
    return start + np.flatnonzero(item.trainable[start:stop])


def item_error(row: int, item: SensitivityItem) -> SensitivityError | None:
    """What is wrong with a completion by itself.

    Args:
        row: Its number.
        item: The completion.

    Returns:
        The first thing that does not fit: the mask has one entry per token; both ranges lie within the tokens; the
        answer has a token and begins where the reasoning stops, or after it; there is an advantage or a reward, finite
        and at most 1e90 in magnitude. None: nothing.

    Cost:
        O(1).
    """
    if item.trainable.shape != (item.n_tokens,):
        detail = f"got a mask of shape {item.trainable.shape}; expected one entry for each of {item.n_tokens} tokens"
        return SensitivityError(row, "shape_mismatch", "completion_mask", None, detail)
    return _range_error(row, item) or _outcome_error(row, item)


def _range_error(row: int, item: SensitivityItem) -> SensitivityError | None:
    """Return what is wrong with the reasoning or the answer."""
    fields: tuple[tuple[SensitivityField, TokenRange | None], ...]
    fields = (("reasoning", item.reasoning), ("answer", item.answer))
    for field, place in fields:
        if place is not None and not 0 <= place[0] <= place[1] <= item.n_tokens:
            detail = f"got [{place[0]}, {place[1]}); expected a range within [0, {item.n_tokens})"
            return SensitivityError(row, "shape_mismatch", field, None, detail)
    if item.answer is None:
        return None
    start, stop = item.answer
    if start == stop:
        detail = f"got [{start}, {stop}); expected at least one token"
        return SensitivityError(row, "shape_mismatch", "answer", None, detail)
    if item.reasoning is not None and start < item.reasoning[1]:
        detail = f"got an answer from token {start} on; expected it behind the reasoning, which stops at "
        return SensitivityError(row, "shape_mismatch", "answer", None, f"{detail}{item.reasoning[1]}")
    return None


def _outcome_error(row: int, item: SensitivityItem) -> SensitivityError | None:
    """Return what is wrong with the advantage or the reward."""
    if (item.advantage is None) == (item.reward is None):
        both = "both" if item.advantage is not None else "neither"
        detail = f"got {both} of advantage and reward; expected one of them"
        return SensitivityError(row, "invalid_request", "advantage", None, detail)
    field: SensitivityField = "reward" if item.advantage is None else "advantage"
    value = item.reward if item.advantage is None else item.advantage
    if value is not None and not abs(value) <= MAX_OUTCOME_MAGNITUDE:
        detail = f"got {value}; expected a finite number of magnitude ≤ {MAX_OUTCOME_MAGNITUDE:g}"
        return SensitivityError(row, "non_finite_value", field, None, detail)
    return None
