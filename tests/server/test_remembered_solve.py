"""`/v1/credit/shapley/solve` with a `utility_id`: what a caller supplied once is not asked for again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cache.stores import cache_of
from creditd.client import Client
from creditd.server.remembered_solve import SuppliedBefore
from creditd.server.resources import Resources
from creditd.server.settings import Settings
from creditd.wire import codec
from creditd.wire.errors import Problem
from creditd.wire.solve import SolveRequest, SolveResponse
from creditd.wire.solve_items import solve_items
from server.running import PATIENCE_S, on_service, running
from server.test_solve import MANY_ROUNDS, SOLVE, told, utility

NAMED = {"utility_id": "judge-v1"}
SAMPLED = {"type": "stratified", "budget": 60}


def item(n=4, **fields):
    """A game with names."""
    return {"n_players": n, "player_ids": [f"h{place}" for place in range(n)], "prompt_id": "p", **fields}


async def conversation(service, items, headers=None, then=None, **options):
    """The last answer, and how many utilities were asked for altogether.

    Args:
        service: Whom it begins with.
        items: The games.
        headers: Of each request.
        then: With whom it goes on; None for the same service.
        options: What else each request says.
    """
    n_asked = 0
    for turn in range(MANY_ROUNDS):
        response = await (then if turn and then else service).post(
            {"items": items, **NAMED, **options}, SOLVE, **(headers or {})
        )
        assert response.status_code == 200, response.text
        SolveResponse.model_validate_json(response.content)
        answer = response.json()
        if answer["done"]:
            return answer, n_asked
        n_asked += sum(len(found.get("next") or []) for found in answer["items"])
        items = told(items, answer)
    raise AssertionError("the conversation does not end")


def said(item, coalitions, function=utility):
    """The item with utilities of some coalitions."""
    return {**item, "coalitions": coalitions, "utilities": list(map(function, coalitions))}


def numbers(answer):
    """An answer without what differs from one request to the next."""
    return answer["items"]


def usage(answer):
    """How many utilities were remembered."""
    return answer["usage"]["from_cache"]


def counters(text):
    """The cache's counters of games and of what they saved."""
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("creditd_cache_")]
    return {name: float(value) for name, value in lines if "_created" not in name and float(value)}


# What is shared


def test_a_second_conversation_evaluates_nothing():
    """It ends at once, in the bits of the first, and says how much was remembered."""
    items = [item(), item(9, prompt_id="q"), item(2, player_ids=[1, 2])]
    options = {"estimator": SAMPLED, "batch_size": 25}

    async def ask(service):
        first = await conversation(service, items, **options)
        second = await conversation(service, items, **options)
        plain = await conversation(service, [{"n_players": one["n_players"]} for one in items], utility_id=None)
        return first, second, plain, (await service.client.get("/metrics")).text

    first, second, plain, text = on_service(ask)
    assert (first[1], second[1]) == (16 + 60 + 4, 0)
    assert numbers(first[0]) == numbers(second[0])
    assert (usage(first[0]), usage(second[0])) == (0, 80)
    assert (usage(plain[0]), plain[1]) == (0, 16 + 512 + 4)
    found = counters(text)
    assert found['creditd_cache_games_total{outcome="memory"}'] == 3.0
    assert found['creditd_cache_games_total{outcome="missed"}'] == 3.0 + 2.0  # the large game is open three times
    assert found['creditd_cache_evaluations_saved_total{level="memory",source="(callers)"}'] == 80.0


def test_players_in_another_order_are_the_same_game():
    """Credits move with their players, and nothing is evaluated."""
    places = [3, 0, 4, 6, 1, 5, 2]
    names = [f"h{place}" for place in places]

    async def ask(service):
        first = await conversation(service, [item(7)], estimator={"budget": 40})
        return first[0], await conversation(service, [item(7, player_ids=names)], estimator={"budget": 40})

    first, (second, n_asked) = on_service(ask)
    assert n_asked == 0
    assert second["items"][0]["credits"] == [first["items"][0]["credits"][place] for place in places]


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"utility_id": "judge-v2"}, {}),
        ({"utility_id": 1}, {}),
        ({}, {"prompt_id": "q"}),
        ({}, {"prompt_id": 7}),
        ({}, {"player_ids": ["h0", "h1", "h2", "other"]}),
        ({"utility_id": None}, {"prompt_id": None}),
    ],
)
def test_another_name_is_another_game(options, fields):
    """Function, prompt and candidates: whatever has another name is evaluated."""

    async def ask(service):
        await conversation(service, [item()])
        await conversation(service, [item(prompt_id="7")], utility_id="1")
        return await conversation(service, [item(**fields)], **options)

    answer, n_asked = on_service(ask)
    assert (n_asked, usage(answer)) == (16, 0)


