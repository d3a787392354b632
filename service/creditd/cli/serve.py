"""`creditd serve`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.registry import load_registry
from creditd.server.app import create_app
from creditd.server.logs import configure_logging
from creditd.server.memory import keep_freed_memory
from creditd.server.resources import Resources
from creditd.server.serve import serve
from creditd.server.settings import Settings, SettingsError, load_settings
from creditd.wire.versions import package_version

_EXAMPLE = (
    '{"sets": [{"group": "p1", "candidates": [{"reward": 0.75}, {"reward": 0.25}]},'
    ' {"group": "p1", "candidates": [{"reward": 0.5}, {"reward": 0.5}]}]}'
)
"""Two responses to one prompt, of two candidates each; README.md shows the answer."""


def run_service(config: Path | None, *, host: str | None, port: int | None) -> int:
    """Run the service until it is asked to end.

    Args:
        config: TOML file of settings, or None.
        host: Address from the command line, or None.
        port: Port from the command line, or None.

    Returns:
        Exit status; 2 when the settings, or a model that they name, cannot be used.
    """
    try:
        settings = load_settings(config, host=host, port=port)
    except SettingsError as error:
        print(f"creditd: {error}", file=sys.stderr)
        return 2
    try:
        engines = load_registry([model.spec() for model in settings.models], settings.models_root, _say)
    except ModelUnsuitableError as error:
        _say(str(error))
        return 2
    warning = open_weights(settings)
    if warning is not None:
        _say(warning)
    configure_logging()
    keep_freed_memory()
    app = create_app(settings, Resources(settings, engines=engines))
    status = serve(app, lambda bound: print(greeting(settings, bound), flush=True))
    if app.state.resources.abandoned or engines.ids:
        # An orderly end would wait for computations that nobody waits for, or tear down a model that is still at work.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _say(sentence: str) -> None:
    print(f"creditd: {sentence}", file=sys.stderr, flush=True)


def open_weights(settings: Settings) -> str | None:
    """What an operator should know of who may replace weights; None without a policy, and where admins have keys."""
    policies = ", ".join(model.id for model in settings.models if model.kind == "policy")
    if not policies or settings.all_admin_keys:
        return None
    if settings.keys:
        return f"nobody may replace the weights of {policies}: there are api_keys and no admin_keys"
    return f"everybody who can reach this service may replace the weights of {policies}: there are no admin_keys"


def greeting(settings: Settings, port: int) -> str:
    """Where the service is, and a line to paste that shows it answering."""
    host = "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host  # noqa: S104  # recognised, not bound
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    key = " -H 'Authorization: Bearer YOUR_KEY'" if settings.keys else ""
    return (
        f"creditd {package_version()} listens on {url}\n\nPaste this to try it:\n\n"
        f"  curl -s {url}/v1/credit/shapley -H 'Content-Type: application/json'{key} -d '{_EXAMPLE}'\n"
    )
