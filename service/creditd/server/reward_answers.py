"""Answers of the routes that speak as other servers of rewards do: one finite number per text, or an error for all.

A request waits on the event loop, so as many as there are share the batches of the model. Nothing is remembered: a
policy's answers are new, and each is asked about once.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from fastapi import Request

from creditd.cache.budget import Budget
from creditd.engines.protocol import EngineUsage, ScoredTexts, VariantTexts
from creditd.engines.registry import UnknownModelError
from creditd.scoring.deadline import Deadline
from creditd.scoring.model_questions import CostExceededError, characters_of, check_characters
from creditd.scoring.whole_texts import NoRewardError, WholeTexts, whole_texts
from creditd.server.body import JSON, parse_body, read_body
from creditd.server.errors import ServiceError, refusal
from creditd.server.json_bodies import check_keys, may_repeat_keys
from creditd.server.model_rounds import Caller, ModelRounds, Round
from creditd.server.resources import resources_of
from creditd.server.weights_answers import media_type_of
from creditd.wire.errors import ERROR_KINDS, ErrorCode
from creditd.wire.fields import WireModel
from creditd.wire.served_rewards import (
    ClassifyError,
    ClassifyRequest,
    ClassifyResponse,
    ClassifyRow,
    ClassifyUsage,
    GetRewardRequest,
    GetRewardResponse,
)

M = TypeVar("M", bound=WireModel)

GET_REWARD_S = 120.0
"""OpenRLHF gives up after 180 s, a number of its own, and asks again: an answer that comes later is for nobody."""


@dataclass(frozen=True)
class _Question:
    """What a request asks.

    Attributes:
        make: Makes the texts, of at most so many characters.
        pointer: Where one of them is in the request, with its place left open if there may be several.
        model: Which reward model; None: the only one.
        model_pointer: Where that is said.
    """

    make: Callable[..., WholeTexts]
    pointer: str
    model: str | None
    model_pointer: str


@dataclass(frozen=True)
class _Rewards:
    """What a model says: its id, T finite numbers in the order of the texts, and what they cost."""

    model: str
    values: list[float]
    usage: EngineUsage


async def answer_get_reward(request: Request, deadline: Deadline, name: str | None = None) -> GetRewardResponse:
    """The answer to OpenRLHF.

    Args:
        request: The request.
        deadline: When its caller stops waiting.
        name: Of a reward model; None: the only one.

    Returns:
        One number per query, in their order.

    Raises:
        ServiceError: If the body does not fit, there is no such model, it fails or is overloaded, or one of the queries
            has no reward: nothing stands in for a number.
        DeadlineExceededError: If the deadline passes first.
        ClientDisconnect: If the caller leaves first.
    """
    async with _admitted(request, deadline, GetRewardRequest) as asked:
        n_queries, prompts = len(asked.query), asked.prompts or None
        if prompts is not None and len(prompts) != n_queries:
            detail = f"got {len(prompts)}; expected {n_queries}, one per query"
            raise refusal(ErrorCode.SHAPE_MISMATCH, "/prompts", detail)
        make = partial(whole_texts, asked.query, prompts, adds_special_tokens=False)
        found = await _asked(request, deadline, _Question(make, "/query/{}", name, "id"))
        return GetRewardResponse(rewards=found.values, scores=found.values, extra_logs={})


async def answer_classify(request: Request, deadline: Deadline) -> ClassifyResponse:
    """The answer to a client of vLLM.

    Args:
        request: The request.
        deadline: When its caller stops waiting.

    Returns:
        The number of one label for each text, which is the reward.

    Raises:
        ServiceError: As `answer_get_reward`.
        DeadlineExceededError: If the deadline passes first.
        ClientDisconnect: If the caller leaves first.
    """
    async with _admitted(request, deadline, ClassifyRequest) as asked:
        try:
            found = await _asked(request, deadline, _question_of(asked))
        except ServiceError as error:
            error.members["error"] = _in_words_of_vllm(error).model_dump()
            raise
        n_tokens = found.usage.tokens_naive
        return ClassifyResponse(
            id=f"classify-{request.state.request_id}",
            object="list",
            created=int(time.time()),
            model=found.model,
            data=[
                ClassifyRow(index=index, label=None, probs=[value], num_classes=1)
                for index, value in enumerate(found.values)
            ],
            usage=ClassifyUsage(
                prompt_tokens=n_tokens, total_tokens=n_tokens, completion_tokens=0, prompt_tokens_details=None
            ),
        )


def _in_words_of_vllm(error: ServiceError) -> ClassifyError:
    """A failure as vLLM says it, so that a client that asked about many texts finds the one by halves."""
    kind = ERROR_KINDS[error.code]
    of_caller = 400 <= kind.status < 500
    message = error.detail
    if error.code is ErrorCode.NON_FINITE_UTILITY:
        message = f"Out of range float values: {message}"
    return ClassifyError(
        message=message,
        type="NotFoundError" if kind.status == 404 else "BadRequestError" if of_caller else "InternalServerError",
        param="input_tokens" if error.code is ErrorCode.CONTEXT_EXCEEDED else None,
        code=kind.status,
    )


def _question_of(asked: ClassifyRequest) -> _Question:
    model = asked.model or None
    if asked.messages is not None:
        *prompt, last = [{"role": message.role, "content": message.content} for message in asked.messages]
        question = VariantTexts(prompt, (last["content"],), np.ones((1, 1), dtype=np.bool_))
        return _Question(partial(_conversation, question), "/messages", model, "/model")
    texts, pointer = ([asked.input], "/input") if isinstance(asked.input, str) else (asked.input or [], "/input/{}")
    make = partial(whole_texts, texts, adds_special_tokens=asked.add_special_tokens is not False)
    return _Question(make, pointer, model, "/model")


def _conversation(question: VariantTexts, *, most_characters: int) -> WholeTexts:
    check_characters(characters_of(question.prompt) + len(question.units[0]), most_characters)
    return WholeTexts((question,), np.zeros(1, dtype=np.int64))


@asynccontextmanager
async def _admitted(request: Request, deadline: Deadline, model: type[M]) -> AsyncIterator[M]:
    """The body of a request, which counts as being answered for as long as the block lasts."""
    if media_type_of(request) != JSON:
        detail = f"got another content type, or none; expected Content-Type: {JSON}"
        raise ServiceError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, detail)
    resources = resources_of(request)
    with resources.hold() as held:
        body = await read_body(request, deadline, held)
        with resources.answers():
            asked = parse_body(body, model, resources.settings.max_body_bytes)
            if may_repeat_keys(body.data, asked):
                await resources.compute(partial(check_keys, body.data), deadline, request.receive)
            yield asked


async def _asked(request: Request, deadline: Deadline, question: _Question) -> _Rewards:
    """What the model says of the texts of a request."""
    resources = resources_of(request)
    try:
        engines = resources.engines
        engine = engines.only_scorer if question.model is None else engines.scorer(question.model)
    except UnknownModelError as error:
        raise refusal(ErrorCode.UNKNOWN_MODEL, question.model_pointer, str(error)) from None
    budget = Budget(resources.settings.cache_budget_s)
    caller = Caller(resources, deadline, request.receive, request.state.tenant, budget, alone=False)
    make = partial(question.make, most_characters=resources.limits.model_characters)
    try:
        texts = await caller.run(make)
    except CostExceededError as error:
        raise refusal(ErrorCode.BUDGET_EXCEEDED, "", str(error)) from None
    found = ScoredTexts(np.empty(0))
    if texts.questions:
        found = await ModelRounds(engine, caller).answers(Round(texts.questions))
    try:
        values = texts.rewards(found)
    except NoRewardError as error:
        _count(request, len(texts.places), error)
        pointer, failure = question.pointer.format(error.place), error.failure
        raise refusal(ErrorCode(failure.code), pointer, failure.detail) from None
    _count(request, len(values), None)
    return _Rewards(engine.spec.id, values, found.usage)


def _count(request: Request, n_texts: int, error: NoRewardError | None) -> None:
    """Put the texts of an answer into the log line and the counters; without a reward for each, none is answered."""
    metrics, route = resources_of(request).metrics, request.state.record["route"]
    request.state.record.update(items=n_texts, failed=0 if error is None else n_texts)
    metrics.items.labels(route, "ok" if error is None else "error").inc(n_texts)
    if error is not None:
        metrics.item_errors.labels(error.failure.code).inc()