def test_each_key_has_its_own_memory():
    """Nothing that one caller says is known to another."""

    async def ask(service):
        found = []
        for key in ("a" * 16, "b" * 16, "a" * 16):
            headers = {"Authorization": f"Bearer {key}"}
            found.append((await conversation(service, [item()], headers=headers))[1])
        return found

    assert on_service(ask, api_keys=("a" * 16, "b" * 16)) == [16, 16, 0]


def test_a_larger_budget_goes_on_where_a_smaller_one_stopped():
    """The plan of a larger budget begins with that of a smaller one."""

    async def ask(service):
        first = await conversation(service, [item(12)], estimator={"budget": 100})
        return first, await conversation(service, [item(12)], estimator={"budget": 160})

    first, second = on_service(ask)
    assert (first[1], second[1]) == (100, 60)
    assert usage(second[0]) == 100


def test_another_estimator_and_another_rule_share_what_they_can():
    """And its answer is the one that it would have had by itself."""
    estimator = {"type": "permutations", "budget": 100}

    async def ask(service):
        alone = await conversation(service, [item(9)], estimator=estimator)
        await conversation(service, [item(9, prompt_id="q")], estimator=SAMPLED)
        shared = await conversation(service, [item(9, prompt_id="q")], estimator=estimator)
        rule = await conversation(service, [item(9, prompt_id="q")], credit={"type": "leave_one_out"})
        return alone, shared, rule

    alone, shared, rule = on_service(ask)
    assert numbers(alone[0]) == numbers(shared[0])
    assert 0 < usage(shared[0]) == alone[1] - shared[1]
    assert (rule[1], usage(rule[0])) == (0, 11)


def test_all_utilities_together_change_no_estimate():
    """What other conversations supplied beyond the plan is not used: the numbers are those of an empty memory."""

    async def ask(service):
        small = {"estimator": {"budget": 12}}
        before = await conversation(service, [item()], **small)
        await conversation(service, [item()])
        return before[0], await conversation(service, [item()], **small), await conversation(service, [item()])

    before, (after, n_asked), (exact, _) = on_service(ask)
    assert numbers(before) == numbers(after)
    assert (after["items"][0]["exact"], n_asked, usage(after)) == (False, 0, 12)
    assert (exact["items"][0]["exact"], usage(exact)) == (True, 16)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ({"utility_id": 1}, {"utility_id": "1"}),
        ({"prompt_id": 1}, {"prompt_id": "1"}),
        ({"player_ids": [1, 2]}, {"player_ids": ["1", "2"]}),
        ({"player_ids": [1, "2"]}, {"player_ids": ["1", 2]}),
    ],
    ids=str,
)
def test_numbers_and_texts_are_different_names(name, other):
    """1 and "1" share nothing; the same name does."""

    async def ask(service):
        found = []
        for names in (name, other, name):
            fields = {key: value for key, value in names.items() if key != "utility_id"}
            options = {key: value for key, value in names.items() if key == "utility_id"}
            found.append((await conversation(service, [item(2, **fields)], **options))[1])
        return found

    assert on_service(ask) == [4, 4, 0]


def test_items_of_one_request_share_from_the_next_on():
    """The same game twice is one game in memory."""

    async def ask(service):
        await service.post({"items": [said(item(2), [[], [0]]), said(item(2), [[1]])], **NAMED}, SOLVE)
        return (await service.post({"items": [item(2)], **NAMED}, SOLVE)).json()

    answer = on_service(ask)
    assert (answer["items"][0]["next"], usage(answer)) == ([[0, 1]], 3)


# What is not


