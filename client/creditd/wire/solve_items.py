"""From the body of `/v1/credit/shapley/solve` to credits, or to the next coalitions: for the service and local mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import USABLE, CandidateSets, ErrorField, SetError, number_name, unusable_numbers
from creditd.credit.candidate_sets import ErrorCode as ErrorCodeOfSets
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
from creditd.wire.arrays import group_numbers, numbers_or_missing, ranks_of, splits_of
from creditd.wire.choices import normalization_of, rule_of
from creditd.wire.errors import ErrorCode
from creditd.wire.limits import MAX_CELLS, RequestLimits, check_rows, check_tokens
from creditd.wire.validation import wire_error

Booleans: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

_NON_FINITE: dict[ErrorCodeOfSets, ErrorCodeOfSets] = {"non_finite_value": "non_finite_utility"}


@dataclass(frozen=True)
class SolvedItem:
    """What is known of one game.

    Attributes:
        next: Shape (R, n), bool: coalitions to evaluate; none when it is solved, or when the answer has no room left.
        planned: Most coalitions that are evaluated altogether.
        known: Coalitions of the plan that are known.
        credits: The answer, or None while it is open.
    """

    next: Booleans
    planned: int
    known: int
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


def solve_items(
    request: solve.SolveRequest, limits: RequestLimits, checkpoint: Callable[[], None] = lambda: None
) -> SolvedItems:
    """Credits of games whose utilities the caller evaluates, or the coalitions to evaluate next.

    Args:
        request: A valid request.
        limits: Bounds on items and evaluations.
        checkpoint: Called before each item; what it raises ends the computation.

    Returns:
        A pure function of the request.

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
        one = _solved(row, item, rule, options, limits, most, tokens=request.tokens is not None)
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
    *,
    tokens: bool,
) -> SolvedItem | SetError:
    """What is known of one game, or why it cannot be solved."""
    most = min(limits.evaluations, MAX_CELLS // item.n_players)
    planned = planned_evaluations(row, item.n_players, rule, options, most)
    if isinstance(planned, SetError):
        return planned
    known = _known(row, item, tokens=tokens, in_order=any(isinstance(end, PrefixGain) for end in ends_of(rule)))
    if isinstance(known, SetError):
        return known
    coalitions, utilities, order = known
    try:
        game = EvaluatedGame(
            item.n_players, options, rule, known_coalitions=coalitions[:, order], known_utilities=utilities
        )
    except ValueError as error:
        return SetError(row, "invalid_request", "coalitions", None, str(error))
    back = np.argsort(order, kind="stable")
    upcoming = game.ask(max(batch_size, 1))[:batch_size, back]
    if not game.done:
        return SolvedItem(next=upcoming, planned=planned, known=game.known, credits=None)
    return SolvedItem(next=upcoming, planned=planned, known=game.known, credits=game.credits().reordered(back))


def _known(
    row: int, item: solve.SolveItem, *, tokens: bool, in_order: bool
) -> tuple[Booleans, Floats, Integers] | SetError:
    """Known coalitions as rows, their utilities, and the players in the order in which they are sampled.

    A rule about the order of the players takes them `in_order`, whatever their names.
    """
    wrong_shape = _misshapen(row, item, tokens=tokens)
    if wrong_shape is not None:
        return wrong_shape
    n = item.n_players
    if len(item.coalitions) > MAX_CELLS // n:
        detail = f"got {len(item.coalitions)} coalitions of {n} players; expected at most {MAX_CELLS // n}"
        return SetError(row, "budget_exceeded", "coalitions", None, detail)
    coalitions = np.zeros((len(item.coalitions), n), dtype=np.bool_)
    for place, players in enumerate(item.coalitions):
        if players and max(players) >= n:
            detail = f"player {max(players)} is not one of 0 … {n - 1}"
            return SetError(row, "invalid_request", "coalitions", place, detail)
        coalitions[place, players] = True
    utilities = np.asarray(item.utilities, dtype=np.float64)
    for code, wrong in unusable_numbers(utilities, None):
        if wrong.any():
            place = int(np.flatnonzero(wrong)[0])
            coalition, value = _named(item.coalitions[place]), number_name(utilities[place])
            detail = f"utility of players {coalition} is {value}; expected {USABLE}"
            return SetError(row, _NON_FINITE.get(code, code), "utilities", place, detail)
    order = np.arange(n)
    if item.player_ids is not None and not in_order:
        order = np.argsort(ranks_of(item.player_ids)[0], kind="stable")
    return coalitions, utilities, order


def _named(players: Sequence[int]) -> str:
    """A coalition in a message, the first ten players of it."""
    return f"[{', '.join(map(str, players[:10]))}{', …' if len(players) > 10 else ''}]"


def _misshapen(row: int, item: solve.SolveItem, *, tokens: bool) -> SetError | None:
    """What is missing of an item, or has another length than its players."""
    n, ids, spans = item.n_players, item.player_ids, item.spans
    if len(item.coalitions) != len(item.utilities):
        detail = f"got {len(item.utilities)} utilities; expected {len(item.coalitions)}, one per coalition"
        return SetError(row, "shape_mismatch", "utilities", None, detail)
    if ids is not None and (len(ids) != n or len(set(ids)) != n):
        return SetError(row, "invalid_request", "id", None, f"expected {n} different names, one per player")
    if tokens and (item.n_tokens is None or spans is None):
        name: ErrorField = "n_tokens" if item.n_tokens is None else "span"
        return SetError(row, "invalid_request", name, None, f"{name} is missing; token advantages need it")
    if tokens and spans is not None and len(spans) != n:
        detail = f"got {len(spans)} spans; expected {n}, one per player"
        return SetError(row, "shape_mismatch", "span", None, detail)
    return None


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
