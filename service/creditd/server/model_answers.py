"""Answers to candidate sets that need a model: texts to the engine, its scores to the arithmetic.

What takes processor time runs on the threads of the service; the event loop waits for the engine, so that as many
requests as there are can share its batches.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from starlette.types import Receive

from creditd.cache.budget import Budget
from creditd.credit.evaluation_needs import EstimatorOptions
from creditd.credit.set_credit import SetCreditOptions
from creditd.engines.model_spec import ModelKind
from creditd.engines.protocol import EngineUsage
from creditd.engines.registry import AnyEngine, UnknownModelError
from creditd.scoring.candidate_rewards import CandidateRewards
from creditd.scoring.coalition_utilities import CoalitionText, CoalitionUtilities
from creditd.scoring.deadline import Deadline
from creditd.scoring.model_questions import CostExceededError, EvaluatedSets, ModelQuestions
from creditd.scoring.text_features import Targets, TextFeatures, UnusableTargetError
from creditd.server.answers import Answer, answer_batch, refused_as_a_whole
from creditd.server.convert import Encode, envelope
from creditd.server.errors import refusal
from creditd.server.model_rounds import Caller, ModelRounds, Round
from creditd.server.resources import Resources
from creditd.wire.choices import options_of
from creditd.wire.columns import batch_of
from creditd.wire.errors import ErrorCode
from creditd.wire.features import coverage_in
from creditd.wire.limits import RequestLimits
from creditd.wire.model_texts import prompts_of, texts_of
from creditd.wire.set_batches import SetBatch
from creditd.wire.utilities import ModelUtility
from creditd.wire.v1 import ShapleyRequest


async def answer_with_model(
    asked: ShapleyRequest,
    *,
    resources: Resources,
    deadline: Deadline,
    receive: Receive,
    tenant: bytes,
    request_id: str,
    encode: Encode,
) -> Answer:
    """The answer to `/v1/credit/shapley` where a model gives rewards or utilities.

    Args:
        asked: The request.
        resources: What the application holds.
        deadline: When the caller stops waiting.
        receive: Where the connection says that the caller has left.
        tenant: Whose remembered utilities may be used.
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
    budget = Budget(resources.settings.cache_budget_s)
    caller = Caller(resources, deadline, receive, tenant, budget, alone=asked.deterministic)
    engines = _engines_of(asked, resources)
    options, batch = await caller.run(partial(_prepared, asked, resources.limits))
    sets, usage = EvaluatedSets(batch.sets, batch.rejected), EngineUsage()
    queue_s = time.perf_counter() - received_s
    for engine in engines:
        rounds = ModelRounds(engine, caller, counts=not asked.dry_run)
        questions, upcoming = await caller.run(
            partial(_asked, asked, rounds, engine.spec.kind, options, sets, resources.limits)
        )
        if asked.dry_run:
            usage += await rounds.price(upcoming)
            continue
        cost, answered = EngineUsage(), None
        while answered is None:
            found = await rounds.answers(upcoming) if upcoming.texts else None
            cost += EngineUsage() if found is None else found.usage
            upcoming, answered = await caller.run(partial(_told, questions, rounds, found))
        sets, usage = answered, usage + cost
    head = {**envelope(request_id, queue_s, usage), "model": engines[-1].spec.id, "weight_version": None}
    if asked.dry_run:
        return Answer(encode(head), batch.sets.n_sets, {}, {})
    return await caller.run(partial(_answered, batch, options, sets, head, resources, deadline, encode))


def _answered(
    batch: SetBatch,
    options: SetCreditOptions,
    found: EvaluatedSets,
    head: dict[str, object],
    resources: Resources,
    deadline: Deadline,
    encode: Encode,
) -> Answer:
    answer = resources.score_sets(found.sets, options, found.rejected, deadline, given=found.given)
    return answer_batch(batch, head, encode, answer, found.estimates)


