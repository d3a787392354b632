"""Whether a model is asked as it asks itself: found out when it is loaded, by its own forward pass."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel

from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.reward_head import RewardHead
from creditd.engines.reward_scorers import LengthScorer, TrieScorer, Variants, read_part
from creditd.engines.self_check import ALLOWED_SPREAD, least_spread

_LENGTHS = (2, 7, 40)


def check_own_scores(
    model: PreTrainedModel, scorer: TrieScorer | LengthScorer, *, longest: int, pad_id: int | None
) -> None:
    """Compare what a scorer says of random texts with what the model's own forward pass says.

    Args:
        model: For sequence classification, in evaluation mode.
        scorer: How it is asked.
        longest: Longest sequence that it reads.
        pad_id: Where a causal model stops reading, `read_part`; None for others.

    Raises:
        ModelUnsuitableError: If they differ by more than rounding, or are no finite numbers.

    Cost:
        Some two hundred tokens.
    """
    random = np.random.default_rng(0)
    vocabulary = int(model.get_input_embeddings().num_embeddings)
    texts = [random.integers(1, vocabulary, min(length, longest)) for length in _LENGTHS for _ in range(2)]
    if pad_id is not None:
        texts.append(np.append(texts[2][: longest - 1], pad_id))
    head = RewardHead(model, scorer.choice)
    with torch.inference_mode():
        rows = (torch.from_numpy(text)[None].to(model.device) for text in texts)
        logits = [model(input_ids=row, attention_mask=torch.ones_like(row)).logits.float() for row in rows]
        expected = np.concatenate([head.of_logits(one) for one in logits])
    found = scorer.score([Variants(tuple(read_part(text, pad_id) for text in texts))], lambda: None)[0]
    if not (np.isfinite(expected).all() and np.isfinite(found).all()):
        raise ModelUnsuitableError("its scores are no finite numbers; expected other weights, or another dtype")
    difference = float(np.abs(found - expected).max())
    if difference > ALLOWED_SPREAD * least_spread(model.dtype, expected):
        raise ModelUnsuitableError(
            f"its own forward pass scores texts otherwise than its states and its head do, by up to {difference:.2g}; "
            "a model that has more between them cannot be asked here"
        )
