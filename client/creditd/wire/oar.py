"""Schema of `POST /v1/credit/oar`: completions with one advantage each in, an advantage for each of their tokens out.

A completion is reasoning, then an answer. Tokens of the reasoning get more or less of the advantage, by how much the
policy's own answer depends on them. Structure is checked here; what the numbers of an item say to each other is checked
per item (`oar_items`), so that a wrong one costs its item and not the request.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from typing_extensions import Self

from creditd.wire.buffers import BufferOr
from creditd.wire.fields import (
    MAX_SETS,
    Index,
    IndexPairs,
    MaskColumn,
    Name,
    NumberOrNullColumn,
    RewardNumber,
    WireModel,
)
from creditd.wire.groups import GroupAdvantageChoice
from creditd.wire.oar_choices import (
    GivenParser,
    GivenSensitivity,
    GradientSensitivity,
    ParserChoice,
    PolicyTokenId,
    ProbeChoice,
    ReshapeChoice,
    SensitivityChoice,
)
from creditd.wire.oar_forms import OAR_FORMS
from creditd.wire.scar_choices import SpanExpectChoice
from creditd.wire.utilities import ModelId
from creditd.wire.v1 import FlagName, ItemError, Service, Usage

MAX_VERSION = 256

WeightVersion: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_VERSION)]
"""What a trainer calls one state of a policy's weights."""
TokenRange: TypeAlias = Annotated[list[Index], Field(min_length=2, max_length=2)]
"""Half-open range of tokens of the completion."""
_Ids: TypeAlias = Annotated[list[PolicyTokenId], Field(fail_fast=True)]
TokenIds: TypeAlias = Annotated[list[int] | NDArray[np.int64], BufferOr(_Ids, integers=True, bounds=(0, 2**31 - 1))]
"""Tokens by their numbers in the policy's vocabulary."""


class OarItem(WireModel):
    """One completion of a prompt."""

    id: Name | None = None
    group: Name | None = None
    """Names the completions that are compared: the rollouts of one prompt. Give it to all items or to none; without it
    the completions of equal `prompt_ids` are compared, and without those each stands alone."""
    prompt_ids: TokenIds | None = None
    """The prompt as the policy read it. Needed where a policy is asked."""
    completion_ids: TokenIds | None = None
    """The completion as the policy wrote it. Needed where a policy is asked."""
    completion_mask: MaskColumn | None = None
    """True for the tokens that the policy chose. The others get exactly 0. Null: all are True."""
    reasoning: TokenRange | None = None
    """The tokens that are reweighted, as far as the policy chose them; the answer stands behind them. Null: all before
    the answer; with the sensitivity `given` and without an answer, all. Of the parser `given`."""
    answer: TokenRange | None = None
    """The tokens whose probability is watched. Null: the completion has none, so that all of its tokens weigh 1 where
    a policy is asked, and `answer_not_found` is flagged. Of the parser `given`."""
    advantage: RewardNumber | None = None
    """The advantage of the completion, which its tokens share out. All items have an advantage, or all a reward."""
    reward: RewardNumber | None = None
    """The reward of the completion, from which the service computes its advantage within the group."""
    sensitivities: NumberOrNullColumn | None = None
    """One per token, for the sensitivity `given`: how much the answer depends on it, nats or any other unit, of which
    the positive part counts. Null where it was not measured, which is an error for a token that is reweighted."""
    completion: str | None = None
    """The text of the completion, for parsers that read it. Null: the policy's tokenizer writes `completion_ids`. Never
    logged."""
    token_offsets: IndexPairs | None = None
    """Characters [start, stop) of `completion` that each token writes; they come together."""


_IDS: JsonDict = {"prompt_ids": [11, 12, 13], "completion_ids": [21, 22, 23, 24, 25, 26, 27]}
OAR_GIVEN_EXAMPLE: JsonDict = {
    "items": [{"sensitivities": [0.0, 0.1, 0.5, 1.0, 4.0], "advantage": 1.0}],
    "sensitivity": {"type": "given"},
}
OAR_EXAMPLE: JsonDict = {
    "model": "policy",
    "items": [
        {**_IDS, "reasoning": [0, 4], "answer": [5, 7], "reward": 1.0},
        {**_IDS, "reasoning": [0, 5], "answer": [5, 7], "reward": 0.0},
    ],
    "advantage": {"type": "grpo"},
    "expect": {"group_size": 2},
}
OAR_PERTURBATION_EXAMPLE: JsonDict = {
    "model": "policy",
    "items": [{**_IDS, "id": "a", "group": "p1", "reasoning": [0, 4], "answer": [5, 7], "advantage": -0.5}],
    "sensitivity": {"type": "perturbation", "token_id": 1},
    "probe": {"type": "last"},
    "reshape": {"quantile": 0.5, "floor": 0.0},
}
OAR_TEXT_EXAMPLE: JsonDict = {
    "items": [
        {
            "sensitivities": [0.5, 0.25, None],
            "advantage": 1.0,
            "completion": "2+2 #### 4",
            "token_offsets": [[0, 3], [3, 8], [8, 10]],
        }
    ],
    "sensitivity": {"type": "given"},
    "parser": {"type": "hashes"},
}


