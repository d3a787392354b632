import asyncio
import time
from contextlib import asynccontextmanager

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.stores import PATIENCE_S, PLENTY, TTL_S, FakeStore, Told, game_of, keys_of, known_in, until
from creditd.cache.games import unpacked
from creditd.cache.keys import GameKey
from creditd.cache.write_behind import BATCH_BYTES, BATCH_GAMES, TTL_SPREAD, WriteBehind, ttl_ms

ONE = game_of({1: 1.0})


@asynccontextmanager
async def writing(store, *, max_bytes=PLENTY, events=None, runs=True):
    """A queue, and the task that empties it."""
    queue = WriteBehind(store, max_bytes=max_bytes, ttl_s=TTL_S, events=events or Told())
    task = asyncio.ensure_future(queue.run()) if runs else None
    try:
        yield queue
    finally:
        if task is not None:
            assert not task.done(), "the task that writes has ended"
            task.cancel()


def test_what_is_added_is_written():
    """Games are written under their key, readable, with their time to live, and then no longer wait."""

    async def run():
        store, keys = FakeStore(), keys_of(3)
        async with writing(store) as queue:
            for place, key in enumerate(keys):
                queue.add(key, game_of({place: 1.5}))
            assert queue.n_bytes == 3 * ONE.n_bytes
            await queue.flush(PATIENCE_S)
            assert queue.n_bytes == 0
        assert store.written == [[key.text for key in keys]]
        assert [store.known(key) for key in keys] == [{0: 1.5}, {1: 1.5}, {2: 1.5}]
        assert store.kept_ms == {key.text: ttl_ms(key, TTL_S) for key in keys}

    anyio.run(run)


def test_of_a_game_that_waits_the_newest_account_is_written():
    """A game that is added again is written once, as it is now, behind those that were added before."""

    async def run():
        store, (first, second) = FakeStore(), keys_of(2)
        async with writing(store) as queue:
            queue.add(first, game_of({1: 1.0}))
            queue.add(second, game_of({2: 2.0}))
            queue.add(first, game_of({1: 1.0, 3: 3.0}))
            assert queue.n_bytes == game_of({1: 1.0, 3: 3.0}).n_bytes + game_of({2: 2.0}).n_bytes
            await queue.flush(PATIENCE_S)
        assert store.written == [[second.text, first.text]]
        assert store.known(first) == {1: 1.0, 3: 3.0}

    anyio.run(run)


def test_what_comes_while_something_is_written_is_written_after_it():
    """A game that is added during a round trip, of the same key or another, is in the next one."""

    async def run():
        store, (first, second) = FakeStore(), keys_of(2)
        store.gate.clear()
        async with writing(store) as queue:
            queue.add(first, game_of({1: 1.0}))
            await store.begun.wait()
            queue.add(second, ONE)
            queue.add(first, game_of({2: 2.0}))
            store.gate.set()
            await queue.flush(PATIENCE_S)
        assert store.written == [[first.text], [second.text, first.text]]
        assert store.known(first) == {2: 2.0}

    anyio.run(run)


def test_the_oldest_make_way_for_the_newest():
    """Beyond the limit the games that waited longest are dropped, and each is counted."""

    async def run():
        store, told, keys = FakeStore(), Told(), keys_of(5)
        async with writing(store, max_bytes=3 * ONE.n_bytes, events=told) as queue:
            for key in keys:
                queue.add(key, ONE)
                assert queue.n_bytes <= 3 * ONE.n_bytes
            await queue.flush(PATIENCE_S)
        assert store.written == [[key.text for key in keys[2:]]]
        assert told.all == [("dropped", "queue_full", 1)] * 2

    anyio.run(run)


def test_a_game_that_is_too_large_for_the_queue_is_dropped_by_itself():
    """It is counted, what waits already is written, and no round trip is made for nothing."""

    async def run():
        store, told, (first, large) = FakeStore(), Told(), keys_of(2)
        async with writing(store, max_bytes=2 * ONE.n_bytes, events=told) as queue:
            queue.add(large, game_of(dict.fromkeys(range(2000), 1.0), n=11))
            await queue.flush(PATIENCE_S)
            assert (store.written, queue.n_bytes) == ([], 0)
            queue.add(first, ONE)
            queue.add(large, game_of(dict.fromkeys(range(2000), 1.0), n=11))
            await queue.flush(PATIENCE_S)
            queue.add(first, ONE)
            queue.add(first, game_of(dict.fromkeys(range(2000), 1.0), n=11))
            await queue.flush(PATIENCE_S)
        assert store.written == [[first.text]]
        assert told.all == [("dropped", "queue_full", 1)] * 3

    anyio.run(run)


def test_round_trips_have_a_bounded_number_of_games():
    """More games than one round trip takes are several, in order, with others' turns in between."""

    async def run():
        store, keys = FakeStore(), keys_of(2 * BATCH_GAMES + 1)
        async with writing(store) as queue:
            for key in keys:
                queue.add(key, ONE)
            await queue.flush(PATIENCE_S)
        assert [len(batch) for batch in store.written] == [BATCH_GAMES, BATCH_GAMES, 1]
        assert [key for batch in store.written for key in batch] == [key.text for key in keys]

    anyio.run(run)


