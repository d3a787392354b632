"""Which requests are answered on the event loop itself.

A hop to a thread and back costs a small request a good part of what its arithmetic does, and keeps the loop no freer:
the two take turns. What may take over a few milliseconds goes to a thread, so that probes are answered meanwhile.
"""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from creditd.credit.order_statistics import OrderStatistic
from creditd.wire.arrays import n_entries
from creditd.wire.buffers import NumbersAndNulls
from creditd.wire.fields import Ragged
from creditd.wire.v1 import RewardColumn, SetColumns, ShapleyRequest

_UTILITIES = frozenset(utility.type for utility in get_args(OrderStatistic))
"""Utilities whose credits cost one sort."""
_CREDITS = frozenset({"shapley", "leave_one_out", "own_reward", "set_reward", "max_at_k", "mixture"})
"""Rules that solve a set once."""
_TOKENS_PER_CANDIDATE = 8
"""A token advantage costs this much less than a candidate."""
_PER_SET = 8
"""A set costs as much as so many candidates, most of it where it fails."""
_PER_PLAYER_OF_A_SIZE = 128
"""The coefficients of sets of n candidates cost as much as so many times n candidates, the first time."""
_NESTED = 16
"""An answer set by set costs this many times one in columns."""


def is_small(asked: BaseModel, most: int) -> bool:
    """Whether a request takes no longer than a hop to a thread is worth.

    Args:
        asked: A valid request.
        most: Work of the largest request that is small, in candidates of a set in columns; 0: none is.

    Returns:
        True for candidate sets under a utility and a rule of one sort, of at most so much work: sets, sizes of sets and
        tokens count as well.

    Cost:
        O(sets), and no more than it finds small.
    """
    if not most or not isinstance(asked, ShapleyRequest):
        return False
    if asked.utility.type not in _UTILITIES or asked.credit.type not in _CREDITS:
        return False
    if asked.columns is not None:
        return _work_of_columns(asked.columns, most, tokens=asked.tokens is not None) <= most
    sets = asked.sets or []
    if len(sets) * _PER_SET > most:
        return False
    tokens = sum(abs(one.n_tokens or 0) for one in sets) if asked.tokens is not None else 0
    sizes = np.array([len(one.candidates) for one in sets], dtype=np.float64)
    return _NESTED * int(sizes.sum()) + _work_of_sizes(sizes) + tokens / _TOKENS_PER_CANDIDATE <= most


def _work_of_sizes(sizes: NDArray[np.float64]) -> int:
    """What sets cost beside their candidates."""
    if len(sizes) == 0:
        return 0
    different = sizes[:1] if (sizes == sizes[0]).all() else np.unique(sizes)
    return _PER_SET * len(sizes) + _PER_PLAYER_OF_A_SIZE * int(np.abs(different).sum())


def _work_of_columns(columns: SetColumns, most: int, *, tokens: bool) -> float:
    rewards: list[RewardColumn] = [] if columns.rewards is None else [columns.rewards]
    rewards += (columns.named_rewards or {}).values()
    work = 0.0
    for one in rewards:
        n_candidates, n_sets = n_entries(one), len(one.row_splits) if isinstance(one, Ragged) else len(one)
        if n_candidates + _PER_SET * n_sets > most:
            return math.inf
        work += n_candidates + _work_of_sizes(_sizes(one))
    if tokens and columns.n_tokens is not None:
        if len(columns.n_tokens) > most:
            return math.inf
        # As floats, because nobody has looked at the counts yet.
        work += float(np.abs(np.asarray(columns.n_tokens, dtype=np.float64)).sum()) / _TOKENS_PER_CANDIDATE
    return work


def _sizes(rewards: RewardColumn) -> NDArray[np.float64]:
    """Candidates of each set, as floats: nobody has looked at the row splits yet, and they may be far apart."""
    if isinstance(rewards, Ragged):
        splits = np.asarray(rewards.row_splits, dtype=np.float64)
        return splits[1:] - splits[:-1]
    if isinstance(rewards, list):
        return np.array([len(row) for row in rewards], dtype=np.float64)
    values = rewards.values if isinstance(rewards, NumbersAndNulls) else rewards
    return np.full(len(values), float(values.shape[1]))
