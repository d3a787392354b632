"""What uvicorn leaves without a bound on a connection: the heads of requests, and answers that nobody reads.

The parser keeps every header that comes, and a body's limit says nothing of them; the same holds for what may stand
around a body in chunks: extensions of a chunk, and headers behind the last one. An answer is written at once and kept
until it is read, which may be never.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from creditd.server.resources import Resources

MAX_HEAD_BYTES = 64 << 10
"""Many times what proxies let through; one read more may come before it is noticed."""
_SENTENCE = f"the head of the request is larger than {MAX_HEAD_BYTES} bytes, the limit\n".encode()
_REFUSAL = b"\r\n".join(
    (
        b"HTTP/1.1 431 Request Header Fields Too Large",
        b"content-type: text/plain; charset=utf-8",
        b"content-length: %d" % len(_SENTENCE),
        b"connection: close",
        b"",
        _SENTENCE,
    )
)


LOOK_AGAIN_S = 1.0
"""How often an answer that is not read yet is looked at."""


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's protocol, which ends a connection that sends much while no head ends and no body goes on.

    It also ends one whose head takes as long as a body may take to arrive, or that lets an answer lie for as long, or
    for a second when too much is held; what is written and not read counts as held.
    """

    resources: Resources
    _without_progress = 0
    _head_timer: asyncio.TimerHandle | None = None
    _cycles: tuple[RequestResponseCycle, ...] = ()
    _unread = 0
    _unread_since_s = 0.0
    _look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller is there, who has to say something in time."""
        super().connection_made(transport)
        self._expect_a_head()

    def on_message_begin(self) -> None:
        """A head has begun."""
        super().on_message_begin()
        # Behind a request that is being answered nothing is read any more: its caller cannot be too slow.
        if self._head_timer is None and not self._cycles:
            self._expect_a_head()

    def on_headers_complete(self) -> None:
        """A head has ended."""
        self._without_progress = 0
        self._stop_waiting_for_a_head()
        super().on_headers_complete()
        self._cycles = (*self._cycles, self.cycle)

    def on_body(self, body: bytes) -> None:
        """A body goes on."""
        self._without_progress = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has ended."""
        self._without_progress = 0
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """Parse what has come; it counts until the parser gets somewhere."""
        self._without_progress += len(data)
        super().data_received(data)
        if self._without_progress > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_REFUSAL)
            self.transport.close()

    def on_response_complete(self) -> None:
        """An answer is written, as far as the caller has read."""
        self._cycles = tuple(cycle for cycle in self._cycles if not cycle.response_complete)
        super().on_response_complete()
        self._look_at_unread()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is kept for a caller who is gone."""
        self._stop_waiting_for_a_head()
        # uvicorn tells the newest request alone; those before it are the ones that somebody works for.
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        self._count_unread(0)
        super().connection_lost(exc)

    def _expect_a_head(self) -> None:
        self._head_timer = self.loop.call_later(self.resources.settings.body_timeout_s, self.transport.abort)

    def _stop_waiting_for_a_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _look_at_unread(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left != self._unread:
            self._unread_since_s = self.loop.time()
        self._count_unread(left)
        if not left:
            return
        settings = self.resources.settings
        lies_s = self.loop.time() - self._unread_since_s
        too_much = self.resources.held_bytes > settings.max_held_bytes
        if lies_s >= (min(LOOK_AGAIN_S, settings.body_timeout_s) if too_much else settings.body_timeout_s):
            self.transport.abort()
            return
        self._look = self.loop.call_later(min(LOOK_AGAIN_S, settings.body_timeout_s), self._look_at_unread)

    def _count_unread(self, left: int) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self.resources.count_held(left - self._unread)
        self._unread = left


def bounded_connections(resources: Resources) -> type[BoundedConnection]:
    """The protocol of a service that holds these resources."""

    class Bounded(BoundedConnection):
        pass

    Bounded.resources = resources
    return Bounded
