"""A Redis of the demonstration: a process of its own, on a free port, ended by its process id."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

START_LIMIT_S = 30.0
POLL_S = 0.02


class LocalRedis:
    """A redis-server that keeps nothing on disk; as a context manager it runs from enter to exit.

    Attributes:
        port: Where it listens on the loopback device, also after it was started anew.
    """

    def __init__(self, directory: Path) -> None:
        """Find the program and a free port.

        Args:
            directory: Where its log is written.

        Raises:
            RuntimeError: If there is no redis-server.
        """
        program = shutil.which("redis-server")
        if program is None:
            raise RuntimeError(
                "redis-server is not on the PATH; expected a Redis to pull out (apt-get install redis-server)"
            )
        self._program, self._directory = program, directory
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            self.port = int(held.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, whatever state it is in."""
        self.kill()

    @property
    def url(self) -> str:
        """Its address, as the service takes it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, empty, and wait until it answers.

        Raises:
            RuntimeError: If it does not.
        """
        log = self._directory / "redis.log"
        command = [
            self._program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory),
            "--save", "", "--appendonly", "no", "--daemonize", "no",
        ]  # fmt: skip
        with log.open("ab") as stream:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
        deadline = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"redis-server did not start:\n{log.read_text(encoding='utf-8')}")
            time.sleep(POLL_S)

    def size(self) -> int:
        """How many keys it holds."""
        return int(self._asked(b"DBSIZE").strip().removeprefix(b":"))

    def forget_half(self) -> None:
        """Delete every other key, in an order that says nothing."""
        self._asked(
            b"EVAL \"local keys = redis.call('KEYS', '*') "
            b"for place = 1, #keys, 2 do redis.call('DEL', keys[place]) end return #keys\" 0"
        )

    def kill(self) -> None:
        """End it with SIGKILL, stopped or not; what it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop it: its connections stay open, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on, with all that it held."""
        self._signal(signal.SIGCONT)

    def _signal(self, kind: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError("redis-server does not run")
        self._process.send_signal(kind)

    def _answers(self) -> bool:
        try:
            return self._asked(b"PING").startswith(b"+PONG")
        except OSError:
            return False

    def _asked(self, command: bytes) -> bytes:
        """The answer to a command whose answer is one short line."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as stream:
            stream.sendall(command + b"\r\n")
            return stream.recv(64)
