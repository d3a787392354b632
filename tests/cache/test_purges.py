import dataclasses

import anyio
import pytest

from cache.stores import (
    CALLER,
    MODEL,
    PATIENCE_S,
    TTL_S,
    FakeStore,
    cache_of,
    fetched,
    game_of,
    kept,
    keys_of,
    opened,
    until,
)
from creditd.cache.budget import Budget
from creditd.cache.keys import CALLERS, purge_key
from creditd.cache.tiers import KEYS_PER_CALL

PURGE = purge_key("rm")


def test_callers_utilities_are_purged_by_a_name_of_their_own():
    """A token of a model of any name changes nothing; theirs leaves nothing of what was remembered before."""
    store, (key,) = FakeStore(), keys_of(1, CALLER)
    kept(store, {key: game_of({1: 1.0})})
    for model in ("", "caller", "callers"):
        store.purge(model, b"token")
    found, _ = fetched(store, {key: 4}, source=CALLER)
    assert list(found) == [key.text]
    assert store.asked == [[purge_key(CALLERS), key.text]]
    store.purge(CALLERS, b"token")
    found, cache = fetched(store, {key: 4}, source=CALLER)
    assert (found, cache.generation(CALLERS)) == ({}, "token")
    source = dataclasses.replace(CALLER, generation="token")
    (later,) = keys_of(1, source)
    kept(store, {later: game_of({1: 1.0})})
    assert list(fetched(store, {later: 4}, source=source)[0]) == [later.text]


def test_what_is_older_than_a_purge_is_missed():
    """Once a token is there, keys that were made without it find nothing, and keys that are made with it do."""

    async def run():
        store, (key,) = FakeStore(), keys_of(1)
        kept(store, {key: game_of({1: 1.0})})
        async with opened(store) as cache:
            assert await cache.fetch(MODEL, {key: 4}, Budget(PATIENCE_S)) != {}
            assert cache.generation("rm") == ""
            store.purge("rm", b"first")
            assert await cache.fetch(MODEL, {key: 4}, Budget(PATIENCE_S)) == {}
            assert (cache.generation("rm"), cache.generation("other")) == ("first", "")
            source = dataclasses.replace(MODEL, generation=cache.generation("rm"))
            (later,) = keys_of(1, source)
            assert later != key
            cache.remember(source, [(later, game_of({2: 2.0}))])
            await until(lambda: later.text in store.values)
            assert list(await cache.fetch(source, {later: 4}, Budget(PATIENCE_S))) == [later.text]
            store.purge("rm", b"second")
            assert await cache.fetch(source, {later: 4}, Budget(PATIENCE_S)) == {}
            assert cache.generation("rm") == "second"

    anyio.run(run)


def test_a_token_that_is_lost_holds_on():
    """When Redis forgets a token, keys keep it, so that what was purged does not come back."""

    async def run():
        store = FakeStore()
        store.purge("rm", b"token")
        async with opened(store) as cache:
            store.purge("rm", None)
            source = dataclasses.replace(MODEL, generation="token")
            (key,) = keys_of(1, source)
            kept(store, {key: game_of({1: 1.0})})
            assert list(await cache.fetch(source, {key: 4}, Budget(PATIENCE_S))) == [key.text]
            assert cache.generation("rm") == "token"

    anyio.run(run)


@pytest.mark.parametrize("left", [None, b"0001"])
def test_redis_gets_back_a_token_that_it_lost(left):
    """Whoever saw the last purge tells Redis again when the token is gone, or when an earlier one has come back."""

    async def run():
        store = FakeStore()
        store.purge("rm", b"0002")
        async with opened(store, models=("other", "rm")) as cache:
            store.purge("rm", left)
            assert await cache._look_for_purges(("other", "rm"))
            assert cache.generation("rm") == "0002"
        assert store.values[purge_key("rm")] == b"0002"
        assert purge_key("other") not in store.values

    anyio.run(run)


def test_an_earlier_purge_does_not_undo_a_later_one():
    """Of two tokens the larger one counts, also for keys that are made meanwhile."""
    source = dataclasses.replace(MODEL, generation="0002")
    store, (key,) = FakeStore(), keys_of(1, source)
    kept(store, {key: game_of({1: 1.0})})

    async def run():
        store.purge("rm", b"0002")
        async with opened(store) as cache:
            store.purge("rm", b"0001")
            return await cache.fetch(source, {key: 4}, Budget(PATIENCE_S))

    assert list(anyio.run(run)) == [key.text]


def test_a_purge_between_two_calls_is_noticed():
    """A token that appears while values are fetched in portions leaves nothing of what was fetched before it."""

    class PurgedMeanwhile(FakeStore):
        async def get(self, keys, budget):
            """Purge before the second call."""
            if self.asked:
                self.purge("rm", b"token")
            return await super().get(keys, budget)

    store, keys = PurgedMeanwhile(), keys_of(2 * KEYS_PER_CALL)
    kept(store, dict.fromkeys(keys, game_of({1: 1.0})))
    found, cache = fetched(store, dict.fromkeys(keys, 4))
    assert (found, cache.generation("rm")) == ({}, "token")


@pytest.mark.slow
@pytest.mark.parametrize(("models", "owner"), [(("other", "rm"), "rm"), ((), CALLERS)])
def test_purges_are_looked_for_now_and_then(models, owner):
    """A token is noticed without any request; that of callers also where there are no models."""

    async def run():
        store = FakeStore()
        async with opened(store, models) as cache:
            store.purge(owner, b"token")
            await until(lambda: cache.generation(owner))
            assert (cache.generation(owner), cache.generation("other")) == ("token", "")

    anyio.run(run)


@pytest.mark.parametrize("there", [None, b"earlier"])
def test_a_token_that_is_lost_is_given_back(there):
    """Who knows of a later purge than Redis says so, for as long as anything from before it may be kept."""

    async def run():
        store = FakeStore()
        store.purge("rm", b"later")
        cache = cache_of(store)
        await cache.open(["rm", "other"])
        await cache.close()
        assert store.written == []
        store.purge("rm", there)
        await cache.open(["rm", "other"])
        await cache.close()
        assert cache.generation("rm") == "later"
        assert store.values == {PURGE: b"later"}
        assert store.kept_ms[PURGE] >= 1e3 * TTL_S * 1.1

    anyio.run(run)


def test_an_earlier_token_undoes_no_purge():
    """A Redis that has gone back in time does not bring back what was purged."""

    async def run():
        store = FakeStore()
        store.purge("rm", b"later")
        async with opened(store) as cache:
            store.purge("rm", b"earlier")
            for generation in ("earlier", "later"):
                source = dataclasses.replace(MODEL, generation=generation)
                (key,) = keys_of(1, source)
                kept(store, {key: game_of({1: 1.0})})
                found = await cache.fetch(source, {key: 4}, Budget(PATIENCE_S))
                assert bool(found) == (generation == "later")
            assert cache.generation("rm") == "later"

    anyio.run(run)
