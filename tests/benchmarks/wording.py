"""Figures in the words of BENCHMARKS.md: what every section of the page shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def number(value: float) -> str:
    """Three digits, or all of them before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def timing(found: Mapping[str, Any]) -> str:
    """Median, quartiles and repeats of a `Timing`, microseconds."""
    median, lower, upper = (number(found[f"{name}_us"]) for name in ("median", "lower_quartile", "upper_quartile"))
    return f"{median} µs ({lower} to {upper}, {found['repeats']} repeats)"


def milliseconds(found: Mapping[str, Any]) -> str:
    """Median and quartiles of a `Timing`, milliseconds."""
    median, lower, upper = (
        number(found[f"{name}_us"] / 1e3) for name in ("median", "lower_quartile", "upper_quartile")
    )
    return f"{median} ms ({lower} to {upper})"


def kilobytes(value: float) -> str:
    """Thousands of bytes."""
    return f"{value / 1e3:,.0f} kB"


def versions(report: Mapping[str, Any]) -> str:
    """Names and versions of what a report was made with."""
    return ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
