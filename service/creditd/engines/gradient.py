"""OAR-G: the gradient of the outcome's change at noisy embeddings, times the embeddings, is the sensitivity.

Legend: `B` items, `L` tokens of a row, `H` width of embeddings, `R` measured tokens, `n` answer tokens.

One clean pass, then for each draw of noise one noisy pass and one way back to the embeddings. Before the first measured
token nothing is noisy, so noisy passes go on from keys and values of the clean one.

Reference: OAR, arXiv:2601.07408v1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import DynamicCache

from creditd.engines.answer_heads import AnswerHead
from creditd.engines.noise import normal_noise
from creditd.engines.outcome_probes import (
    answer_ids,
    answer_places,
    change_gradient,
    measured_places,
    n_logits,
    outcome_of,
    read_tokens,
)
from creditd.engines.policy_passes import Passes, Rows, filled
from creditd.engines.policy_protocol import ReasonedTokens, SensitivityOptions

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Gradients:
    """Sensitivities of an item.

    Attributes:
        sensitivities: Shape (R,), float64, nats, not negative: the mean over draws.
        spread: mean_t(sd_t/√draws)/mean_t(s_t), sd with ddof 1; None for one draw, and where all of them are 0.
    """

    sensitivities: Floats
    spread: float | None


def gradient_tokens(items: Sequence[ReasonedTokens], n_draws: int, *, shares: bool) -> int:
    """Tokens that go forward through the model for items of one batch, without those that fill up rows.

    Args:
        items: What is measured together.
        n_draws: Draws of noise.
        shares: Whether noisy passes go on from the clean tokens before them.

    Cost:
        O(items).
    """
    first = _first_place(items) if shares else 0
    lengths = [len(item.prompt_ids) + item.answer[1] - 1 for item in items]
    return sum(lengths) + n_draws * sum(length - first for length in lengths)


def gradients(
    passes: Passes, head: AnswerHead, items: Sequence[ReasonedTokens], options: SensitivityOptions, *, pad_id: int
) -> list[Gradients]:
    """The sensitivity of each measured token of some items, in one batch.

    J = KL(p ‖ p_{e+ξ}), or λ − λ_{e+ξ} for `answer_joint`;  s_t = mean over draws of |⟨∇_{e_t} J, e_t⟩|

    ξ ~ N(0, noise_std²) at measured tokens alone; e_t is the clean embedding of token t.

    Args:
        passes: The policy; it computes in float32.
        head: From what its passes return to logits.
        items: B of them, each with at least one measured token.
        options: Probe, draws, seed and size of the noise.
        pad_id: Fills up rows.

    Returns:
        One for each item. Noise depends on seed, draw, place counted from the first measured token and hidden index
        alone, so equal items have equal noise wherever they stand.

    Cost:
        A pass over all tokens, and for each draw one over those from the first measured token on, there and back.
        Weights have no gradient.

    Reference:
        arXiv:2601.07408v1.

    Differs from the paper:
        Draws are averaged, and noise is a function of the token's place. All is computed in float32: in bfloat16 the
        ranking is lost.
    """
    batch = _Batch.begun(passes, head, items, options, pad_id)
    draws = [batch.draw(number) for number in range(options.noise_samples)]
    return [_gathered(np.stack(found)) for found in zip(*draws, strict=True)]


@dataclass(frozen=True)
class _Batch:
    """Items after their clean pass.

    Attributes:
        passes: The policy.
        head: Makes logits.
        options: Probe and noise.
        rows: What noisy passes read.
        cache: Keys and values of the clean tokens before them.
        places: For each row its measured columns.
        answers: For each row the tokens of its answer.
        clean: For each row the clean outcome.
        vocabulary: Logits of each position.
    """

    passes: Passes
    head: AnswerHead
    options: SensitivityOptions
    rows: Rows
    cache: DynamicCache | None
    places: tuple[Integers, ...]
    answers: tuple[torch.Tensor, ...]
    clean: tuple[torch.Tensor, ...]
    vocabulary: int

    @classmethod
    def begun(
        cls,
        passes: Passes,
        head: AnswerHead,
        items: Sequence[ReasonedTokens],
        options: SensitivityOptions,
        pad_id: int,
    ) -> _Batch:
        """The clean pass."""
        tokens = filled([read_tokens(item) for item in items], pad_id)
        reads = tuple(answer_places(item, options.probe) for item in items)
        answers = tuple(torch.from_numpy(answer_ids(item)).to(passes.device) for item in items)
        with torch.no_grad():
            states, cache = passes.clean(Rows(tokens, reads))
            vocabulary = n_logits(states[0], head)
            clean = tuple(
                outcome_of(state[None], head, answer, options.probe, vocabulary=vocabulary)
                for state, answer in zip(states, answers, strict=True)
            )
        start = _first_place(items) if cache is not None else 0
        later = Rows(tokens[:, start:], tuple(one - start for one in reads), start)
        places = tuple(measured_places(item) - start for item in items)
        return cls(passes, head, options, later, cache, places, answers, clean, vocabulary)

    def draw(self, number: int) -> list[Floats]:
        """|⟨∇_{e_t} J, e_t⟩| of one draw, for each row shape (R,)."""
        made = self.passes.noisy(self.rows, self.cache, lambda width: self._noise(number, width))
        # The way through the head is gone for one item at a time, so that logits are few.
        through_head = [
            change_gradient(
                self.clean[row], states, self.head, self.answers[row], self.options.probe, vocabulary=self.vocabulary
            )
            for row, states in enumerate(made.states)
        ]
        (gradient,) = torch.autograd.grad(made.states, made.leaf, through_head)
        products = (gradient.double() * made.clean.double()).sum(dim=-1).abs().cpu().numpy()
        return [products[row, columns] for row, columns in enumerate(self.places)]

    def _noise(self, number: int, width: int) -> torch.Tensor:
        """Shape (B, L, width), float32: 0 but at measured tokens."""
        options, device = self.options, self.passes.device
        longest = max(int(columns[-1] - columns[0]) + 1 for columns in self.places)
        normal = options.noise_std * torch.from_numpy(normal_noise(options.seed, number, longest, width)).to(device)
        noise = torch.zeros((*self.rows.tokens.shape, width), device=device)
        for row, columns in enumerate(self.places):
            there = torch.from_numpy(columns).to(device)
            noise[row, there] = normal[there - there[0]]
        return noise


def _first_place(items: Sequence[ReasonedTokens]) -> int:
    """The first token of a batch that is noisy."""
    return min(int(measured_places(item)[0]) for item in items)


def _gathered(draws: Floats) -> Gradients:
    """The mean over draws, shape (draws, R), and how far it is known."""
    n_draws, mean = len(draws), draws.mean(axis=0)
    if n_draws == 1 or not mean.size or not mean.any():
        return Gradients(mean, None)
    error = draws.std(axis=0, ddof=1) / np.sqrt(n_draws)
    return Gradients(mean, float(error.mean() / mean.mean()))
