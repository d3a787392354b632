"""From the body of `/v1/credit/oar` to completions of the arithmetic, item by item.

Legend: `N` items, `T` tokens of one of them. A value that does not fit its item rejects the item alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.answer_parsers import ParserOptions, find_reasoning
from creditd.credit.candidate_sets import number_name
from creditd.credit.group_advantages import GRPO_EPSILONS
from creditd.credit.reshaping import LEAST_PERTURBATION_RANGE, ReshapeOptions
from creditd.credit.sensitivity_credit import GroupRuleOptions, SensitivityBatch, SensitivityCreditOptions
from creditd.credit.sensitivity_items import (
    MAX_OUTCOME_MAGNITUDE,
    SensitivityCredits,
    SensitivityError,
    SensitivityErrorCode,
    SensitivityField,
    SensitivityItem,
    TokenRange,
)
from creditd.credit.whitening import Whitening
from creditd.wire.arrays import group_numbers, numbered, numbers_or_missing
from creditd.wire.errors import ErrorCode
from creditd.wire.groups import GroupAdvantageChoice
from creditd.wire.limits import RequestLimits, check_rows
from creditd.wire.oar import OarItem, OarRequest
from creditd.wire.oar_choices import GivenParser, GivenSensitivity, PerturbationSensitivity, TagsParser
from creditd.wire.validation import wire_error

Integers: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
TextOf: TypeAlias = Callable[[Sequence[int]], tuple[str, Sequence[tuple[int, int]]]]
"""The text of token ids, and the characters of each token, as the policy's tokenizer has them."""
Ranges: TypeAlias = tuple[TokenRange | None, TokenRange | None]
"""Reasoning and answer."""


@dataclass(frozen=True)
class OarBatch:
    """The completions of a request.

    Attributes:
        items: N completions; None for one that is rejected.
        batch: The same as the arithmetic takes them; sensitivities that were given are told already.
    """

    items: tuple[SensitivityItem | None, ...]
    batch: SensitivityBatch


class _ItemError(Exception):
    """What is wrong with one item."""

    def __init__(
        self, code: SensitivityErrorCode, of: SensitivityField, detail: str, position: int | None = None
    ) -> None:
        super().__init__(detail)
        self.code, self.of, self.detail, self.position = code, of, detail, position

    def at(self, row: int) -> SensitivityError:
        """The same of an item of a request."""
        return SensitivityError(row, self.code, self.of, self.position, self.detail)


def oar_batch(
    request: OarRequest,
    limits: RequestLimits,
    checkpoint: Callable[[], None] = lambda: None,
    *,
    text_of: TextOf | None = None,
) -> OarBatch:
    """The completions of a request, and how they get their advantages.

    Args:
        request: A valid request.
        limits: Bounds on items and tokens.
        checkpoint: Called before each item; what it raises ends the work.
        text_of: Writes tokens as text, for parsers of items that come without; raises ValueError for ids that it does
            not have. None: nothing does.

    Returns:
        Completions whose values fit each other, and why the others do not.

    Raises:
        WireError: If there are too many items or tokens, only some items name their group, some have a reward and some
            an advantage, or the parser is none.

    Cost:
        O(characters + tokens), and what `text_of` takes.
    """
    items = request.items
    check_rows(len(items), limits)
    options, parser = _options(request), _parser(request)
    groups, n_groups = _groups(items)
    _check_outcomes(items)
    _check_tokens(items, limits)
    found: list[SensitivityItem | None] = []
    rejected: list[SensitivityError] = []
    for row, item in enumerate(items):
        checkpoint()
        try:
            found.append(_completion(item, request, parser, text_of, limits))
        except _ItemError as error:
            rejected.append(error.at(row))
            found.append(None)
    batch = SensitivityBatch(found, groups, n_groups, options, rejected)
    if isinstance(request.sensitivity, GivenSensitivity):
        for row in batch.wanted:
            column = items[row].sensitivities
            values = numbers_or_missing(() if column is None else column)[0]
            batch.tell(row, values[batch.positions(row)])
    return OarBatch(tuple(found), batch)


def solve_given(
    request: OarRequest, limits: RequestLimits, checkpoint: Callable[[], None] = lambda: None
) -> SensitivityCredits:
    """The answer to a request whose sensitivities are given.

    Args:
        request: A valid request of the sensitivity `given`.
        limits: Bounds on items and tokens.
        checkpoint: Called before each item; what it raises ends the work.

    Returns:
        One answer or one error per item.

    Raises:
        WireError: As `oar_batch`.
    """
    return oar_batch(request, limits, checkpoint).batch.answer(checkpoint)


