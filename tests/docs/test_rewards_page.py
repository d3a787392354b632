"""REWARDS.md is true: its lines are answered as it says, and its addresses are those of the service."""

import json
import re
import shlex
from pathlib import Path

import httpx
import pytest

from creditd.server.model_settings import ModelSettings
from creditd.server.reward_answers import GET_REWARD_S
from creditd.server.settings import Settings
from services import running_service

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "REWARDS.md").read_text(encoding="utf-8")
SERVICE = ROOT / "tests" / "docs" / "scar_service.py"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
LINES = [text for kind, text in BLOCKS if kind == "sh"]
ANSWERS = [json.loads(text) for kind, text in BLOCKS if kind == "json"]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """The service of the page."""
    with running_service(script=SERVICE, directory=tmp_path_factory.mktemp("toy")) as address:
        yield address


def pasted(line, url):
    """The answer to a line of curl."""
    words = shlex.split(line.replace("http://127.0.0.1:8400", url))
    headers = dict([words[words.index("-H") + 1].split(": ", 1)])
    answer = httpx.post(words[2], headers=headers, content=words[words.index("-d") + 1])
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_block_is_tested():
    """Three lines to paste, two of them with their answers."""
    assert [kind for kind, _ in BLOCKS] == ["sh", "json", "sh", "json", "sh"]


@pytest.mark.parametrize("place", [0, 1])
def test_rewards_are_those_of_the_page(url, place):
    """The lines for OpenRLHF, without a key and with one."""
    assert pasted(LINES[place], url) == ANSWERS[place]


def test_the_line_for_vllm_is_answered(url):
    """The same numbers, in rows; the second text has a word less than the first query, which ends with a token."""
    answer = pasted(LINES[2], url)
    assert [(row["index"], row["probs"]) for row in answer["data"]] == [(0, [0.875]), (1, [1.5])]


def test_what_the_page_says_of_settings_is_so():
    """Names and numbers."""
    assert f"at most {GET_REWARD_S:.0f} s" in PAGE
    assert {"request_timeout_s", "max_requests_in_flight", "admin_keys"} <= set(Settings.model_fields)
    assert "max_queued_tokens" in ModelSettings.model_fields
    (named,) = re.findall(r"remote = \{(.*?)\}", PAGE)
    fields = dict(part.split(" = ") for part in named.split(", "))
    assert ModelSettings(id="a", remote={name: value.strip('"') for name, value in fields.items()}).remote is not None


def test_links_lead_somewhere():
    """Every heading of the README that the page points to is there."""
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ")).lower().replace(" ", "-")
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    }
    named = set(re.findall(r"\(README\.md#([\w-]+)\)", PAGE))
    assert named
    assert named <= headings, named - headings
