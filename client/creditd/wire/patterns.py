"""Where a caller's regular expression cuts texts, within a time.

Patterns come from outside and may take exponential time, so that they run on the package `regex`, which can give up.
What the time does not bound is refused before the pattern is compiled: repetitions that are written out in memory, and
recursion and approximate matching, which remember each step.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from math import prod
from typing import TypeVar

import regex

from creditd.credit.text_segments import Integers, filled_ends

MAX_PATTERN = 1024
"""Characters of a pattern."""
MAX_WRITTEN_OUT = 1 << 17
"""Characters of a pattern times its counts: `regex` compiles `(?:ab){500}` as 500 times `ab`."""
TIMEOUT_S = 2.0

_TICK_S = 1e-3
"""A time that every clock tells from none."""
_Found = TypeVar("_Found")

_UNESCAPED = r"(?<!\\)(?:\\\\)*"
_COUNT = re.compile(r"\{(\d*)(?:,\d*)?\}")
_REFUSED = (
    (re.compile(_UNESCAPED + r"\(\?(?:R|&|P>|[-+]?\d)"), "recursion"),
    (re.compile(_UNESCAPED + r"\(\?[A-Za-z\d-]*x"), "verbose syntax"),
    (re.compile(r"(?<!\\[pPN])" + _UNESCAPED + r"\{[^{}]*[deis<]"), "approximate matching"),
)


def pattern_ends(pattern: str, *, timeout_s: float = TIMEOUT_S) -> Callable[[str], Integers]:
    r"""What cuts texts behind each match of a pattern.

    Args:
        pattern: A regular expression of the package `regex`; flags are written inline, as in `(?i)step \d+:`. Without
            recursion, approximate matching and verbose syntax.
        timeout_s: Seconds of processor time of the thread that matches, for all texts together. What other threads take
            does not count, but where they are busy a text may have to be matched several times: then one that takes a
            quarter of the time by itself is still cut.

    Returns:
        From a text to where its segments end: shape (S,), int64, ascending, the last one the number of its characters;
        none for the empty text. A match without characters, as of a look-around, cuts nothing. No segment is of white
        space alone unless the text is: white space at the beginning joins the first segment, at the end the last. It
        raises `ValueError` where the time is over or a match takes too much memory; other threads run while it matches.

    Raises:
        ValueError: The pattern is too long or written out too long, has one of the above, is no regular expression or
            matches the empty text. No message repeats the pattern or a text.
    """
    compiled = _compiled(pattern)
    late = f"got a pattern that takes more than {timeout_s:g} s on the texts of the request, expected a faster one"
    left = timeout_s

    def ends(text: str) -> Integers:
        nonlocal left
        if left <= 0:
            raise ValueError(late)
        try:
            spans, left = _in_own_time(
                lambda wait: [found.span() for found in compiled.finditer(text, timeout=wait, concurrent=True)], left
            )
        except TimeoutError:
            left = 0.0
            raise ValueError(late) from None
        except MemoryError:
            raise ValueError("got a pattern that takes too much memory, expected a simpler one") from None
        return filled_ends(text, sorted(end for start, end in spans if start < end))

    return ends


def _in_own_time(attempt: Callable[[float], _Found], left: float) -> tuple[_Found, float]:
    """Return what an attempt within a time finds, and what is then left of the seconds that this thread has.

    The clock of `regex` is that of the whole process. Where it runs faster than the one of this thread, more is allowed
    each time: twice as much, or less where less is left.
    """
    wait = left
    while True:
        started = time.thread_time()
        try:
            found = attempt(wait)
        except TimeoutError:
            taken = time.thread_time() - started
            left -= taken
            if left <= 0.0:
                raise
            wait = min(2.0 * wait, wait * left / max(taken, _TICK_S)) + _TICK_S
        else:
            return found, left - (time.thread_time() - started)


def _compiled(pattern: str) -> regex.Pattern[str]:
    """Return the pattern, once it is one that can be run."""
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"got a pattern of {len(pattern)} characters, expected at most {MAX_PATTERN}")
    for refused, name in _REFUSED:
        if refused.search(pattern):
            raise ValueError(f"got a pattern with {name}, expected one without")
    counts = prod(max(int(found[1] or 1), 1) for found in _COUNT.finditer(pattern))
    if counts * len(pattern) > MAX_WRITTEN_OUT:
        raise ValueError("got a pattern that repeats too often by counts such as {500}, expected smaller counts")
    try:
        compiled = regex.compile(pattern, cache_pattern=False)
    except regex.error as error:
        where = "" if error.pos is None else f" from character {error.pos} on"
        raise ValueError(f"got a pattern that does not compile{where}, expected a regular expression") from None
    except RecursionError:
        raise ValueError("got a pattern that is nested too deeply, expected fewer brackets in brackets") from None
    try:
        matches_nothing, _ = _in_own_time(lambda wait: compiled.fullmatch("", timeout=wait) is not None, TIMEOUT_S)
    except TimeoutError:
        matches_nothing = True
    if matches_nothing:
        raise ValueError("got a pattern that matches the empty text, expected one whose matches have characters")
    return compiled
