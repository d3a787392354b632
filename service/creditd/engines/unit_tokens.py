"""Which unit of a completion each token of a text belongs to, by the characters that it was read from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]

NONE = -1
"""Stands for no character, and for no unit."""


def places_of_characters(text: str, before: str, completion: str, after: str) -> Integers | None:
    """Where each character of a text stands in the completion that it holds.

    Chat templates may strip a message, or break its lines otherwise. So if the text is not before + completion + after,
    the letters that are no white space are matched from the end on, and white space between two of them is matched from
    its right end on, as far as both have it.

    Args:
        text: What the model reads.
        before: What stands before the completion.
        completion: What the policy wrote.
        after: What stands behind it.

    Returns:
        Shape (characters of the text,), int64: places in the completion, rising, and −1 for what is none of it. None if
        the completion is not found: it is shown otherwise than by its letters.

    Cost:
        O(characters).
    """
    places = np.full(len(text), NONE, dtype=np.int64)
    if text == f"{before}{completion}{after}":
        places[len(before) : len(before) + len(completion)] = np.arange(len(completion))
        return places
    read, own, behind = (_letters(one) for one in (text, completion, after))
    stop = len(read) - len(behind)
    start = stop - len(own)
    if start < 0 or _at(text, read[start:stop]) != _at(completion, own) or _at(text, read[stop:]) != _at(after, behind):
        return None
    places[read[start:stop]] = own
    if not len(own):
        return places
    for left, right, own_left, own_right in zip(
        read[start : stop - 1].tolist(),
        read[start + 1 : stop].tolist(),
        own[:-1].tolist(),
        own[1:].tolist(),
        strict=True,
    ):
        shared = min(right - left, own_right - own_left) - 1
        places[right - shared : right] = np.arange(own_right - shared, own_right)
    return places


def units_of_tokens(offsets: Integers, places: Integers, lengths: Sequence[int]) -> Integers:
    """The unit of each token: the one that has most of its characters, the first of those that have as many.

    A token that stands for a space alone has no characters by the count of some tokenizers; it is taken to be what
    stands between the token before it and its own end.

    Args:
        offsets: Shape (T, 2), int64: half-open ranges of characters of a text.
        places: Shape (characters,), int64: where each stands in the completion, −1 for what is none of it, which is
            counted as if it were a unit.
        lengths: Characters of each of n units, which are the completion one after another.

    Returns:
        Shape (T,), int64: units, and −1 for tokens of the prompt, of the template, and without characters.

    Cost:
        O(T + characters).
    """
    owners = np.append(np.repeat(np.arange(len(lengths), dtype=np.int64), lengths), NONE)[places]
    found = np.full(len(offsets), NONE, dtype=np.int64)
    before = 0
    for token, (first, last) in enumerate(offsets.tolist()):
        of_token = owners[min(before, last) if first == last else first : last]
        before = max(before, last)
        if len(of_token) < 2:
            found[token] = of_token[0] if len(of_token) else NONE
            continue
        values, starts, counts = np.unique(of_token, return_index=True, return_counts=True)
        most = np.flatnonzero(counts == counts.max())
        found[token] = values[most[starts[most].argmin()]]
    return found


def _letters(text: str) -> Integers:
    """Places of what is no white space."""
    return np.array([place for place, letter in enumerate(text) if not letter.isspace()], dtype=np.int64)


def _at(text: str, places: Integers) -> list[str]:
    return [text[place] for place in places.tolist()]
