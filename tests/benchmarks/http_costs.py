"""What a request costs the server, against the same API served the stock way and against HTTP alone.

    PYTHONPATH=service:client:tests python -m benchmarks.http_costs --out FILE

Every server is a process of its own on loopback, on one core where the system can pin processes; the load comes from
another. Cost is processor time of the server, user and system, per request; servers take turns, round after round. Then
the service is asked at 50, 80 and 100 % of what it reached, evenly spaced, while `/livez` is asked beside it.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from benchmarks.http_load import Ask, Load, back_to_back, get, one_answer, paced, post
from benchmarks.http_servers import PATH
from benchmarks.measure import arguments, device, on_one_thread, versions, write_report
from creditd.wire import codec

JSON = "application/json"
CANDIDATES, RESPONSES_PER_PROMPT = 8, 8
SETS, SETS_WITH_TOKENS, TOKENS = 512, 64, 1024
BODIES = 16
"""Different bodies of each kind, so that nothing is answered from a processor that has seen it a moment ago."""
ROUNDS = 9
SECONDS_OF_A_ROUND = 1.0
CONNECTIONS, PACED_CONNECTIONS = 4, 64
SHARES = (0.5, 0.8, 1.0)
SECONDS_OF_A_RATE, REQUESTS_OF_A_RATE = 8.0, 300
RATES_TRIED = (1.1, 1.05, 1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4)
"""Of what the processor time per request allows."""
SECONDS_OF_A_TRY, KEPT_UP = 3.0, 0.98
"""A server keeps up that has answered so many of the requests when the last one was due, but for the last answers."""
PROBES_PER_SECOND = 50.0
AGREEMENT = 0.0
"""All servers call the same functions, so their numbers have equal bits."""


@dataclass(frozen=True)
class Case:
    """One way of asking one server.

    Attributes:
        name: What stands in the report.
        asks: Requests that are sent in turn.
    """

    name: str
    asks: list[Ask]


@contextmanager
def server(core: int | None, *command: str) -> Iterator[tuple[int, psutil.Process]]:
    """A server process and its port; it ends with the block, by its own id."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        try:
            watched = psutil.Process(process.pid)
            if core is not None:
                watched.cpu_affinity([core])
            greeting = process.stdout.readline() if process.stdout else ""
            if not greeting:
                raise RuntimeError(f"{' '.join(command)} did not start")
            yield int(greeting.split("listens on ")[-1].split()[0].rpartition(":")[2]), watched
        finally:
            process.terminate()
            process.wait(60)


def columns_of(n_sets: int, *, tokens: bool, seed: int) -> dict[str, Any]:
    """A request in columns, with arrays."""
    random = np.random.default_rng(seed)
    splits = np.arange(n_sets + 1) * CANDIDATES
    rewards = random.random(n_sets * CANDIDATES)
    columns: dict[str, Any] = {"rewards": {"values": rewards, "row_splits": splits}}
    columns["groups"] = np.arange(n_sets) // RESPONSES_PER_PROMPT
    if not tokens:
        return {"columns": columns}
    step = TOKENS // CANDIDATES
    starts = np.tile(np.arange(CANDIDATES) * step, n_sets)
    columns["spans"] = {"starts": starts, "stops": starts + random.integers(1, step, len(starts))}
    columns["n_tokens"] = np.full(n_sets, TOKENS)
    return {"columns": columns, "tokens": {"other": "set"}}


def nested_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """The same request set by set."""
    columns = request["columns"]
    rewards = columns["rewards"]["values"].reshape(-1, CANDIDATES).tolist()
    sets = [
        {"group": group, "candidates": [{"reward": reward} for reward in row]}
        for group, row in zip(columns["groups"].tolist(), rewards, strict=True)
    ]
    if "tokens" not in request:
        return {"sets": sets}
    spans = np.stack([columns["spans"]["starts"], columns["spans"]["stops"]], axis=1).reshape(-1, CANDIDATES, 2)
    for one, row in zip(sets, spans.tolist(), strict=True):
        one["n_tokens"] = TOKENS
        for candidate, span in zip(one["candidates"], row, strict=True):
            candidate["span"] = span
    return {"sets": sets, "tokens": request["tokens"]}


def as_json(document: Any) -> bytes:
    """A document as a trainer's own JSON writer has it."""
    return json.dumps(document, default=lambda value: value.tolist()).encode()


