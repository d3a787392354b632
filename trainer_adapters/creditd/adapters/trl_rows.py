"""Rows of TRL's tensors and what creditd has of them: which are whose, and advantages as the loss takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from trl import GRPOTrainer

from creditd.adapters.credit_reward import OtherRewards

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def other_rewards(rewards: torch.Tensor, weights: torch.Tensor, place: int) -> OtherRewards:
    """What the other reward functions gave, without the column of creditd's own.

    A function whose weight is no larger than another's, and which says the same of every response, changes nothing once
    a group is standardised: so their sum is in units of the largest weight.

    Args:
        rewards: Shape (B, functions); NaN where a function gave none.
        weights: Shape (functions,).
        place: Of creditd's own.

    Returns:
        The weighted sum of each row, None where none of the functions gave anything, with the weights that matter.
    """
    own = float(weights[place])
    others = [column for column in range(rewards.shape[1]) if column != place and weights[column] != 0]
    if not others:
        return OtherRewards([None] * len(rewards), 0.0, own)
    given = rewards[:, others].double()
    of_each = weights[others].to(given)
    largest = float(of_each.abs().max())
    weighted = (given * (of_each / largest)).nansum(dim=1).tolist()
    absent = torch.isnan(given).all(dim=1).tolist()
    values = [None if missing else value for value, missing in zip(weighted, absent, strict=True)]
    return OtherRewards(values, largest, own)


def unknown_rows(rewards: torch.Tensor, place: int) -> torch.Tensor:
    """Completions whose own reward nobody knows.

    Args:
        rewards: Shape (B, functions); NaN where a function gave none.
        place: Of creditd's own.

    Returns:
        Shape (B,), bool.
    """
    return torch.isnan(rewards[:, place])


def without_unknown(rewards: torch.Tensor, place: int) -> torch.Tensor:
    """Rewards for TRL's advantages, in which a completion whose own reward is unknown has none at all.

    TRL sums the rewards that are there: with those of other functions alone, such a completion would be compared as if
    its own were 0. A row without any is in none of TRL's means and spreads, and has the advantage 0.

    Args:
        rewards: Shape (B, functions); NaN where a function gave none.
        place: Of creditd's own.

    Returns:
        A copy of the same shape, with the bits of all other rows.
    """
    return rewards.masked_fill(unknown_rows(rewards, place).unsqueeze(1), torch.nan)


def same_tokens(generated: Sequence[Sequence[int]], scored: Sequence[Sequence[int]]) -> bool:
    """Whether completions are the same, token by token."""
    return generated is scored or [list(row) for row in generated] == [list(row) for row in scored]


def filled_up(mask: Sequence[Sequence[int]], ids: Sequence[Sequence[int]]) -> list[list[int]]:
    """For each token 1 if the policy wrote it; TRL takes that to be true of all tokens which a mask does not reach."""
    return [[*given, *[1] * (len(row) - len(given))] for given, row in zip(mask, ids, strict=True)]


def check_rows(out: dict[str, Any], ids: Sequence[Sequence[int]], who: str, *, of_tokens: bool = False) -> None:
    """Refuse rows of the output that are not the completions that were scored: their advantages would be others'.

    Args:
        out: What the trainer made of a generation.
        ids: The completions that it generated, in order.
        who: Whose output it is, for errors.
        of_tokens: Whether one advantage for each token will do as well as one for each completion.

    Raises:
        ValueError: If a row holds other tokens, or advantages have another shape.
    """
    written, mask, base = out["completion_ids"], out["completion_mask"], out["advantages"]
    shapes = [(len(ids),), *([tuple(written.shape)] if of_tokens else [])]
    if len(written) != len(ids) or tuple(base.shape) not in shapes:
        raise ValueError(
            f"{who} returned {len(written)} completions with advantages of shape {tuple(base.shape)}; "
            f"expected the {len(ids)} that were scored, with one advantage each"
        )
    for row, expected in enumerate(ids):
        n_tokens = len(expected)
        if written[row, :n_tokens].tolist() != list(expected) or mask[row, n_tokens:].any():
            raise ValueError(f"{who} returned other tokens in row {row}; expected the completion that was scored there")


def filled(out: dict[str, Any], rows: Sequence[np.ndarray[Any, np.dtype[np.float64]]]) -> torch.Tensor:
    """Advantages as TRL's tensor: shape (B, T), float32, exactly 0 on padding and on tokens of tools."""
    ids = out["completion_ids"]
    advantages = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
    for row, values in enumerate(rows):
        advantages[row, : len(values)] = torch.from_numpy(np.asarray(values, dtype=np.float32))
    if (tool_mask := out.get("tool_mask")) is not None:
        advantages = advantages * tool_mask
    if not torch.isfinite(advantages).all():
        row = int(torch.isfinite(advantages).all(dim=1).logical_not().nonzero()[0])
        raise ValueError(f"an advantage of row {row} is not finite; expected a number for each token")
    return advantages


def replace_last(table: deque[float], values: list[float]) -> None:
    """Put values in the place of as many that were logged last."""
    for _ in range(min(len(values), len(table))):
        table.pop()
    table.extend(values)


def tokenizer_of(processing_class: Any) -> PreTrainedTokenizerBase:  # noqa: ANN401 - TRL says no type
    """The tokenizer, also of a processor for several modalities."""
    tokenizer: PreTrainedTokenizerBase = getattr(processing_class, "tokenizer", processing_class)
    return tokenizer


def overrider(trainer: GRPOTrainer, *own: type) -> str:
    """Name of the class, the adapter's own left out, whose way of generating and scoring the trainer has."""
    methods = {"_generate_and_score_completions", "_calculate_rewards", "_generate"}
    kinds = (kind for kind in type(trainer).__mro__ if kind not in own and methods & vars(kind).keys())
    return next(kinds, GRPOTrainer).__name__
