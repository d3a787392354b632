"""Version 1 of the wire: every request and response body, with its limits. Changes within v1 are additive.

Conventions: every choice is an object with `type`; ragged arrays are `{"values": […], "row_splits": [0, …]}`; unknown
fields are errors; `group` names the prompt that sets share. Structure is checked here; values are checked per set where
the arithmetic is, so that one NaN costs one set and not the request.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field, model_validator
from pydantic.config import JsonDict
from typing_extensions import Self

from creditd.wire.buffers import BufferOr
from creditd.wire.errors import ErrorCode
from creditd.wire.fields import (
    MAX_MAGNITUDE,
    MAX_NAME_LENGTH,
    MAX_SETS,
    Amount,
    CandidateNameColumn,
    CandidateNameOrNullColumn,
    Count,
    Index,
    IndexColumn,
    Name,
    NameColumn,
    NameRowsOfCandidates,
    NumberOrNullColumn,
    NumberOrNullRows,
    NumberRows,
    NumberRowsOfCandidates,
    Numbers,
    Positive,
    Ragged,
    RaggedNames,
    RaggedNumbers,
    RewardNumber,
    Weight,
    WireModel,
)
from creditd.wire.request_forms import COLUMN_FORMS, REQUEST_FORMS
from creditd.wire.utilities import MAX_TARGETS, MaxUtility, ModelId, UtilityChoice

MAX_REWARD_NAMES = 64

RewardName: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]

SetStatus: TypeAlias = Literal["ok", "error"]
FlagName: TypeAlias = Literal[
    "degenerate_group",
    "single_response",
    "group_incomplete",
    "no_candidates",
    "candidate_unscored",
    "candidate_truncated",
    "duplicates_collapsed",
    "unstable_normalization",
    "interval_approximate",
    "fallback_return",
    "units_merged",
    "answer_not_found",
    "flat_sensitivity",
]
MethodName: TypeAlias = Literal[
    "order_statistic",
    "coverage",
    "pairwise",
    "vote",
    "quadrature",
    "log_det",
    "table",
    "sum",
    "owen",
    "stratified",
    "permutations",
    "definition",
    "several",
]

PlainRule: TypeAlias = Literal["shapley", "leave_one_out", "own_reward", "set_reward", "prefix_gain", "owen"]


class PlainCredit(WireModel):
    """A rule without parameters."""

    type: PlainRule = "shapley"


class MaxAtKCredit(WireModel):
    """All weight on coalitions of k − 1 other candidates (PKPO)."""

    type: Literal["max_at_k"]
    k: Positive


_MixtureWeights: TypeAlias = Annotated[list[Weight], Field(fail_fast=True, min_length=1, max_length=1000)]
MixtureWeights: TypeAlias = Annotated[list[float], BufferOr(_MixtureWeights, kept=False, longest=1000)]


class MixtureCredit(WireModel):
    """Weights w_1 … w_K, for sets of K candidates."""

    type: Literal["mixture"]
    weights: MixtureWeights


EndChoice: TypeAlias = PlainRule | Annotated[PlainCredit | MaxAtKCredit | MixtureCredit, Field(discriminator="type")]


class BlendCredit(WireModel):
    """(1 − position) of one rule and position of another."""

    type: Literal["blend"]
    from_: EndChoice = Field(alias="from")
    to: EndChoice
    position: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


CreditChoice: TypeAlias = Annotated[
    PlainCredit | MaxAtKCredit | MixtureCredit | BlendCredit, Field(discriminator="type")
]


class EstimatorChoice(WireModel):
    """How many coalitions a model evaluates, and which. Utilities with a formula are exact, at no evaluation."""

    type: Literal["auto", "exact", "stratified", "permutations"] = "auto"
    """`auto`: all 2^K where the budget allows, else `stratified`. `permutations` is the audit mode: no modelling."""
    budget: Annotated[int, Field(ge=1, le=2**31)] = 1024
    """Distinct coalitions that may be evaluated per set."""
    seed: Count = 0
    target_standard_error: Annotated[float, Field(gt=0, le=MAX_MAGNITUDE, allow_inf_nan=False)] | None = None
    """Stop early when every candidate's standard error, times 1.3, is at most this, reward units."""


class ModelRewards(WireModel):
    """A reward model of the service scores each candidate's `text`, as an answer to the set's `prompt`."""

    type: Literal["model"]
    model: ModelId


