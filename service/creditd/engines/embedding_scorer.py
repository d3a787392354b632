"""An embedding model as the batcher sees it: one vector of length 1 per sequence.

The states of a sequence's tokens become one by their mean, by the first or by the last of them, in float32 whatever the
type of the weights; it is brought to length 1 in float64. What has no direction is no vector: a row of NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from creditd.engines.model_spec import Pooling
from creditd.engines.padded_batches import length_batches, padded
from creditd.engines.reward_scorers import Variants

Floats: TypeAlias = NDArray[np.float64]


class EmbeddingScorer:
    """An embedding model, by padded batches of different sequences of nearly equal length."""

    def __init__(self, model: PreTrainedModel, pooling: Pooling, *, most_tokens: int, pad_id: int) -> None:
        """Take a loaded model.

        Args:
            model: Gives `last_hidden_state`, in evaluation mode.
            pooling: How one vector is made of the states of tokens; special tokens are tokens.
            most_tokens: Most tokens of one forward pass, padding included.
            pad_id: Fills up what is shorter; masked.
        """
        self._model = model
        self._pooling = pooling
        self._most_tokens = most_tokens
        self._pad_id = pad_id

    def n_tokens(self, work: Variants) -> int:
        """Tokens of the distinct sequences."""
        return sum(map(len, work.distinct[0]))

    def score(self, works: Sequence[Variants], beat: Callable[[], None]) -> list[Floats]:
        """Vectors of the sequences of each work, in their order, shape (V, H) each; NaN where there is none.

        A sequence that several works have is computed once.
        """
        together = Variants(tuple(sequence for work in works for sequence in work.sequences))
        distinct, places = together.distinct
        order: list[int] = []
        parts: list[Floats] = []
        for batch in length_batches(distinct, self._most_tokens):
            beat()
            parts.append(self._forward([distinct[place] for place in batch]))
            order += batch
        vectors = np.concatenate(parts)[np.argsort(order)]
        splits = np.cumsum([len(work.sequences) for work in works])[:-1]
        return np.split(vectors[places], splits)

    def _forward(self, sequences: Sequence[NDArray[np.int64]]) -> Floats:
        tokens, present = padded(sequences, self._pad_id, self._model.device)
        with torch.inference_mode():
            states = self._model(input_ids=tokens, attention_mask=present).last_hidden_state
            pooled: Floats = self._pooled(states, present).double().cpu().numpy()
        with np.errstate(all="ignore"):
            lengths = np.sqrt(np.sum(pooled * pooled, axis=1, keepdims=True))
            vectors: Floats = pooled / lengths
        vectors[~(np.isfinite(vectors).all(axis=1) & np.isfinite(lengths[:, 0]))] = np.nan
        return vectors

    def _pooled(self, states: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """One state per row, shape (rows, H), float32."""
        if self._pooling == "mean":
            seen = states.float().masked_fill(present[:, :, None] == 0, 0.0)
            return seen.sum(dim=1) / present.sum(dim=1, keepdim=True)
        places = present.sum(dim=1) - 1 if self._pooling == "last" else torch.zeros_like(present[:, 0])
        return states[torch.arange(len(states), device=states.device), places].float()
