"""The sets of a request as columns, with the way back from an error to a pointer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import CandidateSets, SetError
from creditd.credit.group_sums import MAX_MAGNITUDE
from creditd.wire.validation import segment_of

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

_OF_SETS = {"set_reward": "set_rewards", "group": "groups", "prompt": "prompts"}
_OF_CANDIDATES = {"text": "texts", "span": "spans/starts", "id": "candidate_ids", "label": "labels", "union": "unions"}
_ROWS_OF_SETS = ("utilities", "similarities")
_ROWS_OF_CANDIDATES = ("topics", "scores")


@dataclass(frozen=True)
class SetBatch:
    """A request's sets, ready to be solved.

    Attributes:
        sets: The columns.
        rejected: Sets that lack something the request needs.
        ids: The callers' names of the sets, or None.
        nested: Whether the request came as `sets`.
        sizes_from: Pointer to the column that says how many candidates each set has.
        by_rows: The columns that came as lists of rows instead of flat values with row splits, by their pointers below
            `/columns/`.
        named: Numbers of each named reward that counts, shape (C,) each, NaN for null; None for rewards without a name.
    """

    sets: CandidateSets
    rejected: tuple[SetError, ...]
    ids: Sequence[str | int | None] | Integers | None
    nested: bool = True
    sizes_from: str = "/sets"
    by_rows: frozenset[str] = frozenset()
    named: Mapping[str, Floats] | None = None

    def pointer(self, error: SetError) -> str:
        """JSON pointer to what is wrong with a set, in the form in which the request came."""
        return self._nested_pointer(error) if self.nested else self._column_pointer(error)

    def _nested_pointer(self, error: SetError) -> str:
        base = f"/sets/{error.row}"
        if error.position is None:
            return f"{base}/{error.field}"
        if error.field == "utilities":
            return f"{base}/utilities/{error.position}"
        if error.field == "similarities":
            size = max(int(self.sets.sizes[error.row]), 1)
            return f"{base}/similarities/{error.position // size}/{error.position % size}"
        if error.field == "reward" and self.named is not None:
            name = self._culprit(self.named, int(self.sets.row_splits[error.row]) + error.position)
            return f"{base}/candidates/{error.position}/named_rewards" + ("" if name is None else f"/{name}")
        return f"{base}/candidates/{error.position}/{error.field}"

    def _column_pointer(self, error: SetError) -> str:
        row, position = error.row, error.position
        if error.field == "candidates":
            return self._size_pointer(row)
        if error.field in _ROWS_OF_SETS:
            return self._row_pointer(error.field, row, position, self._splits_of(error.field))
        if position is None:
            return f"/columns/{_OF_SETS.get(error.field, error.field)}/{row}"
        flat = int(self.sets.row_splits[row]) + position
        if error.field == "reward":
            return self._reward_pointer(row, position, flat)
        if error.field in _ROWS_OF_CANDIDATES:
            return self._row_pointer(error.field, flat, None, None)
        return f"/columns/{_OF_CANDIDATES[error.field]}/{flat}"

    def _size_pointer(self, row: int) -> str:
        if self.sizes_from.removeprefix("/columns/") in self.by_rows:
            return f"{self.sizes_from}/{row}"
        alone = self.sizes_from == "/columns/row_splits"
        return f"{self.sizes_from}/{row + 1}" if alone else f"{self.sizes_from}/row_splits/{row + 1}"

    def _reward_pointer(self, row: int, position: int, flat: int) -> str:
        column = "rewards"
        if self.named is not None:
            name = self._culprit(self.named, flat)
            if name is None:
                return "/columns/named_rewards"
            column = f"named_rewards/{name}"
        return f"/columns/{column}/{row}/{position}" if column in self.by_rows else f"/columns/{column}/values/{flat}"

    def _culprit(self, named: Mapping[str, Floats], flat: int) -> str | None:
        """The first named reward of a candidate that is no usable number, as a segment of a pointer, if any is."""
        if self.sets.missing is not None and self.sets.missing[flat]:
            return None
        wrong = (name for name in named if not abs(float(named[name][flat])) <= MAX_MAGNITUDE)
        found = next(wrong, None)
        return None if found is None else segment_of(found)

    def _splits_of(self, name: str) -> Integers | None:
        if name == "utilities":
            return self.sets.table_splits
        return None if self.sets.features is None else self.sets.features.similarity_splits

    def _row_pointer(self, name: str, row: int, position: int | None, splits: Integers | None) -> str:
        if name in self.by_rows:
            return f"/columns/{name}/{row}" + ("" if position is None else f"/{position}")
        if position is None or splits is None:
            return f"/columns/{name}/row_splits/{row + 1}"
        return f"/columns/{name}/values/{int(splits[row]) + position}"
