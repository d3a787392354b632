"""The units of a completion: players that are runs of trainable tokens and the characters they write.

The server does not know the tokenizer of the policy: a token is told by the characters it writes. Text that masked
tokens write is frozen: it stands in every coalition and belongs to no unit.

Legend: `N` characters of the completion (code points), `T` its tokens, `n` its units.

Reference: SCAR, arXiv:2505.20417, whose players are contiguous units of the completion.
Differs from the paper: it places the reward of a unit by counting the tokens of a text tokenised again; here each token
belongs to one unit, whatever the tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress, pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from creditd.credit.segments import first_overlap, token_spans

Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]
Ranges: TypeAlias = list[tuple[int, int]]


@dataclass(frozen=True)
class TextUnits:
    """Units of one completion.

    Attributes:
        n_tokens: T, tokens of the completion, masked ones included.
        tokens: Shape (n, 2), int64, half-open token ranges, ordered and disjoint, none empty. They hold every trainable
            token once and no masked one, unless `n` is 0: then the trainable tokens, if there are any, write no text.
        characters: Shape (n, 2), int64, half-open ranges of characters, ordered and disjoint: exactly what the tokens
            of each unit write. A unit may be without characters where no trainable token near it has any. None: the
            text is not known.
        trainable: Shape (T,), bool; True where the token is the policy's own.
        merged: Whether units were merged because there were more than `max_units`.
        has_frozen_text: Whether masked tokens write characters. False where the text is not known and no token is
            masked; True where it is not known and one is.
    """

    n_tokens: int
    tokens: Integers
    characters: Integers | None
    trainable: Booleans
    merged: bool
    has_frozen_text: bool

    @property
    def n_units(self) -> int:
        """Number of units n."""
        return len(self.tokens)

    @property
    def lengths(self) -> Integers:
        """Trainable tokens of each unit, shape (n,), int64, each at least 1."""
        lengths: Integers = self.tokens[:, 1] - self.tokens[:, 0]
        return lengths


def units_of_segments(
    n_characters: int,
    ends: npt.ArrayLike | None,
    token_offsets: npt.ArrayLike | None = None,
    completion_mask: npt.ArrayLike | None = None,
    *,
    max_units: int | None = None,
) -> TextUnits:
    """Units of a completion whose text is cut into segments.

    A token belongs to the segment that holds most of its characters, the earlier one at a tie; one without characters
    to the segment of the place where it stands, at the end of the text to the last one. A unit is a maximal run of
    trainable tokens of one segment. The characters of a token are those from its start to the start of the next token,
    so what stands between two tokens belongs to the first of them, and what stands before all tokens to the first. A
    unit without characters joins the unit before it in its run of trainable tokens, or else the one behind it.

    Units are merged while there are more than `max_units`: the one of fewest tokens (the leftmost of them) joins its
    neighbour of fewer tokens (the left one at a tie). Units that a masked token parts are no neighbours, so that as
    many units as there are runs of trainable tokens may remain.

    Args:
        n_characters: N.
        ends: Shape (S,), integers, ascending, where the segments end, the last one N; none for the empty text. None:
            each token is a segment; tokens that share characters are one, and a token without characters goes with the
            one that stands behind it there.
        token_offsets: Shape (T, 2), integers, characters [start, stop) of each token. Starts do not decrease, nor do
            the stops of tokens that have characters. None: each segment is one token.
        completion_mask: Shape (T,), bool; False where the token is not the policy's own (a tool's, a template's). None:
            all tokens are the policy's.
        max_units: Most units, at least 1. None: no limit.

    Returns:
        Units; every trainable token is in exactly one of them. None at all if the trainable tokens write no text.

    Raises:
        ValueError: Shapes disagree, offsets go backwards or lie outside the text, `ends` are no ends of the text, there
            is text and no token, each token is to be a segment and there are no offsets, or `max_units` is below 1.

    Cost:
        O(N + T log T).

    Reference:
        SCAR, arXiv:2505.20417.

    Differs from the paper:
        It knows no masked tokens and no limit of units, and gives up a completion whose tokens it cannot count.
    """
    if token_offsets is None:
        if ends is None:
            raise ValueError("got no token_offsets, expected them where each token is a segment")
        segments = _segments(ends, n_characters)
        starts, owned = segments[:, 0], np.arange(len(segments))
    else:
        offsets = _offsets(token_offsets, n_characters)
        starts = offsets[:, 0]
        segments = _segments(_token_ends(offsets, n_characters) if ends is None else ends, n_characters)
        spans = token_spans(segments, offsets)
        owned = spans[spans[:, 0] < spans[:, 1], 0]
    trainable = _trainable(completion_mask, len(starts))
    edges = _edges(starts, n_characters)

    cuts = np.zeros(len(starts), dtype=np.bool_)
    cuts[owned] = True
    in_run = np.zeros(len(starts), dtype=np.bool_)
    in_run[1:] = trainable[1:] & trainable[:-1]
    ranges = _ranges(trainable & (cuts | ~in_run), trainable)
    begins, texts = ranges[:, 0], edges[ranges]
    continues = in_run[begins]
    run_texts = edges[np.maximum.accumulate(np.where(continues, 0, begins))]
    begins = begins[~continues | ((texts[:, 1] > texts[:, 0]) & (texts[:, 0] > run_texts))]
    first = np.zeros(len(starts), dtype=np.bool_)
    first[begins] = True
    return _units(_ranges(first, trainable), edges, trainable, max_units)


def units_of_ranges(
    n_tokens: int,
    units: npt.ArrayLike,
    completion_mask: npt.ArrayLike | None = None,
    *,
    token_offsets: npt.ArrayLike | None = None,
    n_characters: int | None = None,
    max_units: int | None = None,
) -> TextUnits:
    """Units of a completion that the caller gives as token ranges.

    Args:
        n_tokens: T.
        units: Shape (n, 2), integers, half-open token ranges, ordered and disjoint, none empty, which hold every
            trainable token and no masked one.
        completion_mask: Shape (T,), bool; False where the token is not the policy's own. None: all are.
        token_offsets: Shape (T, 2), integers, characters [start, stop) of each token, as for `units_of_segments`. None:
            the text is not known.
        n_characters: N. None: the text is not known.
        max_units: Most units, at least 1, as for `units_of_segments`. None: no limit.

    Returns:
        The units, or the fewer units that they are merged to; `characters` is None where the text is not known. None at
        all if the text is known and the trainable tokens write nothing of it.

    Raises:
        ValueError: The ranges are not as above, the offsets are not as for `units_of_segments`, or only one of
            `token_offsets` and `n_characters` is given.

    Cost:
        O(T log T).

    Reference:
        SCAR, arXiv:2505.20417.

    Differs from the paper:
        It makes its units itself.
    """
    if (token_offsets is None) != (n_characters is None):
        raise ValueError("got one of token_offsets and n_characters, expected both or neither")
    trainable = _trainable(completion_mask, n_tokens)
    edges = None
    if token_offsets is not None and n_characters is not None:
        offsets = _offsets(token_offsets, n_characters)
        if len(offsets) != n_tokens:
            raise ValueError(f"token_offsets: got {len(offsets)} tokens, expected {n_tokens}")
        edges = _edges(offsets[:, 0], n_characters)
    return _units(_given_ranges(units, trainable), edges, trainable, max_units)


def _offsets(token_offsets: npt.ArrayLike, n_characters: int) -> Integers:
    """Return the offsets as (T, 2) int64, once they lie inside the text."""
    found = np.asarray(token_offsets)
    offsets: Integers = found.astype(np.int64) if found.size else np.empty((0, 2), dtype=np.int64)
    token_spans([], found)  # refuses other shapes and offsets that go backwards
    outside = (offsets[:, 0] < 0) | (offsets[:, 1] > n_characters)
    if outside.any():
        t = int(np.argmax(outside))
        start, stop = offsets[t].tolist()
        raise ValueError(
            f"offsets of token {t}: got [{start}, {stop}), expected characters of a text of {n_characters}"
        )
    if n_characters and not len(offsets):
        raise ValueError(f"token_offsets: got no token, expected those that write {n_characters} characters")
    return offsets


def _segments(ends: npt.ArrayLike, n_characters: int) -> Integers:
    """Return the segments that end there as (S, 2) int64 ranges of characters."""
    found = np.asarray(ends)
    if found.size and (found.ndim != 1 or found.dtype.kind not in "iu"):
        raise ValueError(f"ends: got shape {found.shape} of {found.dtype}, expected (S,) of integers")
    bounds = np.append(np.int64(0), found.astype(np.int64))
    if (np.diff(bounds) <= 0).any() or bounds[-1] != n_characters:
        raise ValueError(f"ends: got {found.tolist()}, expected ascending ones, the last one {n_characters}")
    return np.stack([bounds[:-1], bounds[1:]], axis=1)


def _token_ends(offsets: Integers, n_characters: int) -> Integers:
    """Return where each token ends that shares no character with the next and has characters."""
    starts = offsets[:, 0]
    reached = np.maximum.accumulate(np.append(np.int64(0), offsets[:-1, 1]))[: len(starts)]
    places = np.unique(starts[(starts >= reached) & (starts > 0) & (starts < n_characters)])
    return np.append(places, n_characters) if n_characters else places


def _trainable(completion_mask: npt.ArrayLike | None, n_tokens: int) -> Booleans:
    """Return which tokens are the policy's own, (T,) bool."""
    if n_tokens < 0:
        raise ValueError(f"n_tokens: got {n_tokens}, expected at least 0")
    if completion_mask is None:
        return np.ones(n_tokens, dtype=np.bool_)
    mask = np.asarray(completion_mask)
    if mask.shape != (n_tokens,) or (mask.size and mask.dtype != np.bool_):
        raise ValueError(f"completion_mask: got shape {mask.shape} of {mask.dtype}, expected ({n_tokens},) of bool")
    return mask.astype(np.bool_)


