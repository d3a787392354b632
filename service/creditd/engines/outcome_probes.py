"""What of an answer is looked at, and how much it changes: distributions and likelihoods of answer tokens.

Legend: `V` tokens of the vocabulary, `n` answer tokens, `N` tokens that are read for them.

Reference: OAR, arXiv:2601.07408v1.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from creditd.engines.answer_heads import AnswerHead
from creditd.engines.policy_protocol import ProbeName, ReasonedTokens

Integers: TypeAlias = NDArray[np.int64]


def read_tokens(item: ReasonedTokens) -> Integers:
    """The tokens of a completion that its answer is predicted from, and that come before its last token.

    Args:
        item: With P tokens of a prompt.

    Returns:
        Shape (N,), int64: the prompt and the completion up to the token that predicts the last one of the answer.
    """
    return np.concatenate([item.prompt_ids, item.completion_ids[: item.answer[1] - 1]]).astype(np.int64)


def measured_places(item: ReasonedTokens) -> Integers:
    """Where the measured tokens stand in `read_tokens`, shape (R,), int64."""
    return len(item.prompt_ids) + np.asarray(item.positions, dtype=np.int64)


def answer_places(item: ReasonedTokens, probe: ProbeName) -> Integers:
    """Where in `read_tokens` the answer tokens that a probe looks at are predicted, int64.

    Args:
        item: With an answer of n tokens.
        probe: `last` looks at the first one alone, others at all.
    """
    first = len(item.prompt_ids) + item.answer[0] - 1
    n_tokens = 1 if probe == "last" else item.answer[1] - item.answer[0]
    return np.arange(first, first + n_tokens, dtype=np.int64)


def answer_ids(item: ReasonedTokens) -> Integers:
    """The tokens of the answer, shape (n,), int64."""
    return np.asarray(item.completion_ids[slice(*item.answer)], dtype=np.int64)


def outcome(logits: torch.Tensor, answer: torch.Tensor, probe: ProbeName) -> torch.Tensor:
    """What a probe sees, with a gradient if the logits have one.

    last, answer_mean:  log softmax(mean of the logits over the answer tokens)
    answer_joint:       λ, the mean of the log-likelihoods of the answer tokens

    Args:
        logits: Shape (rows, n, V): those that predict the tokens that the probe looks at; (rows, 1, V) where their mean
            was taken before.
        answer: Shape (n,), int64: the tokens of the answer; read for `answer_joint` alone.
        probe: What is looked at.

    Returns:
        float64: shape (rows, V) of log-probabilities, or (rows,) of λ in nats.

    Cost:
        A copy of the logits in float64.
    """
    if probe == "answer_joint":
        known = torch.log_softmax(logits.double(), dim=-1)
        return known.gather(-1, answer[None, :, None].expand(len(known), -1, -1))[..., 0].mean(dim=1)
    return torch.log_softmax(logits.mean(dim=1).double(), dim=-1)


def logits_of(states: torch.Tensor, head: AnswerHead, probe: ProbeName) -> torch.Tensor:
    """What a head makes of the states that a probe looks at.

    Args:
        states: Shape (rows, n, D).
        head: Of a linear one the mean of the states is taken before, where the mean of the logits is looked at.
        probe: What is looked at.

    Returns:
        Shape (rows, n, V), or (rows, 1, V) of the mean.
    """
    if head.averages and probe != "answer_joint":
        states = states.to(torch.promote_types(states.dtype, torch.float32)).mean(dim=1, keepdim=True)
    n_rows, n_read, width = states.shape
    return head(states.reshape(n_rows * n_read, width)).reshape(n_rows, n_read, -1)


def change(clean: torch.Tensor, found: torch.Tensor, probe: ProbeName) -> torch.Tensor:
    """How far outcomes are from the clean one.

    last, answer_mean:  KL(p_clean ‖ p) = Σ_v p_clean(v)·(log p_clean(v) − log p(v)), over the full vocabulary
    answer_joint:       λ_clean − λ

    Args:
        clean: One row of `outcome`, shape (1, V) or (1,).
        found: Rows of `outcome`.
        probe: What is looked at.

    Returns:
        Shape (rows,), float64, nats; not negative but for rounding, or signed for `answer_joint`.

    Reference:
        arXiv:2601.07408v1.
    """
    if probe == "answer_joint":
        return clean - found
    # Where the clean probability is 0, so is the term, whatever the other one is.
    terms = torch.where(clean == -torch.inf, 0.0, clean.exp() * (clean - found))
    return terms.sum(dim=-1)
