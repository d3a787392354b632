"""The client that awaits, on asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx
from typing_extensions import Self

from creditd.client.attempts import DEFAULT_DEADLINE_S
from creditd.client.base import Operations
from creditd.client.conversations import WireFormat
from creditd.client.evaluators import Evaluate, evaluated_async
from creditd.client.recording import DEFAULT_KEEP, Recorder
from creditd.client.steps import Keep, Outcome, Pause, Reply, Send, Steps, Timing, as_method

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _awaiting(
    operation: Callable[Concatenate[Operations, _P], Steps[_T]],
) -> Callable[Concatenate[AsyncClient, _P], Coroutine[Any, Any, _T]]:
    """The method that leads an operation to its end."""

    async def call(self: AsyncClient, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self._run(operation(self._operations, *args, **kwargs))

    return as_method(call, operation)


class AsyncClient:
    """Credit from a service, or in this process; for one event loop.

    In local mode the arithmetic runs on the event loop: it takes milliseconds for a batch of training.

    Args:
        base_url: Address of the service, or `local:`. None: the environment variable CREDITD_URL, or this machine.
        api_key: Key of the service. None: the environment variable CREDITD_API_KEY, if any.
        deadline_s: Seconds allowed for one call, waits and retries included.
        transport: How requests are sent; None for a network.
        http_client: A client to send with, which is not closed with this one; instead of a transport.
        record: Directory, made if it is not there, in which each exchange of `shapley`, `group`, `scar`, `oar` and
            `compose` is kept as one file for `creditd replay`; None for none. Calls with a function as utility are not
            kept: nobody could repeat them without it. The files hold rewards, and texts and prompts if sent; their mode
            is 0600.
            They are written in a thread of asyncio, so that the event loop goes on (`creditd.client.recording` says at
            what cost). Failure raises nothing: `record_failures` counts it.
        keep: Files kept in that directory, the newest ones.
        wire_format: `binary` for `application/vnd.creditd.v1+msgpack` both ways; `json` for text that a person can
            read on the network. The numbers are the same to the last bit; recordings are JSON in either case.

    Raises:
        OSError: If the directory of `record` cannot be made, or not written to.
        ValueError: If an argument makes no sense.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        deadline_s: float = DEFAULT_DEADLINE_S,
        transport: httpx.AsyncBaseTransport | None = None,
        http_client: httpx.AsyncClient | None = None,
        record: str | os.PathLike[str] | None = None,
        keep: int = DEFAULT_KEEP,
        wire_format: WireFormat = "binary",
        _timing: Timing | None = None,
        _sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if transport is not None and http_client is not None:
            raise ValueError("got a transport and an http_client; expected one of them")
        self._operations = Operations(
            base_url, api_key, deadline_s, _timing, keeps=record is not None, wire_format=wire_format
        )
        self._recorder = None if record is None else Recorder(record, keep)
        self._owned: httpx.AsyncClient | None = None
        if http_client is None and not self._operations.is_local:
            self._owned = httpx.AsyncClient(transport=transport, trust_env=not self._operations.is_loopback)
        self._http = http_client or self._owned
        self._sleep = _sleep
        self._closed = False

    shapley = _awaiting(Operations.shapley)
    group = _awaiting(Operations.group)
    scar = _awaiting(Operations.scar)
    oar = _awaiting(Operations.oar)
    compose = _awaiting(Operations.compose)
    load_weights = _awaiting(Operations.load_weights)
    announce_weights = _awaiting(Operations.announce_weights)
    push_weights = _awaiting(Operations.push_weights)
    repeat = _awaiting(Operations.repeat)
    info = _awaiting(Operations.info)
    models = _awaiting(Operations.models)
    ready = _awaiting(Operations.ready)
    wait_until_ready = _awaiting(Operations.wait_until_ready)

    @property
    def base_url(self) -> str:
        """Address of the service, or `local:`."""
        return self._operations.base_url

    @property
    def record_failures(self) -> int:
        """Exchanges that could not be recorded; the first one is also logged."""
        return 0 if self._recorder is None else self._recorder.failures

    async def aclose(self) -> None:
        """Give up all connections. A closed client stays closed."""
        self._closed = True
        if self._owned is not None:
            await self._owned.aclose()

    async def __aenter__(self) -> Self:
        if self._closed:
            raise RuntimeError("the client is closed")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, steps: Steps[_T]) -> _T:
        if self._closed:
            raise RuntimeError("the client is closed")
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as stop:
                result: _T = stop.value
                return result
            outcome = None
            if isinstance(step, Pause):
                await self._sleep(step.seconds)
            elif isinstance(step, Keep):
                if self._recorder is not None:
                    await asyncio.to_thread(self._recorder.write, step.exchange)
            elif isinstance(step, Evaluate):
                outcome = await evaluated_async(step)
            else:
                outcome = await self._send(step)
            del step  # it may hold a long body, and the next one is about to be made

    async def _send(self, step: Send) -> Outcome:
        if self._http is None:
            raise RuntimeError("local mode sends nothing")
        sending = self._http.request(
            step.method, step.url, headers=step.headers, content=step.async_pieces, timeout=step.timeout
        )
        try:
            response = await asyncio.wait_for(sending, step.timeout_s)
        except httpx.RequestError as error:
            return error
        except asyncio.TimeoutError:
            return httpx.ReadTimeout("the answer was still arriving")
        return Reply(response.status_code, response.headers, response.content)
