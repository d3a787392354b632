import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
ROOTS = ("client", "service", "trainer_adapters")
LAYERS = "layers, every portion named"
VIOLATIONS = {
    LAYERS: ("service/creditd/server/logs.py", "import creditd.cli.serve"),
    "trainer side": ("client/creditd/wire/versions.py", "import creditd.client"),
    "client side never sees the service": ("client/creditd/wire/versions.py", "import creditd.scoring.deadline"),
    "only server knows the schema": ("service/creditd/scoring/deadline.py", "import pydantic"),
    "credit is pure": ("service/creditd/credit/flags.py", "import os"),
}
"""One import per contract that nothing but this contract forbids."""
MORE = [
    ("client side never sees the service", "client/creditd/client/retry.py", "import creditd.cli.serve"),
    ("client side never sees the service", "client/creditd/client/retry.py", "import creditd.server.settings"),
    (
        "client side never sees the service",
        "trainer_adapters/creditd/adapters/__init__.py",
        "import creditd.server.app",
    ),
    ("client side never sees the service", "client/creditd/client/retry.py", "import creditd.engines.trie"),
    ("client side never sees the service", "client/creditd/client/retry.py", "import creditd.cache.keys"),
    ("only server knows the schema", "service/creditd/engines/errors.py", "import pydantic"),
    ("only server knows the schema", "service/creditd/cache/keys.py", "import pydantic"),
    ("only server knows the schema", "service/creditd/scoring/deadline.py", "import creditd.wire.v1"),
    ("only server knows the schema", "service/creditd/credit/flags.py", "import fastapi"),
    ("credit is pure", "service/creditd/credit/flags.py", "import logging"),
    ("credit is pure", "service/creditd/credit/flags.py", "import time"),
    ("credit is pure", "service/creditd/credit/flags.py", "import random"),
    ("credit is pure", "service/creditd/credit/flags.py", "import torch"),
    (LAYERS, "service/creditd/scoring/deadline.py", "import creditd.server.settings"),
    (LAYERS, "service/creditd/credit/flags.py", "import creditd.scoring.deadline"),
    (LAYERS, "service/creditd/engines/errors.py", "import creditd.scoring.deadline"),
    (LAYERS, "service/creditd/engines/errors.py", "import creditd.cache.keys"),
    (LAYERS, "service/creditd/cache/keys.py", "import creditd.engines.errors"),
    (LAYERS, "service/creditd/cache/keys.py", "import creditd.scoring.deadline"),
]


@pytest.fixture
def checkout(tmp_path):
    """A copy of the three source roots with the project's own configuration."""
    for root in ROOTS:
        shutil.copytree(ROOT / root, tmp_path / root, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def contracts_of(checkout):
    """The verdict of import-linter on each contract, by its name, and its exit status."""
    originals = [str(ROOT / root) for root in ROOTS]  # an editable install would merge them into the copy's namespace
    command = (
        f"import sys; sys.path[:] = [path for path in sys.path if path not in {originals}]; "
        "from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(checkout / root) for root in ROOTS)}
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"],
        capture_output=True, text=True, check=False, cwd=checkout, env=environment, timeout=300,
    )  # fmt: skip
    verdicts = re.findall(r"^(.+) (KEPT|BROKEN)(?: \(.*\))?$", done.stdout, re.MULTILINE)
    assert verdicts, done.stdout + done.stderr
    return dict(verdicts), done.returncode


def broken_by(checkout, module, line):
    """The contracts that break when a module gets one more import."""
    path = checkout / module
    path.write_text(f"{path.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    verdicts, status = contracts_of(checkout)
    assert status != 0
    return {name for name, verdict in verdicts.items() if verdict == "BROKEN"}


def test_the_checkout_keeps_its_contracts(checkout):
    """Without a violation every contract is kept, and each has a violation below that breaks it."""
    verdicts, status = contracts_of(checkout)
    assert status == 0
    assert set(verdicts.values()) == {"KEPT"}
    assert set(verdicts) == set(VIOLATIONS)


@pytest.mark.parametrize("name", VIOLATIONS)
def test_each_contract_can_fail(checkout, name):
    """One import that a contract forbids breaks this contract and no other."""
    assert broken_by(checkout, *VIOLATIONS[name]) == {name}


@pytest.mark.parametrize(("name", "module", "line"), MORE)
def test_each_part_of_a_contract_holds(checkout, name, module, line):
    """Every source and every target of a contract is watched."""
    assert name in broken_by(checkout, module, line)


def test_a_portion_that_no_layer_names_breaks_the_layers(checkout):
    """A new portion must be given its place."""
    for name in ("", "thing"):
        path = checkout / "service/creditd/novelty" / f"{name or '__init__'}.py"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    verdicts, status = contracts_of(checkout)
    assert status != 0
    assert verdicts[LAYERS] == "BROKEN"
