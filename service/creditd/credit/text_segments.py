"""Where a text is cut into segments: behind punctuation, behind sentences, or behind lines.

A segment is what will become a player if tokens of the policy write it; `creditd.credit.text_units` makes units of
segments. The segments of a text follow one another without a gap, so they are told by where they end.

Reference: SCAR, arXiv:2505.20417, whose players are tokens, spans or sentences of a completion.
Differs from the paper: how it finds its segments, see `segment_ends`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]
Cut: TypeAlias = Literal["token", "span", "sentence", "lines"]
TextCut: TypeAlias = Literal["span", "sentence", "lines"]

_WIDE_STOPS = "。！？．｡"
_STOPS = ".?!…؟۔।" + _WIDE_STOPS
_PAUSES = ",;،؛，；、､"
_BRACKETS = r")\]}”’»›」』）】》〉〕］｝｣"
_BREAKS = r"\n\r\v\f\x85\u2028\u2029"
_WIDE = r"\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff"

_IN_NUMBER = r"(?<=\d)[.,．，](?=\d)|(?<!\S)\.(?=\d)"
_CLOSING = rf"""[{_BRACKETS}]|["'*]+(?!["'*\w])"""
"""Straight quotes and asterisks close what stands before them unless a word follows."""


def _endings(delimiters: str) -> str:
    """Return a pattern of a run of delimiters, with what closes behind them.

    What may follow is looked at by the caller: a condition in here would try every part of a long run again.
    """
    one = rf"(?!{_IN_NUMBER})[{re.escape(delimiters)}]"
    return rf"{one}(?:{one}|{_CLOSING})*"


_BLANK_LINES = rf"[{_BREAKS}](?:\s*[{_BREAKS}])?"
_SPAN = re.compile(_endings(_STOPS + _PAUSES))
_LINES = re.compile(_BLANK_LINES)
_SENTENCE = re.compile(
    rf"^[^\S\n]*\d{{1,3}}\.(?=[ \t])|(?P<stop>{_endings(_STOPS)})|(?P<lines>{_BLANK_LINES})", re.MULTILINE
)
_REST_OF_LINE = re.compile(rf"[^\S{_BREAKS}]*{_BLANK_LINES}")
_BEHIND_SENTENCE = re.compile(rf"\Z|[\s{_WIDE}]")
_WIDE_STOP = re.compile(f"[{_WIDE_STOPS}]")


def segment_ends(text: str, cut: TextCut) -> Integers:
    r"""Where the segments of a text end.

    `span`: behind each run of the delimiters `.` `,` `;` `?` `!` `…`, of `。` `，` `；` `？` `！` `、`, and of those of
    Arabic and Devanagari. A point or comma between two digits, and a point between white space and a digit, belongs to
    its number and delimits nothing; nothing else is known about abbreviations or addresses.

    `sentence`: behind each run of `.` `?` `!` `…` and their like that white space, a wide character or the end of the
    text follows, points in numbers again excepted; behind `。` `！` `？` whatever follows; and behind line breaks. The
    number of an item at the beginning of a line, "1. ", ends no sentence. An abbreviation before a space does.

    `lines`: behind each run of line breaks; lines of white space alone belong to the run.

    For `span` and `sentence` a run like "?!" or "..." is one ending, and quotes, brackets and asterisks that close
    right behind it, or between two delimiters, belong to it: `"Stop." Then` is cut before the space. Line breaks behind
    the end of a sentence belong to it; any other white space behind a delimiter belongs to the next segment, as the
    tokens of most vocabularies have it.

    Args:
        text: N characters (code points).
        cut: Where to cut.

    Returns:
        Shape (S,), int64, ascending, the last one N; no entry for the empty text. Segment s holds the characters from
        the end of segment s − 1 (0 at first) to its own. No segment is of white space alone unless the text is: white
        space at the beginning joins the first segment, at the end the last.

    Raises:
        ValueError: `cut` is none of the three.

    Cost:
        O(N), whatever the text.

    Reference:
        SCAR, arXiv:2505.20417.

    Differs from the paper:
        The published code cuts behind every single delimiter of `.,;?!`, in decimal numbers as well in one version and
        at no point that touches a digit in another, so that "..." is three players, and knows no other script. What
        its sentences are is not known to us.
    """
    if cut == "span":
        return filled_ends(text, (found.end() for found in _SPAN.finditer(text)))
    if cut == "sentence":
        return filled_ends(text, _sentence_ends(text))
    if cut == "lines":
        return filled_ends(text, (found.end() for found in _LINES.finditer(text)))
    raise ValueError(f"cut: got {cut!r}, expected one of span, sentence, lines")


def filled_ends(text: str, places: Iterable[int]) -> Integers:
    """Where segments end, given places to cut, so that none is of white space alone.

    Args:
        text: N characters.
        places: Characters before which to cut, in [0, N], ascending; one that stands twice counts once.

    Returns:
        Shape (S,), int64, ascending, the last one N; no entry for the empty text. A place is left out where nothing but
        white space stands between it and the place before it, or behind it.

    Cost:
        O(N).
    """
    kept: list[int] = []
    seen = 0
    for place in places:
        if place > seen:
            if not text[seen:place].isspace():
                kept.append(place)
            seen = place
    if text[seen:].strip() or not kept:
        return np.array([*kept, len(text)] if text else [], dtype=np.int64)
    kept[-1] = len(text)
    return np.array(kept, dtype=np.int64)


def _sentence_ends(text: str) -> Iterator[int]:
    """Yield where sentences and lines end."""
    for found in _SENTENCE.finditer(text):
        if found.lastgroup == "lines":
            yield found.end()
        elif found.lastgroup == "stop" and _ends_sentence(text, *found.span()):
            rest = _REST_OF_LINE.match(text, found.end())
            yield rest.end() if rest else found.end()


def _ends_sentence(text: str, start: int, stop: int) -> bool:
    """Whether a run of stops on [start, stop) ends a sentence."""
    return bool(_BEHIND_SENTENCE.match(text, stop) or _WIDE_STOP.search(text, start, stop))
