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
Tokenize: TypeAlias = Callable[[str], Sequence[int]]

N_PROBES = 4
"""Spliced variants that are tokenised as a whole after all, the longest among them: one that differs undoes all."""


@dataclass(frozen=True)
class CoalitionTokens:
    """Token sequences of some coalitions.

    Attributes:
        sequences: One array of token ids per coalition, int64.
        n_spliced: How many were put together from the tokens of their units.
    """

    sequences: tuple[Integers, ...]
    n_spliced: int


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
    tokenize: Tokenize, prefix: str, units: Sequence[str], suffix: str, coalitions: Booleans, head: Sequence[int] = ()
) -> CoalitionTokens:
    """The tokens of a text with some of its units left out.

    Args:
        tokenize: Token ids of a text, without special tokens.
        prefix: Text before the first unit, in every variant.
        units: n texts.
        suffix: Text behind the last unit, in every variant.
        coalitions: Shape (V, n), bool: which units are there.
        head: Special tokens before everything.

    Returns:
        For each coalition the tokens that the whole text of its variant has.

    Raises:
        ValueError: If the coalitions are not about n units.

    Cost:
        Each unit and each pair of units that meet is tokenised once, and a variant as a whole where a seam does not
        hold. Seams are judged by the two texts that meet; what depends on more is looked for in a few variants.
    """
    if coalitions.ndim != 2 or coalitions.shape[1] != len(units):
        raise ValueError(f"coalitions must have shape (V, {len(units)}): got {coalitions.shape}")
    texts = [prefix, *units, suffix]
    start = np.asarray(head, dtype=np.int64)
    tokens = [np.asarray(tokenize(text), dtype=np.int64) for text in texts]
    seams = _Seams(tokenize, texts, tokens)
    present = [[place for place in _present(row) if texts[place]] for row in coalitions.tolist()]
    spliced = [all(seams.holds(*pair) for pair in pairwise(places)) for places in present]

    def whole(places: list[int]) -> Integers:
        text = "".join(texts[place] for place in places)
        return np.concatenate([start, np.asarray(tokenize(text), dtype=np.int64)])

    def side_by_side(places: list[int]) -> Integers:
        return np.concatenate([start, *(tokens[place] for place in places)])

    candidates = sorted((row for row, holds in enumerate(spliced) if holds), key=lambda row: -len(present[row]))
    probes = candidates[:1] + candidates[1 :: max(1, len(candidates) // N_PROBES)][: N_PROBES - 1]
    if any(not np.array_equal(whole(present[row]), side_by_side(present[row])) for row in probes):
        spliced = [False] * len(present)
    sequences = [
        side_by_side(places) if holds else whole(places) for places, holds in zip(present, spliced, strict=True)
    ]
    return CoalitionTokens(tuple(sequences), sum(spliced))


def _present(row: list[bool]) -> list[int]:
    """Places of the texts of a variant: the prefix, its units, the suffix."""
    return [0, *(unit + 1 for unit, there in enumerate(row) if there), len(row) + 1]
