"""The slow service as a process: started on a free port, ended by its own id."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx

PATIENCE_S = 60.0
"""How long a test waits for what takes a second."""
SCRIPT = Path(__file__).with_name("slow_service.py")


class ServiceProcess(NamedTuple):
    """A running service."""

    process: subprocess.Popen
    port: int
    passes: Path
    log: Path

    @property
    def url(self):
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def ask_to_end(self):
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def let_pass(self):
        """Let the arithmetic pass."""
        self.passes.touch()

    def status(self):
        """The exit status, once it has ended."""
        return self.process.wait(PATIENCE_S)

    def in_flight(self):
        """What the service says of its load."""
        return self.metric("creditd_requests_in_flight")

    def metric(self, name):
        """A number of the service."""
        text = httpx.get(f"{self.url}/metrics", timeout=PATIENCE_S).text
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(line.split()[1])


def wait_until(true, what):
    """Wait for something that happens in another process."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.01)


@contextmanager
def slow_service(folder: Path, *, hold_s: float = PATIENCE_S, **settings):
    """The process; it is killed if it outlives the test."""
    passes, log = folder / "passes", folder / "log"
    arguments = [sys.executable, str(SCRIPT), str(passes), str(hold_s), json.dumps({"port": 0, **settings})]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CREDITD_")}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    with (
        log.open("wb") as errors,
        subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=errors, env=environment, cwd=folder) as process,
    ):
        try:
            port = process.stdout.readline()
            assert port, log.read_text()
            yield ServiceProcess(process, int(port), passes, log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(PATIENCE_S)
