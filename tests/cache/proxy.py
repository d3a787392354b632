"""A connection between a service and Redis that a test makes slow, silent or short."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from types import TracebackType

from typing_extensions import Self

CHUNK_BYTES = 1 << 16
WRITTEN_S = 0.01
"""By then what was written is on its way; cutting a connection throws away what is not."""


class Proxy:
    """Passes bytes between whoever connects and a port of this machine. Belongs to one event loop.

    Attributes:
        port: Where it listens.
        delay_s: How long a piece of an answer is held up, seconds; asked for each.
        silent: Whether it goes on to accept connections and passes nothing any more, in either direction.
        cuts_after: How many bytes of answers pass before all connections are cut and the next are as before; None: all.
        n_connections: How many were accepted.
        n_answered: Bytes of answers that passed.
    """

    def __init__(self, target: int) -> None:
        """A proxy that does not listen yet.

        Args:
            target: The port behind it.
        """
        self._target = target
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._speaks = asyncio.Event()
        self._speaks.set()
        self.port = 0
        self.delay_s: Callable[[], float] = lambda: 0.0
        self.cuts_after: int | None = None
        self.n_connections = self.n_answered = 0

    @property
    def url(self) -> str:
        """The address as redis-py takes it."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def silent(self) -> bool:
        """Whether nothing passes."""
        return not self._speaks.is_set()

    @silent.setter
    def silent(self, silent: bool) -> None:
        if silent:
            self._speaks.clear()
        else:
            self._speaks.set()

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cut what is connected, and listen no more."""
        if self._server is not None:
            self._server.close()
        self.silent = False
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Cut all connections at once."""
        for writer in self._writers:
            writer.transport.abort()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(task := asyncio.current_task())
        self.n_connections += 1
        opened = [writer]
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError):
                answers, questions = await asyncio.open_connection("127.0.0.1", self._target)
                opened.append(questions)
                self._writers.add(questions)
                there = asyncio.create_task(self._pass(reader, questions))
                back = asyncio.create_task(self._pass(answers, writer, answers=True))
                try:
                    await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    there.cancel()
                    back.cancel()
                    await asyncio.gather(there, back, return_exceptions=True)
        finally:
            for one in opened:
                self._writers.discard(one)
                one.transport.abort()
            self._tasks.discard(task)

    async def _pass(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, *, answers: bool = False) -> None:
        """Pass pieces in their order, each of an answer when its time has come."""
        clock = asyncio.get_running_loop().time
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def read() -> None:
            while piece := await source.read(CHUNK_BYTES):
                pieces.put_nowait((clock() + (self.delay_s() if answers else 0.0), piece))
            pieces.put_nowait((clock(), b""))

        reading = asyncio.create_task(read())
        try:
            while True:
                due_s, piece = await pieces.get()
                await asyncio.sleep(max(due_s - clock(), 0.0))
                await self._speaks.wait()
                if not piece or not await self._passed(piece, to, answers=answers):
                    return
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _passed(self, piece: bytes, to: asyncio.StreamWriter, *, answers: bool) -> bool:
        """Pass one piece; whether the connection is still there."""
        cut = answers and self.cuts_after is not None and len(piece) >= self.cuts_after
        if cut:
            piece, self.cuts_after = piece[: self.cuts_after], None
        elif answers and self.cuts_after is not None:
            self.cuts_after -= len(piece)
        to.write(piece)
        await to.drain()
        if answers:
            self.n_answered += len(piece)
        if cut:
            await asyncio.sleep(WRITTEN_S)
            self.cut()
        return not cut
