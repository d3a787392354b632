"""Schema of `POST /v1/credit/shapley/solve`: the caller evaluates the utility, the service says of which coalitions.

Everything that is known goes in with each request: no conversation is kept. As long as an item is open the answer names
coalitions to evaluate; ask again with their utilities added, until all items are solved. Beside a `utility_id` the
service also remembers what it is told, for as long as it can, and then asks for less; the answer is the same.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field, ValidationError, model_validator
from pydantic.config import JsonDict
from pydantic_core import InitErrorDetails, PydanticCustomError
from typing_extensions import Self

from creditd.wire.errors import MAX_ERRORS
from creditd.wire.fields import MAX_SETS, Index, Name, NumberColumn, RewardNumber, WireModel
from creditd.wire.forms import ALL_IN_GROUPS_OR_NONE
from creditd.wire.request_forms import SOLVE_FORMS
from creditd.wire.v1 import (
    AdvantageChoice,
    CreditChoice,
    EstimatorChoice,
    ExpectChoice,
    FlagName,
    ItemError,
    PlainCredit,
    Service,
    TokensChoice,
    Usage,
)

MAX_PLAYERS = 4096
MAX_BATCH_SIZE = 65_536

Player: TypeAlias = Annotated[int, Field(ge=0, lt=MAX_PLAYERS)]
Coalition: TypeAlias = Annotated[list[Player], Field(fail_fast=True, max_length=MAX_PLAYERS)]
Span: TypeAlias = Annotated[list[Index], Field(min_length=2, max_length=2)]


class SolveItem(WireModel):
    """One game: its players, and what is known of it so far."""

    id: Name | None = None
    group: Name | None = None
    """Names the prompt. Give it to all items or to none; without it each item stands alone."""
    n_players: Annotated[int, Field(ge=1, le=MAX_PLAYERS)]
    player_ids: Annotated[list[Name], Field(fail_fast=True, max_length=MAX_PLAYERS)] | None = None
    """Names of the players, all different: sampling and arithmetic then run in their order, so that the order of the
    players changes no bit. Beside a `utility_id` each is needed and names its candidate by the content, as a hash of
    the text does: under a name that stays when the content changes, utilities of the old content are taken for those
    of the new."""
    prompt_id: Name | None = None
    """Names what the candidates answer, by the content as well. Needed beside a `utility_id`, the same name everywhere
    if the utility looks at no prompt; refused without one."""
    coalitions: Annotated[list[Coalition], Field(fail_fast=True, max_length=1 << 20)] = Field(default_factory=list)
    """Coalitions whose utility is known: each the list of its players, 0 … n_players − 1; [] is the empty one."""
    utilities: NumberColumn = Field(default_factory=list)
    """One per coalition, reward units."""
    set_reward: RewardNumber | None = None
    """Reward of the whole response (format, length, safety): a GRPO advantage of its own on all tokens."""
    n_tokens: Index | None = None
    """Tokens of the completion. Needed when `tokens` is asked."""
    spans: Annotated[list[Span | None], Field(fail_fast=True, max_length=MAX_PLAYERS)] | None = None
    """Half-open token range of each player; null for one without tokens. Needed when `tokens` is asked."""


SOLVE_EXAMPLE: JsonDict = {"items": [{"id": "a", "n_players": 12}], "estimator": {"type": "auto", "budget": 256}}
SOLVED_EXAMPLE: JsonDict = {
    "items": [{"n_players": 2, "coalitions": [[], [0], [1], [0, 1]], "utilities": [0.0, 0.3, 0.5, 1.0]}],
    "advantage": {"type": "none"},
}
REMEMBERED_EXAMPLE: JsonDict = {
    "utility_id": "judge-v3",
    "items": [
        {
            "n_players": 2,
            "player_ids": ["9f3c1d", "07be52"],
            "prompt_id": "c5a0f2",
            "coalitions": [[], [0]],
            "utilities": [0.0, 0.3],
        }
    ],
}


class SolveRequest(WireModel):
    """Games and what is known of them in; the next coalitions to evaluate, or credits and advantages, out."""

    model_config = ConfigDict(json_schema_extra={"examples": [SOLVE_EXAMPLE, SOLVED_EXAMPLE, REMEMBERED_EXAMPLE]})
    forms = SOLVE_FORMS

    items: Annotated[
        list[SolveItem],
        Field(fail_fast=True, min_length=1, max_length=MAX_SETS, json_schema_extra=ALL_IN_GROUPS_OR_NONE),
    ]
    credit: CreditChoice = PlainCredit()
    estimator: EstimatorChoice = EstimatorChoice()
    """Coalitions that are known already count in the budget."""
    advantage: AdvantageChoice = AdvantageChoice()
    tokens: TokensChoice | None = None
    expect: ExpectChoice = ExpectChoice()
    incomplete_group: Literal["flag", "error"] = "flag"
    batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)] = 1024
    """Most coalitions that one answer names per item. It changes no number."""
    utility_id: Name | None = None
    """Names the function that gives the utilities, with its version. What the same API key supplied under it before is
    not asked for again, where the plan of the estimator asks for it; `usage.from_cache` counts it. Utilities beyond the
    plan, which can make an estimate exact, count only where the request itself says them: whether anything is
    remembered changes no number. A utility has to be a function of the `prompt_id` and of the names of its players,
    whatever their order. Change the name whenever the function, or whatever it reads, changes. What a request supplies
    counts: if it contradicts what is remembered of a game, the replica that it reaches forgets that, and what replicas
    share is overwritten as soon as it can be written. A replica that remembers the old utilities itself uses them until
    they expire, or until an operator purges what callers supplied."""

    @model_validator(mode="after")
    def _names_go_together(self) -> Self:
        """Names that utilities are remembered by are all there, or none of those that serve nothing else is."""
        offences: list[InitErrorDetails] = []
        for row, item in enumerate(self.items):
            if self.utility_id is None:
                if item.prompt_id is not None:
                    offences.append(_offence(row, "prompt_id", "got a name without a utility_id; expected null"))
            else:
                needed = {"player_ids": item.player_ids, "prompt_id": item.prompt_id}
                missing = [name for name, value in needed.items() if value is None]
                offences += [_offence(row, name, f"utility_id needs {name} on every item") for name in missing]
            if len(offences) >= MAX_ERRORS:
                break
        if offences:
            raise ValidationError.from_exception_data(type(self).__name__, offences)
        return self


def _offence(row: int, name: str, detail: str) -> InitErrorDetails:
    """What is wrong with a name of an item, and where."""
    return InitErrorDetails(type=PydanticCustomError("names", detail), loc=("items", row, name), input=None)


class SolveResult(WireModel):
    """One game: open, solved or failed."""

    id: Name | None = None
    status: Literal["open", "ok", "error"]
    next: list[list[int]] | None = None
    """Coalitions to evaluate next, while the item is open."""
    planned: int | None = None
    """Most coalitions that are evaluated altogether; fewer with a target standard error."""
    evaluations: int | None = None
    """Distinct coalitions that the credits rest on, or that are known so far."""
    credits: list[float] | None = None
    """One per player, reward units."""
    standard_errors: list[float] | None = None
    """One per player, reward units; null for exact credits."""
    intervals: list[tuple[float, float]] | None = None
    """Marginal 95 % intervals; null for exact credits, and where there are too few coalitions for one."""
    exact: bool | None = None
    method: Literal["stratified", "permutations", "table", "definition"] | None = None
    utility_empty: float | None = None
    utility_grand: float | None = None
    credit_sum: float | None = None
    gap: float | None = None
    """Σ credit − (v(N) − v(∅)): near 0 for efficient rules, a fact of the others."""
    advantages: list[float] | None = None
    """One per player, once no item of the request is open: groups are normalised as a whole."""
    set_advantage: float | None = None
    set_reward_advantage: float | None = None
    token_advantages: list[float] | None = None
    flags: list[FlagName] = Field(default_factory=list)
    error: ItemError | None = None


class SolveResponse(WireModel):
    """Answer to each item."""

    request_id: str
    service: Service
    usage: Usage
    done: bool
    """Whether no item is open."""
    items: list[SolveResult]
