"""Token ranges of the character spans in a completion.

Parsers find candidates as characters; advantages are written on tokens. Both sides are half-open ranges.

Reference: ShapE-GRPO, arXiv:2603.29871v1, where each candidate's credit goes to its tokens.
Differs from the paper: what it does with a token that lies on two candidates is not known to us; this rule is ours.
"""

import numpy as np
import numpy.typing as npt

Ranges = npt.NDArray[np.int64]


def first_overlap(spans: npt.ArrayLike) -> int | None:
    """Index of the first span that is not ordered and disjoint from those before it.

    Args:
        spans: (n, 2) integers, half-open ranges [start, stop), in any unit.

    Returns:
        The smallest i whose stop is below its start or whose start is below the stop of span i − 1; None if there is
        none, and then starts and stops are both non-decreasing. Empty spans are allowed.

    Raises:
        ValueError: `spans` does not have shape (n, 2) or is not of integers.

    Cost:
        O(n).
    """
    ranges = _ranges(spans, "spans")
    wrong = ranges[:, 1] < ranges[:, 0]
    wrong[1:] |= ranges[1:, 0] < ranges[:-1, 1]
    return int(np.argmax(wrong)) if wrong.any() else None


def token_spans(character_spans: npt.ArrayLike, token_offsets: npt.ArrayLike) -> Ranges:
    """Token ranges of character spans.

    Token t belongs to argmax_i |characters of t ∩ span i|, the earlier span at a tie, and to no span if it has no
    character in any. A token of zero width (part of a split multi-byte character) belongs to the span that contains
    its position; inside the characters of the tokens before it, it stands for the rest of these.

    Args:
        character_spans: (n, 2) integers, half-open ranges of characters, ordered and disjoint; empty ones are allowed.
        token_offsets: (T, 2) integers, characters [start, stop) of each token of the completion, in the unit and from
            the origin of the spans. Starts do not decrease, nor do the stops of tokens that have characters; tokens
            that share a character carry the same offsets. A special token that a tokenizer reports as [0, 0) at the
            end has to be given the place where it stands.

    Returns:
        (n, 2) int64, half-open token ranges in [0, T], ordered and disjoint, so that a token is in one at most. A span
        without a token has [t, t), where t is the token before which it would stand.

    Raises:
        ValueError: The spans overlap or are out of order, the offsets go backwards, or an array is not (·, 2) integers.

    Cost:
        O((T + n) log n + n log T) time and O(T + n) memory, however many spans and tokens share characters.

    Reference:
        ShapE-GRPO, arXiv:2603.29871v1.

    Differs from the paper:
        Its rule for tokens on two candidates is not known to us.
    """
    spans = _ranges(character_spans, "character_spans")
    offsets = _ranges(token_offsets, "token_offsets")
    _check_spans(spans)
    _check_offsets(offsets)
    n_tokens = len(offsets)
    starts = offsets[:, 0]
    # One character for a token of zero width: it then overlaps exactly the span that contains its position. With
    # starts and stops both non-decreasing, argmax is non-decreasing in t and a span's tokens are consecutive.
    stops = np.maximum.accumulate(np.maximum(offsets[:, 1], starts + 1))

    owners = _owners(spans, starts, stops)
    owned = np.flatnonzero(owners >= 0)
    counts = np.bincount(owners[owned], minlength=len(spans))
    begins = np.full(len(spans), n_tokens, dtype=np.int64)
    np.minimum.at(begins, owners[owned], owned)
    ends = np.where(counts > 0, begins + counts, 0)

    upper = np.minimum.accumulate(begins[::-1])[::-1]
    lower = np.maximum.accumulate(ends)
    standing = np.clip(np.searchsorted(starts, spans[:, 0], side="left"), lower, upper)
    return np.stack([np.where(counts > 0, begins, standing), np.where(counts > 0, ends, standing)], axis=1)


