"""Answers about the units of completions: by a reward model of the service, or by utilities that the caller gives."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from starlette.types import Receive

from creditd.cache.budget import Budget
from creditd.credit.span_credit import SpanBatch
from creditd.credit.span_items import SpanCredits, SpanError
from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.protocol import EngineUsage, PreparedAttention, ScoredTexts, TextScorer, VariantTexts
from creditd.engines.registry import UnknownModelError
from creditd.scoring.deadline import Deadline
from creditd.scoring.model_questions import CostExceededError
from creditd.scoring.span_utilities import CompletionText, SpanUtilities
from creditd.server.answers import Answer, nothing_answered, refused_as_a_whole
from creditd.server.convert import Encode, envelope, flag_counts
from creditd.server.errors import refusal
from creditd.server.model_rounds import Caller, ModelRounds, Round
from creditd.server.resources import Resources
from creditd.wire.errors import ErrorCode, first_items
from creditd.wire.limits import RequestLimits
from creditd.wire.scar import ScarRequest, ScarSolveRequest
from creditd.wire.scar_choices import AbsentChoice, BlankAbsent, MaskTokenAbsent
from creditd.wire.scar_items import plain_prompt, pointer_to, span_request
from creditd.wire.scar_results import credited_item, failed_item
from creditd.wire.scar_solve import solve_results, solve_spans

BLANK = " "


async def answer_scar(
    asked: ScarRequest,
    *,
    resources: Resources,
    deadline: Deadline,
    receive: Receive,
    tenant: bytes,
    request_id: str,
    encode: Encode,
) -> Answer:
    """The answer to `/v1/credit/scar`.

    Args:
        asked: The request.
        resources: What the application holds.
        deadline: When the caller stops waiting.
        receive: Where the connection says that the caller has left.
        tenant: Whose remembered utilities may be used.
        request_id: Its identity.
        encode: Writes the answer.

    Returns:
        The body, or a refusal when no item could be answered.

    Raises:
        ServiceError: If there is no such model, it fails or is overloaded, or the request does not fit.
        DeadlineExceededError: If the deadline passes first.
        ClientDisconnect: If the caller leaves first.
    """
    received_s = time.perf_counter()
    budget = Budget(resources.settings.cache_budget_s)
    caller = Caller(resources, deadline, receive, tenant, budget, alone=asked.deterministic)
    engine = _engine_of(asked.model, resources)
    absent = await caller.read(partial(_absent, asked.absent, engine))
    rounds = ModelRounds(engine, caller, counts=not asked.dry_run, rendering=absent.name)
    questions = await caller.run(partial(_questions, asked, absent.filler, resources.limits, deadline))
    queue_s = time.perf_counter() - received_s
    usage = await _with_attention(questions, engine, rounds, caller, dry_run=asked.dry_run)
    if asked.dry_run:
        usage += await _price(questions, rounds, caller)
        head = {**envelope(request_id, queue_s, usage), "model": engine.spec.id, "weight_version": None}
        return Answer(encode(head), len(asked.items), {}, {})
    upcoming = await caller.run(partial(rounds.round_of, questions))
    while upcoming.texts:
        found = await rounds.answers(upcoming)
        usage += found.usage
        upcoming = await caller.run(partial(_told, questions, rounds, found))
    head = {**envelope(request_id, queue_s, usage), "model": engine.spec.id, "weight_version": None}
    return await caller.run(partial(_answered, asked, questions, head, encode))


def answer_scar_solve(
    asked: ScarSolveRequest,
    *,
    request_id: str,
    received_s: float,
    limits: RequestLimits,
    deadline: Deadline,
    encode: Encode,
) -> Answer:
    """The answer to `/v1/credit/scar/solve`.

    Args:
        asked: The request.
        request_id: Its identity.
        received_s: When its last byte arrived, on `time.perf_counter`.
        limits: Bounds of one request.
        deadline: When the caller stops waiting.
        encode: Writes the answer.

    Returns:
        The body, or a refusal when no item could be answered.

    Raises:
        ServiceError: If the choices contradict each other.
        DeadlineExceededError: If the caller has stopped waiting.
    """
    queue_s = time.perf_counter() - received_s
    with refused_as_a_whole():
        answer = solve_spans(asked, limits, deadline.check)
    n_items = len(asked.items)
    if len(answer.errors) == n_items:
        return _nothing(n_items, answer.errors)
    document = {**envelope(request_id, queue_s), "done": answer.done, "items": solve_results(asked, answer)}
    return Answer(encode(document), n_items, _codes(answer.errors), _flags(answer.credits))


@dataclass(frozen=True)
class _Absent:
    """What stands for absent units.

    Attributes:
        name: Of the rule, with its text.
        filler: The text.
    """

    name: str
    filler: str


def _engine_of(name: str, resources: Resources) -> TextScorer:
    """The reward model that a request names."""
    try:
        return resources.engines.scorer(name)
    except UnknownModelError as error:
        raise refusal(ErrorCode.UNKNOWN_MODEL, "/model", str(error)) from None


def _absent(choice: AbsentChoice, engine: TextScorer) -> _Absent:
    """What stands for absent units; a token of the model has its text from it."""
    if isinstance(choice, BlankAbsent):
        return _Absent(choice.type, BLANK)
    if not isinstance(choice, MaskTokenAbsent):
        return _Absent(choice.type, "")
    text = choice.text
    if choice.id is not None:
        try:
            text = engine.token_text(choice.id)
        except ModelUnsuitableError as error:
            raise refusal(ErrorCode.INVALID_REQUEST, "/absent/id", f"model {engine.spec.id}: {error}") from None
    return _Absent(f"{choice.type}:{text}", text or "")


def _questions(asked: ScarRequest, filler: str, limits: RequestLimits, deadline: Deadline) -> SpanUtilities:
    """What the model is asked, or why that is too much."""
    with refused_as_a_whole():
        spans = span_request(asked, limits, deadline.check)
    batch = SpanBatch(spans.items, spans.prompts, spans.groups, spans.options, spans.rejected)
    _, first = np.unique(spans.prompts, return_index=True)
    texts: list[CompletionText | None] = []
    for item, one in zip(asked.items, spans.items, strict=True):
        characters = None if one is None else one.units.characters
        texts.append(None if characters is None else CompletionText(item.completion, characters, filler))
    try:
        return SpanUtilities(
            batch,
            [plain_prompt(asked.items[row].prompt) for row in first.tolist()],
            texts,
            filler=filler,
            most_characters=limits.span_characters,
        )
    except CostExceededError as error:
        raise refusal(ErrorCode.BUDGET_EXCEEDED, "", str(error)) from None


async def _with_attention(
    questions: SpanUtilities, engine: TextScorer, rounds: ModelRounds, caller: Caller, *, dry_run: bool
) -> EngineUsage:
    """Have the model's attention told where it is wanted, or only its price; what that cost.

    It comes first: what a model has no attention for is refused before anything is evaluated.
    """
    texts = await caller.run(questions.ask_attention)
    if not texts:
        return EngineUsage()
    read = partial(_attention, engine, texts, caller)
    if dry_run:
        return await rounds.price_of(read)
    found = await rounds.said(read, engine.attention)
    caller.resources.metrics.count_engine(engine.spec.id, found.usage)
    await caller.run(partial(questions.tell_attention, found))
    return found.usage


def _attention(engine: TextScorer, texts: Sequence[VariantTexts], caller: Caller) -> PreparedAttention:
    """Texts as the model reads them for its attention, if it tells of any."""
    try:
        return engine.prepared_attention(texts, alone=caller.alone, checkpoint=caller.deadline.check)
    except ModelUnsuitableError as error:
        raise refusal(ErrorCode.INVALID_REQUEST, "/credit", f"model {engine.spec.id}: {error}") from None


async def _price(questions: SpanUtilities, rounds: ModelRounds, caller: Caller) -> EngineUsage:
    """What all rounds would cost that can be told before a score is known."""
    usage, upcoming = EngineUsage(), questions.rounds()
    while (texts := await caller.run(partial(next, upcoming, None))) is not None:
        usage += await rounds.price(await caller.run(partial(rounds.round_from, texts, questions.remembered_by)))
    return usage


def _told(questions: SpanUtilities, rounds: ModelRounds, found: ScoredTexts) -> Round:
    """What to ask next."""
    questions.tell(found)
    return rounds.round_of(questions)


def _answered(asked: ScarRequest, questions: SpanUtilities, head: Mapping[str, Any], encode: Encode) -> Answer:
    """The answer, once the model has no question left to answer."""
    answer, n_items = questions.answer(), len(asked.items)
    if len(answer.errors) == n_items:
        return _nothing(n_items, answer.errors)
    errors = {error.row: error for error in answer.errors}
    items = [
        {"id": item.id, **(failed_item(errors[row]) if credit is None else credited_item(credit))}
        for row, (item, credit) in enumerate(zip(asked.items, answer.items, strict=True))
    ]
    return Answer(encode({**head, "items": items}), n_items, _codes(answer.errors), _flags(answer))


def _nothing(n_items: int, errors: Sequence[SpanError]) -> Answer:
    """The account of a request all of whose items failed."""
    return nothing_answered("item", n_items, _codes(errors), first_items(errors, pointer_to))


def _codes(errors: Sequence[SpanError]) -> Counter[str]:
    """How many items failed, by code."""
    return Counter(str(error.code) for error in errors)


def _flags(answer: SpanCredits | None) -> dict[str, int]:
    """How many items carry each flag."""
    items = () if answer is None else answer.items
    return flag_counts(np.array([0 if credit is None else credit.flags for credit in items], dtype=np.int64))
