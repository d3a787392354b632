"""OAR by creditd against plain transformers, and what it costs of a step of TRL, in one run.

    PYTHONPATH=client:service:trainer_adapters:tests python -m benchmarks.oar --out FILE [--quick] [--device cuda]

Both sides have the same policy and rows, in float32 on one thread, and OAR-G the same noise. Ways take turns, shuffled;
their sensitivities have to agree before any time counts.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.measure import Timing, device, on_one_thread, parser, ratio, timing_of, versions, write_report
from benchmarks.oar_peer import Noise, PeerModel
from benchmarks.oar_workload import PAD, Shape, Workload, saved_policy, workload
from creditd.engines.model_spec import ModelSpec
from creditd.engines.noise import normal_noise
from creditd.engines.policy_engine import PolicyEngine
from creditd.engines.policy_protocol import ReasonedTokens, SensitivityMethod, SensitivityOptions

PEER, ENGINE = "transformers", "creditd"
WAYS = (PEER, ENGINE)
AGREEMENT = 1e-3
"""Largest difference, as a share of the largest sensitivity of a completion: both are small differences of float32."""
MOST_TIMES = 1.3
"""What OAR-G may cost, of two forward passes and a backward one."""
LEAST_TIMES, LEAST_AT = 2.8, 256
"""What OAR-P has to gain over full forward passes, at a prompt of so many tokens."""
LEAST_SHARE = 0.8
"""Of the ideal ratio, what it has to gain at shorter prompts."""
BATCHES: dict[SensitivityMethod, tuple[int, ...]] = {"perturbation": (8, 32, 64), "gradient": (1, 4, 8)}
TRIED = 64
"""Reasoning tokens of the rows on which the batches of the peer are chosen."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        model: Name of the shape.
        prompts: Tokens of the prompt, one cell each.
        reasoning: Reasoning tokens of each completion.
        conclusion: Tokens between the reasoning and the answer.
        answer: Tokens of the answer.
        completions: Completions of one request, by method.
        rounds: Times that every way is run, by method.
        step_prompt: Tokens of the prompts of TRL.
        step_completion: Tokens of its completions.
        steps: Steps of it that are timed.
    """

    model: str
    prompts: tuple[int, ...]
    reasoning: int
    conclusion: int
    answer: int
    completions: dict[SensitivityMethod, int]
    rounds: dict[SensitivityMethod, int]
    step_prompt: int
    step_completion: int
    steps: int


FULL = Size(
    "9 M", (64, 256), 256, 9, 8, {"perturbation": 1, "gradient": 8}, {"perturbation": 4, "gradient": 9}, 64, 96, 3
)
ON_A_GPU = replace(FULL, model="160 M", completions={"perturbation": 1, "gradient": 32})
QUICK = Size("tiny", (8,), 12, 3, 2, {"perturbation": 2, "gradient": 3}, {"perturbation": 2, "gradient": 2}, 8, 24, 2)


@dataclass
class Found:
    """Sensitivities of one run of one way, and what it took.

    Attributes:
        values: One array per completion.
        wall_s: Seconds.
        processor_s: Seconds of processor time.
        usage: What the engine counted, or nothing.
    """

    values: Sequence[np.ndarray]
    wall_s: float
    processor_s: float
    usage: dict[str, Any]


class Measured:
    """The policy on both sides."""

    def __init__(self, root: Path, on: str) -> None:
        """Load it twice on a device: for the peer, and into the engine."""
        model = AutoModelForCausalLM.from_pretrained(root / "policy", dtype=torch.float32).to(on)
        model.eval().requires_grad_(requires_grad=False)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.engine = PolicyEngine.load(
            ModelSpec("policy", Path("policy"), kind="policy", device=on, max_queued_tokens=1 << 30), root
        )
        self.peer = PeerModel(model)

    def cell(self, size: Size, method: SensitivityMethod, prompt: int) -> dict[str, Any]:
        """Both ways on one workload."""
        shape = Shape(prompt, size.reasoning, size.conclusion, size.answer)
        work = workload(size.model, shape, size.completions[method])
        batches = {str(batch): self._batch_s(size, method, work, batch) for batch in BATCHES[method]}
        best = min(BATCHES[method], key=lambda batch: batches[str(batch)])
        ways: dict[str, Callable[[], tuple[Sequence[np.ndarray], dict[str, Any]]]] = {
            PEER: lambda: (self._peer_values(method, work, best), {}),
            ENGINE: lambda: self._engine_values(method, work),
        }
        first = {name: self._run(way) for name, way in ways.items()}
        difference = max(map(_difference, first[ENGINE].values, first[PEER].values))
        if not difference <= AGREEMENT:
            raise RuntimeError(f"sensitivities differ by more than {AGREEMENT}: got {difference}")
        shuffled, runs = np.random.default_rng(0), {name: list[Found]() for name in ways}
        for number in range(size.rounds[method]):
            for name in shuffled.permutation(list(ways)).tolist():
                runs[name].append(self._run(ways[name]))
                run = runs[name][-1]
                print(
                    f"{method}, prompt {prompt}, round {number}: {name} {run.wall_s:.2f} s, processor "
                    f"{run.processor_s:.2f} s",
                    flush=True,
                )
        return {
            "method": method,
            "prompt": prompt,
            "batches_s": batches,
            "best_batch": best,
            "difference": difference,
            "allowed_difference": AGREEMENT,
            **self._summary(method, work, runs),
        }

    def _summary(self, method: SensitivityMethod, work: Workload, runs: dict[str, list[Found]]) -> dict[str, Any]:
        """The figures of one workload."""
        wall = {name: timing_of([run.wall_s * 1e6 for run in found]) for name, found in runs.items()}
        processor = {name: timing_of([run.processor_s * 1e6 for run in found]) for name, found in runs.items()}
        shape, times_of = work.shape, ratio if method == "perturbation" else _inverse
        found: dict[str, Any] = {
            "reasoning": shape.reasoning,
            "conclusion": shape.conclusion,
            "answer": shape.answer,
            "completions": len(work.prompts),
            "wall": wall,
            "processor": processor,
            "times": times_of(wall[PEER], wall[ENGINE]),
            "times_by_processor_time": times_of(processor[PEER], processor[ENGINE]),
            "tokens_computed": runs[ENGINE][-1].usage["tokens_computed"],
            "tokens_of_the_peer": self.peer.n_tokens,
        }
        if method == "gradient":
            return found | {"most_times": MOST_TIMES}
        ideal = shape.full_tokens / shape.distinct_tokens
        least = LEAST_TIMES if shape.prompt >= LEAST_AT else LEAST_SHARE * ideal
        share = found["times"]["of_medians"] / ideal
        return found | {"ideal_ratio": ideal, "share_of_ideal": share, "least_times": least}

    def _engine_values(self, method: SensitivityMethod, work: Workload) -> tuple[Sequence[np.ndarray], dict[str, Any]]:
        """Sensitivities as the route has them: prepared, and asked with one future."""
        places = np.arange(work.shape.reasoning, dtype=np.int64)
        items = [
            ReasonedTokens(prompt, completion, places, work.shape.answer_range)
            for prompt, completion in zip(work.prompts, work.completions, strict=True)
        ]
        prepared = self.engine.prepared_sensitivities(items, options_of(method))
        measured = self.engine.sensitivities(prepared).result()
        if measured.failures:
            raise RuntimeError(f"some completions have no sensitivities: {measured.failures}")
        return measured.sensitivities, vars(measured.usage)

    def _peer_values(self, method: SensitivityMethod, work: Workload, batch: int) -> Sequence[np.ndarray]:
        if method == "perturbation":
            return self.peer.perturbed(work, batch)
        return self.peer.gradients(work, batch, noise_of(options_of(method)))

    def _batch_s(self, size: Size, method: SensitivityMethod, work: Workload, batch: int) -> float:
        """Processor seconds of the peer for a part of the work, the better of two."""
        shape = Shape(work.shape.prompt, min(TRIED, work.shape.reasoning), work.shape.conclusion, work.shape.answer)
        part = workload(size.model, shape, len(work.prompts)) if method == "perturbation" else work
        times = []
        for _ in range(2):
            start = time.process_time()
            self._peer_values(method, part, batch)
            times.append(time.process_time() - start)
        return min(times)

    @staticmethod
    def _run(way: Callable[[], tuple[Sequence[np.ndarray], dict[str, Any]]]) -> Found:
        begun, own = time.perf_counter(), time.process_time()
        values, usage = way()
        return Found(values, time.perf_counter() - begun, time.process_time() - own, usage)


def options_of(method: SensitivityMethod) -> SensitivityOptions:
    """What both sides measure."""
    return SensitivityOptions(method, perturbation_id=PAD if method == "perturbation" else None)


def noise_of(options: SensitivityOptions) -> Noise:
    """The noise of the engine, so that both sides differentiate at the same place."""
    return lambda count, width: options.noise_std * torch.from_numpy(normal_noise(options.seed, 0, count, width))


def _inverse(peer: Timing, ours: Timing) -> dict[str, float]:
    """How many times the peer's time ours is, by the medians and by the quartiles that are worst for us."""
    return {name: 1 / value for name, value in ratio(peer, ours).items()}


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, as a share of the largest sensitivity."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def measured(size: Size, root: Path, on: str) -> dict[str, Any]:
    """Every figure; steps of TRL on a processor alone."""
    saved_policy(root / "policy", size.model)
    both = Measured(root, on)
    cells = [both.cell(size, method, prompt) for method in BATCHES for prompt in size.prompts]
    both.engine.close()
    found = {"parameters": both.parameters, "cells": cells}
    if on != "cpu":
        return found
    from benchmarks.oar_steps import steps  # a machine with a GPU has no TRL

    of_steps = steps(root, size.model, prompt=size.step_prompt, completion=size.step_completion, timed=size.steps)
    return found | {"steps": of_steps}


