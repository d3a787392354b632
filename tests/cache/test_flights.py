import asyncio
import dataclasses

import anyio
import pytest

from cache.stores import MODEL, PATIENCE_S, cache_of, game_of, keys_of
from creditd.cache.keys import KeyMaker
from creditd.cache.tiers import MOST_GAMES_OF_A_FLIGHT, TIMES_AS_LARGE


def test_one_request_evaluates_what_several_want():
    """The first to take off has all games; who comes later has those that are left, and waits for other flights."""
    cache, (a, b, c, d) = cache_of(), keys_of(4)
    first, nobody = cache.take_off([a, b])
    second, others = cache.take_off({b: 4, c: 4, a: 4})
    assert (first.keys, nobody) == ((a, b), [])
    assert (second.keys, others) == ((c,), [(first, [b, a])])
    third, both = cache.take_off([d, c, b])
    assert (third.keys, both) == ((d,), [(second, [c]), (first, [b])])
    none, all_three = cache.take_off([a, b, c, d])
    assert (none.keys, all_three) == ((), [(first, [a, b]), (second, [c]), (third, [d])])


def test_all_who_wait_are_told_what_was_found():
    """Landing wakes everybody with the same games, and the keys are free for whoever comes next."""

    async def run():
        cache, (a, b) = cache_of(), keys_of(2)
        flight, _ = cache.take_off([a, b])
        followers = [cache.take_off([key])[1][0] for key in (a, b, a)]
        waiting = [asyncio.ensure_future(one.landed(keys)) for one, keys in followers]
        await asyncio.sleep(0)
        assert not any(one.done() for one in waiting)
        found = {a.text: game_of({1: 1.0})}
        cache.land(flight, found)
        with anyio.fail_after(PATIENCE_S):
            await asyncio.gather(*waiting)
        assert [one.found for one, _ in followers] == [found] * 3
        again, others = cache.take_off([b, a])
        assert (again.keys, others) == ((b, a), [])

    anyio.run(run)


def test_what_is_found_first_lands_first():
    """Who waits for a game that has landed goes on, who waits for another one of the same flight does not."""

    async def run():
        cache, (a, b) = cache_of(), keys_of(2)
        flight, _ = cache.take_off([a, b])
        of_a, of_b, of_both = (asyncio.ensure_future(flight.landed(keys)) for keys in ([a], [b], [a, b]))
        await asyncio.sleep(0)
        found = {a.text: game_of({1: 1.0})}
        cache.land(flight, found, [a])
        with anyio.fail_after(PATIENCE_S):
            await of_a
            await flight.landed([a])
        assert (of_b.done(), of_both.done(), flight.found, flight.n_flying) == (False, False, found, 1)
        own, others = cache.take_off([a, b])
        assert (own.keys, others) == ((a,), [(flight, [b])])
        cache.land(flight, {b.text: game_of({2: 2.0})})
        with anyio.fail_after(PATIENCE_S):
            await asyncio.gather(of_b, of_both)
        assert set(flight.found) == {a.text, b.text}
        assert cache.take_off([a])[1] == [(own, [a])]

    anyio.run(run)


def test_a_flight_that_failed_lands_with_nothing():
    """Who waited finds nothing, and takes off itself; a flight of no games leaves those of others alone."""
    cache, (a, b) = cache_of(), keys_of(2)
    flight, _ = cache.take_off([a])
    empty, ((waited_for, _),) = cache.take_off([a])
    cache.land(empty, {})
    assert flight.n_flying == 1
    assert cache.take_off([a])[1] == [(flight, [a])]
    cache.land(flight, {})
    assert (waited_for.n_flying, waited_for.found) == (0, {})
    own, others = cache.take_off([a, b])
    assert (own.keys, others) == ((a, b), [])


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_a_much_larger_flight_is_not_waited_for(wanted):
    """Who wants a few games of many finds them out as well; the large flight goes on, and still owns its keys."""
    cache, keys = cache_of(), keys_of(TIMES_AS_LARGE * wanted + 1)
    large, _ = cache.take_off(keys)
    small, others = cache.take_off(keys[:wanted])
    assert (small.keys, others) == (tuple(keys[:wanted]), [])
    cache.land(small, {})
    assert cache.take_off(keys)[1] == [(large, keys)]
    cache.land(large, {}, keys[-1:])
    assert cache.take_off(keys[:wanted])[1] == [(large, keys[:wanted])]


def test_who_will_not_follow_finds_out_everything():
    """What others are at is asked again where their answer takes too long, and their flights are left as they are."""
    cache, (a, b) = cache_of(), keys_of(2)
    first, _ = cache.take_off([a])
    own, others = cache.take_off([a, b], follow=False)
    assert (own.keys, others) == ((a, b), [])
    assert cache.take_off([a, b])[1] == [(first, [a]), (own, [b])]
    cache.land(own, {})
    assert cache.take_off([a])[1] == [(first, [a])]


def test_very_large_requests_stand_by_themselves():
    """They follow nobody and are followed by nobody, and so cost the event loop nothing."""
    cache, keys = cache_of(), keys_of(MOST_GAMES_OF_A_FLIGHT + 1)
    first, _ = cache.take_off(keys[:-1])
    large, others = cache.take_off(keys)
    assert (large.keys, others) == (tuple(keys), [])
    last, nobody = cache.take_off(keys[-1:])
    assert (last.keys, nobody) == (tuple(keys[-1:]), [])
    cache.land(large, {})
    assert cache.take_off(keys[:-1])[1] == [(first, keys[:-1])]


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
