"""The demonstration: GRPO with six credit rules against the live service, compared over seeds.

    python trainer_adapters/demo/run.py             # everything; `make demo`
    python trainer_adapters/demo/run.py --quick     # the same path in two minutes; its numbers mean nothing

The whole run also writes the README's section. An interrupted run continues where it stopped: every training that
ended is in `progress.json` until all have.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import comparison
import figure
import readme
import report
import sources
import task
import training
from live import Service, live_service
from plans import BASELINE, FULL, QUICK, RULES, STOCK, Plan, Schedule
from progress import Progress

HERE = Path(__file__).resolve().parent
README = HERE.parents[1] / "README.md"
LOST_AFTER = 5
MOST_PROCESSES = 8


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, then write results.json, curves.png, report.md and, of a whole run, the README's section."""
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
    if out.resolve() == HERE / "results" and not results["settings"]["quick"]:
        README.write_text(readme.rewritten(README.read_text(encoding="utf-8"), results), encoding="utf-8")
    print(text)
    return 0


def _results(schedule: Schedule, progress_file: Path, *, quick: bool) -> dict[str, Any]:
    """Everything there is to know, from the runs that are there and those that are made now."""
    settings = {
        "quick": quick,
        "schedule": asdict(schedule),
        "sources": sources.digest(sources.files()),
        "versions": sources.versions(),
        **training.settings(),
    }
    progress = Progress(progress_file, settings)
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as scratch,
        live_service(Path(scratch)) as service,
        ProcessPoolExecutor(min(os.cpu_count() or 1, MOST_PROCESSES), mp_context=context) as pool,
    ):
        grid = _run(schedule.grid(), pool, service, progress)
        best = comparison.best_rates(grid)
        tables = schedule.tables(best)
        runs = _run([*schedule.comparison(best), *schedule.control()], pool, service, progress)
        outages = [_outage(kind, pool, Path(scratch)) for kind in (signal.SIGKILL, signal.SIGSTOP)]
    return {
        "settings": settings,
        "machine": sources.machine(),
        "rules": RULES,
        "baseline": BASELINE,
        "references": task.references(task.Tables()),
        "rates": tables,
        "comparisons": {
            table: comparison.comparisons(comparison.at_rates(runs, rates), list(RULES), BASELINE, schedule.compared)
            for table, rates in tables.items()
        },
        "lost_services": outages,
        "wall_seconds": progress.elapsed,
        "grid": grid,
        "runs": runs,
    }


def _run(
    plans: Iterable[Plan], pool: ProcessPoolExecutor, service: Service, progress: Progress
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


def _keep(plan: Plan, run: dict[str, Any], service: Service, progress: Progress) -> None:
    """Check that the service answered every request of a run, and store it."""
    requests = run.pop("request_ids")
    expected = 0 if plan.method == STOCK else plan.steps
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


def _outage(kind: signal.Signals, pool: ProcessPoolExecutor, scratch: Path) -> dict[str, Any]:
    """What happens to a training whose service is killed, or hangs."""
    plan = Plan("shapley", 1e-3, 0, 50, 50)
    directory = scratch / kind.name
    directory.mkdir()
    with live_service(directory) as service:
        outage = training.Outage(service.pid, LOST_AFTER, kind)
        run = pool.submit(training.train, plan, service.url, outage).result()
    kept = {key: run[key] for key in ("steps", "error", "seconds_to_end")}
    return {"signal": kind.name, "planned_steps": plan.steps, "after_step": LOST_AFTER, **kept}


if __name__ == "__main__":
    sys.exit(main())