class EmbeddingFeatures(WireModel):
    """An embedding model of the service reads each candidate's `text`; cosines take the place of features.

    `facility_location`: the score of a candidate for a target is their cosine, at least 0. `coverage`: a candidate
    covers the targets whose cosine with it reaches the threshold. Utilities of pairs: similarity is the cosine, at
    least 0, and as it is for `log_det`.
    """

    type: Literal["embedding"]
    model: ModelId
    targets: Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=MAX_TARGETS)] | None = None
    """Texts that candidates may serve or cover, and names of topics; null: the candidates of the set themselves."""
    threshold: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = None
    """Smallest cosine that covers. Needed by `coverage`."""


class ChatMessage(WireModel):
    """One message of a conversation."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str


Prompt: TypeAlias = str | Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=4096)]
"""A text that is read as it is, or messages that go through the model's chat template."""


class AdvantageChoice(WireModel):
    """How credits become advantages."""

    type: Literal["pooled", "batch_scaled", "centered", "response_preserving", "per_slot", "none"] = "pooled"
    ddof: Annotated[int, Field(ge=0, le=1)] = 1
    epsilon: Annotated[float, Field(ge=0, le=MAX_MAGNITUDE, allow_inf_nan=False)] = 1e-4
    """Added to every standard deviation, reward units."""
    baseline: Literal["group", "others"] = "group"


class TokensChoice(WireModel):
    """What the tokens of a completion receive."""

    other: Literal["set", "zero", "next"] = "set"
    """Tokens outside every candidate."""
    length_norm: bool = False
    """Give every candidate the same mass, whatever its length."""
    set_reward_weight: Weight = 1.0
    """Weight of the advantage of `set_reward`, which all tokens of the response receive on top."""


class MalformedChoice(WireModel):
    """What happens to sets that are not as the prompt asked."""

    failure_reward: Amount = 0.0
    """Reward of a response in which nothing was parsed or scored."""
    extra: Literal["truncate", "score_all"] = "truncate"
    duplicates: Literal["keep", "collapse"] = "keep"
    candidates: Positive | None = None
    """K that the prompt asked for, beyond which `extra` applies. Fewer are fine."""


class ExpectChoice(WireModel):
    """What the caller is sure of; anything else is an error, never a silent baseline."""

    group_size: Positive | None = None
    candidates: Positive | None = None


