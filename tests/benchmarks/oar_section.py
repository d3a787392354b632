"""The section of BENCHMARKS.md about OAR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.wording import number, versions

METHODS = {"gradient": "OAR-G", "perturbation": "OAR-P"}
_HEAD = ("method", "prompt", "transformers", "creditd", "ratio", "by processor time", "of the ideal", "wanted", "")
_STEP_HEAD = ("training", "a step", "processor time", "times GRPO", "by processor time", "credit", "weights", "share")


def oar(report: Mapping[str, Any]) -> str:
    """The section."""
    cells = report["cells"]
    first, gpu = cells[0], report["device"].get("accelerator")
    counts = {cell["method"]: (cell["completions"], report["rounds"][cell["method"]]) for cell in cells}
    differences = {method: max(cell["difference"] for cell in cells if cell["method"] == method) for method in METHODS}
    lines = [
        f"### OAR against plain transformers, {'on a GPU' if gpu else 'on a processor'}",
        "",
        f"Made by `make {'gpu' if gpu else 'bench-oar'}`: a policy of the shape of Qwen3,",
        f"{report['parameters'] / 1e6:.1f} million random",
        f"weights, {report['dtype']}, and completions of {first['reasoning']} reasoning tokens,",
        f"{first['conclusion']} of a conclusion and {first['answer']} of an answer ({versions(report)}).",
        "The peer of OAR-G is two forward passes and one backward to the embeddings, weights frozen; that of OAR-P a",
        "forward pass over the whole row for each reasoning token, in batches. Both give a head to the positions that",
        "predict the answer alone, and take the batches that were fastest of those that were tried",
        f"({_tried(cells)}). creditd is the engine that the route asks: tokens",
        f"prepared, queued and answered. {_requests(counts)}.",
        "The ratio is the time of creditd over that of the peer for OAR-G, and the inverse for OAR-P; in brackets by",
        "the quartiles that are worst for creditd. Sensitivities have to agree before a time counts; the largest",
        f"difference was {differences['gradient']:.0e} of the largest sensitivity for OAR-G and",
        f"{differences['perturbation']:.0e} for OAR-P.",
        "",
        "| " + " | ".join(_HEAD) + " |",
        "|---" * len(_HEAD) + "|",
        *map(_row, cells),
        "",
    ]
    if "steps" in report:
        lines += [*_steps(report["steps"]), ""]
    return "\n".join(lines)


def kept(cell: Mapping[str, Any], times: str = "times") -> bool:
    """Whether what was wanted of a cell is so, by time or by processor time."""
    found: float = cell[times]["of_medians"]
    return found <= cell["most_times"] if "most_times" in cell else found >= cell["least_times"]


def _tried(cells: list[Mapping[str, Any]]) -> str:
    tried = {METHODS[cell["method"]]: ", ".join(cell["batches_s"]) for cell in cells}
    return "; ".join(f"{method}: rows of {batches}" for method, batches in tried.items())


def _requests(counts: Mapping[str, tuple[int, int]]) -> str:
    return "; ".join(
        f"{METHODS[method]}: completions in a request {completions}, shuffled rounds {rounds}"
        for method, (completions, rounds) in counts.items()
    )


def _row(cell: Mapping[str, Any]) -> str:
    gradient = cell["method"] == "gradient"
    peer, ours = (_seconds(cell["wall"][way]) for way in ("transformers", "creditd"))
    share = "" if gradient else f"{cell['share_of_ideal']:.0%} of {cell['ideal_ratio']:.2f}×"
    wanted = f"≤ {cell['most_times']:g}×" if gradient else f"≥ {cell['least_times']:.2f}×"
    columns = [METHODS[cell["method"]], str(cell["prompt"]), f"{peer}, rows of {cell['best_batch']}", ours]
    columns += [_times(cell["times"]), _times(cell["times_by_processor_time"]), share, wanted]
    columns.append("kept" if kept(cell) else "missed")
    return "| " + " | ".join(columns) + " |"


def _steps(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"What it costs of a step of TRL with the same policy: {found['completions']} completions of",
        f"{found['completion']} tokens to a prompt of {found['prompt']}, one update, {found['timed']} steps after one",
        "that is not timed. A service runs beside the trainer and gets the weights before each request; processor time",
        "is that of both. `weights` are the seconds of handing them over, which `credit` contains, and `share` is that",
        "of credit in the time of a step:",
        "",
        "| " + " | ".join(_STEP_HEAD) + " |",
        "|---" * len(_STEP_HEAD) + "|",
    ]
    for name, way in found["ways"].items():
        columns = [name, _seconds(way["wall"]), _seconds(way["processor"])]
        if "share" in way:
            columns += [_times(way["times_plain"]), _times(way["times_plain_by_processor_time"])]
            columns += [_seconds(way["credit"]), _seconds(way["push"]), f"{way['share']:.0%}"]
        else:
            columns += [""] * 5
        lines.append("| " + " | ".join(columns) + " |")
    return lines


def _times(found: Mapping[str, float]) -> str:
    return f"{found['of_medians']:.2f}× ({found['of_nearest_quartiles']:.2f})"


def _seconds(found: Mapping[str, Any]) -> str:
    median, lower, upper = (
        number(found[f"{name}_us"] / 1e6) for name in ("median", "lower_quartile", "upper_quartile")
    )
    return f"{median} s ({lower} to {upper})"
