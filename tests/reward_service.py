"""A service with a reward model whose scores the tests know, as a process of its own, and how it is started.

Usage: python reward_service.py OPTIONS

OPTIONS is a JSON object of settings of the service. The model scores the text that a real one would read: the prompt
with the completion behind it. A token is a character, a batch takes 20 ms.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from services import running_service

if TYPE_CHECKING:
    from types import ModuleType

    import pytest

MODEL = "org/rm"
CURSE = "curse"
MAX_TOKENS = 400
ROOT, SOURCES = Path(__file__).parents[1], ("client", "service", "tests")
SERVICE_PYTHON = "SERVICE_PYTHON"
"""The variable that names an interpreter with the service, for environments of trainers, which are without it."""


def worth(text: str) -> float:
    """The reward of a text: its length, and a little of its letters; NaN for a curse."""
    return float("nan") if CURSE in text else len(text) + sum(map(ord, text)) / 2**20


def as_text(prompt: Any) -> str:
    """A prompt as the model's template would write it."""
    if isinstance(prompt, str):
        return prompt
    return "".join(f"<{message['role']}>{message['content']}" for message in prompt) + "<assistant>"


def scored(prompt: Any, completion: str) -> float:
    """The reward of a completion."""
    return worth(as_text(prompt) + completion)


def interpreter() -> str | None:
    """An interpreter that can run the service, or None."""
    if importlib.util.find_spec("fastapi") is not None and importlib.util.find_spec("uvicorn") is not None:
        return sys.executable
    return os.environ.get(SERVICE_PYTHON)


@contextmanager
def reward_service(directory: Path, **settings: Any) -> Iterator[str]:
    """The URL of a service of these settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CREDITD_")}
    environment = {**kept, "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in SOURCES)}
    with running_service(
        json.dumps(settings), directory=directory, env=environment, script=Path(__file__), python=interpreter()
    ) as url:
        yield url


def shorten_waits(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Make the waits of one client a hundredth, and no others."""
    whole = asyncio.sleep
    shorter = SimpleNamespace(**vars(asyncio) | {"sleep": lambda seconds: whole(seconds / 100)})
    monkeypatch.setattr(module, "asyncio", shorter)


def main(options: str = "{}") -> int:
    """Serve until asked to end."""
    from creditd.engines.fake import FakeEngine
    from creditd.engines.model_spec import ModelSpec
    from creditd.engines.registry import Registry
    from creditd.server.app import create_app
    from creditd.server.logs import configure_logging
    from creditd.server.resources import Resources
    from creditd.server.serve import serve
    from creditd.server.settings import Settings

    settings = Settings(port=0, **json.loads(options))
    engine = FakeEngine(scored, ModelSpec(MODEL, "nowhere", max_tokens=MAX_TOKENS), per_batch_s=0.02)
    configure_logging()
    app = create_app(settings, Resources(settings, engines=Registry({MODEL: engine})))
    return serve(app, lambda port: sys.stdout.write(f"listens on http://127.0.0.1:{port}\n") and sys.stdout.flush())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
