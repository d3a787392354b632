"""The words in which operations and clients speak: what to send, how long to pause, what to keep, what came of it.

An operation is a generator that yields `Send`, `Pause`, `Keep` and `Evaluate` and is sent back the outcome, so that
the sync and the async client lead the same conversation.
"""

from __future__ import annotations

import inspect
import random
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import update_wrapper
from typing import Any, TypeAlias, TypeVar

import httpx

from creditd.client.evaluators import Evaluate

PIECE_BYTES = 1 << 20
"""Longer bodies are sent piece by piece: what a socket does not take at once would be copied again and again."""
CONNECT_TIMEOUT_S = 10.0
"""Less than a deadline, so that an address that swallows packets is tried more than once."""

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Send:
    """Send this and come back with the answer, or with what the transport raised.

    Attributes:
        method: HTTP method.
        url: Absolute.
        headers: All that this package sets.
        content: Body, or None.
        timeout_s: Seconds until nobody waits any more.
    """

    method: str
    url: str
    headers: dict[str, str]
    content: bytes | None
    timeout_s: float

    @property
    def pieces(self) -> bytes | Iterator[bytes] | None:
        """The body, piece by piece where it is long; for one attempt."""
        content = self.content
        return content if content is None or len(content) <= PIECE_BYTES else _cut(content)

    @property
    def async_pieces(self) -> bytes | AsyncIterator[bytes] | None:
        """The same for clients that await."""
        content = self.content
        return content if content is None or len(content) <= PIECE_BYTES else _cut_async(content)

    @property
    def timeout(self) -> httpx.Timeout:
        """The time that is left for each part of the exchange; less for connecting."""
        return httpx.Timeout(self.timeout_s, connect=min(self.timeout_s, CONNECT_TIMEOUT_S))


def _cut(content: bytes) -> Iterator[bytes]:
    view = memoryview(content)
    for start in range(0, len(content), PIECE_BYTES):
        yield bytes(view[start : start + PIECE_BYTES])


async def _cut_async(content: bytes) -> AsyncIterator[bytes]:
    for piece in _cut(content):
        yield piece


@dataclass(frozen=True)
class Pause:
    """Wait.

    Attributes:
        seconds: How long.
    """

    seconds: float


@dataclass(frozen=True)
class Reply:
    """An answer as it came.

    Attributes:
        status: HTTP status.
        headers: Found by lower-case names.
        content: The body.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes

    def __str__(self) -> str:
        return f"{self.status} {self.content[:100].decode(errors='replace').strip()}"


@dataclass(frozen=True)
class Failure:
    """What is kept of an exception.

    Attributes:
        kind: Name of its class.
        status: HTTP status, or None if no answer came.
        code: Stable name of the kind of error, or None.
        detail: Its message.
    """

    kind: str
    status: int | None
    code: str | None
    detail: str


@dataclass(frozen=True)
class Exchange:
    """What was asked, and what came of it.

    Attributes:
        time: When it ended, UTC.
        url: Address of the service without credentials, or `local:`.
        operation: Path of the route.
        request_id: Identity of the request.
        status: HTTP status; in local mode the service's; None if no answer came.
        attempts: How often the request was sent; 0 in local mode.
        elapsed_s: Seconds that it took, waits and retries included.
        client_version: Version of this package.
        service_version: Version that answered, or None if no answer names it.
        ids: The caller's names of the sets, which are not sent.
        request: The body as JSON, with the bits of every number.
        response: The body of the answer as JSON, in local mode the one that the service would send; None if there is
            none.
        error: Why there is no result, or None.
    """

    time: datetime
    url: str
    operation: str
    request_id: str
    status: int | None
    attempts: int
    elapsed_s: float
    client_version: str
    service_version: str | None
    ids: tuple[str | int | None, ...] | None
    request: str
    response: str | None
    error: Failure | None


@dataclass(frozen=True)
class Keep:
    """Keep this exchange.

    Attributes:
        exchange: Makes it: what that costs, and what may go wrong, is the recorder's.
    """

    exchange: Callable[[], Exchange]


Outcome: TypeAlias = Reply | httpx.RequestError | list[float] | None
Steps: TypeAlias = Generator[Send | Pause | Keep | Evaluate, Outcome, _T]


@dataclass(frozen=True)
class Timing:
    """Clocks and chance, to be replaced in tests.

    Attributes:
        clock: Seconds that never run backwards.
        wall: Seconds since the epoch.
        chance: A number in [0, 1).
    """

    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    chance: Callable[[], float] = random.random


def as_method(call: _F, operation: Callable[..., Any]) -> _F:
    """Give a client's method the name, the documentation and the parameters of its operation."""
    update_wrapper(call, operation)
    signature = inspect.signature(operation)
    result = str(signature.return_annotation).removeprefix("Steps[").removesuffix("]")
    call.__signature__ = signature.replace(return_annotation=result)  # type: ignore[attr-defined]
    return call
