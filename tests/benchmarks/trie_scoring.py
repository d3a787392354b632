"""Scoring all coalitions of a completion by the trie of their prefixes, against batches, in one run.

    PYTHONPATH=client:service:tests python tests/benchmarks/trie_scoring.py --out FILE [--device cuda] [--quick]

torch and transformers have to be importable, and nothing else beside NumPy. Models have the shapes of Qwen3 reward
models and random weights, on which time does not depend. Peers: batches of 32 variants in random order, padded to the
longest; and batches of like length by a budget of tokens, as the engine asks models that read no tries. Where it would
take very long the peers score every second or fourth variant, and their time is taken as many times.
"""

from __future__ import annotations

import itertools
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import Qwen3ForSequenceClassification

from benchmarks.measure import Timing, device, on_one_thread, parser, ratio, repeated, versions, write_report
from creditd.engines.model_spec import HeadChoice, ModelSpec
from creditd.engines.reading import CHUNK_ON_A_PROCESSOR
from creditd.engines.reward_scorers import LengthScorer, TrieScorer, Variants
from creditd.engines.self_check import ALLOWED_SPREAD, least_spread
from engines.shapes import VOCABULARY, masks_of, reward_model

SPAN, BATCH, REPEATS = 8, 32, 3
BUDGET = {"cpu": ModelSpec.batch_tokens, "cuda": 16384}
CHUNK = {"cpu": CHUNK_ON_A_PROCESSOR, "cuda": ModelSpec.batch_tokens}
LONGEST = 1024
EXPECTED = {("exact 2^8", 256): 15, ("exact 2^8", 512): 25, ("Owen 16", 256): 6, ("Owen 16", 512): 9}
"""How many times as fast as padded batches the trie has to be, shape 9 M on a processor."""
DENSE_BF16_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Rates of multiplication of dense matrices by the vendor's datasheets, SXM parts: assumed and not measured."""
MATRIX = 8192


def exact(n: int) -> list[tuple[bool, ...]]:
    """All coalitions of n units."""
    return list(itertools.product([False, True], repeat=n))


def owen(n: int) -> list[tuple[bool, ...]]:
    """Coalitions that Owen values over a binary tree of n units ask for."""
    found = set()

    def visit(low: int, high: int, around: frozenset[int]) -> None:
        found.update(
            tuple(unit in around or (inside and low <= unit < high) for unit in range(n)) for inside in (False, True)
        )
        if high - low > 1:
            middle = (low + high) // 2
            left, right = frozenset(range(low, middle)), frozenset(range(middle, high))
            for part, other in (((low, middle), right), ((middle, high), left)):
                visit(*part, around)
                visit(*part, around | other)

    visit(0, n, frozenset())
    return sorted(found)


KINDS: dict[str, tuple[Callable[[int], list[tuple[bool, ...]]], int]] = {
    "exact 2^8": (exact, 8),
    "Owen 16": (owen, 16),
    "Owen 32": (owen, 32),
    "exact 2^4": (exact, 4),
    "Owen 4": (owen, 4),
}


@dataclass(frozen=True)
class Cell:
    """One model, one kind of coalitions, one length of prompt; peers score one variant of so many."""

    size: str
    kind: str
    prompt: int
    sampled: int = 1


def cells_of(options: Namespace) -> list[Cell]:
    """What is measured: everything, a few small cells, or one."""
    if options.quick:
        return [Cell("tiny", "exact 2^4", 16), Cell("tiny", "Owen 4", 16)]
    if options.cell:
        size, kind, prompt = options.cell.split(",")
        return [Cell(size, kind, int(prompt))]
    kinds = (("exact 2^8", 1), ("Owen 16", 1), ("Owen 32", 4))
    sizes, prompts = (("9 M",), (64, 256, 512)) if options.device == "cpu" else (("34 M", "160 M", "1.7 B"), (256, 512))
    cells = [Cell(size, kind, prompt, of) for size in sizes for kind, of in kinds for prompt in prompts]
    if options.device == "cpu":
        return [*cells, Cell("34 M", "Owen 16", 256, 2)]
    return [*cells, Cell("8 B", "exact 2^8", 512), Cell("8 B", "Owen 16", 512)]


