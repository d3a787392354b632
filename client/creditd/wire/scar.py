"""Schema of `POST /v1/credit/scar`: completions in, the credit of their units and a reward for each token out.

A unit is a run of the tokens that the policy chose, and the characters that they write. Characters are code points.
Structure is checked here; what the numbers of an item say to each other is checked per item (`scar_items`), so that a
wrong one costs its item and not the request.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, WithJsonSchema
from pydantic.config import JsonDict

from creditd.credit.span_items import MAX_SPAN_MAGNITUDE
from creditd.wire.buffers import BufferOr, NumbersAndNulls
from creditd.wire.fields import (
    MAX_SETS,
    Index,
    IndexPairs,
    MaskColumn,
    Name,
    NumberColumn,
    WireModel,
)
from creditd.wire.scar_choices import (
    MAX_UNITS,
    AbsentChoice,
    Alpha,
    DeleteAbsent,
    EstimatedCredit,
    SegmentationChoice,
    SolveCreditChoice,
    SpanAdvantageChoice,
    SpanCreditChoice,
    SpanEstimatorChoice,
    SpanExpectChoice,
    TextSegmentation,
)
from creditd.wire.scar_forms import SCAR_FORMS, SCAR_SOLVE_FORMS
from creditd.wire.solve import MAX_BATCH_SIZE
from creditd.wire.utilities import ModelId
from creditd.wire.v1 import FlagName, ItemError, Prompt, Service, Usage

MAX_TOKENS = 1 << 20
"""Of a completion, whatever the settings."""

SpanMethodName: TypeAlias = Literal[
    "table", "owen_tree", "permutations", "stratified", "definition", "uniform", "attention"
]


OtherReward: TypeAlias = Annotated[
    float, WithJsonSchema({"type": "number", "minimum": -MAX_SPAN_MAGNITUDE, "maximum": MAX_SPAN_MAGNITUDE})
]
"""Its size is looked at per item, because a wrong one fails its item alone."""
_Utilities: TypeAlias = Annotated[list[float | None], Field(fail_fast=True)]
UtilityColumn: TypeAlias = Annotated[
    list[float | None] | NDArray[np.float64] | NumbersAndNulls, BufferOr(_Utilities, nulls=True)
]


class _Completion(WireModel):
    """What is known of a completion wherever its utilities come from."""

    id: Name | None = None
    group: Name | None = None
    """Names the completions that are compared: the rollouts of one prompt. Give it to all items or to none; without it
    the completions of equal prompts are compared."""
    token_offsets: IndexPairs | None = None
    """Characters [start, stop) of `completion` that each token writes, from one incremental decode; tokens that share a
    character carry the same ones. Null: every segment of the text is a token."""
    completion_mask: MaskColumn | None = None
    """True for the tokens that the policy chose. The others stand in every coalition, are in no unit and get exactly
    0. One per token, as `kl`. Null: all are True."""
    units: IndexPairs | None = None
    """Half-open token ranges, ordered and disjoint, that hold every token that the policy chose and no other. Needed by
    the segmentation `given`, and of no use elsewhere."""
    tree: IndexPairs | None = None
    """Which unions are worth something together, for the credit `owen` alone: one pair for each of n − 1 merges of n
    units. Numbers below n are units, n + k is what merge k makes; the last one holds all. Null: the balanced tree."""
    kl: NumberColumn | None = None
    """What is added to the reward of each token, such as a KL penalty, reward units. Not looked at where the mask is
    False. Null: nothing."""
    other_reward: OtherReward = 0.0
    """Other rewards of the completion (rules, format), reward units: added in full at the last token, never shared
    out."""


Unit: TypeAlias = Annotated[int, Field(ge=0, lt=MAX_UNITS)]
UnitCoalition: TypeAlias = Annotated[list[Unit], Field(fail_fast=True, max_length=MAX_UNITS)]


class ScarItem(_Completion):
    """One completion of a prompt."""

    prompt: Prompt
    """What the completion answers, as the reward model reads it."""
    completion: str
    """The text that the policy wrote, and that of tools within it. Never logged."""


SCAR_EXAMPLE: JsonDict = {
    "model": "rm",
    "items": [
        {"prompt": "Capital of France?", "completion": "Paris, of course. It lies on the Seine."},
        {"prompt": "Capital of France?", "completion": "I think it is Lyon."},
    ],
}
SCAR_TOKENS_EXAMPLE: JsonDict = {
    "model": "rm",
    "items": [
        {
            "id": "a",
            "group": "p1",
            "prompt": [{"role": "user", "content": "Capital of France?"}],
            "completion": "Paris, of course.",
            "token_offsets": [[0, 5], [5, 6], [6, 9], [9, 16], [16, 17]],
            "kl": [-0.01, 0.0, -0.02, 0.0, 0.0],
            "other_reward": 0.1,
        },
        {
            "id": "b",
            "group": "p1",
            "prompt": [{"role": "user", "content": "Capital of France?"}],
            "completion": "<tool>map</tool> Lyon.",
            "token_offsets": [[0, 6], [6, 9], [9, 16], [16, 21], [21, 22]],
            "completion_mask": [False, False, False, True, True],
        },
    ],
    "absent": {"type": "blank"},
    "credit": {"type": "prefix"},
    "alpha": 0.8,
    "advantage": {"type": "pooled"},
    "expect": {"group_size": 2},
}
SCAR_TREE_EXAMPLE: JsonDict = {
    "model": "rm",
    "items": [
        {
            "prompt": "2 + 2?",
            "completion": "It is 4.",
            "token_offsets": [[0, 2], [2, 5], [5, 7], [7, 8]],
            "units": [[0, 1], [1, 2], [2, 4]],
            "tree": [[1, 2], [0, 3]],
        }
    ],
    "segmentation": {"type": "given", "max_units": None},
    "credit": {"type": "owen"},
}


class ScarRequest(WireModel):
    """Completions and the name of a reward model in; token rewards, and advantages if asked for, out."""

    model_config = ConfigDict(json_schema_extra={"examples": [SCAR_EXAMPLE, SCAR_TOKENS_EXAMPLE, SCAR_TREE_EXAMPLE]})
    forms = SCAR_FORMS

    model: ModelId
    """The reward model of the service that gives the utilities."""
    items: Annotated[list[ScarItem], Field(fail_fast=True, min_length=1, max_length=MAX_SETS)]
    absent: AbsentChoice = DeleteAbsent()
    segmentation: SegmentationChoice = TextSegmentation()
    credit: SpanCreditChoice = EstimatedCredit()
    estimator: SpanEstimatorChoice = SpanEstimatorChoice()
    alpha: Alpha = 1.0
    advantage: SpanAdvantageChoice = SpanAdvantageChoice()
    expect: SpanExpectChoice = SpanExpectChoice()
    incomplete_group: Literal["flag", "error"] = "flag"
    """Whether a completion that failed leaves a flag on the others of its group, or takes them with it."""
    deterministic: bool = False
    """Have the model read each completion's texts by themselves: then what else it reads changes no bit of them."""
    dry_run: bool = False
    """Only say what it would cost, in `usage`; without a target standard error it is exact."""


