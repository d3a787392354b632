"""Schema of `POST /v1/credit/group`: rewards of whole responses, and their advantages within the group of a prompt."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator
from typing_extensions import Self

from creditd.wire.buffers import BufferOr, NumbersAndNulls
from creditd.wire.fields import MAX_MAGNITUDE, MAX_SETS, Amount, Indices, NumbersOrNull, Positive, Weight, WireModel
from creditd.wire.forms import NULL
from creditd.wire.request_forms import GROUP_ADVANTAGE_FORMS, GROUP_REQUEST_FORMS
from creditd.wire.v1 import MAX_REWARD_NAMES, ExpectChoice, FlagName, RewardName, RowError, Service, Usage

_GroupRows: TypeAlias = Annotated[list[NumbersOrNull], Field(fail_fast=True, min_length=1, max_length=MAX_SETS)]
_TokenRows: TypeAlias = Annotated[list[Indices], Field(fail_fast=True, max_length=MAX_SETS)]
GroupRewards: TypeAlias = Annotated[
    list[list[float | None]] | NDArray[np.float64] | NumbersAndNulls,
    BufferOr(_GroupRows, nulls=True, fewest=1, longest=MAX_SETS, axes=2),
]
"""One row per prompt; in the binary format rows of equal length may be one buffer of two axes."""
_NamedGroupRewards: TypeAlias = Annotated[
    dict[RewardName, GroupRewards], Field(min_length=1, max_length=MAX_REWARD_NAMES)
]
GroupRewardsOrNamed: TypeAlias = Annotated[
    list[list[float | None]]
    | NDArray[np.float64]
    | NumbersAndNulls
    | dict[str, list[list[float | None]] | NDArray[np.float64] | NumbersAndNulls],
    BufferOr(_GroupRows | _NamedGroupRewards, nulls=True, fewest=1, longest=MAX_SETS, axes=2),
]
TokenRows: TypeAlias = Annotated[
    list[list[int]] | NDArray[np.int64],
    BufferOr(_TokenRows, integers=True, bounds=(-(2**62), 2**62), longest=MAX_SETS, axes=2),
]


class WhiteningChoice(WireModel):
    """How `reinforce++_baseline` and `gdpo` bring a request to mean 0 and spread s: (x − m)/denominator."""

    type: Literal["trl", "verl", "openrlhf", "none"]
    """`trl`: responses count once, s + ε; `verl`: tokens count, √(s² + ε); `openrlhf`: tokens count, √max(s², ε);
    `none`: not whitened."""
    ddof: Annotated[int, Field(ge=0, le=1)] | None = None
    """Taken off the divisor of s²; absent, the convention's: 1, 1 and 0."""
    epsilon: Annotated[float, Field(ge=0, le=MAX_MAGNITUDE, allow_inf_nan=False)] | None = None
    """Absent, the convention's: 1e-4, 1e-8 and 1e-8."""


class GroupAdvantageChoice(WireModel):
    """Which advantage of whole responses."""

    forms = GROUP_ADVANTAGE_FORMS

    type: Literal[
        "grpo", "dr_grpo", "rloo", "reinforce++_baseline", "gdpo", "pass_at_k", "max_at_k", "leave_one_out"
    ] = "grpo"
    """`reinforce++_baseline` and `gdpo` are whitened over the request, so they depend on all of its rows."""
    ddof: Annotated[int, Field(ge=0, le=1)] = 1
    """Taken off the divisor of the variance within a group (`grpo`, `gdpo`)."""
    epsilon: Annotated[float, Field(ge=0, le=MAX_MAGNITUDE, allow_inf_nan=False)] | None = None
    """Added to the standard deviation within a group (`grpo`, `gdpo`), reward units; absent, the convention's."""
    k: Positive | None = None
    """Responses drawn; `pass_at_k` and `max_at_k` need it. In a row of fewer, `pass_at_k` has no contrast and
    `max_at_k` draws them all."""
    threshold: Amount | None = None
    """Smallest reward of a right response (`pass_at_k`); absent, rewards have to be 0 or 1."""
    whitening: WhiteningChoice | None = None
    """Of `reinforce++_baseline` and `gdpo`; absent, the convention's."""

    @model_validator(mode="after")
    def _parameters_fit_the_type(self) -> Self:
        draws, whitens = self.type in {"pass_at_k", "max_at_k"}, self.type in {"reinforce++_baseline", "gdpo"}
        if draws and self.k is None:
            raise ValueError(f"{self.type} needs k, the number of responses drawn")
        if self.k is not None and not draws:
            raise ValueError("only pass_at_k and max_at_k take k")
        if self.threshold is not None and self.type != "pass_at_k":
            raise ValueError("only pass_at_k takes threshold")
        if self.whitening is not None and not whitens:
            raise ValueError("only reinforce++_baseline and gdpo take whitening")
        return self


class GroupRequest(WireModel):
    """Rewards of whole responses in, one row per prompt; their advantages out."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"rewards": [[1.0, 0.5, 0.0], [0.3, None]]},
                {"rewards": [[1.0, 0.0]], "convention": "verl", "advantage": {"type": "rloo"}},
                {
                    "rewards": {"correct": [[1.0, 0.0, 1.0], [0.0, 1.0, None]], "format": [[1, 1, 0], [1, 0, 0]]},
                    "weights": {"format": 0.2},
                    "advantage": {"type": "gdpo"},
                },
                {
                    "rewards": [[1.0, 0.0, 0.0], [0.0, 1.0]],
                    "n_tokens": [[120, 80, 96], [64, 210]],
                    "convention": "verl",
                    "advantage": {"type": "reinforce++_baseline"},
                },
                {"rewards": [[0.9, 0.1, 0.2, 0.3]], "advantage": {"type": "pass_at_k", "k": 2, "threshold": 0.5}},
                {"rewards": [[0.9, 0.1, 0.2, 0.3]], "advantage": {"type": "max_at_k", "k": 3}},
            ]
        }
    )

    forms = GROUP_REQUEST_FORMS

    rewards: GroupRewardsOrNamed
    """One row per prompt, one entry per response, or such rows for each of several named rewards; null leaves a
    response out of its baseline. Named rewards are summed by weight first, where a null of a weight other than 0 makes
    the sum null; `gdpo` normalises each name by itself, where a null leaves the response out of that name alone."""
    weights: dict[RewardName, Weight] | None = None
    """Weights of named rewards, 1 for a name that is not here."""
    n_tokens: TokenRows | None = None
    """Trainable tokens of each response, rows as in `rewards`: with them a response counts in the whitening of `verl`
    and `openrlhf`. Absent, each response counts once."""
    convention: Literal["trl", "verl", "openrlhf"] = "trl"
    """Whose ε is added within groups, and whose whitening follows."""
    advantage: GroupAdvantageChoice = GroupAdvantageChoice()
    expect: Annotated[ExpectChoice, Field(json_schema_extra={"properties": {"candidates": NULL}})] = ExpectChoice()


class GroupResponse(WireModel):
    """Advantages of whole responses."""

    request_id: str
    service: Service
    usage: Usage
    advantages: list[list[float | None]]
    """As `rewards`; null throughout a row that failed."""
    status: list[int]
    """0 for an answer, 1 for an error."""
    flags: list[list[FlagName]]
    errors: list[RowError]