def variants_of(kind: str, prompt_length: int) -> list[np.ndarray]:
    """A prompt with the spans of each coalition, in random order."""
    coalitions, n = KINDS[kind]
    random = np.random.default_rng(0)
    prompt = random.integers(1, VOCABULARY, prompt_length)
    spans = [random.integers(1, VOCABULARY, SPAN) for _ in range(n)]
    rows = [np.concatenate([prompt, *itertools.compress(spans, present)]) for present in coalitions(n)]
    return [rows[place] for place in random.permutation(len(rows))]


def padded(model: Qwen3ForSequenceClassification, rows: list[np.ndarray]) -> np.ndarray:
    """Scores by batches in the order of the rows, each padded to its longest."""
    scores = np.empty(len(rows))
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        tokens = torch.zeros((len(batch), max(map(len, batch))), dtype=torch.long)
        present = torch.zeros_like(tokens)
        for place, row in enumerate(batch):
            tokens[place, : len(row)], present[place, : len(row)] = torch.from_numpy(row), 1
        tokens, present = tokens.to(model.device), present.to(model.device)
        with torch.inference_mode():
            logits = model(input_ids=tokens, attention_mask=present, use_cache=False).logits
        scores[start : start + BATCH] = logits[:, 0].double().cpu().numpy()
    return scores


class Measured:
    """A loaded shape, and what is measured of it."""

    def __init__(self, size: str, where: str, repeats: int) -> None:
        self.model = reward_model(size, torch.float32 if where == "cpu" else torch.bfloat16, where)
        self._repeats = repeats
        kind = "dense" if where == "cpu" else "blocks"
        masks = masks_of(self.model, kind, CHUNK[where], LONGEST)
        self._trie = TrieScorer(self.model, HeadChoice(), most_nodes=CHUNK[where], masks=masks)
        self._budget = LengthScorer(self.model, HeadChoice(), most_tokens=BUDGET[where], pad_id=0)

    def cell(self, cell: Cell) -> dict[str, Any]:
        """Times of the three ways, and how far their scores differ."""
        rows, sampled = variants_of(cell.kind, cell.prompt), cell.sampled
        few = rows[::sampled]
        # A work is made anew each time, so that its trie is built in the time that is taken. Scores come back to the
        # processor, so that a GPU has done all its work by then.
        trie, by_trie = self._timed(lambda: self._trie.score([Variants(tuple(rows))], lambda: None)[0])
        plain, by_padded = self._timed(lambda: padded(self.model, few), of=sampled)
        budget, by_budget = self._timed(lambda: self._budget.score([Variants(tuple(few))], lambda: None)[0], of=sampled)
        difference = float(np.abs(by_trie[::sampled] - by_budget).max())
        spread = float(np.abs(by_padded - by_budget).max())
        allowed = ALLOWED_SPREAD * max(spread, least_spread(self.model.dtype, by_budget))
        work = Variants(tuple(rows))
        n_computed = self._trie.n_tokens(work)
        expected = EXPECTED.get((cell.kind, cell.prompt)) if cell.size == "9 M" else None
        found = {
            "model": cell.size,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "kind": cell.kind,
            "prompt": cell.prompt,
            "variants": len(rows),
            "sampled": sampled,
            "tokens_computed": n_computed,
            "tokens_naive": work.n_naive,
            "token_ratio": work.n_naive / n_computed,
            "flops": self._flops(work),
            "trie": trie,
            "padded": plain,
            "budget": budget,
            "times_padded": ratio(plain, trie),
            "times_budget": ratio(budget, trie),
            "expected_times_padded": expected,
            "largest_difference": difference,
            "spread": spread,
            "agrees": difference <= allowed,
        }
        print(
            f"{cell.size}, {cell.kind}, prompt {cell.prompt}: trie {trie.median_us / 1e3:.1f} ms, padded "
            f"{found['times_padded']['of_medians']:.1f}×, budget {found['times_budget']['of_medians']:.1f}×, tokens "
            f"{found['token_ratio']:.1f}×, difference {difference:.1e}",
            flush=True,
        )
        return found

    def _timed(self, work: Callable[[], np.ndarray], of: int = 1) -> tuple[Timing, np.ndarray]:
        """Time of all variants, where the work is one of so many parts of them, and its scores."""
        scores: list[np.ndarray] = []
        # On a GPU the first call chooses kernels; on a processor it would be a quarter of the time for nothing.
        warm_up = int(self.model.device.type == "cuda")
        taken = repeated(lambda: scores.append(work()), repeats=self._repeats, warm_up=warm_up)
        names = ("median_us", "lower_quartile_us", "upper_quartile_us")
        return replace(taken, **{name: getattr(taken, name) * of for name in names}), scores[-1]

    def _flops(self, work: Variants) -> float:
        """Operations of the layers for each distinct prefix once: matrices, and attention to its own ancestors."""
        layers, config = self.model.base_model.layers, self.model.config
        matrices = sum(weights.numel() for weights in layers.parameters() if weights.dim() == 2)
        pairs = int((work.trie.depths + 1).sum())
        attention = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * pairs
        return float(2 * matrices * len(work.trie) + attention)


