"""Load on a server over loopback: as many requests as it takes, or so many per second.

One process and one event loop make the load. A connection has one request under way at a time.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

END_OF_HEAD = b"\r\n\r\n"


@dataclass(frozen=True)
class Ask:
    """One request, ready to be written.

    Attributes:
        port: Of the server, on 127.0.0.1.
        data: Head and body.
    """

    port: int
    data: bytes


def post(port: int, path: str, body: bytes, media_type: str) -> Ask:
    """A POST whose answer is wanted in the format of its body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {media_type}\r\nAccept: {media_type}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return Ask(port, head.encode() + body)


def get(port: int, path: str) -> Ask:
    """A GET."""
    return Ask(port, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())


class Connection(asyncio.Protocol):
    """A connection that answers of a known length come back on."""

    def __init__(self) -> None:
        self._head = b""
        self._left: int | None = None
        self._status = 0
        self._body: list[bytes] = []
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: Any) -> None:
        """Keep the transport."""
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer that has not come will not come."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        """Count what is left of the answer."""
        if self._left is None:
            self._head += data
            head, found, data = self._head.partition(END_OF_HEAD)
            if not found:
                return
            self._status = int(head[9:12])
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            self._left, self._head = int(lengths[0].partition(b":")[2]), b""
        self._left -= len(data)
        self._body.append(data)
        if self._left == 0 and self._answer is not None:
            body, self._body, self._left = b"".join(self._body), [], None
            self._answer.set_result((self._status, body))

    async def ask(self, request: Ask) -> tuple[int, bytes]:
        """Status and body of the answer."""
        if self._transport is None:
            raise ConnectionError("not connected")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request.data)
        return await self._answer

    def close(self) -> None:
        """Close it."""
        if self._transport is not None:
            self._transport.close()


@asynccontextmanager
async def connected(port: int, number: int) -> Any:
    """So many connections."""
    loop = asyncio.get_running_loop()
    found = [(await loop.create_connection(Connection, "127.0.0.1", port))[1] for _ in range(number)]
    try:
        yield found
    finally:
        for one in found:
            one.close()


@dataclass
class Load:
    """What a load met with.

    Attributes:
        seconds: How long it took.
        latencies_s: Seconds from the moment each request was due to the last byte of its answer.
        refused: Answers whose status is not 200.
    """

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    refused: int = 0

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return len(self.latencies_s) / self.seconds

    def quantile_ms(self, share: float) -> float:
        """The latency that a share of the requests stayed below, milliseconds."""
        cuts = statistics.quantiles(self.latencies_s, n=1000, method="inclusive")
        return cuts[min(round(share * 1000), 999) - 1] * 1e3


async def one_answer(request: Ask) -> bytes:
    """The answer to one request; anything but 200 is an error."""
    async with connected(request.port, 1) as (connection,):
        status, body = await connection.ask(request)
    if status != 200:
        raise RuntimeError(f"the answer is {status}: {body[:300]!r}")
    return body


async def back_to_back(requests: Sequence[Ask], n_requests: int, connections: int) -> Load:
    """Requests one after another on each of some connections, in turn."""
    return await _loaded(requests, n_requests, connections, math.inf)


async def paced(requests: Sequence[Ask], per_second: float, seconds: float, connections: int) -> Load:
    """So many requests per second, evenly spaced, whatever the answers do.

    A request that finds no free connection is late from the moment it was due: a stalled server is not spared the
    requests that it keeps from being sent.
    """
    return await _loaded(requests, round(per_second * seconds), connections, per_second)


async def _loaded(requests: Sequence[Ask], n_requests: int, connections: int, per_second: float) -> Load:
    """Requests that are due so many per second, or, without an end, as soon as a connection is free."""
    load, asked = Load(), 0

    async def keep_asking(connection: Connection) -> None:
        nonlocal asked
        while asked < n_requests:
            number, asked = asked, asked + 1
            due = time.perf_counter() if math.isinf(per_second) else begun + number / per_second
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
                due = time.perf_counter()  # a timer of this process that goes off late is no latency of the server
            status, _ = await connection.ask(requests[number % len(requests)])
            load.latencies_s.append(time.perf_counter() - due)
            load.refused += status != 200

    async with connected(requests[0].port, connections) as found:
        begun = time.perf_counter()
        await asyncio.gather(*map(keep_asking, found))
        load.seconds = time.perf_counter() - begun
    return load
