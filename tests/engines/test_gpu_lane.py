"""What `make gpu` does where there is no GPU: it fails, and says that nothing was run."""

import os
import re
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def has_gpu():
    """Whether the tests on a GPU would run here."""
    if util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_no_gpu_is_no_pass():
    """The run leaves with an error and one loud line, before any test is collected."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(("client", "service"))}
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/gpu"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert "######## GPU: tests NOT RUN, torch " in found.stdout + found.stderr
    assert "passed" not in found.stdout


def test_no_other_lane_takes_tests_on_a_gpu():
    """Every lane that runs what it does not leave out leaves these out."""
    lanes = re.findall(r'-m "(not [^"]*)"', (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(lanes) == 2
    assert all("not gpu" in lane for lane in lanes)