def matrix_rate() -> float:
    """Operations per second of one multiplication of large bf16 matrices on the GPU, median of 20."""
    first, second = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(25):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        first @ second
        ended.record()
        torch.cuda.synchronize()
        times.append(begun.elapsed_time(ended) / 1e3)
    return float(2 * MATRIX**3 / np.median(times[5:]))


def accelerator(where: str) -> dict[str, Any] | None:
    """The GPU, the rate of matrices that it is assumed to have, and the one measured here; None on a processor."""
    if where == "cpu":
        return None
    name = torch.cuda.get_device_name()
    assumed = next((rate for part, rate in DENSE_BF16_FLOPS.items() if part in name), None)
    return {"name": name, "assumed_bf16_flops": assumed, "measured_bf16_flops": matrix_rate()}


def with_shares(found: dict[str, Any], gpu: dict[str, Any] | None) -> dict[str, Any]:
    """Beside the figures of a cell: which share of a GPU's rate of matrices the trie reached on what it computed."""
    if gpu is None:
        return found
    reached = found["flops"] / (found["trie"].median_us / 1e6)
    shares = {
        f"share_of_{rate}": reached / gpu[f"{rate}_bf16_flops"] if gpu[f"{rate}_bf16_flops"] else None
        for rate in ("assumed", "measured")
    }
    return {**found, **shares}


def main() -> None:
    """Measure, print and write."""
    on_one_thread()
    made = parser("Scoring by tries, against padded batches")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--quick", action="store_true", help="two small cells, to see that everything runs")
    made.add_argument("--cell", help='one cell alone: "9 M,Owen 16,256"')
    options = made.parse_args()
    torch.set_num_threads(1)
    gpu = accelerator(options.device)
    report: dict[str, Any] = {
        "benchmark": "trie_scoring",
        "versions": versions(["torch", "transformers", "numpy"]),
        "dtype": "float32" if options.device == "cpu" else "bfloat16",
        "masks": "dense" if options.device == "cpu" else "blocks",
        "chunk": CHUNK[options.device],
        "batch": BATCH,
        "budget": BUDGET[options.device],
        "cells": [],
        "device": {**device(), "accelerator": gpu},
    }
    for size, group in itertools.groupby(cells_of(options), key=lambda cell: cell.size):
        measured = Measured(size, options.device, 1 if options.quick else REPEATS)
        report["cells"] += [with_shares(measured.cell(cell), gpu) for cell in group]
        del measured
        # After each model, so that one which does not fit takes nothing from the others.
        report["device"] = {**device(), "accelerator": gpu}
        write_report(options.out, report)
    wrong = [f"{cell['model']}, {cell['kind']}, {cell['prompt']}" for cell in report["cells"] if not cell["agrees"]]
    if wrong:
        raise SystemExit(f"scores by the trie are not those of batches: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
