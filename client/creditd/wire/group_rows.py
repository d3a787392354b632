"""From the body of `/v1/credit/group` to advantages: one translation for the service and for local mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import USABLE, number_name, unusable_numbers
from creditd.credit.group_advantages import (
    GRPO_EPSILONS,
    GroupAdvantages,
    gdpo_advantages,
    group_advantages,
    weighted_rewards,
)
from creditd.credit.group_sums import MAX_MAGNITUDE
from creditd.credit.whitening import Whitening
from creditd.wire import groups
from creditd.wire.arrays import flat_rows, numbers_or_missing
from creditd.wire.errors import ErrorCode
from creditd.wire.limits import RequestLimits, check_rows
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


@dataclass(frozen=True)
class _Rewards:
    """Rewards of all names, flat, row after row.

    Attributes:
        values: Shape (M, N), float64, names in alphabetical order.
        missing: Shape (M, N), bool.
        pointers: Where the rows of each name stand in the request.
        names: The names; None for rewards without one.
        row_splits: Shape (B + 1,), int64.
        groups: Shape (N,), int64: the row of each response.
    """

    values: Floats
    missing: Booleans
    pointers: tuple[str, ...]
    names: tuple[str, ...] | None
    row_splits: Integers
    groups: Integers

    @property
    def lengths(self) -> Integers:
        """Responses of each row, shape (B,)."""
        return np.diff(self.row_splits)

    def place(self, flat: int) -> tuple[int, int]:
        """Row of a response, and its position there."""
        row = int(self.groups[flat])
        return row, flat - int(self.row_splits[row])


def solve_group(request: groups.GroupRequest, limits: RequestLimits) -> GroupRows:
    """Advantages of whole responses, row by row.

    Args:
        request: A valid request; an empty row is a prompt without responses.
        limits: Bounds on the number of rows.

    Returns:
        One answer or one error per row. A row's advantages are the same to the last bit whatever rows travel with it,
        but for `reinforce++_baseline` and `gdpo`, which depend on all rows that have an answer, by definition. The
        order of rows, of the responses in them and of names changes no bit.

    Raises:
        WireError: If there are too many rows, if rows of names or of tokens differ in length, if weights name no
            reward or are all 0, or if the request expects candidates, which whole responses do not have.
    """
    rewards = _rewards_of(request, limits)
    if request.expect.candidates is not None:
        raise wire_error(
            ErrorCode.INVALID_REQUEST, "/expect/candidates", "whole responses have no candidates; expected null"
        )
    weights, n_tokens = _weights_of(request, rewards), _tokens_of(request, rewards)
    errors = {
        **_unfit_sums(request, rewards, weights),
        **_wrong_sizes(rewards, request.expect.group_size),
        **_negative_tokens(rewards, n_tokens),
        **_unusable(rewards),
    }
    failed = np.zeros(len(rewards.lengths), dtype=np.bool_)
    failed[list(errors)] = True
    result = _advantages(request, rewards, weights, n_tokens, failed[rewards.groups])
    return GroupRows(
        advantages=np.where(failed[rewards.groups], np.nan, result.advantages),
        row_splits=rewards.row_splits,
        flags=np.where(failed, 0, result.flags),
        errors=tuple(errors[row] for row in sorted(errors)),
    )


def _advantages(
    request: groups.GroupRequest, rewards: _Rewards, weights: Floats, n_tokens: Integers | None, failed: Booleans
) -> GroupAdvantages:
    """What the library says, with the responses of rows that failed left out."""
    choice, n_rows = request.advantage, len(rewards.lengths)
    epsilon = GRPO_EPSILONS[request.convention] if choice.epsilon is None else choice.epsilon
    tokens = None if n_tokens is None else np.where(failed, 0, n_tokens)
    if choice.type == "gdpo":
        return gdpo_advantages(
            rewards.values,
            weights,
            rewards.groups,
            n_rows,
            ddof=choice.ddof,
            epsilon=epsilon,
            whitening=_whitening_of(request),
            n_tokens=tokens,
            missing=rewards.missing | failed,
        )
    sums, lacking = weighted_rewards(rewards.values, weights, rewards.missing | failed)
    return group_advantages(
        sums,
        rewards.groups,
        n_rows,
        rule=choice.type,
        ddof=choice.ddof,
        epsilon=epsilon,
        k=choice.k,
        threshold=choice.threshold,
        whitening=_whitening_of(request),
        n_tokens=tokens,
        missing=lacking,
    )


def _whitening_of(request: groups.GroupRequest) -> Whitening | None:
    choice = request.advantage.whitening
    if choice is None:
        return Whitening(request.convention)
    return None if choice.type == "none" else Whitening(choice.type, ddof=choice.ddof, epsilon=choice.epsilon)


def _rewards_of(request: groups.GroupRequest, limits: RequestLimits) -> _Rewards:
    """The rewards of a request as arrays, their rows checked against each other."""
    names = tuple(sorted(request.rewards)) if isinstance(request.rewards, dict) else None
    if isinstance(request.rewards, dict):
        by_name = [request.rewards[name] for name in sorted(request.rewards)]
        pointers = tuple(f"/rewards/{_escaped(name)}" for name in sorted(request.rewards))
    else:
        by_name, pointers = [request.rewards], ("/rewards",)
    check_rows(len(by_name[0]), limits)
    flat = [flat_rows(rows) for rows in by_name]
    lengths = flat[0][1]
    for (_, own), pointer in zip(flat, pointers, strict=True):
        _check_shape(own, lengths, pointer)
    columns = [numbers_or_missing(values) for values, _ in flat]
    nowhere = np.zeros(sum(lengths), dtype=np.bool_)
    return _Rewards(
        values=np.stack([values for values, _ in columns]),
        missing=np.stack([nowhere if missing is None else missing for _, missing in columns]),
        pointers=pointers,
        names=names,
        row_splits=np.append(np.int64(0), np.cumsum(np.array(lengths, dtype=np.int64))),
        groups=np.repeat(np.arange(len(lengths)), lengths),
    )


def _weights_of(request: groups.GroupRequest, rewards: _Rewards) -> Floats:
    """One weight per name, 1 where none is given."""
    given = request.weights or {}
    if request.weights is not None and rewards.names is None:
        detail = "weights belong to named rewards; expected rewards as an object of rows by name"
        raise wire_error(ErrorCode.INVALID_REQUEST, "/weights", detail)
    names = rewards.names or ("",)
    for name in given:
        if name not in names:
            raise wire_error(ErrorCode.INVALID_REQUEST, f"/weights/{_escaped(name)}", "there is no such reward")
    weights = np.array([given.get(name, 1.0) for name in names], dtype=np.float64)
    if not weights.any():
        raise wire_error(ErrorCode.INVALID_REQUEST, "/weights", "every weight is 0; expected one that is not")
    return weights


def _tokens_of(request: groups.GroupRequest, rewards: _Rewards) -> Integers | None:
    """Trainable tokens of each response, shape (N,), if they are given."""
    if request.n_tokens is None:
        return None
    counts, lengths = flat_rows(request.n_tokens)
    _check_shape(lengths, rewards.lengths.tolist(), "/n_tokens")
    return np.asarray(counts, dtype=np.int64)


def _check_shape(lengths: Sequence[int], expected: Sequence[int], pointer: str) -> None:
    """Refuse rows that do not fit those of the first reward."""
    if len(lengths) != len(expected):
        raise wire_error(ErrorCode.SHAPE_MISMATCH, pointer, f"got {len(lengths)} rows; expected {len(expected)}")
    for row, (length, wanted) in enumerate(zip(lengths, expected, strict=True)):
        if length != wanted:
            detail = f"got {length} entries; expected {wanted}, one per response"
            raise wire_error(ErrorCode.SHAPE_MISMATCH, f"{pointer}/{row}", detail)


def _escaped(name: str) -> str:
    """A name as a segment of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def _wrong_sizes(rewards: _Rewards, expected: int | None) -> dict[int, RowFailure]:
    """Rows of another size than the caller is sure of."""
    if expected is None:
        return {}
    return {
        row: RowFailure(
            row,
            ErrorCode.GROUP_SIZE_MISMATCH,
            f"{rewards.pointers[0]}/{row}",
            f"the row holds {rewards.lengths[row]} rewards; expected {expected}",
        )
        for row in np.flatnonzero(rewards.lengths != expected).tolist()
    }


