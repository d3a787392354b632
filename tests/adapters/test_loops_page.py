"""The programs of LOOPS.md run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")

from adapters.tiny import model, tokenizer
from services import running_service

pytestmark = pytest.mark.models
PAGE = (Path(__file__).parents[2] / "LOOPS.md").read_text(encoding="utf-8")
MOST_LINES = 100


def program(part):
    """The one program with something in it."""
    (text,) = (text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if part in text)
    return text


def environment(**more):
    """The sources that these tests run."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **more}


@pytest.fixture
def folder(tmp_path):
    """Where the program runs: the folder `model` is there."""
    model().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


def test_the_loop_trains_beside_a_service(folder):
    """In at most a hundred lines; each step is one request, and rewards are those of the sets."""
    text = program("AdamW")
    assert len(text.splitlines()) <= MOST_LINES
    (folder / "loop.py").write_text(text, encoding="utf-8")
    with running_service(directory=folder) as url:
        done = subprocess.run(
            [sys.executable, "loop.py"], cwd=folder, env=environment(CREDITD_URL=url), capture_output=True, text=True,
            check=False, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = re.findall(r"^step (\d): reward (\d\.\d+), (\d+\.\d+) candidates a completion$", done.stdout, re.MULTILINE)
    assert [step for step, _, _ in steps] == ["0", "1", "2"]
    assert all(0.0 <= float(reward) <= 1.0 for _, reward, _ in steps)
    assert (folder / "service.log").read_text(encoding="utf-8").count('"/v1/credit/shapley"') == 3


def test_two_processes_share_a_group(folder):
    """Each prints the advantages of its own rows, and what its completions are worth."""
    (folder / "two.py").write_text(program("TorchProcesses"), encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "two.py"]
    done = subprocess.run(
        launcher, cwd=folder, env=environment(OMP_NUM_THREADS="1"), capture_output=True, text=True, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(line for line in done.stdout.splitlines() if line[:1] in "01") == [
        "0 [4, 2] [5.0, 3.0]",
        "1 [3, 4] [4.0, 4.0]",
    ]
