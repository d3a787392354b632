"""`POST /v1/models/{id}/weights`: other weights for a policy that is running."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from creditd.server.body import JSON, deadline_of, parse_body, read_body
from creditd.server.errors import ServiceError
from creditd.server.json_bodies import check_keys, may_repeat_keys
from creditd.server.openapi_weights import described_weights
from creditd.server.raw_routes import RawRoute
from creditd.server.weights_answers import WeightsCall, answer_named, answer_shard, let_in, media_type_of
from creditd.wire import codec
from creditd.wire.errors import ErrorCode
from creditd.wire.weights import SHARD_MEDIA_TYPE, WeightsRequest

router = APIRouter(prefix="/v1/models", tags=["weights"], route_class=RawRoute)


@router.post("/{id:path}/weights", operation_id="replace_weights", **described_weights())  # noqa: FAST003 - a raw route reads the path itself
async def replace_weights(request: Request) -> Response:
    """Replace the weights of a policy, atomically and between two of its works.

    They are named, below the service's `weights_root`, or sent: one safetensors file per request. Needs an admin key.
    """
    call = let_in(request, deadline_of(request))
    answer = await (answer_shard(call) if call.is_shard else answer_named(call, await _document(call)))
    return Response(answer.model_dump_json(), media_type="application/json")


async def _document(call: WeightsCall) -> WeightsRequest:
    """The document that names weights."""
    if media_type_of(call.request) not in {JSON, codec.MEDIA_TYPE}:
        detail = f"expected Content-Type: {JSON}, {codec.MEDIA_TYPE}, or {SHARD_MEDIA_TYPE} for a shard"
        raise ServiceError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, f"got another content type, or none; {detail}")
    limit = call.resources.settings.max_body_bytes
    with call.resources.hold() as held:
        body = await read_body(call.request, call.deadline, held)
        asked = parse_body(body, WeightsRequest, limit)
        if not body.binary and may_repeat_keys(body.data, asked):
            await call.resources.compute(partial(check_keys, body.data), call.deadline, call.request.receive)
    return asked