class ScarSolveItem(_Completion):
    """One completion whose utilities the caller gives, and what is known of them so far.

    The utility of a coalition of units is that of the completion without the other units. For a completion without
    masked tokens the coalition of no unit is v(∅) of its prompt, which has a field of its own.
    """

    prompt_id: Name | None = None
    """Names the prompt. Completions of one prompt share it, and with it v(∅). Give it to all items or to none; without
    it the items of a group are of one prompt, and without groups each item is of its own."""
    completion: str | None = None
    """The text, cut as the segmentation says. Null where `n_tokens` says how many tokens there are. Never logged."""
    n_tokens: Annotated[Index, Field(le=MAX_TOKENS)] | None = None
    """Tokens of a completion whose text is not sent; it needs `units`."""
    coalitions: Annotated[list[UnitCoalition], Field(fail_fast=True, max_length=1 << 20)] = Field(default_factory=list)
    """Coalitions that were evaluated: each the list of its units, by their place in the `units` of the answer."""
    utilities: UtilityColumn = Field(default_factory=list)
    """One per coalition, reward units; null where it was refused. What is not finite, or beyond 1e90, is refused."""
    utility_empty: float | None = None
    """v(∅) of the prompt, once it is known. One item of a prompt is enough; of several, the first counts."""
    empty_refused: bool = False
    """Whether the prompt has no v(∅): then all of α is 0 for it."""
    utility_grand: float | None = None
    """v(P) of a completion without units, once it is known; of others it is the utility of all units."""
    grand_refused: bool = False
    """Whether a completion without units has no v(P): then it has no answer."""


SCAR_SOLVE_EXAMPLE: JsonDict = {
    "items": [
        {"id": "a", "prompt_id": "p1", "completion": "Paris, of course. It lies on the Seine."},
        {"id": "b", "prompt_id": "p1", "completion": "I think it is Lyon."},
    ]
}
SCAR_SOLVED_EXAMPLE: JsonDict = {
    "items": [
        {
            "n_tokens": 6,
            "completion_mask": [True, True, True, False, True, True],
            "units": [[0, 2], [2, 3], [4, 6]],
            "coalitions": [[0, 1, 2], [], [0], [0, 1]],
            "utilities": [1.5, 0.25, 0.5, 1.0],
            "utility_empty": 0.0,
            "kl": [0.0, -0.1, 0.0, 0.0, 0.0, -0.2],
        }
    ],
    "segmentation": {"type": "given"},
    "credit": {"type": "prefix"},
}