def numbers_in(answer: bytes, *, binary: bool) -> np.ndarray:
    """Advantages of candidates, responses and tokens in an answer of any form, one after another."""
    document = codec.decode(answer, arrays=True) if binary else json.loads(answer)
    if document.get("columns"):
        columns = document["columns"]
        tokens = columns["token_advantages"]
        parts = [columns["advantages"]["values"], columns["set_advantages"], [] if tokens is None else tokens["values"]]
    else:
        parts = [
            [value for one in document["sets"] for value in one["advantages"]],
            [one["set_advantage"] for one in document["sets"]],
            [value for one in document["sets"] for value in one["token_advantages"] or ()],
        ]
    return np.concatenate([np.asarray(part, dtype=np.float64) for part in parts])


def answer_to(ask: Ask) -> bytes:
    """The answer to one request."""
    return asyncio.run(one_answer(ask))


def cases_of(n_sets: int, *, tokens: bool, ports: Mapping[str, int]) -> tuple[list[Case], dict[str, Any]]:
    """Every way of asking for the same credits, after a check that all are answered alike; and their sizes."""
    requests = [columns_of(n_sets, tokens=tokens, seed=seed) for seed in range(BODIES)]
    bodies = {
        "nested": [as_json(nested_of(request)) for request in requests],
        "columnar JSON": [as_json(request) for request in requests],
        "binary": [codec.encode(request) for request in requests],
    }
    cases, sizes = [], {}
    expected: np.ndarray | None = None
    for server_name, form in (
        ("stock", "nested"),
        ("plain", "nested"),
        ("creditd", "nested"),
        ("creditd", "columnar JSON"),
        ("creditd", "binary"),
    ):
        media_type = codec.MEDIA_TYPE if form == "binary" else JSON
        name = f"{server_name}, {form}"
        case = Case(name, [post(ports[server_name], PATH, body, media_type) for body in bodies[form]])
        answer = answer_to(case.asks[0])
        numbers = numbers_in(answer, binary=form == "binary")
        expected = numbers if expected is None else expected
        if numbers.shape != expected.shape or not (np.abs(numbers - expected) <= AGREEMENT).all():
            raise RuntimeError(f"{name} answers with other numbers than the stock server")
        sizes[name] = {"request_bytes": len(bodies[form][0]), "answer_bytes": len(answer)}
        cases.append(case)
        if server_name == "creditd" and form != "nested":
            echoed = [post(ports["echo"], f"/{len(answer)}", body, media_type) for body in bodies[form]]
            cases.append(Case(f"echo, {form}", echoed))
            sizes[f"echo, {form}"] = sizes[name]
    return cases, sizes


def processor_ms(case: Case, process: psutil.Process, n_requests: int) -> float:
    """Processor time of the server per request, milliseconds."""
    before = process.cpu_times()
    load = asyncio.run(back_to_back(case.asks, n_requests, CONNECTIONS))
    after = process.cpu_times()
    if load.refused:
        raise RuntimeError(f"{case.name}: {load.refused} of {n_requests} requests were refused")
    return (after.user + after.system - before.user - before.system) * 1e3 / n_requests


def costs(cases: list[Case], processes: Mapping[str, psutil.Process]) -> dict[str, dict[str, Any]]:
    """Processor time per request of each case: median and quartiles over rounds in which the cases take turns."""
    requests = {}
    for case in cases:
        load = asyncio.run(back_to_back(case.asks, 2 * BODIES, CONNECTIONS))
        requests[case.name] = max(BODIES, round(load.per_second * SECONDS_OF_A_ROUND))
    times: dict[str, list[float]] = {case.name: [] for case in cases}
    for _ in range(ROUNDS):
        for case in cases:
            process = processes[case.name.partition(",")[0]]
            times[case.name].append(processor_ms(case, process, requests[case.name]))
    found = {}
    for name, values in times.items():
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        found[name] = {
            "median_ms": median,
            "lower_quartile_ms": lower,
            "upper_quartile_ms": upper,
            "rounds": ROUNDS,
            "requests_per_round": requests[name],
        }
    for name, cost in found.items():
        for base in ("stock, nested", "plain, nested"):
            cost[f"below {base}"] = [
                found[base]["median_ms"] / cost["median_ms"],
                found[base]["lower_quartile_ms"] / cost["upper_quartile_ms"],
            ]
        echo = found.get(f"echo, {name.partition(', ')[2]}")
        if echo is not None:
            cost["times the echo"] = cost["median_ms"] / echo["median_ms"]
        shown = f"{cost['median_ms']:.3f} ms ({cost['lower_quartile_ms']:.3f} to {cost['upper_quartile_ms']:.3f})"
        print(f"  {name:24} {shown}, stock is {cost['below stock, nested'][0]:.1f} times that")
    return found


