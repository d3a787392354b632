"""Running the application: one process, one event loop, and an end that loses no request."""

from __future__ import annotations

import asyncio
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import socket

import anyio
import uvicorn
from fastapi import FastAPI

from creditd.server.heads import BoundedHeads
from creditd.server.memory import leave_out_what_is_loaded
from creditd.server.resources import Resources

KEEP_ALIVE_S = 120
"""Longer than a training step: a connection that closes under an idle client costs it a retry."""


class DrainingServer(uvicorn.Server):
    """Ends on SIGTERM or SIGINT after the requests in flight are answered; a second signal ends at once.

    uvicorn alone would stop listening at once and exit with the signal's status; here new requests are refused with 503
    until the last answer is out, so that callers retry elsewhere, and the exit status is 0.
    """

    def __init__(self, config: uvicorn.Config, resources: Resources, on_started: Callable[[int], None]) -> None:
        super().__init__(config)
        self.resources = resources
        self.on_started = on_started
        self.cut_off = False
        self._drain_ends = 0.0
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Listen, then tell the caller on which port."""
        await super().startup(sockets)
        if self.started:
            leave_out_what_is_loaded()
            self.on_started(self.servers[0].sockets[0].getsockname()[1])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on the signals that ask a process to end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._begin_drain)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _begin_drain(self) -> None:
        if self.resources.draining:
            self.cut_off = self.resources.abandoned = bool(self.resources.in_flight)
            self.force_exit = self.should_exit = True
            return
        self.resources.draining = True
        self.resources.metrics.draining.set(1)
        self._drain = asyncio.get_running_loop().create_task(self._finish())

    async def _finish(self) -> None:
        """Wait for the requests in flight, no longer than the setting, then end."""
        self._drain_ends = anyio.current_time() + self.resources.settings.drain_timeout_s
        with anyio.move_on_after(self.resources.settings.drain_timeout_s) as limit:
            await self.resources.idle.wait()
        self.cut_off = self.resources.abandoned = limit.cancelled_caught
        # What is left of the limit is for answers that are written but not yet read by their callers.
        self.config.timeout_graceful_shutdown = max(1, math.ceil(self._drain_ends - anyio.current_time()))
        self.should_exit = True

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Close what is open; a connection that is still there afterwards was cut off with an answer half sent."""
        await super().shutdown(sockets)
        self.cut_off = self.cut_off or bool(self.server_state.connections)


def serve(app: FastAPI, on_started: Callable[[int], None]) -> int:
    """Serve an application until it is asked to end.

    Args:
        app: Made by `create_app`.
        on_started: Called with the port once requests are accepted.

    Returns:
        Exit status: 0 after an orderly end, 3 when start-up failed, 1 when requests were cut off. Threads may then
        still compute what nobody waits for: a caller that ends the process should not wait for them.
    """
    resources: Resources = app.state.resources
    config = uvicorn.Config(
        app,
        host=resources.settings.host,
        port=resources.settings.port,
        loop="uvloop",
        http=BoundedHeads,
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        proxy_headers=False,
        server_header=False,
    )
    server = DrainingServer(config, resources, on_started)
    try:
        server.run()
    except SystemExit as end:
        return int(end.code or 0)
    if not server.started:
        return 3
    return 1 if server.cut_off else 0
