"""Rewards of candidates from a reward model: each candidate once, as an answer to its set's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from creditd.credit.candidate_sets import CandidateSets, MalformedPolicy, SetError, SetErrors, find_players
from creditd.engines.protocol import Prompt, ScoredTexts, VariantTexts
from creditd.scoring.model_questions import EvaluatedSets, RememberedBy, characters_of, check_characters, failed_text


class CandidateRewards:
    """Asks for one score per player; `ModelQuestions`.

    Candidates that do not play, because they have no text or are surplus, are not asked about. Copies of one text are:
    they cost nothing, and their rewards are equal.
    """

    remembered_by: RememberedBy = "candidate"

    def __init__(
        self,
        sets: CandidateSets,
        rejected: tuple[SetError, ...],
        malformed: MalformedPolicy,
        prompts: Sequence[Prompt],
        texts: Sequence[str | None],
        *,
        most_characters: int,
    ) -> None:
        """Take the sets.

        Args:
            sets: B sets whose rewards are not known; `missing` where a candidate has no text.
            rejected: Sets that lack something; they are not asked about.
            malformed: Which candidates are surplus.
            prompts: One per set.
            texts: One per candidate.
            most_characters: Limit on the characters that the model reads.

        Raises:
            CostExceededError: If the texts have more.
        """
        self._sets, self._rejected = sets, rejected
        errors = SetErrors(sets.n_sets, rejected)
        players = find_players(sets, malformed, errors)
        asked = (players.playing | players.copies) & ~errors.failed[sets.owner]
        self._asked = np.flatnonzero(asked)
        rows = sets.owner[self._asked].tolist()
        lengths = [characters_of(prompt) for prompt in prompts]
        check_characters(
            sum(lengths[row] + len(texts[flat] or "") for row, flat in zip(rows, self._asked.tolist(), strict=True)),
            most_characters,
        )
        self._questions: list[VariantTexts] = []
        for row in np.unique(rows).astype(np.int64).tolist():
            start, stop = np.searchsorted(self._asked, sets.row_splits[row : row + 2]).tolist()
            units = tuple(texts[flat] or "" for flat in self._asked[start:stop].tolist())
            self._questions.append(VariantTexts(prompts[row], units, np.eye(len(units), dtype=np.bool_)))
        self._rewards = np.full(len(sets.rewards), np.nan)
        self._failures: list[SetError] = []

    def ask(self) -> Sequence[VariantTexts]:
        """One question per set: each of its players by itself."""
        return self._questions

    def tell(self, found: ScoredTexts) -> None:
        """Take the rewards of all players."""
        self._rewards[self._asked] = found.rewards
        for place in sorted(found.failures):
            flat = int(self._asked[place])
            row, position = int(self._sets.owner[flat]), int(self._sets.position[flat])
            self._failures.append(failed_text(row, position, found.failures[place]))
        self._questions = []

    def answer(self) -> EvaluatedSets:
        """The sets with their rewards; a set with a text that has none is rejected."""
        first: dict[int, SetError] = {}
        for error in (*self._rejected, *self._failures):
            first.setdefault(error.row, error)
        missing = np.ones(len(self._rewards), dtype=np.bool_)
        missing[self._asked] = False
        sets = replace(self._sets, rewards=self._rewards, missing=missing if missing.any() else None)
        return EvaluatedSets(sets, tuple(first[row] for row in sorted(first)))