class OarRequest(WireModel):
    """Completions, and the policy that wrote them; token advantages out."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [OAR_GIVEN_EXAMPLE, OAR_EXAMPLE, OAR_PERTURBATION_EXAMPLE, OAR_TEXT_EXAMPLE]}
    )
    forms = OAR_FORMS

    model: ModelId | None = None
    """The policy of the service that is asked. Null where sensitivities are given."""
    weight_version: WeightVersion | None = None
    """The version of the policy's weights that is to be asked. Null: the one that is there, which the answer names."""
    if_not_ready: Literal["wait", "fail"] = "wait"
    """What to do while the policy has another version: wait for it until the deadline, or fail at once."""
    items: Annotated[list[OarItem], Field(fail_fast=True, min_length=1, max_length=MAX_SETS)]
    sensitivity: SensitivityChoice = GradientSensitivity()
    probe: ProbeChoice = ProbeChoice()
    reshape: ReshapeChoice = ReshapeChoice()
    parser: ParserChoice = GivenParser()
    advantage: GroupAdvantageChoice = GroupAdvantageChoice()
    """How rewards become advantages; of no use where items have advantages."""
    expect: SpanExpectChoice = SpanExpectChoice()
    incomplete_group: Literal["flag", "error"] = "flag"
    """Whether a completion that failed leaves a flag on the others of its group, or takes them with it."""
    deterministic: bool = False
    """Have the policy read each completion by itself: then what else it reads changes no bit of its sensitivities."""
    dry_run: bool = False
    """Only say what it would cost, in `usage`."""

    @model_validator(mode="after")
    def _a_model_is_asked_or_not(self) -> Self:
        given = isinstance(self.sensitivity, GivenSensitivity)
        if given and self.model is not None:
            raise ValueError("the sensitivity given asks no model: expected model to be null")
        if given and self.weight_version is not None:
            raise ValueError("the sensitivity given asks no model: expected weight_version to be null")
        if not given and self.model is None:
            raise ValueError(f"the sensitivity {self.sensitivity.type} needs model, the policy that is asked")
        return self


class OarResult(WireModel):
    """Answer for one completion."""

    id: Name | None = None
    status: Literal["ok", "error"]
    token_advantages: list[float] | None = None
    """One per token: advantage times weight; exactly 0 where the mask is False."""
    weights: list[float] | None = None
    """One per token: 0 where the mask is False, 1 for tokens that are not reweighted."""
    sensitivities: list[float | None] | None = None
    """One per token; null where none was measured or needed."""
    advantage: float | None = None
    """The advantage of the completion, given or computed."""
    n_reweighted: int | None = None
    """Tokens that were reweighted, L."""
    weight_sum: float | None = None
    """Σ of their weights: L where mass is preserved."""
    effective_share: float | None = None
    """(Σw)²/(L·Σw²) of them: 1 when all weigh the same, 1/L when one has all. Null without such tokens."""
    top_share: float | None = None
    """Share of Σw that the ⌈L/10⌉ heaviest have. Null likewise."""
    spread: float | None = None
    """Standard error of the sensitivities over their mean, by the draws of `gradient`; null for one draw."""
    reasoning: tuple[int, int] | None = None
    """Half-open token range."""
    answer: tuple[int, int] | None = None
    """Half-open token range; null where it was not found, or not given."""
    flags: list[FlagName] = Field(default_factory=list)
    error: ItemError | None = None


class OarResponse(WireModel):
    """Answer to each item; none for a dry run."""

    request_id: str
    service: Service
    model: str | None = None
    weight_version: str | None = None
    """The version of the policy's weights that all sensitivities of the answer belong to; null where none was asked."""
    usage: Usage
    items: list[OarResult] | None = None
