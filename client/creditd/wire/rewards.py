"""One reward per candidate from one column of rewards, or from several named ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import RewardPart
from creditd.wire import v1
from creditd.wire.arrays import Values, numbers_or_missing
from creditd.wire.errors import ErrorCode
from creditd.wire.validation import MAX_SEGMENT, segment_of, wire_error

Floats: TypeAlias = NDArray[np.float64]
Booleans: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class RewardColumns:
    """Rewards of C candidates.

    Attributes:
        rewards: Shape (C,), float64: the reward, or the weighted sum of the named ones; NaN where missing.
        missing: Shape (C,), bool; True where any reward with a weight is null. None: nowhere.
        parts: The named rewards, in the order of their names, where each is normalised by itself.
        named: Numbers of each named reward that has a weight, NaN for null; None for rewards without a name.
    """

    rewards: Floats
    missing: Booleans | None
    parts: tuple[RewardPart, ...] | None = None
    named: Mapping[str, Floats] | None = None


def single(values: Values, aggregation: v1.AggregationChoice) -> RewardColumns:
    """Rewards without a name.

    Args:
        values: Numbers and nulls.
        aggregation: Must not speak of names.

    Returns:
        The numbers themselves.

    Raises:
        WireError: If there are weights for names.
    """
    if aggregation.weights:
        detail = "weights belong to named rewards; expected null beside rewards without names"
        raise wire_error(ErrorCode.INVALID_REQUEST, "/aggregation/weights", detail)
    rewards, missing = numbers_or_missing(values)
    return RewardColumns(rewards=rewards, missing=missing)


def combined(named: Mapping[str, Values], aggregation: v1.AggregationChoice) -> RewardColumns:
    """Named rewards with their weights, added in the order of their names.

    Args:
        named: Numbers and nulls by name, equally many.
        aggregation: Weights, and what is done first.

    Returns:
        Their weighted sum; a candidate that has a null in a reward of nonzero weight is missing.

    Raises:
        WireError: If a weight names no reward, or no reward has a weight.
    """
    weights = aggregation.weights or {}
    unknown = sorted(set(weights) - set(named))
    if unknown:
        pointer = f"/aggregation/weights/{segment_of(unknown[0])[:MAX_SEGMENT]}"
        raise wire_error(ErrorCode.INVALID_REQUEST, pointer, "there is no such reward")
    used = [(name, weights.get(name, 1.0)) for name in sorted(named) if weights.get(name, 1.0)]
    if not used:
        raise wire_error(
            ErrorCode.INVALID_REQUEST, "/aggregation/weights", "all weights are 0; expected one that is not"
        )
    parts, missing = [], np.zeros(len(named[used[0][0]]), dtype=np.bool_)
    for name, weight in used:
        values, absent = numbers_or_missing(named[name])
        parts.append(RewardPart(weight=weight, rewards=values))
        if absent is not None:
            missing |= absent
    # Too large a sum is infinite, or no number, and fails its set by name.
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.cumsum([part.weight * part.rewards for part in parts], axis=0)[-1]
    return RewardColumns(
        rewards=total,
        missing=missing if missing.any() else None,
        parts=tuple(parts) if aggregation.type == "normalize_then_sum" else None,
        named={name: part.rewards for (name, _), part in zip(used, parts, strict=True)},
    )
