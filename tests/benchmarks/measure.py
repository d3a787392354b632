"""Repeated timings, the machine they were taken on, and their report as JSON: what every benchmark here shares.

A benchmark is a script that prints its figures and writes them with `--out FILE`. It calls `on_one_thread` first.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Timing:
    """Spread of the time of one unit of work over several repeats.

    Attributes:
        median_us: Median, microseconds.
        lower_quartile_us: A quarter of the repeats were faster.
        upper_quartile_us: A quarter of the repeats were slower.
        repeats: Number of repeats.
        units: Units of work in one repeat; the time of a repeat is divided by it.
    """

    median_us: float
    lower_quartile_us: float
    upper_quartile_us: float
    repeats: int
    units: int

    def __str__(self) -> str:
        spread = f"{self.lower_quartile_us:.4g} to {self.upper_quartile_us:.4g}"
        return f"{self.median_us:.4g} µs ({spread}, {self.repeats} repeats of {self.units})"


def on_one_thread() -> None:
    """Start this script again with every thread pool held to one thread, unless it is so already.

    NumPy reads the variables when it is imported, which comes before any line of a script's own.
    """
    wanted = dict.fromkeys(THREAD_VARIABLES, "1")
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **wanted})  # noqa: S606


def repeated(work: Callable[[], Any], *, units: int = 1, repeats: int = 15, warm_up: int = 1) -> Timing:
    """Median and quartiles of the time of `work`, per unit, with the garbage collector off.

    Args:
        work: What is timed.
        units: Units of work that one call does.
        repeats: Timed calls.
        warm_up: Calls before them that are not timed.

    Returns:
        The timing; with one repeat its quartiles are its median.
    """
    for _ in range(warm_up):
        work()
    times = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            times.append((time.perf_counter() - start) * 1e6 / units)
    finally:
        gc.enable()
    return timing_of(times, units)


def timing_of(times: Sequence[float], units: int = 1) -> Timing:
    """Spread of times, microseconds per unit; of one time alone the quartiles are that time."""
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [*times] * 3
    return Timing(median, lower, upper, len(times), units)


def ratio(slower: Timing, faster: Timing) -> dict[str, float]:
    """How many times slower, by the medians and by the quartiles that favour the slower one."""
    return {
        "of_medians": slower.median_us / faster.median_us,
        "of_nearest_quartiles": slower.lower_quartile_us / faster.upper_quartile_us,
    }


def device() -> dict[str, Any]:
    """Processor, cores, load and system of this machine."""
    return {
        "processor": _processor(),
        "logical_cores": os.cpu_count(),
        "load_average_1_minute": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "threads": 1,
    }


def versions(distributions: Sequence[str]) -> dict[str, str | None]:
    """Versions of installed distributions by name; None for one that is not installed."""
    return {name: _version(name) for name in distributions}


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has: `--out FILE`, required."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--out", type=Path, required=True, help="file for the figures, JSON")
    return made


def arguments(description: str) -> argparse.Namespace:
    """The command line of a benchmark that has no other option."""
    return parser(description).parse_args()


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write figures as JSON; timings become objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    path.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Timing):
        return asdict(value)
    raise TypeError(f"a report holds plain values and timings: got {type(value).__name__}")


def _processor() -> str:
    """Name of the processor, as the system calls it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def folder() -> str:
    """Name of the folder for figures of this machine: its processor, in lower case."""
    return "-".join(re.findall(r"[a-z0-9]+", _processor().lower()))


if __name__ == "__main__":
    print(folder())