async def at_a_rate(case: Case, per_second: float) -> tuple[Load, Load]:
    """What a case and the probe beside it meet with at a rate."""
    probe = [get(case.asks[0].port, "/livez")]
    seconds = max(SECONDS_OF_A_RATE, REQUESTS_OF_A_RATE / per_second)
    return await asyncio.gather(
        paced(case.asks, per_second, seconds, PACED_CONNECTIONS),
        paced(probe, PROBES_PER_SECOND, seconds, PACED_CONNECTIONS),
    )


def saturation_of(case: Case, cost_ms: float) -> float:
    """The highest rate that a server keeps up with, requests per second.

    Looked for from what its processor time would allow downwards, because a server that is pushed harder than it can
    answer is slower than one that is not.
    """
    for share in RATES_TRIED:
        rate = share * 1e3 / cost_ms
        load = asyncio.run(paced(case.asks, rate, max(SECONDS_OF_A_TRY, BODIES / rate), PACED_CONNECTIONS))
        if load.per_second >= KEPT_UP * rate and not load.refused:
            return rate
    raise RuntimeError(f"{case.name} keeps up with no rate that was tried")


def latencies(case: Case, cost_ms: float) -> dict[str, Any]:
    """Latency of requests and of the probe at shares of what the server keeps up with."""
    saturation = saturation_of(case, cost_ms)
    rows = []
    for share in SHARES:
        load, probe = asyncio.run(at_a_rate(case, share * saturation))
        row = {
            "share": share,
            "asked_per_second": share * saturation,
            "answered_per_second": load.per_second,
            "p50_ms": load.quantile_ms(0.5),
            "p99_ms": load.quantile_ms(0.99),
            "livez_p50_ms": probe.quantile_ms(0.5),
            "livez_p99_ms": probe.quantile_ms(0.99),
            "refused": load.refused + probe.refused,
        }
        rows.append(row)
        print(
            f"  {case.name} at {share:4.0%} ({row['asked_per_second']:.0f}/s): p50 {row['p50_ms']:.2f} ms, "
            f"p99 {row['p99_ms']:.2f} ms; /livez p50 {row['livez_p50_ms']:.2f} ms, p99 {row['livez_p99_ms']:.2f} ms"
        )
    return {"saturation_per_second": saturation, "rates": rows}


def idle_probe(port: int) -> dict[str, float]:
    """Latency of the probe of a service that does nothing else."""
    load = asyncio.run(paced([get(port, "/livez")], PROBES_PER_SECOND, SECONDS_OF_A_RATE, 1))
    return {"p50_ms": load.quantile_ms(0.5), "p99_ms": load.quantile_ms(0.99)}


def cores() -> tuple[int | None, int | None]:
    """A core for the servers and one for the load, where processes can be pinned and there are two."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return (usable[0], usable[-1]) if len(usable) > 1 else (None, None)


def main() -> None:
    """Measure, print and write."""
    on_one_thread()
    options = arguments("What a request costs the server")
    core, load_core = cores()
    if load_core is not None:
        os.sched_setaffinity(0, {load_core})
    commands = {name: ("benchmarks.http_servers", name) for name in ("stock", "plain", "echo")}
    commands["creditd"] = ("creditd.cli", "serve", "--host", "127.0.0.1", "--port", "0")
    report: dict[str, Any] = {
        "benchmark": "http_costs",
        "versions": versions(["fastapi", "pydantic", "uvicorn", "uvloop", "orjson", "msgpack", "numpy"]),
        "pinned": core is not None,
        "connections": CONNECTIONS,
        "paced_connections": PACED_CONNECTIONS,
        "cases": {},
    }
    with ExitStack() as stack:
        running = {name: stack.enter_context(server(core, *command)) for name, command in commands.items()}
        ports = {name: port for name, (port, _) in running.items()}
        processes = {name: process for name, (_, process) in running.items()}
        report["idle_livez"] = idle_probe(ports["creditd"])
        for title, n_sets, tokens in (
            (f"{SETS} sets × {CANDIDATES}", SETS, False),
            (f"token advantages of {SETS_WITH_TOKENS} × {TOKENS:,}", SETS_WITH_TOKENS, True),
        ):
            print(title)
            cases, sizes = cases_of(n_sets, tokens=tokens, ports=ports)
            found = costs(cases, processes)
            report["cases"][title] = {
                "sizes": sizes,
                "costs": found,
                "latencies": {
                    case.name: latencies(case, found[case.name]["median_ms"])
                    for case in cases
                    if not case.name.startswith(("echo", "plain"))
                },
            }
    report["device"] = device()
    write_report(options.out, report)


if __name__ == "__main__":
    main()
