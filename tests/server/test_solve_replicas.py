"""`/v1/credit/shapley/solve` with a `utility_id`, by replicas that share a Redis: what each of them was told counts."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from creditd.cache.administration import administered, purge
from creditd.cache.keys import CALLERS
from creditd.cache.redis import RedisChoice
from creditd.cache.tiers import WATCH_S
from redis_servers import RedisServer
from server.running import PATIENCE_S, running
from server.test_remembered_solve import NAMED, SAMPLED, conversation, counters, item, numbers, said, usage
from server.test_solve import SOLVE, utility

pytestmark = pytest.mark.redis

EVERYTHING = [[], [0], [1], [0, 1]]


def other(coalition):
    """Another function that somebody calls by the same name."""
    return utility(coalition) + 1.0


async def tell(service, coalitions=(), function=utility):
    """The answer to a game of two players of which a caller says so much, once Redis was told."""
    response = await service.post({"items": [said(item(2), list(coalitions), function)], **NAMED}, SOLVE)
    assert response.status_code == 200, response.text
    await anyio.lowlevel.checkpoint()
    await service.resources.cache._writes.flush(PATIENCE_S)
    return response.json()


def asked_for(answer):
    """Coalitions that are not known."""
    return sorted(answer["items"][0].get("next") or [], key=lambda players: (len(players), players))


@pytest.mark.parametrize("cache_bytes", [1 << 20, 0])
def test_replicas_share_through_redis(cache_bytes):
    """None asks for what another one was told, be it one that starts later."""
    settings = {"cache_bytes": cache_bytes, "cache_budget_s": PATIENCE_S}

    async def ask(url):
        async with running(redis_url=url, **settings) as one, running(redis_url=url, **settings) as other:
            first = await conversation(one, [item(9)], estimator=SAMPLED)
            await one.resources.cache._writes.flush(PATIENCE_S)
            second = await conversation(other, [item(9)], estimator={**SAMPLED, "budget": 90})
            await other.resources.cache._writes.flush(PATIENCE_S)
            third = await conversation(one, [item(9)], estimator={**SAMPLED, "budget": 90})
            found = counters((await other.client.get("/metrics")).text)
        async with running(redis_url=url, **settings) as late:
            return first, second, third, await conversation(late, [item(9)], estimator=SAMPLED), found

    with RedisServer() as server:
        first, second, third, late, found = anyio.run(ask, server.url)
    assert [answer[1] for answer in (first, second, third, late)] == [60, 30, 0, 0]
    assert (usage(second[0]), usage(third[0]), usage(late[0])) == (60, 90, 60)
    assert numbers(first[0]) == numbers(late[0])
    assert numbers(second[0]) == numbers(third[0])
    assert found['creditd_cache_evaluations_saved_total{level="redis",source="(callers)"}'] >= 60.0


def test_two_accounts_of_a_game_are_never_mixed():
    """A replica that remembers one function goes on with it where Redis has another one; both replicas say so."""

    async def ask(url):
        async with running(redis_url=url) as one, running(redis_url=url) as another:
            await tell(one, [[], [0], [1]])
            contradicting = await tell(another, [[], [0, 1]], other)
            answer = await tell(one)
            return contradicting, answer, counters((await one.client.get("/metrics")).text)

    with RedisServer() as server:
        contradicting, answer, found = anyio.run(ask, server.url)
    assert asked_for(contradicting) == [[0], [1]]
    assert asked_for(answer) == [[0, 1]]
    assert found["creditd_cache_contradictions_total"] == 1.0


@pytest.mark.parametrize("takes_writes", [True, False])
def test_what_a_replica_was_told_last_counts_whatever_redis_says(takes_writes):
    """Also where Redis could not be told of it; the other replica keeps to what it remembers itself."""

    async def ask(server):
        async with running(redis_url=server.url) as one, running(redis_url=server.url) as another:
            await tell(one, EVERYTHING)
            before = await tell(another)
            if not takes_writes:
                server.client().config_set("maxmemory", 1)
            await tell(one, EVERYTHING[:2], other)
            partly = await tell(one)
            whole = await tell(one, EVERYTHING, other), await tell(one)
            return before, partly, *whole, await tell(another)

    with RedisServer() as server:
        before, partly, told, whole, elsewhere = anyio.run(ask, server)
    assert (asked_for(partly), usage(partly)) == ([[1], [0, 1]], 2)
    assert (usage(told), usage(whole)) == (0, 4)
    assert numbers(told) == numbers(whole)
    assert numbers(before) == numbers(elsewhere) != numbers(whole)


@pytest.mark.parametrize("takes_writes", [True, False])
def test_without_a_memory_redis_says_what_was_told_last_if_it_was_told(takes_writes):
    """A request that contradicts is answered without the old account; the next one finds what Redis has."""

    async def ask(server):
        async with running(redis_url=server.url, cache_bytes=0) as service:
            await tell(service, EVERYTHING)
            if not takes_writes:
                server.client().config_set("maxmemory", 1)
            return await tell(service, EVERYTHING[:2], other), await tell(service)

    with RedisServer() as server:
        contradicting, after = anyio.run(ask, server)
    assert (asked_for(contradicting), usage(contradicting)) == ([[1], [0, 1]], 0)
    assert usage(after) == (2 if takes_writes else 4)


@pytest.mark.slow
def test_after_a_purge_no_replica_remembers_what_callers_supplied():
    """Neither in memory nor in Redis, whoever asks Redis next; models are not needed to notice."""

    async def ask(server):
        def purged():
            with administered(RedisChoice(server.url)) as redis:
                return purge(redis, None).removed

        async with running(redis_url=server.url) as one, running(redis_url=server.url) as another:
            await tell(one, EVERYTHING)
            assert [usage(await tell(service)) for service in (one, another)] == [4, 4]
            assert await anyio.to_thread.run_sync(purged) == 1
            with anyio.fail_after(WATCH_S + PATIENCE_S):
                while not all(  # noqa: ASYNC110 - what is waited for has no event
                    service.resources.cache.generation(CALLERS) for service in (one, another)
                ):
                    await anyio.sleep(0.01)
            assert [asked_for(await tell(service)) for service in (one, another)] == [EVERYTHING, EVERYTHING]
            await tell(one, EVERYTHING, other)
            return await tell(one), await tell(another)

    with RedisServer() as server:
        one, another = anyio.run(ask, server)
    assert (usage(one), usage(another)) == (4, 4)
    assert numbers(one) == numbers(another)


def test_a_purge_is_noticed_with_the_next_call_of_redis():
    """A replica that asks Redis about another game forgets all of them."""

    async def ask(server):
        def purged():
            with administered(RedisChoice(server.url)) as redis:
                purge(redis, None)

        async with running(redis_url=server.url) as service:
            await tell(service, EVERYTHING)
            await anyio.to_thread.run_sync(purged)
            await service.post({"items": [item(3)], **NAMED}, SOLVE)
            return await tell(service)

    with RedisServer() as server:
        assert asked_for(anyio.run(ask, server)) == EVERYTHING


def test_a_redis_that_is_gone_changes_nothing():
    """It is answered as without one, from memory where that knows."""

    async def ask(server):
        async with running(redis_url=server.url) as service:
            before = await conversation(service, [item(5)])
            server.kill()
            return before, await conversation(service, [item(5)]), await conversation(service, [item(6)])

    with RedisServer() as server:
        before, again, new = anyio.run(ask, server)
    assert [answer[1] for answer in (before, again, new)] == [32, 0, 64]
    assert numbers(before[0]) == numbers(again[0])


def test_a_game_that_is_remembered_in_part_is_looked_for_in_redis():
    """As many utilities as the budget are not those of the plan: another replica may have been told these."""

    async def ask(url):
        plans = [{**SAMPLED, "seed": seed} for seed in (0, 1)]
        settings, found = {"redis_url": url, "cache_budget_s": PATIENCE_S}, []
        async with running(**settings) as one, running(**settings) as other:
            for service, plan in ((one, plans[0]), (other, plans[1]), (one, plans[1])):
                found.append((await conversation(service, [item(9)], estimator=plan))[1])
                await service.resources.cache._writes.flush(PATIENCE_S)
        return found

    with RedisServer() as server:
        first, second, third = anyio.run(ask, server.url)
    assert (first, 0 < second < first, third) == (60, True, 0)


@pytest.mark.parametrize("cache_bytes", [1 << 20, 0])
def test_a_replica_that_is_told_a_part_does_not_take_the_rest_from_redis(cache_bytes):
    """A request that says all that its own plan needs leaves there what others were told of the same game."""

    async def ask(url):
        plans = [{**SAMPLED, "seed": seed} for seed in (0, 1)]
        async with running(redis_url=url, cache_bytes=cache_bytes, cache_budget_s=PATIENCE_S) as one:
            await conversation(one, [item(9)], estimator=plans[0])
            await one.resources.cache._writes.flush(PATIENCE_S)
        unnamed = await plan_of(plans[1])
        async with running(redis_url=url, cache_bytes=cache_bytes, cache_budget_s=PATIENCE_S) as two:
            body = {"items": [said(item(9), unnamed)], **NAMED, "estimator": plans[1]}
            assert (await two.post(body, SOLVE)).json()["done"]
            await anyio.lowlevel.checkpoint()
            await two.resources.cache._writes.flush(PATIENCE_S)
        async with running(redis_url=url, cache_budget_s=PATIENCE_S) as late:
            return [(await conversation(late, [item(9)], estimator=plan))[1] for plan in plans]

    with RedisServer() as server:
        assert anyio.run(ask, server.url) == [0, 0]


async def plan_of(estimator):
    """The coalitions that an estimator asks for, of a service that remembers nothing."""
    async with running(cache_bytes=0) as service:
        body = {"items": [{"n_players": 9}], "estimator": estimator, "advantage": {"type": "none"}}
        return (await service.post(body, SOLVE)).json()["items"][0]["next"]
