"""What is checked of tries on any device: reward models of some sizes, variants, peaks of memory, and compilations.

A processor runs it with small shapes and a GPU with large ones, so nothing here needs more than torch, transformers and
the engines.
"""

import itertools

import numpy as np
import torch
from torch._dynamo.utils import counters
from transformers import Qwen3Config, Qwen3ForSequenceClassification

from creditd.engines.model_spec import HeadChoice
from creditd.engines.reward_scorers import LengthScorer, TrieScorer, Variants
from creditd.engines.self_check import ALLOWED_SPREAD, least_spread
from creditd.engines.trie_masks import BLOCK_ATTENTION, BlockMasks, DenseMasks, block_attention

VOCABULARY = 4096
POSITIONS = 2048
SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16, "heads": (4, 2)},
    "9 M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "head_dim": 32, "heads": (8, 4)},
    "34 M": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "head_dim": 64, "heads": (8, 4)},
    "160 M": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "head_dim": 64,
        "heads": (16, 8),
    },
    "1.7 B": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "head_dim": 128,
        "heads": (16, 8),
    },
    "8 B": {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "head_dim": 128,
        "heads": (32, 8),
    },
}
"""Of Qwen3; numbers of parameters are rounded, and 9 M and 34 M are with a vocabulary of sixteen thousand tokens."""
FLOAT32_AGREEMENT = 1e-5
"""Of max(1, |score|)."""


def ignore():
    """Nobody waits for a sign of life."""


def reward_model(name, dtype=torch.float32, device="cpu", **config):
    """A Qwen3 reward model of a size, with grouped queries and random weights, the same each time."""
    shape = {**SHAPES[name], **config}
    heads, kv_heads = shape.pop("heads")
    torch.manual_seed(0)
    shape.setdefault("vocab_size", VOCABULARY)
    config = Qwen3Config(
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        num_labels=1,
        pad_token_id=0,
        max_position_embeddings=POSITIONS,
        **shape,
    )
    with torch.device(device):
        return Qwen3ForSequenceClassification(config).to(dtype).eval()


def variants(*, prompt=64, n_spans=6, span=8, n_prompts=2, seed=0):
    """All coalitions of the spans of some completions, the empty ones included."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(n_prompts):
        head, *spans = (draw.integers(1, VOCABULARY, size) for size in (prompt, *itertools.repeat(span, n_spans)))
        rows += [
            np.concatenate([head, *itertools.compress(spans, present)])
            for present in itertools.product([False, True], repeat=n_spans)
        ]
    return Variants(tuple(rows))


def masks_of(model, kind, most_nodes, longest):
    """Dense masks, or those of blocks for a model whose attention becomes theirs."""
    if kind == "dense":
        return DenseMasks.of(model)
    model.set_attn_implementation(BLOCK_ATTENTION)
    return BlockMasks.of(model, most_nodes, longest)


def assert_like_one_by_one(model, kind, work, most_nodes, longest):
    """Scores by the trie are those one by one: to a bound in float32, to the stated rounding in other types."""
    masks = masks_of(model, kind, most_nodes, longest)
    found = TrieScorer(model, HeadChoice(), most_nodes=most_nodes, masks=masks).score([work], ignore)[0]
    alone = LengthScorer(model, HeadChoice(), most_tokens=1, pad_id=0).score([work], ignore)[0]
    together = LengthScorer(model, HeadChoice(), most_tokens=1024, pad_id=0).score([work], ignore)[0]
    difference = np.abs(found - alone)
    spread = float(np.abs(together - alone).max())
    step = float(torch.finfo(model.dtype).eps) * float(np.abs(alone).max())
    figures = f"{model.dtype}, {kind}: {difference.max() / step:.2f} steps, a spread of {spread / step:.2f}"
    print(figures)  # noqa: T201 - what was measured is worth more than that it passed
    assert (difference.max() <= ALLOWED_SPREAD * max(spread, least_spread(model.dtype, alone))).all(), figures
    if model.dtype == torch.float32:
        assert (difference <= FLOAT32_AGREEMENT * np.maximum(1.0, np.abs(alone))).all(), figures


class Compilations:
    """What is compiled from now on: graphs by dynamo, and shapes that the attention to blocks is asked for."""

    def __init__(self):
        torch._dynamo.reset()
        counters.clear()
        block_attention.shapes.clear()

    @property
    def graphs(self):
        """How many graphs."""
        return counters["stats"]["unique_graphs"]

    @property
    def shapes(self):
        """Queries and keys of each."""
        return {shape[:2] for shape in block_attention.shapes}


def peak_bytes(device, work):
    """Most memory that was taken at once while some work ran, over what was taken before it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    assert changes
    return max(itertools.accumulate(change for _, change in sorted(changes)))
