"""Heads of requests are bounded: the parser keeps every header that comes, and a body's limit says nothing of them.

The same holds for what may stand around a body in chunks: extensions of a chunk, and headers behind the last one.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's protocol, which ends a connection that sends much while no head ends and no body goes on."""

    _without_progress = 0

    def on_headers_complete(self) -> None:
        """A head has ended."""
        self._without_progress = 0
        super().on_headers_complete()

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
