"""OAR-P: one token of the reasoning at a time is replaced, and the change of the outcome is its sensitivity.

Legend: `N` tokens that are read, `R` of them measured, `n` answer tokens.

Every variant goes on from keys and values of the clean tokens before its change. Variants whose changes are near to
each other are rows of one pass, which begins at the first change of them: the few clean tokens that the others read
again cost less than a pass of their own.

Reference: OAR, arXiv:2601.07408v1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from creditd.engines.answer_heads import AnswerHead
from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.outcome_probes import (
    answer_ids,
    answer_places,
    changes,
    measured_places,
    n_logits,
    outcome_of,
    read_tokens,
)
from creditd.engines.policy_passes import Passes, Rows
from creditd.engines.policy_protocol import ProbeName, ReasonedTokens

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

READ_AGAIN = {"cpu": 8, "cuda": 48}
"""Clean tokens that a row of a pass reads again at most, by the kind of device: what another pass would cost.

A pass over m rows reads some m²/2 tokens again and saves the start of a pass, some tokens' worth on a processor and
some hundreds' on a GPU.
"""
MOST_ROWS = 64
"""Rows of one pass at most: keys and values of their beginning stand before each of them, in one layer at a time."""


def groups_of(
    places: Integers, n_tokens: int, *, most_tokens: int, read_again: int, most_rows: int = MOST_ROWS
) -> Iterator[slice]:
    """Variants that are rows of one pass.

    Args:
        places: Shape (R,), int64, ascending: what is replaced, one token in each variant.
        n_tokens: Tokens of a row, N.
        most_tokens: Most tokens of a pass; a longer row goes by itself.
        read_again: Most clean tokens that a row reads again.
        most_rows: Most rows of a pass.

    Yields:
        Slices of `places`, in order; each is one pass from its first place on.

    Cost:
        O(R).
    """
    start = 0
    while start < len(places):
        first = int(places[start])
        room = min(most_rows, max(1, most_tokens // (n_tokens - first)))
        stop = min(int(np.searchsorted(places, first + read_again, side="right")), start + room)
        yield slice(start, stop)
        start = stop


def perturbation_tokens(item: ReasonedTokens, *, most_tokens: int, read_again: int, shares: bool) -> int:
    """Tokens that go through the model for an item.

    Args:
        item: R measured tokens.
        most_tokens: As `groups_of`.
        read_again: As `groups_of`.
        shares: Whether variants go on from the clean tokens before them.

    Cost:
        O(R).
    """
    places = measured_places(item)
    n_tokens: int = len(item.prompt_ids) + item.answer[1] - 1
    if not shares:
        return n_tokens * (1 + len(places))
    groups = groups_of(places, n_tokens, most_tokens=most_tokens, read_again=read_again)
    return n_tokens + sum(len(places[group]) * (n_tokens - int(places[group.start])) for group in groups)


def perturbed(
    passes: Passes,
    head: AnswerHead,
    item: ReasonedTokens,
    *,
    probe: ProbeName,
    token_id: int,
    most_tokens: int,
    most_rows: int = MOST_ROWS,
) -> Floats:
    """The sensitivity of each measured token.

    last, answer_mean:  I_t = KL(p ‖ p^{t→token}), over the full vocabulary
    answer_joint:       I_t = λ − λ^{t→token}, signed

    Args:
        passes: The policy.
        head: From what its passes return to logits.
        item: R measured tokens.
        probe: What of the answer is looked at.
        token_id: What replaces a token; length, positions and attention stay what they are.
        most_tokens: Most tokens of a pass.
        most_rows: Most rows of a pass.

    Returns:
        Shape (R,), float64, nats.

    Cost:
        One pass over all tokens, and for each measured token those behind it, its own included.

    Reference:
        arXiv:2601.07408v1.

    Differs from the paper:
        The KL divergence is taken in float64 of logits in float32. A token that equals the one it is replaced by has
        sensitivity 0.
    """
    tokens, places = read_tokens(item), measured_places(item)
    reads = answer_places(item, probe)
    answer = torch.from_numpy(answer_ids(item)).to(passes.device)
    found = np.empty(len(places))
    with torch.no_grad():
        states, cache = passes.clean(Rows(tokens[None], (reads,)))
        vocabulary = n_logits(states[0], head)
        clean = outcome_of(torch.stack(states), head, answer, probe, vocabulary=vocabulary)
        read_again = READ_AGAIN.get(passes.device.type, READ_AGAIN["cuda"])
        changed = places if passes.shares else np.zeros_like(places)
        for group in groups_of(
            changed, len(tokens), most_tokens=most_tokens, read_again=read_again, most_rows=most_rows
        ):
            start = int(changed[group.start])
            rows = np.repeat(tokens[None, start:], group.stop - group.start, axis=0)
            rows[np.arange(len(rows)), places[group] - start] = token_id
            states = passes.after(Rows(rows, (reads - start,) * len(rows), start), cache)
            changed_by = changes(clean, torch.stack(states), head, answer, probe, vocabulary=vocabulary)
            found[group] = changed_by.cpu().numpy()
    # Reading it again would give nothing but rounding.
    found[tokens[places] == token_id] = 0.0
    return found


def perturbation_passes(
    item: ReasonedTokens, *, most_tokens: int, read_again: int, shares: bool, most_rows: int = MOST_ROWS
) -> int:
    """How many passes `perturbed` makes of an item; the arguments are those of `groups_of`."""
    places = measured_places(item)
    places = places if shares else np.zeros_like(places)
    n_tokens = len(item.prompt_ids) + item.answer[1] - 1
    groups = groups_of(places, n_tokens, most_tokens=most_tokens, read_again=read_again, most_rows=most_rows)
    return 1 + sum(1 for _ in groups)


def padding_to_perturb(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, generation: GenerationConfig | None = None
) -> int:
    """The padding token, where it stands for nothing else.

    Args:
        tokenizer: The policy's.
        config: The policy's.
        generation: The policy's configuration of generation, which may name further tokens that end a text. None: it
            has none.

    Raises:
        ModelUnsuitableError: If there is none, or it ends a text as well: a token has to be named then.
    """
    pad_id = tokenizer.pad_token_id
    if pad_id is None:
        raise ModelUnsuitableError("the tokenizer has no padding token; expected a token_id to perturb with")
    ends = {tokenizer.eos_token_id}
    for named in (config.get_text_config().eos_token_id, None if generation is None else generation.eos_token_id):
        ends |= set(named) if isinstance(named, list | tuple) else {named}
    if pad_id in ends:
        raise ModelUnsuitableError(
            "the padding token is the end of a text as well; expected a token_id to perturb with"
        )
    return int(pad_id)
