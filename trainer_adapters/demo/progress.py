"""Trainings that have ended, kept on disk while others run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Progress:
    """The runs that have ended, kept on disk."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path, self._settings = path, settings
        self.runs: dict[str, dict[str, Any]] = {}
        self.seconds = 0.0
        self._started = time.perf_counter()
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["settings"] == json.loads(json.dumps(settings)):
                self.runs, self.seconds = stored["runs"], stored["seconds"]
                print(f"continuing: {len(self.runs)} trainings are there", flush=True)
            else:
                print(f"{path.name} is of other settings; starting anew", flush=True)

    def add(self, name: str, run: dict[str, Any]) -> None:
        """Keep a run, at once."""
        self.runs[name] = run
        content = {"settings": self._settings, "seconds": self.elapsed, "runs": self.runs}
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps(content), encoding="utf-8")
        draft.replace(self._path)

    @property
    def elapsed(self) -> float:
        """Seconds of all invocations together."""
        return self.seconds + time.perf_counter() - self._started
