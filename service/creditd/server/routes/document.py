"""`GET /openapi.json`: the account of every route."""

from __future__ import annotations

import anyio.to_thread
import orjson
from fastapi import APIRouter, Request, Response

router = APIRouter()


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Response:
    """The OpenAPI document; it is made at the first request, off the event loop, and kept."""
    state = request.app.state
    if not hasattr(state, "openapi_body"):
        state.openapi_body = await anyio.to_thread.run_sync(lambda: orjson.dumps(request.app.openapi()))
    return Response(state.openapi_body, media_type="application/json")
