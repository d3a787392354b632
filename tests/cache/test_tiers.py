import asyncio
import threading

import anyio
import pytest

from cache.stores import (
    CALLER,
    MODEL,
    PATIENCE_S,
    PLENTY,
    TTL_S,
    FakeStore,
    Told,
    cache_of,
    fetched,
    game_of,
    kept,
    keys_of,
    known_in,
    opened,
    until,
)
from creditd.cache.budget import Budget
from creditd.cache.keys import CALLERS, purge_key
from creditd.cache.memory import MemoryCache
from creditd.cache.tiers import BYTES_PER_CALL, FLUSH_S, GAMES_PER_CALLBACK, KEYS_PER_CALL

PURGE = purge_key("rm")


def test_what_redis_has_is_found_and_remembered_here():
    """Games that are there come back and are in the memory of the process; absent ones are in neither."""
    store, keys = FakeStore(), keys_of(3)
    kept(store, {keys[0]: game_of({1: 1.0}), keys[2]: game_of({2: 2.0}, n=9)})
    found, cache = fetched(store, dict(zip(keys, (4, 4, 9), strict=True)))
    assert {text: known_in(game, game.n_players) for text, game in found.items()} == {
        keys[0].text: {1: 1.0},
        keys[2].text: {2: 2.0},
    }
    assert cache.look(keys) == found
    assert store.asked == [[PURGE, *(key.text for key in keys)]]


def test_both_levels_together_are_what_is_known():
    """What is fetched is joined to what the process knows already."""

    async def run():
        store, (key,) = FakeStore(), keys_of(1)
        cache = cache_of(store)
        cache.remember(MODEL, [(key, game_of({1: 1.0}))])
        kept(store, {key: game_of({2: 2.0})})
        found = await cache.fetch(MODEL, {key: 4}, Budget(PATIENCE_S))
        assert known_in(found[key.text]) == {1: 1.0, 2: 2.0}
        assert cache.look([key]) == found

    anyio.run(run)


def test_without_a_second_level_nothing_is_fetched():
    """A cache without Redis remembers in memory, and opens and closes like any other."""

    async def run():
        (key,) = keys_of(1)
        async with opened(None) as cache:
            assert not cache.has_store
            cache.remember(MODEL, [(key, game_of({1: 1.0}))])
            assert await cache.fetch(MODEL, {key: 4}, Budget(PATIENCE_S)) == {}
            assert known_in(cache.look([key])[key.text]) == {1: 1.0}
            assert (cache.queued_bytes, cache.generation("rm")) == (0, "")

    anyio.run(run)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda value: value[:-1], "checksum"),
        (lambda value: value[:10], "truncated"),
        (lambda _: b"", "truncated"),
        (lambda value: b"x" + value[1:], "unknown_format"),
        (lambda _: game_of({1: 9.0}).packed(bytes(8)), "foreign"),
        (lambda value: value[:-9] + bytes([value[-9] ^ 1]) + value[-8:], "checksum"),
    ],
)
def test_a_damaged_value_is_missed_and_counted(damage, reason):
    """It is not found and not remembered, and those beside it are."""
    store, told, keys = FakeStore(), Told(), keys_of(3)
    kept(store, dict.fromkeys(keys, game_of({1: 1.0})))
    store.values[keys[1].text] = damage(store.values[keys[1].text])
    found, cache = fetched(store, dict.fromkeys(keys, 4), told=told)
    assert list(found) == [keys[0].text, keys[2].text]
    assert cache.look(keys) == found
    assert told.all == [("corrupt", reason)]


def test_the_value_of_another_game_is_missed_and_counted():
    """Bytes that were copied to another key, and those of other players, are not what the key promises."""
    store, told, keys = FakeStore(), Told(), keys_of(3)
    kept(store, dict.fromkeys(keys, game_of({1: 1.0})))
    store.values[keys[0].text] = store.values[keys[1].text]
    assert list(fetched(store, {keys[0]: 4, keys[1]: 4, keys[2]: 5}, told=told)[0]) == [keys[1].text]
    assert told.all == [("corrupt", "foreign"), ("corrupt", "shape")]


@pytest.mark.parametrize(
    ("n_keys", "n", "expected"),
    [
        (KEYS_PER_CALL, 1, [KEYS_PER_CALL]),
        (2 * KEYS_PER_CALL + 1, 1, [KEYS_PER_CALL, KEYS_PER_CALL, 1]),
        (9, 16, [8, 1]),
        (8, 16, [8]),
        (17, 300, [8, 8, 1]),
        (0, 4, []),
    ],
)
def test_values_are_fetched_in_portions(n_keys, n, expected):
    """A call has a bounded number of keys, and of bytes if their values are tables; each key is asked for once."""
    assert BYTES_PER_CALL == 8 * (8 << 16)
    store, keys = FakeStore(), keys_of(n_keys)
    kept(store, dict.fromkeys(keys, game_of({1: 1.0}, n=n)))
    found, _ = fetched(store, dict.fromkeys(keys, n))
    assert list(found) == [key.text for key in keys]
    assert [len(call) - 1 for call in store.asked] == expected
    assert [call[0] for call in store.asked] == [PURGE] * len(expected)
    assert [text for call in store.asked for text in call[1:]] == [key.text for key in keys]


