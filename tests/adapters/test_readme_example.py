"""The TRL example of the README runs as it stands, and without the two lines that make it candidate credit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")

from adapters.tiny import model, tokenizer
from services import running_service

pytestmark = pytest.mark.trainer
README = (Path(__file__).parents[2] / "README.md").read_text()
MOST_LINES = 25
WAS = re.compile(r"^( *)\S.*  # was: (.*)$", re.MULTILINE)
"""A line that was another one, and that one."""


@pytest.fixture(scope="module")
def program():
    """The example."""
    (text,) = (text for text in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "from trl" in text)
    return text


@pytest.fixture
def folder(tmp_path):
    """A place with a model folder, as of any real model."""
    model().save_pretrained(tmp_path / "model", safe_serialization=True)
    tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


def trained(folder, program, **environment):
    """What the program prints when it trains."""
    (folder / "train.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_example_trains_a_model_from_a_folder(program, folder):
    """Pasted into a file beside a model folder it trains on what the service of CREDITD_URL says."""
    assert len([line for line in program.splitlines() if line.strip()]) <= MOST_LINES
    with running_service(directory=folder) as url:
        assert "credit/seconds" in trained(folder, program, CREDITD_URL=url)
    assert (folder / "service.log").read_text().count("/v1/credit/shapley") >= 2


def test_the_example_is_two_lines_away_from_plain_trl(program, folder):
    """With exactly two lines put back it is a script that imports nothing of creditd, and trains."""
    plain = WAS.sub(r"\1\2", program)
    pairs = zip(program.splitlines(), plain.splitlines(), strict=True)
    assert len([1 for now, before in pairs if now != before]) == 2
    assert "creditd" not in plain
    assert "Candidate" not in plain
    printed = trained(folder, plain)
    assert "rewards/score/mean" in printed
    assert "credit/" not in printed
