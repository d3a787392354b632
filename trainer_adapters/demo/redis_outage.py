"""Redis is pulled out of a training and put back: the policy is the same to the last bit, and only counters move.

    python trainer_adapters/demo/redis_outage.py             # `make demo-cache`; about three minutes on two cores

A reward model is made for the task and scores the candidates in the service, each set by itself. One training is run
six times from one seed, each time against a new service: without any cache; with an empty Redis; with a full one; with
one that has lost every other utility; with a full one that is frozen in the middle and goes on; with a full one that is
killed in the middle and comes back empty. If a weight of the policy differs, or a number in the trainer's log that is
no counter, this fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from transformers import LlamaForCausalLM

import outage_report
import reward_model
import sources
import training
from live import live_service
from local_redis import LocalRedis
from outage_report import Run
from plans import Plan

HERE = Path(__file__).resolve().parent
MODEL = "rm"
RATE = 1e-3
COUNTED = ("creditd_cache_", "creditd_evaluations_total", "creditd_model_tokens_total", "creditd_engine_seconds_total")
"""Counters of the service that are kept."""
KEPT = "keys in Redis afterwards"
REMEMBERED_SHARE = 0.01
"""Evaluations with a full Redis, as a share of those without one, at most."""


@dataclass(frozen=True)
class Lab:
    """What all runs share.

    Attributes:
        directory: Where the models and the files of the services are.
        plan: What is trained.
        redis: The Redis that is pulled out.
    """

    directory: Path
    plan: Plan
    redis: LocalRedis

    def run(
        self, name: str, cache: Mapping[str, str | int], events: Mapping[int, Callable[[], None]] | None = None
    ) -> Run:
        """One training against a service of its own.

        Args:
            name: What it is called.
            cache: Settings of the service beside its model.
            events: What happens after which step.

        Returns:
            What it leaves behind.

        Raises:
            RuntimeError: If the service did not answer every request of it.
        """
        folder = self.directory / name
        folder.mkdir()
        config = folder / "service.toml"
        lines = [f"{key} = {json.dumps(value)}" for key, value in (("models_root", str(self.models)), *cache.items())]
        config.write_text(
            "\n".join([*lines, "[[models]]", f'id = "{MODEL}"', f'path = "{MODEL}"', ""]), encoding="utf-8"
        )
        weights: list[str] = []

        def after_step(policy: LlamaForCausalLM, step: int) -> None:
            weights.append(digest_of(policy))
            if events and step in events:
                events[step]()

        with live_service(folder, config) as service:
            made = training.trained(self.plan, service.url, reward_model=MODEL, after_step=after_step)
            answered = service.answered(made.record["request_ids"])
            page = httpx.get(f"{service.url}/metrics").raise_for_status().text
        if (len(made.log), answered) != (self.plan.steps, self.plan.steps):
            raise RuntimeError(f"{name}: {len(made.log)} steps and {answered} answers; expected {self.plan.steps} each")
        counted = {**outage_report.samples(page, COUNTED), KEPT: float(self.redis.size())}
        seconds = made.record["seconds_per_step"]
        print(f"{name}: {seconds:.2f} s a step, weights {weights[-1][:16]}", flush=True)
        return Run(name, weights, made.record["curve"], made.log, counted, seconds)

    @property
    def models(self) -> Path:
        """Where the service finds its models."""
        return self.directory / "models"


def digest_of(policy: LlamaForCausalLM) -> str:
    """SHA-256 of the names and the weights of a policy."""
    state = hashlib.sha256()
    for name, weight in policy.state_dict().items():
        state.update(name.encode())
        state.update(weight.detach().contiguous().numpy().tobytes())
    return state.hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Make the model, run every training, compare them, and write what was counted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of each training")
    parser.add_argument("--lost-after", type=int, default=10, help="the step after which Redis is lost")
    parser.add_argument("--back-after", type=int, default=16, help="the step after which it is there again")
    parser.add_argument("--evaluate-every", type=int, default=10, help="steps between evaluations of the policy")
    parser.add_argument("--seed", type=int, default=21, help="of everything that is drawn in a training")
    parser.add_argument("--lessons", type=int, default=reward_model.STEPS, help="steps that the reward model is taught")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "redis_outage.json", help="file of the results")
    options = parser.parse_args(arguments)
    if not 1 <= options.lost_after < options.back_after < options.steps:
        parser.error("expected 1 ≤ --lost-after < --back-after < --steps")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    warnings.filterwarnings("ignore", message="credit took more than", category=RuntimeWarning)  # the tables say it
    plan = Plan("shapley", RATE, options.seed, options.steps, options.evaluate_every)
    with tempfile.TemporaryDirectory() as scratch, LocalRedis(Path(scratch)) as redis:
        lab = Lab(Path(scratch), plan, redis)
        fit = reward_model.save_reward_model(lab.models / MODEL, options.lessons)
        print(
            f"reward model: correlation {fit.correlation:.3f} with the expected rewards of held-out prompts, mean "
            f"absolute error {fit.mean_absolute_error:.3f} of a standard deviation of {fit.standard_deviation:.3f}, "
            f"taught in {fit.seconds:.0f} s",
            flush=True,
        )
        runs = _runs(lab, options.lost_after, options.back_after)
    outage_report.check_same(runs)
    _check_outages(runs)
    results = _results(runs, plan, fit, {"lost_after": options.lost_after, "back_after": options.back_after})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\n{outage_report.text(runs)}")
    return 0


def _runs(lab: Lab, lost_after: int, back_after: int) -> list[Run]:
    """The same training, whatever happens to Redis; that it is killed comes last, because then it is empty."""
    redis = lab.redis
    cache: dict[str, str | int] = {"redis_url": redis.url, "cache_min_evaluation_s": 0}  # the model is a cheap one
    runs = [
        lab.run("no cache", {"cache_bytes": 0}),
        lab.run("empty Redis", cache),
        lab.run("full Redis", cache),
    ]
    redis.forget_half()
    return [
        *runs,
        lab.run("half-full Redis", cache),
        lab.run("frozen", cache, {lost_after: redis.freeze, back_after: redis.thaw}),
        lab.run("killed", cache, {lost_after: redis.kill, back_after: redis.start}),
    ]


def _check_outages(runs: list[Run]) -> None:
    """An outage that nobody noticed would prove nothing, nor would a Redis that nobody read from."""
    none, _, full, half, *lost = runs
    evaluations = {run.name: sum(outage_report.of_steps(run, "credit/evaluations")) for run in runs}
    if evaluations[full.name] > REMEMBERED_SHARE * evaluations[none.name]:
        raise RuntimeError(f"got evaluations {evaluations}; expected hardly any with a full Redis")
    if not evaluations[full.name] < evaluations[half.name] < evaluations[none.name]:
        raise RuntimeError(f"got evaluations {evaluations}; expected some with a half-full Redis")
    for run in lost:
        errors = sum(value for name, value in run.service.items() if name.startswith("creditd_cache_errors_total"))
        if not errors or evaluations[run.name] <= evaluations[full.name]:
            raise RuntimeError(f"{run.name}: {errors:g} errors of Redis, evaluations {evaluations}; expected an outage")


def _results(runs: list[Run], plan: Plan, fit: reward_model.Fit, outage: Mapping[str, int]) -> dict[str, Any]:
    """What is kept of all runs."""
    return {
        "settings": {
            "plan": asdict(plan),
            **outage,
            "sources": sources.digest(sources.files()),
            "versions": sources.versions(),
            **training.settings(),
        },
        "machine": sources.machine(),
        "reward_model": asdict(fit),
        "compared_entries": outage_report.compared(runs[0]),
        "runs": {
            run.name: {
                "weights": run.weights[-1],
                "log": outage_report.log_digest(run),
                "curve": run.curve,
                "seconds_per_step": run.seconds_per_step,
                "longest_request_s": outage_report.longest_request_s(run),
                "counters": outage_report.counters(run),
                "evaluations_of_steps": outage_report.of_steps(run, "credit/evaluations"),
                "from_cache_of_steps": outage_report.of_steps(run, "credit/from_cache"),
            }
            for run in runs
        },
    }


if __name__ == "__main__":
    sys.exit(main())