def _edges(starts: Integers, n_characters: int) -> Integers:
    """Return (T + 1,) characters: token t writes those from edge t to edge t + 1, and all tokens write the text."""
    edges = np.append(starts, n_characters)
    edges[0] = 0
    return edges


def _ranges(first: Booleans, trainable: Booleans) -> Integers:
    """Return the (n, 2) ranges of trainable tokens that begin at each first one and end before a masked one."""
    last = trainable.copy()
    last[:-1] &= first[1:] | ~trainable[1:]
    return np.stack([np.flatnonzero(first), np.flatnonzero(last) + 1], axis=1)


def _given_ranges(units: npt.ArrayLike, trainable: Booleans) -> Integers:
    """Return the caller's ranges as (n, 2) int64, once they hold every trainable token and no other."""
    overlap = first_overlap(units)  # refuses other shapes
    found = np.asarray(units)
    ranges: Integers = found.astype(np.int64) if found.size else np.empty((0, 2), dtype=np.int64)
    if overlap is not None:
        raise ValueError(f"unit {overlap}: got {_words(ranges[overlap])}, expected a start behind the unit before it")
    n_tokens = len(trainable)
    wrong = (ranges[:, 0] < 0) | (ranges[:, 1] > n_tokens) | (ranges[:, 0] >= ranges[:, 1])
    if wrong.any():
        j = int(np.argmax(wrong))
        raise ValueError(f"unit {j}: got {_words(ranges[j])}, expected a range of at least one of {n_tokens} tokens")
    held = np.concatenate([[0], np.cumsum(trainable)])[ranges]
    others = (ranges[:, 1] - ranges[:, 0]) - (held[:, 1] - held[:, 0])
    if others.any():
        j = int(np.argmax(others > 0))
        t = int(ranges[j, 0] + np.argmin(trainable[slice(*ranges[j].tolist())]))
        raise ValueError(f"unit {j}: got {_words(ranges[j])} with the masked token {t}, expected trainable tokens only")
    left = trainable.copy()
    for start, stop in ranges.tolist():
        left[start:stop] = False
    if left.any():
        raise ValueError(f"units: got none with the trainable token {int(np.argmax(left))}, expected one for each")
    return ranges


