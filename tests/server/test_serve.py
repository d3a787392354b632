import os
import signal
import socket
import threading
from contextlib import closing

import httpx
import pytest

from creditd.server.app import create_app
from creditd.server.resources import Resources
from creditd.server.serve import serve
from creditd.server.settings import Settings
from server.running import PATIENCE_S

pytestmark = pytest.mark.slow


def test_a_port_in_use_ends_the_start():
    """A service that cannot listen ends with status 3 and never calls itself started."""
    started = []
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        status = serve(create_app(Settings(port=taken.getsockname()[1])), started.append)
    assert (status, started) == (3, [])


def test_a_failing_warm_up_ends_the_start():
    """A service that cannot answer its own example ends with status 3 and never listens."""

    def broken(*_):
        raise RuntimeError("broken")

    started, settings = [], Settings(port=0)
    status = serve(create_app(settings, Resources(settings, score_sets=broken)), started.append)
    assert (status, started) == (3, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_both_signals_drain(number):
    """SIGTERM and SIGINT end a service in order, once it has told its port and answered."""
    answers = []

    def ask(port):
        answers.append(httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=PATIENCE_S).status_code)
        os.kill(os.getpid(), number)

    asker = []

    def started(port):
        asker.append(threading.Thread(target=ask, args=(port,)))
        asker[0].start()

    assert serve(create_app(Settings(port=0)), started) == 0
    asker[0].join(PATIENCE_S)
    assert answers == [200]
