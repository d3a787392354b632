"""The task: suggest four gifts to somebody whose taste is hidden.

A prompt names a person by three words. Each person is of one of four types, and the policy never learns which: the
type is drawn anew for every rollout, with probabilities that depend on the prompt. A candidate is an adjective and a
noun. Its reward, between 0 and 1, stands in a table of prompt × type × adjective × noun, and a set is worth its best
candidate. The gift with the highest mean reward pleases nobody fully, so one gift per type is worth more than four safe
ones: hedging pays. Weak candidates beside a good one cost the set nothing: they can free-ride.

The table is a logistic function of random numbers, additive in the words of the prompt and in the two words of the
gift, and the same in every run. Nothing in it knows of a credit rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

ATTRIBUTES = (
    ("city", "village", "coast", "mountain", "desert", "forest"),
    ("dawn", "morning", "noon", "evening", "night", "weekend"),
    ("calm", "curious", "tired", "busy", "happy", "proud"),
)
ADJECTIVES = (
    "red", "blue", "green", "white", "old", "new", "small", "large",
    "soft", "warm", "quiet", "bright", "wooden", "silver", "cheap", "rare",
)  # fmt: skip
NOUNS = (
    "kite", "lamp", "chair", "book", "watch", "scarf", "tent", "radio",
    "clock", "mirror", "drum", "knife", "bag", "vase", "boat", "game",
)  # fmt: skip
PAD, START, END, MARK = "<pad>", "<start>", "<end>", "<c>"
VOCABULARY = (PAD, START, END, MARK, *(word for slot in ATTRIBUTES for word in slot), *ADJECTIVES, *NOUNS)

PROMPTS = tuple(" ".join((START, *words)) for words in product(*ATTRIBUTES))
"""All 216 prompts; a row is an index into this tuple."""
K = 4
"""Candidates that a prompt asks for; later ones do not play."""
TYPES = 4
PARSER = {"type": "regex", "pattern": r"<c> (?P<candidate>[a-z]+ [a-z]+)"}
"""A candidate is two words behind a mark. Whether they are a gift is for the reward to say."""

TABLE_SEED = 260329871
GENERAL, SPECIFIC, TYPE_CONTRAST, SHIFT = 1.2, 0.5, 0.5, 3.5
"""Standard deviations: of logits common to all prompts, of those of one attribute word, of the types'; threshold."""
HELD_OUT = 64

_ADJECTIVE = {word: place for place, word in enumerate(ADJECTIVES)}
_NOUN = {word: place for place, word in enumerate(NOUNS)}


