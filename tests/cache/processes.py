"""Services as processes of their own, which share a Redis."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services import running_service

SCRIPT = Path(__file__).with_name("served.py")


def environment(**settings: Any) -> dict[str, str]:
    """That of the test, with its import paths, and with these settings alone."""
    found = {name: value for name, value in os.environ.items() if not name.startswith("CREDITD_")}
    given = {f"CREDITD_{name.upper()}": str(value) for name, value in settings.items()}
    return {**found, **given, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@contextmanager
def service_process(folder: Path, *, pid_file: Path | None = None, **settings: Any) -> Iterator[str]:
    """The address of a process with a model whose scores the tests know."""
    env = environment(**{"cache_min_evaluation_s": 0, **settings})
    with running_service(directory=folder, env=env, script=SCRIPT, pid_file=pid_file) as url:
        yield url
