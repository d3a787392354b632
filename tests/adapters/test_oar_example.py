"""The programs of OAR.md that train run as they stand, beside a service that has the model as its policy."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the lane `trainer` installs TRL")

from adapters.test_scar_example import printed
from adapters.tiny import model, tokenizer
from services import running_service

pytestmark = pytest.mark.trainer
PAGE = (Path(__file__).parents[2] / "OAR.md").read_text()
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
TRAINED = [text for text in PROGRAMS if "trl" in text or "import torch" in text]
IMPORTS = {"trl": "import GRPOConfig", "loop": "adapters.loop"}
MOST_LINES = {"trl": 30, "loop": 55}


def program(part):
    """The one program that has something in it."""
    (text,) = (text for text in TRAINED if IMPORTS[part] in text)
    assert len([line for line in text.splitlines() if line.strip()]) <= MOST_LINES[part]
    return text


def run(folder, text):
    """What a program prints, and the versions that answered it, beside a service with its model."""
    model(more=["####"]).save_pretrained(folder / "model", safe_serialization=True)
    tokenizer(more=["####"]).save_pretrained(folder / "model")
    settings = folder / "service.toml"
    (text_of_settings,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    settings.write_text(text_of_settings.replace('models_root = "."', f"models_root = {json.dumps(str(folder))}"))
    with running_service("--config", str(settings), directory=folder) as url:
        log = printed(folder, text, CREDITD_URL=url)
    return log, (folder / "service.log").read_text()


def test_trl_trains_with_reshaped_advantages(tmp_path):
    """Three steps, each with the weights of its own step."""
    log, service = run(tmp_path, program("trl"))
    assert log.count("credit/reweighted'") == 3
    assert log.count("'credit/fallbacks': '0'") == log.count("'credit/pushes': '1'") == 3
    assert service.count("/v1/credit/oar") >= 3


def test_a_loop_by_hand_trains_with_reshaped_advantages(tmp_path):
    """Each step is answered by its own weights."""
    log, _ = run(tmp_path, program("loop"))
    found = re.findall(r"^step (\d): (\d+) tokens reweighted, by weights (\w+):(\d)$", log, re.MULTILINE)
    assert [(step, of) for step, _, _, of in found] == [("0", "0"), ("1", "1"), ("2", "2")]
    assert len({name for _, _, name, _ in found}) == 1
    assert sum(int(count) for _, count, _, _ in found) > 0


def test_every_program_that_trains_is_run():
    """No other block of the page trains anything."""
    assert set(TRAINED) == {program("trl"), program("loop")}
