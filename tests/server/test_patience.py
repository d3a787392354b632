"""Requests that wait for what others find out, and for Redis, no longer than that helps them."""

import threading

import anyio
import pytest

from cache.stores import FakeStore, until
from creditd.cache.games import unpacked
from creditd.cache.keys import GameKey
from creditd.cache.memory import MemoryCache
from creditd.cache.tiers import TIMES_AS_LARGE
from server.model_gates import Gated, costs, happens, numbers_of, remembering
from server.model_services import REWARDS, UTILITY, fake, sets_of, with_models
from server.running import PATIENCE_S, on_service
from server.test_second_level import replica

ROW = ("sun", "rain", "wind")
MANY = tuple(f"word {place}" for place in range(TIMES_AS_LARGE + 1))
EARLY = {
    **UTILITY,
    "estimator": {"type": "stratified", "budget": 400, "seed": 3, "target_standard_error": 1e-9},
}
WIDE = sets_of(tuple(f"{word} {place}" for place, word in enumerate(("sun", "rain", "wind", "snow") * 3)), **EARLY)


@pytest.mark.parametrize(("wanted", "times"), [(1, 2), (2, 1)])
def test_a_small_request_does_not_wait_for_a_large_one(wanted, times):
    """Who wants one of five texts that another request is at asks for it; who wants two of five waits for them."""
    gate = Gated()

    async def ask(service):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.post, sets_of(MANY, **REWARDS))
            await happens(gate.begun)
            tasks.start_soon(service.post, sets_of(MANY[:wanted], **REWARDS))
            await service.in_flight(2)
            # A hundred times what a request needs to come to the model's queue, or to where it waits for another one.
            await anyio.sleep(0.2)
            gate.opened.set()

    on_service(ask, remembering(gate))
    assert gate.texts[MANY[0]] == times
    assert gate.texts[MANY[-1]] == 1


def test_patience_ends_before_the_deadline_does():
    """A request that another one keeps waiting for half of its time asks by itself, and has its answer in time."""
    engine, held, goes_on = fake(), threading.Event(), threading.Event()
    prepared = engine.prepared

    def held_up(texts, **options):
        if not held.is_set():
            held.set()
            assert goes_on.wait(PATIENCE_S)
        return prepared(texts, **options)

    engine.prepared = held_up
    found = []

    async def ask(service):
        async def first():
            found.append(await service.post(sets_of(ROW, **REWARDS)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await happens(held)
            found.append(await service.post(sets_of(ROW, **REWARDS), **{"X-Request-Timeout-Ms": "4000"}))
            goes_on.set()
        found.append(await service.post(sets_of(ROW, **REWARDS)))
        assert service.resources.cache._flights == {}

    on_service(ask, with_models(engine, cache_min_evaluation_s=0, compute_threads=4))
    assert [response.status_code for response in found] == [200] * 3
    assert costs(found) == [(3, 0), (3, 0), (0, 3)]
    assert numbers_of(found[0]) == numbers_of(found[1]) == numbers_of(found[2])


def test_a_game_is_remembered_whole_without_a_memory():
    """Where Redis alone remembers, rounds of an estimate add to each other there, and the next request asks nothing."""

    async def run():
        store = FakeStore()
        async with replica(store, memory=MemoryCache(0, 60.0)) as service:
            first = await service.post(WIDE)
            rounds = len(store.written)
            await until(lambda: service.resources.cache.queued_bytes == 0)
            second = await service.post(WIDE)
        assert first.status_code == 200
        assert (rounds > 1, costs([second])[0][0]) == (True, 0)
        assert numbers_of(first) == numbers_of(second)

    anyio.run(run)


def test_what_redis_knew_is_written_back_with_what_is_new():
    """A request that needs more coalitions of a game leaves all of them in Redis, not only its own."""

    async def run():
        store = FakeStore()
        async with replica(store, memory=MemoryCache(0, 60.0)) as service:
            found = []
            for options in ({"credit": {"type": "leave_one_out"}}, {}, {"credit": {"type": "leave_one_out"}}):
                found.append(await service.post(sets_of(ROW, **UTILITY, **options)))
                await until(lambda: service.resources.cache.queued_bytes == 0)
            ((key, value),) = store.values.items()
        assert costs(found) == [(5, 0), (3, 5), (0, 5)]
        assert unpacked(value, GameKey.of(key).check, 3).n_known == 8

    anyio.run(run)


def test_all_rounds_of_a_request_share_its_time():
    """A request of many rounds waits for a slow Redis once, not in each of them."""

    class Slow(FakeStore):
        async def get(self, keys, budget):
            """What is there, at the cost of all the time that there is."""
            found = await super().get(keys, budget)
            if len(keys) > 1:
                budget._left_s = 0.0
            return found

    async def run():
        store = Slow()
        async with replica(store, memory=MemoryCache(0, 60.0)) as service:
            response = await service.post(WIDE)
        assert response.status_code == 200
        games = [keys for keys in store.asked if any(":model:" in key for key in keys)]
        assert (len(store.written) > 1, len(games)) == (True, 1)

    anyio.run(run)


@pytest.mark.parametrize(("secrets", "shared"), [(("a", "a"), True), (("a", "b"), False), (("a", None), False)])
def test_replicas_of_one_secret_share(secrets, shared):
    """Whoever has another `cache_secret` makes other keys of the same texts."""

    async def run():
        store, found = FakeStore(), []
        for secret in secrets:
            async with replica(store, cache_secret=secret) as service:
                found.append(await service.post(sets_of(ROW, **REWARDS)))
                await until(lambda: service.resources.cache.queued_bytes == 0 and len(store.values) >= len(ROW))
        assert costs(found)[1] == ((0, 3) if shared else (3, 0))
        assert len(store.values) == (3 if shared else 6)

    anyio.run(run)


def test_replicas_that_read_other_lengths_share_nothing():
    """Up to which length a model answers is part of what it is: a text that is too long has no score from elsewhere."""

    async def run():
        store, found = FakeStore(), []
        for longest in (None, 20):
            async with replica(store, engine=fake(max_tokens=longest)) as service:
                found.append(await service.post(sets_of(("sun", "rain and snow and wind"), **REWARDS)))
                await until(lambda: service.resources.cache.queued_bytes == 0)
        return [response.status_code for response in found]

    assert anyio.run(run) == [200, 422]
