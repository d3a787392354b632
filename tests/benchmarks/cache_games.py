"""Games for the benchmark of the utility cache: texts as a trainer sends them, utilities, keys, and a cache to ask.

Legend: `B` games of `n` players; all `2**n` coalitions of each are known.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from creditd.cache.events import NoEvents
from creditd.cache.games import KnownGame, known_game
from creditd.cache.keys import GameKey, KeyMaker, UtilitySource
from creditd.cache.memory import MemoryCache
from creditd.cache.redis import RedisChoice, RedisStore
from creditd.cache.tiers import UtilityCache
from creditd.engines.protocol import VariantTexts
from creditd.scoring.recollection import Recollection

SOURCE = UtilitySource(tenant=b"t" * 32, source="model", name="rm", identity="a reward model")
TTL_S, PATIENCE_S = 86400.0, 60.0
MEMORY_BYTES = QUEUED_BYTES = 1 << 28
WORDS = ["the", "answer", "is", "forty-two", "because", "six", "times", "seven", "makes", "that", "and", "no", "other"]
PROMPT_LENGTH = 400


def text(random: np.random.Generator, length: int) -> str:
    """Words, so many characters of them, not those of another text."""
    words = random.choice(WORDS, length)
    return f"{random.integers(1 << 40):x} {' '.join(words)}"[:length]


@dataclass(frozen=True)
class Workload:
    """What one request asks.

    Attributes:
        prompts: Number of prompts.
        sets: Candidate sets of each prompt, every one a game.
        candidates: n of each set.
        length: Characters of a candidate.
    """

    prompts: int = 64
    sets: int = 8
    candidates: int = 8
    length: int = 200

    @property
    def games(self) -> int:
        """B."""
        return self.prompts * self.sets

    @property
    def all_candidates(self) -> int:
        """Candidates of all sets."""
        return self.games * self.candidates

    @cached_property
    def rows(self) -> np.ndarray:
        """Shape (2**n, n), bool: all coalitions of one game."""
        return (np.arange(2**self.candidates)[:, None] >> np.arange(self.candidates) & 1).astype(np.bool_)

    @cached_property
    def utilities(self) -> np.ndarray:
        """Shape (B, 2**n): what the model said of each."""
        return np.random.default_rng(1).standard_normal((self.games, len(self.rows)))

    @cached_property
    def texts(self) -> list[VariantTexts]:
        """What is asked, game by game; as in a decoded request, sets share neither prompts nor arrays."""
        random = np.random.default_rng(self.length)
        found = []
        for _ in range(self.prompts):
            prompt = text(random, PROMPT_LENGTH)
            for _ in range(self.sets):
                units = tuple(text(random, self.length) for _ in range(self.candidates))
                found.append(VariantTexts("".join(list(prompt)), units, self.rows.copy()))
        return found

    @cached_property
    def alone(self) -> list[VariantTexts]:
        """The same candidates, each asked about by itself."""
        return [VariantTexts(one.prompt, one.units, np.eye(len(one.units), dtype=np.bool_)) for one in self.texts]

    @cached_property
    def keys(self) -> list[GameKey]:
        """The key of each game."""
        return list(Recollection(self.texts, KeyMaker(SOURCE), by="set").missing)

    @cached_property
    def known(self) -> list[tuple[GameKey, KnownGame]]:
        """What is known of each game: everything."""
        return [(key, known_game(self.rows, row)) for key, row in zip(self.keys, self.utilities, strict=True)]

    @cached_property
    def known_alone(self) -> list[tuple[GameKey, KnownGame]]:
        """What is known of each candidate by itself."""
        keys = Recollection(self.alone, KeyMaker(SOURCE), by="candidate").missing
        rewards = np.random.default_rng(2).standard_normal(len(keys))
        row = np.ones((1, 1), dtype=np.bool_)
        return [(key, known_game(row, rewards[place : place + 1])) for place, key in enumerate(keys)]


class CountedDrops(NoEvents):
    """Events of which only those are kept that a benchmark must not have."""

    def __init__(self) -> None:
        self.n_bad = 0

    def failed(self, *_: object) -> None:
        """Redis did not answer."""
        self.n_bad += 1

    def corrupt(self, *_: object) -> None:
        """A value was none."""
        self.n_bad += 1

    def dropped(self, *_: object) -> None:
        """A game was not written."""
        self.n_bad += 1


def store_of(url: str, events: CountedDrops) -> RedisStore:
    """The second level, with the service's own settings of connections."""
    return RedisStore(RedisChoice(url), events)


def cache_of(store: RedisStore, events: CountedDrops) -> UtilityCache:
    """A cache that remembers nothing yet, as that of another replica."""
    memory = MemoryCache(MEMORY_BYTES, TTL_S)
    return UtilityCache(memory, store, ttl_s=TTL_S, budget_s=PATIENCE_S, max_queued_bytes=QUEUED_BYTES, events=events)


async def write(url: str, games: Iterable[tuple[GameKey, KnownGame]], events: CountedDrops) -> float:
    """Have games written behind a request; seconds until all of them are."""
    cache = cache_of(store_of(url, events), events)
    await cache.open()
    started_s = time.perf_counter()
    cache.remember(SOURCE, games)
    await asyncio.sleep(0)  # the loop is handed what is remembered, and queues it
    await cache._writes.flush(PATIENCE_S)
    taken_s = time.perf_counter() - started_s
    await cache.close()
    return taken_s
