"""The live service of the demonstration: a process of its own, ended by its process id."""

from __future__ import annotations

import math
import os
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

    def processor_seconds(self) -> float:
        """What its process has used, where the system says it in /proc; else NaN."""
        status = Path(f"/proc/{self.pid}/stat")
        if not status.exists():
            return math.nan
        user, system = status.read_text(encoding="ascii").rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def live_service(directory: Path, config: Path | None = None, port: int = 0) -> Iterator[Service]:
    """Start `creditd serve`, and end it.

    Args:
        directory: Where its log is written.
        config: Its settings, a TOML file, or None.
        port: Where it listens; 0 takes a free one.

    Yields:
        The service, which accepts requests.
    """
    log = directory / "service.log"
    command = [sys.executable, "-m", "creditd.cli", "serve", "--port", str(port)]
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
