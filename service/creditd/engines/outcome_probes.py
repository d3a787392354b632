"""What of an answer is looked at, and how much it changes: distributions and likelihoods of answer tokens.

Legend: `V` tokens of the vocabulary, `n` answer tokens, `N` tokens that are read for them.

Reference: OAR, arXiv:2601.07408v1.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from creditd.engines.answer_heads import MOST_LOGITS, AnswerHead, PolicyHead
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
    """The tokens of the answer, shape (n,), int64; a copy, because those of a request may be read-only."""
    return np.array(item.completion_ids[slice(*item.answer)], dtype=np.int64)


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
        return _likelihoods(logits, answer.expand(len(logits), -1)).mean(dim=1)
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


def n_logits(states: torch.Tensor, head: AnswerHead) -> int:
    """Logits that a head makes of one state, V.

    Args:
        states: Shape (s, D), s ≥ 1.
        head: Any.

    Cost:
        O(1) for the head of a policy and for logits that are given, else a state through the head.
    """
    if isinstance(head, PolicyHead):
        return int(head.model.get_output_embeddings().weight.shape[0])
    with torch.no_grad():
        return int(head(states[:1]).shape[-1])


def outcome_of(
    states: torch.Tensor, head: AnswerHead, answer: torch.Tensor, probe: ProbeName, *, vocabulary: int
) -> torch.Tensor:
    """What a probe sees in states, without a gradient, some positions at a time so that logits stay few.

    Args:
        states: Shape (rows, n, D), as `logits_of` takes them.
        head: Makes logits.
        answer: Shape (n,), int64: the tokens of the answer.
        probe: What is looked at.
        vocabulary: Logits of each, V.

    Returns:
        As `outcome`.

    Cost:
        Each state through the head once; in memory are `MOST_LOGITS` logits, or those of one position, and what is
        returned.
    """
    with torch.no_grad():
        if len(states) * _n_asked(states, head, probe) * vocabulary <= MOST_LOGITS or _takes_one(states, head, probe):
            return outcome(logits_of(states, head, probe), answer, probe)
        step = max(1, MOST_LOGITS // vocabulary)
        if probe == "answer_joint":
            known = [
                _likelihoods(head(row[start : start + step]), answer[start : start + step]).sum()
                for row in states
                for start in range(0, len(row), step)
            ]
            return torch.stack(known).reshape(len(states), -1).sum(dim=1) / states.shape[1]
        return torch.cat([outcome(_mean_logits(row, head, step), answer, probe) for row in states])


def changes(
    clean: torch.Tensor,
    states: torch.Tensor,
    head: AnswerHead,
    answer: torch.Tensor,
    probe: ProbeName,
    *,
    vocabulary: int,
) -> torch.Tensor:
    """Changes of the outcomes of states, some rows at a time so that logits stay few.

    Args:
        clean: As `change`.
        states: As `outcome_of`.
        head: Makes logits.
        answer: As `outcome_of`.
        probe: What is looked at.
        vocabulary: As `outcome_of`.

    Returns:
        As `change`.

    Cost:
        As `outcome_of`.
    """
    step = max(1, MOST_LOGITS // (_n_asked(states, head, probe) * vocabulary))
    parts = [
        change(clean, outcome_of(states[start : start + step], head, answer, probe, vocabulary=vocabulary), probe)
        for start in range(0, len(states), step)
    ]
    return torch.cat(parts)


def change_gradient(
    clean: torch.Tensor,
    states: torch.Tensor,
    head: AnswerHead,
    answer: torch.Tensor,
    probe: ProbeName,
    *,
    vocabulary: int,
) -> torch.Tensor:
    """The gradient of a change with respect to the states of a row, some positions at a time.

    A mean of log-likelihoods has a gradient for each position by itself. A mean of logits z̄ has ∂J/∂z̄ for all
    positions, a share 1/n of which goes back through the head at each.

    Args:
        clean: As `change`.
        states: Shape (n, D).
        head: Makes logits.
        answer: As `outcome_of`.
        probe: What is looked at.
        vocabulary: As `outcome_of`.

    Returns:
        Shape (n, D).

    Cost:
        Each state there and back through the head; once more there if the logits of a mean are too many to be kept.
    """
    n_read = len(states)
    if _n_asked(states[None], head, probe) * vocabulary <= MOST_LOGITS or _takes_one(states[None], head, probe):
        with torch.enable_grad():
            leaf = states.detach().requires_grad_()
            found = outcome(logits_of(leaf[None], head, probe), answer, probe)
            (whole,) = torch.autograd.grad(change(clean, found, probe).sum(), leaf)
        return whole
    step = max(1, MOST_LOGITS // vocabulary)
    of_mean: torch.Tensor | None = None
    if probe != "answer_joint":
        with torch.no_grad():
            mean = _mean_logits(states, head, step)
        with torch.enable_grad():
            mean.requires_grad_()
            (gradient,) = torch.autograd.grad(change(clean, outcome(mean, answer, probe), probe).sum(), mean)
        of_mean = gradient[0] / n_read
    parts: list[torch.Tensor] = []
    for start in range(0, n_read, step):
        with torch.enable_grad():
            leaf = states[start : start + step].detach().requires_grad_()
            logits = head(leaf)
            if of_mean is None:
                fall = -_likelihoods(logits, answer[start : start + step]).sum() / n_read
                (part,) = torch.autograd.grad(fall, leaf)
            else:
                (part,) = torch.autograd.grad(logits, leaf, of_mean.expand_as(logits))
        parts.append(part)
    return torch.cat(parts)


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


def _n_asked(states: torch.Tensor, head: AnswerHead, probe: ProbeName) -> int:
    """States of a row that go through the head."""
    return 1 if head.averages and probe != "answer_joint" else states.shape[1]


def _takes_one(states: torch.Tensor, head: AnswerHead, probe: ProbeName) -> bool:
    """Whether there are no fewer logits than those of one position."""
    return len(states) == 1 and _n_asked(states, head, probe) == 1


def _likelihoods(logits: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of tokens (…), by logits (…, V); float64."""
    return torch.log_softmax(logits.double(), dim=-1).gather(-1, answer[..., None])[..., 0]


def _mean_logits(states: torch.Tensor, head: AnswerHead, step: int) -> torch.Tensor:
    """The mean of the logits of states (n, D), shape (1, 1, V), of their type; some states at a time."""
    parts = (head(states[start : start + step]) for start in range(0, len(states), step))
    total: torch.Tensor | None = None
    kind = states.dtype
    for logits in parts:
        kind, summed = logits.dtype, logits.sum(dim=0, dtype=torch.float64)
        total = summed if total is None else total + summed
    if total is None:
        raise ValueError("got no states; expected those that predict an answer")
    return (total / len(states)).to(kind)[None, None]
