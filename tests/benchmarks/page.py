"""BENCHMARKS.md from the figures in `results/`: run `python -m benchmarks.page` with `tests` on the path."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cache_section import utility_cache
from benchmarks.interval_coverage import PROMISED_MEAN, PROMISED_PLAYER
from benchmarks.oar_section import oar
from benchmarks.scar_section import scar
from benchmarks.weights_section import weights
from benchmarks.wording import kilobytes, milliseconds, number, timing, versions

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "BENCHMARKS.md"
OURS = "creditd stratified"
NEAR_THE_PROXY = "log_sum_exp"
NOMINAL = 0.95
ENOUGH = 0.97
"""Share of the evaluations from which a comparison at R is one."""
SHOWN = 8
"""Estimators in the table, best first; the JSON has all of them."""

_HEAD = """\
# Benchmarks

`make bench` measures what stands here and writes this page from the JSON files in `tests/benchmarks/results`, one
folder per machine. Every time is a median with its quartiles and stands beside a named peer of the same run, on one
thread.
"""


def page(results: Path = RESULTS) -> str:
    """The page: one section per machine."""
    return "\n".join([_HEAD, *(_machine(folder) for folder in sorted(results.iterdir()) if folder.is_dir())])


def _machine(folder: Path) -> str:
    sections = [f"## {folder.name}", ""]
    for name, write in (
        ("http_costs", _http_costs),
        ("http_profile", _http_profile),
        ("tables", _tables),
        ("estimators", _estimators),
        ("coverage", _coverage),
        ("trie_scoring", _trie_scoring),
        ("trie_scoring_cuda", _trie_scoring),
        ("scar", scar),
        ("oar", oar),
        ("oar_cuda", oar),
        ("weights", weights),
        ("utility_cache", utility_cache),
    ):
        report = _read(folder / f"{name}.json")
        if report is not None:
            sections.append(write(report) + _taken(report["device"]))
    return "\n".join(sections)


def _taken(device: Mapping[str, Any]) -> str:
    """Where figures were taken, and how busy the machine was."""
    load, gpu = device["load_average_1_minute"], device.get("accelerator")
    first = f"{gpu['name']}, " if gpu else ""
    return (
        f"\n*{first}{device['processor']}, {device['logical_cores']} cores, one thread, {device['system']}, "
        f"Python {device['python']}, load {'unknown' if load is None else f'{load:.1f}'} at the end.*\n"
    )


def _read(path: Path) -> Any:  # a report is what its script wrote
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _http_costs(report: Mapping[str, Any]) -> str:
    where = "each pinned to one core, the load to another" if report["pinned"] else "not pinned"
    lines = [
        "### What a request costs the server",
        "",
        "Made by `make bench-http`: processor time of the server, user and system, per request. `stock` is FastAPI",
        "as its tutorial has it, `async def shapley(asked: ShapleyRequest) -> ShapleyResponse`, with the models of",
        "creditd, set by set; `plain` is the same with models of nothing but the fields that are used, without bounds",
        "or strict types; `echo` reads the same bytes and answers with as many, and does nothing else. Stock and plain",
        "call the functions of `creditd.credit` that creditd calls, and answer with the same bits. All run under",
        f"uvicorn with uvloop and httptools, {where}; {report['connections']} connections,",
        "servers in turn. In brackets: the ratio by the quartiles that favour the slower server.",
        f"({versions(report)}.)",
        "",
    ]
    for title, case in report["cases"].items():
        lines += [
            f"**{title}**",
            "",
            "| server, body | request | answer | processor time | stock is | plain is | of the echo |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, cost in case["costs"].items():
            sizes = case["sizes"][name]
            low, high = (number(cost[f"{quartile}_quartile_ms"]) for quartile in ("lower", "upper"))
            time = f"{number(cost['median_ms'])} ms ({low} to {high}, {cost['rounds']} rounds)"
            stock, plain = (cost[f"below {base}, nested"] for base in ("stock", "plain"))
            echo = f"{number(cost['times the echo'])}×" if "times the echo" in cost else ""
            lines.append(
                f"| {name} | {kilobytes(sizes['request_bytes'])} | {kilobytes(sizes['answer_bytes'])} | {time} | "
                f"{number(stock[0])}× ({number(stock[1])}) | {number(plain[0])}× ({number(plain[1])}) | {echo} |"
            )
        lines += [
            "",
            "Latency at shares of the highest rate that the server keeps up with, evenly spaced, counted from when a",
            "request was due, and of `/livez` beside it:",
            "",
            "| server, body | keeps up with | at | p50 | p99 | /livez p50 | /livez p99 |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, found in case["latencies"].items():
            for row in found["rates"]:
                times = " | ".join(
                    f"{number(row[key])} ms" for key in ("p50_ms", "p99_ms", "livez_p50_ms", "livez_p99_ms")
                )
                refused = f", {row['refused']} refused" if row["refused"] else ""
                lines.append(
                    f"| {name} | {number(found['saturation_per_second'])}/s | {row['share']:.0%}{refused} | {times} |"
                )
        lines.append("")
    idle = report["idle_livez"]
    lines += [
        f"`/livez` of an idle service: p50 {number(idle['p50_ms'])} ms, p99 {number(idle['p99_ms'])} ms.",
        "",
    ]
    return "\n".join(lines)


def _http_profile(report: Mapping[str, Any]) -> str:
    rooms = list(next(iter(report["shares"].values())))
    rows = [
        f"| {room} | " + " | ".join(f"{found.get(room, 0.0):.0%}" for found in report["shares"].values()) + " |"
        for room in rooms
    ]
    return "\n".join(
        [
            "### Where the time goes",
            "",
            f"Samples of py-spy, {report['samples_per_second']} per second for {report['seconds']} s at full load, by",
            f"the room that the innermost frame is in ({versions(report)}).",
            "",
            "| | " + " | ".join(report["shares"]) + " |",
            "|---|" + "---|" * len(report["shares"]),
            *rows,
            "",
        ]
    )


def _tables(report: Mapping[str, Any]) -> str:
    rows = [
        f"| {row['players']} | `table_semivalues`, batches of {row['tables']:,} | {timing(row['per_game'])} | 1 | |"
        for row in report["table_semivalues"]
    ]
    for row in report["peers"]:
        if "skipped" in row:
            rows.append(f"| {row['players']} | {row['peer']} | not run: {row['skipped']} | | |")
            continue
        times, difference = row["times_ours"], row["largest_difference"]
        rows.append(
            f"| {row['players']} | {row['peer']} | {timing(row['per_game'])} | "
            f"{number(times['of_medians'])} ({number(times['of_nearest_quartiles'])}) | {difference:.0e} |"
        )
    rows.sort(key=lambda row: int(row.split("|")[1]))
    fastest = report["max"]
    sets = f"{fastest['sets']:,} sets of {fastest['candidates']}"
    of_max = f"`max` by its formula, {sets}: {timing(fastest['per_set'])} per set."
    return "\n".join(
        [
            "### Exact Shapley values",
            "",
            f"Time per game whose 2ⁿ utilities are in memory ({versions(report)}). In brackets: the ratio by the",
            "quartiles that favour the peer. The last column is the largest difference from our values, as a share of",
            "the largest utility.",
            "",
            "| n | method | time per game | times ours | difference |",
            "|---|---|---|---|---|",
            *rows,
            "",
            of_max,
            "",
        ]
    )


def _estimators(report: Mapping[str, Any]) -> str:
    means = {
        cell: {name: sum(values) / len(values) for name, values in row.items()} for cell, row in report["nmse"].items()
    }
    names = sorted(set.intersection(*(set(row) for row in means.values())))
    ranked = sorted(names, key=lambda name: _geometric_mean([row[name] for row in means.values()]))
    shown = [*ranked[:SHOWN], *(name for name in ranked[SHOWN:] if name.startswith("creditd"))]
    n_peers = sum(not name.startswith("creditd") for name in names)
    rough = [row for cell, row in means.items() if not cell.startswith(NEAR_THE_PROXY)]
    rows = [
        f"| {ranked.index(name) + 1} | {name} | {_geometric_mean([row[name] for row in means.values()]):.4f} | "
        f"{_geometric_mean([row[name] for row in rough]):.4f} |"
        for name in shown
    ]
    short = ", ".join(f"{name} {share:.2f}" for name, share in _shares(report).items() if share < ENOUGH)
    cells = []
    for cell, row in means.items():
        peers = {name: value for name, value in row.items() if not name.startswith("creditd")}
        best = min(peers, key=lambda name: peers[name])
        ratio = peers[best] / row[OURS] if row[OURS] else math.inf
        cells.append(f"| {cell} | {row[OURS]:.2g} | {peers[best]:.2g} | {best} | {ratio:.2f} |")
    return "\n".join(
        [
            "### Estimates at equal numbers of evaluations",
            "",
            f"Mean squared error over the variance of the true values, mean of {report['seeds']} games and plans per",
            f"cell ({versions(report)}), against {n_peers} estimators of shapiq for Shapley values, all that ran.",
            "R is the number of distinct evaluations. `max` is not among the games: the proxy of creditd contains it.",
            "Log-sum-exp is close to a maximum and so to the proxy: the last column is without it. Peers run as they",
            "are: an empty set that is worth much less than one player costs some of them more than it need.",
            f"Every estimator spent at least {ENOUGH:.0%} of R but, at the least: {short or 'none'}.",
            "",
            f"| rank of {len(names)} | estimator | geometric mean of {len(means)} cells | of {len(rough)} cells |",
            "|---|---|---|---|",
            *rows,
            "",
            "| game | creditd | best of shapiq | which | its error over ours |",
            "|---|---|---|---|---|",
            *cells,
            "",
            *(f"Failed: {name}: {reason}" for name, reason in report["failures"].items()),
            *(f"Not run: {name}: {reason}." for name, reason in report["not_run"].items()),
            "",
        ]
    )


def _shares(report: Mapping[str, Any]) -> dict[str, float]:
    """The smallest share of the budget that each estimator spent."""
    shares: dict[str, float] = {}
    for cell, row in report["distinct"].items():
        budget = int(cell.rpartition("R=")[2])
        for name, used in row.items():
            shares[name] = min([shares.get(name, 1.0), *(number / budget for number in used)])
    return shares


def _geometric_mean(values: list[float]) -> float:
    return math.exp(sum(math.log(max(value, 1e-300)) for value in values) / len(values))


def _coverage(report: Mapping[str, Any]) -> str:
    cells = [cell for cell in report["cells"] if cell["mean"] is not None]
    without = len(report["cells"]) - len(cells)
    promised = [cell for cell in cells if cell["promised"]]
    missed = sum(not cell["holds"] for cell in promised)
    below = [cell for cell in cells if cell["mean"] < NOMINAL]
    low, high = PROMISED_MEAN
    rows = [
        f"| {cell['kind']} | {cell['n_players']} | {cell['method']} | {cell['evaluations']} | {cell['mean']:.3f} | "
        f"{cell['lowest']:.3f} | {cell['with_interval']:.2f} | {'yes' if cell['promised'] else 'no'} | "
        f"{'' if cell['holds'] else 'missed'} |"
        for cell in below
    ]
    return "\n".join(
        [
            "### Coverage of the 95 % intervals",
            "",
            f"{cells[0]['seeds']} plans per cell; {len(cells)} cells with intervals, of 10n to 60n evaluations and of",
            f"the audit mode with 256 antithetic pairs; {without} cells of fewer have none ({versions(report)}).",
            "Promised, from 30n on and in audit mode: .92 to .98 on average over players, no player below",
            f"{PROMISED_PLAYER}; counted as missed is a mean outside [{low}, {high}], which adds the sampling error of",
            f"the benchmark. Of {len(promised)} promised cells {missed} miss it. `maximum`, which the proxy contains,",
            "is shown and not promised.",
            f"Cells whose mean is below the nominal {NOMINAL} ({len(below)} of {len(cells)}):",
            "",
            "| game | n | method | evaluations | mean coverage | worst player | plans with intervals | promised | |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _trie_scoring(report: Mapping[str, Any]) -> str:
    gpu = report["device"]["accelerator"]
    by = "`make gpu`" if gpu else "`make bench-models`"
    lines = [
        f"### Scoring many variants of one text, {'on a GPU' if gpu else 'on a processor'}",
        "",
        f"Made by {by}: reward models of the shape of Qwen3 with random weights, {report['dtype']}, all coalitions",
        f"of spans of 8 tokens ({versions(report)}). `trie` is the engine, masks {report['masks']}, chunks of",
        f"{report['chunk']:,} tokens; peers are batches of {report['batch']} in random order, padded to the longest,",
        f"and batches of like length of {report['budget']:,} tokens: the engine's, for models that read no tries. In",
        "brackets: the ratio by the quartiles that favour the peer. `tokens` is the ratio of the tokens of all",
        "variants to those that are computed: what a trie could gain over batches that pad nothing.",
    ]
    if any(cell["sampled"] > 1 for cell in report["cells"]):
        lines.append("Peers marked * scored every second or fourth variant, and their time is taken as many times.")
    head = ["model", "variants", "prompt", "tokens", "trie", "padded", "padded is", "budget", "budget is"]
    if gpu:
        head.append("of the bf16 rate")
        lines += [
            "",
            f"The rate of bf16 matrices is assumed to be {_teraflops(gpu['assumed_bf16_flops'])} (datasheet, dense)",
            f"and was measured as {_teraflops(gpu['measured_bf16_flops'])} in the same run; the last column is the",
            "trie's share of each, on the operations of the distinct prefixes alone.",
        ]
    else:
        head.append("expected")
    lines += ["", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(_trie_row(cell, gpu=bool(gpu)) for cell in report["cells"]), ""])


def _trie_row(cell: Mapping[str, Any], *, gpu: bool) -> str:
    star = "*" if cell["sampled"] > 1 else ""
    columns = [cell["model"], f"{cell['kind']}: {cell['variants']}", str(cell["prompt"]), f"{cell['token_ratio']:.1f}×"]
    columns.append(milliseconds(cell["trie"]))
    for peer in ("padded", "budget"):
        times = cell[f"times_{peer}"]
        columns += [
            milliseconds(cell[peer]) + star,
            f"{times['of_medians']:.1f}× ({times['of_nearest_quartiles']:.1f})",
        ]
    least = cell["expected_times_padded"]
    if gpu:
        shares = [cell[f"share_of_{rate}"] for rate in ("assumed", "measured")]
        columns.append(", ".join("unknown" if share is None else f"{share:.0%}" for share in shares))
    elif least is None:
        columns.append("")
    else:
        missed = cell["times_padded"]["of_medians"] < least
        columns.append(f"≥ {least}×{', missed' if missed else ''}")
    return "| " + " | ".join(columns) + " |"


def _teraflops(rate: float | None) -> str:
    return "unknown" if rate is None else f"{rate / 1e12:,.0f} TFLOP/s"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
