from contextlib import asynccontextmanager

import anyio
import pytest

from cache.replicas import counters_of
from cache.stores import PATIENCE_S, FakeStore, until
from creditd.cache.keys import NAMESPACE, purge_key
from creditd.cache.memory import MemoryCache
from creditd.cache.tiers import UtilityCache
from creditd.engines.fake import FakeEngine
from creditd.engines.model_spec import ModelSpec
from server.model_gates import Gated, Paused, costs, following, happens, numbers_of
from server.model_services import REWARDS, UTILITY, fake, sets_of, with_models, worth
from server.running import running

ROW = ("sun", "rain", "wind")
BODIES = {"rewards": sets_of(ROW, **REWARDS), "utility": sets_of(ROW, **UTILITY)}
N_UTILITIES = {"rewards": 3, "utility": 8}
N_GAMES = {"rewards": 3, "utility": 1}


@asynccontextmanager
async def replica(store, score=worth, memory=None, engine=None, **settings):
    """A service whose second level is a store in memory."""
    resources = with_models(engine or fake(score=score), cache_min_evaluation_s=0, compute_threads=4, **settings)
    async with running(resources) as service:
        resources.cache = UtilityCache(
            MemoryCache(1 << 20, 60.0) if memory is None else memory,
            store,
            ttl_s=60.0,
            budget_s=PATIENCE_S,
            max_queued_bytes=1 << 20,
            events=resources.metrics.cache,
        )
        await resources.cache.open(["rm"])
        yield service


async def counters(service):
    """Counters of a service's cache."""
    return counters_of((await service.client.get("/metrics")).text)


async def wrote(store, body, n_games, score=worth):
    """Have another replica evaluate a request, and wait until what it found out is written."""
    async with replica(store, score) as service:
        response = await service.post(body)
        await until(lambda: len([key for key in store.values if not key.startswith(purge_key(""))]) >= n_games)
    return response


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("asked", list(BODIES))
def test_replicas_share_what_is_written(asked, deterministic):
    """What one replica evaluated another one finds, with the same bits, and from then on in its own memory."""

    async def run():
        store, body = FakeStore(), {**BODIES[asked], "deterministic": deterministic}
        n_games = 1 if deterministic else N_GAMES[asked]
        first = await wrote(store, body, n_games)
        assert len(store.values) == n_games
        assert all(key.startswith(f"{NAMESPACE}:model:rm:") for key in store.values)
        async with replica(store) as service:
            second, third = [await service.post(body) for _ in range(2)]
            found = await counters(service)
        n = N_UTILITIES[asked]
        assert costs([first, second, third]) == [(n, 0), (0, n), (0, n)]
        assert numbers_of(first) == numbers_of(second) == numbers_of(third)
        assert (found["games redis"], found["evaluations_saved redis rm"]) == (n_games, n)
        assert (found["games memory"], found.get("games missed")) == (n_games, None)

    anyio.run(run)


class OtherMachine(FakeEngine):
    """The same model where last bits are others."""

    numerics = "another processor"


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("asked", list(BODIES))
def test_machines_share_what_they_round_alike(asked, deterministic):
    """Where bits count, what another kind of machine said is not used; elsewhere it is."""

    async def run():
        store, body = FakeStore(), {**BODIES[asked], "deterministic": deterministic}
        await wrote(store, body, 1 if deterministic else N_GAMES[asked])
        async with replica(store, engine=OtherMachine(worth, ModelSpec("rm", "nowhere"))) as service:
            return costs([await service.post(body) for _ in range(2)])

    n = N_UTILITIES[asked]
    assert anyio.run(run) == [(n, 0) if deterministic else (0, n), (0, n)]


@pytest.mark.parametrize("asked", list(BODIES))
def test_another_model_of_the_same_name_shares_nothing(asked):
    """What a model is decides, not what it is called."""

    async def run():
        store = FakeStore()
        await wrote(store, BODIES[asked], N_GAMES[asked])
        async with replica(store, lambda *_: 1.0) as service:
            return costs([await service.post(BODIES[asked])])

    assert anyio.run(run) == [(N_UTILITIES[asked], 0)]


def test_what_is_known_in_part_is_asked_for_the_rest():
    """Of a game that is in Redis in part, and in memory in another, the model is asked what neither knows."""

    async def run():
        store = FakeStore()
        await wrote(store, sets_of(ROW, **UTILITY, credit={"type": "leave_one_out"}), 1)
        async with replica(store) as service:
            own = await service.post(sets_of(ROW, **UTILITY, credit={"type": "prefix_gain"}))
            rest = await service.post(BODIES["utility"])
        assert costs([own, rest]) == [(1, 3), (2, 6)]
        async with replica(store) as service:
            assert costs([await service.post(BODIES["utility"])]) == [(0, 8)]

    anyio.run(run)


