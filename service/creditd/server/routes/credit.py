"""`POST /v1/credit/shapley`, `/v1/credit/shapley/solve` and `/v1/credit/group`."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from creditd.server.answers import Answer, answer_groups, answer_sets, answer_solve
from creditd.server.body import deadline_of, parse_body
from creditd.server.openapi import described
from creditd.server.resources import resources_of
from creditd.wire.solve import SolveRequest, SolveResponse
from creditd.wire.v1 import GroupRequest, GroupResponse, ShapleyRequest, ShapleyResponse

router = APIRouter(prefix="/v1/credit", tags=["credit"])


@router.post("/shapley", operation_id="credit_shapley", **described(ShapleyRequest, ShapleyResponse))
async def credit_shapley(request: Request) -> Response:
    """Credits and advantages of the candidates of each set, by the utility, rule and normalisation asked for."""
    deadline, resources = deadline_of(request), resources_of(request)
    asked = await parse_body(request, ShapleyRequest, deadline)
    received_s, request_id = time.perf_counter(), request.state.request_id

    def work() -> Answer:
        return answer_sets(
            asked,
            request_id=request_id,
            received_s=received_s,
            limits=resources.limits,
            score=resources.score_sets,
            deadline=deadline,
        )

    return _respond(request, await resources.compute(work, deadline))


@router.post("/shapley/solve", operation_id="credit_shapley_solve", **described(SolveRequest, SolveResponse))
async def credit_shapley_solve(request: Request) -> Response:
    """Credits under a utility that the caller evaluates: the next coalitions to evaluate, or the answer."""
    deadline, resources = deadline_of(request), resources_of(request)
    asked = await parse_body(request, SolveRequest, deadline)
    received_s, request_id = time.perf_counter(), request.state.request_id

    def work() -> Answer:
        return answer_solve(
            asked, request_id=request_id, received_s=received_s, limits=resources.limits, deadline=deadline
        )

    return _respond(request, await resources.compute(work, deadline))


@router.post("/group", operation_id="credit_group", **described(GroupRequest, GroupResponse))
async def credit_group(request: Request) -> Response:
    """Advantages of whole responses within their group: GRPO and its relatives, pass@k, max@k, leave-one-out."""
    deadline, resources = deadline_of(request), resources_of(request)
    asked = await parse_body(request, GroupRequest, deadline)
    received_s, request_id = time.perf_counter(), request.state.request_id

    def work() -> Answer:
        return answer_groups(
            asked, request_id=request_id, received_s=received_s, limits=resources.limits, deadline=deadline
        )

    return _respond(request, await resources.compute(work, deadline))


def _respond(request: Request, answer: Answer) -> Response:
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
    return Response(answer.body, media_type="application/json")