def test_what_contradicts_itself_is_forgotten():
    """What a request supplies counts, at once and from then on; nothing of the old account is mixed in."""

    def other(coalition):
        return utility(coalition) + 1.0

    async def ask(service):
        await conversation(service, [item()])
        first = (await service.post({"items": [said(item(), [[], [2]], other)], **NAMED}, SOLVE)).json()
        second = (await service.post({"items": [item()], **NAMED}, SOLVE)).json()
        return first, second, counters((await service.client.get("/metrics")).text)

    first, second, found = on_service(ask)
    assert (usage(first), len(first["items"][0]["next"])) == (0, 14)
    assert (usage(second), len(second["items"][0]["next"])) == (2, 14)
    assert found["creditd_cache_contradictions_total"] == 1.0


def test_a_contradiction_that_is_too_large_to_be_remembered_forgets_as_well():
    """As much of it as is remembered is the new account, with what it contradicts."""
    n = 17
    many = [[player for player in range(n) if mask >> player & 1] for mask in reversed(range(1 << n))]

    async def ask(service):
        await service.post({"items": [said(item(n), [[0], []], lambda _: 0.5)], **NAMED, "batch_size": 1}, SOLVE)
        await service.post({"items": [said(item(n), many, lambda _: 0.25)], **NAMED, "batch_size": 1}, SOLVE)
        [(game, *_)] = service.resources.cache.memory._games.values()
        return game.n_known, set(game.utilities.tolist())

    assert on_service(ask) == (1 << 16, {0.25})


@pytest.mark.parametrize(
    "wrong",
    [
        {"coalitions": [[], [0]], "utilities": [0.5, float("nan")]},
        {"coalitions": [[], [0]], "utilities": [0.5, 1e101]},
        {"coalitions": [[], [4]], "utilities": [0.5, 1.0]},
        {"coalitions": [[], [0]], "utilities": [0.5]},
        {"coalitions": [[], []], "utilities": [0.5, 0.25]},
        {"coalitions": [[]], "utilities": [0.5], "player_ids": ["h0", "h0", "h1", "h2"]},
        {"coalitions": [[]], "utilities": [0.5], "player_ids": ["h0"]},
        {"coalitions": [[]], "utilities": [0.5], "set_reward": float("nan")},
    ],
)
def test_nothing_of_an_item_that_is_wrong_is_remembered(wrong):
    """The others of the request are, also where the group of the wrong one is incomplete."""
    items = [said(item(prompt_id="q", group=1), [[]]), item(group=1, **wrong)]

    async def ask(service):
        body = {"items": items, **NAMED, "incomplete_group": "error"}
        first = await service.post(json.dumps(body), SOLVE)
        assert first.status_code == 422
        return (await service.post({"items": [item(), item(prompt_id="q")], **NAMED}, SOLVE)).json()

    answer = on_service(ask)
    assert [len(one["next"]) for one in answer["items"]] == [16, 15]


def test_a_service_without_a_cache_answers_as_ever():
    """The names are checked, and that is all."""

    async def ask(service):
        assert service.resources.cache is None
        return [await conversation(service, [item()]) for _ in range(2)]

    first, second = on_service(ask, cache_bytes=0)
    assert (first[1], second[1]) == (16, 16)
    assert numbers(first[0]) == numbers(second[0])


def test_what_is_lost_between_two_rounds_is_asked_for_again():
    """A memory may forget at any time; the conversation goes on, and ends in the same bits."""
    options = {"estimator": {**SAMPLED, "budget": 90}, "batch_size": 10}

    async def ask(service):
        expected = await conversation(service, [item(9)], **options)
        async with running() as other:
            return expected, await conversation(service, [item(9, prompt_id="q")], then=other, **options)

    async def ask_what_was_known(service):
        await conversation(service, [item(9)], estimator=SAMPLED)
        async with running() as other:
            return await conversation(service, [item(9)], then=other, **options)

    expected, lost = on_service(ask)
    assert (expected[1], lost[1]) == (90, 90)
    answer, n_asked = on_service(ask_what_was_known)
    assert (n_asked, usage(answer)) == (90, 0)
    assert numbers(answer) == numbers(lost[0]) == numbers(expected[0])


