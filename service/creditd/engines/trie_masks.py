"""The ancestors of each node of a chunk in the form that an attention takes: dense masks, or FlexAttention by blocks.

FlexAttention is compiled for fixed shapes alone, and tries have any shape. So its queries and keys are filled up inside
the attention, where nothing else of the model pays for it, to one of two shapes: n queries against n keys for a first
chunk, and against one fixed length of path beside them for every other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
import torch._dynamo
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from creditd.engines.trie import Booleans, Chunk, Intervals, Trie, intervals_of, padded

BLOCK = 128
"""Queries and keys of one block: the least that FlexAttention passes over."""
BLOCK_ATTENTION = "creditd_blocks"
"""What transformers calls the attention that is made here: SDPA, unless the mask is one of blocks."""

MOST_COMPILATIONS = 64
"""Of all models of a process: two for each."""

Kernel: TypeAlias = Callable[..., torch.Tensor]


class Masks(Protocol):
    """From a chunk of a trie to what the model takes as `attention_mask`."""

    def __call__(self, trie: Trie, chunk: Chunk) -> torch.Tensor | BlockMask:
        """The mask of c nodes against p + c keys, those of the path first."""


@dataclass(frozen=True)
class DenseMasks:
    """A cell for each two nodes.

    Attributes:
        device: Where the model is.
        added_to: None: booleans, as SDPA takes them. A float type: zero or its least number, for attention that adds
            the mask to its scores.
    """

    device: torch.device
    added_to: torch.dtype | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> DenseMasks:
        """The masks that the attention of a model takes."""
        adds = model.config._attn_implementation == "eager"  # noqa: SLF001 - transformers has no other name for it
        return cls(model.device, model.dtype if adds else None)

    def __call__(self, trie: Trie, chunk: Chunk) -> torch.Tensor:
        """Shape (1, 1, c, p + c)."""
        seen = torch.from_numpy(intervals_of(trie, chunk).dense(chunk.stop - chunk.start)).to(self.device)[None, None]
        if self.added_to is None:
            return seen
        return torch.zeros(seen.shape, dtype=self.added_to, device=self.device).masked_fill_(
            ~seen, torch.finfo(self.added_to).min
        )


@dataclass(frozen=True)
class BlockMasks:
    """Blocks of FlexAttention, for a model whose attention is `BLOCK_ATTENTION`; at most two shapes in all.

    Attributes:
        device: Where the model is.
        n_queries: Most nodes of a chunk, a multiple of `BLOCK`.
        n_path: Longest path, a multiple of `BLOCK`.
    """

    device: torch.device
    n_queries: int
    n_path: int

    @classmethod
    def of(cls, model: PreTrainedModel, most_nodes: int, longest: int) -> BlockMasks:
        """Masks for chunks and sequences of at most so many tokens."""
        return cls(model.device, *(-(-size // BLOCK) * BLOCK for size in (most_nodes, longest)))

    def __call__(self, trie: Trie, chunk: Chunk) -> BlockMask:
        """For `n_queries` queries, and as many keys or `n_path` more."""
        n_path = len(chunk.path)
        n_keys = self.n_queries + (self.n_path if n_path else 0)
        return block_mask(
            padded(intervals_of(trie, chunk), n_path, self.n_queries, n_keys), self.n_queries, self.device
        )


def block_mask(intervals: Intervals, n_queries: int, device: torch.device) -> BlockMask:
    """Intervals as FlexAttention takes them, without a cell for each two nodes.

    Args:
        intervals: For K keys, a multiple of `BLOCK`.
        n_queries: A multiple of `BLOCK`.
        device: Where the attention is computed.

    Returns:
        Blocks in which some queries see some keys, those apart in which all see all.

    Cost:
        O(K · n_queries / BLOCK) on the processor.
    """
    first = np.arange(0, n_queries, BLOCK)[:, None]
    begins, ends = intervals.begins[None], intervals.ends[None]
    by_block = (len(first), -1, BLOCK)
    some = ((begins < first + BLOCK) & (ends > np.maximum(first, begins))).reshape(by_block).any(axis=-1)
    whole = ((begins <= first) & (ends >= first + BLOCK)).reshape(by_block).all(axis=-1)
    seen_from, seen_to = (torch.from_numpy(bounds).to(device) for bounds in (intervals.begins, intervals.ends))

    # It closes over tensors of fixed shapes alone: a number would be compiled in.
    def is_seen(_batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (seen_from[key] <= query) & (query < seen_to[key])

    made: BlockMask = BlockMask.from_kv_blocks(
        *_listed(np.asarray(some & ~whole), device),
        *_listed(np.asarray(whole), device),
        BLOCK_SIZE=BLOCK,
        mask_mod=is_seen,
        seq_lengths=(n_queries, len(intervals.begins)),
    )
    return made


def _listed(blocks: Booleans, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """How many blocks each row of blocks has, and which, these first."""
    which = np.argsort(~blocks, axis=1, kind="stable")
    counts, places = (torch.from_numpy(values.astype(np.int32)) for values in (blocks.sum(axis=1), which))
    return counts[None, None].to(device), places[None, None].to(device)


class BlockAttention:
    """FlexAttention for chunks of tries.

    Attributes:
        shapes: What was asked so far: (queries, keys, heads, heads of keys, dimension, type). Each is one compilation
            on a GPU.
        compiled: Whether it is compiled on a processor too; it always is elsewhere.
    """

    def __init__(self) -> None:
        self.shapes: set[tuple[Any, ...]] = set()
        self.compiled = False
        self._compiled_kernel: Kernel | None = None

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: BlockMask, scale: float | None
    ) -> torch.Tensor:
        """Attention of c nodes, shape (1, heads, c, dimension), to p + c keys, filled up to the shape of the mask."""
        n_queries, n_keys = mask.seq_lengths
        shape = (n_queries, n_keys, query.shape[1], key.shape[1], query.shape[3], query.dtype)
        if shape not in self.shapes:
            _allow_compilations()
            self.shapes.add(shape)
        found = self._kernel(query.device)(
            _filled(query, n_queries),
            _filled(key, n_keys),
            _filled(value, n_keys),
            block_mask=mask,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return found[:, :, : query.shape[2]]

    def _kernel(self, device: torch.device) -> Kernel:
        if device.type == "cpu" and not self.compiled:
            eager: Kernel = flex_attention
            return eager
        if self._compiled_kernel is None:
            # Beyond its limit of compilations dynamo would go on without any, and with all scores in memory; as one
            # full graph it fails instead.
            self._compiled_kernel = torch.compile(flex_attention, dynamic=False, fullgraph=True)
        return self._compiled_kernel


def _allow_compilations() -> None:
    """Make room for those of all models of a process, which dynamo counts together; its limit is each thread's own."""
    limits = torch._dynamo.config  # noqa: SLF001 - where torch documents its limit
    limits.recompile_limit = max(limits.recompile_limit, MOST_COMPILATIONS)


def _filled(states: torch.Tensor, length: int) -> torch.Tensor:
    """Zeros after the states, in one layout whatever theirs is: another layout is another compilation."""
    batch, heads, known, dimension = states.shape
    made = states.new_zeros((batch, heads, length, dimension))
    made[:, :, :known] = states
    return made


block_attention = BlockAttention()
"""The one that transformers calls."""


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None,
    scaling: float | None = None,
    **options: Any,  # noqa: ANN401 - whatever else a model has for its attention
) -> tuple[torch.Tensor, None]:
    """FlexAttention for masks of blocks, and SDPA for everything else."""
    if not isinstance(attention_mask, BlockMask):
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return plain
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if unknown or query.shape[0] != 1:
        raise ValueError(f"attention to a trie has one row and no {', '.join(unknown) or 'batch'}")
    return block_attention(query, key, value, attention_mask, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(BLOCK_ATTENTION, _attention)
AttentionMaskInterface.register(BLOCK_ATTENTION, sdpa_mask)
