"""What is asked of a policy in one go, and the policy as the batcher sees it.

Items that are the same are measured once, so that copies have the same numbers to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.engines.gradient import Gradients
from creditd.engines.outcome_probes import read_tokens
from creditd.engines.padded_batches import length_batches
from creditd.engines.policy_protocol import ReasonedTokens, SensitivityOptions

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


class Measurer(Protocol):
    """A loaded policy, as far as works ask it."""

    def n_tokens(self, items: Sequence[ReasonedTokens], options: SensitivityOptions) -> int:
        """Tokens that go through the model for items that are run together."""

    def perturbed(self, item: ReasonedTokens, options: SensitivityOptions, beat: Callable[[], None]) -> Floats:
        """Sensitivities of an item by perturbation, shape (R,)."""

    def gradients(
        self, batches: Sequence[Sequence[ReasonedTokens]], options: SensitivityOptions, beat: Callable[[], None]
    ) -> list[list[Gradients]]:
        """Sensitivities of each item of each batch by the gradient."""

    def batches(self, items: Sequence[ReasonedTokens]) -> Iterator[list[int]]:
        """Places of items that are run together by the gradient."""


@dataclass(frozen=True)
class PolicyWork:
    """Different items, measured alike.

    Attributes:
        items: Each with at least one measured token.
        options: How they are measured; the token to perturb with is named.
        alone: Whether each is run by itself.
        n_tokens: Tokens that go through the model, where they were counted before.
    """

    items: tuple[ReasonedTokens, ...]
    options: SensitivityOptions
    alone: bool = False
    n_tokens: int | None = field(default=None, compare=False)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Numbers that come out for each item: sensitivities, and by the gradient the spread behind them."""
        return tuple(len(item.positions) + (self.options.method == "gradient") for item in self.items)


@dataclass(frozen=True)
class Distinct:
    """Items without copies.

    Attributes:
        items: Different ones.
        places: Which of them each item is.
    """

    items: tuple[ReasonedTokens, ...]
    places: tuple[int, ...]

    @classmethod
    def of(cls, items: Sequence[ReasonedTokens], checkpoint: Callable[[], None] = lambda: None) -> Distinct:
        """Items that differ in what is read or measured of them.

        Args:
            items: Any.
            checkpoint: Called before each item.
        """
        numbers: dict[bytes, int] = {}
        kept: list[ReasonedTokens] = []
        places = []
        for item in items:
            checkpoint()
            number = numbers.setdefault(_key(item), len(kept))
            if number == len(kept):
                kept.append(item)
            places.append(number)
        return cls(tuple(kept), tuple(places))


def _key(item: ReasonedTokens) -> bytes:
    answer = np.asarray(item.completion_ids[slice(*item.answer)], dtype=np.int64)
    sizes = np.array([len(item.prompt_ids), *item.answer, len(item.positions)], dtype=np.int64)
    parts = (sizes, read_tokens(item), answer, np.asarray(item.positions, dtype=np.int64))
    return b"".join(part.tobytes() for part in parts)


def sliced(
    work: PolicyWork, measurer: Measurer, most_tokens: int, checkpoint: Callable[[], None] = lambda: None
) -> list[PolicyWork]:
    """A work in slices that are run one at a time, in order, so that others have their turn between.

    Args:
        work: Any.
        measurer: What it costs.
        most_tokens: Tokens from which a slice is full. By perturbation an item that has more is cut as well; by the
            gradient an item is measured at once.
        checkpoint: Called before each item.

    Returns:
        Works whose items are those of the work, in order, with their tokens counted; an item that was cut has its
        measured tokens in some in a row.

    Cost:
        A clean pass more for each cut through an item.
    """
    slices: list[PolicyWork] = []
    items: list[ReasonedTokens] = []
    tokens = 0
    for whole in work.items:
        checkpoint()
        for item, n_tokens in _cut(whole, work.options, measurer, most_tokens):
            if items and tokens + n_tokens > most_tokens:
                slices.append(replace(work, items=tuple(items), n_tokens=tokens))
                items, tokens = [], 0
            items.append(item)
            tokens += n_tokens
    return [*slices, replace(work, items=tuple(items), n_tokens=tokens)]


