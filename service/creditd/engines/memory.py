"""How much memory a forward pass needs at most beside the weights, from a configuration alone: known before any is run.

Legend: `n` layers, `c` tokens of a pass, `p` keys before them, `e` bytes of a number, `d` dimension of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from transformers import PreTrainedModel

from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.trie_masks import BLOCK

Reading: TypeAlias = Literal["blocks", "dense", "batches"]
"""How a model is asked: by tries with masks of blocks or of cells, or by batches of sequences of like length."""

FLOAT32 = 4
_INT32 = 4
_MLP, _QUERIES, _KEYS = 5, 8, 6
"""Arrays of one layer that are alive at once: as wide as the inner layer, as all queries, as all keys."""
_SCORES = 4
"""Arrays of scores; DeBERTa has one for each kind of position beside their sum."""
_RESIDUAL = 4
_NORM = 3
"""Arrays in float32 that a normalisation holds."""
_WORKSPACE = {"cpu": 1 << 20, "cuda": 64 << 20}
"""What libraries take for themselves, cuBLAS above all."""


@dataclass(frozen=True)
class ForwardShape:
    """What the memory of a forward pass depends on.

    Attributes:
        n_layers: Layers.
        n_heads: Heads of queries.
        n_kv_heads: Heads of keys and values.
        head_dim: Dimension of the widest head.
        hidden: Width of the states.
        inner: Width of the inner layer that one token goes through; of all its experts together.
        n_bytes: Bytes of a number of the model's type.
        keeps_scores: Whether the attention holds all scores, as `eager` does.
        device: Kind of the device.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden: int
    inner: int
    n_bytes: int
    keeps_scores: bool
    device: str

    @classmethod
    def of(cls, model: PreTrainedModel) -> ForwardShape:
        """The shape of a model in memory, by its configuration."""
        config = model.config.get_text_config()
        hidden, n_heads = int(config.hidden_size), int(config.num_attention_heads)
        inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
        experts = (getattr(config, "num_experts_per_tok", None) or 0) + (getattr(config, "n_shared_experts", None) or 0)
        of_experts = experts * (getattr(config, "moe_intermediate_size", None) or inner)
        nope, rope = (getattr(config, f"qk_{part}_head_dim", None) or 0 for part in ("nope", "rope"))
        return cls(
            n_layers=int(config.num_hidden_layers),
            n_heads=n_heads,
            n_kv_heads=int(getattr(config, "num_key_value_heads", None) or n_heads),
            head_dim=int(max(getattr(config, "head_dim", None) or hidden // n_heads, nope + rope)),
            hidden=hidden,
            inner=int(max(inner, of_experts)),
            n_bytes=model.dtype.itemsize,
            keeps_scores=config._attn_implementation == "eager",  # noqa: SLF001 - it has no other name
            device=model.device.type,
        )


def trie_bytes(shape: ForwardShape, *, most_nodes: int, longest: int, blocks: bool) -> int:
    """Most memory of a pass over a chunk of a trie.

    keys and values of every layer, 2·n·e·(c + p) numbers a head, and the widest moment of one layer

    Args:
        shape: The model.
        most_nodes: Most tokens of a chunk, c.
        longest: Longest sequence, so that p < longest.
        blocks: Whether masks are of blocks; else they have a cell for each two nodes.

    Returns:
        Bytes beside the weights; scores of whole sequences, a few bytes each, are not counted.

    Cost:
        O(1).
    """
    n_keys = most_nodes + longest
    if blocks:
        n_queries, n_keys = (-(-size // BLOCK) * BLOCK for size in (most_nodes, n_keys + BLOCK))
        tables = 8 * _INT32 * (n_queries // BLOCK) * (n_keys // BLOCK + 1) + 2 * _INT32 * n_keys
        filled = 2 * n_queries * shape.n_heads * shape.head_dim + 2 * n_keys * shape.n_kv_heads * shape.head_dim
        mask = tables + filled * shape.n_bytes + n_queries * shape.n_heads * FLOAT32
    else:
        mask = _dense_bytes(shape, 1, most_nodes, n_keys)
    of_a_layer = 2 * shape.n_bytes * shape.n_kv_heads * shape.head_dim * n_keys
    return (shape.n_layers + 1) * of_a_layer + mask + _layer_bytes(shape, most_nodes) + _WORKSPACE.get(shape.device, 0)


def batch_bytes(shape: ForwardShape, *, most_tokens: int, longest: int) -> int:
    """Most memory of a pass over a padded batch.

    Args:
        shape: The model.
        most_tokens: Most tokens of a batch, padding included; one longer sequence goes by itself.
        longest: Longest sequence.

    Returns:
        Bytes beside the weights.

    Cost:
        O(1).
    """
    n_tokens = max(most_tokens, longest)
    # Of batches with so many tokens the one with the longest rows has the most pairs of tokens.
    mask = _dense_bytes(shape, max(1, n_tokens // longest), longest, longest)
    return mask + _layer_bytes(shape, n_tokens) + _WORKSPACE.get(shape.device, 0)


def _dense_bytes(shape: ForwardShape, n_rows: int, n_queries: int, n_keys: int) -> int:
    """A mask of cells, as it comes and as kernels take it, keys and values for every head of queries, and scores."""
    cells = n_rows * n_queries * n_keys
    repeated = 2 * n_rows * n_keys * shape.n_heads * shape.head_dim * shape.n_bytes
    scores = cells * shape.n_heads * (_SCORES * shape.n_bytes + 2 * FLOAT32) if shape.keeps_scores else 0
    return cells * (2 + 2 * shape.n_bytes) + repeated + scores


def _layer_bytes(shape: ForwardShape, n_tokens: int) -> int:
    """The widest moment of a layer but for its keys and mask, the states around it, and those that are read."""
    queries, keys = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    attention = shape.n_bytes * (_QUERIES * queries + _KEYS * keys) + FLOAT32 * _NORM * max(queries, shape.hidden)
    inner = shape.n_bytes * _MLP * shape.inner + FLOAT32 * _NORM * shape.hidden
    states = (_RESIDUAL * shape.n_bytes + 2 * FLOAT32) * shape.hidden
    return n_tokens * (states + max(attention, inner) + 4 * FLOAT32 * shape.head_dim)


def demand_room(n_bytes: int, *, most: int | None, device: torch.device, lower: str) -> None:
    """Refuse a model whose passes do not fit.

    Args:
        n_bytes: What a pass needs at most.
        most: What it may need by its registration. None: no such bound.
        device: Where it runs; what is free there is a bound too, where that is known.
        lower: The settings that make it less.

    Raises:
        ModelUnsuitableError: If it does not fit; the message says what is needed and what there is.

    Cost:
        A question to the driver.
    """
    free = free_bytes(device)
    for bound, name in ((most, "max_forward_bytes allows"), (free, f"{device} has free")):
        if bound is not None and n_bytes > bound:
            raise ModelUnsuitableError(
                f"a forward pass needs up to {_mebibytes(n_bytes)} beside the weights; expected at most the "
                f"{_mebibytes(bound)} that {name}: lower {lower}"
            )


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be taken on a GPU, that of freed tensors included; None on a processor."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _mebibytes(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.1f} MiB"
