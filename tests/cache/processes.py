"""Services as processes of their own, which share a Redis."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from cache.replicas import answer_of, counters_of
from server.processes import wait_until
from server.running import SHAPLEY
from services import running_service

SCRIPT = Path(__file__).with_name("served.py")
PATIENCE_S = 120.0
"""A hundred times what a request takes that a model of two layers answers."""
N_UNITS, BUDGET = 16, 512
TEXT = "The quick brown fox jumps over the lazy dog while snow falls on quiet hills and every word is counted. "


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


def one_long_text(**options):
    """A text that is cut into units, of which coalitions are judged as they stand: credit for parts of an answer."""
    cuts = [len(TEXT) * number // N_UNITS for number in range(N_UNITS + 1)]
    units = [TEXT[start:stop] for start, stop in itertools.pairwise(cuts)]
    return {
        "sets": [{"group": "p", "prompt": "Tell me something.", "candidates": [{"text": unit} for unit in units]}],
        "utility": {"type": "model", "model": "rm", "template": {"before": "", "after": ""}},
        "estimator": {"budget": BUDGET},
        **options,
    }


BODIES = one_long_text(), one_long_text(deterministic=True)


def ask(url):
    """The answers of a process to both requests, and what they cost."""
    answers = []
    for body in BODIES:
        response = httpx.post(f"{url}{SHAPLEY}", json=body, timeout=PATIENCE_S)
        assert response.status_code == 200, response.text
        assert httpx.get(f"{url}/readyz", timeout=PATIENCE_S).text == "ready\n"
        answers.append(answer_of(response.json()))
    return answers


def counters(url):
    """Counters of the cache of a process."""
    return counters_of(httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text)


def in_redis(server, n_games):
    """Wait until so many games are written."""
    client = server.client()
    wait_until(lambda: len(client.keys("creditd:1:model:*")) == n_games, "the games are written")
