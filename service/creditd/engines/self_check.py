"""Whether a causal model reads a trie as it reads its sequences one by one: found out when it is loaded, not assumed.

A model whose layers look at the last tokens alone takes the nodes beside a node for its neighbours, and is wrong by as
much as its scores differ. Rounding is judged by the model's own (the same sequences alone and in padded batches) and by
the precision of its type.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from creditd.engines.model_spec import HeadChoice
from creditd.engines.reward_scorers import LengthScorer, TrieScorer, Variants, length_turn
from creditd.engines.trie_masks import Masks

ALLOWED_SPREAD = 4.0
"""An error of the trie up to this many times the model's own spread is rounding."""
LEAST_SPREAD = {torch.float32: 8.0, torch.bfloat16: 4.0, torch.float16: 4.0}
"""Steps of the model's type at the largest score: what any spread counts for at least.

A step is eps · max |score|. Measured on processors, six families of 2 layers and Llama and Qwen3 shapes of 6 and 28
layers, largest difference from one by one: bfloat16 2.1 steps, float16 2.1, float32 5.8 on an AMD EPYC and 6.6 on an
Intel Xeon, whatever the depth; sliding windows of 8 tokens are off by 40 steps and more in bfloat16. Padded batches are
often bit for bit the same on a processor, which is why a spread alone is no measure.
"""
Floats: TypeAlias = NDArray[np.float64]

_N_SPANS, _SPAN, _PROMPT, _CHUNK = 4, 5, 11, 16
_LONGEST_WINDOW = 1024
"""Windows up to this size are tried with prompts that are longer; larger ones are taken at their word."""


@dataclass(frozen=True)
class SelfCheck:
    """What a model made of some random variants.

    Attributes:
        error: Largest difference between scores by the trie and one by one, reward units; NaN if the trie failed.
        spread: Largest difference between scores in padded batches and one by one, reward units.
        passed: Whether the first is rounding, by the second.
        failure: Why the trie was not tried to its end: the kind of an exception, or what the configuration says. None:
            it was.
    """

    error: float
    spread: float
    passed: bool
    failure: str | None = None


def check_tries(
    model: PreTrainedModel, *, masks: Masks | None = None, longest: int | None = None, seed: int = 0
) -> SelfCheck:
    """Score random variants of two prompts by their trie, in padded batches, and one by one.

    Chunks are small, so that the first and those that carry a path are both run: with masks of blocks these are the two
    shapes that are ever compiled.

    Args:
        model: For sequence classification, causal, in evaluation mode; its first label is looked at.
        masks: In the form that its attention takes. None: a cell for each two nodes.
        longest: Longest sequence that it will be asked. None: as long as it has positions.
        seed: Of the variants.

    Returns:
        What came out.

    Cost:
        Some two thousand tokens, and what is compiled.
    """
    longest = longest or getattr(model.config, "max_position_embeddings", None)
    reason = _declared_obstacle(model, longest)
    if reason is not None:
        return SelfCheck(float("nan"), float("nan"), passed=False, failure=reason)
    variants, choice = _variants(model, seed, longest), HeadChoice(index=0)
    alone = LengthScorer(model, choice, most_tokens=1, pad_id=0).score([variants], _nobody)[0]
    together = LengthScorer(model, choice, most_tokens=512, pad_id=0).score([variants], _nobody)[0]
    spread = float(np.abs(together - alone).max())
    try:
        by_trie = TrieScorer(model, choice, most_nodes=_CHUNK, masks=masks).score([variants], _nobody)[0]
    except Exception as error:  # noqa: BLE001 - whatever a model does with a mask that it was not made for
        return SelfCheck(float("nan"), spread, passed=False, failure=type(error).__name__)
    difference = float(np.abs(by_trie - alone).max())
    allowed = ALLOWED_SPREAD * max(spread, least_spread(model.dtype, alone))
    return SelfCheck(difference, spread, passed=difference <= allowed)


def least_spread(dtype: torch.dtype, scores: Floats) -> float:
    """What a spread counts for at least: `LEAST_SPREAD` steps of a type at the largest of some scores."""
    return LEAST_SPREAD[dtype] * float(torch.finfo(dtype).eps) * float(np.abs(scores).max())


def _variants(model: PreTrainedModel, seed: int, longest: int | None = None) -> Variants:
    """All coalitions of the spans of two prompts, which are longer than any window that is tried."""
    random = np.random.default_rng(seed)
    vocabulary = int(model.config.vocab_size)
    lengths = (_PROMPT + (declared_window(model, longest) or 0), *itertools.repeat(_SPAN, _N_SPANS))
    sequences = []
    for _ in range(2):
        prompt, *spans = (random.integers(1, vocabulary, length) for length in lengths)
        coalitions = itertools.product([False, True], repeat=_N_SPANS)
        sequences += [np.concatenate([prompt, *itertools.compress(spans, present)]) for present in coalitions]
    return Variants(tuple(sequences))


def _declared_obstacle(model: PreTrainedModel, longest: int | None) -> str | None:
    """What a configuration says that sequences of the check are too short to show."""
    window, turn = declared_window(model, longest), length_turn(model)
    if window is not None and window > _LONGEST_WINDOW:
        return f"a window of {window} tokens"
    if turn is not None and (longest is None or longest > turn):
        return f"positions that depend on the length beyond {turn} tokens"
    return None


def declared_window(model: PreTrainedModel, longest: int | None = None) -> int | None:
    """How many tokens back some layer of a model looks at most, by its configuration.

    Args:
        model: Any.
        longest: Longest sequence that it will be asked, if that is known.

    Returns:
        The window, or None if every layer looks at all tokens of such a sequence.

    Cost:
        O(layers).
    """
    config = model.config
    kinds = getattr(config, "layer_types", None)
    window, in_use = getattr(config, "sliding_window", None), getattr(config, "use_sliding_window", True)
    chunk = getattr(config, "attention_chunk_size", None)
    if kinds:
        in_use, chunk = "sliding_attention" in kinds, chunk if "chunked_attention" in kinds else None
    declared = [int(size) for size in (window if in_use else None, chunk) if size]
    return max((size for size in declared if longest is None or size < longest), default=None)


def _nobody() -> None:
    """Nobody waits for a sign of life."""
