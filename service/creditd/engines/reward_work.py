"""What a request asks of a reward model of this process, in the parts in which the batcher has it run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from creditd.engines.attention_readers import AttentionReader
from creditd.engines.errors import EngineError
from creditd.engines.reward_scorers import LengthScorer, TrieScorer, Variants

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
T = TypeVar("T")


@dataclass(frozen=True)
class UnitTokens:
    """Which tokens of a sequence the units of a text are.

    Attributes:
        units: Shape (T,), int64: the unit of each token, −1 for tokens of none.
        n_units: n.
    """

    units: Integers
    n_units: int

    def sums(self, row: Floats) -> Floats:
        """Weights of units, shape (n,), from those of the first tokens, shape (at most T,)."""
        units = self.units[: len(row)]
        found: Floats = np.bincount(units[units >= 0], row[units >= 0], minlength=self.n_units).astype(np.float64)
        return found


@dataclass(frozen=True)
class RewardWork:
    """What one request asks of a model.

    Attributes:
        parts: Token sequences, of which one part is run at a time; of one part all that can be shared is.
        places: Shape (V,), int64: which sequence each one of the parts is, part after part.
        alone: Whether each part is run by itself.
        units: Of each sequence, part after part, where it is the attention to its units that is asked for; None: its
            reward.
    """

    parts: tuple[Variants, ...]
    places: Integers
    alone: bool
    units: tuple[UnitTokens, ...] | None = None

    @property
    def slices(self) -> list[RewardWork]:
        """The parts as works of their own."""
        found, start = [], 0
        for part in self.parts:
            stop = start + len(part.sequences)
            units = None if self.units is None else self.units[start:stop]
            found.append(RewardWork((part,), np.arange(stop - start), self.alone, units))
            start = stop
        return found

    def weights(self, rows: Sequence[Sequence[Floats]]) -> Floats:
        """Weights of the units of all sequences, one after another, from those of tokens, part after part."""
        of_sequences = (row for part in rows for row in part)
        found = [units.sums(row) for units, row in zip(self.units or (), of_sequences, strict=True)]
        return np.concatenate(found)

    def in_order(self, found: Floats) -> Floats:
        """What was found of the sequences, part after part, in their own order: rewards, or weights of their units."""
        if self.units is None:
            ordered = np.empty(len(found))
            ordered[self.places] = found
            return ordered
        weights = np.split(found, np.cumsum([one.n_units for one in self.units])[:-1])
        order = np.argsort(self.places, kind="stable")
        return np.concatenate([weights[place] for place in order.tolist()])


class WorkScorer:
    """A model as the batcher sees it: works that may share a batch do."""

    def __init__(self, scorer: TrieScorer | LengthScorer, attended: AttentionReader | EngineError) -> None:
        """Take what reads the model.

        Args:
            scorer: Its rewards.
            attended: Its attention, or why nothing does.
        """
        self._scorer, self._attended = scorer, attended

    def n_tokens(self, work: RewardWork) -> int:
        """Tokens that go through the model."""
        return sum(self._scorer.n_tokens(part) for part in work.parts)

    def score(self, works: Sequence[RewardWork], beat: Callable[[], None]) -> list[Floats]:
        """One array per work, part after part: of rewards, or of the weights of units."""
        rewards = [work for work in works if work.units is None]
        weights = [work for work in works if work.units is not None]
        of_rewards = iter(_by_work(rewards, lambda parts: self._scorer.score(parts, beat)))
        of_weights = iter(_by_work(weights, lambda parts: self._rows(parts, beat)))
        return [
            np.concatenate(next(of_rewards)) if work.units is None else work.weights(next(of_weights)) for work in works
        ]

    def _rows(self, parts: Sequence[Variants], beat: Callable[[], None]) -> list[list[Floats]]:
        if isinstance(self._attended, EngineError):
            raise self._attended
        return self._attended.rows(parts, beat)


def _by_work(works: Sequence[RewardWork], ask: Callable[[Sequence[Variants]], Sequence[T]]) -> Iterator[list[T]]:
    """What is found of each part of each work: of works that are not alone together, of others one at a time."""
    shared = [part for work in works if not work.alone for part in work.parts]
    together = iter(ask(shared) if shared else ())
    for work in works:
        yield [ask([part])[0] if work.alone else next(together) for part in work.parts]
