"""The programs of SCAR.md that train run as they stand."""

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
PAGE = (Path(__file__).parents[2] / "SCAR.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
MOST_LINES = {"ppo": 100, "trl": 30}


def program(part):
    """The one program that has something in it."""
    (text,) = (text for text in PROGRAMS if part in text)
    return text


def printed(folder, text, **environment):
    """What a program prints when it has ended."""
    (folder / "train.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "train.py"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_ppo_learns_what_the_reward_is_for(tmp_path):
    """A whole loop in fewer than a hundred lines, whose reward rises by more than one."""
    text = program("def gae(")
    assert len(text.splitlines()) <= MOST_LINES["ppo"]
    lines = re.findall(r"step +(\d+): reward ([+-]\d+\.\d+)", printed(tmp_path, text))
    rewards = {int(step): float(reward) for step, reward in lines}
    assert list(rewards) == [0, 10, 20, 29]
    assert rewards[29] > rewards[0] + 1.0


def test_trl_trains_on_spans(tmp_path):
    """With a model folder and a service beside it; the log has the credit, and α follows the steps."""
    model().save_pretrained(tmp_path / "model", safe_serialization=True)
    tokenizer().save_pretrained(tmp_path / "model")
    text = program("SpanReward")
    assert len([line for line in text.splitlines() if line.strip()]) <= MOST_LINES["trl"]
    script = Path(__file__).with_name("model_service.py")
    with running_service(script=script, directory=tmp_path) as url:
        log = printed(tmp_path, text, CREDITD_URL=url)
    assert re.findall(r"'credit/alpha': '?([\d.]+)", log) == ["0", "0.5", "1"]
    assert log.count("credit/units'") == 3
    assert "'credit/fallbacks': '0'" in log
    assert (tmp_path / "service.log").read_text().count("/v1/credit/scar") >= 3


def test_every_program_that_trains_is_run():
    """No other block of the page trains anything."""
    trained = [text for text in PROGRAMS if "trl" in text or "import torch" in text]
    assert set(trained) == {program("def gae("), program("SpanReward")}
