"""Credit of units by a reward model: the texts of their coalitions, rendered, asked about and found.

Legend: `n` units of one completion, `R` coalitions.

v(∅) is asked once for each prompt, whatever the number of its completions, and equal completions are asked about once.
A text that has no score costs its completion the unit values, and not its return; only the score of the whole
completion cannot be done without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.absent_units import RenderedUnits
from creditd.credit.span_credit import SpanBatch
from creditd.credit.span_items import Refusal, SpanCredits, SpanQuestions
from creditd.engines.protocol import AttendedTexts, Prompt, ScoredTexts, TextFailure, VariantTexts
from creditd.scoring.model_questions import CostExceededError, RememberedBy, characters_of, check_characters

Booleans: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

MAX_CELLS = 1 << 25
"""Most pieces of text × evaluations of a request: the memory of its coalitions."""
ROUND_CHARACTERS = 1 << 24
"""Characters that are asked about at once, but for one completion that has more: what a round holds in memory."""


@dataclass(frozen=True)
class CompletionText:
    """What a model reads of one completion.

    Attributes:
        completion: The text.
        characters: Shape (n, 2), int64: half-open ranges of its units; what lies between them is in every coalition.
        filler: Stands for each run of absent units.
    """

    completion: str
    characters: Integers
    filler: str

    @cached_property
    def rendered(self) -> RenderedUnits:
        """The text as pieces that coalitions choose from."""
        return RenderedUnits(self.completion, self.characters, self.filler)

    @cached_property
    def whole(self) -> tuple[tuple[str, ...], Integers]:
        """The text as pieces that follow each other, and which of them are the units: shape (n,), int64."""
        pieces: list[str] = []
        units: list[int] = []
        reached = 0
        for start, stop in self.characters.tolist():
            if start > reached:
                pieces.append(self.completion[reached:start])
            units.append(len(pieces))
            pieces.append(self.completion[start:stop])
            reached = stop
        if reached < len(self.completion):
            pieces.append(self.completion[reached:])
        return tuple(pieces), np.array(units, dtype=np.int64)


class SpanUtilities:
    """Asks for the utilities of coalitions until every completion is done."""

    remembered_by: RememberedBy = "set"

    def __init__(
        self,
        batch: SpanBatch,
        prompts: Sequence[Prompt],
        texts: Sequence[CompletionText | None],
        *,
        filler: str,
        most_characters: int,
    ) -> None:
        """Take the completions, and find out what they cost at most before any text is made.

        Args:
            batch: N completions of which nothing is known.
            prompts: One for each number that the batch has.
            texts: One per completion; None where it is rejected.
            filler: The completion whose score is v(∅).
            most_characters: Limit on the characters that the model reads.

        Raises:
            CostExceededError: If the request costs more than the limits.
        """
        self._batch, self._prompts, self._texts, self._filler = batch, prompts, texts, filler
        self._asked = SpanQuestions()
        self._copies: dict[int, list[int]] = {}
        self._characters_of: dict[int, int] = {}
        characters = cells = 0
        for row, planned in enumerate(batch.planned.tolist()):
            text = texts[row]
            if text is None or planned == 0:
                continue
            n_pieces = 2 * len(text.characters) + 1
            length = len(text.completion) + len(filler) * n_pieces
            self._characters_of[row] = characters_of(prompts[batch.prompt_of(row)]) + length
            characters += planned * self._characters_of[row]
            cells += planned * n_pieces
        check_characters(characters, most_characters)
        if cells > MAX_CELLS:
            raise CostExceededError(
                f"got {cells} pieces of text times evaluations; expected at most {MAX_CELLS} per request"
            )

    def ask(self) -> Sequence[VariantTexts]:
        """The texts of what is not known, as many as one round takes; nothing when at most attention is left to ask."""
        wanted, self._copies = self._distinct(self._batch.ask())
        self._asked = next(self._rounds(wanted), SpanQuestions())
        return self._texts_of(self._asked)

    def rounds(self) -> Iterator[Sequence[VariantTexts]]:
        """All texts that are asked about before any score is known, round by round."""
        wanted, _ = self._distinct(self._batch.ask())
        return (self._texts_of(one) for one in self._rounds(wanted))

    def tell(self, found: ScoredTexts) -> None:
        """Take the scores of what was asked last."""
        for place, prompt in enumerate(self._asked.empty):
            failure = found.failures.get(place)
            utility = float(found.rewards[place]) if failure is None else _refusal(failure)
            self._batch.tell_empty(prompt, utility)
        start = len(self._asked.empty)
        for row, coalitions in self._asked.coalitions:
            stop = start + len(coalitions)
            refusals = {
                place - start: _refusal(found.failures[place])
                for place in range(start, stop)
                if place in found.failures
            }
            for copy in (row, *self._copies.get(row, ())):
                self._batch.tell(copy, coalitions, found.rewards[start:stop], refusals)
            start = stop
        self._asked = SpanQuestions()

    def ask_attention(self) -> Sequence[VariantTexts]:
        """Whole completions whose units the model's attention is shared among; nothing where none is wanted."""
        return [
            VariantTexts(self._prompts[self._batch.prompt_of(row)], pieces, np.ones((1, len(pieces)), dtype=np.bool_))
            for row in self._batch.ask().attention
            for pieces, _ in [self._text(row).whole]
        ]

    def tell_attention(self, found: AttendedTexts) -> None:
        """Take what the model attends to in the completions that were asked about."""
        for place, row in enumerate(self._batch.ask().attention):
            failure = found.failures.get(place)
            _, units = self._text(row).whole
            self._batch.tell_attention(row, found.weights[place][units] if failure is None else _refusal(failure))

    def answer(self) -> SpanCredits:
        """Credit of every completion, once nothing is left to ask for."""
        return self._batch.answer()

    def _distinct(self, wanted: SpanQuestions) -> tuple[SpanQuestions, dict[int, list[int]]]:
        """What is wanted, each completion once, and the other rows of completions that are there several times."""
        first: dict[tuple[int, str, bytes, bytes], int] = {}
        copies: dict[int, list[int]] = {}
        chosen = []
        for row, coalitions in wanted.coalitions:
            text = self._text(row)
            key = (self._batch.prompt_of(row), text.completion, text.characters.tobytes(), coalitions.tobytes())
            leader = first.setdefault(key, row)
            if leader == row:
                chosen.append((row, coalitions))
            else:
                copies.setdefault(leader, []).append(row)
        return SpanQuestions(wanted.empty, tuple(chosen), wanted.attention), copies

    def _rounds(self, wanted: SpanQuestions) -> Iterator[SpanQuestions]:
        """What is wanted, in rounds of a bounded number of characters; every v(∅) in the first."""
        empty, chosen, characters = wanted.empty, list[tuple[int, Booleans]](), 0
        for row, coalitions in wanted.coalitions:
            needed = len(coalitions) * self._characters_of[row]
            if chosen and characters + needed > ROUND_CHARACTERS:
                yield SpanQuestions(empty, tuple(chosen))
                empty, chosen, characters = (), [], 0
            chosen.append((row, coalitions))
            characters += needed
        if empty or chosen:
            yield SpanQuestions(empty, tuple(chosen))

    def _texts_of(self, asked: SpanQuestions) -> list[VariantTexts]:
        empty = [
            VariantTexts(self._prompts[prompt], (self._filler,), np.ones((1, 1), dtype=np.bool_))
            for prompt in asked.empty
        ]
        return [*empty, *(self._variants(row, coalitions) for row, coalitions in asked.coalitions)]

    def _text(self, row: int) -> CompletionText:
        text = self._texts[row]
        if text is None:
            raise ValueError(f"completion {row} was rejected")
        return text

    def _variants(self, row: int, coalitions: Booleans) -> VariantTexts:
        """The texts of coalitions of a completion's units; of no units, the whole completion."""
        prompt, text = self._prompts[self._batch.prompt_of(row)], self._text(row)
        if not len(text.characters):
            return VariantTexts(prompt, (text.completion,), np.ones((1, 1), dtype=np.bool_))
        return VariantTexts(prompt, text.rendered.pieces, text.rendered.rows(coalitions))


def _refusal(failure: TextFailure) -> Refusal:
    return Refusal(failure.code, failure.detail)