class AggregationChoice(WireModel):
    """How several named rewards become one credit."""

    type: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Add the weighted rewards and share out their sum, or share out and normalise each, then add the advantages."""
    weights: Annotated[dict[str, Weight], Field(max_length=MAX_REWARD_NAMES)] | None = None
    """Weight by name; 1 for a name that is not here."""


_Topics: TypeAlias = Annotated[list[Name], Field(fail_fast=True, max_length=MAX_TARGETS)]
Topics: TypeAlias = Annotated[list[str | int], BufferOr(_Topics, integers=True, kept=False, longest=MAX_TARGETS)]
_Scores: TypeAlias = Annotated[list[float], Field(fail_fast=True, max_length=MAX_TARGETS)]
Scores: TypeAlias = Annotated[list[float], BufferOr(_Scores, kept=False, longest=MAX_TARGETS)]


class Candidate(WireModel):
    """One item of a candidate set."""

    reward: RewardNumber | None = None
    """Reward units; null when it was not scored. Needed where the utility uses rewards."""
    named_rewards: Annotated[dict[RewardName, RewardNumber | None], Field(max_length=MAX_REWARD_NAMES)] | None = None
    """Several rewards by name, instead of `reward`: the same names for all candidates; null for all when not scored."""
    label: Name | None = None
    """The answer that the candidate gives. Needed by `plurality`."""
    topics: Topics | None = None
    """What it covers. Needed by `coverage`."""
    scores: Scores | None = None
    """What it is worth to each target. Needed by `facility_location` and `noisy_or`."""
    union: Name | None = None
    """Candidates of one union share a name. Needed by the credit `owen`."""
    span: Annotated[list[Index], Field(min_length=2, max_length=2)] | None = None
    """Half-open token range in the completion; null for a candidate without tokens. Needed when `tokens` is asked."""
    text: str | None = None
    """What a model reads, null for a candidate that is not scored; needed where one is asked. Recognises duplicates
    beside. Never logged."""
    id: Name | None = None
    """When all candidates of a set have one, arithmetic on tables runs in its order, so results have equal bits."""


class CandidateSet(WireModel):
    """One response with its K candidates."""

    id: Name | None = None
    group: Name | None = None
    """Names the prompt. Give it to all sets or to none; without it each set stands alone."""
    prompt: Prompt | None = None
    """What the candidates answer. Needed where a reward model is asked, and of no use elsewhere."""
    n_tokens: Index | None = None
    """Tokens of the completion. Needed when `tokens` is asked."""
    set_reward: RewardNumber | None = None
    """Reward of the whole response (format, length, safety): a GRPO advantage of its own on all tokens."""
    utilities: Numbers | None = None
    """2^K values, for the table utility only."""
    similarities: Annotated[list[Numbers], Field(fail_fast=True)] | None = None
    """K × K, symmetric: of candidate i with candidate j. Needed by the utilities of pairs and by `log_det`."""
    candidates: Annotated[list[Candidate], Field(fail_fast=True)]


class TokenSpans(WireModel):
    """Token ranges of all candidates, aligned with the values of `rewards`."""

    starts: IndexColumn
    stops: IndexColumn


RewardColumn: TypeAlias = Ragged | NumberOrNullRows

NamedRewardColumns: TypeAlias = Annotated[
    dict[RewardName, RewardColumn], Field(min_length=1, max_length=MAX_REWARD_NAMES)
]


class SetColumns(WireModel):
    """The same as `sets`, column by column; about eight times cheaper."""

    forms = COLUMN_FORMS

    rewards: RewardColumn | None = None
    """Needed where the utility uses rewards."""
    named_rewards: NamedRewardColumns | None = None
    """Several rewards by name, instead of `rewards`."""
    row_splits: IndexColumn | None = None
    """Candidates of each set, from 0 on, one entry more than there are sets. Needed where there are no rewards, but for
    tables, whose lengths tell the number of candidates."""
    groups: NameColumn | None = None
    ids: NameColumn | None = None
    spans: TokenSpans | None = None
    n_tokens: IndexColumn | None = None
    set_rewards: NumberOrNullColumn | None = None
    utilities: RaggedNumbers | NumberRows | None = None
    prompts: Annotated[list[Prompt], Field(fail_fast=True, max_length=MAX_SETS)] | None = None
    """One per set. Needed where a reward model is asked, and of no use elsewhere."""
    texts: Annotated[list[str | None], Field(fail_fast=True)] | None = None
    """One per candidate, aligned with the values of `rewards`: what a model reads, null for a candidate that is not
    scored; recognises duplicates."""
    candidate_ids: CandidateNameColumn | None = None
    """One per candidate, aligned with the values of `rewards`."""
    labels: CandidateNameOrNullColumn | None = None
    """The answer of each candidate, aligned with the values of `rewards`."""
    topics: RaggedNames | NameRowsOfCandidates | None = None
    """One row per candidate."""
    scores: RaggedNumbers | NumberRowsOfCandidates | None = None
    """One row per candidate."""
    similarities: RaggedNumbers | NumberRows | None = None
    """One row per set: its K × K matrix, row by row."""
    unions: CandidateNameOrNullColumn | None = None
    """The union of each candidate, aligned with the values of `rewards`."""


SETS_EXAMPLE: JsonDict = {
    "sets": [
        {"id": "a", "group": "p1", "candidates": [{"reward": 0.9}, {"reward": 0.5}, {"reward": 0.5}, {"reward": 0.1}]},
        {"id": "b", "group": "p1", "candidates": [{"reward": 0.2}, {"reward": 0.2}, {"reward": 0.2}, {"reward": 0.2}]},
    ]
}
COLUMNS_EXAMPLE: JsonDict = {
    "columns": {"rewards": [[0.9, 0.5, 0.5, 0.1], [0.2, 0.2, 0.2, 0.2]], "groups": ["p1", "p1"]}
}
TOKENS_EXAMPLE: JsonDict = {
    "sets": [
        {
            "group": "p1",
            "n_tokens": 10,
            "candidates": [{"reward": 1.0, "span": [2, 5]}, {"reward": 0.0, "span": [6, 9]}],
        },
        {
            "group": "p1",
            "n_tokens": 8,
            "candidates": [{"reward": 0.4, "span": [1, 3]}, {"reward": 0.3, "span": [4, 8]}],
        },
    ],
    "credit": {"type": "blend", "from": "shapley", "to": "leave_one_out", "position": 0.3},
    "tokens": {"other": "set", "length_norm": True},
    "expect": {"group_size": 2},
}
TABLE_EXAMPLE: JsonDict = {
    "sets": [{"utilities": [0.0, 0.3, 0.5, 1.0], "candidates": [{"id": "x"}, {"id": "y"}]}],
    "utility": {"type": "table"},
    "advantage": {"type": "none"},
}


class ShapleyRequest(WireModel):
    """Candidate sets in; credits, advantages and token advantages out."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [SETS_EXAMPLE, COLUMNS_EXAMPLE, TOKENS_EXAMPLE, TABLE_EXAMPLE]}
    )
    forms = REQUEST_FORMS

    sets: Annotated[list[CandidateSet], Field(fail_fast=True, min_length=1, max_length=MAX_SETS)] | None = None
    columns: SetColumns | None = None
    rewards: ModelRewards | None = None
    """Where the rewards come from when the sets have none; null: the sets have them."""
    features: EmbeddingFeatures | None = None
    """Where scores, topics or similarities come from when the sets have none; null: the sets have them."""
    utility: UtilityChoice = MaxUtility()
    aggregation: AggregationChoice = AggregationChoice()
    credit: CreditChoice = PlainCredit()
    estimator: EstimatorChoice = EstimatorChoice()
    advantage: AdvantageChoice = AdvantageChoice()
    tokens: TokensChoice | None = None
    malformed: MalformedChoice = MalformedChoice()
    expect: ExpectChoice = ExpectChoice()
    incomplete_group: Literal["flag", "error"] = "flag"
    """What happens to the other sets of a group that lost one to an error."""
    deterministic: bool = False
    """Ask the model about this request by itself, so that others of its batch change no bit. Answers without a model
    are deterministic always."""
    dry_run: bool = False
    """Check the structure, answer what it would cost, compute nothing."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.sets is None) == (self.columns is None):
            raise ValueError("give exactly one of sets and columns")
        return self


class Service(WireModel):
    """Who answered."""

    version: str
    methods: int
    """Version of the arithmetic: it changes when a number changes under an unchanged request."""


class Usage(WireModel):
    """What the answer cost."""

    evaluations: int
    """Different texts that a model scored."""
    from_cache: int
    """Utilities that were remembered from earlier requests, of this replica or another, and cost no evaluation. Counted
    for each set and coalition, also where two of them are the same text."""
    tokens_computed: int
    """Tokens that went through the model: those of distinct prefixes, where it reads tries."""
    tokens_naive: int
    """Tokens of all texts one by one."""
    tokens_spliced: int = 0
    """Those of `tokens_naive` in texts that were put together from the tokens of their units."""
    engine_s: float
    """Seconds of the model, shared with others of a batch by tokens."""
    queue_s: float
    """Seconds between the last byte of the request and the start of its work, and those before the model's."""


