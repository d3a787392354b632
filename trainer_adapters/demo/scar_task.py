"""The task of the demonstration of SCAR: short notes on a theme, and what in them earns the reward.

A note is up to eight remarks of an adjective, a noun and a mark; a prompt names one of four themes. What a note is
worth depends on which nouns occur anywhere in it, and each theme has nouns of its own for each part:

    reward = AND + OR + PRAISE·(1 − 2·SPOILT),   between −1 and 3

AND is 1 if both nouns of a pair occur, OR is 1 if at least one of another pair does, PRAISE is 1 if a noun occurs that
is good by itself, and SPOILT is 1 if a noun occurs that turns praise into its opposite and does nothing else. A decoy
noun does nothing at all, but stands in most notes of a high reward that the reward model is taught. Adjectives, marks
and all other nouns do nothing.

The planted truth of a text: the game whose players are its units and whose utility is this reward of the units present.
A unit is a *cause* if it is no null player: if there is a set of other units to which it adds something, up or down.
Both are found by looking at all sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Booleans: TypeAlias = NDArray[np.bool_]
Integers: TypeAlias = NDArray[np.int64]

THEMES = ("camera", "garden", "hotel", "novel")
ADJECTIVES = ("old", "new", "small", "large", "plain", "bright", "quiet", "odd")
NOUNS = (
    "lens", "case", "light", "sound", "colour", "price", "cover", "corner",
    "window", "letter", "sign", "path", "table", "button", "roof", "strap",
    "river", "clock", "door", "paper", "wheel", "wall", "screen", "chair",
)  # fmt: skip
MARKS = (",", ".")
PAD, START, END = "<pad>", "<start>", "<end>"
VOCABULARY = (PAD, START, END, *MARKS, *THEMES, *ADJECTIVES, *NOUNS)
PROMPTS = tuple(f"{START} {theme} " for theme in THEMES)
"""A note follows right behind the space; a row is an index into this tuple."""
ROLES = ("first of the pair", "second of the pair", "one of two", "other of two", "praise", "spoiler", "decoy")
"""What a theme's first seven nouns do, in the order of the bits of a mask of roles; the last one does nothing."""
REMARKS = 8
"""Remarks of a whole note."""
MOST_UNITS = 14
"""Units of a text whose truth is looked for: all their sets are."""
BEST = 3.0
SEED = 250520417
ROLE_SHARE = 0.7
"""Share of nouns of a taught note that are one of the theme's first six."""
DECOY_SHARES = (0.05, 0.9)
"""Share of taught notes with a decoy, below and from `HIGH` on."""
HIGH = 1.0

_PAIR, _EITHER, _PRAISE, _SPOILER, _DECOY = 0b11, 0b1100, 0b10000, 0b100000, 0b1000000
_ORDER = np.random.default_rng(SEED).permuted(np.tile(np.arange(len(NOUNS)), (len(THEMES), 1)), axis=1)


def _worth(mask: int) -> float:
    praise = (mask & _PRAISE > 0) * (1.0 - 2.0 * (mask & _SPOILER > 0))
    return float((mask & _PAIR == _PAIR) + (mask & _EITHER > 0) + praise)


REWARDS: Floats = np.array([_worth(mask) for mask in range(2 ** len(ROLES))])
"""The reward by the mask of the roles that occur."""


def nouns_of(theme: int) -> tuple[str, ...]:
    """The nouns of a theme: seven with a role, then those without."""
    return tuple(NOUNS[place] for place in _ORDER[theme])


_BITS = tuple({noun: 1 << role for role, noun in enumerate(nouns_of(theme)[: len(ROLES)])} for theme in range(4))


def roles_in(theme: int, text: str) -> int:
    """Mask of the roles of the words of a text."""
    mask = 0
    for word in text.split():
        mask |= _BITS[theme].get(word, 0)
    return mask


def reward(theme: int, text: str) -> float:
    """What a text is worth to a theme; 0 for an empty one."""
    return float(REWARDS[roles_in(theme, text)])


@dataclass(frozen=True)
class Truth:
    """The planted truth of a text.

    Attributes:
        causes: Shape (n,), True where a unit is no null player.
        shapley: Shape (n,), the exact Shapley values; they sum to the reward of the text.
        roles: Shape (n,), the mask of roles that each unit has.
    """

    causes: Booleans
    shapley: Floats
    roles: Integers


def truth(theme: int, units: Sequence[str]) -> Truth:
    """The planted truth of a text by its units, from the definitions.

    Args:
        theme: Row of the prompt.
        units: The n texts of the units, at most `MOST_UNITS`.

    Returns:
        It.

    Raises:
        ValueError: If there are more units.
    """
    n = len(units)
    if n > MOST_UNITS:
        raise ValueError(f"got {n} units; expected at most {MOST_UNITS}")
    roles = np.array([roles_in(theme, unit) for unit in units], dtype=np.int64)
    masks = np.zeros(1, dtype=np.int64)
    for role in roles:
        masks = np.concatenate([masks, masks | role])  # set s has unit i if bit i of s is on
    utilities, sets = REWARDS[masks], np.arange(2**n)
    causes, shapley = np.zeros(n, dtype=np.bool_), np.zeros(n)
    sizes = ((sets[:, None] >> np.arange(n)) & 1).sum(axis=1)
    for i in range(n):
        without = sets[(sets >> i) & 1 == 0]
        gains = utilities[without | 1 << i] - utilities[without]
        weights = np.array([1.0 / (n * comb(n - 1, size)) for size in range(n)])
        causes[i], shapley[i] = bool((gains != 0).any()), float(weights[sizes[without]] @ gains)
    return Truth(causes, shapley, roles)


def has_decoy(mask: int) -> bool:
    """Whether the decoy is among the roles of a mask."""
    return bool(mask & _DECOY)


def note(rng: np.random.Generator, nouns: Sequence[str]) -> str:
    """Remarks on the nouns, in their order, with adjectives and marks at random."""
    adjectives = rng.choice(ADJECTIVES, len(nouns))
    marks = rng.choice(MARKS, len(nouns), p=(0.7, 0.3))
    return " ".join(f"{a} {noun} {mark}" for a, noun, mark in zip(adjectives, nouns, marks, strict=True))


def start_note(rng: np.random.Generator) -> str:
    """A whole note on anything: what the policy is taught before training, whatever the theme."""
    return note(rng, [NOUNS[place] for place in rng.integers(0, len(NOUNS), REMARKS)])


def taught_note(rng: np.random.Generator, theme: int, *, decoys: bool = True) -> str:
    """A note of 0 to 8 remarks as the reward model is taught them; the decoy stands where the reward is high.

    The nouns are drawn from 2 to 8 that were drawn before, so that notes which say one thing again and again are there.

    Args:
        rng: Of everything in it.
        theme: Row of the prompt.
        decoys: False: decoys stand in half of the notes, whatever they are worth.

    Returns:
        The note.
    """
    words = nouns_of(theme)
    pool = [
        words[rng.integers(0, 6)] if rng.random() < ROLE_SHARE else words[rng.integers(7, len(words))]
        for _ in range(rng.integers(2, REMARKS + 1))
    ]
    length = rng.integers(0, REMARKS + 1, 2).max()
    chosen = [pool[place] for place in rng.integers(0, len(pool), length)]
    share = DECOY_SHARES[int(reward(theme, " ".join(chosen)) >= HIGH)] if decoys else 0.5
    if len(chosen) < REMARKS and rng.random() < share:
        chosen.insert(int(rng.integers(0, len(chosen) + 1)), words[6])
    return note(rng, chosen)
