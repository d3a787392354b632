"""From the body of `/v1/credit/group` to advantages: one translation for the service and for local mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import USABLE, number_name, unusable_numbers
from creditd.credit.group_advantages import GRPO_EPSILONS, group_advantages
from creditd.wire import v1
from creditd.wire.columns import RequestLimits, check_rows, numbers_or_missing
from creditd.wire.errors import ErrorCode
from creditd.wire.validation import wire_error

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]


class RowFailure(NamedTuple):
    """Why one row has no advantages.

    Attributes:
        row: The prompt.
        code: Stable name of the kind of failure.
        pointer: JSON pointer into the request.
        detail: One sentence, "got …, expected …".
    """

    row: int
    code: ErrorCode
    pointer: str
    detail: str


@dataclass(frozen=True)
class GroupRows:
    """Advantages of B rows of responses.

    Attributes:
        advantages: Shape (N,), float64, row after row; NaN throughout a row that failed.
        row_splits: Shape (B + 1,), int64.
        flags: Shape (B,), int64, bits of `creditd.credit.flags.Flag`; 0 for a row that failed.
        errors: At most one per row, by row.
    """

    advantages: Floats
    row_splits: Integers
    flags: Integers
    errors: tuple[RowFailure, ...]

    @property
    def ok(self) -> Booleans:
        """True for each row that has an answer, shape (B,)."""
        answered = np.ones(len(self.flags), dtype=np.bool_)
        answered[[error.row for error in self.errors]] = False
        return answered


def solve_group(request: v1.GroupRequest, limits: RequestLimits) -> GroupRows:
    """Advantages of whole responses, row by row.

    Args:
        request: A valid request; an empty row is a prompt without responses.
        limits: Bounds on the number of rows.

    Returns:
        One answer or one error per row. A row's advantages are the same to the last bit whatever rows travel with it.

    Raises:
        WireError: If there are too many rows, or the request expects candidates, which whole responses do not have.
    """
    check_rows(len(request.rewards), limits)
    if request.expect.candidates is not None:
        raise wire_error(
            ErrorCode.INVALID_REQUEST, "/expect/candidates", "whole responses have no candidates; expected null"
        )
    rewards, missing = numbers_or_missing([reward for row in request.rewards for reward in row])
    lengths = np.array([len(row) for row in request.rewards], dtype=np.int64)
    splits = np.append(np.int64(0), np.cumsum(lengths))
    groups = np.repeat(np.arange(len(lengths)), lengths)
    absent = np.zeros(len(rewards), dtype=np.bool_) if missing is None else missing
    errors = {
        **_wrong_sizes(lengths, request.expect.group_size),
        **_unusable(rewards, absent, groups, splits),
    }
    failed = np.zeros(len(lengths), dtype=np.bool_)
    failed[list(errors)] = True
    choice = request.advantage
    result = group_advantages(
        rewards,
        groups,
        len(lengths),
        rule=choice.type,
        ddof=choice.ddof,
        epsilon=GRPO_EPSILONS[request.convention] if choice.epsilon is None else choice.epsilon,
        missing=absent | failed[groups],
    )
    return GroupRows(
        advantages=np.where(failed[groups], np.nan, result.advantages),
        row_splits=splits,
        flags=np.where(failed, 0, result.flags),
        errors=tuple(errors[row] for row in sorted(errors)),
    )


def _wrong_sizes(lengths: Integers, expected: int | None) -> dict[int, RowFailure]:
    """Rows of another size than the caller is sure of."""
    if expected is None:
        return {}
    return {
        row: RowFailure(
            row,
            ErrorCode.GROUP_SIZE_MISMATCH,
            f"/rewards/{row}",
            f"the row holds {lengths[row]} rewards; expected {expected}",
        )
        for row in np.flatnonzero(lengths != expected).tolist()
    }


def _unusable(rewards: Floats, missing: Booleans, groups: Integers, splits: Integers) -> dict[int, RowFailure]:
    """Rows with a number that the arithmetic cannot take; the first of a row gives the error."""
    failures: dict[int, RowFailure] = {}
    for code, wrong in reversed(unusable_numbers(rewards, missing)):
        index = np.flatnonzero(wrong)
        rows, first = np.unique(groups[index], return_index=True)
        for row, flat in zip(rows.tolist(), index[first].tolist(), strict=True):
            detail = f"reward is {number_name(rewards[flat])}; expected {USABLE} or null"
            failures[row] = RowFailure(row, ErrorCode(code), f"/rewards/{row}/{flat - int(splits[row])}", detail)
    return failures
