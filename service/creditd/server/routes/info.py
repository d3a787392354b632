"""`GET /v1/info`: what this service is, does and allows."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from creditd.server.convert import info_body
from creditd.server.openapi import failures
from creditd.server.resources import resources_of
from creditd.wire.v1 import Info

router = APIRouter(prefix="/v1", tags=["service"])


@router.get("/info", operation_id="info", response_model=Info, responses=failures())
async def info(request: Request) -> Response:
    """Version, methods and limits of this service."""
    return Response(info_body(resources_of(request).settings), media_type="application/json")
