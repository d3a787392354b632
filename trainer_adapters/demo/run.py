"""The demonstration: GRPO with six credit rules against the live service, compared over seeds.

    python trainer_adapters/demo/run.py             # everything; `make demo`
    python trainer_adapters/demo/run.py --quick     # the same path in two minutes; its numbers mean nothing

An interrupted run continues where it stopped: every training that ended is in `progress.json` until all have.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import comparison
import figure
import report
import task
import training
from live import Service, live_service

HERE = Path(__file__).resolve().parent
SOURCES = ("task.py", "model.py", "training.py")
KILL_AFTER = 5
MOST_PROCESSES = 8
BASELINE = "set_reward"


@dataclass(frozen=True)
class Schedule:
    """What is run.

    Attributes:
        rates: The grid of learning rates, the same for every method.
        grid_seed: Seed of the grid, which no comparison uses.
        grid_steps: Steps of a run of the grid.
        seeds: Seeds of the comparison.
        steps: Steps of a run of the comparison.
        evaluate_every: Steps between evaluations.
        compared: Steps at which methods are compared; the last one is the end.
        control_seeds: Seeds of the control without creditd.
    """

    rates: tuple[float, ...]
    grid_seed: int
    grid_steps: int
    seeds: tuple[int, ...]
    steps: int
    evaluate_every: int
    compared: tuple[int, ...]
    control_seeds: tuple[int, ...]


FULL = Schedule((3e-4, 1e-3, 3e-3), 10, 100, (11, 12, 13, 14, 15), 200, 10, (20, 40, 200), (11, 12, 13, 14, 15))
"""The design was settled in pilots with the seeds 0 to 5, which are not used again."""
QUICK = Schedule((1e-3, 3e-3), 10, 5, (11, 12), 10, 5, (5, 10), (11,))


class Progress:
    """The runs that have ended, kept on disk."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path, self._settings = path, settings
        self.runs: dict[str, dict[str, Any]] = {}
        self.seconds = 0.0
        self._started = time.perf_counter()
        if path.exists():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["settings"] == json.loads(json.dumps(settings)):
                self.runs, self.seconds = stored["runs"], stored["seconds"]
                print(f"continuing: {len(self.runs)} trainings are there", flush=True)
            else:
                print("progress.json is of other settings; starting anew", flush=True)

    def add(self, name: str, run: dict[str, Any]) -> None:
        """Keep a run, at once."""
        self.runs[name] = run
        content = {"settings": self._settings, "seconds": self.elapsed, "runs": self.runs}
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps(content), encoding="utf-8")
        draft.replace(self._path)

    @property
    def elapsed(self) -> float:
        """Seconds of all invocations together."""
        return self.seconds + time.perf_counter() - self._started


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, then write results.json, curves.png and report.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a run of two minutes that proves the path and no claim")
    parser.add_argument("--out", type=Path, help="directory of the results")
    parser.add_argument("--report", action="store_true", help="only draw and write again what results.json holds")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out: Path = options.out or HERE / ("results_quick" if options.quick else "results")
    out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        results = _results(QUICK if options.quick else FULL, out / "progress.json", quick=options.quick)
        (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (out / "progress.json").unlink()
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    figure.draw(results, out / "curves.png")
    text = report.text(results)
    (out / "report.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _results(schedule: Schedule, progress_file: Path, *, quick: bool) -> dict[str, Any]:
    """Everything there is to know, from the runs that are there and those that are made now."""
    settings = {"quick": quick, "schedule": asdict(schedule), "sources": _digest(), **training.settings()}
    progress = Progress(progress_file, settings)
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as scratch,
        live_service(Path(scratch)) as service,
        ProcessPoolExecutor(min(os.cpu_count() or 1, MOST_PROCESSES), mp_context=context) as pool,
    ):
        grid_plans = [
            training.Plan(method, rate, schedule.grid_seed, schedule.grid_steps, schedule.evaluate_every)
            for method in training.RULES
            for rate in schedule.rates
        ]
        grid = _run(grid_plans, pool, service, progress)
        rates = comparison.best_rates(grid)
        plans = [
            training.Plan(method, rates[method], seed, schedule.steps, schedule.evaluate_every)
            for seed in schedule.seeds
            for method in training.RULES
        ]
        control_plans = [
            training.Plan(training.STOCK, rates[BASELINE], seed, schedule.steps, schedule.evaluate_every)
            for seed in schedule.control_seeds
        ]
        runs = _run([*plans, *control_plans], pool, service, progress)
        killed = _killed(training.Plan("shapley", rates["shapley"], 0, 50, 50), pool, Path(scratch))
    return {
        "settings": settings,
        "machine": machine(),
        "rules": training.RULES,
        "baseline": BASELINE,
        "references": task.references(task.Tables()),
        "rates": rates,
        "comparisons": comparison.comparisons(runs, list(training.RULES), BASELINE, schedule.compared),
        "killed_service": killed,
        "wall_seconds": progress.elapsed,
        "grid": grid,
        "runs": runs,
    }


def _run(
    plans: Iterable[training.Plan], pool: ProcessPoolExecutor, service: Service, progress: Progress
) -> list[dict[str, Any]]:
    """The runs of the plans, in their order; only those that are missing are trained."""
    wanted = list(plans)
    missing = [plan for plan in wanted if plan.name not in progress.runs]
    waiting = {pool.submit(training.train, plan, service.url): plan for plan in missing}
    try:
        for done in as_completed(waiting):
            _keep(waiting[done], done.result(), service, progress)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    return [progress.runs[plan.name] for plan in wanted]


def _keep(plan: training.Plan, run: dict[str, Any], service: Service, progress: Progress) -> None:
    """Check that the service answered every request of a run, and store it."""
    requests = run.pop("request_ids")
    expected = 0 if plan.method == training.STOCK else plan.steps
    run["requests"] = {
        "in_trainer_log": len(requests),
        "in_service_log": service.answered(requests),
        "first": requests[0] if requests else None,
        "last": requests[-1] if requests else None,
    }
    if (run["requests"]["in_trainer_log"], run["requests"]["in_service_log"]) != (expected, expected):
        raise RuntimeError(f"{plan.name}: {run['requests']}; expected {expected} requests in both logs")
    progress.add(plan.name, run)
    last = run["curve"][-1]
    print(
        f"{progress.elapsed:6.0f} s  {plan.name}: max@K {last['max_at_k']:.3f}, {run['seconds_per_step']:.2f} s a step",
        flush=True,
    )


def _killed(plan: training.Plan, pool: ProcessPoolExecutor, scratch: Path) -> dict[str, Any]:
    """What happens to a training whose service is killed."""
    directory = scratch / "killed"
    directory.mkdir()
    with live_service(directory) as service:
        run = pool.submit(training.train, plan, service.url, kill=(service.pid, KILL_AFTER)).result()
    kept = ("steps", "error", "seconds_from_kill_to_end")
    return {"planned_steps": plan.steps, "killed_after_step": KILL_AFTER, "deadline_s": training.DEADLINE_S} | {
        key: run[key] for key in kept
    }


def _digest() -> str:
    """Identity of the task, the model and the training, so that runs of other versions are never mixed."""
    content = b"".join((HERE / name).read_bytes() for name in SOURCES)
    return hashlib.sha256(content).hexdigest()[:16]


def machine() -> dict[str, Any]:
    """The processor and the versions."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "device": "cpu",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "trl", "transformers", "accelerate", "numpy")},
    }


if __name__ == "__main__":
    sys.exit(main())
