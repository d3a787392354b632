import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import NamedTuple

import httpx
import psutil
import pytest

from server.hostile import CASES
from server.processes import wait_until
from server.running import SHAPLEY, columnar
from services import running_service

pytestmark = pytest.mark.slow

WARM_UP, REPEATS = 3, 20
"""How often everything hostile is sent before memory is looked at, and between the two looks."""
MAX_GROWTH_BYTES = 64 << 20
"""What a process may keep of them: less than one eighth of what one body of empty objects would have taken."""
PATIENCE_S = 10.0
"""Ten times what the largest body may hold the event loop."""
CONNECTIONS = 50


class Running(NamedTuple):
    """A service in a process of its own."""

    url: str
    process: psutil.Process

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rsplit(":", 1)[1])

    def grown(self, before: int) -> int:
        """How much more memory it holds than before."""
        return int(self.process.memory_info().rss) - before


class Others:
    """Callers that mean well: they ask for life and for credit without a pause, and note each answer and its time."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[tuple[int, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        with httpx.Client(base_url=self.url, timeout=PATIENCE_S) as client:
            while not self._ended.is_set():
                for ask in (lambda: client.get("/livez"), lambda: client.post(SHAPLEY, json=columnar())):
                    asked = time.monotonic()
                    self.answers.append((ask().status_code, time.monotonic() - asked))

    @contextmanager
    def asking(self) -> Iterator[None]:
        """They ask for as long as this lasts."""
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()

    def assert_served(self) -> None:
        """Each was answered, and many were while the others did their worst."""
        assert len(self.answers) > 2 * REPEATS
        assert {status for status, _ in self.answers} == {200}
        assert max(seconds for _, seconds in self.answers) < PATIENCE_S


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """The service as it is run, by its command."""
    folder = tmp_path_factory.mktemp("service")
    with running_service(directory=folder, pid_file=folder / "pid") as url:
        yield Running(url, psutil.Process(int((folder / "pid").read_text())))


def test_hostile_bodies_leave_no_memory_behind_and_keep_nobody_out(service):
    """Every hostile body again and again: memory stays where it was, and others are answered all the time."""

    def round_of_all(client):
        for name, case in CASES.items():
            response = client.post(case.path, content=case.body, headers={"Content-Type": case.content_type})
            assert response.status_code == case.status, name

    others = Others(service.url)
    with httpx.Client(base_url=service.url, timeout=10 * PATIENCE_S) as client, others.asking():
        for _ in range(WARM_UP):
            round_of_all(client)
        before = service.process.memory_info().rss
        for _ in range(REPEATS):
            round_of_all(client)
        assert service.grown(before) < MAX_GROWTH_BYTES
    others.assert_served()


@pytest.mark.parametrize("ending", ["left open", "half-closed", "reset"])
def test_bodies_that_do_not_come_leave_nothing_behind(service, ending):
    """Connections that stop in the middle of a body, many at a time: no memory, no descriptor, no place is kept."""
    head = f"POST {SHAPLEY} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 8000000\r\n\r\n"
    part = head.encode() + b" " * 1000

    def round_of_connections():
        with ExitStack() as opened:
            raws = [
                opened.enter_context(closing(socket.create_connection(("127.0.0.1", service.port), PATIENCE_S)))
                for _ in range(CONNECTIONS)
            ]
            for raw in raws:
                raw.sendall(part)
                if ending == "half-closed":
                    raw.shutdown(socket.SHUT_WR)
                elif ending == "reset":
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            assert httpx.post(f"{service.url}{SHAPLEY}", json=columnar(), timeout=PATIENCE_S).status_code == 200

    descriptors = service.process.num_fds()
    others = Others(service.url)
    with others.asking():
        for _ in range(WARM_UP):
            round_of_connections()
        before = service.process.memory_info().rss
        for _ in range(REPEATS):
            round_of_connections()
        assert service.grown(before) < MAX_GROWTH_BYTES
    others.assert_served()
    wait_until(lambda: service.process.num_fds() <= descriptors, "all connections are closed")
    text = httpx.get(f"{service.url}/metrics", timeout=PATIENCE_S).text
    assert "creditd_requests_in_flight 0.0" in text
