"""What a result depends on beside its settings: the sources of the demonstration and of creditd, and the versions."""

from __future__ import annotations

import hashlib
import os
import pkgutil
import platform
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import creditd

HERE = Path(__file__).resolve().parent
FRAMEWORKS = ("torch", "trl", "transformers", "accelerate", "numpy")


def files() -> dict[str, Path]:
    """Every source file of the demonstration and of each package of creditd that is imported, by a name of its own."""
    found = {f"demo/{path.name}": path for path in HERE.glob("*.py")}
    for package in pkgutil.iter_modules(creditd.__path__):
        spec = find_spec(f"creditd.{package.name}")
        if spec is None or spec.origin is None:
            raise RuntimeError(f"creditd.{package.name} has no file")
        folder = Path(spec.origin).parent
        found |= {
            f"creditd/{package.name}/{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*.py")
        }
    return dict(sorted(found.items()))


def digest(sources: Mapping[str, Path]) -> str:
    """Identity of the names and the contents of the files."""
    state = hashlib.sha256()
    for name, path in sources.items():
        state.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return state.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Python and the frameworks; runs of other versions are never mixed."""
    return {"python": platform.python_version(), **{name: version(name) for name in FRAMEWORKS}}


def machine() -> dict[str, Any]:
    """The processor."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "device": "cpu"}
