"""Credit under a utility that a reward model evaluates: the texts of each coalition, rendered and found.

Legend: `n` players of one set.

Candidates stand in the order of their texts' bytes, in what the model reads and in what is sampled, so that the order
in which they came changes no number. Rules about that order keep it for their coalitions; what is read stays sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import CandidateSets, MalformedPolicy, SetError, SetErrors, find_players
from creditd.credit.credit_rules import CreditRule, PrefixGain, ends_of, needs_unions
from creditd.credit.evaluated_games import EvaluatedGame, EvaluatedMethod
from creditd.credit.evaluation_limits import planned_evaluations
from creditd.credit.evaluation_needs import EstimatorOptions
from creditd.credit.set_games import SolvedSets
from creditd.engines.protocol import Prompt, ScoredTexts, VariantTexts
from creditd.scoring.model_questions import (
    CostExceededError,
    Estimates,
    EvaluatedSets,
    RememberedBy,
    characters_of,
    check_characters,
    failed_text,
)

Booleans: TypeAlias = NDArray[np.bool_]
Integers: TypeAlias = NDArray[np.int64]

MAX_CELLS = 1 << 23
"""Most players × evaluations of a request: the memory of its coalitions."""


@dataclass(frozen=True)
class CoalitionText:
    """How a coalition becomes a text: those of its candidates in the order of their bytes.

    Attributes:
        before: Stands before each text.
        after: Stands behind each text.
        empty: v(∅), reward units; None asks the model about an empty text.
    """

    before: str = ""
    after: str = "\n"
    empty: float | None = None


@dataclass
class _Game:
    """One set that is being evaluated.

    Attributes:
        row: The set.
        players: Their flat indices, in the order in which they are sampled.
        units: Place among the players of each unit of the text.
        texts: Units of the text.
        game: None for a set without players.
        asked: Coalitions of the players that the model was asked about last.
        empty: v(∅), once it is known.
    """

    row: int
    players: Integers
    units: Integers
    texts: tuple[str, ...]
    game: EvaluatedGame | None
    asked: Booleans
    empty: float | None


class CoalitionUtilities:
    """Asks for the utilities of coalitions until every set is solved; `ModelQuestions`."""

    remembered_by: RememberedBy = "set"

    def __init__(
        self,
        sets: CandidateSets,
        rejected: tuple[SetError, ...],
        malformed: MalformedPolicy,
        prompts: Sequence[Prompt],
        texts: Sequence[str | None],
        *,
        rendering: CoalitionText,
        rule: CreditRule,
        estimator: EstimatorOptions,
        most_players: int,
        most_evaluations: int,
        most_characters: int,
    ) -> None:
        """Take the sets, and find out what they cost at most before any coalition is made.

        Args:
            sets: B sets; `missing` where a candidate has no text.
            rejected: Sets that lack something; they are not asked about.
            malformed: Which candidates are surplus or copies.
            prompts: One per set.
            texts: One per candidate.
            rendering: How a coalition becomes a text.
            rule: Which credit.
            estimator: Budget and estimator, for each set.
            most_players: Largest number of players of a set.
            most_evaluations: Largest number of evaluations of a set.
            most_characters: Limit on the characters that the model reads.

        Raises:
            CostExceededError: If the request costs more than the limits.
            ValueError: If the rule has no plan of coalitions.
        """
        if needs_unions(rule):
            raise ValueError("owen has no plan of coalitions; expected another rule, or all 2**K utilities as a table")
        self._sets, self._prompts, self._rendering = sets, prompts, rendering
        errors = SetErrors(sets.n_sets, rejected)
        players = find_players(sets, malformed, errors)
        self._copies = players.copies
        self._errors = {error.row: error for error in errors.sorted()}
        in_order = any(isinstance(end, PrefixGain) for end in ends_of(rule))
        playing = np.flatnonzero(players.playing)
        characters, cells, found = 0, 0, []
        for row in np.flatnonzero(~errors.failed).tolist():
            start, stop = np.searchsorted(playing, sets.row_splits[row : row + 2]).tolist()
            one = playing[start:stop]
            planned = self._planned(row, len(one), rule, estimator, most_players, most_evaluations)
            if isinstance(planned, SetError):
                self._errors[row] = planned
                continue
            length = sum(len(texts[flat] or "") + len(rendering.before) + len(rendering.after) for flat in one.tolist())
            characters += planned * (characters_of(prompts[row]) + length)
            cells += planned * max(len(one), 1)
            found.append((row, one))
        check_characters(characters, most_characters)
        if cells > MAX_CELLS:
            raise CostExceededError(f"got {cells} players times evaluations; expected at most {MAX_CELLS} per request")
        self._games = [self._game(row, one, texts, rule, estimator, in_order=in_order) for row, one in found]

    def ask(self) -> Sequence[VariantTexts]:
        """The next coalitions of every set that is not solved; v(∅) is among them only if the model tells it."""
        return [
            VariantTexts(self._prompts[one.row], one.texts, one.asked[:, one.units])
            for one in self._games
            if len(one.asked)
        ]

    def tell(self, found: ScoredTexts) -> None:
        """Take the utilities of what was asked; a set with a text that has none fails."""
        start, left = 0, []
        for one in self._games:
            stop = start + len(one.asked)
            failed = next((found.failures[place] for place in range(start, stop) if place in found.failures), None)
            if failed is not None:
                self._errors[one.row] = failed_text(one.row, None, failed)
            else:
                self._told(one, found.rewards[start:stop])
                left.append(one)
            start = stop
        self._games = left

    def answer(self) -> EvaluatedSets:
        """Credits of every set."""
        n_candidates, n_sets = len(self._sets.rewards), self._sets.n_sets
        credits_, errors = np.full(n_candidates, np.nan), np.full(n_candidates, np.nan)
        credits_[self._copies] = 0.0
        intervals = np.full((n_candidates, 2), np.nan)
        empty, grand, scale = (np.full(n_sets, np.nan) for _ in range(3))
        exact, approximate = np.ones(n_sets, dtype=np.bool_), np.zeros(n_sets, dtype=np.bool_)
        methods: list[EvaluatedMethod] = ["definition"] * n_sets
        for one in self._games:
            row = one.row
            if one.game is None:
                empty[row] = grand[row] = one.empty
                scale[row] = abs(empty[row])
                continue
            found = one.game.credits()
            credits_[one.players] = found.credits
            if found.standard_errors is not None:
                errors[one.players] = found.standard_errors
            if found.intervals is not None:
                intervals[one.players] = found.intervals
            empty[row], grand[row], scale[row] = found.empty, found.grand, found.scale
            exact[row], approximate[row], methods[row] = found.exact, found.interval_approximate, found.method
        return EvaluatedSets(
            self._sets,
            tuple(self._errors[row] for row in sorted(self._errors)),
            given=SolvedSets(credits=credits_, empty=empty, grand=grand, scale=scale),
            estimates=Estimates(errors, intervals, exact, approximate, tuple(methods)),
        )

    def _planned(
        self, row: int, n: int, rule: CreditRule, estimator: EstimatorOptions, most_players: int, most: int
    ) -> int | SetError:
        if n == 0:
            return 1
        if n > most_players:
            return SetError(row, "too_many_players", "candidates", None, f"got {n}; expected at most {most_players}")
        return planned_evaluations(row, n, rule, estimator, min(most, MAX_CELLS // n))

    def _game(
        self,
        row: int,
        players: Integers,
        texts: Sequence[str | None],
        rule: CreditRule,
        estimator: EstimatorOptions,
        *,
        in_order: bool,
    ) -> _Game:
        words = [texts[flat] or "" for flat in players.tolist()]
        order = np.array(sorted(range(len(words)), key=lambda place: words[place].encode("utf-8", "surrogatepass")))
        order = order.astype(np.int64)
        if not in_order:
            players, words, order = players[order], [words[place] for place in order], np.arange(len(order))
        units = tuple(f"{self._rendering.before}{words[place]}{self._rendering.after}" for place in order)
        game, known = None, self._rendering.empty
        if len(players):
            nobody = np.zeros((1, len(players)), dtype=np.bool_)
            given = {} if known is None else {"known_coalitions": nobody, "known_utilities": np.array([known])}
            game = EvaluatedGame(len(players), estimator, rule, **given)
        asked = np.zeros((int(known is None), 0), dtype=np.bool_) if game is None else game.ask()
        return _Game(row, players, order, units, game, asked, known)

    def _told(self, one: _Game, utilities: NDArray[np.float64]) -> None:
        """Take the utilities of a set's coalitions, and look what it needs next."""
        if one.game is None:
            if len(utilities):
                one.empty = float(utilities[0])
            one.asked = one.asked[:0]
            return
        one.game.tell(one.asked, utilities)
        one.asked = one.game.ask()