def test_a_store_that_does_not_answer_is_not_asked_again():
    """After one call without an answer the portions that are left are missed."""
    store, keys = FakeStore(), keys_of(3 * KEYS_PER_CALL)
    kept(store, dict.fromkeys(keys, game_of({1: 1.0})))
    store.answers = False
    assert fetched(store, dict.fromkeys(keys, 4))[0] == {}
    assert len(store.asked) == 1


def test_no_call_is_made_without_time():
    """What was fetched before the time of a request was over is found; no call is made after it."""
    store, keys = FakeStore(), keys_of(4 * KEYS_PER_CALL)
    kept(store, dict.fromkeys(keys, game_of({1: 1.0})))
    store.get_s = 0.1
    budget = Budget(0.15, store.clock)
    found, _ = fetched(store, dict.fromkeys(keys, 4), budget=budget)
    assert list(found) == [key.text for key in keys[: 2 * KEYS_PER_CALL]]
    assert len(store.asked) == 2
    assert fetched(store, dict.fromkeys(keys, 4), budget=budget)[0] == {}
    assert len(store.asked) == 2


@pytest.mark.parametrize(("models", "asked"), [(("rm", "other"), [PURGE, purge_key("other")]), ((), [])])
def test_opening_asks_redis_once(models, asked):
    """The tokens of all models and of callers are read in one call before the first request."""

    async def run():
        store = FakeStore()
        store.purge("rm", b"token")
        store.purge(CALLERS, b"of callers")
        async with opened(store, models) as cache:
            assert store.asked == [[*asked, purge_key(CALLERS)]]
            assert cache.generation(CALLERS) == "of callers"
            assert cache.has_store
            assert cache.generation("rm") == ("token" if models else "")
            assert cache.generation("other") == ""
        assert store.closed == 1

    anyio.run(run)


def test_a_process_starts_without_an_answer():
    """A Redis that says nothing when the cache opens is asked later, and written to."""

    async def run():
        store, (key,) = FakeStore(), keys_of(1)
        store.answers = False
        async with opened(store) as cache:
            assert cache.generation("rm") == ""
            cache.remember(MODEL, [(key, game_of({1: 1.0}))])
            await until(lambda: key.text in store.values)

    anyio.run(run)


def test_what_a_thread_remembers_reaches_the_store():
    """Games may come from any thread, as many as they are; each is in memory at once, and in Redis soon."""

    async def run():
        store, keys = FakeStore(), keys_of(3 * GAMES_PER_CALLBACK + 1)
        async with opened(store) as cache:
            games = [(key, game_of({1: 1.0})) for key in keys]
            thread = threading.Thread(target=cache.remember, args=(MODEL, iter(games)))
            thread.start()
            await asyncio.to_thread(thread.join, PATIENCE_S)
            assert len(cache.look(keys)) == len(keys)
            await until(lambda: len(store.values) == len(keys))
            assert all(store.known(key) == {1: 1.0} for key in keys)

    anyio.run(run)


def test_what_is_written_is_all_that_is_known():
    """A second account of a game is written together with the first one, the newer utility where they differ."""

    async def run():
        store, told, (key,) = FakeStore(), Told(), keys_of(1)
        async with opened(store, told=told) as cache:
            cache.remember(MODEL, [(key, game_of({1: 1.0, 2: 2.0}))])
            cache.remember(MODEL, [(key, game_of({2: 2.5, 3: 3.0}))])
        assert store.known(key) == {1: 1.0, 2: 2.5, 3: 3.0}
        assert told.all == []

    anyio.run(run)


def test_one_contradiction_of_a_caller_forgets_what_it_said():
    """It is counted, and what is written is what the caller says now; agreement is no contradiction."""

    async def run():
        store, told, (key, other) = FakeStore(), Told(), keys_of(2, CALLER)
        async with opened(store, told=told) as cache:
            cache.remember(CALLER, [(key, game_of({1: 1.0, 2: 2.0})), (other, game_of({1: 1.0}))])
            cache.remember(CALLER, [(key, game_of({2: 2.5})), (other, game_of({1: 1.0, 2: 2.0}))])
            assert known_in(cache.look([key])[key.text]) == {2: 2.5}
        assert (store.known(key), store.known(other)) == ({2: 2.5}, {1: 1.0, 2: 2.0})
        assert told.all == [("contradicted",)]

    anyio.run(run)


def test_closing_writes_what_is_left():
    """What was remembered last, from the loop and from a thread, is written before Redis is let go of."""

    async def run():
        store, (first, second) = FakeStore(), keys_of(2)
        cache = cache_of(store)
        await cache.open(["rm"])
        cache.remember(MODEL, [(first, game_of({1: 1.0}))])
        thread = threading.Thread(target=cache.remember, args=(MODEL, [(second, game_of({2: 2.0}))]))
        thread.start()
        thread.join(PATIENCE_S)
        assert store.written == []
        await cache.close()
        assert (store.known(first), store.known(second)) == ({1: 1.0}, {2: 2.0})
        assert (store.closed, cache.queued_bytes) == (1, 0)

    anyio.run(run)


