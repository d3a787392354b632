"""The README is true: every block in it runs, and prints what stands below it."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from creditd.client.exceptions import status_error_class
from creditd.credit.flags import Flag
from creditd.server.settings import Settings
from creditd.wire.errors import ERROR_KINDS
from services import running_service

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
VOLATILE = {"request_id", "queue_s", "version"}
"""Fields of an answer that differ from one request, or one release, to the next."""
RUN_LIMIT_S = 120


class Block(NamedTuple):
    """A fenced block and its language."""

    language: str
    text: str


def blocks() -> list[Block]:
    """All fenced blocks of the README, in order."""
    found = [Block(*match) for match in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)]
    assert len(found) == README.count("\n```") // 2
    return found


def pairs(language: str, output: str, *, containing: str = "") -> list[tuple[str, str]]:
    """Blocks of one language together with the output block right below them."""
    everything = blocks()
    return [
        (block.text, below.text)
        for block, below in pairwise(everything)
        if block.language == language and below.language == output and containing in block.text
    ]


def stable(document):
    """A document without what differs from run to run."""
    if isinstance(document, dict):
        return {key: stable(value) for key, value in document.items() if key not in VOLATILE}
    return [stable(entry) for entry in document] if isinstance(document, list) else document


def test_every_block_is_tested():
    """No block is left out by the tests below."""
    kinds = [block.language for block in blocks()]
    curls = len(pairs("sh", "json", containing="curl"))
    programs = len(pairs("python", "text"))
    trainers = sum(block.language == "python" and "from trl" in block.text for block in blocks())
    commands = len(pairs("sh", "text"))
    makes = sum(block.text.startswith("make ") for block in blocks())
    of_models = 3  # tests/docs/test_readme_models.py
    assert 2 * (curls + programs + commands) + makes + trainers + of_models == len(kinds)
    assert (curls, programs, commands, makes, trainers) == (2, 4, 1, 1, 1)  # tests/adapters runs the trainer


def test_the_make_targets_of_the_first_screen_exist():
    """`make serve` and `make test` are real targets, and stand in the first screen."""
    first = blocks()[0].text
    for target in ("serve", "test"):
        assert f"make {target}" in first
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.slow
def test_make_serve_on_a_fresh_copy_answers_the_line_that_it_prints(tmp_path):
    """The first command of the README builds its own environment, without torch, and its line works when pasted."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        copy = tmp_path / "copy" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "MAKEFLAGS"}}
    command = ["make", "serve", f"PORT={port}"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            command, cwd=tmp_path / "copy", stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as service,
    ):
        try:
            lines = iter(service.stdout.readline, "")
            line = next(line for line in lines if line.lstrip().startswith("curl")).strip()
            words = shlex.split(line)
            headers = {"Content-Type": "application/json"}
            answered = httpx.post(words[2], headers=headers, content=words[words.index("-d") + 1])
            assert stable(answered.json()) == stable(json.loads(pairs("sh", "json", containing="curl")[0][1]))
        finally:
            service.terminate()
        assert service.wait(RUN_LIMIT_S) is not None
    assert not list((tmp_path / "copy" / ".venv").glob("lib/python3*/site-packages/torch"))


@pytest.mark.parametrize(("block", "answer"), pairs("sh", "json", containing="curl"))
def test_curl_lines_give_the_answers_below_them(block, answer, tmp_path):
    """A pasted line gives the answer that the README shows."""
    with running_service(directory=tmp_path) as url:
        line = block.replace("http://127.0.0.1:8400", url)
        words = shlex.split(line)
        headers = dict([words[words.index("-H") + 1].split(": ", 1)])
        response = httpx.post(words[2], headers=headers, content=words[words.index("-d") + 1])
        assert response.status_code == 200
        assert stable(response.json()) == stable(json.loads(answer))
        if shutil.which("curl"):
            pasted = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
            assert stable(json.loads(pasted.stdout)) == stable(json.loads(answer))


def test_the_greeting_of_the_service_is_the_first_curl_line():
    """What `make serve` prints to paste is what the README shows."""
    from creditd.cli.serve import greeting

    line = next(line.strip() for line in greeting(Settings(), 8400).splitlines() if line.lstrip().startswith("curl"))
    assert line == pairs("sh", "json", containing="curl")[0][0].strip()


@pytest.mark.parametrize(("program", "printed"), pairs("python", "text"))
def test_programs_print_what_stands_below_them(program, printed, tmp_path):
    """The Python examples run as they stand, beside a service that has just started."""
    with running_service(directory=tmp_path) as url:
        finished = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT_S,
            check=False,
            env={**os.environ, "CREDITD_URL": url},
        )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == printed


@pytest.mark.parametrize(("commands", "printed"), pairs("sh", "text"))
def test_commands_print_what_stands_below_them(commands, printed, tmp_path):
    """The command-line example runs as it stands."""
    script = commands.replace(".venv/bin/creditd", f"{shlex.quote(sys.executable)} -m creditd.cli")
    finished = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT_S,
        check=True,
        env=os.environ.copy(),
    )
    assert finished.stdout == printed


def table_rows(header: str) -> dict[str, list[str]]:
    """The rows of the table that begins with a header cell, by the code in their first cell."""
    table = README.split(f"| {header} |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_table_of_codes_is_the_enum():
    """Each error code has a row with its status and the exception that the client raises."""
    rows = table_rows("code")
    assert set(rows) == {code.value for code in ERROR_KINDS}
    for code, kind in ERROR_KINDS.items():
        assert rows[code.value][0] == str(kind.status)
        assert rows[code.value][2] == f"`{status_error_class(kind.status, code.value).__name__}`"


def test_the_table_of_flags_is_the_enum():
    """Each flag has a row."""
    assert set(table_rows("flag")) == {flag.name.lower() for flag in Flag}


def test_the_table_of_settings_is_the_model():
    """Each setting has a row with its variable."""
    rows = table_rows("setting")
    assert set(rows) == set(Settings.model_fields)
    for name in Settings.model_fields:
        assert rows[name][0].startswith(f"`CREDITD_{name.upper()}`")