def _unusable(rewards: _Rewards) -> dict[int, RowFailure]:
    """Rows with a number that the arithmetic cannot take; the first of a row gives the error."""
    failures: dict[int, RowFailure] = {}
    for name in reversed(range(len(rewards.values))):
        values = rewards.values[name]
        for code, wrong in reversed(unusable_numbers(values, rewards.missing[name])):
            for row, place, flat in _first_of_rows(rewards, wrong):
                detail = f"reward is {number_name(values[flat])}; expected {USABLE} or null"
                failures[row] = RowFailure(row, ErrorCode(code), f"{rewards.pointers[name]}/{row}/{place}", detail)
    return failures


def _negative_tokens(rewards: _Rewards, n_tokens: Integers | None) -> dict[int, RowFailure]:
    """Rows with a number of tokens below 0."""
    if n_tokens is None:
        return {}
    return {
        row: RowFailure(
            row, ErrorCode.INVALID_REQUEST, f"/n_tokens/{row}/{place}", f"got {n_tokens[flat]} tokens; expected ≥ 0"
        )
        for row, place, flat in _first_of_rows(rewards, n_tokens < 0)
    }


def _unfit_sums(request: groups.GroupRequest, rewards: _Rewards, weights: Floats) -> dict[int, RowFailure]:
    """Rows whose rewards the rule cannot take: sums that are too large, or neither right nor wrong."""
    if request.advantage.type == "gdpo":
        return {}
    usable = ~np.logical_or.reduce(
        [
            unusable
            for column in zip(rewards.values, rewards.missing, strict=True)
            for _, unusable in unusable_numbers(*column)
        ]
    )
    failures: dict[int, RowFailure] = {}
    sums, lacking = weighted_rewards(np.where(usable, rewards.values, 0.0), weights, rewards.missing)
    what = "reward" if rewards.names is None else "the weighted sum of the rewards of a response"
    judged = request.advantage.type == "pass_at_k" and request.advantage.threshold is None
    for wrong, expected in (
        (judged & ~lacking & (sums != 0.0) & (sums != 1.0), "0 or 1, because pass_at_k got no threshold"),
        (~lacking & (np.abs(sums) > MAX_MAGNITUDE), USABLE),
    ):
        for row, place, flat in _first_of_rows(rewards, wrong & usable):
            pointer = f"/rewards/{row}/{place}" if rewards.names is None else f"{rewards.pointers[0]}/{row}/{place}"
            detail = f"{what} is {number_name(sums[flat])}; expected {expected}"
            failures[row] = RowFailure(row, ErrorCode.INVALID_REQUEST, pointer, detail)
    return failures


def _first_of_rows(rewards: _Rewards, wrong: Booleans) -> list[tuple[int, int, int]]:
    """Row, position and flat index of the first offence of each row that has one."""
    index = np.flatnonzero(wrong)
    _, first = np.unique(rewards.groups[index], return_index=True)
    return [(*rewards.place(flat), flat) for flat in index[first].tolist()]
