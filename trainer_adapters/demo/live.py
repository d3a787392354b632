"""The live service of the demonstration: a process of its own, on a free port, ended by its process id."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STOP_LIMIT_S = 30.0


@dataclass(frozen=True)
class Service:
    """A running service.

    Attributes:
        url: Where it listens.
        pid: Its process.
        log: Its log, one JSON line per request.
    """

    url: str
    pid: int
    log: Path

    def answered(self, request_ids: list[str]) -> int:
        """How many of the requests stand in the log of the service with status 200."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        good = "\n".join(line for line in lines if '"status":200' in line.replace(": ", ":"))
        return sum(f'"{request_id}"' in good for request_id in request_ids)


@contextmanager
def live_service(directory: Path, config: Path | None = None) -> Iterator[Service]:
    """Start `creditd serve` on a free port, and end it.

    Args:
        directory: Where its log is written.
        config: Its settings, a TOML file, or None.

    Yields:
        The service, which accepts requests.
    """
    log = directory / "service.log"
    command = [sys.executable, "-m", "creditd.cli", "serve", "--port", "0"]
    if config is not None:
        command += ["--config", str(config)]
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stream, text=True)
        try:
            greeting = process.stdout.readline() if process.stdout else ""
            if "listens on http://" not in greeting:
                raise RuntimeError(f"the service did not start:\n{log.read_text(encoding='utf-8')}")
            yield Service(greeting.split("listens on ")[1].split()[0], process.pid, log)
        finally:
            process.send_signal(signal.SIGCONT)  # a stopped process would never hear of its end
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout:
                process.stdout.close()
