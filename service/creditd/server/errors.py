"""Failures of a request as problem documents (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from fastapi import Response

from creditd.wire.errors import ErrorCode, ErrorItem, problem

RETRY_AFTER_S = 1


class ServiceError(Exception):
    """A request that gets no answer.

    Attributes:
        code: What went wrong.
        detail: One sentence; never the caller's data.
        items: Offences, at most 10 travel.
        headers: What the response says beside its body.
        members: What its body says beside the problem, for callers who know other words.
    """

    def __init__(
        self,
        code: ErrorCode,
        detail: str,
        items: tuple[ErrorItem, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code, detail, items)
        self.code = code
        self.detail = detail
        self.items = items
        self.headers = dict(headers or {})
        self.members: dict[str, object] = {}


def refusal(code: ErrorCode, pointer: str, detail: str) -> ServiceError:
    """A request that is refused for one reason.

    Args:
        code: What is wrong.
        pointer: Where in the request; empty for all of it.
        detail: One sentence.
    """
    item = ErrorItem(pointer=pointer, code=code, detail=detail)
    return ServiceError(code, f"{pointer}: {detail}" if pointer else detail, (item,))


def problem_response(error: ServiceError, request_id: str) -> Response:
    """The response that tells a caller what went wrong and whether to try again.

    Args:
        error: The failure.
        request_id: Identity of the request.

    Returns:
        `application/problem+json` with the status of the code; retryable refusals carry Retry-After, 401 its challenge.
    """
    document = problem(error.code, error.detail, request_id=request_id, errors=error.items)
    headers = dict(error.headers)
    if document.status == 503:
        headers.setdefault("Retry-After", str(RETRY_AFTER_S))
    if document.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = orjson.dumps({**document.model_dump(mode="json"), **error.members})
    return Response(body, status_code=document.status, headers=headers, media_type="application/problem+json")
