"""Answers to candidate sets that need a model: texts to the engine, its scores to the arithmetic.

What takes processor time runs on the threads of the service; the event loop waits for the engine, so that as many
requests as there are can share its batches.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from starlette.types import Receive

from creditd.credit.evaluation_needs import EstimatorOptions
from creditd.credit.set_credit import SetCreditOptions
from creditd.engines.errors import (
    EngineError,
    EngineExpiredError,
    EngineOverloadedError,
    ModelUnsuitableError,
)
from creditd.engines.protocol import EngineUsage, PreparedTexts, ScoredTexts, TextScorer
from creditd.engines.registry import UnknownModelError
from creditd.scoring.candidate_rewards import CandidateRewards
from creditd.scoring.coalition_utilities import CoalitionText, CoalitionUtilities
from creditd.scoring.deadline import Deadline, DeadlineExceededError
from creditd.scoring.model_questions import CostExceededError, EvaluatedSets, ModelQuestions
from creditd.server.answers import Answer, answer_batch, refused_as_a_whole
from creditd.server.convert import Encode, envelope
from creditd.server.errors import ServiceError
from creditd.server.resources import Resources
from creditd.wire.choices import options_of
from creditd.wire.columns import batch_of
from creditd.wire.errors import ErrorCode, ErrorItem
from creditd.wire.limits import RequestLimits
from creditd.wire.model_texts import prompts_of, texts_of
from creditd.wire.set_batches import SetBatch
from creditd.wire.utilities import ModelUtility
from creditd.wire.v1 import ShapleyRequest

T = TypeVar("T")


@dataclass(frozen=True)
class _Asked:
    """A request that needs a model.

    Attributes:
        options: Its choices.
        batch: Its sets.
        questions: What the model is asked.
    """

    options: SetCreditOptions
    batch: SetBatch
    questions: ModelQuestions


@dataclass(frozen=True)
class _Caller:
    """Who waits, and for how long."""

    resources: Resources
    deadline: Deadline
    receive: Receive

    async def run(self, work: Callable[[], T]) -> T:
        """Arithmetic, off the event loop."""
        return await self.resources.compute(work, self.deadline, self.receive)


async def answer_with_model(
    asked: ShapleyRequest,
    *,
    resources: Resources,
    deadline: Deadline,
    receive: Receive,
    request_id: str,
    encode: Encode,
) -> Answer:
    """The answer to `/v1/credit/shapley` where a model gives rewards or utilities.

    Args:
        asked: The request.
        resources: What the application holds.
        deadline: When the caller stops waiting.
        receive: Where the connection says that the caller has left.
        request_id: Its identity.
        encode: Writes the answer.

    Returns:
        The body, in the form of the request, or a refusal when no set could be answered.

    Raises:
        ServiceError: If there is no such model, it fails or is overloaded, or the request does not fit.
        DeadlineExceededError: If the deadline passes first.
        ClientDisconnect: If the caller leaves first.
    """
    received_s = time.perf_counter()
    caller = _Caller(resources, deadline, receive)
    name, pointer = _model_of(asked)
    engine = _engine(resources, name, pointer)
    prepared = await caller.run(partial(_prepared, asked, resources.limits))
    queue_s = time.perf_counter() - received_s
    if asked.dry_run:
        usage = await caller.run(lambda: engine.prepared(prepared.questions.ask(), alone=asked.deterministic).usage)
        head = {**envelope(request_id, 0.0, usage), "model": name, "weight_version": None}
        return Answer(encode(head), prepared.batch.sets.n_sets, {}, {})
    evaluated, usage = await _evaluated(prepared.questions, engine, caller, alone=asked.deterministic)
    resources.metrics.count_engine(name, usage)
    head = {**envelope(request_id, queue_s, usage), "model": name, "weight_version": None}
    return await caller.run(partial(_answered, prepared, evaluated, head, resources, deadline, encode))


def _answered(
    prepared: _Asked,
    evaluated: EvaluatedSets,
    head: dict[str, object],
    resources: Resources,
    deadline: Deadline,
    encode: Encode,
) -> Answer:
    answer = resources.score_sets(evaluated.sets, prepared.options, evaluated.rejected, deadline, given=evaluated.given)
    return answer_batch(prepared.batch, head, encode, answer, evaluated.estimates)


async def _evaluated(
    questions: ModelQuestions, engine: TextScorer, caller: _Caller, *, alone: bool
) -> tuple[EvaluatedSets, EngineUsage]:
    """Ask until there is no question left."""
    usage = EngineUsage()
    while texts := await caller.run(questions.ask):
        scored = await _scored(engine, partial(engine.prepared, texts, alone=alone), caller)
        usage += scored.usage
        await caller.run(partial(questions.tell, scored))
    return await caller.run(questions.answer), usage


async def _scored(engine: TextScorer, prepare: Callable[[], PreparedTexts], caller: _Caller) -> ScoredTexts:
    """One question and its answer; every way to have none is an error of the service."""
    name = engine.spec.id
    try:
        prepared = await caller.run(prepare)
        future = asyncio.wrap_future(engine.submit(prepared, caller.deadline.at_s))
        return await caller.resources.wait_for(future, caller.deadline, caller.receive)
    except EngineExpiredError:
        raise DeadlineExceededError from None
    except EngineOverloadedError as error:
        wait = {"Retry-After": str(max(1, round(error.retry_after_s)))}
        raise ServiceError(ErrorCode.OVERLOADED, f"model {name}: {error}", headers=wait) from None
    except ModelUnsuitableError as error:
        raise ServiceError(ErrorCode.INVALID_REQUEST, f"model {name}: {error}") from None
    except EngineError as error:
        raise ServiceError(ErrorCode.ENGINE_FAILED, f"model {name}: {error}") from error


def _model_of(asked: ShapleyRequest) -> tuple[str, str]:
    """The model that a request names, and where."""
    if isinstance(asked.utility, ModelUtility):
        return asked.utility.model, "/utility/model"
    if asked.rewards is None:
        raise RuntimeError("the request asks no model")
    return asked.rewards.model, "/rewards/model"


def _engine(resources: Resources, name: str, pointer: str) -> TextScorer:
    try:
        return resources.engines.scorer(name)
    except UnknownModelError as error:
        item = ErrorItem(pointer=pointer, code=ErrorCode.UNKNOWN_MODEL, detail=str(error))
        raise ServiceError(ErrorCode.UNKNOWN_MODEL, f"{pointer}: {error}", (item,)) from None


def _prepared(asked: ShapleyRequest, limits: RequestLimits) -> _Asked:
    """The sets of a request, and what the model is asked about them."""
    with refused_as_a_whole():
        options, batch = options_of(asked, limits), batch_of(asked, limits)
    try:
        return _Asked(options, batch, _questions(asked, options, batch, limits))
    except CostExceededError as error:
        item = ErrorItem(pointer="", code=ErrorCode.BUDGET_EXCEEDED, detail=str(error))
        raise ServiceError(ErrorCode.BUDGET_EXCEEDED, str(error), (item,)) from None
    except ValueError as error:
        item = ErrorItem(pointer="/credit", code=ErrorCode.INVALID_REQUEST, detail=str(error))
        raise ServiceError(ErrorCode.INVALID_REQUEST, f"/credit: {error}", (item,)) from None


def _questions(
    asked: ShapleyRequest, options: SetCreditOptions, batch: SetBatch, limits: RequestLimits
) -> ModelQuestions:
    prompts, texts, utility = prompts_of(asked), texts_of(asked), asked.utility
    if not isinstance(utility, ModelUtility):
        return CandidateRewards(
            batch.sets,
            batch.rejected,
            options.malformed,
            prompts,
            texts,
            most_characters=limits.model_characters,
        )
    return CoalitionUtilities(
        batch.sets,
        batch.rejected,
        options.malformed,
        prompts,
        texts,
        rendering=CoalitionText(utility.template.before, utility.template.after, utility.empty),
        rule=options.rule,
        estimator=EstimatorOptions(**asked.estimator.model_dump()),
        most_players=limits.candidates,
        most_evaluations=limits.evaluations,
        most_characters=limits.model_characters,
    )
