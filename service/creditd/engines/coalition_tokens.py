"""The tokens of every coalition of the units of a text, with each unit tokenised once wherever that is the same.

Tokenizers split texts before spaces and behind line breaks before anything else, and look at what stands between as a
whole. So units that meet anywhere else are one run, and so are two whose words at the seam have other tokens together
than apart, which is looked at once for each two that meet. Each run that occurs is tokenised once, and runs are put
side by side as tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]
Tokenize: TypeAlias = Callable[[str], Sequence[int] | Integers]
Run: TypeAlias = tuple[int, ...]
"""Places of texts that meet without a space."""

N_PROBES = 4
"""Spliced variants that are tokenised as a whole after all, the longest among them: one that differs undoes all."""
N_SEAMS = 32
"""Places at which texts meet that are looked at before it is believed that this tokenizer never takes them apart."""
MANY_PIECES, CRUMB = 64, 16
"""Texts of a variant from which on it is asked whether they are long enough to be looked at, and characters of each
that are: tokenizers read some million characters a second, and a look takes some microseconds."""
_ROWS_PER_LOOK = 256
"""Variants that are made before somebody is asked whether they are still wanted."""


def _nobody_asks() -> None:
    """Everything is wanted."""


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
class _Runs:
    """Tokens of runs of texts, and where runs end; each is looked at once."""

    tokenize: Tokenize
    texts: Sequence[str]
    known: dict[Run, Integers] = field(default_factory=dict)
    words: dict[str, list[int]] = field(default_factory=dict)
    seams: dict[tuple[str, str], bool] = field(default_factory=dict)

    def text(self, run: Sequence[int]) -> str:
        """The texts of a run, one behind the other."""
        return "".join(self.texts[place] for place in run)

    def tokens(self, run: Run) -> Integers:
        """Tokens of the texts of a run together."""
        if run not in self.known:
            self.known[run] = np.asarray(self.tokenize(self.text(run)), dtype=np.int64)
        return self.known[run]

    def of(self, places: Sequence[int]) -> list[Run]:
        """Texts that follow each other as runs."""
        pieces: list[list[int]] = []
        for place in places:
            if pieces and not _splits(self.texts[pieces[-1][-1]], self.texts[place]):
                pieces[-1].append(place)
            else:
                pieces.append([place])
        runs: list[list[int]] = []
        end = ""
        for piece in pieces:
            text = self.text(piece)
            if runs and not self.holds(end, _beginning_of(text)):
                runs[-1] += piece
                # All that the end of a run depends on is its own end before.
                end = _end_of(end + text)
            else:
                runs.append(piece)
                end = _end_of(text)
        return [tuple(run) for run in runs]

    @property
    def are_one(self) -> bool:
        """Whether texts are never put side by side, as far as can be told of enough of them."""
        return len(self.seams) >= N_SEAMS and not any(self.seams.values())

    def holds(self, left: str, right: str) -> bool:
        """Whether the words of a seam have the same tokens together and apart."""
        pair = (left, right)
        if pair not in self.seams:
            self.seams[pair] = list(self.tokenize(left + right)) == [*self.of_words(left), *self.of_words(right)]
        return self.seams[pair]

    def of_words(self, text: str) -> list[int]:
        """Tokens of the words at a seam."""
        if text not in self.words:
            self.words[text] = list(self.tokenize(text))
        return self.words[text]


def _splits(left: str, right: str) -> bool:
    """Whether a tokenizer looks at two texts apart: a space begins the second, or a line break ends the first."""
    if right[0].isspace():
        return not left[-1].isspace()
    return left[-1] in "\r\n"


def _end_of(text: str) -> str:
    """The last two words of a text, with the spaces before them."""
    parts = text.rsplit(None, 2)
    return text[len(parts[0]) :] if len(parts) == 3 else text


def _beginning_of(text: str) -> str:
    """The first two words of a text, with the spaces before them."""
    parts = text.split(None, 2)
    if len(parts) < 2:
        return text
    return text[: len(text) - len(parts[2])].rstrip() if len(parts) == 3 else text.rstrip()


def _are_crumbs(texts: Sequence[str], present: Booleans) -> bool:
    """Whether texts are so many and so short that looking at each costs more than tokenising all of them together."""
    counts = present.sum(axis=0, dtype=np.int64)
    before, *lengths, behind = map(len, texts)
    n_pieces, n_characters = int(counts.sum()), int(counts @ np.array(lengths, dtype=np.int64))
    n_characters += (before + behind) * len(present)
    return n_pieces > MANY_PIECES * len(present) and n_characters < CRUMB * n_pieces


def _laid(runs: _Runs, present: Booleans, checkpoint: Callable[[], None]) -> Iterator[tuple[int, list[Run]]]:
    """Variants that are more than one run of texts, with their runs, until it shows that there are none."""
    last = len(runs.texts) - 1
    if _are_crumbs(runs.texts, present):
        return
    for row, has in enumerate(present):
        if row % _ROWS_PER_LOOK == 0:
            checkpoint()
        if runs.are_one:
            return
        places = (np.flatnonzero(has) + 1).tolist()
        found = runs.of([place for place in (0, *places, last) if runs.texts[place]])
        if places and len(found) > 1:
            yield row, found


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
    framed: Callable[[str], bool] = lambda _: True,
    checkpoint: Callable[[], None] = _nobody_asks,
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
        framed: Whether `whole` reads the text of a variant between prefix and suffix as it is; chat templates may strip
            it, or leave it out.
        checkpoint: Called every few hundred variants; what it raises ends the work.

    Returns:
        For each coalition the tokens that `whole` has.

    Raises:
        ValueError: If the coalitions are not about n units.

    Cost:
        Each run of units and each pair that meets at a space is tokenised once, and a variant as a whole where it is
        one run, is empty, or is not framed; so are all variants of very many short units, and those of a tokenizer that
        takes no words apart. What depends on more than that is looked for in a few variants. Memory of the tokens
        of all variants.
    """
    if coalitions.ndim != 2 or coalitions.shape[1] != len(units):
        raise ValueError(f"coalitions must have shape (V, {len(units)}): got {coalitions.shape}")
    texts = [prefix, *units, suffix]
    first, last = (np.asarray(ids, dtype=np.int64) for ids in (head, tail))
    runs = _Runs(tokenize, texts)
    # Texts without characters meet nothing.
    present = coalitions & np.array(list(map(bool, units)), dtype=np.bool_)

    def words(row: int) -> str:
        return "".join(compress(units, present[row].tolist()))

    def side_by_side(row: int) -> Integers:
        return np.concatenate([first, *(runs.tokens(run) for run in laid[row]), last])

    def together(row: int) -> Integers:
        return np.asarray(whole(words(row)), dtype=np.int64)

    laid = {row: found for row, found in _laid(runs, present, checkpoint) if framed(words(row))}
    sizes = present.sum(axis=1)
    candidates = sorted(laid, key=lambda row: -int(sizes[row]))
    probes = candidates[:1] + candidates[1 :: max(1, len(candidates) // N_PROBES)][: N_PROBES - 1]
    if any(not np.array_equal(together(row), side_by_side(row)) for row in probes):
        laid = {}
    sequences = []
    for row in range(len(present)):
        if row % _ROWS_PER_LOOK == 0:
            checkpoint()
        sequences.append(side_by_side(row) if row in laid else together(row))
    return CoalitionTokens(tuple(sequences), np.array([row in laid for row in range(len(present))], dtype=np.bool_))
