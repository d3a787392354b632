"""Sequences of nearly equal length side by side: what models without a trie are asked with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]


def length_batches(sequences: Sequence[Integers], most_tokens: int, turn: int | None = None) -> Iterator[list[int]]:
    """Places of sequences by length, as many at a time as a forward pass has room for.

    Args:
        sequences: Token ids.
        most_tokens: Most tokens of one batch, padding included; one longer sequence goes by itself.
        turn: Sequences up to this length and longer ones go apart. None: they need not.

    Yields:
        Places of one batch; together each place once.
    """
    order = sorted(range(len(sequences)), key=lambda place: len(sequences[place]))
    start = 0
    while start < len(order):
        stop = start + 1
        shortest = len(sequences[order[start]])
        while stop < len(order):
            length = len(sequences[order[stop]])
            turns = turn is not None and shortest <= turn < length
            if turns or length * (stop + 1 - start) > most_tokens:
                break
            stop += 1
        yield order[start:stop]
        start = stop


def padded(sequences: Sequence[Integers], pad_id: int, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences as rows, filled up at their ends.

    Args:
        sequences: Token ids, none of them empty.
        pad_id: Fills up what is shorter.
        device: Where the rows go.

    Returns:
        Token ids and what is present, 1 or 0, both int64 of shape (rows, longest).
    """
    ids = np.full((len(sequences), max(map(len, sequences))), pad_id, dtype=np.int64)
    mask = np.zeros(ids.shape, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
