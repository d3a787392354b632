"""Which version answers: of the package, and of its arithmetic."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

METHODS_VERSION = 1
"""Rises when a number changes under an unchanged request."""


@cache
def package_version() -> str:
    """Version of the installed distribution, or `0+unknown` when the code runs from a checkout."""
    try:
        return version("creditd")
    except PackageNotFoundError:
        return "0+unknown"
