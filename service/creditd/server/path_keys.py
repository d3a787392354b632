"""API keys in addresses, for trainers that are given an address and can send no header.

An address may begin with `/with_key/KEY`, before one of the routes that such trainers know and before no other. The key
goes where a header would have brought it, and is gone from the address before anything else looks at that: the log,
the counters and the routes see the address behind it, and the key is checked as every other one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote, unquote_to_bytes

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_WITH_KEY = re.compile(rb"/with_key/([^/]+)(/get_reward|/classify|/v1/models/.+/get_reward)")
_AUTHORIZATION = b"authorization"


class PathKey:
    """Moves a key from the address of a request to its header; the outermost middleware.

    In the address the key is percent-encoded where it has a slash or anything else that an address cannot have. It
    counts instead of a header that comes with it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        found = _WITH_KEY.fullmatch(scope["raw_path"]) if scope["type"] == "http" and scope.get("raw_path") else None
        if found is None:
            await self.app(scope, receive, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if name != _AUTHORIZATION]
        headers.append((_AUTHORIZATION, b"Bearer " + unquote_to_bytes(found[1])))
        path = unquote(found[2].decode("ascii"))
        await self.app({**scope, "path": path, "raw_path": found[2], "headers": headers}, receive, send)
