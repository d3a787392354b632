"""Scoring all coalitions of a completion by the trie of their prefixes, against padded batches, in one run.

    PYTHONPATH=client:service:tests python tests/benchmarks/trie_scoring.py --out FILE

torch and transformers have to be importable. The model has the shape of a small Qwen3 reward model and random weights,
on which time does not depend. Peers are batches of 32 variants in random order, padded to the longest, and the same
after sorting by length.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForSequenceClassification

from benchmarks.measure import arguments, device, on_one_thread, ratio, repeated, versions, write_report
from creditd.engines.model_spec import HeadChoice
from creditd.engines.reward_scorers import TrieScorer, Variants

SHAPES = {
    "9 M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "head_dim": 32},
    "34 M": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "head_dim": 64},
}
VOCABULARY, SPAN, BATCH, CHUNK, REPEATS = 4096, 8, 32, 256, 3
AGREEMENT = 1e-5


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
}


def model_of(shape: dict[str, int]) -> Qwen3ForSequenceClassification:
    """A reward model with random weights."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_labels=1,
        pad_token_id=0,
        max_position_embeddings=4096,
        **shape,
    )
    return Qwen3ForSequenceClassification(config).eval()


def variants_of(kind: str, prompt_length: int) -> list[np.ndarray]:
    """A prompt with the spans of each coalition, in random order."""
    coalitions, n = KINDS[kind]
    random = np.random.default_rng(0)
    prompt = random.integers(1, VOCABULARY, prompt_length)
    spans = [random.integers(1, VOCABULARY, SPAN) for _ in range(n)]
    rows = [np.concatenate([prompt, *itertools.compress(spans, present)]) for present in coalitions(n)]
    return [rows[place] for place in random.permutation(len(rows))]


def batches(rows: list[np.ndarray], *, by_length: bool) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Places, tokens and masks of padded batches."""
    order = sorted(range(len(rows)), key=lambda place: len(rows[place])) if by_length else list(range(len(rows)))
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        longest = max(len(rows[place]) for place in places)
        tokens = torch.zeros((len(places), longest), dtype=torch.long)
        present = torch.zeros_like(tokens)
        for row, place in enumerate(places):
            tokens[row, : len(rows[place])] = torch.from_numpy(rows[place])
            present[row, : len(rows[place])] = 1
        yield places, tokens, present


def padded(model: Qwen3ForSequenceClassification, rows: list[np.ndarray], *, by_length: bool) -> np.ndarray:
    """Scores of padded batches."""
    scores = np.empty(len(rows))
    with torch.inference_mode():
        for places, tokens, present in batches(rows, by_length=by_length):
            scores[places] = model(input_ids=tokens, attention_mask=present).logits[:, 0].double().numpy()
    return scores


def measured(size: str, kind: str, prompt_length: int) -> dict[str, Any]:
    """Times of the three ways, and how far their scores differ."""
    model, rows = model_of(SHAPES[size]), variants_of(kind, prompt_length)
    scorer = TrieScorer(model, HeadChoice(), most_nodes=CHUNK)
    by_trie = scorer.score([Variants(tuple(rows))], lambda: None)[0]
    difference = float(np.abs(by_trie - padded(model, rows, by_length=True)).max())
    if difference > AGREEMENT:
        raise RuntimeError(f"{kind}: scores differ by {difference}")
    # A work is made anew each time, so that its trie is built in the time that is taken.
    trie = repeated(lambda: scorer.score([Variants(tuple(rows))], lambda: None), repeats=REPEATS, warm_up=0)
    plain = repeated(lambda: padded(model, rows, by_length=False), repeats=REPEATS, warm_up=0)
    sorted_ = repeated(lambda: padded(model, rows, by_length=True), repeats=REPEATS, warm_up=0)
    work = Variants(tuple(rows))
    n_computed, n_naive = scorer.n_tokens(work), work.n_naive
    found = {
        "model": size,
        "kind": kind,
        "prompt": prompt_length,
        "variants": len(rows),
        "tokens_computed": n_computed,
        "tokens_naive": n_naive,
        "token_ratio": n_naive / n_computed,
        "trie": trie,
        "padded": plain,
        "sorted": sorted_,
        "times_padded": ratio(plain, trie),
        "times_sorted": ratio(sorted_, trie),
        "largest_difference": difference,
    }
    print(
        f"{size}, {kind}, prompt {prompt_length}: trie {trie.median_us / 1e3:.0f} ms, padded "
        f"{found['times_padded']['of_medians']:.1f}×, sorted {found['times_sorted']['of_medians']:.1f}×, tokens "
        f"{found['token_ratio']:.1f}×, difference {difference:.1e}"
    )
    return found


def main() -> None:
    """Measure, print and write."""
    on_one_thread()
    options = arguments("Scoring by tries, against padded batches")
    torch.set_num_threads(1)
    cells = [("9 M", kind, prompt) for kind in KINDS for prompt in (64, 256, 512)] + [("34 M", "Owen 16", 256)]
    report = {
        "benchmark": "trie_scoring",
        "versions": versions(["torch", "transformers", "numpy"]),
        "chunk": CHUNK,
        "batch": BATCH,
        "cells": [measured(*cell) for cell in cells],
        "device": device(),
    }
    write_report(options.out, report)


if __name__ == "__main__":
    main()
