"""`GET /`: a page for people, to try the service with a few lines."""

from __future__ import annotations

from fastapi import APIRouter, Response

from creditd.server.page import PAGE_PATH, page

router = APIRouter(include_in_schema=False)


@router.head(PAGE_PATH)
@router.get(PAGE_PATH)
async def first_page() -> Response:
    """The page; it holds no data."""
    content, headers = page()
    return Response(content, headers=headers, media_type="text/html")
