"""The demonstration of SCAR: a reward model of planted causes, and GRPO with five credits against the service.

    python trainer_adapters/demo/scar_run.py             # everything; `make demo-scar`
    python trainer_adapters/demo/scar_run.py --quick     # the same path in a minute; its numbers mean nothing

The task is in `scar_task`, the protocol in `scar_plans`. The whole run also writes its sections of README.md and
SCAR.md. An interrupted run continues where it stopped: what has ended is in `scar_progress.json` until all has.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import scar_comparison
import scar_figure
import scar_models
import scar_readme
import scar_report
import scar_service
import scar_study
import scar_task
import scar_training
import sources
from creditd.client import Client
from live import Service, live_service
from progress import Progress
from scar_plans import (
    BASELINE,
    DEADLINE_S,
    ESTIMATOR,
    FULL,
    METHODS,
    MODEL,
    QUICK,
    SEGMENTATION,
    TARGET,
    Plan,
    Schedule,
)

HERE = Path(__file__).resolve().parent
MOST_PROCESSES = 8


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, then write scar.json, scar_curves.png, scar_report.md and, of a whole run, both sections."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a run of a minute that proves the path and no claim")
    parser.add_argument("--out", type=Path, help="directory of the results")
    parser.add_argument("--report", action="store_true", help="only draw and write again what scar.json holds")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out: Path = options.out or HERE / ("results_quick" if options.quick else "results")
    out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        results = _results(QUICK if options.quick else FULL, out / "scar_progress.json", quick=options.quick)
        (out / "scar.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (out / "scar_progress.json").unlink()
    results = json.loads((out / "scar.json").read_text(encoding="utf-8"))
    scar_figure.draw(results, out / "scar_curves.png")
    text = scar_report.text(results)
    (out / "scar_report.md").write_text(text, encoding="utf-8")
    if out.resolve() == HERE / "results" and not results["settings"]["quick"]:
        scar_readme.rewrite(HERE.parents[1], results)
    print(text)
    return 0


def _results(schedule: Schedule, progress_file: Path, *, quick: bool) -> dict[str, Any]:
    """Everything there is to know, from the runs that are there and those that are made now."""
    settings = {
        "quick": quick,
        "schedule": asdict(schedule),
        "sources": sources.digest(sources.files()),
        "versions": sources.versions(),
        "target": TARGET,
        "segmentation": SEGMENTATION,
        "estimator": ESTIMATOR,
        "weights": sum(weight.numel() for weight in scar_models.new_policy().parameters()),
        **scar_training.settings(),
    }
    progress = Progress(progress_file, settings)
    load = os.getloadavg()[0]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        fit = scar_models.save_reward_model(directory / "models" / MODEL, schedule.reward_model_steps)
        loss = scar_models.save_policy(directory / "checkpoint", schedule.lessons)
        print(f"{progress.elapsed:6.0f} s  reward model: {fit}; lessons of the policy: loss {loss:.3f}", flush=True)
        with (
            live_service(directory, scar_service.write_config(directory)) as service,
            ProcessPoolExecutor(min(os.cpu_count() or 1, MOST_PROCESSES), mp_context=context) as pool,
        ):
            with Client(service.url, deadline_s=DEADLINE_S) as client:
                study = scar_study.judged(client, schedule.study_texts)
                costs = scar_service.costs(service, client, directory / "checkpoint")
            print(f"{progress.elapsed:6.0f} s  {len(study)} credits judged", flush=True)
            grid = _run(schedule.grid(), pool, service, progress)
            best = scar_comparison.best_rates(grid)
            runs = _run(schedule.comparison(best), pool, service, progress)
            baseline_runs = _run(schedule.baseline(), pool, service, progress)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "settings": settings,
        "machine": sources.machine(),
        "methods": METHODS,
        "baseline": BASELINE,
        "best_reward": scar_task.BEST,
        "reward_model": asdict(fit),
        "lesson_loss": loss,
        "study": study,
        "costs": costs,
        "auroc_differences": scar_comparison.auroc_differences(study),
        "rates": best,
        "comparisons": scar_comparison.comparisons(runs),
        "load_before": load,
        "wall_seconds": progress.elapsed,
        "processor_seconds": sum(used.ru_utime + used.ru_stime for used in (usage, own)),
        "grid": grid,
        "runs": runs,
        "baseline_runs": baseline_runs,
        "baseline_apart": False,
    }


def _train(plan: Plan, url: str, checkpoint: Path) -> dict[str, Any]:
    """One run, in a process of the pool."""
    with Client(url, deadline_s=DEADLINE_S) as client:
        return scar_training.train(plan, checkpoint, scar_service.ServiceCredit(client))


def _run(
    plans: Iterable[Plan], pool: ProcessPoolExecutor, service: Service, progress: Progress
) -> list[dict[str, Any]]:
    """The runs of the plans, in their order; only those that are missing are trained."""
    wanted = list(plans)
    checkpoint = service.log.parent / "checkpoint"
    missing = [plan for plan in wanted if plan.name not in progress.runs]
    waiting = {pool.submit(_train, plan, service.url, checkpoint): plan for plan in missing}
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
    answered = service.answered(requests)
    run["requests"] = {"in_training": len(requests), "in_service_log": answered}
    if (len(requests), answered) != (plan.steps, plan.steps):
        raise RuntimeError(f"{plan.name}: {run['requests']}; expected {plan.steps} requests in both")
    progress.add(plan.name, run)
    final = scar_comparison.measures(run)["final"]
    print(f"{progress.elapsed:6.0f} s  {plan.name}: planted reward {final:.2f}, {run['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
