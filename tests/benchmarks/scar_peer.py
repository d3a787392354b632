"""SCAR the straightforward way: a loop over `shap`'s PartitionExplainer, and transformers with padded batches.

`shap.Explainer` with a masker for texts would cut them as its own tokenizer does; the masker here has the spans and the
balanced tree of the other side, and leaves absent spans out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from shap import PartitionExplainer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Floats = NDArray[np.float64]
MOST_EVALUATIONS = 1000
"""More than any tree here asks for, so that `shap` ends no value early."""


def balanced_clustering(n: int) -> Floats:
    """The balanced tree over n spans, the left child the larger, in the form of scipy's linkage: shape (n - 1, 4)."""
    rows: list[tuple[int, int, float, int]] = []

    def merged(low: int, high: int) -> int:
        if high - low == 1:
            return low
        middle = low + (high - low + 1) // 2
        left, right = merged(low, middle), merged(middle, high)
        rows.append((left, right, float(high - low), high - low))
        return n + len(rows) - 1

    merged(0, n)
    return np.array(rows, dtype=np.float64)


class SpanMasker:
    """Spans of one completion that are there or left out, as `shap` asks a masker for them."""

    def __init__(self, spans: Sequence[str]) -> None:
        """Keep the spans and their tree."""
        self.spans = np.array(spans, dtype=object)
        self.clustering = balanced_clustering(len(spans))
        self.shape = (1, len(spans))

    def __call__(self, mask: NDArray[np.bool_], _: object) -> tuple[NDArray[np.object_]]:
        """The text of a mask."""
        return (np.array(["".join(self.spans[np.asarray(mask, dtype=bool)])], dtype=object),)


class PeerLoop:
    """Owen values of completions one after another, and what that took."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Keep the model."""
        self._model, self._tokenizer = model, tokenizer
        self.n_texts = self.n_tokens = self.n_padded = self.n_passes = 0

    def values(self, prompts: Sequence[str], spans: Sequence[Sequence[str]], batch: int | str) -> list[Floats]:
        """Owen values of each completion's spans.

        Args:
            prompts: One per completion.
            spans: Texts of each completion's spans.
            batch: Masks that `shap` evaluates at a time at most; `auto`: its default.
        """
        self.n_texts = self.n_tokens = self.n_padded = self.n_passes = 0
        return [self._of_one(prompt, row, batch) for prompt, row in zip(prompts, spans, strict=True)]

    def _of_one(self, prompt: str, spans: Sequence[str], batch: int | str) -> Floats:
        explainer = PartitionExplainer(lambda texts: self._scores(prompt, texts), SpanMasker(spans))
        row = np.array(spans, dtype=object)[None]
        found = explainer(row, max_evals=MOST_EVALUATIONS, batch_size=batch, silent=True)
        return np.asarray(found.values[0], dtype=np.float64)

    def _scores(self, prompt: str, texts: Sequence[str]) -> Floats:
        read = self._tokenizer([prompt + text for text in texts], padding=True, return_tensors="pt")
        self.n_texts += len(texts)
        self.n_tokens += int(read["attention_mask"].sum())
        self.n_padded += read["attention_mask"].numel()
        self.n_passes += 1
        with torch.inference_mode():
            logits = self._model(**read, use_cache=False).logits
        return logits[:, 0].double().numpy()
