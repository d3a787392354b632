"""Real service processes for tests: started on a free port, ended by their process id."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_LIMIT_S = 60.0
"""Ten times what a start takes on a slow machine."""


@contextmanager
def running_service(
    *arguments: str,
    directory: Path,
    env: dict[str, str] | None = None,
    pid_file: Path | None = None,
    script: Path | None = None,
    python: str | None = None,
) -> Iterator[str]:
    """A service started by the command line, or by a script, with this interpreter or another one.

    Yields its base URL once it accepts requests.
    """
    start = ["-m", "creditd.cli", "serve", "--port", "0"] if script is None else [str(script)]
    command = [python or sys.executable, *start, *arguments]
    with (directory / "service.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
        try:
            assert process.stdout is not None
            if pid_file is not None:
                pid_file.write_text(str(process.pid))
            greeting = process.stdout.readline()
            assert "listens on http://" in greeting, (directory / "service.log").read_text()
            yield greeting.split("listens on ")[1].split()[0]
        finally:
            process.terminate()
            try:
                process.wait(START_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
