"""SCAR by creditd, in process and over HTTP, against a loop over `shap` and transformers, in one run.

    PYTHONPATH=client:service:tests python -m benchmarks.scar --out FILE [--quick]

Both sides have the same model, texts, spans and balanced tree, in float32 on one thread. Ways take turns, shuffled;
their values have to agree before any time counts. A service of its own listens on loopback.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.measure import device, on_one_thread, parser, ratio, timing_of, versions, write_report
from benchmarks.scar_peer import PeerLoop
from benchmarks.scar_workload import SPAN, Workload, saved_model, workload
from creditd.credit.span_credit import SpanBatch
from creditd.credit.span_items import SpanItem, SpanOptions
from creditd.credit.text_segments import segment_ends
from creditd.credit.text_units import units_of_segments
from creditd.engines.model_spec import ModelSpec
from creditd.engines.protocol import EngineUsage
from creditd.engines.reward_engine import RewardEngine
from creditd.scoring.span_utilities import CompletionText, SpanUtilities
from services import running_service

AGREEMENT = 1e-4
"""Largest difference of values, as a share of the largest value of the completion."""
ASKED = 5.0
PEER_DEFAULT, PEER_BEST = "shap, its own batches", "shap, its best batches"
IN_PROCESS, HTTP, WARM = "creditd, in process", "creditd, HTTP", "creditd, HTTP, remembered"
BATCHES: tuple[int | str, ...] = ("auto", 32, 64, 256)
SETTINGS = """
models_root = "{root}"
max_evaluations = 1048576
max_span_characters = 1073741824
request_timeout_s = 7200
{models}
"""
MODEL = """
[[models]]
id = "{id}"
path = "rm"
max_queued_tokens = 1073741824
cache = {cache}
"""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        model: Name of the shape.
        prompts: Tokens of the prompt, one cell each.
        completions: Completions of one prompt.
        spans: Spans of each.
        rounds: Times that every way is run.
        long_spans: Spans of the long completion.
        many_prompts: Prompts of the large request, of eight completions each.
        many_spans: Spans of its completions.
    """

    model: str
    prompts: tuple[int, ...]
    completions: int
    spans: int
    rounds: int
    long_spans: int
    many_prompts: int
    many_spans: int


FULL = Size("9 M", (64, 256), 8, 16, 3, 500, 4, 24)
QUICK = Size("tiny", (16,), 2, 4, 2, 30, 1, 5)


@dataclass
class Found:
    """Values of one run of one way, and what it took.

    Attributes:
        values: One array per completion.
        wall_s: Seconds.
        processor_s: Seconds of processor time, of the service too where there is one.
        usage: What the service counted, or nothing.
    """

    values: list[np.ndarray]
    wall_s: float
    processor_s: float
    usage: dict[str, Any]


class Service:
    """A service that has the model twice, with and without memory."""

    def __init__(self, url: str, pid: int) -> None:
        """Connect."""
        self._client = httpx.Client(base_url=url, timeout=None)  # noqa: S113 - minutes on a slow machine
        self._process = psutil.Process(pid)

    @property
    def processor_s(self) -> float:
        """Seconds of processor time that the service took."""
        spent = self._process.cpu_times()
        return spent.user + spent.system

    def ask(self, work: Workload, model: str) -> tuple[list[np.ndarray], dict[str, Any], dict[str, Any]]:
        """Values and usage of one request in JSON, and the first item of its answer."""
        items = [
            {"prompt": prompt, "completion": text, "token_offsets": offsets.tolist()}
            for prompt, text, offsets in zip(work.prompts, work.completions, work.offsets, strict=True)
        ]
        body = {"model": model, "items": items, "credit": {"type": "owen"}}
        response = self._client.post("/v1/credit/scar", json=body)
        response.raise_for_status()
        answer = response.json()
        return [np.array(item["unit_values"]) for item in answer["items"]], answer["usage"], answer["items"][0]


@contextmanager
def served(root: Path) -> Iterator[Service]:
    """The service, on a free port."""
    models = "".join(MODEL.format(id=name, cache=cache) for name, cache in (("cold", "false"), ("warm", "true")))
    (root / "service.toml").write_text(SETTINGS.format(root=root, models=models))
    pid = root / "pid"
    with running_service("--config", str(root / "service.toml"), directory=root, pid_file=pid) as url:
        yield Service(url, int(pid.read_text()))


