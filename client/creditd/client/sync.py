"""The client that waits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Concatenate, ParamSpec, TypeVar

import httpx
from typing_extensions import Self

from creditd.client.attempts import DEFAULT_DEADLINE_S
from creditd.client.base import Operations
from creditd.client.conversations import WireFormat
from creditd.client.evaluators import Evaluate, evaluated
from creditd.client.recording import DEFAULT_KEEP, Recorder
from creditd.client.steps import Keep, Outcome, Pause, Reply, Send, Steps, Timing, as_method

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _blocking(operation: Callable[Concatenate[Operations, _P], Steps[_T]]) -> Callable[Concatenate[Client, _P], _T]:
    """The method that leads an operation to its end."""

    def call(self: Client, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._run(operation(self._operations, *args, **kwargs))

    return as_method(call, operation)


class Client:
    """Credit from a service, or in this process; may be shared by threads.

        Client()                                the address in CREDITD_URL, or http://127.0.0.1:8400
        Client("http://credit:8400")            a service
        Client("local:")                        no service: the same numbers, computed here
        Client(transport=…)                     another way to send, as in tests

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
            They are written by the calling thread (`creditd.client.recording` says at what cost). Failure raises
            nothing: `record_failures` counts it.
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
        transport: httpx.BaseTransport | None = None,
        http_client: httpx.Client | None = None,
        record: str | os.PathLike[str] | None = None,
        keep: int = DEFAULT_KEEP,
        wire_format: WireFormat = "binary",
        _timing: Timing | None = None,
        _sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if transport is not None and http_client is not None:
            raise ValueError("got a transport and an http_client; expected one of them")
        self._operations = Operations(
            base_url, api_key, deadline_s, _timing, keeps=record is not None, wire_format=wire_format
        )
        self._recorder = None if record is None else Recorder(record, keep)
        self._owned: httpx.Client | None = None
        if http_client is None and not self._operations.is_local:
            self._owned = httpx.Client(transport=transport, trust_env=not self._operations.is_loopback)
        self._http = http_client or self._owned
        self._sleep = _sleep
        self._closed = False

    shapley = _blocking(Operations.shapley)
    group = _blocking(Operations.group)
    scar = _blocking(Operations.scar)
    oar = _blocking(Operations.oar)
    compose = _blocking(Operations.compose)
    load_weights = _blocking(Operations.load_weights)
    announce_weights = _blocking(Operations.announce_weights)
    push_weights = _blocking(Operations.push_weights)
    repeat = _blocking(Operations.repeat)
    info = _blocking(Operations.info)
    models = _blocking(Operations.models)
    ready = _blocking(Operations.ready)
    wait_until_ready = _blocking(Operations.wait_until_ready)

    @property
    def base_url(self) -> str:
        """Address of the service, or `local:`."""
        return self._operations.base_url

    @property
    def record_failures(self) -> int:
        """Exchanges that could not be recorded; the first one is also logged."""
        return 0 if self._recorder is None else self._recorder.failures

    def close(self) -> None:
        """Give up all connections. A closed client stays closed."""
        self._closed = True
        if self._owned is not None:
            self._owned.close()

    def __enter__(self) -> Self:
        if self._closed:
            raise RuntimeError("the client is closed")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, steps: Steps[_T]) -> _T:
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
                self._sleep(step.seconds)
            elif isinstance(step, Keep):
                if self._recorder is not None:
                    self._recorder.write(step.exchange)
            elif isinstance(step, Evaluate):
                outcome = evaluated(step)
            else:
                outcome = self._send(step)
            del step  # it may hold a long body, and the next one is about to be made

    def _send(self, step: Send) -> Outcome:
        if self._http is None:
            raise RuntimeError("local mode sends nothing")
        clock = self._operations.timing.clock
        chunks: list[bytes] = []
        expires = clock() + step.timeout_s
        try:
            with self._http.stream(
                step.method, step.url, headers=step.headers, content=step.pieces, timeout=step.timeout
            ) as response:
                for chunk in response.iter_bytes():
                    if chunks and clock() > expires:
                        return httpx.ReadTimeout("the answer was still arriving", request=response.request)
                    chunks.append(chunk)
        except httpx.RequestError as error:
            return error
        return Reply(response.status_code, response.headers, b"".join(chunks))
