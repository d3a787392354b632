import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.stores import PATIENCE_S, PLENTY, Clock, game_of, known_in
from creditd.cache.memory import MemoryCache

TTL_S = 100.0


def size_of(key, game):
    """What an entry takes."""
    return len(key) + game.n_bytes


def held(cache, keys):
    """Which keys are there; they become the most recently used, in this order."""
    return "".join(key for key, game in zip(keys, cache.get(keys), strict=True) if game is not None)


def test_what_is_put_is_found():
    """Games come back by their key, in the order in which they are asked for, and others do not."""
    cache = MemoryCache(PLENTY, TTL_S)
    games = {key: game_of({1: float(place)}) for place, key in enumerate("abc")}
    for key, game in games.items():
        assert cache.add(key, game) == (game, 0)
    assert cache.get(["c", "x", "a", "c"]) == [games["c"], None, games["a"], games["c"]]
    assert cache.get([]) == []
    assert len(cache) == 3
    assert cache.n_bytes == sum(size_of(key, game) for key, game in games.items())


def test_the_least_recently_used_is_forgotten_first():
    """Finding a game, and putting it again, makes it the last to go; missing one changes nothing."""
    game = game_of({1: 1.0})
    cache = MemoryCache(3 * size_of("a", game), TTL_S)
    for key in "abc":
        cache.add(key, game)
    cache.get(["a", "x"])
    cache.add("d", game)
    assert held(cache, "abcd") == "acd"
    cache.add("a", game)
    cache.add("e", game)
    assert held(cache, "abcde") == "ade"
    assert cache.n_bytes == 3 * size_of("a", game)


def test_bytes_count_and_not_games():
    """A large game takes the place of as many small ones as it is large, and no more."""
    small, large = game_of({1: 1.0}), game_of(dict.fromkeys(range(400), 1.0), n=12)
    n_small = -(-size_of("l", large) // size_of("a", small))
    cache = MemoryCache((n_small + 2) * size_of("a", small), TTL_S)
    keys = [chr(ord("a") + place) for place in range(n_small + 2)]
    for key in keys:
        cache.add(key, small)
    assert len(cache) == len(keys)
    cache.add("L", large)
    assert cache.get(keys) == [None] * n_small + [small] * 2
    assert cache.get("L") == [large]


def test_a_game_that_is_too_large_is_not_remembered_and_takes_nobodys_place():
    """What is larger than all that may be remembered is given back; nothing is kept of it, and others stay."""
    small, large = game_of({1: 1.0}), game_of(dict.fromkeys(range(400), 1.0), n=12)
    cache = MemoryCache(3 * size_of("a", small), TTL_S)
    cache.add("a", small)
    cache.add("b", game_of({1: 1.0}, n=12))
    together, contradictions = cache.add("b", large)
    assert (known_in(together, n=12), contradictions) == (dict.fromkeys(range(400), 1.0), 0)
    assert cache.get("ab") == [small, None]
    assert cache.n_bytes == size_of("a", small)


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 60), st.booleans()), max_size=40),
    st.integers(400, 6000),
)
def test_bytes_are_counted_right_whatever_happens(steps, most):
    """After any additions, lookups and evictions the count is the sum of what is there, and within the limit."""
    clock = Clock()
    cache = MemoryCache(most, 10.0, clock)
    for key, size, looks in steps:
        clock.now_s += 1.0
        if looks:
            cache.get([key])
        else:
            cache.add(key, game_of(dict.fromkeys(range(size), 1.0), n=6))
        assert cache.n_bytes <= most
    there = {key: cache.get([key])[0] for key in "abcdefgh"}
    assert cache.n_bytes == sum(size_of(key, game) for key, game in there.items() if game is not None)
    assert len(cache) == sum(game is not None for game in there.values())


def test_putting_a_game_again_adds_to_what_is_known():
    """The second account is joined to the first, counts where the two differ, and its bytes are counted once."""
    cache = MemoryCache(PLENTY, TTL_S)
    cache.add("k", game_of({1: 1.0, 2: 2.0}))
    both, contradictions = cache.add("k", game_of({2: 2.5, 3: 3.0}))
    assert known_in(both) == {1: 1.0, 2: 2.5, 3: 3.0}
    assert contradictions == 1
    assert cache.get(["k"]) == [both]
    assert (len(cache), cache.n_bytes) == (1, size_of("k", both))


