"""Rows of OpenRLHF's experiences and what creditd has of them: which tokens the policy wrote, and numbers for each.

Legend: `B` rows of one experience, `T` tokens of a row, prompt and completion, padded on the right. Masks and
advantages have shape (B, T − 1): column t belongs to the token at t + 1, which the policy wrote where `action_mask`
is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """One completion.

    Attributes:
        place: Of its experience, and of the row in it.
        begin: Column of its first token, in masks and advantages.
        prompt: Text.
        label: What the data has beside the prompt.
        prompt_ids: Tokens before the completion.
        ids: Its tokens, from the first one that the policy wrote to the last one that is no padding.
        written: For each of them 1 if the policy wrote it, else 0.
        cut_off: Whether its generation ended by its length, as OpenRLHF or an agent says.
        other: OpenRLHF's own reward of it; None where there is none.
    """

    place: tuple[int, int]
    begin: int
    prompt: str
    label: Any
    prompt_ids: list[int]
    ids: list[int]
    written: list[int]
    cut_off: bool
    other: float | None


def rows_of_batch(experiences: Sequence[Any]) -> list[Row]:
    """The completions of a batch in the order in which they were generated, so that groups are whole.

    Args:
        experiences: OpenRLHF's, whose `index` says which completion each row is.

    Returns:
        One per completion.

    Raises:
        ValueError: If a shape is not that of the legend, padding is not on the right, a completion is missing or there
            twice, or a reward is more than one number.
    """
    rows: dict[int, Row] = {}
    for number, experience in enumerate(experiences):
        count, width = _shape(experience)
        given = experience.rewards
        if given is not None and given.numel() != count:
            raise ValueError(
                f"got rewards of shape {tuple(given.shape)} for {count} completions; expected one number for each: "
                "token rewards cannot come from --reward.remote_url"
            )
        others = [None] * count if given is None else given.reshape(-1).tolist()
        for row, index in enumerate(experience.index):
            if index in rows:
                raise ValueError(f"got completion {index} twice; expected each once")
            rows[index] = _row(experience, (number, row), width, others[row])
    if sorted(rows) != list(range(len(rows))):
        raise ValueError(f"got completions {sorted(rows)}; expected 0 to {len(rows) - 1}, each once")
    return [rows[index] for index in range(len(rows))]


def _shape(experience: Any) -> tuple[int, int]:  # noqa: ANN401 - carries no types
    """Rows and tokens of an experience."""
    count, width = experience.sequences.shape
    for name, expected in (("attention_mask", (count, width)), ("action_mask", (count, width - 1))):
        got = tuple(getattr(experience, name).shape)
        if got != expected:
            raise ValueError(f"got {name} of shape {got} with sequences of shape {(count, width)}; expected {expected}")
    for name in ("index", "prompts", "labels"):
        if len(getattr(experience, name)) != count:
            raise ValueError(f"got {len(getattr(experience, name))} {name} of {count} completions; expected one each")
    return count, width


def _row(experience: Any, place: tuple[int, int], width: int, other: float | None) -> Row:  # noqa: ANN401 - as above
    """One row without its padding."""
    row = place[1]
    attended, mask = experience.attention_mask[row].bool(), experience.action_mask[row].bool()
    length = int(attended.sum())
    if not attended[:length].all() or mask[max(length - 1, 0) :].any():
        raise ValueError(
            f"got row {row} of experience {place[0]} with padding before its end; expected it on the right"
        )
    wrote = mask.nonzero().reshape(-1).tolist()
    begin = wrote[0] if wrote else max(length - 1, 0)
    tokens = experience.sequences[row].tolist()
    return Row(
        place=place,
        begin=begin,
        prompt=experience.prompts[row],
        label=experience.labels[row],
        prompt_ids=tokens[: min(begin + 1, width)],
        ids=tokens[begin + 1 : length],
        written=mask[begin : max(length - 1, 0)].long().tolist(),
        cut_off=experience.truncated is not None and bool(experience.truncated.reshape(-1)[row]),
        other=None if other is None or other != other else float(other),  # noqa: PLR0124 - NaN: nobody knows
    )


def check_groups(prompts: Sequence[str], group_size: int) -> None:
    """Refuse a batch whose blocks of `group_size` are not the completions of one prompt each.

    Args:
        prompts: Of each completion, in the order of generation.
        group_size: G.

    Raises:
        ValueError: If a group is split, or mixed with another one.
    """
    if len(prompts) % group_size:
        raise ValueError(
            f"got {len(prompts)} completions; expected whole groups of {group_size}, one behind the other: one is split"
        )
    for start in range(0, len(prompts), group_size):
        if len(set(prompts[start : start + group_size])) > 1:
            raise ValueError(
                f"got completions {start} to {start + group_size - 1} of different prompts; expected groups of "
                f"{group_size} of one prompt, one behind the other"
            )


def columns_of(
    experiences: Sequence[Any], rows: Sequence[Row], values: Sequence[Sequence[float]]
) -> list[torch.Tensor]:
    """Numbers of tokens as OpenRLHF has advantages.

    Args:
        experiences: B rows each.
        rows: Theirs, by `rows_of_batch`.
        values: One number per token of each row.

    Returns:
        Per experience shape (B, T − 1), float32, on the device of its mask; exactly 0 where the policy did not write.

    Raises:
        ValueError: If there are more or fewer numbers than tokens, or one is not finite.
    """
    made = [torch.zeros(one.action_mask.shape, dtype=torch.float32) for one in experiences]
    for row, own in zip(rows, values, strict=True):
        number, place = row.place
        given = torch.tensor(list(own), dtype=torch.float32)
        if len(given) != len(row.ids) or not torch.isfinite(given).all():
            raise ValueError(
                f"got {len(given)} numbers for row {place} of experience {number}; expected {len(row.ids)} finite "
                "ones, one per token"
            )
        written = torch.tensor(row.written, dtype=torch.bool)
        made[number][place, row.begin : row.begin + len(given)] = torch.where(written, given, 0.0)
    return [one.to(experience.action_mask.device) for one, experience in zip(made, experiences, strict=True)]


def rewards_of(experiences: Sequence[Any], rows: Sequence[Row], values: Sequence[float | None]) -> list[torch.Tensor]:
    """One number of each completion, as OpenRLHF has rewards.

    Args:
        experiences: B rows each.
        rows: Theirs.
        values: One per row; None where nobody knows.

    Returns:
        Per experience shape (B,), float32; NaN where nobody knows.
    """
    made = [torch.full((len(one.index),), torch.nan, dtype=torch.float32) for one in experiences]
    for row, value in zip(rows, values, strict=True):
        if value is not None:
            made[row.place[0]][row.place[1]] = value
    return made


def fill_up(samples: Sequence[Any]) -> None:
    """Mark rewards that OpenRLHF failed to fetch as unknown; it would drop those of all samples beside them.

    A sample whose reward did not come has none of what came with the others' (`score`, extra logs) either: these are
    NaN there, so that OpenRLHF finds as many of each as there are samples.

    Args:
        samples: Of one row each, as they were generated; changed in place.
    """
    if all(one.rewards is not None for one in samples):
        return
    unknown = torch.full((1,), torch.nan)
    scored = any(one.scores is not None for one in samples)
    names = {"reward", *(name for one in samples for name in one.info)}
    for one in samples:
        if one.rewards is None:
            one.rewards = unknown.clone()
        if scored and one.scores is None:
            one.scores = unknown.clone()
        for name in names - one.info.keys():
            one.info[name] = unknown.clone()