def test_round_trips_have_a_bounded_number_of_bytes():
    """A round trip ends with the value that fills it; each is at most that much larger than the limit."""

    async def run():
        store, keys, n = FakeStore(), keys_of(10), 15
        table = game_of(dict.fromkeys(range(1 << n), 1.0), n=n)
        async with writing(store) as queue:
            for key in keys:
                queue.add(key, table)
            await queue.flush(PATIENCE_S)
        sizes = [sum(len(store.values[key]) for key in batch) for batch in store.written]
        assert len(sizes) == 3
        assert all(BATCH_BYTES <= size < BATCH_BYTES + table.n_bytes for size in sizes[:-1])
        assert known_in(unpacked(store.values[keys[9].text], keys[9].check, n), n) == known_in(table, n)

    anyio.run(run)


@pytest.mark.parametrize("reason", ["breaker", "failed"])
def test_what_is_not_written_is_counted_and_forgotten(reason):
    """A store that writes nothing costs the games of each round trip, and the queue goes on."""

    async def run():
        store, told, keys = FakeStore(), Told(), keys_of(4)
        store.lost = reason
        async with writing(store, events=told) as queue:
            for key in keys[:3]:
                queue.add(key, ONE)
            await queue.flush(PATIENCE_S)
            assert (queue.n_bytes, store.values) == (0, {})
            store.lost = None
            queue.add(keys[3], ONE)
            await queue.flush(PATIENCE_S)
        assert list(store.values) == [keys[3].text]
        assert told.all == [("dropped", reason, 3)]

    anyio.run(run)


def test_flushing_waits_for_what_is_on_its_way():
    """It ends once the last round trip has ended, not once the queue is empty."""

    async def run():
        store, (key,) = FakeStore(), keys_of(1)
        store.gate.clear()
        async with writing(store) as queue:
            queue.add(key, ONE)
            flushing = asyncio.ensure_future(queue.flush(PATIENCE_S))
            await store.begun.wait()
            assert queue.n_bytes == 0
            done, _ = await asyncio.wait({flushing}, timeout=0.05)
            assert not done
            store.gate.set()
            await flushing
        assert list(store.values) == [key.text]

    anyio.run(run)


def test_flushing_ends_in_time():
    """A store that does not write is not waited for, and what still waits counts as dropped."""

    async def run():
        store, told, keys = FakeStore(), Told(), keys_of(BATCH_GAMES + 7)
        store.gate.clear()
        async with writing(store, events=told) as queue:
            for key in keys:
                queue.add(key, ONE)
            begun = time.monotonic()
            await queue.flush(0.1)
            assert time.monotonic() - begun < 10 * 0.1
            store.gate.set()
        assert told.all == [("dropped", "closed", 7)]

    anyio.run(run)


def test_flushing_an_empty_queue_is_done_at_once():
    """With nothing to write nothing is waited for, whether the task runs or not."""

    async def run():
        store, told = FakeStore(), Told()
        async with writing(store, events=told, runs=False) as queue:
            with anyio.fail_after(PATIENCE_S):
                await queue.flush(PATIENCE_S * 10)
        assert (store.written, told.all) == ([], [])

    anyio.run(run)


def test_writing_leaves_others_their_turn():
    """Between two round trips of a store that never waits the event loop does other things."""

    async def run():
        store, keys = FakeStore(), keys_of(40 * BATCH_GAMES)
        async with writing(store) as queue:
            for key in keys:
                queue.add(key, ONE)
            await until(lambda: store.written)
            assert len(store.written) < 40

    anyio.run(run)


@given(st.binary(min_size=8, max_size=8), st.floats(0.001, 1e8))
def test_values_do_not_expire_together(check, ttl_s):
    """A value is kept for the setting and up to a tenth longer; how much, its key alone decides."""
    key = GameKey("any", check)
    milliseconds = ttl_ms(key, ttl_s)
    assert isinstance(milliseconds, int)
    assert max(1, 1e3 * ttl_s - 1) <= milliseconds <= 1e3 * ttl_s * (1 + TTL_SPREAD) + 1
    assert ttl_ms(GameKey("other", check), ttl_s) == milliseconds


def test_times_to_live_are_spread_out():
    """Among many keys all tenths of the spread occur, both ends included."""
    times = [ttl_ms(key, 1000.0) for key in keys_of(500)]
    assert {(one - 1_000_000) // 10_000 for one in times} >= set(range(10))
    assert ttl_ms(GameKey("", bytes(8)), 1000.0) == 1_000_000
    assert ttl_ms(GameKey("", b"\xff" * 8), 1000.0) == 1_100_000
    assert ttl_ms(GameKey("", bytes(8)), 1e-9) == 1