def token_ids(column: Sequence[int] | Integers | None) -> Integers:
    """Token ids as an array of shape (T,), int64; of none where there is no column."""
    return np.asarray(() if column is None else column, dtype=np.int64)


def pointer_to(error: SensitivityError) -> str:
    """JSON pointer to what is wrong with an item."""
    return f"/items/{error.row}/{error.field}" + ("" if error.position is None else f"/{error.position}")


def _options(request: OarRequest) -> SensitivityCreditOptions:
    """How completions get their advantages."""
    of_probabilities = isinstance(request.sensitivity, PerturbationSensitivity)
    return SensitivityCreditOptions(
        reshape=ReshapeOptions(**request.reshape.model_dump()),
        least_range=LEAST_PERTURBATION_RANGE if of_probabilities else 0.0,
        advantage=_rule(request.advantage),
        group_size=request.expect.group_size,
        fail_incomplete_groups=request.incomplete_group == "error",
    )


def _rule(choice: GroupAdvantageChoice) -> GroupRuleOptions:
    """How rewards become advantages; what is absent is as TRL has it."""
    whitening: Whitening | None = Whitening("trl")
    if choice.whitening is not None:
        own = choice.whitening
        whitening = None if own.type == "none" else Whitening(own.type, ddof=own.ddof, epsilon=own.epsilon)
    return GroupRuleOptions(
        rule=choice.type,
        ddof=choice.ddof,
        epsilon=GRPO_EPSILONS["trl"] if choice.epsilon is None else choice.epsilon,
        k=choice.k,
        threshold=choice.threshold,
        whitening=whitening,
    )


def _parser(request: OarRequest) -> ParserOptions | None:
    """What finds reasoning and answer; None where they are given."""
    choice = request.parser
    if isinstance(choice, GivenParser):
        return None
    try:
        if isinstance(choice, TagsParser):
            return ParserOptions("tags", reasoning_tag=choice.reasoning_tag, answer_tag=choice.answer_tag)
        return ParserOptions(choice.type)
    except ValueError as error:
        raise wire_error(ErrorCode.INVALID_REQUEST, "/parser", str(error)) from None


def _groups(items: Sequence[OarItem]) -> tuple[Integers, int]:
    """Which items are compared: those of a name, else those of a prompt, else none."""
    if any(item.group is not None for item in items):
        return group_numbers([item.group for item in items], "/items")
    return numbered(
        row if item.prompt_ids is None else _digest(token_ids(item.prompt_ids)) for row, item in enumerate(items)
    )


def _digest(ids: Integers) -> str:
    """A name of a prompt that is short however long it is."""
    return blake2b(ids.tobytes(), digest_size=16).hexdigest()


def _check_outcomes(items: Sequence[OarItem]) -> None:
    """Refuse a request in which some items have a reward and some an advantage."""
    rewarded = [item.reward is not None for item in items]
    if not any(rewarded):
        return
    for row, item in enumerate(items):
        if item.advantage is not None:
            detail = "got an advantage, but other items have a reward; expected one of them throughout"
            if rewarded[row]:
                detail = "got an advantage and a reward; expected one of them"
            raise wire_error(ErrorCode.INVALID_REQUEST, f"/items/{row}/advantage", detail)


def _check_tokens(items: Sequence[OarItem], limits: RequestLimits) -> None:
    """Refuse a request of too many tokens, before anything is made for them."""
    total = sum(_n_tokens(item) for item in items)
    if total > limits.token_advantages:
        detail = f"got {total} tokens; expected at most {limits.token_advantages} per request"
        raise wire_error(ErrorCode.BUDGET_EXCEEDED, "/items", detail)


def _n_tokens(item: OarItem) -> int:
    """How many tokens an item says that it has."""
    columns = (item.sensitivities, item.completion_ids)
    return next((len(column) for column in columns if column is not None), 0)


