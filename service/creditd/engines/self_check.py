"""Whether a causal model reads a trie as it reads its sequences one by one: found out when it is loaded, not assumed.

A model whose layers look at the last tokens alone takes the nodes beside a node for its neighbours, and is wrong by as
much as its scores differ. Rounding is judged by the model's own (the same sequences alone and in padded batches) and by
the precision of its type.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from creditd.engines.model_spec import HeadChoice
from creditd.engines.reward_scorers import LengthScorer, TrieScorer, Variants

ALLOWED_SPREAD = 4.0
"""An error of the trie up to this many times the model's own spread is rounding."""
LEAST_SPREAD = 8.0
"""Steps of the model's type at the largest score: what any spread counts for at least."""
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
        failure: Why the trie was not tried to its end: the kind of an exception, or a window. None: it was.
    """

    error: float
    spread: float
    passed: bool
    failure: str | None = None


def check_tries(model: PreTrainedModel, *, seed: int = 0) -> SelfCheck:
    """Score random variants of two prompts by their trie, in padded batches, and one by one.

    Args:
        model: For sequence classification, causal, in evaluation mode; its first label is looked at.
        seed: Of the variants.

    Returns:
        What came out.

    Cost:
        Some two thousand tokens.
    """
    window = declared_window(model)
    if window is not None and window > _LONGEST_WINDOW:
        return SelfCheck(float("nan"), float("nan"), passed=False, failure=f"a window of {window} tokens")
    random = np.random.default_rng(seed)
    vocabulary = int(model.config.vocab_size)
    sequences = []
    for _ in range(2):
        prompt, *spans = (
            random.integers(1, vocabulary, length)
            for length in (_PROMPT + (window or 0), *itertools.repeat(_SPAN, _N_SPANS))
        )
        coalitions = itertools.product([False, True], repeat=_N_SPANS)
        sequences += [np.concatenate([prompt, *itertools.compress(spans, present)]) for present in coalitions]
    variants, choice = Variants(tuple(sequences)), HeadChoice(index=0)
    alone = LengthScorer(model, choice, most_tokens=1, pad_id=0).score([variants], _nobody)[0]
    together = LengthScorer(model, choice, most_tokens=512, pad_id=0).score([variants], _nobody)[0]
    spread = float(np.abs(together - alone).max())
    try:
        by_trie = TrieScorer(model, choice, most_nodes=_CHUNK).score([variants], _nobody)[0]
    except Exception as error:  # noqa: BLE001 - whatever a model does with a mask that it was not made for
        return SelfCheck(float("nan"), spread, passed=False, failure=type(error).__name__)
    difference = float(np.abs(by_trie - alone).max())
    step = torch.finfo(model.dtype).eps * float(np.abs(alone).max())
    allowed = ALLOWED_SPREAD * max(spread, LEAST_SPREAD * step)
    return SelfCheck(difference, spread, passed=difference <= allowed)


def declared_window(model: PreTrainedModel) -> int | None:
    """How many tokens back some layer of a model looks at most, by its configuration.

    Args:
        model: Any.

    Returns:
        The window, or None if every layer looks at all tokens.

    Cost:
        O(layers).
    """
    config = model.config
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    in_use = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return int(window) if window and in_use else None


def _nobody() -> None:
    """Nobody waits for a sign of life."""