def _cut(
    item: ReasonedTokens, options: SensitivityOptions, measurer: Measurer, most_tokens: int
) -> Iterator[tuple[ReasonedTokens, int]]:
    """An item and its tokens; by perturbation it may be some items that have a part of its measured tokens each."""
    n_tokens = measurer.n_tokens([item], options)
    n_parts = min(len(item.positions), -(-n_tokens // most_tokens)) if options.method == "perturbation" else 1
    if n_parts <= 1:
        yield item, n_tokens
        return
    # Early tokens cost more than late ones, so that parts of equal cost have unequal numbers of them.
    behind = len(item.prompt_ids) + item.answer[1] - 1 - (len(item.prompt_ids) + np.asarray(item.positions))
    shares = np.cumsum(behind) / behind.sum()
    cuts = np.unique(np.searchsorted(shares, np.arange(1, n_parts) / n_parts))
    for positions in np.split(np.asarray(item.positions), cuts):
        if len(positions):
            part = replace(item, positions=positions)
            yield part, measurer.n_tokens([part], options)


class PolicyScorer:
    """A policy as the batcher sees it."""

    def __init__(self, measurer: Measurer) -> None:
        """Take what measures.

        Args:
            measurer: The policy.
        """
        self._measurer = measurer

    def n_tokens(self, work: PolicyWork) -> int:
        """Tokens that go through the model; those of a slice were counted when it was cut."""
        if work.n_tokens is not None:
            return work.n_tokens
        return sum(self._measurer.n_tokens([item], work.options) for item in work.items)

    def score(self, works: Sequence[PolicyWork], beat: Callable[[], None]) -> list[Floats]:
        """One array per work: for each item its sensitivities, and by the gradient its spread, NaN for none."""
        found: list[Floats | None] = [None] * len(works)
        together: dict[SensitivityOptions, list[int]] = {}
        for place, work in enumerate(works):
            if not work.items:
                found[place] = np.empty(0)
            elif work.options.method == "perturbation":
                # Rows of a pass are all of one item, whether it is alone or not.
                parts = [self._measurer.perturbed(item, work.options, beat) for item in work.items]
                found[place] = np.concatenate(parts)
            elif work.alone:
                found[place] = self._flat(self._gradients(list(work.items), work.options, beat, alone=True))
            else:
                together.setdefault(work.options, []).append(place)
        for options, places in together.items():
            distinct = Distinct.of([item for place in places for item in works[place].items])
            measured = self._gradients(list(distinct.items), options, beat, alone=False)
            numbers = iter(distinct.places)
            for place in places:
                found[place] = self._flat([measured[next(numbers)] for _ in works[place].items])
        return [one for one in found if one is not None]

    def _gradients(
        self, items: list[ReasonedTokens], options: SensitivityOptions, beat: Callable[[], None], *, alone: bool
    ) -> list[Gradients]:
        batches = [[place] for place in range(len(items))] if alone else list(self._measurer.batches(items))
        measured = self._measurer.gradients([[items[place] for place in batch] for batch in batches], options, beat)
        found = {
            place: one
            for batch, of_batch in zip(batches, measured, strict=True)
            for place, one in zip(batch, of_batch, strict=True)
        }
        return [found[place] for place in range(len(items))]

    @staticmethod
    def _flat(measured: Sequence[Gradients]) -> Floats:
        spreads = [np.nan if one.spread is None else one.spread for one in measured]
        return np.concatenate(
            [np.append(one.sensitivities, spread) for one, spread in zip(measured, spreads, strict=True)]
        )


def item_batches(
    items: Sequence[ReasonedTokens], most_tokens: int, turn: int | None, most_rows: int | None = None
) -> Iterator[list[int]]:
    """Places of items that are rows of one batch.

    Args:
        items: Any.
        most_tokens: Most tokens of a batch, filling included; one longer row goes by itself.
        turn: Rows up to this length and longer ones go apart. None: they need not.
        most_rows: Most rows of a batch. None: as many as its tokens allow.
    """
    for batch in length_batches([read_tokens(item) for item in items], most_tokens, turn):
        step = most_rows or len(batch)
        yield from (batch[start : start + step] for start in range(0, len(batch), step))
