"""What OAR costs of a step of GRPO: TRL with the same policy and rollouts, with and without it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.measure import Timing, ratio, timing_of
from benchmarks.oar_workload import FIRST, VOCABULARIES, word
from creditd.adapters.trl_sensitivity import SensitivityConfig, SensitivityGRPOTrainer
from services import running_service

SETTINGS = """
models_root = "{root}"
request_timeout_s = 7200

[[models]]
id = "policy"
path = "policy"
kind = "policy"
max_queued_tokens = 1073741824
"""
PLAIN = "GRPO"
WAYS: dict[str, dict[str, Any] | None] = {
    PLAIN: None,
    "OAR-G, a service": {"model": "policy", "sensitivity": "gradient"},
    "OAR-G, in process": {"in_process": True, "sensitivity": "gradient"},
    "OAR-P, a service": {"model": "policy", "sensitivity": "perturbation"},
    "OAR-P, in process": {"in_process": True, "sensitivity": "perturbation"},
}
GROUP = 8


class StepClock(TrainerCallback):
    """When steps ended, by the wall and by the processor, the service's included."""

    def __init__(self, spent: Callable[[], float]) -> None:
        """Count from now on."""
        self._spent = spent
        self.wall, self.processor = [time.perf_counter()], [spent()]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step ended."""
        self.wall.append(time.perf_counter())
        self.processor.append(self._spent())


@contextmanager
def served(root: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A service that has the policy."""
    (root / "policy.toml").write_text(SETTINGS.format(root=root))
    pid = root / "policy.pid"
    with running_service("--config", str(root / "policy.toml"), directory=root, pid_file=pid) as url:
        yield url, psutil.Process(int(pid.read_text()))


def steps(root: Path, size: str, *, prompt: int, completion: int, timed: int) -> dict[str, Any]:
    """Seconds of steps under each way.

    Args:
        root: Where the policy is, in the folder `policy`.
        size: Of the policy.
        prompt: Tokens of each prompt.
        completion: Tokens of each completion.
        timed: Steps that are timed, after one that is not.

    Returns:
        By way the seconds of a step, and where credit is given its seconds, those of handing over the weights, and its
        share of each step.
    """
    found: dict[str, Any] = {}
    for name, choices in WAYS.items():
        found[name] = _way(root, size, choices, prompt=prompt, completion=completion, timed=timed)
        print(f"{name}: {found[name]['wall'].median_us / 1e6:.1f} s a step", flush=True)
    for name, way in found.items():
        if name != PLAIN:
            way["times_plain"] = ratio(way["wall"], found[PLAIN]["wall"])
            way["times_plain_by_processor_time"] = ratio(way["processor"], found[PLAIN]["processor"])
    return {"prompt": prompt, "completion": completion, "completions": GROUP, "timed": timed, "ways": found}


def _way(
    root: Path, size: str, choices: dict[str, Any] | None, *, prompt: int, completion: int, timed: int
) -> dict[str, Any]:
    if choices is None or "in_process" in choices:
        return _trained(root, size, choices, None, prompt=prompt, completion=completion, timed=timed)
    with served(root) as (url, process):
        choices = {**choices, "url": url, "deadline_s": 3600.0, "push_deadline_s": 3600.0}
        return _trained(root, size, choices, process, prompt=prompt, completion=completion, timed=timed)


def _trained(
    root: Path,
    size: str,
    choices: dict[str, Any] | None,
    service: psutil.Process | None,
    *,
    prompt: int,
    completion: int,
    timed: int,
) -> dict[str, Any]:
    """Train, and say what it took."""

    def spent() -> float:
        times = None if service is None else service.cpu_times()
        return time.process_time() + (0.0 if times is None else times.user + times.system)

    trainer = _trainer(root, size, choices, prompt=prompt, completion=completion, n_steps=1 + timed)
    clock = StepClock(spent)
    trainer.add_callback(clock)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    wall, processor = np.diff(clock.wall)[1:], np.diff(clock.processor)[1:]
    found: dict[str, Any] = {"wall": _timing(wall), "processor": _timing(processor)}
    if choices is None:
        return found
    logged = [entry for entry in trainer.state.log_history if "credit/seconds" in entry][1 : 1 + timed]
    seconds = np.array([entry["credit/seconds"] for entry in logged])
    pushed = np.array([entry.get("credit/push_seconds", 0.0) for entry in logged])
    if len(seconds) != timed:
        raise RuntimeError(f"got credit of {len(seconds)} steps; expected {timed}")
    return found | {
        "credit": _timing(seconds),
        "push": _timing(pushed),
        "share": float(np.median(seconds / wall)),
        "reasoning": float(np.mean([entry.get("credit/reweighted", np.nan) for entry in logged])),
    }


def _trainer(
    root: Path, size: str, choices: dict[str, Any] | None, *, prompt: int, completion: int, n_steps: int
) -> GRPOTrainer:
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    prompts = [
        " ".join(word(number) for number in draw.integers(FIRST, VOCABULARIES[size], prompt)) for _ in range(n_steps)
    ]
    settings = GRPOConfig(
        output_dir=str(root / "out"),
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        per_device_train_batch_size=GROUP,
        num_generations=GROUP,
        max_completion_length=completion,
        max_steps=n_steps,
        logging_steps=1,
        learning_rate=1e-6,
        seed=0,
        disable_tqdm=True,
    )
    arguments = {
        "model": AutoModelForCausalLM.from_pretrained(root / "policy", dtype=torch.float32),
        "args": settings,
        "train_dataset": Dataset.from_dict({"prompt": prompts}),
        "processing_class": AutoTokenizer.from_pretrained(root / "policy"),
        "reward_funcs": [_parity],
    }
    if choices is None:
        return GRPOTrainer(**arguments)
    config = SensitivityConfig(parser="hashes", max_credit_share=None, **choices)
    return SensitivityGRPOTrainer(**arguments, sensitivity=config)


def _parity(completions: list[str], **_: Any) -> list[float]:
    """A reward that differs within a group: the share of words that end with an even digit."""
    return [float(np.mean([text[-1] in "02468" for text in one.split()] or [0.0])) for one in completions]


def _timing(seconds: np.ndarray) -> Timing:
    return timing_of((seconds * 1e6).tolist())
