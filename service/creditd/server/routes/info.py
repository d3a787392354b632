"""`GET /v1/info` and `GET /v1/utilities`: what this service is, does and allows."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from creditd.server.convert import info_body
from creditd.server.openapi import answered, failures
from creditd.server.resources import resources_of
from creditd.wire.catalogue import CATALOGUE, Catalogue
from creditd.wire.info import Info

router = APIRouter(prefix="/v1", tags=["service"])


@router.get("/info", operation_id="info", response_model=Info, responses={**answered(), **failures()})
async def info(request: Request) -> Response:
    """Version, methods and limits of this service."""
    return Response(
        info_body(resources_of(request).settings, resources_of(request).limits), media_type="application/json"
    )


@router.get("/utilities", operation_id="utilities", response_model=Catalogue, responses={**answered(), **failures()})
async def utilities(_: Request) -> Response:
    """Every utility: name, formula, cost, what it climbs and under which assumption, and a request that works."""
    return Response(CATALOGUE.model_dump_json(), media_type="application/json")
