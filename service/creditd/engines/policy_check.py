"""Whether a policy goes on from what it read before as if it read the whole row: found out when it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from creditd.engines.answer_heads import AnswerHead
from creditd.engines.policy_passes import Ask, Passes, Rows
from creditd.engines.self_check import declared_window

_ALLOWED_STEPS = 32
"""Steps of the type at the largest logit that rounding is taken for."""
_LONGEST_WINDOW = 1024
_PROMPT, _REST, _N_ROWS = 19, 13, 3


@dataclass(frozen=True)
class PolicyCheck:
    """What a policy made of some random rows.

    Attributes:
        error: Largest difference of logits between rows that go on from a beginning and whole rows; NaN if it failed.
        largest: Largest logit.
        passed: Whether the difference is rounding.
        failure: The kind of an exception, or what the configuration says. None: there was none.
    """

    error: float
    largest: float
    passed: bool
    failure: str | None = None


def check_beginnings(model: PreTrainedModel, ask: Ask, head: AnswerHead, *, longest: int, seed: int = 0) -> PolicyCheck:
    """Read random rows from their first token on, and from keys and values of their beginning on.

    Args:
        model: A causal language model in evaluation mode.
        ask: Its passes.
        head: From what they return to logits.
        longest: Longest sequence that it will be asked.
        seed: Of the rows.

    Returns:
        What came out. Beginnings are longer than a window of the model, up to 1024 tokens; wider ones are taken at
        their word.

    Cost:
        Four rows of some thirty tokens, or of the window and as many more.
    """
    random = np.random.default_rng(seed)
    window = declared_window(model, longest) or 0
    start = min(_PROMPT + (window if window <= _LONGEST_WINDOW else 0), max(1, longest - _REST))
    vocabulary = int(model.get_input_embeddings().num_embeddings)
    beginning = random.integers(1, vocabulary, start)
    rows = np.stack([np.concatenate([beginning, random.integers(1, vocabulary, _REST)]) for _ in range(_N_ROWS)])
    reads = np.arange(start, start + _REST)
    whole = Passes(ask, model.get_input_embeddings(), model.device, shares=False)
    going_on = Passes(ask, model.get_input_embeddings(), model.device, shares=True)
    with torch.inference_mode():
        expected = head(torch.cat(whole.clean(Rows(rows, (reads,) * _N_ROWS))[0]))
        largest = float(expected.abs().max())
        try:
            _, cache = going_on.clean(Rows(rows[:1], (reads,)))
            found = head(torch.cat(going_on.after(Rows(rows[:, start:], (reads - start,) * _N_ROWS, start), cache)))
        except Exception as error:  # noqa: BLE001 - whatever a model does without a cache of keys and values
            return PolicyCheck(float("nan"), largest, passed=False, failure=type(error).__name__)
    difference = float((found - expected).abs().max())
    allowed = _ALLOWED_STEPS * float(torch.finfo(model.dtype).eps) * largest
    return PolicyCheck(difference, largest, passed=difference <= allowed)
