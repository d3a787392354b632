"""What a causal model makes of every sequence of a trie, at the cost of its distinct prefixes.

A chunk of nodes is one row of the model: positions are depths, the mask shows each node its own ancestors, and keys and
values of ancestors before the chunk are carried over instead of computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from creditd.engines.trie import Chunk, Trie, chunks_of
from creditd.engines.trie_masks import DenseMasks, Masks


def _nothing() -> None:
    """Nobody listens."""


def _as_they_are(states: torch.Tensor) -> torch.Tensor:
    return states


@dataclass(frozen=True)
class LeafStates:
    """What was read of whole sequences.

    Attributes:
        states: Shape (V, …): what `read` made of the state after the last token of each sequence; by default that
            state, of shape (V, H), in the model's dtype.
        n_computed: Tokens that went through the model.
    """

    states: torch.Tensor
    n_computed: int


def leaf_states(
    backbone: PreTrainedModel,
    trie: Trie,
    *,
    most_nodes: int,
    masks: Masks | None = None,
    read: Callable[[torch.Tensor], torch.Tensor] = _as_they_are,
    beat: Callable[[], None] = _nothing,
) -> LeafStates:
    """The last hidden state of every sequence of a trie.

    Args:
        backbone: A causal model without its head, in evaluation mode, whose attention takes a mask of any shape and has
            no window: `creditd.engines.self_check` finds out.
        trie: V sequences; no longer than the model's positions.
        most_nodes: Most tokens of one forward pass. On a processor small ones are faster, because the mask is dense.
        masks: In the form that the model's attention takes. None: a cell for each two nodes.
        read: Takes last states of a chunk, shape (v, H), to what is kept of them, one row each.
        beat: Called before each forward pass.

    Returns:
        The same states as the sequences one by one have, but for rounding. Of scores that is at most
        1e-5 · max(1, |score|) in float32, and some two steps of the type, eps · max |score|, in bfloat16 and float16:
        measured, with the figures in `creditd.engines.self_check`.

    Cost:
        One forward pass per chunk. `creditd.engines.memory` bounds the memory of one; beside it there is what `read`
        keeps.
    """
    with torch.inference_mode():
        chunks = list(chunks_of(trie, most_nodes))
        return _leaf_states(backbone, trie, chunks, masks or DenseMasks.of(backbone), read, beat)


def _leaf_states(
    backbone: PreTrainedModel,
    trie: Trie,
    chunks: list[Chunk],
    masks: Masks,
    read: Callable[[torch.Tensor], torch.Tensor],
    beat: Callable[[], None],
) -> LeafStates:
    # Chunks have their leaves in the order of the nodes: together they are all different leaves in that order.
    leaves, places = np.unique(trie.leaves, return_inverse=True)
    # Without a configuration every layer of the cache keeps all keys, whatever window the layer has.
    cache, parts, n_computed = DynamicCache(), [], 0
    for number, chunk in enumerate(chunks):
        beat()
        tokens, depths = (
            torch.from_numpy(values[None, chunk.start : chunk.stop]).to(backbone.device)
            for values in (trie.tokens, trie.depths)
        )
        states = backbone(
            input_ids=tokens,
            position_ids=depths,
            attention_mask=masks(trie, chunk),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[0]
        n_computed += tokens.shape[1]
        here = leaves[slice(*np.searchsorted(leaves, [chunk.start, chunk.stop]))] - chunk.start
        if len(here):
            parts.append(read(states[torch.from_numpy(here).to(states.device)]))
        del states
        cache = _carried(cache, chunk, chunks[number + 1]) if number + 1 < len(chunks) else DynamicCache()
    read_of = torch.cat(parts)
    return LeafStates(read_of[torch.from_numpy(places).to(read_of.device)], n_computed)


def _carried(cache: DynamicCache, chunk: Chunk, following: Chunk) -> DynamicCache:
    """Keys and values of the path of the next chunk, out of those of this chunk and its own path."""
    carried = DynamicCache()
    if not len(following.path):
        return carried
    known = np.concatenate([chunk.path, np.arange(chunk.start, chunk.stop)])
    places = torch.from_numpy(np.searchsorted(known, following.path))
    for number in range(len(cache.layers)):
        # Each layer is let go once its path is copied, so that there is one copy in memory and not two.
        layer, cache.layers[number] = cache.layers[number], None
        here = places.to(layer.keys.device)
        carried.update(layer.keys[:, :, here], layer.values[:, :, here], number)
    return carried
