"""Two processes that find each other by a port of this machine."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 240


def in_two_processes(script, kind):
    """What each of two processes of a script beside this file printed at its end, as JSON."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    paths = os.pathsep.join(str(ROOT / part) for part in ("client", "service", "tests"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(script)), kind, port, str(rank)], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        printed = [one.communicate(timeout=WAIT_S) for one in running]
    finally:
        for one in running:
            one.kill()
    for one, (_, errors) in zip(running, printed, strict=True):
        assert one.returncode == 0, errors
    return [json.loads(output.splitlines()[-1]) for output, _ in printed]
