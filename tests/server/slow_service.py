"""A service whose arithmetic waits until a file appears: run by the tests of the drain, as a process of its own.

Usage: python slow_service.py FILE HOLD_S SETTINGS

FILE lets the arithmetic pass once it exists, or HOLD_S seconds after it was asked; SETTINGS is a JSON object.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

from creditd.scoring.candidate_credit import score_candidate_sets
from creditd.server.app import create_app
from creditd.server.logs import configure_logging
from creditd.server.resources import Resources
from creditd.server.serve import serve
from creditd.server.settings import Settings

SLOWNESS_S = 0.05
"""What each computation takes on top, so that answers keep coming while the process drains."""


def main(file: str, hold_s: str, settings: str) -> int:
    """Serve until asked to end; the port is the first line of standard output."""
    passes, number = Path(file), itertools.count()

    def score(batch, options, rejected, deadline):
        if next(number):  # the first is the warm-up
            asked = time.monotonic()
            while not passes.exists() and time.monotonic() - asked < float(hold_s):
                time.sleep(0.005)
            time.sleep(SLOWNESS_S)
        return score_candidate_sets(batch, options, rejected, deadline)

    configure_logging()
    checked = Settings(max_inline_candidates=0, **json.loads(settings))  # what waits must not hold the loop
    app = create_app(checked, Resources(checked, score_sets=score))
    return serve(app, lambda port: sys.stdout.write(f"{port}\n") and sys.stdout.flush())


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
