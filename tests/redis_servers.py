"""Real Redis servers for tests: started on a free loopback port, ended by their process id."""

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from typing_extensions import Self

START_LIMIT_S = 30.0
"""A hundred times what a start takes on a slow machine."""
TRIES = 5
"""How many ports are tried: another process may take a free one before the server does."""
POLL_S = 0.01
READY = "Ready to accept connections"
RECIPE = Path(__file__).resolve().parents[1] / "deploy" / "redis"
SERVICE_USER, SERVICE_PASSWORD = "creditd", "the-password-of-the-service"
ADMIN_USER, ADMIN_PASSWORD = "creditd-admin", "the-password-of-administration"
NO_DISK = ("--save", "", "--appendonly", "no")


def free_port() -> int:
    """A port of the loopback device that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


class RedisServer:
    """One redis-server process; as a context manager it runs from enter to exit.

    Attributes:
        port: The port; a restart keeps it.
        directory: The working directory of the server, which also holds what it printed.

    Args:
        arguments: More of its command line, as in `"--maxmemory", "2mb"`; these win over a configuration file.
        start: What starts it instead of redis-server, and takes its arguments; without it nothing is kept on disk and
            no password is asked for.
        port: The port that it listens on; none takes a free one.
        directory: Its working directory; none makes one that is removed at the end.
        username: The user that tests are, and that `url` names; none is the default user.
        password: The password of that user.
    """

    def __init__(
        self,
        *arguments: str,
        start: Sequence[str | Path] | None = None,
        port: int | None = None,
        directory: Path | None = None,
        username: str | None = None,
        password: str | None = None,
    ) -> None:
        program = shutil.which("redis-server")
        if program is None:
            message = "redis-server is not on the PATH (apt-get install redis-server); these tests need a real one"
            raise RuntimeError(message)
        self._stack = ExitStack()
        self._start = [program, *NO_DISK] if start is None else [str(part) for part in start]
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._username, self._password = username, password
        self.port = port or 0
        if directory is None:
            directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="redis-")))
        self.directory = directory

    def __enter__(self) -> Self:
        """Start it, and wait until it answers."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, whatever state it is in."""
        self.close()

    @property
    def url(self) -> str:
        """The address as redis-py takes it, with the user's name and without the password."""
        return f"redis://{f'{quote(self._username)}@' if self._username else ''}127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id of the server that runs."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def log(self) -> str:
        """What the process, or the last one, has printed."""
        path = self._log_path
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @property
    def _log_path(self) -> Path:
        return self.directory / f"redis-{self.port}.log"

    def client(self, username: str | None = None, password: str | None = None) -> redis.Redis:
        """A client for assertions, as the server's user unless another is named; closed with the server."""
        if username is None:
            username, password = self._username, self._password
        made = redis.Redis(
            host="127.0.0.1", port=self.port, username=username, password=password, socket_timeout=START_LIMIT_S
        )
        self._stack.callback(made.close)
        return made

    def start(self) -> None:
        """Start the process and wait until PING is answered; it must not run already."""
        assert self._process is None, "the server runs already"
        for tries_left in reversed(range(TRIES if not self.port else 1)):
            self.port = self.port or free_port()
            if self._starts():
                return
            printed = self.log
            assert tries_left, printed
            assert "Address already in use" in printed, printed
            self.port = 0

    def kill(self) -> None:
        """End the process with SIGKILL, as a crash does; what it held is gone."""
        assert self._process is not None, "the server does not run"
        self._process.kill()
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Start it anew on the same port, empty; a process that still runs is killed first."""
        if self._process is not None:
            self.kill()
        self.start()

    def stop(self) -> None:
        """Freeze the process with SIGSTOP: connections stay open, and nothing is answered."""
        assert self._process is not None, "the server does not run"
        self._process.send_signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Let a frozen process go on."""
        assert self._process is not None, "the server does not run"
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End the process in peace, frozen or not; one that does not end is killed."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(START_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def close(self) -> None:
        """End the process, close the clients, and remove the directory if it is the server's own."""
        self.end()
        self._stack.close()

    def _starts(self) -> bool:
        """Whether a process that is started now comes to answer; False if it ended by itself."""
        command = [
            *self._start, "--port", str(self.port), "--bind", "127.0.0.1", "--daemonize", "no",
            "--dir", str(self.directory), "--loglevel", "notice", *self._arguments,
        ]  # fmt: skip
        with self._log_path.open("wb") as out:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        deadline = time.monotonic() + START_LIMIT_S
        while self._process.poll() is None:
            # Its own word for it as well: another server, which took the port first, would answer too.
            if READY in self.log and self._answers():
                return True
            assert time.monotonic() < deadline, f"no answer from redis-server:\n{self.log}"
            time.sleep(POLL_S)
        self._process = None
        return False

    def _answers(self) -> bool:
        """Whether PING is answered, to this server's user."""
        with redis.Redis(
            host="127.0.0.1", port=self.port, username=self._username, password=self._password,
            socket_timeout=1, retry=Retry(NoBackoff(), 0),
        ) as client:  # fmt: skip
            try:
                return bool(client.ping())
            except (redis.ConnectionError, redis.TimeoutError) as error:
                if isinstance(error, redis.AuthenticationError):
                    raise
                return False


def recipe_server(*arguments: str, secrets: Path, directory: Path | None = None) -> RedisServer:
    """A server as `deploy/redis` describes it, whose user is the service's.

    Args:
        arguments: Of redis-server, as in `"--maxmemory", "4mb"`; these win over the recipe.
        secrets: An existing folder for the files of the two passwords.
        directory: The working directory of the server; none makes one that is removed at the end.
    """
    files = secrets / "service", secrets / "administration"
    for file, password in zip(files, (SERVICE_PASSWORD, ADMIN_PASSWORD), strict=True):
        file.write_text(f"{password}\n", encoding="utf-8")
    return RedisServer(
        *arguments,
        start=("sh", RECIPE / "start.sh", *files),
        directory=directory,
        username=SERVICE_USER,
        password=SERVICE_PASSWORD,
    )
