"""The section of BENCHMARKS.md about new weights of a policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.wording import number, versions

_STEPS = ("receive", "verify", "swap", "all")


def weights(report: Mapping[str, Any]) -> str:
    """The section."""
    lines = [
        "### New weights of a policy",
        "",
        f"Made by `make bench-weights`: a policy of {report['n_bytes'] / 1e9:.2f} GB in float32,",
        f"{report['n_tensors']} tensors, on a processor ({versions(report)}). *torch* is `load_state_dict`",
        "of safetensors' `load_file`, which looks at names and shapes alone; creditd hashes every byte and refuses",
        "numbers that are not finite before it copies any. *receive* is the checksum and the spool of shards, without",
        "a network; *swap* is all that works of the policy wait for. *path, cast* is a file in bfloat16. Verification",
        "runs on as many threads as there are cores, four at most; all else on one. Files are in the memory of the",
        f"system. Ways take turns in {report['rounds']} shuffled rounds; seconds are for each GB of files. Extra",
        "memory is the most that any round took beside the model, as a share of the model: of all pages, and of those",
        "that are no file's.",
        "",
        "| way | receive | verify | swap | all | extra memory | of it no file's |",
        "|---|---|---|---|---|---|---|",
        *(_row(name, way, report["n_bytes"]) for name, way in report["ways"].items()),
        "",
        f"The shards are {report['n_shards']}.",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, way: Mapping[str, Any], n_bytes: int) -> str:
    steps = [_seconds(way["per_gb"][step]) if step in way["per_gb"] else "" for step in _STEPS]
    memory = [f"{way[kind] / n_bytes:.1%}" for kind in ("peak_extra_bytes", "peak_extra_own_bytes")]
    return "| " + " | ".join([name, *steps, *memory]) + " |"


def _seconds(found: Mapping[str, Any]) -> str:
    median, lower, upper = (
        number(found[f"{name}_us"] / 1e6) for name in ("median", "lower_quartile", "upper_quartile")
    )
    return f"{median} s ({lower} to {upper})"
