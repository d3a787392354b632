"""What the utility cache costs and saves, against one MGET of the same bytes and against a Redis key per coalition.

    PYTHONPATH=service:client:tests python -m benchmarks.utility_cache --out FILE [--quick]

A redis-server of its own on a free port of loopback, a client in this process: both sides in one run, taking turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.cache_footprint import KINDS, Kind, in_process, in_redis
from benchmarks.cache_games import Workload
from benchmarks.cache_reading import (
    BESIDE,
    CONTROL,
    FETCHED,
    PACKED,
    PER_COALITION,
    RAW,
    SINGLE,
    reading_times,
    times_of,
    writing_times,
)
from benchmarks.cache_requests import evaluations, outages
from benchmarks.measure import device, on_one_thread, parser, versions, write_report
from redis_servers import RedisServer

LENGTHS = (200, 1000)
MOST_TIMES_RAW = 3.0
MOST_MS, MOST_US_PER_CANDIDATE = 5.0, 2.5


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        prompts: Number of prompts, of 8 sets each.
        readings: Repeats of everything that is read.
        writings: Repeats of everything that is written.
        outages: Rounds of states that Redis is in.
        kinds: Games whose memory is measured.
    """

    prompts: int
    readings: int
    writings: int
    outages: int
    kinds: tuple[Kind, ...]


FULL = Size(64, 41, 5, 8, KINDS)
QUICK = Size(2, 3, 2, 1, tuple(replace(kind, in_redis=16, in_memory=64) for kind in KINDS))


def bounds_of(found: Mapping[str, Any], candidates: int) -> list[dict[str, Any]]:
    """What was asked, what was found by the median, and whether it is kept."""
    raw = times_of(found[FETCHED], found[RAW])
    bounds = [{"what": f"{FETCHED}, times {RAW}", "asked": MOST_TIMES_RAW, "found": raw["of_medians"], "unit": "×"}]
    most = MOST_MS + MOST_US_PER_CANDIDATE * candidates / 1e3
    for length in LENGTHS:
        name = f"{length:,} characters: texts to arrays"
        bounds.append({"what": name, "asked": most, "found": found[name]["median_us"] / 1e3, "unit": "ms"})
    return [{**bound, "kept": bound["found"] <= bound["asked"]} for bound in bounds]


async def measured(size: Size) -> dict[str, Any]:
    """Every figure but those of memory, with one server."""
    workloads = [Workload(prompts=size.prompts, length=length) for length in LENGTHS]
    first = workloads[0]
    with RedisServer() as server:
        footprint = in_redis(server, size.kinds)
        written = await writing_times(server.url, first, size.writings)
        read = await reading_times(server.url, workloads, size.readings)
        again = await evaluations(server)
        information = server.client().info("server")
    return {
        "redis_server": information["redis_version"],
        "workload": {
            "games": first.games,
            "coalitions": len(first.rows),
            "candidates": first.all_candidates,
            "prompts": first.prompts,
            "characters": list(LENGTHS),
        },
        "reading": read,
        "ratios": {
            FETCHED: times_of(read[FETCHED], read[RAW]),
            PER_COALITION: times_of(read[PER_COALITION], read[BESIDE]),
            CONTROL: times_of(read[CONTROL], read[RAW]),
        },
        "bounds": bounds_of(read, first.all_candidates),
        "writing": written,
        "writing_ratio": times_of(written[SINGLE], written[PACKED]),
        "in_redis": footprint,
        "evaluations": again,
        "outages": await outages(size.outages),
    }


def shown(report: Mapping[str, Any]) -> None:
    """Print the figures that decide."""
    for group in ("reading", "writing", "outages"):
        for name, one in report[group].items():
            quartiles = f"{one['lower_quartile_us'] / 1e3:.3g} to {one['upper_quartile_us'] / 1e3:.3g}"
            print(f"{name:70} {one['median_us'] / 1e3:9.3f} ms ({quartiles}, least {one['least_us'] / 1e3:.3g})")
    for name, times in report["ratios"].items():
        print(f"{name}: {times['of_medians']:.2f}× one MGET, by the least times {times['of_least']:.2f}×")
    for bound in report["bounds"]:
        print(f"{bound['what']}: {bound['found']:.2f} of {bound['asked']:.2f} {bound['unit']}, kept: {bound['kept']}")
    for row in report["evaluations"]:
        print(f"{row['request']}: {row['evaluations']} evaluations, {row['from_cache']} remembered")
    for row in (*report["in_redis"], *report["in_process"]):
        print(row)


def main() -> None:
    """Measure, print and write."""
    on_one_thread()
    made = parser("The utility cache, against raw Redis")
    made.add_argument("--quick", action="store_true", help="few games and repeats, to see that everything runs")
    options = made.parse_args()
    size = QUICK if options.quick else FULL
    report: dict[str, Any] = {
        "benchmark": "utility_cache",
        "versions": versions(["redis", "hiredis", "numpy", "fastapi"]),
        "interleaved": True,
        "garbage_collector": False,
        "in_process": in_process(size.kinds),
    }
    report |= asyncio.run(measured(size))
    report["device"] = device()
    shown(report)
    write_report(options.out, report)


if __name__ == "__main__":
    main()
