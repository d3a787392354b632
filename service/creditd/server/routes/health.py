"""`/livez`, `/readyz` and `/metrics`: for the people, and the machines, that keep a cluster running."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from creditd.server.openapi import of_text, refusals
from creditd.server.resources import resources_of
from creditd.wire.errors import ErrorCode

router = APIRouter(tags=["health"], default_response_class=PlainTextResponse)


@router.head("/livez", include_in_schema=False)
@router.get("/livez", operation_id="livez", responses=of_text(200, 503))
async def livez(request: Request) -> Response:
    """200 while the event loop turns and every model can answer. A process that fails this should be restarted."""
    stalled = resources_of(request).stalled
    if stalled:
        return Response(f"stalled: {', '.join(stalled)}\n", status_code=503, media_type="text/plain")
    return Response("alive\n", media_type="text/plain")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", operation_id="readyz", responses=of_text(200, 503))
async def readyz(request: Request) -> Response:
    """200 once warmed and until the shutdown begins. Load does not change it: that is answered per request by 503."""
    resources = resources_of(request)
    if resources.draining or not resources.warm:
        reason = "draining" if resources.draining else "warming"
        return Response(f"{reason}\n", status_code=503, media_type="text/plain")
    return Response("ready\n", media_type="text/plain")


@router.get(
    "/metrics",
    operation_id="metrics",
    responses={**of_text(200), **refusals(ErrorCode.UNAUTHORIZED, ErrorCode.INTERNAL)},
)
async def metrics(request: Request) -> Response:
    """Counters in Prometheus' text format."""
    held = resources_of(request)
    held.metrics.look_at(held.engines.statuses())
    held.metrics.cache.look_at(held.cache)
    return Response(held.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
