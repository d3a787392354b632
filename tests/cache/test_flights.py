import asyncio
import dataclasses

import anyio

from cache.stores import MODEL, PATIENCE_S, cache_of, game_of, keys_of
from creditd.cache.keys import KeyMaker


def test_one_request_evaluates_what_several_want():
    """The first to take off has all games; who comes later has those that are left, and waits for other flights."""
    cache, (a, b, c, d) = cache_of(), keys_of(4)
    first, nobody = cache.take_off([a, b])
    second, others = cache.take_off({b: 4, c: 4, a: 4})
    assert (first.keys, nobody) == ((a, b), [])
    assert (second.keys, others) == ((c,), [first])
    third, both = cache.take_off([d, c, b])
    assert (third.keys, both) == ((d,), [second, first])
    none, all_three = cache.take_off([a, b, c, d])
    assert (none.keys, all_three) == ((), [first, second, third])


def test_all_who_wait_are_told_what_was_found():
    """Landing wakes everybody with the same games, and the keys are free for whoever comes next."""

    async def run():
        cache, (a, b) = cache_of(), keys_of(2)
        flight, _ = cache.take_off([a, b])
        followers = [cache.take_off([key])[1][0] for key in (a, b, a)]
        waiting = [asyncio.ensure_future(one.landed.wait()) for one in followers]
        await asyncio.sleep(0)
        assert not any(one.done() for one in waiting)
        found = {a.text: game_of({1: 1.0})}
        cache.land(flight, found)
        with anyio.fail_after(PATIENCE_S):
            await asyncio.gather(*waiting)
        assert [one.found for one in followers] == [found] * 3
        again, others = cache.take_off([b, a])
        assert (again.keys, others) == ((b, a), [])

    anyio.run(run)


def test_a_flight_that_failed_lands_with_nothing():
    """Who waited finds nothing, and takes off itself; a flight of no games leaves those of others alone."""
    cache, (a, b) = cache_of(), keys_of(2)
    flight, _ = cache.take_off([a])
    empty, (waited_for,) = cache.take_off([a])
    cache.land(empty, {})
    assert not flight.landed.is_set()
    assert cache.take_off([a])[1] == [flight]
    cache.land(flight, {})
    assert (waited_for.landed.is_set(), dict(waited_for.found)) == (True, {})
    own, others = cache.take_off([a, b])
    assert (own.keys, others) == ((a, b), [])


def test_no_key_is_left_behind():
    """After all flights have landed, in any order, every game can be evaluated anew."""
    cache, keys = cache_of(), keys_of(12)
    flights = [cache.take_off(keys[start : start + 5])[0] for start in (0, 3, 6, 9)]
    assert [len(flight.keys) for flight in flights] == [5, 3, 3, 1]
    for flight in flights[::-2] + flights[::2]:
        cache.land(flight, {})
    own, others = cache.take_off(keys)
    assert (list(own.keys), others) == (keys, [])


def test_flights_of_other_sources_are_others():
    """The same game of another tenant is not waited for."""
    cache = cache_of()
    own = KeyMaker(MODEL).game(b"prompt", ("a",))
    foreign = KeyMaker(dataclasses.replace(MODEL, tenant=b"u" * 32)).game(b"prompt", ("a",))
    cache.take_off([own])
    flight, others = cache.take_off([foreign])
    assert (flight.keys, others) == ((foreign,), [])
