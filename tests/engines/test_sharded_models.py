import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 240


def in_two_processes(kind):
    """What each of two processes printed at its end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    paths = os.pathsep.join(str(ROOT / part) for part in ("client", "service", "tests"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "tests/engines/two_accumulators.py")
    running = [
        subprocess.Popen(
            [sys.executable, script, kind, port, str(rank)], env=environment, text=True,
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


@pytest.mark.parametrize("kind", ["ddp", "fsdp1", "fsdp1 with parameters", "fsdp2"])
def test_measuring_between_passes_leaves_gathered_gradients_alone(kind):
    """Losses and norms of gradients keep every bit, whichever passes bring those of both processes together."""
    for told in in_two_processes(kind):
        assert len(told) == 6
        for name, (plain, measured) in told.items():
            assert measured == plain, name
