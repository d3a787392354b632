"""What is remembered of a round of questions to a model, what is left to ask, and the answer to all of it.

Legend: `V` variants of all texts of the round, one after another, as the engine counts them.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.cache.games import AskedCoalitions, KnownGame, known_game, usable
from creditd.cache.keys import GameKey, KeyMaker, prompt_bytes
from creditd.engines.protocol import EngineUsage, Prompt, ScoredTexts, TextFailure, VariantTexts
from creditd.scoring.model_questions import RememberedBy

Booleans: TypeAlias = NDArray[np.bool_]
Integers: TypeAlias = NDArray[np.int64]

_ALONE = AskedCoalitions(np.ones((1, 1), dtype=np.bool_))


@dataclass(eq=False, slots=True)
class _Wanted:
    """Utilities of one game that a round asks for: R variants of one text that follow each other.

    Attributes:
        text: Which of the round's texts.
        row: The first of them among that text's.
        places: All of them among those of the round.
        coalitions: R rows, the same as coalitions of the game.
        left: How many of them are not answered yet.
    """

    text: int
    row: int
    places: slice
    coalitions: AskedCoalitions
    left: int


class Recollection:
    """One round of questions to a model. Not for several threads at a time.

    With `whole`, what is remembered of a text holds for exactly the variants that are asked now, because their scores
    have the last bits of having been computed together.

    Attributes:
        source: Whose utilities these are, as they were when the keys were made.
    """

    def __init__(self, texts: Sequence[VariantTexts], keys: KeyMaker, *, by: RememberedBy, whole: bool = False) -> None:
        """Find the keys.

        Args:
            texts: What is asked.
            keys: Makes the keys.
            by: What is a game.
            whole: Whether a text's variants are remembered together or not at all; each text then is one game.

        Raises:
            ValueError: If a text has its special tokens written out, which no key says.

        Cost:
            Half a microsecond for each game and unit, and a nanosecond for each byte of text.
        """
        if not all(text.adds_special_tokens for text in texts):
            raise ValueError("texts with their special tokens written out are not remembered")
        self.source = keys.source
        self._texts, self._whole = list(texts), whole
        n_variants = sum(text.n_variants for text in self._texts)
        self._scores = np.full(n_variants, np.nan)
        self._answered = np.zeros(n_variants, dtype=np.bool_)
        self._failures: dict[int, TextFailure] = {}
        self._asked: list[tuple[GameKey, _Wanted, Integers]] = []
        self._from_cache = 0
        self._usage = EngineUsage()
        self._wanted: dict[GameKey, list[_Wanted]] = {}
        whole_texts = whole or by == "set"
        made = _sets(self._texts, keys, whole=whole) if whole_texts else _candidates(self._texts, keys)
        for key, wanted in made:
            self._wanted.setdefault(key, []).append(wanted)

    @property
    def missing(self) -> dict[GameKey, int]:
        """Games of which something is not known yet, with their numbers of players."""
        return {
            key: wanted[0].coalitions.rows.shape[1]
            for key, wanted in self._wanted.items()
            if any(one.left for one in wanted)
        }

    def learn(self, games: Mapping[str, KnownGame]) -> tuple[int, int]:
        """Take what is known of games.

        Args:
            games: By the text of their key.

        Returns:
            How many games had something of use, and how many utilities that were.
        """
        n_games = n_utilities = 0
        for key, wanted in self._wanted.items():
            game = games.get(key.text)
            if game is None:
                continue
            taken = [self._take(one, game) for one in wanted]
            # Copies of a game cost a model nothing more than the first one.
            n_games += any(taken)
            n_utilities += max(taken)
        self._from_cache += n_utilities
        return n_games, n_utilities

    def ask(self, keys: Collection[GameKey]) -> list[VariantTexts]:
        """The texts of what is not known of some games; the scores of exactly these are told next."""
        self._asked = []
        parts_of: dict[int, list[tuple[GameKey, _Wanted, Integers]]] = {}
        for key in keys:
            wanted = self._wanted[key]
            # Copies of a text that is run by itself would each be run.
            for one in wanted[:1] if self._whole else wanted:
                if one.left:
                    places = np.flatnonzero(~self._answered[one.places])
                    parts_of.setdefault(one.text, []).append((key, one, places))
        texts = []
        for text in sorted(parts_of):
            parts = parts_of[text]
            self._asked += parts
            rows = np.concatenate([one.row + places for _, one, places in parts])
            asked = self._texts[text]
            texts.append(VariantTexts(asked.prompt, asked.units, asked.coalitions[rows]))
        return texts

    @property
    def n_asked(self) -> int:
        """Number of games about which something was asked last."""
        return len({key for key, _, _ in self._asked})

    def tell(self, found: ScoredTexts) -> list[tuple[GameKey, KnownGame]]:
        """Take the scores of what was asked last.

        Returns:
            What is worth remembering of each game: its usable scores; with `whole`, all of them or nothing.
        """
        self._usage += found.usage
        start = 0
        for _, one, places in self._asked:
            stop = start + len(places)
            self._scores[one.places][places] = found.rewards[start:stop]
            self._answered[one.places][places] = True
            one.left = 0
            start = stop
        if found.failures:
            asked = np.concatenate([one.places.start + places for _, one, places in self._asked])
            self._failures |= {int(asked[place]): failure for place, failure in found.failures.items()}
        if self._whole:
            for key, one, _ in self._asked:
                for copy in self._wanted[key][1:]:
                    self._repeat(one, copy)
        told = [(key, self._known(one)) for key, one, _ in self._asked]
        self._asked = []
        return [(key, game) for key, game in told if game is not None]

    def answer(self) -> ScoredTexts:
        """The scores of all variants, once nothing is missing, and what they cost."""
        usage = self._usage + EngineUsage(from_cache=self._from_cache)
        return ScoredTexts(self._scores, dict(sorted(self._failures.items())), usage)

    def _repeat(self, one: _Wanted, copy: _Wanted) -> None:
        """Give a copy of a text what came of the text."""
        self._scores[copy.places] = self._scores[one.places]
        self._answered[copy.places] = True
        copy.left = 0
        places = range(one.places.start, one.places.stop)
        failed = [place for place in places if place in self._failures] if self._failures else []
        self._failures |= {place - places.start + copy.places.start: self._failures[place] for place in failed}

    def _take(self, one: _Wanted, game: KnownGame) -> int:
        """Fill in what a game says of what is not answered; how much that was."""
        if not one.left:
            return 0
        found = game.utilities_of(one.coalitions)
        n_known = len(found) if game.is_table else int(np.count_nonzero(~np.isnan(found)))
        if self._whole and n_known < len(found):
            return 0
        if n_known == one.left == len(found):
            self._scores[one.places] = found
            self._answered[one.places] = True
            one.left = 0
            return n_known
        scores, answered = self._scores[one.places], self._answered[one.places]
        new = ~(np.isnan(found) | answered)
        n_new = int(np.count_nonzero(new))
        scores[new], answered[new] = found[new], True
        one.left -= n_new
        return n_new

    def _known(self, one: _Wanted) -> KnownGame | None:
        scores = self._scores[one.places]
        kept = usable(scores)
        if not kept.any() or (self._whole and not kept.all()):
            return None
        return known_game(one.coalitions.rows[kept], scores[kept])


def _sets(texts: Sequence[VariantTexts], keys: KeyMaker, *, whole: bool) -> Iterator[tuple[GameKey, _Wanted]]:
    """Each text as one game of all its units."""
    ready: dict[int, AskedCoalitions] = {}
    for (text, one), first, prompt in zip(enumerate(texts), _firsts(texts), _prompts(texts), strict=True):
        n_variants, n = one.coalitions.shape
        if n_variants:
            asked = n_variants.to_bytes(8, "little") + np.packbits(one.coalitions).tobytes() if whole else b""
            coalitions = ready.get(n)
            if coalitions is None or not _equal(coalitions.rows, one.coalitions):
                coalitions = ready[n] = AskedCoalitions(one.coalitions)
            wanted = _Wanted(text, 0, slice(first, first + n_variants), coalitions, n_variants)
            yield keys.game(prompt, one.units, asked), wanted


def _candidates(texts: Sequence[VariantTexts], keys: KeyMaker) -> Iterator[tuple[GameKey, _Wanted]]:
    """Each variant as a game of its only unit."""
    for (text, one), first, prompt in zip(enumerate(texts), _firsts(texts), _prompts(texts), strict=True):
        if not (one.coalitions.sum(axis=1) == 1).all():
            raise ValueError("candidates are remembered by themselves: expected one unit in each variant")
        for row, unit in enumerate(one.coalitions.nonzero()[1].tolist()):
            wanted = _Wanted(text, row, slice(first + row, first + row + 1), _ALONE, 1)
            yield keys.game(prompt, (one.units[unit],)), wanted


def _equal(coalitions: Booleans, others: Booleans) -> bool:
    """Whether two lists of coalitions of as many players are the same; sets of one size ask for the same ones."""
    return len(coalitions) == len(others) and coalitions.tobytes() == others.tobytes()


def _firsts(texts: Sequence[VariantTexts]) -> list[int]:
    """Place of each text's first variant."""
    return list(itertools.accumulate((one.n_variants for one in texts[:-1]), initial=0)) if texts else []


def _prompts(texts: Sequence[VariantTexts]) -> Iterator[bytes]:
    """The bytes of each prompt; those of one that stands before are not made again."""
    last: Prompt | None = None
    known = b""
    for one in texts:
        if one.prompt is not last:
            last, known = one.prompt, prompt_bytes(one.prompt)
        yield known