def _told(
    questions: ModelQuestions,
    rounds: ModelRounds,
    found: Any,  # noqa: ANN401 - scores or vectors
) -> tuple[Round, EvaluatedSets | None]:
    """What to ask next; once there is nothing, the sets with what the model said of them."""
    try:
        if found is not None:
            questions.tell(found)
    except UnusableTargetError as error:
        pointer, code = f"/features/targets/{error.number}", ErrorCode(error.failure.code)
        raise refusal(code, pointer, error.failure.detail) from None
    upcoming = rounds.round_of(questions)
    return upcoming, None if upcoming.texts else questions.answer()


def _engines_of(asked: ShapleyRequest, resources: Resources) -> list[AnyEngine]:
    """The models that a request names, in the order in which they are asked."""
    engines: list[AnyEngine] = []
    pointer = "/features/model"
    try:
        if asked.features is not None:
            engines.append(resources.engines.embedder(asked.features.model))
        if isinstance(asked.utility, ModelUtility):
            pointer = "/utility/model"
            engines.append(resources.engines.scorer(asked.utility.model))
        elif asked.rewards is not None:
            pointer = "/rewards/model"
            engines.append(resources.engines.scorer(asked.rewards.model))
    except UnknownModelError as error:
        raise refusal(ErrorCode.UNKNOWN_MODEL, pointer, str(error)) from None
    return engines


def _prepared(asked: ShapleyRequest, limits: RequestLimits) -> tuple[SetCreditOptions, SetBatch]:
    with refused_as_a_whole():
        return options_of(asked, limits), batch_of(asked, limits)


def _asked(
    asked: ShapleyRequest,
    rounds: ModelRounds,
    kind: ModelKind,
    options: SetCreditOptions,
    found: EvaluatedSets,
    limits: RequestLimits,
) -> tuple[ModelQuestions, Round]:
    """What a model is asked about the sets, beginning with the first round, or why that is too much."""
    try:
        of_kind = _features if kind == "embedding" else _rewards_or_utilities
        questions = of_kind(asked, options, found, limits)
    except CostExceededError as error:
        raise refusal(ErrorCode.BUDGET_EXCEEDED, "", str(error)) from None
    except ValueError as error:
        raise refusal(ErrorCode.INVALID_REQUEST, "/credit", str(error)) from None
    return questions, rounds.round_of(questions)


def _features(
    asked: ShapleyRequest, options: SetCreditOptions, found: EvaluatedSets, limits: RequestLimits
) -> ModelQuestions:
    if asked.features is None:
        raise RuntimeError("the request asks no embedding model")
    chosen, coverage = asked.features, coverage_in(asked.utility)
    return TextFeatures(
        found.sets,
        found.rejected,
        texts_of(asked),
        utility=options.utility,
        targets=Targets(
            texts=None if chosen.targets is None else tuple(chosen.targets),
            threshold=chosen.threshold,
            weights={} if coverage is None else coverage.weights or {},
            default_weight=1.0 if coverage is None else coverage.default_weight,
        ),
        most_characters=limits.model_characters,
    )


def _rewards_or_utilities(
    asked: ShapleyRequest, options: SetCreditOptions, found: EvaluatedSets, limits: RequestLimits
) -> ModelQuestions:
    prompts, texts, utility = prompts_of(asked), texts_of(asked), asked.utility
    if not isinstance(utility, ModelUtility):
        return CandidateRewards(
            found.sets,
            found.rejected,
            options.malformed,
            prompts,
            texts,
            most_characters=limits.model_characters,
        )
    return CoalitionUtilities(
        found.sets,
        found.rejected,
        options.malformed,
        prompts,
        texts,
        rendering=CoalitionText(utility.template.before, utility.template.after, utility.empty),
        rule=options.rule,
        # The price is that of the whole budget: nobody knows beforehand when an estimate will be good enough.
        estimator=EstimatorOptions(
            **asked.estimator.model_dump(exclude={"target_standard_error"}),
            target_standard_error=None if asked.dry_run else asked.estimator.target_standard_error,
        ),
        most_players=limits.candidates,
        most_evaluations=limits.evaluations,
        most_characters=limits.model_characters,
    )
