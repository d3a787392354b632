"""Routes whose functions read the request and write the response themselves."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class RawRoute(APIRoute):
    """A route whose function reads the request and writes the response itself; FastAPI documents it and no more."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function as it is: it has no dependency to resolve, and its answer is bytes already."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler
