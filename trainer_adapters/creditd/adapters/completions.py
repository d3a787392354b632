"""Candidates of a completion, and the tokens that write them.

A completion is tokens of the policy, with tokens of tools or of the chat template between them where there are several
turns. Only what the policy wrote is read: each stretch of its tokens is a text of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Literal, TypeAlias, get_args

import numpy as np

from creditd.credit.candidate_parsers import CandidateParser, parse_candidates
from creditd.credit.segments import token_spans

Decode: TypeAlias = Callable[[Sequence[int]], str]
Turns: TypeAlias = Literal["last", "all"]
Thinking: TypeAlias = Literal["detect", "opened", "ignored"]

_OPENING = "<think>"
_TAIL_TOKENS = 16
"""An opening of the thinking and the line after it are fewer tokens than that."""


@dataclass(frozen=True)
class Reading:
    """How completions are read.

    Attributes:
        parser: How candidates are written.
        turns: Which stretches of the policy's own tokens hold the candidates: `last`, the last one that has any,
            because a plan or a call of a tool before it is no answer; or `all`, one after another.
        thinking: `detect`: a stretch begins inside the thinking if the text before it ends with `<think>`; `opened`:
            every stretch does. Such a stretch has no candidate before `</think>`. `ignored`: the tags mean nothing.

    Raises:
        ValueError: If `turns` or `thinking` is none of these.
    """

    parser: CandidateParser
    turns: Turns = "last"
    thinking: Thinking = "detect"

    def __post_init__(self) -> None:
        for name, value, known in (("turns", self.turns, Turns), ("thinking", self.thinking, Thinking)):
            if value not in get_args(known):
                raise ValueError(f"got {name} {value!r}; expected one of {', '.join(get_args(known))}")

    def opened_by(self, before: Sequence[int], decode: Decode) -> bool:
        """Whether a stretch behind these tokens begins inside the thinking."""
        if self.thinking != "detect":
            return self.thinking == "opened"
        return decode(before[-_TAIL_TOKENS:]).rstrip().endswith(_OPENING)


@dataclass(frozen=True)
class Found:
    """Candidates of one completion.

    Attributes:
        texts: In order.
        spans: Their half-open token ranges in the completion, disjoint, without a token that the policy did not write.
    """

    texts: tuple[str, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()

    def __add__(self, other: Found) -> Found:
        return Found(self.texts + other.texts, self.spans + other.spans)


def find_candidates(
    ids: Sequence[int],
    decode: Decode,
    reading: Reading,
    *,
    cut_off: bool,
    prompt: Sequence[int] = (),
    written: Sequence[int] | None = None,
) -> Found:
    """Candidates of a completion and the tokens that write them.

    Args:
        ids: T completion tokens.
        decode: Text of any run of tokens.
        reading: How completions are read.
        cut_off: Whether the completion ended by the length limit; its open candidate is then none.
        prompt: Tokens before the completion.
        written: For each token 1 if the policy wrote it and 0 if not. None: it wrote them all.

    Returns:
        Texts and half-open token ranges, in order, disjoint. What others wrote is never read, and does not continue
        what the policy wrote before it.
    """
    found = Found()
    for start, stop in reversed(_stretches(len(ids), written)):
        before = [*prompt[-_TAIL_TOKENS:], *ids[:start]]
        here = _found_in(ids[start:stop], decode, reading, before, cut_off=cut_off and stop == len(ids))
        found = Found(here.texts, tuple((start + begin, start + end) for begin, end in here.spans)) + found
        if found.texts and reading.turns == "last":
            break
    return found


def _stretches(n_tokens: int, written: Sequence[int] | None) -> list[tuple[int, int]]:
    """Ranges of consecutive tokens that the policy wrote."""
    if written is None:
        return [(0, n_tokens)]
    runs = [list(run) for kept, run in groupby(range(n_tokens), key=lambda place: bool(written[place])) if kept]
    return [(run[0], run[-1] + 1) for run in runs]


def _found_in(ids: Sequence[int], decode: Decode, reading: Reading, before: Sequence[int], *, cut_off: bool) -> Found:
    """Candidates of one text; the ranges count from its own first token."""
    text = decode(ids)
    if "</think>" not in text and reading.opened_by(before, decode):
        return Found()
    parsed = parse_candidates(text, reading.parser, cut_off=cut_off, after_thinking=reading.thinking != "ignored")
    if not parsed.texts:
        return Found()
    _, offsets = token_offsets(ids, decode)
    spans = token_spans(np.array(parsed.spans), np.array(offsets).reshape(-1, 2))
    return Found(parsed.texts, tuple((int(start), int(stop)) for start, stop in spans))


def token_offsets(ids: Sequence[int], decode: Decode) -> tuple[str, list[tuple[int, int]]]:
    """The text of a completion and the characters [start, stop) that each of its tokens writes.

    Args:
        ids: T completion tokens.
        decode: Text of any run of tokens, special tokens left out and nothing cleaned up.

    Returns:
        The text of all tokens, and T ranges that follow one another without a gap. A token that only begins a character
        of several bytes, or that is special, has an empty range; the token that completes the character has all of it.

    Cost:
        One decoding of one token per token where that adds up to the text, else two more of a few tokens each. Only for
        bytes that are no text, which some tokenizers decode differently in company, one decoding of each prefix.
    """
    text = decode(ids)
    pieces = [decode([token]) for token in ids]
    if "".join(pieces) == text:  # most byte-level tokenizers, wherever no character is split
        ends = list(accumulate(map(len, pieces)))
    else:
        ends = _ends_by_window(ids, decode, text) or _ends_by_prefix(ids, decode, text)
    return text, list(zip([0, *ends], ends, strict=False))


def _ends_by_window(ids: Sequence[int], decode: Decode, text: str) -> list[int] | None:
    """Where each token's characters end, from decoding it behind its neighbours; None if that is not the text."""
    start = read = position = 0
    ends: list[int] = []
    for place in range(len(ids)):
        before, now = decode(ids[start:read]), decode(ids[start : place + 1])
        whole = now.rstrip("\N{REPLACEMENT CHARACTER}")[len(before) :]
        if not text.startswith(whole, position):
            return None
        if len(now) > len(before) and not now.endswith("\N{REPLACEMENT CHARACTER}"):
            position += len(whole)
            start, read, whole = read, place + 1, ""
        # A token may complete one character and begin the next.
        ends.append(max([position + len(whole), *ends[-1:]]))
    if text[position:].strip("\N{REPLACEMENT CHARACTER}"):
        return None
    return [*ends[:-1], len(text)]


def _ends_by_prefix(ids: Sequence[int], decode: Decode, text: str) -> list[int]:
    """Where each token's characters end: as far as the text of the tokens up to it agrees with the whole."""
    ends: list[int] = []
    for place in range(len(ids)):
        so_far = decode(ids[: place + 1])
        agreed = next(
            (at for at, (one, other) in enumerate(zip(so_far, text, strict=False)) if one != other), len(so_far)
        )
        ends.append(max(agreed, ends[-1] if ends else 0))
    return [*ends[:-1], len(text)]