def _completion(
    item: OarItem, request: OarRequest, parser: ParserOptions | None, text_of: TextOf | None, limits: RequestLimits
) -> SensitivityItem:
    """One completion, once its values fit each other."""
    asks = not isinstance(request.sensitivity, GivenSensitivity)
    _check_presence(item, asks=asks, parses=parser is not None)
    n_tokens, most = _n_tokens(item), limits.tokens_per_set
    of: SensitivityField = "completion_ids" if asks else "sensitivities"
    if n_tokens > most:
        raise _ItemError("shape_mismatch", of, f"got {n_tokens} tokens; expected at most {most}")
    columns: tuple[tuple[SensitivityField, int | None], ...] = (
        ("completion_ids", None if item.completion_ids is None else len(item.completion_ids)),
        ("completion_mask", None if item.completion_mask is None else len(item.completion_mask)),
        ("token_offsets", None if item.token_offsets is None else len(item.token_offsets)),
    )
    for name, length in columns:
        if length is not None and length != n_tokens:
            raise _ItemError("shape_mismatch", name, f"got {length} entries; expected {n_tokens}, one per token")
    trainable = np.ones(n_tokens, dtype=np.bool_)
    if item.completion_mask is not None:
        trainable = np.asarray(item.completion_mask, dtype=np.bool_).reshape(-1)
    reasoning, answer = _ranges(item, n_tokens, asks=asks) if parser is None else _found(item, parser, text_of)
    _check_outcome("advantage", item.advantage)
    _check_outcome("reward", item.reward)
    _check_judged(item, request.advantage)
    return SensitivityItem(n_tokens, trainable, reasoning, answer, item.advantage, item.reward)


def _check_presence(item: OarItem, *, asks: bool, parses: bool) -> None:
    """Refuse an item that lacks what its request needs, or has what is of no use to it."""
    needed: tuple[SensitivityField, ...] = ("prompt_ids", "completion_ids") if asks else ("sensitivities",)
    for name in needed:
        if getattr(item, name) is None:
            whose = "a policy is asked about them" if asks else "the sensitivity given needs them"
            raise _ItemError("invalid_request", name, f"{name} is missing; {whose}")
    if asks and item.sensitivities is not None:
        detail = "got sensitivities, but a policy is asked; expected null, or the sensitivity given"
        raise _ItemError("invalid_request", "sensitivities", detail)
    if not parses:
        unused: tuple[SensitivityField, ...] = ("completion", "token_offsets")
        why = "the parser given reads no text; expected null, or another parser"
    else:
        unused, why = ("reasoning", "answer"), "the parser finds it; expected null, or the parser given"
        if item.completion is not None and item.token_offsets is None:
            raise _ItemError("invalid_request", "token_offsets", "token_offsets is missing; it comes with completion")
        if item.completion is None and item.token_offsets is not None:
            raise _ItemError("invalid_request", "completion", "completion is missing; it comes with token_offsets")
        if item.completion is None and not asks:
            raise _ItemError("invalid_request", "completion", "completion is missing; the parser reads it")
    for name in unused:
        if getattr(item, name) is not None:
            raise _ItemError("invalid_request", name, f"got {name}, but {why}")


def _ranges(item: OarItem, n_tokens: int, *, asks: bool) -> Ranges:
    """Reasoning and answer as they are given."""
    reasoning, answer = _pair(item.reasoning), _pair(item.answer)
    if answer is None and asks:
        return None, None  # nothing to ask the policy about
    if answer is None and reasoning is None:
        return (0, n_tokens), None
    return reasoning, answer


def _pair(ends: Sequence[int] | None) -> TokenRange | None:
    return None if ends is None else (ends[0], ends[1])


def _found(item: OarItem, parser: ParserOptions, text_of: TextOf | None) -> Ranges:
    """Reasoning and answer as a parser finds them."""
    text, offsets = item.completion, item.token_offsets
    if text is None or offsets is None:
        if text_of is None:
            raise _ItemError("invalid_request", "completion", "completion is missing; the parser reads it")
        try:
            text, offsets = text_of(token_ids(item.completion_ids).tolist())  # type: ignore[assignment]
        except ValueError as error:
            raise _ItemError("invalid_request", "completion_ids", str(error)) from None
    try:
        return find_reasoning(text or "", np.asarray(offsets, dtype=np.int64).reshape(-1, 2), parser)
    except ValueError as error:
        raise _ItemError("shape_mismatch", "token_offsets", str(error)) from None


def _check_outcome(of: SensitivityField, value: float | None) -> None:
    """Refuse an advantage, or a reward, that is no usable number."""
    if value is not None and not abs(value) <= MAX_OUTCOME_MAGNITUDE:
        code: SensitivityErrorCode = "invalid_request" if np.isfinite(value) else "non_finite_value"
        usable = f"a finite number of magnitude at most {MAX_OUTCOME_MAGNITUDE:g}"
        raise _ItemError(code, of, f"{of} is {number_name(value)}; expected {usable}")


def _check_judged(item: OarItem, choice: GroupAdvantageChoice) -> None:
    """Refuse a reward that the rule cannot judge."""
    judged = choice.type == "pass_at_k" and choice.threshold is None
    if judged and item.reward is not None and item.reward not in {0.0, 1.0}:
        detail = f"reward is {number_name(item.reward)}; expected 0 or 1, because pass_at_k got no threshold"
        raise _ItemError("invalid_request", "reward", detail)
