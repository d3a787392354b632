"""A second level in memory that fails as a test wants, what a cache told of itself, and games for both."""

import asyncio
from contextlib import asynccontextmanager

import anyio
import numpy as np

from creditd.cache.budget import Budget
from creditd.cache.events import NoEvents
from creditd.cache.games import known_game, unpacked
from creditd.cache.keys import KeyMaker, UtilitySource, purge_key
from creditd.cache.memory import MemoryCache
from creditd.cache.tiers import UtilityCache

PATIENCE_S = 30.0
"""How long a test waits for something that takes milliseconds."""
TTL_S = 60.0
PLENTY = 1 << 30

MODEL = UtilitySource(tenant=b"t" * 32, source="model", name="rm", identity="weights")
CALLER = UtilitySource(tenant=b"t" * 32, source="caller", name="", identity="tests passed")


class Clock:
    """Seconds that a test sets."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        """The time."""
        return self.now_s


class FakeStore:
    """`Store` that keeps values in a dictionary.

    Attributes:
        values: What is kept, by key.
        kept_ms: How long each is kept.
        asked: The keys of each call of `get` that was answered or failed.
        written: The keys of each call of `put`.
        answers: Whether `get` answers.
        lost: What `put` says; values are written only without it.
        gate: Where `put` waits.
        begun: Set once a `put` has begun.
        clock: Moves by `get_s` with each call of `get`.
        get_s: See there.
        closed: How often it was closed.
    """

    def __init__(self, clock=None):
        self.values, self.kept_ms, self.asked, self.written = {}, {}, [], []
        self.answers, self.lost, self.closed = True, None, 0
        self.gate, self.begun = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.clock, self.get_s = clock or Clock(), 0.0

    def state(self, operation):
        """Reads are asked, and writes as long as nothing is lost."""
        return "closed" if operation == "read" or self.lost is None else "open"

    async def get(self, keys, budget):
        """Values, unless the time is over or it fails."""
        if budget.left_s <= 0:
            return None
        self.asked.append(list(keys))
        return await budget.wait_for(asyncio.ensure_future(self._values(keys)))

    async def put(self, values):
        """Keep values once the gate is open."""
        self.written.append([key for key, _, _ in values])
        self.begun.set()
        await self.gate.wait()
        if self.lost is None:
            self.values |= {key: value for key, value, _ in values}
            self.kept_ms |= {key: milliseconds for key, _, milliseconds in values}
        return self.lost

    async def close(self):
        """Count it."""
        self.closed += 1

    def purge(self, model, token):
        """What an administrator leaves; None: what Redis has lost."""
        self.values.pop(purge_key(model), None)
        if token is not None:
            self.values[purge_key(model)] = token

    def known(self, key, n=4):
        """What is kept of a game, by the number whose bits are the coalition."""
        return known_in(unpacked(self.values[key.text], key.check, n), n)

    async def _values(self, keys):
        self.clock.now_s += self.get_s
        return [self.values.get(key) for key in keys] if self.answers else None


class Told(NoEvents):
    """What was told, in order."""

    def __init__(self):
        self.all = []

    def corrupt(self, reason):
        """Note it."""
        self.all.append(("corrupt", reason))

    def dropped(self, reason, n_games):
        """Note it."""
        self.all.append(("dropped", reason, n_games))

    def contradicted(self):
        """Note it."""
        self.all.append(("contradicted",))


def cache_of(store=None, told=None):
    """A cache that is not open yet, with room for everything."""
    memory = MemoryCache(PLENTY, TTL_S)
    return UtilityCache(memory, store, ttl_s=TTL_S, budget_s=PATIENCE_S, max_queued_bytes=PLENTY, events=told)


def keys_of(n, source=MODEL):
    """Keys of different games."""
    maker = KeyMaker(source)
    return [maker.game(b"prompt", (str(place),)) for place in range(n)]


def game_of(known, n=4):
    """A game of which some utilities are known, by the number whose bits are the coalition."""
    rows = np.array([[number >> player & 1 for player in range(n)] for number in known], dtype=np.bool_)
    return known_game(rows, np.array(list(known.values()), dtype=np.float64))


def known_in(game, n=4):
    """What is known of a game, by the number whose bits are the coalition."""
    numbers = (game.coalitions() << np.arange(n)).sum(axis=1).tolist()
    return dict(zip(numbers, game.utilities.tolist(), strict=True))


@asynccontextmanager
async def opened(store, models=("rm",), told=None):
    """A cache between opening and closing."""
    cache = cache_of(store, told)
    await cache.open(models)
    try:
        yield cache
    finally:
        await cache.close()


def kept(store, games):
    """Have a store keep games."""
    store.values |= {key.text: game.packed(key.check) for key, game in games.items()}


def fetched(store, wanted, *, source=MODEL, budget=None, told=None):
    """What a cache that knows nothing fetches, and the cache."""

    async def run():
        cache = cache_of(store, told)
        return await cache.fetch(source, wanted, budget or Budget(PATIENCE_S, store.clock)), cache

    return anyio.run(run)


async def until(condition):
    """Wait until something is so."""
    with anyio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)
