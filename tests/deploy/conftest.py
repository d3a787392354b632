import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


class Instruction(NamedTuple):
    """One instruction of a Dockerfile: the stage that it stands in, its name, and the rest of its line."""

    stage: str
    name: str
    text: str

    def exec_form(self):
        """The JSON array of an instruction in exec form, or None for the shell form."""
        found = re.search(r"\[.*\]$", self.text)
        return json.loads(found[0]) if found else None


class Dockerfile(list):
    """The instructions of a Dockerfile in order; those before the first stage belong to the stage ""."""

    def named(self, name, stage=None):
        """The instructions of this name, in one stage or in all."""
        return [line for line in self if line.name == name and stage in (None, line.stage)]

    def only(self, name, stage=None):
        """The one instruction of this name; a second one is an error."""
        (line,) = self.named(name, stage)
        return line

    @classmethod
    def parse(cls, text):
        """Read a Dockerfile: comments dropped, continued lines joined, each line with the stage it stands in."""
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
        instructions, stage = cls(), ""
        for line in filter(None, map(str.strip, joined.splitlines())):
            name, rest = line.split(maxsplit=1)
            if name == "FROM":
                stage = rest.split()[-1]
            instructions.append(Instruction(stage, name, rest))
        return instructions


@pytest.fixture(scope="session")
def root():
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def version():
    """The version that pyproject.toml declares."""
    return re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


@pytest.fixture(scope="session")
def dockerfile():
    """The Dockerfile, parsed."""
    return Dockerfile.parse((ROOT / "Dockerfile").read_text())


@pytest.fixture(scope="session")
def port(dockerfile):
    """The service's port; EXPOSE is the one place that every other mention is compared with."""
    return int(dockerfile.only("EXPOSE").text)


def run_probe(command, port, **env):
    """The exit code of a probe's command, run by this Python against `port` instead of 8400."""
    assert command[0] == "python"
    arguments = [sys.executable, *(part.replace("8400", str(port)) for part in command[1:])]
    return subprocess.run(arguments, env={**os.environ, **env}, timeout=10, check=False, capture_output=True).returncode


class StubService(ThreadingHTTPServer):
    """Answers each path with the status that `statuses` holds for it, and anything else with 404."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), StubHandler)
        self.statuses = {}


class StubHandler(BaseHTTPRequestHandler):
    """The answers of a StubService."""

    def do_GET(self):
        """Answer without a body."""
        self.send_response(self.server.statuses.get(self.path, 404))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        """Print nothing."""


@pytest.fixture
def stub_service():
    """A listening HTTP server on a free port, whose answers the test chooses."""
    with StubService() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def probe_exits(stub_service):
    """A function from a probe's command and the statuses of the service to the probe's exit code."""

    def exits(command, statuses):
        stub_service.statuses = statuses
        port = stub_service.server_port
        # A proxy in the environment that answers nothing: a probe that used it would fail.
        return run_probe(command, port, CREDITD_PORT=str(port), http_proxy="http://127.0.0.1:9", no_proxy="")

    return exits


@pytest.fixture(scope="session")
def probe_command():
    """A function from a path and a port to the exit code of the sidecar's probe of that path."""
    job = yaml.safe_load((ROOT / "deploy" / "k8s" / "sidecar.yaml").read_text())
    command = job["spec"]["template"]["spec"]["initContainers"][0]["livenessProbe"]["exec"]["command"]
    return lambda path, port: run_probe([*command[:-1], path], port, CREDITD_PORT=port)
