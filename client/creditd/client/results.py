"""What comes back: NumPy arrays in frozen records, the same from the service and from local mode.

Legend: `B` sets (or prompts), `C` candidates over all sets (or responses over all prompts), `T` tokens over all sets.
There is NaN wherever there is no number: in the slots of a failed set and of a candidate that is not a player.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from creditd.wire import v1

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, eq=False, repr=False)
class Ragged:
    """Rows of unequal length, flat.

    Attributes:
        values: Shape (C,), float64, row after row.
        row_splits: Shape (B + 1,), int64, from 0 to C: row b is values[row_splits[b]:row_splits[b + 1]].

    Raises:
        ValueError: If the two do not fit each other, or are not numbers.
    """

    values: Floats
    row_splits: Integers

    def __post_init__(self) -> None:
        values, splits = np.asarray(self.values), np.asarray(self.row_splits)
        if values.ndim != 1 or values.dtype.kind not in "fiub":
            raise ValueError(f"values: got shape {values.shape} and dtype {values.dtype}; expected one axis of numbers")
        if splits.ndim != 1 or splits.dtype.kind not in "iu":
            raise ValueError(
                f"row_splits: got shape {splits.shape} and dtype {splits.dtype}; expected one axis of integers"
            )
        if len(splits) < 1 or splits[0] != 0 or splits[-1] != len(values) or (splits[1:] < splits[:-1]).any():
            raise ValueError(
                f"row_splits: expected numbers that never fall, from 0 to {len(values)}, the number of values"
            )
        object.__setattr__(self, "values", values.astype(np.float64, copy=False))
        object.__setattr__(self, "row_splits", splits.astype(np.int64, copy=False))

    @classmethod
    def from_rows(cls, rows: Iterable[ArrayLike]) -> Ragged:
        """Rows one after another.

        Args:
            rows: Lists or arrays of numbers, each with one axis. None has no place here: pass lists of lists to the
                client for candidates that were not scored.

        Returns:
            As many rows as there were.

        Raises:
            ValueError: If a row is not one axis of numbers.
        """
        arrays = [np.asarray(row) for row in rows]
        for place, array in enumerate(arrays):
            if array.ndim != 1 or (array.dtype.kind not in "fiub" and len(array)):
                raise ValueError(
                    f"row {place}: got shape {array.shape} and dtype {array.dtype}; expected one axis of numbers"
                )
        return cls(
            values=np.concatenate([np.zeros(0), *arrays]),
            row_splits=np.append(np.int64(0), np.cumsum([len(array) for array in arrays], dtype=np.int64)),
        )

    def __len__(self) -> int:
        return len(self.row_splits) - 1

    def __getitem__(self, row: int) -> Floats:
        """One row as a view, shape (K,); negative numbers count from the end."""
        place = row + len(self) if row < 0 else row
        if not 0 <= place < len(self):
            raise IndexError(f"got row {row}; expected one of {len(self)} rows")
        return self.values[self.row_splits[place] : self.row_splits[place + 1]]

    def __iter__(self) -> Iterator[Floats]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        return f"Ragged({len(self)} rows, {len(self.values)} values)"

    def to_list(self) -> list[list[float]]:
        """Rows as lists of Python floats."""
        return [row.tolist() for row in self]


@dataclass(frozen=True)
class ItemError:
    """What is wrong, and where.

    Attributes:
        code: Stable name of the kind of error.
        pointer: JSON pointer into the request as it was sent.
        detail: One sentence, "got …, expected …".
        row: The set, or None if the whole request is wrong.
        candidate: Position of the candidate within its set, or None.
    """

    code: str
    pointer: str
    detail: str
    row: int | None = None
    candidate: int | None = None

    def __str__(self) -> str:
        place = "" if self.row is None else f"row {self.row}"
        if self.candidate is not None:
            place += f", position {self.candidate}"
        return f"{place} ({self.pointer}): {self.detail}" if place else f"{self.pointer}: {self.detail}"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Result:
    """What every answer has.

    Attributes:
        ok: Shape (B,), bool; True for each row that has an answer.
        flag_masks: Shape (B,), int64; bit i stands for flag_names[i].
        flag_names: Names of the bits.
        errors: Why the other rows have no answer, by row.
        usage: What the answer cost.
        request_id: Identity of the request.
        service: Who answered.
    """

    ok: Booleans
    flag_masks: Integers
    flag_names: tuple[str, ...]
    errors: tuple[ItemError, ...]
    usage: v1.Usage
    request_id: str
    service: v1.Service

    def __len__(self) -> int:
        return len(self.ok)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} rows, {len(self.errors)} errors, request_id={self.request_id!r})"

    @cached_property
    def flags(self) -> tuple[tuple[str, ...], ...]:
        """Names of what is unusual about each row, decoded when first asked for."""
        names = {mask: self._names(mask) for mask in np.unique(self.flag_masks).tolist()}
        return tuple(names[mask] for mask in self.flag_masks.tolist())

    def has_flag(self, name: str) -> Booleans:
        """Which rows carry a flag.

        Args:
            name: As in `flag_names`.

        Returns:
            Shape (B,), bool.

        Raises:
            ValueError: If no flag has this name.
        """
        if name not in self.flag_names:
            raise ValueError(f"got flag {name!r}; expected one of {', '.join(self.flag_names)}")
        found: Booleans = (self.flag_masks >> self.flag_names.index(name)) & 1 == 1
        return found

    def _names(self, mask: int) -> tuple[str, ...]:
        return tuple(name for bit, name in enumerate(self.flag_names) if mask >> bit & 1)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ShapleyResult(Result):
    """Credit of candidate sets.

    Attributes:
        credits: B rows of K credits, reward units.
        advantages: B rows of K advantages.
        token_advantages: B rows of one advantage per completion token, or None if not asked for.
        set_advantages: Shape (B,), float64, for tokens outside the candidates.
        set_reward_advantages: Shape (B,), float64: the GRPO advantage of `set_rewards`, or None without them.
        utility_empty: v(∅), shape (B,), float64, reward units.
        utility_grand: v(N), shape (B,), float64, reward units.
        credit_sum: Σ credit, shape (B,), float64, reward units.
        gap: Σ credit − (v(N) − v(∅)), shape (B,), float64; near 0 for efficient rules, and a fact of the others.
        exact: Whether the credits are exact values and not estimates.
        method: How they were found: the kernel of the utility, or of an estimate `stratified` or `permutations`;
            several are joined by +.
        standard_errors: B rows of one standard error per candidate, reward units, NaN for exact sets; None when all
            credits are exact.
        interval_low: B rows of the lower ends of marginal 95 % intervals, NaN where there is none; None without any.
        interval_high: The same of the upper ends.
        evaluations: Shape (B,), int64: coalitions that the caller evaluated, or None if it evaluated none.
        model: Id of the model that gave rewards, features or utilities, or None; `usage` says what it read.
        ids: The caller's names of the sets, or None.
    """

    credits: Ragged
    advantages: Ragged
    token_advantages: Ragged | None
    set_advantages: Floats
    set_reward_advantages: Floats | None
    utility_empty: Floats
    utility_grand: Floats
    credit_sum: Floats
    gap: Floats
    exact: bool
    method: str
    ids: tuple[str | int | None, ...] | None
    standard_errors: Ragged | None = None
    interval_low: Ragged | None = None
    interval_high: Ragged | None = None
    evaluations: Integers | None = None
    model: str | None = None


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class GroupResult(Result):
    """Advantages of whole responses.

    Attributes:
        advantages: One row per prompt, one entry per response; exactly 0 where the reward was None.
    """

    advantages: Ragged
