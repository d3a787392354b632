"""The task of the demonstration of OAR: products of three digits and one, with the work written out column by column.

`4 7 8 x 6 =` is followed by a line per column, from the ones to the hundreds, and by the answer:

    8 x 6 + 0 = 4 8 ; 7 x 6 + 4 = 4 6 ; 4 x 6 + 4 = 2 8 ; #### 2 8 6 8

A column is a digit, the multiplier, what is carried, and the two digits of the sum; the tens of one column are carried
into the next. The answer is the tens of the last column and the ones of all, so that it depends on tokens all over the
work: a wrong one of these is a wrong answer, and the rest of the work matters by what it leads to alone.

A rollout is right (reward 1) if the answer is the product, and wrong (0) otherwise; nobody looks at the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]

COLUMNS = 3
DIGITS = tuple("0123456789")
PAD, END, TIMES, PLUS, IS, STOP, ANSWER = "<pad>", "<end>", "x", "+", "=", ";", "####"
VOCABULARY = (PAD, END, *DIGITS, TIMES, PLUS, IS, STOP, ANSWER)
COLUMN = ("factor", "sign", "factor", "sign", "carried", "sign", "tens", "ones", "sign")
"""What each of the tokens of a column is."""
REASONING = COLUMNS * len(COLUMN)
"""Tokens of the work."""
ANSWER_DIGITS = COLUMNS + 1
WRITTEN = REASONING + 1 + ANSWER_DIGITS + 1
"""Tokens of a whole completion: the work, the mark of the answer, the answer and the end."""
KINDS = ("result", "other digit", "sign")
SEED = 260107408
HELD_OUT = 384
SLIP = 0.1
"""Share of the digits of sums that are drawn anew in lessons: who teaches the policy makes errors."""

_RESULTS = frozenset({"tens", "ones"})


def prompt(number: int, multiplier: int) -> str:
    """`4 7 8 x 6 =`."""
    return f"{' '.join(str(number))} {TIMES} {multiplier} {IS}"


def written(number: int, multiplier: int, slips: np.random.Generator | None = None) -> str:
    """The work and the answer, without the end.

    Args:
        number: Three digits.
        multiplier: One.
        slips: Where errors are drawn from: each digit of a sum is replaced with probability `SLIP` by any digit, and
            what follows goes on from there. None: the work is right.

    Returns:
        The words.
    """
    words: list[str] = []
    ones: list[int] = []
    carried = 0
    for digit in reversed([int(letter) for letter in str(number)]):
        total = digit * multiplier + carried
        tens, one = total // 10, total % 10
        if slips is not None:
            tens, one = (int(slips.integers(10)) if slips.random() < SLIP else right for right in (tens, one))
        words += [str(digit), TIMES, str(multiplier), PLUS, str(carried), IS, str(tens), str(one), STOP]
        ones.append(one)
        carried = tens
    return " ".join([*words, ANSWER, str(carried), *(str(one) for one in reversed(ones))])


def problems() -> tuple[Integers, Integers]:
    """All problems in two parts that share none: what is trained on, and the held-out ones.

    Returns:
        Shapes (n, 2) and (`HELD_OUT`, 2): the number of three digits and the multiplier, from 2 to 9.
    """
    numbers, multipliers = np.meshgrid(np.arange(100, 1000), np.arange(2, 10), indexing="ij")
    rows = np.stack([numbers.ravel(), multipliers.ravel()], axis=1).astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(rows))
    return rows[order[HELD_OUT:]], rows[order[:HELD_OUT]]


def answer(words: Sequence[str]) -> list[str] | None:
    """The words behind the last mark of the answer, up to the end; None without a mark."""
    if ANSWER not in words:
        return None
    place = len(words) - 1 - list(reversed(words)).index(ANSWER)
    rest = list(words[place + 1 :])
    return rest[: rest.index(END)] if END in rest else rest


def is_right(words: Sequence[str], number: int, multiplier: int) -> bool:
    """Whether the answer is the product, in four digits."""
    return answer(words) == list(f"{number * multiplier:0{ANSWER_DIGITS}d}")


def is_well_formed(words: Sequence[str]) -> bool:
    """Whether the words stand where the form has them: digits, signs, the mark, and the end."""
    if len(words) != WRITTEN:
        return False
    signs = [TIMES, PLUS, IS, STOP]
    for place, word in enumerate(words[:REASONING]):
        kind = COLUMN[place % len(COLUMN)]
        if kind == "sign":
            if word != signs[(0, 0, 0, 1, 0, 2, 0, 0, 3)[place % len(COLUMN)]]:
                return False
        elif word not in DIGITS:
            return False
    return words[REASONING] == ANSWER and all(word in DIGITS for word in words[REASONING + 1 : -1]) and words[-1] == END


def kind_of(place: int) -> str:
    """What the token at a place of the work of a well-formed completion is; one of `KINDS`."""
    part = COLUMN[place % len(COLUMN)]
    if part in _RESULTS:
        return "result"
    return "sign" if part == "sign" else "other digit"