def in_process(engine: RewardEngine, work: Workload) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Values by the use case that the route calls, without the route."""
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(work.prompts))}
    prompts = np.array([numbers[prompt] for prompt in work.prompts])
    units = [
        units_of_segments(len(text), segment_ends(text, "span"), offsets, max_units=24)
        for text, offsets in zip(work.completions, work.offsets, strict=True)
    ]
    batch = SpanBatch([SpanItem(one) for one in units], prompts, prompts, SpanOptions(value="owen"))
    texts = [CompletionText(text, one.characters, "") for text, one in zip(work.completions, units, strict=True)]
    questions = SpanUtilities(batch, list(numbers), texts, filler="", most_characters=1 << 40)
    usage = EngineUsage()
    while asked := questions.ask():
        scored = engine.submit(engine.prepared(asked)).result()
        usage += scored.usage
        questions.tell(scored)
    found = questions.answer()
    return [item.values for item in found.items], vars(usage)


class Measured:
    """The model on both sides."""

    def __init__(self, root: Path, service: Service, tokenizer: PreTrainedTokenizerFast, rounds: int) -> None:
        """Load the model twice: for the loop, and into the engine of this process."""
        model = AutoModelForSequenceClassification.from_pretrained(root / "rm", dtype=torch.float32).eval()
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.engine = RewardEngine.load(ModelSpec("rm", Path("rm"), max_queued_tokens=1 << 30), root)
        self.peer = PeerLoop(model, tokenizer)
        self._service, self._rounds = service, rounds

    def cell(self, work: Workload, prompt: int) -> dict[str, Any]:
        """Every way on one workload."""
        batches = {str(batch): self._batch_s(work, batch) for batch in BATCHES}
        best = min(BATCHES, key=lambda batch: batches[str(batch)])
        ways: dict[str, Callable[[], tuple[list[np.ndarray], dict[str, Any]]]] = {
            PEER_DEFAULT: lambda: self._looped(work, "auto"),
            PEER_BEST: lambda: self._looped(work, best),
            IN_PROCESS: lambda: in_process(self.engine, work),
            HTTP: lambda: self._service.ask(work, "cold")[:2],
            WARM: lambda: self._service.ask(work, "warm")[:2],
        }
        first = {name: self._run(way) for name, way in ways.items()}
        differences = {
            name: max(_difference(*pair) for pair in zip(found.values, first[PEER_DEFAULT].values, strict=True))
            for name, found in first.items()
        }
        if max(differences.values()) > AGREEMENT:
            raise RuntimeError(f"values differ by more than {AGREEMENT} of the largest: got {differences}")
        shuffled, runs = np.random.default_rng(0), {name: list[Found]() for name in ways}
        for number in range(self._rounds):
            for name in shuffled.permutation(list(ways)).tolist():
                runs[name].append(self._run(ways[name]))
                print(f"prompt {prompt}, round {number}: {name} {runs[name][-1].wall_s:.2f} s", flush=True)
        return self._summary(prompt, runs, differences) | {"batches_s": batches, "best_batch": best}

    def _summary(self, prompt: int, runs: dict[str, list[Found]], differences: dict[str, float]) -> dict[str, Any]:
        """The figures of one workload."""
        wall = {name: timing_of([run.wall_s * 1e6 for run in found]) for name, found in runs.items()}
        processor = {name: timing_of([run.processor_s * 1e6 for run in found]) for name, found in runs.items()}
        usage, looped = runs[HTTP][-1].usage, runs[PEER_DEFAULT][-1].usage
        fastest = min((PEER_DEFAULT, PEER_BEST), key=lambda name: wall[name].median_us)
        ideal = looped["tokens"] / usage["tokens_computed"]
        speed_ups = {}
        for name in (IN_PROCESS, HTTP, WARM):
            speed_ups[name] = {
                "of_default": ratio(wall[PEER_DEFAULT], wall[name]),
                "of_fastest": ratio(wall[fastest], wall[name]),
                "of_fastest_by_processor_time": ratio(processor[fastest], processor[name]),
            }
            speed_ups[name]["share_of_ideal"] = speed_ups[name]["of_fastest"]["of_medians"] / ideal
        warm = runs[WARM][-1].usage
        return {
            "prompt": prompt,
            "completions": len(runs[HTTP][-1].values),
            "spans": len(runs[HTTP][-1].values[0]),
            "wall": wall,
            "processor": processor,
            "fastest_peer": fastest,
            "speed_ups": speed_ups,
            "asked": ASKED,
            "evaluations": usage["evaluations"],
            "evaluations_of_the_loop": looped["texts"],
            "tokens_computed": usage["tokens_computed"],
            "tokens_naive": looped["tokens"],
            "tokens_padded": {name: runs[name][-1].usage["padded"] for name in (PEER_DEFAULT, PEER_BEST)},
            "ideal_ratio": ideal,
            "remembered": {"evaluations": warm["evaluations"], "from_cache": warm["from_cache"]},
            "differences": differences,
            "allowed_difference": AGREEMENT,
        }

    def _looped(self, work: Workload, batch: int | str) -> tuple[list[np.ndarray], dict[str, Any]]:
        values = self.peer.values(work.prompts, work.spans, batch)
        peer = self.peer
        counted = {"texts": peer.n_texts, "tokens": peer.n_tokens, "padded": peer.n_padded, "passes": peer.n_passes}
        return values, counted

    def _batch_s(self, work: Workload, batch: int | str) -> float:
        """Seconds of the loop for one completion, the better of two."""
        times = []
        for _ in range(2):
            start = time.perf_counter()
            self.peer.values(work.prompts[:1], work.spans[:1], batch)
            times.append(time.perf_counter() - start)
        return min(times)

    def _run(self, way: Callable[[], tuple[list[np.ndarray], dict[str, Any]]]) -> Found:
        begun, own, service = time.perf_counter(), time.process_time(), self._service.processor_s
        values, usage = way()
        spent = time.process_time() - own + self._service.processor_s - service
        return Found(values, time.perf_counter() - begun, spent, usage)

    def cost(self, what: str, work: Workload, repeats: int) -> dict[str, Any]:
        """What one request costs that has no peer here."""
        usage: dict[str, Any] = {}
        item: dict[str, Any] = {}
        wall, processor = [], []
        for _ in range(repeats):
            begun, before = time.perf_counter(), self._service.processor_s
            _, usage, item = self._service.ask(work, "cold")
            wall.append((time.perf_counter() - begun) * 1e6)
            processor.append((self._service.processor_s - before) * 1e6)
        print(f"{what}: {wall[-1] / 1e6:.1f} s", flush=True)
        return {
            "what": what,
            "completions": len(work.completions),
            "tokens": len(work.offsets[0]),
            "units": len(item["units"]),
            "method": item["method"],
            "flags": item["flags"],
            "wall": timing_of(wall),
            "processor": timing_of(processor),
            **{key: usage[key] for key in ("evaluations", "tokens_computed", "tokens_naive")},
        }


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, as a share of the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def measured(size: Size, root: Path) -> dict[str, Any]:
    """Every figure."""
    tokenizer = saved_model(root / "rm", size.model)
    with served(root) as service:
        both = Measured(root, service, tokenizer, size.rounds)
        cells = []
        for prompt in size.prompts:
            work = workload(tokenizer, prompt=prompt, spans=size.spans, per_prompt=size.completions)
            cells.append(both.cell(work, prompt))
        shortest = size.prompts[0]
        long = workload(tokenizer, prompt=shortest, spans=size.long_spans, per_prompt=1)
        many = workload(
            tokenizer, prompt=shortest, spans=size.many_spans, per_prompt=8, prompts=size.many_prompts, seed=1
        )
        costs = [
            both.cost(f"a completion of {SPAN * size.long_spans:,} tokens", long, 1),
            both.cost(f"{8 * size.many_prompts} completions of {size.many_spans} units", many, 1),
        ]
        both.engine.close()
    return {"parameters": both.parameters, "cells": cells, "costs": costs, "prompt_of_costs": shortest}


def shown(cells: Sequence[dict[str, Any]]) -> None:
    """Print the figures that decide."""
    for cell in cells:
        for name, found in cell["speed_ups"].items():
            print(
                f"prompt {cell['prompt']}, {name}: {found['of_fastest']['of_medians']:.1f}× the fastest loop "
                f"({found['of_fastest']['of_nearest_quartiles']:.1f}), {found['share_of_ideal']:.0%} of "
                f"{cell['ideal_ratio']:.1f}×; {cell['remembered']}, differences {cell['differences'][name]:.1e}"
            )


def main() -> None:
    """Measure, print and write."""
    on_one_thread()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    made = parser("SCAR, against a loop over shap")
    made.add_argument("--quick", action="store_true", help="a tiny model and short texts, to see that everything runs")
    options = made.parse_args()
    size = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as root:
        found = measured(size, Path(root))
    report = {
        "benchmark": "scar",
        "versions": versions(["torch", "transformers", "shap", "numpy", "fastapi"]),
        "model": size.model,
        "dtype": "float32",
        "rounds": size.rounds,
        **found,
        "device": device(),
    }
    shown(found["cells"])
    write_report(options.out, report)


if __name__ == "__main__":
    main()