def _owners(spans: Ranges, starts: Ranges, stops: Ranges) -> Ranges:
    """Return, for each token, the index of the span that holds most of its characters, or −1.

    Starts and stops do not decrease, so the spans of a token are a run of them, and all but its two ends lie wholly
    inside the token.
    """
    filled = np.flatnonzero(spans[:, 1] > spans[:, 0])
    begins, ends = spans[filled].T
    first = np.searchsorted(ends, starts, side="right")
    last = np.searchsorted(begins, stops, side="left") - 1
    owners = np.full(len(starts), -1, dtype=np.int64)
    touching = np.flatnonzero(first <= last)
    owners[touching] = filled[first[touching]]

    several = np.flatnonzero(first < last)
    if not len(several):
        return owners
    first, last = first[several], last[several]
    best = first.copy()
    most = ends[first] - np.maximum(begins[first], starts[several])
    inside = np.flatnonzero(first + 1 < last)
    if len(inside):
        lengths = ends - begins
        longest = _first_longest(lengths, first[inside] + 1, last[inside])
        more = lengths[longest] > most[inside]
        best[inside[more]] = longest[more]
        most[inside[more]] = lengths[longest[more]]
    more = np.minimum(stops[several], ends[last]) - begins[last] > most
    best[more] = last[more]
    owners[several] = filled[best]
    return owners


def _first_longest(lengths: Ranges, begins: Ranges, ends: Ranges) -> Ranges:
    """Return, for each range [begin, end) of spans, none empty, the place of the longest, the first of equals.

    Of 1, 2, 4, … spans the longest is found in turn; two such blocks cover a range. One size is held at a time.
    """
    found = np.empty(len(begins), dtype=np.int64)
    sizes = np.frexp(ends - begins)[1] - 1  # ⌊log₂ size⌋
    longest, width = np.arange(len(lengths)), 1
    for size in range(int(sizes.max()) + 1):
        asked = np.flatnonzero(sizes == size)
        left, right = longest[begins[asked]], longest[ends[asked] - width]
        found[asked] = np.where(lengths[left] >= lengths[right], left, right)
        left, right = longest[:-width], longest[width:]
        longest = np.where(lengths[left] >= lengths[right], left, right)
        width *= 2
    return found


def _ranges(values: npt.ArrayLike, name: str) -> Ranges:
    """Return the values as (·, 2) int64; an empty sequence has no rows."""
    ranges = np.asarray(values)
    if ranges.size == 0:
        return np.empty((0, 2), dtype=np.int64)
    if ranges.ndim != 2 or ranges.shape[1] != 2 or ranges.dtype.kind not in "iu":
        raise ValueError(f"{name}: got shape {ranges.shape} of {ranges.dtype}, expected (n, 2) of integers")
    return ranges.astype(np.int64)


def _check_spans(spans: Ranges) -> None:
    """Refuse spans that are out of order, overlap or end before they start."""
    i = first_overlap(spans)
    if i is None:
        return
    start, stop = spans[i].tolist()
    if stop < start:
        raise ValueError(f"character span {i}: got [{start}, {stop}), expected a stop of at least {start}")
    before, reached = spans[i - 1].tolist()
    raise ValueError(
        f"character span {i}: got [{start}, {stop}) after [{before}, {reached}), expected a start of at least {reached}"
    )


def _check_offsets(offsets: Ranges) -> None:
    """Refuse offsets that go backwards."""
    starts, stops = offsets[:, 0], offsets[:, 1]
    reached = np.maximum.accumulate(stops)
    wrong = (stops < starts) | ((stops > starts) & (stops < reached))
    wrong[1:] |= starts[1:] < starts[:-1]
    if wrong.any():
        t = int(np.argmax(wrong))
        start, stop = offsets[t].tolist()
        least = starts[t - 1].item() if t else start
        raise ValueError(
            f"offsets of token {t}: got [{start}, {stop}), expected a start of at least {least} and a stop of at least "
            f"{max(start, reached[t].item())} (or equal to the start)"
        )
