"""The demonstration of OAR: GRPO, OAR-G and OAR-P from one checkpoint, by TRL and the live service.

    python trainer_adapters/demo/oar_run.py             # everything; `make demo-oar`
    python trainer_adapters/demo/oar_run.py --quick     # the same path in a few minutes; its numbers mean nothing

The task is in `oar_task`, the protocol in `oar_plans`. The whole run also writes its sections of README.md and OAR.md.
An interrupted run continues where it stopped: what has ended is in the folder `oar_work` until all has.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from transformers import LlamaForCausalLM
from transformers.utils import logging

import oar_comparison
import oar_fidelity
import oar_figure
import oar_model
import oar_readme
import oar_report
import oar_service
import oar_training
import sources
from creditd.client import Client
from live import Service
from oar_plans import BASELINE, DEADLINE_S, FULL, METHODS, MODEL, QUICK, Plan, Schedule
from progress import Progress

HERE = Path(__file__).resolve().parent
MOST_PROCESSES = 4


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, then write oar.json, oar_curves.png, oar_report.md and, of a whole run, both sections."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short run that proves the path and no claim")
    parser.add_argument("--out", type=Path, help="directory of the results")
    parser.add_argument("--report", action="store_true", help="only draw and write again what oar.json holds")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out: Path = options.out or HERE / ("results_quick" if options.quick else "results")
    out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        work = out / "oar_work"
        work.mkdir(exist_ok=True)
        results = _results(QUICK if options.quick else FULL, work, quick=options.quick)
        (out / "oar.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(work)
    results = json.loads((out / "oar.json").read_text(encoding="utf-8"))
    oar_figure.draw(results, out / "oar_curves.png")
    text = oar_report.text(results)
    (out / "oar_report.md").write_text(text, encoding="utf-8")
    if out.resolve() == HERE / "results" and not results["settings"]["quick"]:
        oar_readme.rewrite(HERE.parents[1], results)
    print(text)
    return 0


class Trainings:
    """Trains what is missing, as many at a time as there are services: each training has one for itself."""

    def __init__(
        self,
        pool: ProcessPoolExecutor,
        services: list[oar_service.FragileService],
        checkpoint: Path,
        progress: Progress,
    ) -> None:
        self._pool, self._checkpoint, self._progress = pool, checkpoint, progress
        self._free: SimpleQueue[oar_service.FragileService] = SimpleQueue()
        self._threads = ThreadPoolExecutor(len(services))
        for service in services:
            self._free.put(service)

    def runs(self, plans: Iterable[Plan]) -> list[dict[str, Any]]:
        """The runs of the plans, in their order; a plan that is there twice is one run."""
        wanted = list(dict.fromkeys(plans))
        missing = [plan for plan in wanted if plan.name not in self._progress.runs]
        waiting: dict[Future[dict[str, Any]], Plan] = {self._threads.submit(self._run, plan): plan for plan in missing}
        try:
            for done in as_completed(waiting):
                self._keep(waiting[done], done.result())
        except BaseException:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [self._progress.runs[plan.name] for plan in wanted]

    def _run(self, plan: Plan) -> dict[str, Any]:
        """One run with a service of its own, which is killed half-way if that is what the run is for."""
        fragile = self._free.get()
        try:
            before = fragile.counts()
            training = self._pool.submit(_train, plan, fragile.service, self._checkpoint)
            lost = fragile.lose_request(plan.killed_in_step, before, training.done) if plan.outage else None
            run = training.result()
            if lost is not None:
                run["lost"] = lost
                run["unknown"] = len(oar_service.logged(fragile.service.log, oar_service.OAR_ROUTE, 409))
            run["answered"] = fragile.answered(run.pop("request_ids"))
            return run
        finally:
            self._free.put(fragile)

    def _keep(self, plan: Plan, run: dict[str, Any]) -> None:
        """Check that the service answered one request of each step that had something to ask, and store the run."""
        wanted = 0 if plan.method == BASELINE else len(oar_comparison.asking_steps(run))
        warned = 1 if plan.outage else 0
        if (run["steps"], run["answered"], len(run["warnings"])) != (plan.steps, wanted, warned):
            raise RuntimeError(
                f"{plan.name}: {run['steps']} steps, {run['answered']} requests answered, warnings {run['warnings']}; "
                f"expected {plan.steps} steps, {wanted} requests and {warned} warnings"
            )
        self._progress.add(plan.name, run)
        final = oar_comparison.last_mean(run, "accuracy")
        print(
            f"{self._progress.elapsed:6.0f} s  {plan.name}: accuracy {final:.3f}, {run['seconds']:.0f} s of training",
            flush=True,
        )


def _results(schedule: Schedule, work: Path, *, quick: bool) -> dict[str, Any]:
    """Everything there is to know, from the runs that are there and those that are made now."""
    settings = {
        "quick": quick,
        "schedule": asdict(schedule),
        "sources": sources.digest(sources.files()),
        "versions": sources.versions(),
        "weights": sum(weight.numel() for weight in oar_model.new_policy().parameters()),
        **oar_training.settings(),
    }
    progress = Progress(work / "progress.json", settings)
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    os.environ["OMP_NUM_THREADS"] = "1"  # of services and trainings: there are as many of them as cores
    load = os.getloadavg()[0]
    processes = min(os.cpu_count() or 1, MOST_PROCESSES)
    context = multiprocessing.get_context("spawn")
    checkpoint = work / "checkpoint"
    taught = _kept(progress, "lessons", lambda: _teach(checkpoint, schedule))
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        directory = Path(scratch)
        shutil.copytree(checkpoint, directory / "models" / MODEL)
        config = oar_service.write_config(directory)
        services = [
            stack.enter_context(oar_service.FragileService(directory / f"service_{place}", config))
            for place in range(processes)
        ]
        print(f"{progress.elapsed:6.0f} s  {processes} services listen", flush=True)
        fidelity = _kept(progress, "fidelity", lambda: _study(services[0].service, checkpoint, schedule))
        print(f"{progress.elapsed:6.0f} s  fidelity is known", flush=True)
        pool = stack.enter_context(ProcessPoolExecutor(processes, mp_context=context))
        trainings = Trainings(pool, services, checkpoint, progress)
        grid = trainings.runs(schedule.grid())
        best = oar_comparison.best_rates(grid)
        plans = dict.fromkeys([*schedule.comparison(best), *schedule.baseline(), schedule.outage(best)])
        found = dict(zip(plans, trainings.runs(plans), strict=True))
    runs = [found[plan] for plan in schedule.comparison(best)]
    outage = schedule.outage(best)
    undisturbed = next(run for plan, run in found.items() if _is_same(plan, outage))
    every = [run for run in progress.runs.values() if "method" in run]
    return {
        "settings": settings,
        "machine": sources.machine(),
        "at_a_time": processes,
        "methods": METHODS,
        "lesson_loss": taught["loss"],
        "greedy_at_start": taught["greedy"],
        "fidelity": fidelity,
        "rates": best,
        "comparisons": oar_comparison.comparisons(runs),
        "ratios": oar_comparison.ratios(runs),
        "outage": found[outage],
        "outage_compared": oar_comparison.outage_of(found[outage], undisturbed),
        "load_before": load,
        "wall_seconds": progress.elapsed,
        "processor_seconds": sum(run["processor_seconds"] for run in every),
        "grid": grid,
        "runs": runs,
        "baseline_runs": [found[plan] for plan in schedule.baseline()],
    }


def _kept(progress: Progress, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was made before under a name, or is made now."""
    if name not in progress.runs:
        progress.add(name, make())
    return progress.runs[name]