def test_names_are_needed():
    """Without those of players and prompt nothing could be remembered; the refusal says where they lack."""
    response = on_service(lambda service: service.post({"items": [item(), {"n_players": 2}], **NAMED}, SOLVE))
    problem = Problem.model_validate(response.json())
    assert response.status_code == 422
    assert [one.pointer for one in problem.errors] == ["/items/1/player_ids", "/items/1/prompt_id"]


def test_choices_that_contradict_each_other_are_refused():
    """As without a name."""
    body = {"items": [item()], **NAMED, "credit": {"type": "owen"}}
    assert on_service(lambda service: service.post(body, SOLVE)).status_code == 422


def test_a_deadline_that_has_passed_ends_the_work():
    """A caller that no longer waits gets 504 before many items are gone through."""
    body = {"items": [item(12, prompt_id=row) for row in range(2000)], "estimator": {"budget": 1000}, **NAMED}
    response = on_service(lambda service: service.post(body, SOLVE, **{"X-Request-Timeout-Ms": "20"}))
    assert response.status_code == 504


def test_both_formats_remember_together():
    """What is supplied in JSON is known to a binary request, and the answers are equal."""

    async def ask(service):
        await conversation(service, [item(6)])
        document = {"items": [item(6)], **NAMED}
        headers = {"Content-Type": codec.MEDIA_TYPE, "Accept": codec.MEDIA_TYPE}
        binary = await service.client.post(SOLVE, content=codec.encode(document), headers=headers, timeout=PATIENCE_S)
        return (await service.post(document, SOLVE)).json(), codec.decode(binary.content, arrays=True)

    text, binary = on_service(ask)
    assert (usage(text), usage(binary)) == (64, 64)
    assert np.asarray(binary["items"][0]["credits"]).tolist() == text["items"][0]["credits"]


def test_remembered_or_supplied_the_answer_is_that_of_local_mode():
    """Equal bits, with a seed and an estimate."""
    estimator = {"type": "stratified", "budget": 50, "seed": 3}

    async def ask(service):
        await conversation(service, [item(8)], estimator={**estimator, "budget": 30})
        return (await conversation(service, [item(8)], estimator=estimator))[0]

    answer = on_service(ask)
    with Client("local:") as client:
        result = client.shapley([list(range(8))], utility=utility, estimator=estimator)
    assert usage(answer) == 30
    assert result.credits[0].tolist() == answer["items"][0]["credits"]


def test_a_game_does_not_grow_without_bound():
    """As much of it is remembered as one request may ask for; what goes beyond that is answered, and that is all."""
    n = 17
    many = [[player for player in range(16) if mask >> player & 1] for mask in range(1 << 16)]

    async def ask(service):
        sizes = []
        for coalitions in (many, [[16]]):
            body = {"items": [said(item(n), coalitions, lambda _: 0.5)], **NAMED, "batch_size": 1}
            answer = await service.post(body, SOLVE)
            sizes.append((service.resources.cache.memory.n_bytes, answer.json()["items"][0]["evaluations"]))
        return sizes

    (full, first), (still, second) = on_service(ask)
    assert full == still > 8 << 16
    assert second == first + 1


def test_a_request_under_way_does_not_bring_back_what_was_contradicted():
    """What another request contradicted meanwhile is forgotten, also by a request that looked it up before."""
    limits = Resources(Settings()).limits

    def asked(coalitions, value):
        items = [{**item(2), "coalitions": coalitions, "utilities": [value] * len(coalitions)}]
        return SolveRequest.model_validate({"items": items, **NAMED})

    cache = cache_of()

    def begun(request):
        supplied = SuppliedBefore(request, cache, b"t" * 32)
        supplied.look()
        return supplied, request

    def ended(supplied, request):
        supplied.keep(solve_items(request, limits, remembered=supplied.by_row), lambda: None)

    ended(*begun(asked([[], [0]], 1.0)))
    slow = begun(asked([[1]], 9.0))
    ended(*begun(asked([[], [0]], 9.0)))
    ended(*slow)
    last, _ = begun(asked([], 0.0))
    (game,) = last.by_row.values()
    assert (game.n_known, set(game.utilities.tolist())) == (3, {9.0})