class ItemError(WireModel):
    """Why one set has no answer."""

    code: ErrorCode
    pointer: str
    detail: str
    retryable: bool


class SetResult(WireModel):
    """Answer for one set."""

    id: Name | None = None
    status: SetStatus
    credits: list[float | None] | None = None
    """One per candidate, reward units; null for a candidate that is not a player."""
    advantages: list[float | None] | None = None
    set_advantage: float | None = None
    """For tokens outside the candidates."""
    set_reward_advantage: float | None = None
    """GRPO advantage of `set_reward`, before its weight."""
    token_advantages: list[float] | None = None
    utility_empty: float | None = None
    utility_grand: float | None = None
    credit_sum: float | None = None
    gap: float | None = None
    """Σ credit − (v(N) − v(∅)): near 0 for efficient rules, a fact of the others."""
    exact: bool | None = None
    method: MethodName | None = None
    standard_errors: list[float | None] | None = None
    """One per candidate, reward units; null for exact credits, and for a candidate that is not a player."""
    intervals: list[tuple[float, float] | None] | None = None
    """Marginal 95 % intervals; null likewise, and where there are too few coalitions for one."""
    flags: list[FlagName] = Field(default_factory=list)
    error: ItemError | None = None


class ResultRagged(WireModel):
    """Rows of unequal length in an answer; null in the slots of a failed set and of candidates that are not players."""

    values: list[float | None]
    row_splits: list[int]


class ColumnResult(WireModel):
    """Answers for all sets, column by column; null in the slots of a failed set."""

    ids: list[Name] | None = None
    status: list[int]
    """0 for an answer, 1 for an error."""
    credits: ResultRagged
    advantages: ResultRagged
    set_advantages: list[float | None]
    set_reward_advantages: list[float | None] | None = None
    token_advantages: ResultRagged | None = None
    utility_empty: list[float | None]
    utility_grand: list[float | None]
    credit_sum: list[float | None]
    gap: list[float | None]
    flags: list[int]
    """One bit mask per set; bit i is `flag_names[i]`."""
    flag_names: list[FlagName]
    standard_errors: ResultRagged | None = None
    """Reward units; null for exact credits. Absent where all are exact."""
    exact: bool
    """Whether all credits are the rule's values."""
    method: MethodName
    """How the credits were found; `several` where sets differ."""


class RowError(ItemError):
    """Why one row of a columnar request has no answer."""

    row: int


class ShapleyResponse(WireModel):
    """Answer in the form of the request: `sets` to `sets`, `columns` to `columns`; neither for a dry run."""

    request_id: str
    service: Service
    model: str | None = None
    weight_version: str | None = None
    usage: Usage
    sets: list[SetResult] | None = None
    columns: ColumnResult | None = None
    errors: list[RowError] | None = None
