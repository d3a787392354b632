"""Answers about the reasoning of completions: by a policy of the service, or by sensitivities that the caller gives."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from starlette.types import Receive

from creditd.cache.budget import Budget
from creditd.credit.sensitivity_items import SensitivityCredits
from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.policy_protocol import (
    MeasuredTokens,
    PreparedSensitivities,
    SensitivityMeasurer,
    SensitivityOptions,
    WeightPin,
)
from creditd.engines.registry import UnknownModelError
from creditd.scoring.deadline import Deadline, DeadlineExceededError
from creditd.scoring.model_questions import CostExceededError
from creditd.scoring.sensitivity import PolicyQuestions
from creditd.server.answers import Answer, nothing_answered, refused_as_a_whole
from creditd.server.convert import Encode, envelope, flag_counts
from creditd.server.errors import ServiceError, refusal
from creditd.server.model_rounds import Caller, errors_of_the_service
from creditd.server.resources import Resources
from creditd.wire.errors import ErrorCode, first_items
from creditd.wire.limits import RequestLimits
from creditd.wire.oar import OarRequest
from creditd.wire.oar_choices import GivenSensitivity, GradientSensitivity, PerturbationSensitivity
from creditd.wire.oar_items import oar_batch, pointer_to, solve_given, token_ids
from creditd.wire.oar_results import failed_item, reshaped_item


async def answer_oar(
    asked: OarRequest,
    *,
    resources: Resources,
    deadline: Deadline,
    receive: Receive,
    tenant: bytes,
    request_id: str,
    encode: Encode,
) -> Answer:
    """The answer to `/v1/credit/oar`.

    Args:
        asked: The request.
        resources: What the application holds.
        deadline: When the caller stops waiting.
        receive: Where the connection says that the caller has left.
        tenant: Whose remembered utilities may be used; nothing is remembered here.
        request_id: Its identity.
        encode: Writes the answer.

    Returns:
        The body, or a refusal when no item could be answered.

    Raises:
        ServiceError: If there is no such policy, it fails, is overloaded or has other weights, or the request does not
            fit.
        DeadlineExceededError: If the deadline passes first.
        ClientDisconnect: If the caller leaves first.
    """
    received_s = time.perf_counter()
    caller = Caller(resources, deadline, receive, tenant, Budget(0.0), alone=asked.deterministic)
    head = partial(envelope, request_id)
    if asked.model is None:
        return await caller.run(partial(_given, asked, resources.limits, deadline, head, received_s, encode))
    engine = _engine_of(asked.model, resources)
    questions = await caller.read(partial(_questions, asked, engine, resources.limits, deadline))
    queue_s = time.perf_counter() - received_s
    prepared = await caller.read(partial(_prepared, asked, engine, questions, caller))
    if asked.dry_run:
        document = {**head(queue_s, prepared.usage), "model": engine.spec.id, "weight_version": engine.weight_version}
        return Answer(encode(document), len(asked.items), {}, {})
    found = await _measured(asked, engine, prepared, caller)
    resources.metrics.count_engine(engine.spec.id, found.usage)
    told = {**head(queue_s, found.usage), "model": engine.spec.id, "weight_version": found.weight_version}
    return await caller.run(partial(_told, asked, questions, found, deadline, told, encode))


def _given(
    asked: OarRequest, limits: RequestLimits, deadline: Deadline, head: partial[Any], received_s: float, encode: Encode
) -> Answer:
    """The answer to a request that asks no policy."""
    queue_s = time.perf_counter() - received_s
    with refused_as_a_whole():
        answer = solve_given(asked, limits, deadline.check)
    document = {**head(queue_s), "model": None, "weight_version": None}
    if asked.dry_run:
        return Answer(encode(document), len(asked.items), {}, {})
    return _answered(asked, answer, document, encode)


def _engine_of(name: str, resources: Resources) -> SensitivityMeasurer:
    """The policy that a request names."""
    try:
        return resources.engines.policy(name)
    except UnknownModelError as error:
        raise refusal(ErrorCode.UNKNOWN_MODEL, "/model", str(error)) from None


def _questions(
    asked: OarRequest, engine: SensitivityMeasurer, limits: RequestLimits, deadline: Deadline
) -> PolicyQuestions:
    """What the policy is asked, or why that is too much."""
    with refused_as_a_whole():
        found = oar_batch(asked, limits, deadline.check, text_of=engine.completion_text)
    try:
        return PolicyQuestions(
            found.batch,
            found.items,
            [(token_ids(item.prompt_ids), token_ids(item.completion_ids)) for item in asked.items],
            _options(asked),
            most_tokens=limits.policy_tokens,
            reads_tries=engine.status().reads_tries,
        )
    except CostExceededError as error:
        raise refusal(ErrorCode.BUDGET_EXCEEDED, "", str(error)) from None


def _options(asked: OarRequest) -> SensitivityOptions:
    """How sensitivities are measured."""
    choice, probe = asked.sensitivity, asked.probe.type
    if isinstance(choice, PerturbationSensitivity):
        return SensitivityOptions("perturbation", probe, perturbation_id=choice.token_id)
    noise = GradientSensitivity() if isinstance(choice, GivenSensitivity) else choice
    return SensitivityOptions(
        "gradient", probe, noise_std=noise.noise_std, noise_samples=noise.noise_samples, seed=noise.seed
    )


def _prepared(
    asked: OarRequest, engine: SensitivityMeasurer, questions: PolicyQuestions, caller: Caller
) -> PreparedSensitivities:
    """Items as the policy runs them, once they are affordable."""
    try:
        prepared = engine.prepared_sensitivities(
            questions.items, questions.options, alone=caller.alone, checkpoint=caller.deadline.check
        )
        questions.check(prepared.usage)
    except ModelUnsuitableError as error:
        of_token = isinstance(asked.sensitivity, PerturbationSensitivity)
        pointer = "/sensitivity/token_id" if of_token else "/sensitivity"
        raise refusal(ErrorCode.INVALID_REQUEST, pointer, f"model {engine.spec.id}: {error}") from None
    except CostExceededError as error:
        raise refusal(ErrorCode.BUDGET_EXCEEDED, "", str(error)) from None
    return prepared


async def _measured(
    asked: OarRequest, engine: SensitivityMeasurer, prepared: PreparedSensitivities, caller: Caller
) -> MeasuredTokens:
    """The policy's answer, for the weights that are asked for."""
    version = asked.weight_version
    pin = WeightPin(version, asked.if_not_ready)
    try:
        with errors_of_the_service(engine.spec.id):
            answer = engine.sensitivities(prepared, caller.deadline.at_s, pin=pin)
            return await caller.wait_for(asyncio.wrap_future(answer))
    except DeadlineExceededError:
        if version is None or engine.weight_version == version:
            raise
        detail = f"model {engine.spec.id}: the deadline passed before the policy had the weights that are asked for"
        raise ServiceError(ErrorCode.WEIGHT_VERSION_MISMATCH, detail) from None


def _told(
    asked: OarRequest,
    questions: PolicyQuestions,
    found: MeasuredTokens,
    deadline: Deadline,
    head: Mapping[str, Any],
    encode: Encode,
) -> Answer:
    """The answer, once the policy's is there."""
    questions.tell(found)
    return _answered(asked, questions.answer(deadline.check), head, encode)


def _answered(asked: OarRequest, answer: SensitivityCredits, head: Mapping[str, Any], encode: Encode) -> Answer:
    """The answer, once every number is known."""
    n_items, codes = len(asked.items), Counter(str(error.code) for error in answer.errors)
    if len(answer.errors) == n_items:
        return nothing_answered("item", n_items, codes, first_items(answer.errors, pointer_to))
    errors = {error.row: error for error in answer.errors}
    items = [
        {"id": item.id, **(failed_item(errors[row]) if credit is None else reshaped_item(credit))}
        for row, (item, credit) in enumerate(zip(asked.items, answer.items, strict=True))
    ]
    flags = np.array([0 if credit is None else credit.flags for credit in answer.items], dtype=np.int64)
    return Answer(encode({**head, "items": items}), n_items, codes, flag_counts(flags))
