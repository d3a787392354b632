"""The tokens of every coalition of the units of a text, with each unit tokenised once wherever that is the same.

Units are put side by side as tokens where a tokeniser would have put them the same: for each two units that meet, their
texts are tokenised together once and compared with the two apart. A variant with a seam at which they differ is
tokenised as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]
Tokenize: TypeAlias = Callable[[str], Sequence[int] | Integers]

N_PROBES = 4
"""Spliced variants that are tokenised as a whole after all, the longest among them: one that differs undoes all."""


@dataclass(frozen=True)
class CoalitionTokens:
    """Token sequences of some coalitions.

    Attributes:
        sequences: One array of token ids per coalition, int64.
        spliced: Shape (V,), bool: which were put together from the tokens of their units.
    """

    sequences: tuple[Integers, ...]
    spliced: Booleans


@dataclass
class _Seams:
    """Which texts may stand behind which as tokens; each pair is looked at once."""

    tokenize: Tokenize
    texts: Sequence[str]
    tokens: list[Integers]
    known: dict[tuple[int, int], bool] = field(default_factory=dict)

    def holds(self, left: int, right: int) -> bool:
        """Whether two texts together have the tokens that they have apart."""
        pair = (left, right)
        if pair not in self.known:
            together = np.asarray(self.tokenize(self.texts[left] + self.texts[right]), dtype=np.int64)
            self.known[pair] = np.array_equal(together, np.concatenate([self.tokens[left], self.tokens[right]]))
        return self.known[pair]


def coalition_tokens(
    tokenize: Tokenize,
    prefix: str,
    units: Sequence[str],
    suffix: str,
    coalitions: Booleans,
    *,
    whole: Callable[[str], Integers],
    head: Sequence[int] | Integers = (),
    tail: Sequence[int] | Integers = (),
    stripped: bool = False,
) -> CoalitionTokens:
    """The tokens of a text with some of its units left out.

    Args:
        tokenize: Token ids of a text, without special tokens.
        prefix: Text before the first unit, in every variant.
        units: n texts.
        suffix: Text behind the last unit, in every variant.
        coalitions: Shape (V, n), bool: which units are there.
        whole: Token ids of a variant from the text of its units, special tokens included: what splicing has to equal.
        head: Special tokens before everything.
        tail: Special tokens behind everything.
        stripped: Whether `whole` drops spaces around the text of the units, as some chat templates do.

    Returns:
        For each coalition the tokens that `whole` has.

    Raises:
        ValueError: If the coalitions are not about n units.

    Cost:
        Each unit and each pair of units that meet is tokenised once, and a variant as a whole where a seam does not
        hold, or where spaces at its ends are stripped. Seams are judged by the two texts that meet; what depends on
        more is looked for in a few variants.
    """
    if coalitions.ndim != 2 or coalitions.shape[1] != len(units):
        raise ValueError(f"coalitions must have shape (V, {len(units)}): got {coalitions.shape}")
    texts = [prefix, *units, suffix]
    first, last = (np.asarray(ids, dtype=np.int64) for ids in (head, tail))
    tokens = [np.asarray(tokenize(text), dtype=np.int64) for text in texts]
    seams = _Seams(tokenize, texts, tokens)
    n_units = len(units)
    members = [[unit for unit in np.flatnonzero(row).tolist() if units[unit]] for row in coalitions]
    present = [[place for place in (0, *(unit + 1 for unit in row), n_units + 1) if texts[place]] for row in members]
    spliced = [
        (bool(row) or not suffix)
        and (not stripped or _is_bare(units, row))
        and all(seams.holds(*pair) for pair in pairwise(places))
        for row, places in zip(members, present, strict=True)
    ]

    def side_by_side(row: int) -> Integers:
        return np.concatenate([first, *(tokens[place] for place in present[row]), last])

    def together(row: int) -> Integers:
        return np.asarray(whole("".join(units[unit] for unit in members[row])), dtype=np.int64)

    candidates = sorted((row for row, holds in enumerate(spliced) if holds), key=lambda row: -len(present[row]))
    probes = candidates[:1] + candidates[1 :: max(1, len(candidates) // N_PROBES)][: N_PROBES - 1]
    if any(not np.array_equal(together(row), side_by_side(row)) for row in probes):
        spliced = [False] * len(present)
    sequences = [side_by_side(row) if holds else together(row) for row, holds in enumerate(spliced)]
    return CoalitionTokens(tuple(sequences), np.array(spliced, dtype=np.bool_))


def _is_bare(units: Sequence[str], row: list[int]) -> bool:
    """Whether a text begins and ends with something that is not stripped."""
    return bool(row) and not units[row[0]][0].isspace() and not units[row[-1]][-1].isspace()
