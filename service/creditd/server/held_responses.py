"""Responses that count as held until they are written."""

from __future__ import annotations

from fastapi import Response
from starlette.types import Receive, Scope, Send

from creditd.server.resources import Resources


class HeldResponse(Response):
    """A response whose bytes count as held until they are written; the connection counts what is then not read."""

    def __init__(self, body: bytes, media_type: str, resources: Resources) -> None:
        super().__init__(body, media_type=media_type)
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write it, which may have to wait for a caller who has not read an earlier one."""
        self._resources.count_held(len(self.body))
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._resources.count_held(-len(self.body))
