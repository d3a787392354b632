"""Rows of tokens as training loops have them (lists, arrays, tensors), and numbers in the same form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from creditd.client import Ragged


def in_form_of(tokens: Any, rows: Ragged) -> Any:  # noqa: ANN401 - as above
    """Rows of numbers in the form in which tokens are held.

    Args:
        tokens: B lists, or an array or tensor of shape (B, T).
        rows: B rows, none longer than T.

    Returns:
        Lists of floats for lists; for a tensor of torch one of its shape, float32, on its device; else an array of the
        same shape, float64. There is 0 behind each row.
    """
    shape = getattr(tokens, "shape", None)
    if shape is None:
        return rows.to_list()
    padded = np.zeros(tuple(shape), dtype=np.float64)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    if type(tokens).__module__.partition(".")[0] != "torch":
        return padded
    import torch  # noqa: PLC0415 - whoever has one of its tensors has it

    return torch.from_numpy(padded).to(device=tokens.device, dtype=torch.float32)


def lengths_of(
    tokens: Any,  # noqa: ANN401 - as above
    lengths: Any,  # noqa: ANN401 - as above
    name: str = "lengths",
    of: str = "completion",
) -> list[int]:
    """Tokens of each completion, or of each prompt."""
    shape = getattr(tokens, "shape", None)
    if shape is not None and len(shape) != 2:
        raise ValueError(f"{of}_ids: got shape {tuple(shape)}; expected (B, T), or a list of rows")
    widths = [len(row) for row in tokens] if shape is None else [int(shape[1])] * int(shape[0])
    if lengths is None:
        return widths
    found = [int(length) for length in lengths]
    if len(found) != len(widths):
        raise ValueError(f"{name}: got {len(found)}; expected {len(widths)}, one per {of}")
    wrong = next(
        (row for row, (length, most) in enumerate(zip(found, widths, strict=True)) if not 0 <= length <= most), None
    )
    if wrong is not None:
        raise ValueError(f"{name}: got {found[wrong]} for {of} {wrong}, which has {widths[wrong]} tokens")
    return found


def prompt_rows(prompt_ids: Any, lengths: Any) -> list[list[int]]:  # noqa: ANN401 - as above
    """The last tokens of each row, as many as the prompt has."""
    widths = lengths_of(prompt_ids, None)
    kept = lengths_of(prompt_ids, lengths, "prompt_lengths", "prompt")
    rows = rows_of(prompt_ids, widths, "prompt_ids")
    return [
        [int(token) for token in row[width - length :]] for row, width, length in zip(rows, widths, kept, strict=True)
    ]


def rows_of(column: Any, lengths: Sequence[int], name: str) -> list[list[Any]]:  # noqa: ANN401 - as above
    """The first numbers of each row, as many as the completion has tokens."""
    rows = column.tolist() if hasattr(column, "tolist") else list(column)
    if len(rows) != len(lengths):
        raise ValueError(f"{name}: got {len(rows)} rows; expected {len(lengths)}, one per completion")
    listed = [row.tolist() if hasattr(row, "tolist") else list(row) for row in rows]
    for place, (row, length) in enumerate(zip(listed, lengths, strict=True)):
        if len(row) < length:
            raise ValueError(f"{name}: got {len(row)} entries for completion {place}; expected {length}, one per token")
    return [row[:length] for row, length in zip(listed, lengths, strict=True)]