def shown(report: dict[str, Any]) -> None:
    """Print the figures that decide."""
    for cell in report["cells"]:
        wanted = f"≤ {cell['most_times']}" if "most_times" in cell else f"≥ {cell['least_times']:.2f}"
        print(
            f"{cell['method']}, prompt {cell['prompt']}: {cell['times']['of_medians']:.2f}× by time, "
            f"{cell['times_by_processor_time']['of_medians']:.2f}× by processor time, wanted {wanted}; "
            f"differences {cell['difference']:.1e}"
        )
    for name, way in report["steps"]["ways"].items() if "steps" in report else ():
        if "share" in way:
            print(f"{name}: {way['share']:.0%} of a step")


def accelerator(on: str) -> dict[str, str] | None:
    """What a GPU is called; None without one."""
    return {"name": torch.cuda.get_device_name()} if on == "cuda" else None


def main() -> None:
    """Measure, print and write."""
    on_one_thread()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    made = parser("OAR, against plain transformers")
    made.add_argument("--quick", action="store_true", help="a tiny model and short texts, to see that everything runs")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the policy runs")
    options = made.parse_args()
    size = QUICK if options.quick else FULL if options.device == "cpu" else ON_A_GPU
    with tempfile.TemporaryDirectory() as root:
        found = measured(size, Path(root), options.device)
    report = {
        "benchmark": "oar",
        "versions": versions(["torch", "transformers", "trl", "numpy"]),
        "model": size.model,
        "dtype": "float32",
        "rounds": size.rounds,
        **found,
        "device": device() | {"accelerator": accelerator(options.device)},
    }
    shown(report)
    write_report(options.out, report)


if __name__ == "__main__":
    main()
