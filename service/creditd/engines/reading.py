"""How a loaded reward model is asked: by tries if it reads them as it reads sequences, and what room that takes.

On a GPU tries are read by FlexAttention, whose two shapes are compiled while it is checked, before the model is served.
Whatever fails its check gives way to the next way, and the log says so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from transformers import PreTrainedModel

from creditd.engines.memory import ForwardShape, Reading, batch_bytes, demand_room, trie_bytes
from creditd.engines.model_spec import ModelSpec
from creditd.engines.reward_scorers import LengthScorer, TrieScorer, is_causal
from creditd.engines.self_check import SelfCheck, check_tries
from creditd.engines.trie_masks import BLOCK_ATTENTION, BlockMasks, DenseMasks

FLEX_ATTENTION = "flex_attention"
"""What registrations call masks of blocks: the name that transformers has for FlexAttention."""
CHUNK_ON_A_PROCESSOR = 256
"""Tokens of a pass with dense masks, which are seen by none of the larger ones' many other prefixes."""

log = logging.getLogger("creditd.engines")


@dataclass(frozen=True)
class Reader:
    """What a model is asked through.

    Attributes:
        scorer: What is asked.
        reading: How it asks the model.
        check: What came out of the last check of tries; None for a bidirectional model, which reads none.
        forward_bytes: Most memory of one forward pass beside the weights.
    """

    scorer: TrieScorer | LengthScorer
    reading: Reading
    check: SelfCheck | None
    forward_bytes: int


def choose_reader(spec: ModelSpec, model: PreTrainedModel, *, longest: int, pad_id: int) -> Reader:
    """The best way of asking a model that gives its own scores.

    Args:
        spec: As it is registered.
        model: On its device, in evaluation mode; its attention is set to what the way needs.
        longest: Longest sequence that it will be asked.
        pad_id: Fills up what is shorter.

    Returns:
        By blocks, where FlexAttention is asked for or the device is a GPU; else by dense masks; else by batches.

    Raises:
        ModelUnsuitableError: If a forward pass does not fit into memory, or its head needs a choice.

    Cost:
        Some two thousand tokens for each way that is tried, and two compilations for blocks on a GPU.
    """
    check = None
    original = model.config._attn_implementation  # noqa: SLF001 - transformers has no other name for it
    for reading in _ways(spec, model):
        chunk = chunk_tokens(spec)
        needed = trie_bytes(ForwardShape.of(model), most_nodes=chunk, longest=longest, blocks=reading == "blocks")
        demand_room(
            needed, most=spec.max_forward_bytes, device=model.device, lower="chunk_tokens, batch_tokens or max_tokens"
        )
        if reading == "blocks":
            model.set_attn_implementation(BLOCK_ATTENTION)
        masks = BlockMasks.of(model, chunk, longest) if reading == "blocks" else DenseMasks.of(model)
        scorer = TrieScorer(model, spec.head, most_nodes=chunk, masks=masks)
        check = check_tries(model, masks=masks, longest=longest)
        if check.passed:
            log.info("model %s reads tries, masks: %s", spec.id, reading)
            return Reader(scorer, reading, check, needed)
        why = check.failure or f"an error of {check.error:.2g} beside a spread of {check.spread:.2g}"
        log.warning("model %s does not read tries, masks: %s: %s", spec.id, reading, why)
        if reading == "blocks":
            model.set_attn_implementation(original)
    needed = batch_bytes(ForwardShape.of(model), most_tokens=spec.batch_tokens, longest=longest)
    demand_room(needed, most=spec.max_forward_bytes, device=model.device, lower="batch_tokens or max_tokens")
    lengths = LengthScorer(model, spec.head, most_tokens=spec.batch_tokens, pad_id=pad_id)
    log.info("model %s reads batches of like length", spec.id)
    return Reader(lengths, "batches", check, needed)


def chunk_tokens(spec: ModelSpec) -> int:
    """Tokens of one forward pass over a trie at most."""
    if spec.chunk_tokens is not None:
        return spec.chunk_tokens
    on_a_processor = spec.device.startswith("cpu")
    return min(CHUNK_ON_A_PROCESSOR, spec.batch_tokens) if on_a_processor else spec.batch_tokens


def _ways(spec: ModelSpec, model: PreTrainedModel) -> tuple[Reading, ...]:
    """Ways of reading tries, best first."""
    if not is_causal(model):
        return ()
    wanted = spec.attention == FLEX_ATTENTION or (spec.attention is None and model.device.type == "cuda")
    # Sequences in batches are read by SDPA beside blocks, so a model that has none has no blocks either.
    has_sdpa = model.config._attn_implementation == "sdpa"  # noqa: SLF001 - transformers has no other name for it
    return ("blocks", "dense") if wanted and has_sdpa else ("dense",)
