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
from collections.abc import Mapping
from typing import TYPE_CHECKING

from creditd.server.errors import ServiceError, problem_response
from creditd.server.page import PAGE_PATH
from creditd.wire.errors import ErrorCode

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from creditd.server.resources import Resources

PROBES = frozenset({"/livez", "/readyz"})
"""Paths that never need a key and are never refused."""
OPEN_PATHS = PROBES | {PAGE_PATH}
"""Paths that need no key: the probes, and a page without data that has to be there before anybody can type a key."""
REWARD_PATHS = frozenset({"/get_reward", "/classify"})
"""Routes that are work, beside everything below `/v1/`."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")

log = logging.getLogger("creditd.request")


def header(scope: Scope, name: bytes) -> str | None:
    """First value of a header, or None."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


async def refuse(error: ServiceError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a problem document, and say so in the record of the request."""
    scope["state"]["record"]["code"] = error.code.value
    await problem_response(error, scope["state"]["request_id"])(scope, receive, send)


class RequestRecord:
    """Gives each request an identity, one log line without any text of its body, and its place in the counters.

    It also turns an exception that nothing else has answered into a problem document without a word of the exception.
    """

    def __init__(self, app: ASGIApp, resources: Resources, paths: Mapping[str, re.Pattern[str]]) -> None:
        """Know the routes.

        Args:
            app: What handles requests.
            resources: Holds the counters.
            paths: Routes as they are documented, with what their paths match.
        """
        self.app = app
        self.resources = resources
        self.paths = frozenset(paths)
        self.patterns = {path: pattern for path, pattern in paths.items() if "{" in path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = header(scope, b"x-request-id")
        request_id = given if given and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        record: dict[str, object] = {"request_id": request_id, "method": scope["method"]}
        record["route"] = self._route_of(scope["path"])
        scope.setdefault("state", {}).update(request_id=request_id, record=record)
        started = time.perf_counter()
        traffic = _Traffic(receive, send, request_id)
        try:
            await self.app(scope, traffic.receive, traffic.send)
        except Exception as error:  # the outermost boundary: whatever is left becomes a 500, and its type a log field
            record["failure"] = type(error).__name__
            logging.getLogger("creditd").exception("request %s failed", request_id)
            if not traffic.status:
                detail = "the service failed; the request id finds the cause in its log"
                await refuse(ServiceError(ErrorCode.INTERNAL, detail), scope, receive, traffic.send)
        finally:
            self._close(record, traffic, time.perf_counter() - started)

    def _route_of(self, path: str) -> str:
        """The route of a path, whatever stands in it: a label that nobody can make up."""
        if path in self.paths:
            return path
        return next((route for route, pattern in self.patterns.items() if pattern.match(path)), "unmatched")

    def _close(self, record: dict[str, object], traffic: _Traffic, seconds: float) -> None:
        """Write the line and move the counters; 499 stands for a caller that left before there was a status."""
        status, route = traffic.status or 499, str(record["route"])
        self.resources.metrics.requests.labels(route, str(status)).inc()
        self.resources.metrics.request_seconds.labels(route).observe(seconds)
        record.update(
            status=status,
            duration_ms=round(seconds * 1e3, 3),
            bytes_in=traffic.received_bytes,
            bytes_out=traffic.sent_bytes,
        )
        quiet = route in PROBES and status == 200
        log.log(logging.DEBUG if quiet else logging.INFO, "request", extra={"fields": record})


class _Traffic:
    """What a request receives and sends, counted; each response is given the identity of its request."""

    def __init__(self, receive: Receive, send: Send, request_id: str) -> None:
        self._receive = receive
        self._send = send
        self._identity = (b"x-request-id", request_id.encode())
        self.status = 0
        self.sent_bytes = 0
        self.received_bytes = 0

    async def receive(self) -> Message:
        """The next message of the caller."""
        message = await self._receive()
        self.received_bytes += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        """A message to the caller."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message["headers"], self._identity]}
        elif message["type"] == "http.response.body":
            self.sent_bytes += len(message.get("body", b""))
        await self._send(message)


class KeyCheck:
    """Refuses every path but the probes and the page to callers without a key, when keys are configured.

    The digest of a caller's key is its `tenant` in the state of the request: nothing is shared between two of them.
    `admin` is there whether the key may replace weights; without any key configured everybody may.
    Keys are compared by digest, all of them each time, so that the time taken tells nothing.
    """

    def __init__(self, app: ASGIApp, resources: Resources) -> None:
        self.app = app
        self.digests = [_digest(key.get_secret_value().encode()) for key in resources.settings.keys]
        self.admin_digests = [_digest(key.get_secret_value().encode()) for key in resources.settings.all_admin_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        tenant = self._tenant(scope) if scope["type"] == "http" and self.digests else b""
        if tenant is None and scope["path"] not in OPEN_PATHS:
            error = ServiceError(
                ErrorCode.UNAUTHORIZED, "got no valid API key; expected the header `Authorization: Bearer KEY`"
            )
            await refuse(error, scope, receive, send)
            return
        scope.setdefault("state", {}).update(tenant=tenant, admin=self._is_admin(tenant))
        await self.app(scope, receive, send)

    def _is_admin(self, tenant: bytes | None) -> bool:
        """Whether the caller of a key may do everything."""
        matches = [hmac.compare_digest(tenant or b"", digest) for digest in self.admin_digests]
        return any(matches) or not self.digests

    def _tenant(self, scope: Scope) -> bytes | None:
        """Digest of the caller's key; None without a valid one."""
        scheme, _, key = (header(scope, b"authorization") or "").partition(" ")
        given = _digest(key.strip().encode("latin-1"))
        matches = [hmac.compare_digest(given, digest) for digest in self.digests]
        return given if scheme.lower() == "bearer" and any(matches) else None


class Admission:
    """Counts the requests in flight, and refuses new ones when too many are answered or the process is ending.

    A refusal is 503 with Retry-After: trainers retry a 503 and give up on a 4xx.
    """

    def __init__(self, app: ASGIApp, resources: Resources) -> None:
        self.app = app
        self.resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        is_work = scope["type"] == "http" and (scope["path"].startswith("/v1/") or scope["path"] in REWARD_PATHS)
        if not is_work:
            await self.app(scope, receive, send)
            return
        resources = self.resources
        try:
            resources.enter()
        except ServiceError as refusal:
            await refuse(refusal, scope, receive, send)
            return
        try:
            await self.app(scope, receive, send)
        finally:
            resources.leave()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
