"""From what callers have to the body of `/v1/credit/group`; no IO."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from creditd.client.arrays import Integers, Rows, ragged, refusal


def group_rewards(rewards: Rows | Mapping[str, Rows]) -> tuple[Any, Integers, bool]:
    """Rewards of whole responses as the wire wants them.

    Args:
        rewards: One row per prompt, or such rows by name.

    Returns:
        Rows of numbers and None, or a mapping of them; the row splits of the first; whether there are names.

    Raises:
        InvalidRequestError: If a row is not one axis of numbers, or there is no name.
    """
    if not isinstance(rewards, Mapping):
        rows, splits = _rows(rewards, "rewards")
        return rows, splits, False
    found = {name: _rows(entry, f"rewards/{name}") for name, entry in rewards.items()}
    for _, splits in found.values():
        return {name: rows for name, (rows, _) in found.items()}, splits, True
    raise refusal("/rewards", "got no names; expected at least one reward")


def token_counts(n_tokens: Rows) -> list[list[Any]]:
    """Rows of numbers of tokens; floats of arrays that are integers become integers.

    Args:
        n_tokens: One row per prompt.

    Returns:
        Rows of Python numbers; what is no integer is left for the schema to refuse.

    Raises:
        InvalidRequestError: If a row is not one axis of numbers.
    """
    rows, _ = _rows(n_tokens, "n_tokens")
    rows = rows.tolist() if isinstance(rows, np.ndarray) else rows
    return [[int(n) if isinstance(n, float) and n.is_integer() else n for n in row] for row in rows]


def _rows(rows: Rows, name: str) -> tuple[Any, Integers]:
    """Rows of numbers, lists or one array of two axes, and their row splits."""
    values, splits = ragged(rows, name)
    if isinstance(values, np.ndarray) and len(splits) > 1 and len(set(np.diff(splits).tolist())) == 1:
        return values.reshape(len(splits) - 1, -1), splits
    return [values[start:stop] for start, stop in pairwise(splits.tolist())], splits