def test_closing_ends_in_time():
    """A store that never finishes writing is let go of, and what waits behind it counts as dropped."""

    async def run():
        store, told, (first, second) = FakeStore(), Told(), keys_of(2)
        store.gate.clear()
        cache = cache_of(store, told)
        await cache.open(["rm"])
        cache.remember(MODEL, [(first, game_of({1: 1.0}))])
        await store.begun.wait()
        cache.remember(MODEL, [(second, game_of({1: 1.0}))])
        await asyncio.sleep(0)
        assert cache.queued_bytes == game_of({1: 1.0}).n_bytes
        with anyio.fail_after(10 * FLUSH_S):
            await cache.close()
        assert (store.closed, store.values, told.all) == (1, {}, [("dropped", "closed", 1)])

    anyio.run(run)


def test_what_is_remembered_after_closing_is_in_memory_alone():
    """Work that ends after the cache was closed does no harm, nor does closing what was never open, or twice."""

    async def run():
        store, (key,) = FakeStore(), keys_of(1)
        cache = cache_of(store)
        await cache.close()
        await cache.open(["rm"])
        await cache.close()
        cache.remember(MODEL, [(key, game_of({1: 1.0}))])
        await asyncio.sleep(0)
        assert known_in(cache.look([key])[key.text]) == {1: 1.0}
        await cache.close()
        assert (store.values, store.written, store.closed) == ({}, [], 3)

    anyio.run(run)


def test_a_defect_of_the_store_costs_sharing_alone(caplog):
    """A store that raises, which none should, ends the writing; that is logged, and opening and closing go on."""

    class Raising(FakeStore):
        async def put(self, values):
            """Raise."""
            raise ZeroDivisionError(len(values))

    async def run():
        (key,) = keys_of(1)
        async with opened(Raising()) as cache:
            cache.remember(MODEL, [(key, game_of({1: 1.0}))])
            await until(lambda: caplog.records)
            assert known_in(cache.look([key])[key.text]) == {1: 1.0}

    anyio.run(run)
    (record,) = [one for one in caplog.records if one.levelname == "ERROR"]
    assert "no longer writes to Redis" in record.message


def test_what_a_caller_told_this_process_counts_before_what_redis_says():
    """Two accounts of a caller are never mixed: one utility that differs, and nothing of what Redis says is taken."""

    async def run():
        store, told, (first, second) = FakeStore(), Told(), keys_of(2, CALLER)
        cache = cache_of(store, told)
        cache.remember(CALLER, [(key, game_of({1: 1.0, 2: 2.0})) for key in (first, second)])
        kept(store, {first: game_of({2: 2.5, 3: 3.0}), second: game_of({2: 2.0, 3: 3.0})})
        found = await cache.fetch(CALLER, {first: 4, second: 4}, Budget(PATIENCE_S))
        assert known_in(found[first.text]) == {1: 1.0, 2: 2.0}
        assert known_in(found[second.text]) == {1: 1.0, 2: 2.0, 3: 3.0}
        assert cache.look([first, second]) == found
        assert told.all == [("contradicted",)]

    anyio.run(run)


def test_a_cache_says_whether_redis_is_asked():
    """The states are those of the second level; without one there are none."""

    async def run():
        store = FakeStore()
        store.lost = "breaker"
        return cache_of(store).states(), cache_of().states()

    assert anyio.run(run) == ({"read": "closed", "write": "open"}, {})


class Held(MemoryCache):
    """A memory that keeps the thread that adds to it first until it may go on."""

    def __init__(self):
        super().__init__(PLENTY, TTL_S)
        self.first, self.added, self.goes_on = threading.Lock(), threading.Event(), threading.Event()

    def add(self, key, game, **options):
        """Add, then wait the first time."""
        found = super().add(key, game, **options)
        if self.first.acquire(blocking=False):
            self.added.set()
            assert self.goes_on.wait(PATIENCE_S)
        return found


@pytest.mark.parametrize(
    ("source", "first", "second", "written"),
    [
        (MODEL, {1: 1.0}, {2: 2.0}, {1: 1.0, 2: 2.0}),
        (CALLER, {1: 1.0, 2: 2.0}, {1: 9.0}, {1: 9.0}),
    ],
)
def test_the_newest_account_is_written_whoever_queues_last(source, first, second, written):
    """A thread that learned of a game earlier and queues it later does not take the place of what came between."""

    async def run():
        store, (key, *others) = FakeStore(), keys_of(2, source)
        async with opened(store) as cache:
            cache.memory = held = Held()
            games = [(key, game_of(first)), *((other, game_of({1: 1.0})) for other in others)]
            slow = asyncio.ensure_future(asyncio.to_thread(cache.remember, source, games))
            await asyncio.to_thread(held.added.wait, PATIENCE_S)
            cache.remember(source, [(key, game_of(second))])
            await until(lambda: key.text in store.values)
            held.goes_on.set()
            await slow
            await until(lambda: others[-1].text in store.values)
        return store.known(key)

    assert anyio.run(run) == written
