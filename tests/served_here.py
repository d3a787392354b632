"""A service in this process for a client that waits: its event loop runs in a thread of its own."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from creditd.server.app import create_app
from creditd.server.resources import Resources

PATIENCE_S = 60.0


class _Bridge(httpx.BaseTransport):
    """Requests of this thread, answered in the other one."""

    def __init__(self, app, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = httpx.ASGITransport(app), loop

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Wait for the answer."""
        body = request.read()

        async def answered() -> httpx.Response:
            asked = httpx.Request(request.method, request.url, headers=request.headers, content=body)
            answer = await self._transport.handle_async_request(asked)
            await answer.aread()
            return answer

        answer = asyncio.run_coroutine_threadsafe(answered(), self._loop).result(PATIENCE_S)
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


@contextmanager
def served_here(resources: Resources) -> Iterator[httpx.BaseTransport]:
    """A transport to a service of these resources, which has ended when the block has."""
    app = create_app(resources.settings, resources)
    started, ended = threading.Event(), threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        async with app.router.lifespan_context(app):
            loops.append(asyncio.get_running_loop())
            started.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(PATIENCE_S)
        yield _Bridge(app, loops[0])
    finally:
        ended.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
