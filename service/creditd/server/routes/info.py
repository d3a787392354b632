"""`GET /v1/info`, `/v1/models` and `/v1/utilities`: what this service is, does and allows."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from creditd.server.convert import info_body, models_document
from creditd.server.openapi import answered, failures
from creditd.server.resources import resources_of
from creditd.wire.catalogue import CATALOGUE, Catalogue
from creditd.wire.info import Info, Models

router = APIRouter(prefix="/v1", tags=["service"])


@router.get("/info", operation_id="info", response_model=Info, responses={**answered(), **failures()})
async def info(request: Request) -> Response:
    """Version, methods, limits and models of this service."""
    held = resources_of(request)
    return Response(info_body(held.settings, held.limits, held.engines), media_type="application/json")


@router.get("/models", operation_id="models", response_model=Models, responses={**answered(), **failures()})
async def models(request: Request) -> Response:
    """The models that requests may name: what is loaded, its memory, its queue."""
    document = models_document(resources_of(request).engines)
    return Response(document.model_dump_json(), media_type="application/json")


@router.get("/utilities", operation_id="utilities", response_model=Catalogue, responses={**answered(), **failures()})
async def utilities(_: Request) -> Response:
    """Every utility: name, formula, cost, what it climbs and under which assumption, and a request that works."""
    return Response(CATALOGUE.model_dump_json(), media_type="application/json")
