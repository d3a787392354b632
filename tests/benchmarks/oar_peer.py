"""OAR the straightforward way: plain transformers, a row for each replaced token, or two forward passes and a backward.

Both give a head to the positions that predict the answer alone, which the published code does not: a head for every
position would make the peer slower, and the comparison easier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from benchmarks.oar_workload import PAD, Workload

Floats = NDArray[np.float64]
Noise = Callable[[int, int], torch.Tensor]
"""Noise of some reasoning tokens: called with their number and the hidden size, shape (R, hidden)."""


class PeerModel:
    """Sensitivities by a model as transformers has it."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Keep the model, whose weights are frozen."""
        self._model = model
        self.n_tokens = self.n_passes = 0

    def perturbed(self, work: Workload, batch: int) -> list[Floats]:
        """KL(clean ‖ replaced) of each reasoning token, shape (R,) per completion, by full forward passes.

        Args:
            work: The completions.
            batch: Rows of one forward pass.
        """
        self.n_tokens = self.n_passes = 0
        found = []
        for row in self._rows(work):
            clean = self._clean(row[None], work.shape.answer)
            variants = row.repeat(work.shape.reasoning, 1)
            places = torch.arange(work.shape.reasoning, device=row.device)
            variants[places, work.shape.prompt + places] = PAD
            with torch.inference_mode():
                parts = [_divergence(clean, self._logits(part, work.shape.answer)) for part in variants.split(batch)]
            found.append(torch.cat(parts).double().cpu().numpy())
        return found

    def gradients(self, work: Workload, batch: int, noise: Noise) -> list[Floats]:
        """|⟨∇KL, e⟩| of each reasoning token, shape (R,) per completion: two forward passes and one backward.

        Args:
            work: The completions.
            batch: Rows of one forward pass.
            noise: What is added to the embeddings of the reasoning.
        """
        self.n_tokens = self.n_passes = 0
        return [row for part in self._rows(work).split(batch) for row in self._gradients_of(part, work, noise)]

    def _gradients_of(self, rows: torch.Tensor, work: Workload, noise: Noise) -> Sequence[Floats]:
        shape = work.shape
        inside = slice(shape.prompt, shape.prompt + shape.reasoning)
        clean = self._clean(rows, shape.answer)
        embedded = self._model.get_input_embeddings()(rows).detach()
        noisy = embedded.clone()
        noisy[:, inside] += noise(shape.reasoning, embedded.shape[-1]).to(embedded.device)
        noisy.requires_grad_()
        self._count(rows)
        logits = self._model(inputs_embeds=noisy, use_cache=False, logits_to_keep=shape.answer).logits
        divergence = _divergence(clean, _mean_log_probabilities(logits)).sum()
        (gradient,) = torch.autograd.grad(divergence, noisy)
        found = (gradient[:, inside] * embedded[:, inside]).sum(dim=-1).abs()
        return list(found.double().cpu().numpy())

    def _clean(self, rows: torch.Tensor, answer: int) -> torch.Tensor:
        with torch.inference_mode():
            found = self._logits(rows, answer)
        return found.clone()

    def _logits(self, rows: torch.Tensor, answer: int) -> torch.Tensor:
        """Log-probabilities of the mean of the logits that predict the answer, shape (rows, vocabulary)."""
        self._count(rows)
        return _mean_log_probabilities(self._model(input_ids=rows, use_cache=False, logits_to_keep=answer).logits)

    def _count(self, rows: torch.Tensor) -> None:
        self.n_tokens += rows.numel()
        self.n_passes += 1

    def _rows(self, work: Workload) -> torch.Tensor:
        """Every row up to the last token that predicts one of the answer."""
        rows = np.concatenate([work.prompts, work.completions], axis=1)
        return torch.from_numpy(rows[:, : work.shape.read]).to(self._model.device)


def _mean_log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().mean(dim=1).log_softmax(dim=-1)


def _divergence(clean: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(clean ‖ other) of each row."""
    return (clean.exp() * (clean - other)).sum(dim=-1)