def _words(bounds: Integers) -> str:
    """Return a range as it is written."""
    start, stop = bounds.tolist()
    return f"[{start}, {stop})"


def _units(ranges: Integers, edges: Integers | None, trainable: Booleans, max_units: int | None) -> TextUnits:
    """Return the units of token ranges, merged as far as asked."""
    if max_units is not None and max_units < 1:
        raise ValueError(f"max_units: got {max_units}, expected at least 1, or none")
    frozen = bool((~trainable).any())
    if edges is not None:
        writes = np.diff(edges) > 0
        frozen = bool((writes & ~trainable).any())
        if not (writes & trainable).any():
            ranges = ranges[:0]
    tokens = ranges if max_units is None or len(ranges) <= max_units else _merged(ranges, max_units)
    return TextUnits(
        n_tokens=len(trainable),
        tokens=tokens,
        characters=None if edges is None else edges[tokens],
        trainable=trainable,
        merged=len(tokens) < len(ranges),
        has_frozen_text=frozen,
    )


def _merged(ranges: Integers, most: int) -> Integers:
    """Return the ranges, with neighbours merged, the shortest first, until there are at most that many if that can be.

    What a merged range has of tokens is more than the shortest has, so that one pass from left to right merges all
    ranges of the shortest length in the order in which they would be merged one at a time.
    """
    loose: Ranges = [(start, stop) for start, stop in ranges.tolist()]
    alone: Ranges = []
    while loose and len(loose) + len(alone) > most:
        loose, parted = _with_neighbours(loose)
        alone += parted
        if loose:
            loose = _pass(loose, len(loose) + len(alone) - most)
    return np.array(sorted(loose + alone), dtype=np.int64).reshape(-1, 2)


def _with_neighbours(ranges: Ranges) -> tuple[Ranges, Ranges]:
    """Return the ranges that touch another one, and those that touch none."""
    touches = [one[1] == other[0] for one, other in pairwise(ranges)]
    near = [before or behind for before, behind in zip([False, *touches], [*touches, False], strict=True)]
    return list(compress(ranges, near)), [one for one, has in zip(ranges, near, strict=True) if not has]


def _pass(ranges: Ranges, surplus: int) -> Ranges:
    """Return the ranges after the shortest of them were merged, from left to right, at most `surplus` of them."""
    shortest = min(stop - start for start, stop in ranges)
    kept: Ranges = []
    at = 0
    while at < len(ranges):
        start, stop = ranges[at]
        at += 1
        if surplus and stop - start == shortest:
            before = kept[-1] if kept and kept[-1][1] == start else None
            behind = ranges[at] if at < len(ranges) and ranges[at][0] == stop else None
            if before and (behind is None or before[1] - before[0] <= behind[1] - behind[0]):
                start = kept.pop()[0]
                surplus -= 1
            elif behind:
                stop = behind[1]
                at += 1
                surplus -= 1
        kept.append((start, stop))
    return kept
