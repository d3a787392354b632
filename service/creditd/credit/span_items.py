"""What is asked about the units of completions, and what is answered: the words of `span_credit`.

Legend: `N` completions, `T` tokens and `n` units of one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalition_plans import Booleans
from creditd.credit.evaluation_needs import EstimatorOptions
from creditd.credit.span_games import SpanMethod, SpanValue
from creditd.credit.text_units import TextUnits
from creditd.credit.token_rewards import Ledger

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

SpanErrorCode: TypeAlias = Literal[
    "shape_mismatch",
    "non_finite_value",
    "too_many_players",
    "budget_exceeded",
    "group_size_mismatch",
    "group_incomplete",
    "invalid_request",
    "non_finite_utility",
    "context_exceeded",
    "engine_failed",
]
SpanField: TypeAlias = Literal[
    "prompt",
    "completion",
    "token_offsets",
    "completion_mask",
    "n_tokens",
    "units",
    "tree",
    "kl",
    "other_reward",
    "group",
    "coalitions",
    "utilities",
    "utility_empty",
    "utility_grand",
]


MAX_SPAN_MAGNITUDE = 1e90
"""Largest magnitude of a utility, a KL term and another reward: times the tokens of a completion it stays in range."""


@dataclass(frozen=True)
class Refusal:
    """Why a text has no utility.

    Attributes:
        code: Stable name of the kind of failure.
        detail: One sentence without any word of the text.
    """

    code: SpanErrorCode
    detail: str


NO_REFUSALS: Mapping[int, Refusal] = MappingProxyType({})


@dataclass(frozen=True)
class SpanError:
    """Why one completion has no answer.

    Attributes:
        row: The completion.
        code: Stable name of the kind of failure.
        field: The value that is wrong.
        position: Place of the offending entry of that value, or None.
        detail: One sentence, "got …, expected …".
    """

    row: int
    code: SpanErrorCode
    field: SpanField
    position: int | None
    detail: str


@dataclass(frozen=True)
class SpanOptions:
    """How completions get their credit.

    Attributes:
        value: What units get. `auto` is the best of Shapley and Owen that the longest completion of a prompt affords,
            or Shapley where the estimator is named.
        estimator: Evaluations of one completion, and how Shapley values are found: `auto` is exact where the budget
            allows, else permutations.
        alpha: α, part of the reward that is given to units, 0 ≤ α ≤ 1.
        ddof: Degrees of freedom taken off the divisor of the standard deviation; None: no advantages are wanted.
        epsilon: ε, added to the standard deviation, reward units.
        group_size: Completions that each group has to have, or None.
        fail_incomplete_groups: Whether a completion that failed takes its group with it.
        most_units: Largest number of units of a completion.
        most_evaluations: Largest number of evaluations of a completion, whatever the budget.

    Raises:
        ValueError: If α is outside [0, 1], ε negative, ddof neither 0 nor 1, or an estimator named for a value that is
            not estimated.
    """

    value: SpanValue | Literal["auto"] = "auto"
    estimator: EstimatorOptions = field(default_factory=lambda: EstimatorOptions(budget=512))
    alpha: float = 1.0
    ddof: int | None = None
    epsilon: float = 1e-4
    group_size: int | None = None
    fail_incomplete_groups: bool = False
    most_units: int = 4096
    most_evaluations: int = 1 << 16

    def __post_init__(self) -> None:
        if not (0.0 <= self.alpha <= 1.0 and self.epsilon >= 0.0 and self.ddof in {None, 0, 1}):
            raise ValueError(
                f"got alpha {self.alpha}, epsilon {self.epsilon} and ddof {self.ddof}; expected alpha in [0, 1], "
                "epsilon ≥ 0 and ddof 0 or 1"
            )
        if self.value not in {"auto", "shapley"} and self.estimator.type != "auto":
            raise ValueError(
                f"{self.value} is not estimated: got the estimator {self.estimator.type}; expected auto, or the credit "
                "shapley"
            )


@dataclass(frozen=True)
class SpanItem:
    """One completion.

    Attributes:
        units: Its units.
        kl: Shape (T,), float64, reward units: what the caller adds to each token; None for nothing.
        other_reward: Other rewards of the completion, reward units, never decomposed.
        tree: Merges, shape (n − 1, 2), as `owen_trees`, or None.
    """

    units: TextUnits
    kl: Floats | None = None
    other_reward: float = 0.0
    tree: Integers | None = None


def field_of_units(item: SpanItem) -> SpanField:
    """Where a completion says how many units it has.

    Args:
        item: The completion.

    Returns:
        `completion`, the text that is cut; `units` where the text is not known.

    Cost:
        O(1).
    """
    return "units" if item.units.characters is None else "completion"


@dataclass(frozen=True)
class SpanQuestions:
    """What has to be evaluated next.

    Attributes:
        empty: Prompts whose v(∅) is wanted.
        coalitions: Completions with coalitions of their units, shape (R, n); a completion without units has the one
            coalition of shape (1, 0), which is its whole text.
        attention: Completions of which the model's attention to each unit is wanted.
    """

    empty: tuple[int, ...] = ()
    coalitions: tuple[tuple[int, Booleans], ...] = ()
    attention: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.empty or self.coalitions or self.attention)


@dataclass(frozen=True)
class SpanCredit:
    """Everything about one completion.

    Attributes:
        units: Its units.
        values: u, shape (n,), float64, reward units; None where it could not be decomposed.
        standard_errors: Shape (n,), float64, or None for a value that is no estimate.
        intervals: Shape (n, 2), float64: marginal 95 % intervals, or None.
        empty: v(∅) of the prompt, or None if it has none.
        grand: v(P).
        method: How the values were found; None without values.
        exact: Whether they are what they are called, and no estimate of it; None without values.
        gap: Σ u − (v(P) − v(∅)); None without values.
        ledger: What the token rewards are made of.
        token_rewards: Shape (T,), float64, reward units.
        token_advantages: Shape (T,), float64, or None if none are wanted.
        flags: Bits of `Flag`.
        evaluations: Coalitions that the values rest on, v(∅) and v(P) counted.
    """

    units: TextUnits
    values: Floats | None
    standard_errors: Floats | None
    intervals: Floats | None
    empty: float | None
    grand: float
    method: SpanMethod | None
    exact: bool | None
    gap: float | None
    ledger: Ledger
    token_rewards: Floats
    token_advantages: Floats | None
    flags: int
    evaluations: int


@dataclass(frozen=True)
class SpanCredits:
    """Answers to N completions.

    Attributes:
        items: One per completion; None for one that failed.
        errors: At most one per completion, by row.
    """

    items: tuple[SpanCredit | None, ...]
    errors: tuple[SpanError, ...]
