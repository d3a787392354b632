"""The TRL example of the README runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")
pytestmark = pytest.mark.trainer

from adapters.tiny import model, tokenizer  # noqa: E402

README = (Path(__file__).parents[2] / "README.md").read_text()
MOST_LINES = 25


def test_the_example_trains_a_model_from_a_folder(tmp_path):
    """Pasted into a file beside a model folder it trains, through the loading path of any real model."""
    (program,) = (text for text in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "from trl" in text)
    assert len([line for line in program.splitlines() if line.strip()]) <= MOST_LINES
    model().save_pretrained(tmp_path / "model", safe_serialization=True)
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "train.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "credit/seconds" in done.stdout
