"""Schema of `POST /v1/credit/compose`: candidate sets in, an advantage for each token of their completions out.

Sets are those of `/v1/credit/shapley`, and of the inside of a candidate something may be known: the credit of its
units, what its partial texts are worth, or how much the outcome depends on each token. Structure is checked here; what
numbers say to each other is checked per set where the arithmetic is.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field, WithJsonSchema
from pydantic.config import JsonDict

from creditd.wire.compose_forms import COMPOSE_FORMS
from creditd.wire.fields import (
    MAX_MAGNITUDE,
    MAX_SETS,
    IndexPairs,
    MaskColumn,
    Name,
    NumberColumn,
    NumberOrNullColumn,
    RewardNumber,
    WireModel,
)
from creditd.wire.oar_choices import ReshapeChoice
from creditd.wire.scar import MAX_TOKENS
from creditd.wire.utilities import Fraction, KnownUtilityChoice, MaxUtility
from creditd.wire.v1 import (
    AdvantageChoice,
    AggregationChoice,
    Candidate,
    CandidateSet,
    CreditChoice,
    ExpectChoice,
    FlagName,
    ItemError,
    MalformedChoice,
    PlainCredit,
    Service,
    SetStatus,
    TokensChoice,
    Usage,
)

Slope: TypeAlias = Annotated[float, WithJsonSchema({"type": "number", "minimum": 0, "maximum": MAX_MAGNITUDE})]
"""Its size is looked at per set, because a wrong one fails its set alone."""


class AdditiveInside(WireModel):
    """Â = ω·[A + share·s·L·d] for a unit whose tokens have d reward units each beyond an even share."""

    type: Literal["additive"]
    share: Fraction = 1.0
    """1: units differ as their credits do; 0: all tokens of a candidate get the same."""


class BoundedInside(WireModel):
    """Â = ω·[A + |A|·share·d/max|d|]: no sign is turned, and a candidate without advantage stays without."""

    type: Literal["bounded"]
    share: Fraction = 0.5


class SensitivityInside(WireModel):
    """Â = ω·A·w, with weights w by the sensitivities of the candidate's own tokens."""

    type: Literal["sensitivity"]
    reshape: ReshapeChoice = ReshapeChoice()


InsideChoice: TypeAlias = Annotated[AdditiveInside | BoundedInside | SensitivityInside, Field(discriminator="type")]


class ComposeCandidate(Candidate):
    """One item of a candidate set, and what is known of its inside: units, or sensitivities, or nothing."""

    advantage: RewardNumber | None = None
    """The candidate's advantage where the caller has it; null for a candidate without one, whose tokens are treated as
    those outside candidates. All candidates of a request have the field, or none; beside it `reward` is needed only
    where partial texts have utilities, and then on all."""
    units: IndexPairs | None = None
    """Half-open ranges of tokens of the completion within `span`, ordered and disjoint, that hold every token of the
    candidate which the policy chose, one at least in each."""
    unit_values: NumberColumn | None = None
    """The credit of each unit, reward units; summing to the candidate's where nothing is to be left over."""
    utilities: NumberColumn | None = None
    """Instead of `unit_values`, 2^m numbers for m units, reward units: what the text of each coalition of units is
    worth by itself; bit j of the index is unit j, and the first number, of no unit, is not looked at. Credits of units
    are then exact Owen values of units in candidates, under the utility `max` and the credit `shapley`."""
    tree: IndexPairs | None = None
    """Beside `utilities`: one pair for each of m − 1 merges of m units, as of `/v1/credit/scar`, for Owen values over
    a tree of units instead of Shapley values."""
    sensitivities: NumberOrNullColumn | None = None
    """One number per token of `span`, for the choice `sensitivity`: how much the outcome depends on it, as
    `/v1/credit/oar` answers. Null for a token that is not reweighted: it weighs 1."""


class ComposeSet(CandidateSet):
    """One response with its K candidates."""

    n_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)]
    """Tokens of the completion."""
    completion_mask: MaskColumn | None = None
    """True for the tokens that the policy chose. The others get exactly 0 and count nowhere. Null: all are True."""
    inside: InsideChoice | None = None
    """How credit gets inside the candidates of this set. Null: as the request says."""
    set_advantage: RewardNumber | None = None
    """What tokens outside the candidates get. Needed beside given advantages, and of no use elsewhere."""
    advantage_slope: Slope | None = None
    """Beside given advantages, for the choice `additive`: s, the advantage that one more reward unit of a candidate's
    credit makes, at least 0."""
    candidates: Annotated[list[ComposeCandidate], Field(fail_fast=True)]  # type: ignore[assignment]  # more is known


COMPOSE_EXAMPLE: JsonDict = {
    "sets": [
        {
            "id": "a",
            "group": "p1",
            "n_tokens": 10,
            "candidates": [
                {"reward": 1.0, "span": [0, 4], "units": [[0, 1], [1, 4]], "unit_values": [0.5, 0.25]},
                {"reward": 0.5, "span": [5, 9]},
            ],
        },
        {
            "id": "b",
            "group": "p1",
            "n_tokens": 8,
            "candidates": [{"reward": 0.2, "span": [0, 3]}, {"reward": 0.1, "span": [4, 8]}],
        },
    ],
    "tokens": {"length_norm": True},
    "expect": {"group_size": 2},
}
COMPOSE_TEXTS_EXAMPLE: JsonDict = {
    "sets": [
        {
            "n_tokens": 9,
            "completion_mask": [True, True, False, True, True, True, True, True, True],
            "candidates": [
                {"reward": 0.9, "span": [0, 5], "units": [[0, 2], [3, 5]], "utilities": [0.0, 0.7, 0.1, 0.9]},
                {"reward": 0.6, "span": [6, 9]},
            ],
        }
    ],
    "inside": {"type": "bounded", "share": 1.0},
}
COMPOSE_GIVEN_EXAMPLE: JsonDict = {
    "sets": [
        {
            "n_tokens": 6,
            "set_advantage": 0.1,
            "candidates": [
                {"advantage": 1.2, "span": [0, 3], "sensitivities": [0.0, 2.0, 0.5]},
                {"advantage": -1.0, "span": [4, 6], "sensitivities": [1.0, 1.0]},
            ],
        }
    ],
    "inside": {"type": "sensitivity", "reshape": {"quantile": 0.25}},
}