class ScarSolveRequest(WireModel):
    """Completions and what is known of their utilities in; what to evaluate next, or token rewards, out.

    Everything that is known goes in with each request: no conversation is kept.
    """

    model_config = ConfigDict(json_schema_extra={"examples": [SCAR_SOLVE_EXAMPLE, SCAR_SOLVED_EXAMPLE]})
    forms = SCAR_SOLVE_FORMS

    items: Annotated[list[ScarSolveItem], Field(fail_fast=True, min_length=1, max_length=MAX_SETS)]
    absent: AbsentChoice = DeleteAbsent()
    """What the caller puts in the place of absent units; it changes no number here."""
    segmentation: SegmentationChoice = TextSegmentation()
    credit: SolveCreditChoice = EstimatedCredit()
    estimator: SpanEstimatorChoice = SpanEstimatorChoice()
    alpha: Alpha = 1.0
    advantage: SpanAdvantageChoice = SpanAdvantageChoice()
    expect: SpanExpectChoice = SpanExpectChoice()
    incomplete_group: Literal["flag", "error"] = "flag"
    """Whether a completion that failed leaves a flag on the others of its group, or takes them with it."""
    batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)] = 1024
    """Most coalitions that one answer names per item. It changes no number."""


class ScarLedger(WireModel):
    """What the token rewards of a completion are made of, reward units; the parts sum to `total`.

    Whatever happened to the completion, total = Σ kl + other_reward + v(P) − α·v(∅).
    """

    kl: float
    """Σ of the KL terms of the tokens that the policy chose."""
    other_reward: float
    units: float
    """α · Σ unit values."""
    terminal: float
    """(1 − α) · v(P), on the last token that the policy chose."""
    remainder: float
    """α · (v(P) − v(∅) − Σ unit values), there as well; all of v(P) − α·v(∅) where nothing could be shared out."""
    total: float
    """Σ token rewards; of a completion without a token that the policy chose, what they would have summed to."""
    alpha: float
    """α that was used: 0 where the prompt has no v(∅)."""


class ScarResult(WireModel):
    """Answer for one completion."""

    id: Name | None = None
    status: Literal["ok", "error"]
    token_rewards: list[float] | None = None
    """One per token, reward units; exactly 0 where the mask is False."""
    token_advantages: list[float] | None = None
    """One per token, where they were asked for; exactly 0 where the mask is False."""
    units: list[tuple[int, int]] | None = None
    """Half-open token ranges, as they are after merging."""
    unit_characters: list[tuple[int, int]] | None = None
    """Half-open ranges of `completion`: what the tokens of each unit write. Null where no text was sent."""
    unit_values: list[float] | None = None
    """One per unit, reward units; null where nothing could be shared out: see the flag `fallback_return`."""
    standard_errors: list[float] | None = None
    """One per unit, reward units; null for values that are no estimates."""
    intervals: list[tuple[float, float]] | None = None
    """Marginal 95 % intervals; null likewise, and where there are too few coalitions for one."""
    utility_empty: float | None = None
    """v(∅) of the prompt; null where it has none."""
    utility_grand: float | None = None
    """v(P), the score of the whole completion."""
    method: SpanMethodName | None = None
    """How the unit values were found; null without them."""
    exact: bool | None = None
    """Whether the unit values are what they are called, and no estimate of it; null without them."""
    gap: float | None = None
    """Σ unit values − (v(P) − v(∅)): near 0 for efficient values, a fact of `leave_one_out`; null without them."""
    ledger: ScarLedger | None = None
    flags: list[FlagName] = Field(default_factory=list)
    error: ItemError | None = None


class ScarResponse(WireModel):
    """Answer to each item; none for a dry run."""

    request_id: str
    service: Service
    model: str
    weight_version: str | None = None
    usage: Usage
    items: list[ScarResult] | None = None


class ScarSolveResult(ScarResult):
    """Answer for one completion, or what has to be evaluated for it."""

    status: Literal["open", "ok", "error"]  # type: ignore[assignment]  # one more than of the other route
    next: list[list[int]] | None = None
    """Coalitions to evaluate next, while the item is open; none where only other items lack something."""
    needs_empty: bool | None = None
    """Whether v(∅) of its prompt is to be evaluated; asked of one item of the prompt."""
    needs_grand: bool | None = None
    """Whether v(P) is, of an item without units."""
    planned: int | None = None
    """Most evaluations altogether, v(∅) counted where the coalition of no unit is; fewer with a target standard
    error."""
    evaluations: int | None = None
    """How many of them are known."""


class ScarSolveResponse(WireModel):
    """Answer to each item. As long as one is open, none has its rewards: prompts are compared as a whole."""

    request_id: str
    service: Service
    usage: Usage
    done: bool
    """Whether no item is open."""
    items: list[ScarSolveResult]
