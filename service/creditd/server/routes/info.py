"""`GET /v1/info`: what this service is, does and allows."""

from __future__ import annotations

from typing import get_args

from fastapi import APIRouter, Request, Response

from creditd.credit.candidate_sets import MAX_TOKENS_PER_SET
from creditd.credit.group_advantages import GroupRule
from creditd.credit.set_advantages import NormalizationType
from creditd.server.convert import service
from creditd.server.openapi import failures
from creditd.server.resources import resources_of
from creditd.wire.columns import CREDIT_NAMES, UTILITY_NAMES
from creditd.wire.v1 import MAX_SETS, Info, Limits

router = APIRouter(prefix="/v1", tags=["service"])


@router.get("/info", operation_id="info", response_model=Info, responses=failures())
async def info(request: Request) -> Response:
    """Version, methods and limits of this service."""
    settings = resources_of(request).settings
    document = Info(
        service=service(),
        utilities=list(UTILITY_NAMES),
        credits=list(CREDIT_NAMES),
        advantages=list(get_args(NormalizationType)),
        group_advantages=list(get_args(GroupRule)),
        limits=Limits(
            sets=MAX_SETS,
            candidates=settings.max_candidates,
            table_candidates=settings.max_table_candidates,
            token_advantages=settings.max_token_advantages,
            tokens_per_set=MAX_TOKENS_PER_SET,
            body_bytes=settings.max_body_bytes,
            requests_in_flight=settings.max_requests_in_flight,
        ),
        models=[],
    )
    return Response(document.model_dump_json(), media_type="application/json")
