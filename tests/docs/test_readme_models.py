"""The README's section about rewards from a model: its settings are settings, and its lines run."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from creditd.server.settings import load_settings
from services import running_service

ROOT = Path(__file__).parents[2]
SERVICE = ROOT / "tests" / "adapters" / "model_service.py"
SECTION = (ROOT / "README.md").read_text().split("\n## Rewards from a model\n")[1].split("\n## ")[0]


def block(language):
    """The only block of a language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE)
    return text


def check(url, folder, monkeypatch):
    """Both examples are answered."""
    words = shlex.split(block("sh").replace("http://127.0.0.1:8400", url))
    headers = dict([words[words.index("-H") + 1].split(": ", 1)])
    answer = httpx.post(words[2], headers=headers, content=words[words.index("-d") + 1])
    assert answer.status_code == 200, answer.text
    assert (answer.json()["model"], answer.json()["usage"]["evaluations"]) == ("rm", 2)
    monkeypatch.setenv("CREDITD_URL", url)
    command = [sys.executable, "-W", "error", "-c", block("python")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "'rm'" in first
    evaluations, from_cache = map(int, second.partition(" rm ")[2].split())
    assert evaluations + from_cache == 2


def test_the_settings_register_the_model_that_the_lines_ask(tmp_path, monkeypatch):
    """The file is read as it stands; the curl line and the program name its model."""
    (tmp_path / "models").mkdir()
    (tmp_path / "service.toml").write_text(block("toml"))
    monkeypatch.chdir(tmp_path)
    (model,) = load_settings(tmp_path / "service.toml").models
    body = json.loads(shlex.split(block("sh"))[-1])
    assert model.id == body["rewards"]["model"] == "rm"
    assert f'rewards="{model.id}"' in block("python")
    assert f'CandidateReward("{model.id}"' in SECTION


def test_the_lines_are_answered(tmp_path, monkeypatch):
    """By a service whose model is a function."""
    with running_service(script=SERVICE, directory=tmp_path) as url:
        check(url, tmp_path, monkeypatch)


@pytest.mark.models
def test_the_section_works_with_a_real_model(tmp_path, monkeypatch):
    """Settings, curl line and program as they stand, with a model in the folder that they name."""
    from engines.saved import saved

    saved(tmp_path / "models" / "my-reward-model")
    (tmp_path / "service.toml").write_text(block("toml"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    with running_service("--config", "service.toml", directory=tmp_path) as url:
        check(url, tmp_path, monkeypatch)
