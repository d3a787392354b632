"""From the body of `/v1/credit/shapley/solve` to credits, or to the next coalitions: for the service and local mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import CandidateSets, SetError
from creditd.credit.credit_rules import CreditRule, PrefixGain, ends_of, needs_unions
from creditd.credit.evaluated_games import EvaluatedCredits, EvaluatedGame
from creditd.credit.evaluation_limits import planned_evaluations
from creditd.credit.evaluation_needs import EstimatorOptions
from creditd.credit.flags import Flag
from creditd.credit.set_credit import SetCreditOptions, SetCredits, set_credit
from creditd.credit.set_expectations import Expectation
from creditd.credit.set_games import SolvedSets
from creditd.credit.token_advantages import TokenPolicy
from creditd.wire import solve
from creditd.wire.arrays import group_numbers, numbers_or_missing, splits_of
from creditd.wire.choices import normalization_of, rule_of
from creditd.wire.errors import ErrorCode
from creditd.wire.limits import MAX_CELLS, RequestLimits, check_rows, check_tokens
from creditd.wire.solve_known import Remembered, known_of, order_of, tell_remembered
from creditd.wire.validation import wire_error

Booleans: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class SolvedItem:
    """What is known of one game.

    Attributes:
        next: Shape (R, n), bool: coalitions to evaluate; none when it is solved, or when the answer has no room left.
        planned: Most coalitions that are evaluated altogether.
        known: Coalitions of the plan that are known.
        remembered: Utilities that the answer rests on and that the request does not say.
        credits: The answer, or None while it is open.
    """

    next: Booleans
    planned: int
    known: int
    remembered: int
    credits: EvaluatedCredits | None


@dataclass(frozen=True)
class SolvedItems:
    """Answers to all items of a request.

    Attributes:
        items: One per item; None for one that failed.
        credits: Advantages and more of all items, failed ones marked; None while any item is open.
        errors: At most one per item, by row.
    """

    items: tuple[SolvedItem | None, ...]
    credits: SetCredits | None
    errors: tuple[SetError, ...]

    @property
    def done(self) -> bool:
        """Whether no item is open."""
        return self.credits is not None

    @property
    def n_remembered(self) -> int:
        """Utilities that the answers rest on and that the request does not say."""
        failed = {error.row for error in self.errors}
        return sum(one.remembered for row, one in enumerate(self.items) if one is not None and row not in failed)


def solve_items(
    request: solve.SolveRequest,
    limits: RequestLimits,
    checkpoint: Callable[[], None] = lambda: None,
    remembered: Mapping[int, Remembered] = MappingProxyType({}),
) -> SolvedItems:
    """Credits of games whose utilities the caller evaluates, or the coalitions to evaluate next.

    Args:
        request: A valid request.
        limits: Bounds on items and evaluations.
        checkpoint: Called before each item; what it raises ends the computation.
        remembered: What was supplied of items before, by their place; each has `player_ids`.

    Returns:
        A pure function of the request and of what is remembered: as if the caller had evaluated, when asked, what the
        plan asks for and is remembered. Utilities beyond the plan count if the request says them, and not otherwise.

    Raises:
        WireError: If there are too many items or tokens, or only some items name their group.
    """
    check_rows(len(request.items), limits)
    if needs_unions(rule_of(request.credit)):
        detail = "owen has no plan of coalitions; expected another rule, or all 2**K utilities as a table"
        raise wire_error(ErrorCode.INVALID_REQUEST, "/credit", detail)
    normalization = normalization_of(request.advantage)
    groups, n_groups = group_numbers([item.group for item in request.items], "/items")
    rule = rule_of(request.credit)
    options = EstimatorOptions(**request.estimator.model_dump())
    batch = _batch(request, groups, n_groups)
    if batch.n_tokens is not None:
        check_tokens(batch.n_tokens, limits)
    found: list[SolvedItem | None] = []
    errors: list[SetError] = []
    cells = MAX_CELLS
    for row, item in enumerate(request.items):
        checkpoint()
        most = min(request.batch_size, cells // item.n_players)
        before = remembered.get(row)
        one = _solved(row, item, rule, options, limits, most, before, tokens=request.tokens is not None)
        if isinstance(one, SetError):
            errors.append(one)
        else:
            cells -= one.next.size
        found.append(None if isinstance(one, SetError) else one)
    settings = SetCreditOptions(
        rule=rule,
        normalization=normalization,
        tokens=None if request.tokens is None else TokenPolicy(**request.tokens.model_dump()),
        expect=Expectation(**request.expect.model_dump()),
        fail_incomplete_groups=request.incomplete_group == "error",
        max_players=solve.MAX_PLAYERS,
        max_tokens_per_set=limits.tokens_per_set,
    )
    # What is wrong with an item beside its utilities is said before the caller evaluates any.
    answers = set_credit(batch, settings, tuple(errors), checkpoint, given=_given(found, batch.row_splits))
    failed = {error.row for error in answers.errors}
    is_open = any(item is not None and item.credits is None and row not in failed for row, item in enumerate(found))
    return SolvedItems(items=tuple(found), credits=None if is_open else answers, errors=answers.errors)


def pointer_to(error: SetError) -> str:
    """JSON pointer to what is wrong with an item."""
    base = f"/items/{error.row}"
    if error.field == "candidates":
        return f"{base}/n_players"
    if error.field in {"coalitions", "utilities"} and error.position is not None:
        return f"{base}/{error.field}/{error.position}"
    if error.field == "span":
        return f"{base}/spans" + ("" if error.position is None else f"/{error.position}")
    return f"{base}/{'player_ids' if error.field == 'id' else error.field}"


def solve_item(item: SolvedItem, answer: SolvedItems, row: int) -> dict[str, Any]:
    """What `SolveResult` says of an item that did not fail, but for its name.

    Args:
        item: The item.
        answer: The whole answer, which has its advantages once no item is open.
        row: Place of the item.

    Returns:
        Fields by name; arrays stay arrays.
    """
    found, flags = item.credits, item_flags(answer, row)
    fields: dict[str, Any] = {
        "status": "open" if found is None else "ok",
        "planned": item.planned,
        "evaluations": item.known if found is None else found.evaluations,
        "flags": Flag(flags).wire_names,
    }
    if found is None:
        return {**fields, "next": [np.flatnonzero(coalition).tolist() for coalition in item.next]}
    total = float(np.cumsum(found.credits)[-1])
    fields |= {
        "credits": found.credits,
        "standard_errors": found.standard_errors,
        "intervals": found.intervals,
        "exact": found.exact,
        "method": found.method,
        "utility_empty": found.empty,
        "utility_grand": found.grand,
        "credit_sum": total,
        "gap": total - (found.grand - found.empty),
    }
    solved = answer.credits
    if solved is None:
        return fields
    part = slice(int(solved.row_splits[row]), int(solved.row_splits[row + 1]))
    fields |= {"advantages": solved.advantages[part], "set_advantage": solved.set_advantages[row]}
    if solved.set_reward_advantages is not None:
        fields["set_reward_advantage"] = solved.set_reward_advantages[row]
    if solved.token_advantages is not None and solved.token_splits is not None:
        tokens = slice(int(solved.token_splits[row]), int(solved.token_splits[row + 1]))
        fields["token_advantages"] = solved.token_advantages[tokens]
    return fields


def item_flags(answer: SolvedItems, row: int) -> int:
    """Bits of an item: of its estimate, and of its group once no item is open."""
    item, solved = answer.items[row], answer.credits
    approximate = item is not None and item.credits is not None and item.credits.interval_approximate
    bits = int(Flag.INTERVAL_APPROXIMATE) if approximate else 0
    return bits if solved is None else bits | int(solved.flags[row])


def _solved(
    row: int,
    item: solve.SolveItem,
    rule: CreditRule,
    options: EstimatorOptions,
    limits: RequestLimits,
    batch_size: int,
    before: Remembered | None,
    *,
    tokens: bool,
) -> SolvedItem | SetError:
    """What is known of one game, or why it cannot be solved."""
    most = min(limits.evaluations, MAX_CELLS // item.n_players)
    planned = planned_evaluations(row, item.n_players, rule, options, most)
    if isinstance(planned, SetError):
        return planned
    known = known_of(row, item, tokens=tokens)
    if isinstance(known, SetError):
        return known
    names, order = item.player_ids, np.arange(item.n_players)
    # A rule about the order of the players takes them in it, whatever their names.
    if names is not None and not any(isinstance(end, PrefixGain) for end in ends_of(rule)):
        order = order_of(names)
    back = np.argsort(order, kind="stable")
    coalitions, utilities = known[0][:, order], known[1]
    try:
        game = EvaluatedGame(item.n_players, options, rule, known_coalitions=coalitions, known_utilities=utilities)
    except ValueError as error:
        return SetError(row, "invalid_request", "coalitions", None, str(error))
    n_remembered = 0
    if before is not None and names is not None:
        n_remembered = tell_remembered(game, back[order_of(names)], (coalitions, utilities), before)
    return SolvedItem(
        next=game.ask(max(batch_size, 1))[:batch_size, back],
        planned=planned,
        known=game.known,
        remembered=n_remembered,
        credits=game.credits().reordered(back) if game.done else None,
    )


def _batch(request: solve.SolveRequest, groups: Integers, n_groups: int) -> CandidateSets:
    """The items as sets whose candidates have no rewards of their own."""
    splits = splits_of([item.n_players for item in request.items])
    set_rewards, missing = None, None
    if any(item.set_reward is not None for item in request.items):
        set_rewards, missing = numbers_or_missing([item.set_reward for item in request.items])
    spans, n_tokens = None, None
    if request.tokens is not None:
        rows = [
            item.spans if item.spans is not None and len(item.spans) == item.n_players else [None] * item.n_players
            for item in request.items
        ]
        pairs = [span or (0, 0) for row in rows for span in row]
        spans = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        n_tokens = np.array([item.n_tokens or 0 for item in request.items], dtype=np.int64)
    return CandidateSets(
        rewards=np.zeros(int(splits[-1])),
        row_splits=splits,
        groups=groups,
        n_groups=n_groups,
        spans=spans,
        n_tokens=n_tokens,
        set_rewards=set_rewards,
        set_rewards_missing=missing,
    )


def _given(items: Sequence[SolvedItem | None], splits: Integers) -> SolvedSets:
    """The credits of all items; those of an item that is open, or that failed, are 0 and nobody reads them."""
    credits_ = np.zeros(int(splits[-1]))
    empty, grand, scale = (np.zeros(len(items)) for _ in range(3))
    for row, item in enumerate(items):
        if item is not None and item.credits is not None:
            credits_[splits[row] : splits[row + 1]] = item.credits.credits
            empty[row], grand[row], scale[row] = item.credits.empty, item.credits.grand, item.credits.scale
    return SolvedSets(credits=credits_, empty=empty, grand=grand, scale=scale)
