"""Where the service spends its processor time, by py-spy: every sample goes to the room that its innermost frame is in.

    PYTHONPATH=service:client:tests python -m benchmarks.http_profile --out FILE

py-spy has to be on the path and allowed to look into a process (root, or the same user where the system lets it). The
service runs at full load on one core; threads that wait are left out.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.http_costs import (
    BODIES,
    CONNECTIONS,
    JSON,
    SETS,
    SETS_WITH_TOKENS,
    TOKENS,
    as_json,
    columns_of,
    cores,
    nested_of,
    server,
)
from benchmarks.http_load import Ask, back_to_back, post
from benchmarks.http_servers import PATH
from benchmarks.measure import arguments, device, on_one_thread, versions, write_report
from creditd.wire import codec

SECONDS = 10
SAMPLES_PER_SECOND = 500
ROOMS = {
    "the arithmetic": ("creditd/credit/", "creditd/scoring/"),
    "bytes to a checked request": (
        "creditd/server/body.py",
        "creditd/server/json_bodies.py",
        "creditd/wire/codec.py",
        "creditd/wire/buffers.py",
        "creditd/wire/fields.py",
        "creditd/wire/forms.py",
        "creditd/wire/v1.py",
        "creditd/wire/utilities.py",
        "pydantic/",
    ),
    "a request to arrays": ("creditd/wire/", "creditd/server/inline.py"),
    "an answer to bytes": ("creditd/server/convert.py", "creditd/credit/flags.py"),
    "identity, keys, admission, log, counters": (
        "creditd/server/middleware.py",
        "creditd/server/logs.py",
        "creditd/server/metrics.py",
        "prometheus_client/",
        "logging/",
        "uuid.py",
    ),
    "routes, and the hop to a thread": ("creditd/server/", "anyio/", "concurrent/", "asyncio/"),
    "FastAPI and Starlette": ("fastapi/", "starlette/"),
    "uvicorn, uvloop and the socket": ("uvicorn/",),
}
"""Parts of the path of a request by the files that they live in; the first that fits counts."""
WAITING = ("threading.py", "queue.py", "concurrent/futures/thread.py", "selectors.py")
LOOP = "asyncio/runners.py"
"""Where uvloop's own work shows: it has no frames of Python."""


def room_of(stack: str) -> str | None:
    """The room of a sample, or None for a thread that waits.

    Args:
        stack: Frames from the outermost to the innermost, `name (file:line)`, separated by semicolons.

    Returns:
        One of the rooms. A frame of a library that is in none of them counts for whoever called it; the encoders of
        answers are called by the codec or by orjson.
    """
    frames = stack.split(";")
    if any(name in frames[-1] for name in WAITING):
        return None
    if LOOP in frames[-1]:
        return "uvicorn, uvloop and the socket"
    for frame in reversed(frames):
        if "encode (" in frame and "creditd/wire/codec.py" in frame:
            return "an answer to bytes"
        for room, files in ROOMS.items():
            if any(name in frame for name in files):
                return room
    return "uvicorn, uvloop and the socket"


def shares(raw: str) -> dict[str, float]:
    """Share of the samples in each room, the largest first.

    Args:
        raw: What `py-spy record --format raw` wrote: a stack and a number in each line.

    Returns:
        Shares that sum to 1.

    Raises:
        ValueError: If there is no sample.
    """
    counts: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, number = line.rpartition(" ")
        room = room_of(stack)
        if room is not None:
            counts[room] += int(number)
    total = sum(counts.values())
    if not total:
        raise ValueError("py-spy took no sample")
    return {room: count / total for room, count in counts.most_common()}


async def under_load(asks: list[Ask], process_id: int, raw: Path) -> None:
    """Keep a server busy while py-spy watches it."""
    watch = await asyncio.create_subprocess_exec(
        "py-spy",
        "record",
        "--pid",
        str(process_id),
        "--duration",
        str(SECONDS),
        "--rate",
        str(SAMPLES_PER_SECOND),
        "--format",
        "raw",
        "--full-filenames",
        "--output",
        str(raw),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while watch.returncode is None:
        await back_to_back(asks, BODIES, CONNECTIONS)
    if watch.returncode:
        _, errors = await watch.communicate()
        raise RuntimeError(f"py-spy failed: {errors.decode()[-300:]}")


def main() -> None:
    """Profile, print and write."""
    on_one_thread()
    options = arguments("Where the service spends its time")
    core, load_core = cores()
    if load_core is not None:
        os.sched_setaffinity(0, {load_core})
    plain, tokens = (
        [columns_of(n_sets, tokens=with_tokens, seed=seed) for seed in range(BODIES)]
        for n_sets, with_tokens in ((SETS, False), (SETS_WITH_TOKENS, True))
    )
    found = {}
    with server(core, "creditd.cli", "serve", "--host", "127.0.0.1", "--port", "0") as (port, process):
        for name, bodies, media_type in (
            (f"{SETS} sets, binary", [codec.encode(one) for one in plain], codec.MEDIA_TYPE),
            (f"{SETS} sets, columnar JSON", [as_json(one) for one in plain], JSON),
            (f"{SETS} sets, nested", [as_json(nested_of(one)) for one in plain], JSON),
            (
                f"{SETS_WITH_TOKENS} × {TOKENS:,} tokens, binary",
                [codec.encode(one) for one in tokens],
                codec.MEDIA_TYPE,
            ),
        ):
            asks = [post(port, PATH, body, media_type) for body in bodies]
            with tempfile.TemporaryDirectory() as folder:
                raw = Path(folder) / "samples"
                asyncio.run(under_load(asks, process.pid, raw))
                found[name] = shares(raw.read_text(encoding="utf-8"))
            print(name, *(f"  {share:6.1%} {room}" for room, share in found[name].items()), sep="\n")
    report = {
        "benchmark": "http_profile",
        "versions": versions(["py-spy", "fastapi", "pydantic", "uvicorn", "uvloop", "numpy"]),
        "samples_per_second": SAMPLES_PER_SECOND,
        "seconds": SECONDS,
        "shares": found,
        "device": device(),
    }
    write_report(options.out, report)


if __name__ == "__main__":
    main()
