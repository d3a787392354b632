"""Pure ASGI: identity, log line and counters of each request; keys; admission. Outermost first, as they are wrapped.

Each reads `scope["path"]` and nothing that a header could change.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import time
import uuid
from typing import TYPE_CHECKING

from creditd.server.errors import ServiceError, problem_response
from creditd.wire.errors import ErrorCode

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from creditd.server.resources import Resources

PROBES = frozenset({"/livez", "/readyz"})
"""Paths that never need a key and are never refused."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")

log = logging.getLogger("creditd.request")


def header(scope: Scope, name: bytes) -> str | None:
    """First value of a header, or None."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


class RequestRecord:
    """Gives each request an identity, one log line without any text of its body, and its place in the counters.

    It also turns an exception that nothing else has answered into a problem document without a word of the exception.
    """

    def __init__(self, app: ASGIApp, resources: Resources) -> None:
        self.app = app
        self.resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        request_id = given if given and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        record: dict[str, object] = {}
        scope.setdefault("state", {}).update(request_id=request_id, record=record)
        started = time.perf_counter()
        status, sent_bytes, received_bytes = 0, 0, 0

        async def count_sent(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id.encode())]}
            elif message["type"] == "http.response.body":
                sent_bytes += len(message.get("body", b""))
            await send(message)

        async def count_received() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            return message

        failure: str | None = None
        try:
            await self.app(scope, count_received, count_sent)
        except Exception as error:  # the outermost boundary: whatever is left becomes a 500, and its type a log field
            failure = type(error).__name__
            logging.getLogger("creditd").exception("request %s failed", request_id)
            if not status:
                response = problem_response(
                    ServiceError(ErrorCode.INTERNAL, "the service failed; the request id finds the cause in its log"),
                    request_id,
                )
                await response(scope, receive, count_sent)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "unmatched")
            metrics = self.resources.metrics
            metrics.requests.labels(route, str(status or 499)).inc()
            metrics.request_seconds.labels(route).observe(seconds)
            fields: dict[str, object] = {
                "request_id": request_id,
                "method": scope["method"],
                "route": route,
                "status": status or 499,
                "duration_ms": round(seconds * 1e3, 3),
                "bytes_in": received_bytes,
                "bytes_out": sent_bytes,
                **record,
            }
            if failure:
                fields["failure"] = failure
            quiet = route in PROBES and status == 200
            log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": fields})


class KeyCheck:
    """Refuses every path but the probes to callers without a key, when keys are configured.

    Keys are compared by digest, all of them each time, so that the time taken tells nothing.
    """

    def __init__(self, app: ASGIApp, resources: Resources) -> None:
        self.app = app
        self.digests = [_digest(key.get_secret_value()) for key in resources.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "http" and self.digests and scope["path"] not in PROBES and not self._allowed(scope):
            error = ServiceError(
                ErrorCode.UNAUTHORIZED, "got no valid API key; expected the header `Authorization: Bearer KEY`"
            )
            await problem_response(error, scope["state"]["request_id"])(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        scheme, _, key = (header(scope, b"authorization") or "").partition(" ")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self.digests]
        return scheme.lower() == "bearer" and any(matches)


class Admission:
    """Counts the requests in flight, and refuses new work when there are too many or the process is ending.

    A refusal is 503 with Retry-After: trainers retry a 503 and give up on a 4xx.
    """

    def __init__(self, app: ASGIApp, resources: Resources) -> None:
        self.app = app
        self.resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        resources = self.resources
        refusal: ServiceError | None = None
        if resources.draining:
            refusal = ServiceError(ErrorCode.DRAINING, "the service is shutting down; try again elsewhere or later")
        elif resources.in_flight >= resources.settings.max_requests_in_flight:
            limit = resources.settings.max_requests_in_flight
            refusal = ServiceError(ErrorCode.OVERLOADED, f"{limit} requests are in flight, the limit; try again later")
        if refusal is not None:
            await problem_response(refusal, scope["state"]["request_id"])(scope, receive, send)
            return
        resources.enter()
        try:
            await self.app(scope, receive, send)
        finally:
            resources.leave()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
