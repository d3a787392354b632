"""The section of BENCHMARKS.md about the utility cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.cache_reading import BESIDE, FETCHED, PACKED, PER_COALITION, RAW, SINGLE
from benchmarks.wording import milliseconds, number, versions


def utility_cache(report: Mapping[str, Any]) -> str:
    """The section."""
    work = report["workload"]
    lines = [
        "### Utilities that are remembered",
        "",
        "Made by `make bench-cache`, with a redis-server of its own on loopback and the client in one process:",
        f"{work['games']:,} games of {work['coalitions']:,} coalitions, {work['candidates']:,} candidates, all",
        "remembered. Ways take turns in one run, shuffled, the garbage collector off; the least times stand beside,",
        "because others may have used the machine. The raw MGET is made by the same client with the same settings and",
        "ends with a list of bytes; the cache begins without memory, as that of another replica, checks every value,",
        f"and ends with arrays (redis-server {report['redis_server']}, {versions(report)}).",
        "",
        "| reading | time | least | of one MGET, by medians | by quartiles that favour the slower | by least times |",
        "|---|---|---|---|---|---|",
        *(_reading(report, name) for name in (RAW, FETCHED, BESIDE, PER_COALITION)),
        "",
        "With the keys, which are digests of the texts: from texts to arrays, and what of it are the keys.",
        "",
        "| | from Redis | from memory | keys alone |",
        "|---|---|---|---|",
        *_with_keys(report["reading"]),
        "",
        "| asked | found, median | |",
        "|---|---|---|",
        *(_bound(bound) for bound in report["bounds"]),
        "",
        *_writing(report),
        "",
        *_memory(report),
        "",
        *_requests(report),
        "",
    ]
    return "\n".join(lines)


def _reading(report: Mapping[str, Any], name: str) -> str:
    found = report["reading"][name]
    times = report["ratios"].get(name)
    ratios = [f"{times[by]:.2f}×" for by in ("of_medians", "of_nearest_quartiles", "of_least")] if times else [""] * 3
    return f"| {name} | {_spread(found)} | {number(found['least_us'] / 1e3)} ms | {' | '.join(ratios)} |"


def _with_keys(reading: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, found in reading.items():
        what, _, ends = name.rpartition(": ")
        if ends == "texts to arrays":
            memory, keys = (reading.get(f"{what}: {end}") for end in ("texts to arrays, from memory", "of these, keys"))
            cells = [found, memory, keys]
            rows.append(f"| {what} | " + " | ".join("" if cell is None else _spread(cell) for cell in cells) + " |")
    return rows


def _bound(bound: Mapping[str, Any]) -> str:
    space = "" if bound["unit"] == "×" else " "
    asked, found = (f"{bound[key]:.2f}{space}{bound['unit']}" for key in ("asked", "found"))
    return f"| {bound['what']}: at most {asked} | {found} | {'kept' if bound['kept'] else 'missed'} |"


def _writing(report: Mapping[str, Any]) -> list[str]:
    packed, single = (report["writing"][name] for name in (PACKED, SINGLE))
    times = report["writing_ratio"]
    return [
        f"Written to an empty Redis: {PACKED} {milliseconds(packed)}, {SINGLE} {milliseconds(single)},",
        f"{number(times['of_medians'])} times as long ({number(times['of_nearest_quartiles'])} by the quartiles).",
    ]


def _memory(report: Mapping[str, Any]) -> list[str]:
    lines = [
        "Bytes of one game: in Redis by `used_memory`, packed and with a key per coalition; in a process as the cache",
        "counts them, as Python allocates them, and as the process grows, for games that came from Redis.",
        "",
        "| game | value | Redis, packed | a key per coalition | | counted | allocated | resident |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for stored, held in zip(report["in_redis"], report["in_process"], strict=True):
        process = " | ".join(f"{held['from_redis'][key]:,.0f}" for key in ("estimate", "allocated", "resident"))
        lines.append(
            f"| {stored['kind']} | {stored['value_bytes']:,} | {stored['packed']:,.0f} | "
            f"{stored['per_coalition']:,.0f} | {stored['times']:.2g}× | {process} |"
        )
    return lines


def _requests(report: Mapping[str, Any]) -> list[str]:
    lines = [
        "Evaluations of one request, a text of 16 units credited from at most 512, sent again to the same process, and",
        "to one that begins anew with the same Redis; all answers are the same:",
        "",
        "| request | evaluations | remembered |",
        "|---|---|---|",
        *(f"| {row['request']} | {row['evaluations']} | {row['from_cache']} |" for row in report["evaluations"]),
        "",
        "A request for three candidates that nobody has asked for, to a model that takes no time, in process:",
        "",
        "| | time of the request | least |",
        "|---|---|---|",
    ]
    return lines + [
        f"| {name} | {_spread(found)} | {number(found['least_us'] / 1e3)} ms |"
        for name, found in report["outages"].items()
    ]


def _spread(found: Mapping[str, Any]) -> str:
    return f"{milliseconds(found)[:-1]}, {found['repeats']} repeats)"
