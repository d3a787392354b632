"""A service whose model has a number of its own for every text: run by tests, as a process of its own.

Usage: python served.py

Settings come from `CREDITD_…` variables.
"""

from __future__ import annotations

import sys

from cache.replicas import worth
from creditd.engines.registry import Registry
from creditd.server.app import create_app
from creditd.server.logs import configure_logging
from creditd.server.resources import Resources
from creditd.server.serve import serve
from creditd.server.settings import Settings
from server.model_services import fake


def main() -> int:
    """Serve until asked to end."""
    configure_logging()
    settings = Settings(port=0)
    app = create_app(settings, Resources(settings, engines=Registry({"rm": fake(score=worth)})))
    return serve(app, lambda port: sys.stdout.write(f"listens on http://127.0.0.1:{port}\n") and sys.stdout.flush())


if __name__ == "__main__":
    sys.exit(main())
