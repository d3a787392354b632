"""Every `POST /v1/credit/…`: of candidate sets, of groups, of completions and their tokens, and of all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from creditd.server.answers import Answer, answer_groups, answer_sets, answer_solve
from creditd.server.body import JSON, answer_type, deadline_of, parse_body, read_body
from creditd.server.compose_answers import answer_compose
from creditd.server.convert import json_body
from creditd.server.held_responses import HeldResponse
from creditd.server.inline import is_small
from creditd.server.json_bodies import check_keys, may_repeat_keys
from creditd.server.model_answers import answer_with_model
from creditd.server.oar_answers import answer_oar
from creditd.server.openapi import described
from creditd.server.raw_routes import RawRoute
from creditd.server.remembered_solve import answer_remembered
from creditd.server.resources import resources_of
from creditd.server.scar_answers import answer_scar, answer_scar_solve
from creditd.wire import codec
from creditd.wire.compose import ComposeRequest, ComposeResponse
from creditd.wire.errors import ErrorCode
from creditd.wire.groups import GroupRequest, GroupResponse
from creditd.wire.model_texts import asks_models
from creditd.wire.oar import OarRequest, OarResponse
from creditd.wire.scar import ScarRequest, ScarResponse, ScarSolveRequest, ScarSolveResponse
from creditd.wire.solve import SolveRequest, SolveResponse
from creditd.wire.v1 import ShapleyRequest, ShapleyResponse

_M = TypeVar("_M", bound=BaseModel)

LARGE_BODY_BYTES = 1 << 20
"""Larger binary bodies are read on a thread: who converts buffers lets others run, and a parser of JSON does not."""


router = APIRouter(prefix="/v1/credit", tags=["credit"], route_class=RawRoute)


@router.post(
    "/shapley",
    operation_id="credit_shapley",
    **described(ShapleyRequest, ShapleyResponse, ErrorCode.UNKNOWN_MODEL, ErrorCode.ENGINE_FAILED),
)
async def credit_shapley(request: Request) -> Response:
    """Credits and advantages of the candidates of each set, by the utility, rule and normalisation asked for."""
    return await _answered(request, ShapleyRequest, partial(answer_sets, score=resources_of(request).score_sets))


@router.post("/shapley/solve", operation_id="credit_shapley_solve", **described(SolveRequest, SolveResponse))
async def credit_shapley_solve(request: Request) -> Response:
    """Credits under a utility that the caller evaluates: the next coalitions to evaluate, or the answer."""
    return await _answered(request, SolveRequest, answer_solve)


@router.post("/group", operation_id="credit_group", **described(GroupRequest, GroupResponse))
async def credit_group(request: Request) -> Response:
    """Advantages of whole responses within their group: GRPO and its relatives, pass@k, max@k, leave-one-out."""
    return await _answered(request, GroupRequest, answer_groups)


@router.post(
    "/scar",
    operation_id="credit_scar",
    **described(ScarRequest, ScarResponse, ErrorCode.UNKNOWN_MODEL, ErrorCode.ENGINE_FAILED),
)
async def credit_scar(request: Request) -> Response:
    """A reward for each token of completions, from what their units are worth to a reward model (SCAR)."""
    return await _answered(request, ScarRequest, answer_scar)


@router.post("/scar/solve", operation_id="credit_scar_solve", **described(ScarSolveRequest, ScarSolveResponse))
async def credit_scar_solve(request: Request) -> Response:
    """The same under a utility that the caller evaluates: what to evaluate next, or the token rewards."""
    return await _answered(request, ScarSolveRequest, answer_scar_solve)


@router.post(
    "/oar",
    operation_id="credit_oar",
    **described(
        OarRequest,
        OarResponse,
        ErrorCode.UNKNOWN_MODEL,
        ErrorCode.ENGINE_FAILED,
        ErrorCode.WEIGHT_VERSION_MISMATCH,
        ErrorCode.WEIGHT_VERSION_UNKNOWN,
    ),
)
async def credit_oar(request: Request) -> Response:
    """Advantages of tokens, from how much the policy's answer depends on each token of its reasoning (OAR)."""
    return await _answered(request, OarRequest, answer_oar)


@router.post("/compose", operation_id="credit_compose", **described(ComposeRequest, ComposeResponse))
async def credit_compose(request: Request) -> Response:
    """Advantages of tokens, from the credit of candidates and what is known of their insides, with an account."""
    return await _answered(request, ComposeRequest, answer_compose)


async def _answered(request: Request, model: type[_M], answer: Callable[..., Any]) -> Response:
    """The response to a body of a model, computed off the event loop unless it is small, or awaited on it."""
    deadline, resources, media_type = deadline_of(request), resources_of(request), answer_type(request)
    with resources.hold() as held:
        body = await read_body(request, deadline, held)
        with resources.answers():
            parse = partial(parse_body, body, model, resources.settings.max_body_bytes)
            large = body.binary and len(body.data) > LARGE_BODY_BYTES
            asked = await resources.compute(parse, deadline, request.receive) if large else parse()
            if not body.binary and may_repeat_keys(body.data, asked):
                await resources.compute(partial(check_keys, body.data), deadline, request.receive)
            common = {
                "request_id": request.state.request_id,
                "deadline": deadline,
                "encode": json_body if media_type == JSON else codec.encode,
            }
            waits: dict[str, Any] = {**common, "receive": request.receive, "tenant": request.state.tenant}
            done: Answer
            if isinstance(asked, ShapleyRequest) and asks_models(asked):
                done = await answer_with_model(asked, resources=resources, **waits)
                return _respond(request, done, media_type)
            if iscoroutinefunction(answer):
                done = await answer(asked, resources=resources, **waits)
                return _respond(request, done, media_type)
            if isinstance(asked, SolveRequest) and asked.utility_id is not None and resources.cache is not None:
                done = await answer_remembered(asked, resources.cache, resources=resources, **waits)
                return _respond(request, done, media_type)
            work = partial(answer, asked, received_s=time.perf_counter(), limits=resources.limits, **common)
            small = is_small(asked, resources.settings.max_inline_candidates)
            done = work() if small else await resources.compute(work, deadline, request.receive)
            return _respond(request, done, media_type)


def _respond(request: Request, answer: Answer, media_type: str) -> Response:
    """The response, once its account has gone into the log line and the counters."""
    request.state.record.update(items=answer.n_items, failed=answer.n_failed, flags=dict(answer.flags))
    route, metrics = request.scope["route"].path, resources_of(request).metrics
    metrics.items.labels(route, "ok").inc(answer.n_items - answer.n_failed)
    metrics.items.labels(route, "error").inc(answer.n_failed)
    for code, count in answer.error_codes.items():
        metrics.item_errors.labels(code).inc(count)
    for flag, count in answer.flags.items():
        metrics.flags.labels(flag).inc(count)
    if answer.refusal is not None:
        raise answer.refusal
    return HeldResponse(answer.body, media_type, resources_of(request))
