"""The text of a completion from which some of its units are absent.

A rule for absent units is the text that stands in the place of a run of them: nothing (`delete`), a blank (`blank`), or
the text of a mask token (`mask_token`).

Reference: SCAR, arXiv:2505.20417, whose characteristic function is the reward of the units that are present, in order.
Differs from the paper: see `RenderedUnits`.
"""

from __future__ import annotations

from itertools import compress
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from creditd.credit.segments import first_overlap

Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]


class RenderedUnits:
    """Pieces of text of which every coalition of the units of a completion is put together.

    A run of consecutive absent units is one filler; frozen text between two units ends a run, and stands in every
    coalition. A unit without characters writes nothing where it is present, leaves no filler where it is absent, and
    ends no run, so that it is a null player.

    Args:
        completion: Text of N characters.
        characters: Shape (n, 2), integers, half-open ranges of the characters of each unit, ordered and disjoint. What
            is in no unit is frozen.
        filler: Text that stands for a run of absent units; may be empty.

    Attributes:
        pieces: P texts in order, none of them empty: what units write, frozen text, and a filler for each run that can
            begin. The text of a coalition is the concatenation of those that its row has.

    Raises:
        ValueError: The ranges overlap, are out of order, or are no ranges of the text.

    Cost:
        O(N + n). P ≤ 3n + 1.

    Reference:
        SCAR, arXiv:2505.20417, which fills absent units with empty space.

    Differs from the paper:
        The published code for spans collapses and strips the spaces afterwards, so that absent spans are deleted; for
        tokens it writes "..." for a run of them. Here the rule is named, and nothing is stripped.
    """

    def __init__(self, completion: str, characters: npt.ArrayLike, filler: str) -> None:
        ranges = _ranges(characters, len(completion))
        self.n_units = len(ranges)
        pieces: list[str] = []
        units: list[tuple[int, int]] = []
        fillers: list[tuple[int, int, int]] = []
        reached, before = 0, -1
        for unit, (start, stop) in enumerate(ranges.tolist()):
            if start > reached:
                pieces.append(completion[reached:start])
                before = -1
            if start < stop:
                if filler:
                    fillers.append((len(pieces), unit, before))
                    pieces.append(filler)
                units.append((len(pieces), unit))
                pieces.append(completion[start:stop])
                before = unit
            reached = max(reached, stop)
        if reached < len(completion):
            pieces.append(completion[reached:])
        self.pieces: tuple[str, ...] = tuple(pieces)
        self._units: Integers = np.array(units, dtype=np.int64).reshape(-1, 2)
        self._fillers: Integers = np.array(fillers, dtype=np.int64).reshape(-1, 3)

    def rows(self, coalitions: npt.ArrayLike) -> Booleans:
        """Which pieces the text of each coalition has.

        Args:
            coalitions: Shape (R, n), bool; True where the unit is present.

        Returns:
            Shape (R, P), bool. The pieces of the grand coalition are the completion.

        Raises:
            ValueError: The coalitions are not bools of n units.

        Cost:
            O(R·P).
        """
        present = np.asarray(coalitions)
        if present.ndim != 2 or present.shape[1] != self.n_units or present.dtype != np.bool_:
            raise ValueError(
                f"coalitions: got shape {present.shape} of {present.dtype}, expected (R, {self.n_units}) of bool"
            )
        has = np.ones((len(present), len(self.pieces)), dtype=np.bool_)
        has[:, self._units[:, 0]] = present[:, self._units[:, 1]]
        # Column n is for units before which a run cannot have begun.
        bounded = np.concatenate([present, np.ones((len(present), 1), dtype=np.bool_)], axis=1)
        place, unit, before = self._fillers.T
        has[:, place] = ~bounded[:, unit] & bounded[:, before]
        return has

    def text(self, coalition: npt.ArrayLike) -> str:
        """Text of one coalition.

        Args:
            coalition: Shape (n,), bool; True where the unit is present.

        Returns:
            The pieces that its row has, one behind the other.

        Raises:
            ValueError: The coalition is not a bool for each of n units.

        Cost:
            O(N + P).
        """
        return "".join(compress(self.pieces, self.rows(np.asarray(coalition)[None])[0]))


def _ranges(characters: npt.ArrayLike, n_characters: int) -> Integers:
    """Return the ranges as (n, 2) int64, once they are ordered, disjoint and inside the text."""
    overlap = first_overlap(characters)
    found = np.asarray(characters)
    ranges: Integers = found.astype(np.int64) if found.size else np.empty((0, 2), dtype=np.int64)
    outside = (ranges < 0).any(axis=1) | (ranges[:, 1] > n_characters)
    if overlap is not None or outside.any():
        unit = int(np.argmax(outside)) if overlap is None else overlap
        start, stop = ranges[unit].tolist()
        raise ValueError(
            f"unit {unit}: got characters [{start}, {stop}), expected a range of {n_characters} behind the unit before"
        )
    return ranges
