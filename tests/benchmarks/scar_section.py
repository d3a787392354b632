"""The section of BENCHMARKS.md about SCAR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.wording import number, versions

_HEAD = (
    "way",
    "time",
    "processor time",
    "of shap's own batches",
    "of the fastest loop",
    "by processor time",
    "of the ideal",
    "difference",
)


def scar(report: Mapping[str, Any]) -> str:
    """The section."""
    first = report["cells"][0]
    lines = [
        "### SCAR against a loop over shap",
        "",
        f"Made by `make bench-scar`: {first['completions']} completions of one prompt, {first['spans']} spans of 8",
        f"tokens each, and a reward model of the shape of Qwen3, {report['parameters'] / 1e6:.1f} million random",
        f"weights, {report['dtype']} ({versions(report)}). The loop takes one completion after another through",
        "shap's PartitionExplainer, with the same spans and the same balanced tree, and scores the texts of each of",
        "its batches with transformers, padded to the longest; *its own batches* are shap's default, *its best",
        f"batches* the fastest of those that were tried for each prompt ({_tried(report)}).",
        "creditd answers one request with all completions: in process by the use case that the route calls, and over",
        "HTTP on loopback, in JSON, by a service that remembers nothing; *remembered* is a service that was asked",
        f"before. Ways take turns in {report['rounds']} shuffled rounds. Values have to agree within",
        f"{first['allowed_difference']:.0e} of the largest of their completion before a time counts.",
    ]
    for cell in report["cells"]:
        lines += ["", *_cell(cell)]
    lines += ["", *_costs(report), ""]
    return "\n".join(lines)


def _tried(report: Mapping[str, Any]) -> str:
    found = (f"{cell['best_batch']} for {cell['prompt']} tokens" for cell in report["cells"])
    return f"{', '.join(report['cells'][0]['batches_s'])}; taken: {', '.join(found)}"


def _cell(cell: Mapping[str, Any]) -> list[str]:
    remembered = cell["remembered"]
    rows = []
    for name, wall in cell["wall"].items():
        columns = [name, _seconds(wall), _seconds(cell["processor"][name])]
        found = cell["speed_ups"].get(name)
        if found is None:
            columns += ["", "", "", ""]
        else:
            columns += [_times(found[of]) for of in ("of_default", "of_fastest", "of_fastest_by_processor_time")]
            columns.append("" if name.endswith("remembered") else f"{found['share_of_ideal']:.0%}")
        columns.append(f"{cell['differences'][name]:.0e}" if cell["differences"][name] else "")
        rows.append("| " + " | ".join(columns) + " |")
    met = [
        f"{name} {'kept' if found['of_fastest']['of_medians'] >= cell['asked'] else 'missed'}"
        for name, found in cell["speed_ups"].items()
        if not name.endswith("remembered")
    ]
    return [
        f"**A prompt of {cell['prompt']} tokens.** The loop reads {cell['tokens_naive']:,} tokens in",
        f"{cell['evaluations_of_the_loop']:,} texts, and with padding {_padded(cell)}; creditd computes",
        f"{cell['tokens_computed']:,} for {cell['evaluations']:,} evaluations. So {cell['ideal_ratio']:.1f}× is ideal:",
        "what a machine would gain that takes the same time for each token. Asked for over the fastest loop:",
        f"{cell['asked']:g}×; {', '.join(met)}. Asked again, {remembered['evaluations']} evaluations and",
        f"{remembered['from_cache']:,} remembered.",
        "",
        "| " + " | ".join(_HEAD) + " |",
        "|---" * len(_HEAD) + "|",
        *rows,
    ]


def _padded(cell: Mapping[str, Any]) -> str:
    return " or ".join(f"{n_tokens:,}" for n_tokens in dict.fromkeys(cell["tokens_padded"].values()))


def _times(found: Mapping[str, float]) -> str:
    return f"{number(found['of_medians'])}× ({number(found['of_nearest_quartiles'])})"


def _seconds(found: Mapping[str, Any]) -> str:
    median, lower, upper = (
        number(found[f"{name}_us"] / 1e6) for name in ("median", "lower_quartile", "upper_quartile")
    )
    return f"{median} s ({lower} to {upper})" if found["repeats"] > 1 else f"{median} s"


def _costs(report: Mapping[str, Any]) -> list[str]:
    lines = [
        f"What larger requests cost, over HTTP, prompts of {report['prompt_of_costs']} tokens, nothing remembered,",
        "limits raised where the request is over the default ones:",
        "",
        "| request | units | method | evaluations | tokens one by one | tokens computed | time | processor time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cost in report["costs"]:
        flags = f" ({', '.join(cost['flags'])})" if cost["flags"] else ""
        lines.append(
            f"| {cost['what']} | {cost['units']}{flags} | `{cost['method']}` | {cost['evaluations']:,} | "
            f"{cost['tokens_naive']:,} | {cost['tokens_computed']:,} | {_seconds(cost['wall'])} | "
            f"{_seconds(cost['processor'])} |"
        )
    return lines
