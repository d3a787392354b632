"""A purge, as services see it that run: what they remember of a model is out of reach, in memory as well."""

import threading
from contextlib import asynccontextmanager

import anyio
import pytest

from creditd.cache.administration import administered, purge
from creditd.cache.keys import KeyMaker, UtilitySource, model_prefix
from creditd.cache.redis import RedisChoice
from creditd.cache.tiers import WATCH_S
from redis_servers import (
    ADMIN_PASSWORD,
    ADMIN_USER,
    SERVICE_PASSWORD,
    RedisServer,
    recipe_server,
)

from .model_services import fake, sets_of, with_models, worth
from .running import PATIENCE_S, running

pytestmark = pytest.mark.redis

ROWS = (("sun", "rain", "snow wind"), ("sun", "fog"))
POLL_S = 0.01


def question(model="rm", rows=ROWS):
    """A request that has a model judge coalitions."""
    return sets_of(*rows, utility={"type": "model", "model": model})


NEW = question(rows=(("fog", "wind"),))
"""What no other request asks: Redis is asked, and tells of the purge with it."""


@asynccontextmanager
async def replica(server, *, engine=None, **settings):
    """A service of two models that shares what it remembers, and waits for Redis as long as it takes."""
    found = with_models(
        engine or fake(),
        fake("other"),
        redis_url=server.url,
        cache_min_evaluation_s=0,
        cache_budget_s=PATIENCE_S,
        **settings,
    )
    async with running(found) as service:
        yield service


async def evaluations(service, body):
    """How many utilities the model gave for an answer; 0 where all were remembered."""
    response = await service.post(body)
    assert response.status_code == 200, response.text
    spent = response.json()["usage"]
    assert bool(spent["evaluations"]) != bool(spent["from_cache"]), "here all is remembered or nothing"
    return spent["evaluations"]


async def keys_of(client, model, n_games):
    """The keys of a model, once so many games are written."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            keys = set(client.scan_iter(f"{model_prefix(model)}*"))
            if len(keys) == n_games:
                return keys
            await anyio.sleep(POLL_S)


async def purged(server, user=None, password=None):
    """Purge a model as the command does; how many games were removed."""
    url = server.url if user is None else f"redis://{user}@127.0.0.1:{server.port}/0"

    def work():
        with administered(RedisChoice(url, password=password)) as redis:
            return purge(redis, "rm").removed

    return await anyio.to_thread.run_sync(work)


@pytest.fixture
def server():
    """A Redis of its own."""
    with RedisServer() as started:
        yield started


def test_after_a_purge_all_replicas_ask_the_model_again(server):
    """Both have it in memory, and know nothing once they have called Redis; other models' and callers' games stay."""

    async def inner():
        client = server.client()
        of_a_caller = KeyMaker(UtilitySource(b"", "caller", "", "any")).game(b"", ["a", "b"]).text
        client.set(of_a_caller, b"kept")
        async with replica(server) as one, replica(server) as two:
            asked = await evaluations(one, question())
            assert asked
            assert await evaluations(one, question("other"))
            await keys_of(client, "rm", len(ROWS))
            await keys_of(client, "other", len(ROWS))
            for service in (one, two):
                assert not await evaluations(service, question())
                assert not await evaluations(service, question("other"))
            assert await purged(server) == len(ROWS)
            for service in (one, two):
                assert await evaluations(service, NEW)
            assert await evaluations(one, question()) == asked
            await keys_of(client, "rm", 1 + len(ROWS))
            assert not await evaluations(two, question()), "what was found out since then is shared"
            for service in (one, two):
                assert not await evaluations(service, question("other"))
        assert client.get(of_a_caller) == b"kept"
        assert len(await keys_of(client, "other", len(ROWS))) == len(ROWS)

    anyio.run(inner)


def test_each_replica_leaves_its_memory(server):
    """Without anything that another one has found out since then, each asks the model by itself."""

    async def inner():
        client = server.client()
        async with replica(server) as one, replica(server) as two:
            asked = await evaluations(one, question())
            await keys_of(client, "rm", len(ROWS))
            assert not await evaluations(two, question())
            await purged(server)
            for service in (one, two):
                await evaluations(service, NEW)
                assert await evaluations(service, question()) == asked
                await keys_of(client, "rm", 1 + len(ROWS))
                client.unlink(*client.scan_iter(f"{model_prefix('rm')}*"))

    anyio.run(inner)


@pytest.mark.slow
def test_memory_is_left_without_a_call_of_redis_as_well(server):
    """A service that answers from memory alone looks for purges by itself."""

    async def inner():
        async with replica(server) as service:
            asked = await evaluations(service, question())
            assert not await evaluations(service, question())
            await purged(server)
            with anyio.fail_after(WATCH_S + PATIENCE_S):
                while not (found := await evaluations(service, question())):  # noqa: ASYNC110  # nothing else tells
                    await anyio.sleep(POLL_S)
            assert found == asked

    anyio.run(inner)


def test_a_write_that_lands_after_the_purge_is_found_by_nobody(server):
    """Values under keys of before, written again: neither a replica that runs nor one that starts finds them."""

    async def inner():
        client = server.client()
        async with replica(server) as one:
            asked = await evaluations(one, question())
            keys = list(await keys_of(client, "rm", len(ROWS)))
            values = client.mget(keys)
            await purged(server)
            client.mset(dict(zip(keys, values, strict=True)))
            async with replica(server) as two:
                assert await evaluations(two, question()) == asked
            assert set(keys) < await keys_of(client, "rm", 2 * len(ROWS))
            client.unlink(*client.scan_iter(f"{model_prefix('rm')}*"))
            client.mset(dict(zip(keys, values, strict=True)))
            await evaluations(one, NEW)
            assert await evaluations(one, question()) == asked

    anyio.run(inner)


def test_a_request_that_was_under_way_leaves_nothing_behind(server):
    """Its model answers after the purge: the caller has the answer, and the next one has the model asked again."""

    async def inner():
        client, found = server.client(), []
        asked, may_answer = threading.Event(), threading.Event()

        def judged(prompt, text):
            asked.set()
            assert may_answer.wait(PATIENCE_S), "the model was never let go"
            return worth(prompt, text)

        async def ask(service):
            found.append(await evaluations(service, question()))

        async with replica(server, engine=fake(score=judged)) as service:
            async with anyio.create_task_group() as group:
                group.start_soon(ask, service)
                assert await anyio.to_thread.run_sync(asked.wait, PATIENCE_S)
                await purged(server)
                may_answer.set()
            await keys_of(client, "rm", len(ROWS))
            await evaluations(service, NEW)
            assert await evaluations(service, question()) == found[0] > 0

    anyio.run(inner)


def test_the_users_of_the_recipe_are_enough(tmp_path):
    """A service as one user of deploy/redis, the purge as the other."""
    with recipe_server(secrets=tmp_path) as server:

        async def inner():
            client = server.client(ADMIN_USER, ADMIN_PASSWORD)
            async with replica(server, redis_password=SERVICE_PASSWORD) as service:
                asked = await evaluations(service, question())
                await keys_of(client, "rm", len(ROWS))
                assert await purged(server, ADMIN_USER, ADMIN_PASSWORD) == len(ROWS)
                await evaluations(service, NEW)
                assert await evaluations(service, question()) == asked

        anyio.run(inner)