def _teach(checkpoint: Path, schedule: Schedule) -> dict[str, float]:
    """Make the checkpoint that every training starts from."""
    loss = oar_model.save_checkpoint(checkpoint, schedule.lessons)
    greedy = oar_training.Evaluation().greedy(LlamaForCausalLM.from_pretrained(checkpoint))
    print(f"lessons: loss {loss:.3f}, {greedy:.1%} right when always the most probable token is written", flush=True)
    return {"loss": loss, "greedy": greedy}


def _study(service: Service, checkpoint: Path, schedule: Schedule) -> dict[str, Any]:
    """Fidelity, while the service has the weights of the checkpoint."""
    with Client(service.url, deadline_s=DEADLINE_S) as client:
        return oar_fidelity.study(client, LlamaForCausalLM.from_pretrained(checkpoint), schedule.study_texts)


def _train(plan: Plan, service: Service, checkpoint: Path) -> dict[str, Any]:
    """One run, in a process of the pool; a service that is killed has no processor time to be told."""
    clock = oar_training.nothing if plan.outage else service.processor_seconds
    return oar_training.train(plan, checkpoint, service.url, clock)


def _is_same(plan: Plan, outage: Plan) -> bool:
    """Whether a plan is that of the run whose service is killed, without that."""
    return not plan.outage and (plan.method, plan.rate, plan.seed) == (outage.method, outage.rate, outage.seed)


if __name__ == "__main__":
    sys.exit(main())