class Tables:
    """What each type likes, and how probable each type is.

    Attributes:
        rewards: Shape (prompts, types, adjectives, nouns), in (0, 1).
        types: Shape (prompts, types), probabilities.
        train: Rows of the prompts of training.
        held_out: Rows of the prompts of evaluation, disjoint from `train`.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(TABLE_SEED)
        words = np.array(list(product(*(range(len(slot)) for slot in ATTRIBUTES))))
        adjectives = GENERAL * rng.normal(size=(1, TYPES, len(ADJECTIVES)))
        nouns = GENERAL * rng.normal(size=(1, TYPES, len(NOUNS)))
        types = np.zeros((1, TYPES))
        for place, slot in enumerate(ATTRIBUTES):
            word = words[:, place]
            adjectives = adjectives + SPECIFIC * rng.normal(size=(len(slot), TYPES, len(ADJECTIVES)))[word]
            nouns = nouns + SPECIFIC * rng.normal(size=(len(slot), TYPES, len(NOUNS)))[word]
            types = types + TYPE_CONTRAST * rng.normal(size=(len(slot), TYPES))[word]
        self.rewards: Floats = 1.0 / (1.0 + np.exp(SHIFT - adjectives[..., :, None] - nouns[..., None, :]))
        self.types: Floats = np.exp(types) / np.exp(types).sum(axis=1, keepdims=True)
        order = rng.permutation(len(PROMPTS))
        self.held_out = np.sort(order[:HELD_OUT])
        self.train = np.sort(order[HELD_OUT:])

    def by_type(self, row: int, candidates: Sequence[str]) -> Floats:
        """Rewards of candidates for every type, shape (types, candidates); 0 for two words that are no gift."""
        rewards = np.zeros((TYPES, len(candidates)))
        for place, candidate in enumerate(candidates):
            first, _, second = candidate.partition(" ")
            if first in _ADJECTIVE and second in _NOUN:
                rewards[:, place] = self.rewards[row, :, _ADJECTIVE[first], _NOUN[second]]
        return rewards

    def value(self, row: int, candidates: Sequence[str]) -> tuple[float, float]:
        """The best and the mean reward of the first K candidates, each in expectation over the hidden type."""
        if not candidates:
            return 0.0, 0.0
        rewards = self.by_type(row, candidates[:K])
        return float(self.types[row] @ rewards.max(axis=1)), float(self.types[row] @ rewards.mean(axis=1))


class HiddenTypes:
    """The types of the rollouts of one training run: a function of the seed and the order of the rollouts alone."""

    def __init__(self, tables: Tables, seed: int) -> None:
        self._cumulative = tables.types.cumsum(axis=1)
        self._rng = np.random.default_rng([TABLE_SEED, seed])

    def draw(self, rows: Sequence[int]) -> NDArray[np.int64]:
        """One type per rollout; each call takes the next stretch of the stream, one number per rollout."""
        drawn = self._rng.random(len(rows))[:, None]
        kinds: NDArray[np.int64] = (drawn >= self._cumulative[list(rows), :-1]).sum(axis=1)
        return kinds


def references(tables: Tables) -> dict[str, float]:
    """Expected max@K of some policies on the held-out prompts: what the curves may be compared with.

    The sets are found greedily, gift by gift, which is within 1 − 1/e of the best set and in practice close to it.
    """
    rows = tables.held_out
    rewards = tables.rewards[rows].reshape(len(rows), TYPES, -1)
    everywhere = tables.rewards[tables.train].reshape(len(tables.train), TYPES, -1)
    single = [_greedy(rewards, np.eye(TYPES)[[kind] * len(rows)]) for kind in range(TYPES)]
    same = _greedy(everywhere.reshape(1, -1, rewards.shape[2]), tables.types[tables.train].reshape(1, -1))
    safest = _best(rewards, tables.types[rows])
    return {
        "four copies of the safest gift": _worth(tables, rows, rewards, np.stack([safest] * K, axis=1)),
        "the best gifts for one type": max(_worth(tables, rows, rewards, chosen) for chosen in single),
        "the same four gifts for every prompt": _worth(tables, rows, rewards, np.repeat(same, len(rows), axis=0)),
        "the best set of each prompt": _worth(tables, rows, rewards, _greedy(rewards, tables.types[rows])),
    }


def _best(rewards: Floats, weights: Floats) -> NDArray[np.int64]:
    """The gift with the highest weighted reward, per row of (rows, types, gifts)."""
    best: NDArray[np.int64] = np.einsum("rt,rtg->rg", weights, rewards).argmax(axis=1)
    return best


def _greedy(rewards: Floats, weights: Floats) -> NDArray[np.int64]:
    """K gifts per row, each the one that adds most to the weighted best; shape (rows, K)."""
    reached = np.zeros((*weights.shape, 1))
    chosen = []
    for _ in range(K):
        gift = _best(np.maximum(rewards, reached), weights)
        reached = np.maximum(reached, np.take_along_axis(rewards, gift[:, None, None], axis=2))
        chosen.append(gift)
    return np.stack(chosen, axis=1)


def _worth(tables: Tables, rows: NDArray[np.int64], rewards: Floats, chosen: NDArray[np.int64]) -> float:
    """Expected max@K of the chosen gifts, mean over rows."""
    best = np.take_along_axis(rewards, chosen[:, None, :], axis=2).max(axis=2)
    return float((tables.types[rows] * best).sum(axis=1).mean())


def well_formed(text: str) -> bool:
    """Whether a completion, without its end, is K gifts and nothing else."""
    words = text.split()
    return len(words) == 3 * K and all(
        words[place] == MARK and words[place + 1] in _ADJECTIVE and words[place + 2] in _NOUN
        for place in range(0, 3 * K, 3)
    )


def completion(candidates: Sequence[str]) -> str:
    """The text of a set, as the format wants it."""
    return " ".join((*(f"{MARK} {candidate}" for candidate in candidates), END))
