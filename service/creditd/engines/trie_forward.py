"""What a causal model makes of every sequence of a trie, at the cost of its distinct prefixes.

A chunk of nodes is one row of the model: positions are depths, the mask shows each node its own ancestors, and keys and
values of ancestors before the chunk are carried over instead of computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from creditd.engines.trie import Chunk, Trie, chunks_of, visible

Masks: TypeAlias = Literal["dense", "block"]


def _nothing() -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class LeafStates:
    """Last hidden states of whole sequences.

    Attributes:
        states: Shape (V, H), in the model's dtype: the state after the last token of each sequence.
        n_computed: Tokens that went through the model.
    """

    states: torch.Tensor
    n_computed: int


def leaf_states(
    backbone: PreTrainedModel,
    trie: Trie,
    *,
    most_nodes: int,
    masks: Masks = "dense",
    beat: Callable[[], None] = _nothing,
) -> LeafStates:
    """The last hidden state of every sequence of a trie.

    Args:
        backbone: A causal model without its head, in evaluation mode, whose attention takes a mask of any shape and has
            no window: `creditd.engines.self_check` finds out.
        trie: V sequences; no longer than the model's positions.
        most_nodes: Most tokens of one forward pass. On a processor small ones are faster, because the mask is dense.
        masks: `dense`, a cell for each two nodes, as SDPA takes it; `block`, for a model whose attention is
            FlexAttention, which passes over blocks in which nobody sees anybody.
        beat: Called before each forward pass.

    Returns:
        The same states as the sequences one by one have, but for rounding.

    Cost:
        One forward pass per chunk. Memory beside the weights: keys and values of one chunk and of one path, and a mask
        of at most most_nodes · (most_nodes + depth) bytes.
    """
    with torch.inference_mode():
        return _leaf_states(backbone, trie, list(chunks_of(trie, most_nodes)), masks, beat)


def _leaf_states(
    backbone: PreTrainedModel, trie: Trie, chunks: list[Chunk], masks: Masks, beat: Callable[[], None]
) -> LeafStates:
    device = backbone.device
    leaves = torch.from_numpy(trie.leaves)
    tokens, depths = (torch.from_numpy(values).to(device) for values in (trie.tokens, trie.depths))
    cache, parts = DynamicCache(), []
    for number, chunk in enumerate(chunks):
        beat()
        part = slice(chunk.start, chunk.stop)
        output = backbone(
            input_ids=tokens[None, part],
            position_ids=depths[None, part],
            attention_mask=_mask(trie, chunk, masks, device),
            past_key_values=cache,
            use_cache=True,
        )
        here = torch.unique(leaves[(leaves >= chunk.start) & (leaves < chunk.stop)])
        parts.append(output.last_hidden_state[0, (here - chunk.start).to(device)])
        if number + 1 < len(chunks):
            cache = _carried(cache, chunk, chunks[number + 1])
    # Leaves of a chunk come in the order of their nodes: together they are all different leaves in that order.
    _, places = torch.unique(leaves, return_inverse=True)
    return LeafStates(torch.cat(parts)[places.to(device)], len(trie))


def _mask(trie: Trie, chunk: Chunk, masks: Masks, device: torch.device) -> torch.Tensor | BlockMask:
    """Who sees whom in a chunk, in the form that the attention takes."""
    if masks == "dense":
        return torch.from_numpy(visible(trie, chunk)).to(device)[None, None]
    keys = torch.from_numpy(np.concatenate([chunk.path, np.arange(chunk.start, chunk.stop)])).to(device)
    ends = torch.from_numpy(trie.ends).to(device)[keys]
    start, n_nodes = chunk.start, chunk.stop - chunk.start

    def is_ancestor(_batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (keys[key] <= start + query) & (ends[key] > start + query)

    return create_block_mask(is_ancestor, None, None, n_nodes, len(keys), device=str(device))


def _carried(cache: DynamicCache, chunk: Chunk, following: Chunk) -> DynamicCache:
    """Keys and values of the path of the next chunk, out of those of this chunk and its own path."""
    known = np.concatenate([chunk.path, np.arange(chunk.start, chunk.stop)])
    places = torch.from_numpy(np.searchsorted(known, following.path))
    carried = DynamicCache()
    for number, layer in enumerate(cache.layers):
        here = places.to(layer.keys.device)
        carried.update(layer.keys[:, :, here], layer.values[:, :, here], number)
    return carried