@pytest.mark.parametrize("asked", list(BODIES))
def test_a_dry_run_looks_into_redis(asked):
    """The price knows what other replicas know, and counts nothing."""

    async def run():
        store, n = FakeStore(), N_UTILITIES[asked]
        await wrote(store, BODIES[asked], N_GAMES[asked])
        async with replica(store) as service:
            price = await service.post({**BODIES[asked], "dry_run": True})
            assert costs([price]) == [(0, n)]
            assert not any(name.startswith(("games", "evaluations_saved")) for name in await counters(service))

    anyio.run(run)


@pytest.mark.parametrize("damage", [lambda value: value[:-1], lambda value: value[:30] + b"\xff" + value[31:]])
@pytest.mark.parametrize("asked", list(BODIES))
def test_a_damaged_value_is_asked_again_and_written_anew(asked, damage):
    """A value that is not what its key promises costs an evaluation, changes no number, and is replaced."""

    async def run():
        store, n = FakeStore(), N_UTILITIES[asked]
        first = await wrote(store, BODIES[asked], N_GAMES[asked])
        sound = dict(store.values)
        store.values |= {key: damage(value) for key, value in sound.items()}
        async with replica(store) as service:
            second = await service.post(BODIES[asked])
            await until(lambda: store.values == sound)
            found = await counters(service)
        assert costs([second]) == [(n, 0)]
        assert numbers_of(first) == numbers_of(second)
        assert (found["corrupt checksum"], found["games missed"]) == (N_GAMES[asked], N_GAMES[asked])

    anyio.run(run)


def test_without_an_answer_the_model_is_asked():
    """A store that says nothing is like one that has nothing."""

    async def run():
        store = FakeStore()
        first = await wrote(store, BODIES["utility"], 1)
        store.answers = False
        async with replica(store) as service:
            second = await service.post(BODIES["utility"])
        assert costs([second]) == [(8, 0)]
        assert numbers_of(first) == numbers_of(second)

    anyio.run(run)


def test_who_waits_for_another_request_hears_what_it_fetched():
    """What a request has from Redis others have there too; for what it asks the model they wait."""

    async def run():
        store, gate, found = FakeStore(), Gated(), []
        ready = Gated()
        ready.opened.set()
        await wrote(store, sets_of(("sun", "rain"), **REWARDS), 2, ready)

        async def one(service):
            found.append(await service.post(sets_of(ROW, **REWARDS)))

        async with replica(store, gate, MemoryCache(0, 60.0)) as service:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one, service)
                await happens(gate.begun)
                for _ in range(3):
                    tasks.start_soon(one, service)
                await following(service, 3)
                gate.opened.set()
            assert gate.texts == {"wind": 1}
        assert sorted(costs(found)) == [(0, 3)] * 3 + [(1, 2)]

    anyio.run(run)


def test_purged_utilities_are_asked_again():
    """After a purge a replica neither finds what is left in Redis nor what it remembers itself."""

    async def run():
        store = FakeStore()
        await wrote(store, BODIES["utility"], 1)
        async with replica(store) as service:
            before = await service.post(BODIES["utility"])
            store.purge("rm", b"token")
            notices = await service.post(BODIES["rewards"])
            after = [await service.post(BODIES["utility"]) for _ in range(2)]
        assert costs([before, notices, *after]) == [(0, 8), (3, 0), (8, 0), (0, 8)]

    anyio.run(run)


def test_a_purge_that_is_noticed_during_a_request_counts_for_it():
    """Keys that were made before a purge find nothing after it, whoever was the first to notice it."""

    async def run():
        store, memory, found = FakeStore(), Paused(), []
        await wrote(store, BODIES["utility"], 1)

        async def late(service):
            found.append(await service.post(BODIES["utility"]))

        async with replica(store, memory=memory) as service, anyio.create_task_group() as tasks:
            tasks.start_soon(late, service)
            await happens(memory.looked)
            store.purge("rm", b"token")
            await service.post(BODIES["rewards"])
            assert service.resources.cache.generation("rm") == "token"
            memory.goes_on.set()
        assert costs(found) == [(8, 0)]

    anyio.run(run)