class ComposeRequest(WireModel):
    """Candidate sets, and what is known inside their candidates; token advantages and an account of them out."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [COMPOSE_EXAMPLE, COMPOSE_TEXTS_EXAMPLE, COMPOSE_GIVEN_EXAMPLE]}
    )
    forms = COMPOSE_FORMS

    sets: Annotated[list[ComposeSet], Field(fail_fast=True, min_length=1, max_length=MAX_SETS)]
    inside: InsideChoice | None = None
    """How credit gets inside candidates. Null: `additive`, and `bounded` where candidates bring advantages."""
    utility: KnownUtilityChoice = MaxUtility()
    """Of no use without rewards, as `aggregation`, `credit` and `malformed`. Beside advantages one of rewards."""
    aggregation: AggregationChoice = AggregationChoice()
    credit: CreditChoice = PlainCredit()
    advantage: AdvantageChoice = AdvantageChoice()
    """How credits become advantages; of no use where candidates bring them."""
    tokens: TokensChoice = TokensChoice()
    malformed: MalformedChoice = MalformedChoice()
    expect: ExpectChoice = ExpectChoice()
    incomplete_group: Literal["flag", "error"] = "flag"
    """What happens to the other sets of a group that lost one to an error."""


class UnitAccount(WireModel):
    """What one unit has."""

    tokens: int
    """Those that the policy chose."""
    value: float
    """Its credit, reward units."""
    mass: float
    """Σ of the advantages of its tokens."""


class CandidateAccount(WireModel):
    """Where the advantage of one candidate goes. A mass is a sum of advantages of tokens."""

    tokens: int
    """L, those that the policy chose."""
    length_weight: float
    """ω: 1, or (Σ L)/(K·L) with `length_norm`."""
    credit: float | None
    """Reward units; null without rewards, and for a candidate that is no player."""
    unit_sum: float | None
    """Σ of the credits of its units, reward units; null without units."""
    credit_gap: float | None
    """unit_sum − credit: what the credits of its units leave over, or have too much. Nothing is rescaled."""
    mass: float | None
    """L·ω·A; null for a candidate without an advantage."""
    token_sum: float
    """Σ of the advantages of its tokens, that of `set_reward` not counted."""
    mass_gap: float | None
    """token_sum − mass: rounding, but for weights whose mass is not preserved."""
    absolute_mass: float
    """Σ of the magnitudes."""
    n_reweighted: int | None
    """Tokens that were weighed against each other by sensitivity; the others weigh 1. Null without sensitivities."""
    effective_share: float | None
    """(Σ w)²/(n·Σ w²) of the weights of these n; null without any."""
    top_share: float | None
    """What the tenth of these with the largest weights holds of them; null without any."""
    units: list[UnitAccount] | None


class SetAccount(WireModel):
    """Where the advantage of one completion goes."""

    credit_sum: float | None
    """Σ credit, reward units; null without rewards."""
    utility_gain: float | None
    """v(N) − v(∅), reward units; null without rewards."""
    credit_gap: float | None
    """credit_sum − utility_gain: near 0 for efficient credits, a fact of the others."""
    tokens: int
    """Those that the policy chose."""
    set_mass: float
    """tokens · set_advantage: the mass of plain group advantages."""
    candidate_mass: float
    """Σ of `token_sum` over the candidates that have an advantage."""
    other_mass: float
    """That of all other tokens."""
    set_reward_mass: float
    """What the advantage of `set_reward` adds."""
    total: float
    """Σ of the token advantages."""
    mass_gap: float
    """candidate_mass + other_mass − set_mass: near 0 for efficient credits with `length_norm` and other tokens at
    `set`, a fact of everything else."""
    candidates: list[CandidateAccount]


class ComposeResult(WireModel):
    """Answer for one set."""

    id: Name | None = None
    status: SetStatus
    credits: list[float | None] | None = None
    """One per candidate, reward units; null for a candidate that is not a player, and null without rewards."""
    advantages: list[float | None] | None = None
    set_advantage: float | None = None
    """For tokens outside the candidates."""
    set_reward_advantage: float | None = None
    """GRPO advantage of `set_reward`, before its weight."""
    token_advantages: list[float] | None = None
    """One per token; exactly 0 where the mask is False."""
    unit_values: list[list[float] | None] | None = None
    """One row per candidate: the credit of each of its units, reward units; null for a candidate without units."""
    utility_empty: float | None = None
    utility_grand: float | None = None
    ledger: SetAccount | None = None
    flags: list[FlagName] = Field(default_factory=list)
    error: ItemError | None = None


class ComposeResponse(WireModel):
    """Answer to each set."""

    request_id: str
    service: Service
    usage: Usage
    sets: list[ComposeResult]
