"""Which requests are answered on the event loop itself.

A hop to a thread and back costs a small request a good part of what its arithmetic does, and keeps the loop no freer:
the two take turns. What may take over a millisecond or two goes to a thread, so that probes are answered meanwhile.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
from pydantic import BaseModel

from creditd.credit.order_statistics import OrderStatistic
from creditd.wire.buffers import NumbersAndNulls
from creditd.wire.fields import Ragged
from creditd.wire.v1 import RewardColumn, SetColumns, ShapleyRequest

_UTILITIES = frozenset(utility.type for utility in get_args(OrderStatistic))
"""Utilities whose credits cost one sort."""
_CREDITS = frozenset({"shapley", "leave_one_out", "own_reward", "set_reward", "max_at_k", "mixture"})
"""Rules that solve a set once."""
_TOKENS_PER_NUMBER = 8
"""A token advantage costs this much less than the advantage of a candidate."""
_NESTED = 16
"""An answer set by set costs this many times one in columns."""


def is_small(asked: BaseModel, most: int) -> bool:
    """Whether a request takes no longer than a hop to a thread is worth.

    Args:
        asked: A valid request.
        most: Candidates of the largest request in columns that is small; 0: none is.

    Returns:
        True for candidate sets under a utility and a rule of one sort, of at most so many candidates.

    Cost:
        O(1) for columns of buffers, else one look at each row.
    """
    if not most or not isinstance(asked, ShapleyRequest):
        return False
    if asked.utility.type not in _UTILITIES or asked.credit.type not in _CREDITS:
        return False
    if asked.columns is not None:
        return _columns(asked.columns, tokens=asked.tokens is not None) <= most
    sets = asked.sets or []
    if len(sets) * _NESTED > most:
        return False
    candidates = sum(len(one.candidates) for one in sets)
    tokens = sum(abs(one.n_tokens or 0) for one in sets) if asked.tokens is not None else 0
    return candidates * _NESTED + tokens / _TOKENS_PER_NUMBER <= most


def _columns(columns: SetColumns, *, tokens: bool) -> float:
    rewards: list[RewardColumn] = [] if columns.rewards is None else [columns.rewards]
    rewards += (columns.named_rewards or {}).values()
    candidates = sum(map(_length, rewards))
    if not tokens or columns.n_tokens is None:
        return candidates
    # As floats, because nobody has looked at the counts yet.
    return candidates + float(np.abs(np.asarray(columns.n_tokens, dtype=np.float64)).sum()) / _TOKENS_PER_NUMBER


def _length(rewards: RewardColumn) -> int:
    """Candidates of a column of rewards in any form."""
    if isinstance(rewards, Ragged):
        return len(rewards.values)
    if isinstance(rewards, list):
        return sum(map(len, rewards))
    return int((rewards.values if isinstance(rewards, NumbersAndNulls) else rewards).size)