def test_a_contradiction_replaces_what_was_known():
    """If so, one other utility forgets all that was known before; without a contradiction nothing is lost."""
    cache = MemoryCache(PLENTY, TTL_S)
    cache.add("k", game_of({1: 1.0, 2: 2.0}), contradicted="replace")
    agreed, none = cache.add("k", game_of({2: 2.0, 3: 3.0}), contradicted="replace")
    assert (known_in(agreed), none) == ({1: 1.0, 2: 2.0, 3: 3.0}, 0)
    other, one = cache.add("k", game_of({3: 9.0, 4: 4.0}), contradicted="replace")
    assert (known_in(other), one) == ({3: 9.0, 4: 4.0}, 1)
    assert cache.get(["k"]) == [other]
    assert cache.n_bytes == size_of("k", other)


def test_a_contradiction_changes_nothing_of_what_is_kept():
    """If so, nothing of the other account is taken, and the game has no more time than before; agreement adds."""
    clock = Clock()
    cache = MemoryCache(PLENTY, TTL_S, clock)
    before, _ = cache.add("k", game_of({1: 1.0, 2: 2.0}), contradicted="keep")
    clock.now_s = TTL_S / 2
    assert cache.add("k", game_of({2: 9.0, 3: 3.0}), contradicted="keep") == (before, 1)
    assert cache.get(["k"]) == [before]
    assert cache.n_bytes == size_of("k", before)
    clock.now_s = TTL_S
    assert cache.get(["k"]) == [None]
    cache.add("k", before)
    both, none = cache.add("k", game_of({2: 2.0, 3: 3.0}), contradicted="keep")
    assert (known_in(both), none) == ({1: 1.0, 2: 2.0, 3: 3.0}, 0)


def test_games_are_forgotten_with_time():
    """A game is there until its time is over, and then takes no bytes; finding it does not prolong it."""
    clock = Clock()
    cache = MemoryCache(PLENTY, TTL_S, clock)
    game = game_of({1: 1.0})
    cache.add("k", game)
    clock.now_s = TTL_S - 0.001
    assert cache.get(["k"]) == [game]
    clock.now_s = TTL_S
    assert cache.get(["k", "k"]) == [None, None]
    assert (len(cache), cache.n_bytes) == (0, 0)


def test_what_is_too_old_is_not_joined():
    """A game that is put after its time is over knows what was put, contradicts nothing, and has its time anew."""
    clock = Clock()
    cache = MemoryCache(PLENTY, TTL_S, clock)
    cache.add("k", game_of({1: 1.0, 2: 2.0}))
    clock.now_s = TTL_S
    newer = game_of({1: 5.0})
    assert cache.add("k", newer, contradicted="keep") == (newer, 0)
    assert cache.n_bytes == size_of("k", newer)
    clock.now_s = 2 * TTL_S - 0.001
    assert cache.get(["k"]) == [newer]
    clock.now_s = 2 * TTL_S
    assert cache.get(["k"]) == [None]


@pytest.mark.parametrize("most", [0, 1, 400])
def test_without_room_nothing_is_remembered(most):
    """A cache without bytes gives back what it is given, and holds nothing."""
    cache = MemoryCache(most, TTL_S)
    game = game_of({1: 1.0})
    for _ in range(2):
        assert cache.add("k", game) == (game, 0)
        assert cache.get(["k"]) == [None]
        assert (len(cache), cache.n_bytes) == (0, 0)


def test_threads_share_a_cache():
    """Threads that put and find games at once lose none of what fits, and bytes stay counted."""
    n_threads, n_rounds, keys = 4, 300, "abcdef"
    cache = MemoryCache(PLENTY, TTL_S)
    small = MemoryCache(4 * size_of("a", game_of({1: 1.0})), TTL_S)
    begin, failures = threading.Barrier(n_threads), []

    def hammer(own):
        try:
            begin.wait(PATIENCE_S)
            for place in range(n_rounds):
                number, key = own * n_rounds + place, keys[place % len(keys)]
                cache.add(key, game_of({number: float(number)}, n=12))
                small.add(key, game_of({1: 1.0}))
                for found in small.get(keys):
                    assert found is None or known_in(found) == {1: 1.0}
                (found,) = cache.get([key])
                assert known_in(found, n=12)[number] == number
        except Exception as error:  # noqa: BLE001 - what fails in a thread is said by the test
            failures.append(error)

    threads = [threading.Thread(target=hammer, args=(own,)) for own in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []
    together = {}
    for found in cache.get(keys):
        together |= known_in(found, n=12)
    assert together == {number: float(number) for number in range(n_threads * n_rounds)}
    assert cache.n_bytes == sum(size_of(key, found) for key, found in zip(keys, cache.get(keys), strict=True))
    assert small.n_bytes == len(small) * size_of("a", game_of({1: 1.0})) <= 4 * size_of("a", game_of({1: 1.0}))
