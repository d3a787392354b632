import itertools

import anyio
import pytest

from server.model_gates import Gated, N, Paused, costs, found_in, happens, numbers_of, remembering, together, waiting
from server.model_services import REWARDS, UTILITY, columns_of, sets_of
from server.running import on_service

ROW = ("sun", "rain", "wind")


@pytest.mark.parametrize("form", [sets_of, columns_of])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("asked", "n"), [(REWARDS, 3), (UTILITY, 8)])
def test_what_several_ask_at_once_is_scored_once(form, deterministic, asked, n):
    """Of identical requests the first pays, the others wait for it, and all have the same numbers."""
    gate = Gated()
    found, counters = together([form(ROW, **asked, deterministic=deterministic)] * N, gate)
    assert {response.status_code for response in found} == {200}
    assert all(numbers_of(response) == numbers_of(found[0]) for response in found)
    assert costs(found) == [(n, 0)] + [(0, n)] * (N - 1)
    assert set(gate.texts.values()) == {1}
    n_games = 1 if deterministic or asked is UTILITY else n
    assert counters["games missed"] == n_games
    assert found_in(counters, "games") == (N - 1) * n_games
    assert found_in(counters, "evaluations_saved") == (N - 1) * n


def test_cheap_utilities_are_shared_while_they_are_evaluated():
    """What is too cheap to be remembered is still not evaluated by two at the same time."""
    gate = Gated()
    found, _ = together([sets_of(ROW, **UTILITY)] * N, gate, remembering(gate, cache_min_evaluation_s=1000.0))
    assert costs(found) == [(8, 0)] + [(0, 8)] * (N - 1)


def test_without_a_cache_nobody_waits_for_another():
    """Where nothing is remembered each request asks the model."""
    gate = Gated()
    found, counters = together([sets_of(ROW, **UTILITY)] * N, gate, remembering(gate, cache_bytes=0))
    assert costs(found) == [(8, 0)] * N
    assert set(gate.texts.values()) == {N}
    assert not any(name.startswith("games") for name in counters)


def test_tenants_do_not_wait_for_each_other():
    """The same request with another API key is evaluated by itself."""
    gate, keys = Gated(), ("first-key", "second-key", "first-key", "second-key")

    async def ask(service):
        found = []

        async def one(key):
            found.append(await service.post(sets_of(ROW, **REWARDS), Authorization=f"Bearer {key}"))

        async with anyio.create_task_group() as tasks:
            for key in keys:
                tasks.start_soon(one, key)
            await waiting(service, len(keys))
            gate.opened.set()
        return found

    found = on_service(ask, remembering(gate, api_keys=keys[:2]))
    assert sorted(costs(found)) == [(0, 3), (0, 3), (3, 0), (3, 0)]
    assert set(gate.texts.values()) == {2}


def test_bits_are_not_shared_with_what_rounds():
    """A request that is deterministic waits for none that is not, and the other way round."""
    gate = Gated()
    bodies = [sets_of(ROW, **REWARDS, deterministic=bool(place % 2)) for place in range(4)]
    found, _ = together(bodies, gate)
    assert sorted(costs(found)) == [(0, 3), (0, 3), (3, 0), (3, 0)]
    assert set(gate.texts.values()) == {2}


@pytest.mark.parametrize("asked", [REWARDS, UTILITY])
def test_requests_that_overlap_all_end(asked):
    """Circles of sets that each have something in common with the next end, and nothing is scored twice."""
    names = ["a", "b", "c", "d", "e"]
    pairs = [(names[place], names[(place + step) % 5]) for step in (1, 2) for place in range(5)]
    bodies = [sets_of(pair, names[place % 5 : place % 5 + 1], **asked) for place, pair in enumerate(pairs)]
    gate = Gated()
    found, _ = together(bodies, gate)
    assert {response.status_code for response in found} == {200}
    gate.opened.set()
    for body, response in zip(bodies, found, strict=True):
        (alone,), _ = together([body], gate, remembering(gate, cache_bytes=0))
        assert numbers_of(response) == numbers_of(alone)
    if asked is REWARDS:
        assert sum(evaluations for evaluations, _ in costs(found)) == 5
    else:
        assert sum(evaluations for evaluations, _ in costs(found)) <= 10 * 4 + 5 * 2


def test_a_larger_set_waits_for_what_it_lacks():
    """Who has something of its own to ask does that first, and then takes what others found out."""
    gate = Gated()
    bodies = [sets_of(("a", "b"), **REWARDS), sets_of(("b", "c"), **REWARDS), sets_of(("c", "a"), **REWARDS)]
    found, counters = together(bodies, gate)
    first, *others = costs(found)
    assert (first, sorted(others)) == ((2, 0), [(0, 2), (1, 1)])
    assert gate.texts == {"a": 1, "b": 1, "c": 1}
    assert (counters["games missed"], found_in(counters, "games")) == (3, 3)


def test_the_same_game_under_another_plan_is_taken_as_far_as_it_goes():
    """A request that needs other coalitions of a game that is being evaluated waits, and asks for the rest alone."""
    gate = Gated()
    bodies = [sets_of(ROW, **UTILITY, credit={"type": "leave_one_out"}), sets_of(ROW, **UTILITY)]
    found, _ = together(bodies, gate)
    assert costs(found) == [(5, 0), (3, 5)]
    assert set(gate.texts.values()) == {1}


@pytest.mark.parametrize(("asked", "n"), [(REWARDS, 3), (UTILITY, 8)])
def test_what_was_found_out_between_a_look_and_a_question_is_not_asked(asked, n):
    """Another request may land after it was looked what is missing: it is looked again before the model is asked."""
    gate, memory, found = Gated(), Paused(), {}
    gate.opened.set()

    async def ask(service):
        service.resources.cache.memory = memory

        async def one(name):
            found[name] = await service.post(sets_of(ROW, **asked))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one, "late")
            await happens(memory.looked)
            await one("quick")
            memory.goes_on.set()

    on_service(ask, remembering(gate, compute_threads=4))
    assert costs([found["quick"], found["late"]]) == [(n, 0), (0, n)]
    assert numbers_of(found["quick"]) == numbers_of(found["late"])
    assert set(gate.texts.values()) == {1}


def test_many_requests_of_many_kinds_agree_with_a_service_without_a_memory():
    """Whatever is asked at once, in whatever order, the numbers are those of each request by itself."""
    words = ("sun", "rain", "wind", "snow", "fog", "curse")
    rows = [row for size in (1, 2, 3) for row in itertools.combinations(words, size)]
    bodies = [
        sets_of(row, rows[(7 * place) % len(rows)], **(REWARDS if place % 3 else UTILITY), deterministic=place % 2 == 0)
        for place, row in enumerate(rows)
    ]
    gate = Gated()
    found, _ = together(bodies, gate, remembering(gate, compute_threads=4, max_requests_in_flight=100))

    async def alone(service):
        return [await service.post(body) for body in bodies]

    expected = on_service(alone, remembering(gate, cache_bytes=0))
    for one, other in zip(found, expected, strict=True):
        assert (one.status_code, one.json().get("sets")) == (other.status_code, other.json().get("sets"))
