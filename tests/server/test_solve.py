import json
from itertools import combinations

import numpy as np
import pytest

from creditd.client import Client
from creditd.credit.evaluated_games import EvaluatedGame
from creditd.credit.evaluation_needs import EstimatorOptions
from creditd.wire.errors import Problem
from creditd.wire.solve import SOLVE_EXAMPLE, SOLVED_EXAMPLE, SolveResponse
from server.running import on_service, post, running

SOLVE = "/v1/credit/shapley/solve"
MANY_ROUNDS = 10_000


def utility(players):
    """What some players are worth together."""
    return 0.25 + sum(0.1 * (1 + i) for i in players) + 0.03 * sum(a * b % 5 for a, b in combinations(players, 2))


def told(items, answer):
    """The items of the next request: those of the last one with what the answer asks for."""
    return [
        {
            **item,
            "coalitions": [*item.get("coalitions", []), *(found.get("next") or [])],
            "utilities": [*item.get("utilities", []), *map(utility, found.get("next") or [])],
        }
        for item, found in zip(items, answer["items"], strict=True)
    ]


async def to_the_end(services, items, **options):
    """The last answer of a conversation whose requests go to the services in turn."""
    for turn in range(MANY_ROUNDS):
        response = await services[turn % len(services)].post({"items": items, **options}, SOLVE)
        assert response.status_code == 200, response.text
        answer = response.json()
        SolveResponse.model_validate_json(response.content)
        assert answer["done"] == all(item["status"] != "open" for item in answer["items"])
        if answer["done"]:
            return answer
        items = told(items, answer)
    raise AssertionError("the conversation does not end")


def test_a_conversation_over_http_ends_in_the_bits_of_the_estimate():
    """Requests that carry all that is known, one after another, end in the credits of the game itself."""
    items = [{"id": "a", "n_players": 11}, {"id": 7, "n_players": 1}, {"n_players": 2}]
    options = {"estimator": {"budget": 200, "seed": 5}, "batch_size": 32}

    async def ask(service):
        return await to_the_end([service], items, **options)

    answer = on_service(ask)
    assert [item["id"] for item in answer["items"]] == ["a", 7, None]
    for item, n in zip(answer["items"], (11, 1, 2), strict=True):
        game = EvaluatedGame(n, EstimatorOptions(budget=200, seed=5))
        while not game.done:
            rows = game.ask()
            game.tell(rows, np.array([utility(np.flatnonzero(row).tolist()) for row in rows]))
        expected = game.credits()
        assert item["credits"] == expected.credits.tolist()
        assert (item["exact"], item["method"]) == (expected.exact, expected.method)
        errors = None if expected.standard_errors is None else expected.standard_errors.tolist()
        assert item["standard_errors"] == errors
        assert item["gap"] == pytest.approx(0.0, abs=1e-9)
        assert item["utility_empty"] == utility([])
        assert item["utility_grand"] == utility(list(range(n)))
    assert len(answer["items"][0]["intervals"]) == 11


def test_services_may_take_turns():
    """Nothing is kept: two services that answer in turn give what one gives, whatever the batch size."""
    items = [{"n_players": 9, "group": "p"}, {"n_players": 8, "group": "p"}]
    options = {"estimator": {"budget": 100, "type": "stratified"}}

    async def ask(service):
        async with running() as other:
            alternating = await to_the_end([service, other], items, **options, batch_size=13)
        return alternating, await to_the_end([service], items, **options)

    answers = on_service(ask)
    for answer in answers:
        for name in ("request_id", "usage"):
            del answer[name]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("example", [SOLVE_EXAMPLE, SOLVED_EXAMPLE])
def test_the_examples_of_the_schema_are_answered(example):
    """Examples work as they stand."""
    response = post(example, SOLVE)
    assert response.status_code == 200
    SolveResponse.model_validate_json(response.content)


def test_an_item_in_the_middle_fails_alone():
    """The others go on to the end; its error has code, pointer and sentence in every answer."""
    wrong = {"n_players": 3, "coalitions": [[1]], "utilities": [float("nan")], "id": "bad", "group": "p"}
    items = [{"n_players": 4, "group": "p"}, wrong, {"n_players": 2, "group": "p"}]

    async def ask(service):
        first = await service.post(json.dumps({"items": items}), SOLVE)
        rest = told(items, first.json())
        return first.json(), (await service.post(json.dumps({"items": rest}), SOLVE)).json()

    first, last = on_service(ask)
    assert [item["status"] for item in first["items"]] == ["open", "error", "open"]
    assert [item["status"] for item in last["items"]] == ["ok", "error", "ok"]
    for answer in (first, last):
        SolveResponse.model_validate_json(json.dumps(answer))
        assert answer["items"][1]["id"] == "bad"
        error = answer["items"][1]["error"]
        assert (error["code"], error["pointer"], error["retryable"]) == (
            "non_finite_utility",
            "/items/1/utilities/0",
            False,
        )
    assert "group_incomplete" in last["items"][0]["flags"]


def test_a_request_of_which_nothing_can_be_answered_fails():
    """When all items are wrong the answer is a problem with their places, causes before consequences."""
    items = [{"n_players": 2, "group": "p"}, {"n_players": 2, "group": "p", "coalitions": [[5]], "utilities": [1.0]}]
    response = post({"items": items, "incomplete_group": "error"}, SOLVE)
    problem = Problem.model_validate(response.json())
    assert response.status_code == 422
    assert [item.pointer for item in problem.errors] == ["/items/1/coalitions/0", "/items/0/group"]
    assert problem.detail == "no item could be answered; the first: /items/1/coalitions/0: player 5 is not one of 0 … 1"


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{}",
        '{"items": []}',
        '{"items": [{}]}',
        '{"items": [{"n_players": 0}]}',
        '{"items": [{"n_players": 5000}]}',
        '{"items": [{"n_players": true}]}',
        '{"items": [{"n_players": 2.0}]}',
        '{"items": [{"n_players": 2, "coalitions": [[-1]], "utilities": [1]}]}',
        '{"items": [{"n_players": 2, "coalitions": [[1e3]], "utilities": [1]}]}',
        '{"items": [{"n_players": 2, "coalitions": [0], "utilities": [1]}]}',
        '{"items": [{"n_players": 2, "coalitions": [[0]], "utilities": ["1"]}]}',
        '{"items": [{"n_players": 2, "coalitions": [[0]], "utilities": [null]}]}',
        '{"items": [{"n_players": 2, "spans": [[0]]}]}',
        '{"items": [{"n_players": 2}], "batch_size": 0}',
        '{"items": [{"n_players": 2}], "batch_size": 65537}',
        '{"items": [{"n_players": 2}], "estimator": {"budget": 0}}',
        '{"items": [{"n_players": 2}], "estimator": {"seed": -1}}',
        '{"items": [{"n_players": 2}], "estimator": {"type": "magic"}}',
        '{"items": [{"n_players": 2}], "estimator": {"target_standard_error": 0}}',
        '{"items": [{"n_players": 2}], "credit": {"type": "owen"}}',
        '{"items": [{"n_players": 2}], "utility": {"type": "max"}}',
        '{"items": [{"n_players": 2, "candidates": []}]}',
    ],
)
def test_rubbish_is_a_problem_and_no_failure(body):
    """Whatever is not in the schema is refused with 422 and a pointer, and never with 500."""
    response = post(body, SOLVE)
    assert response.status_code == 422
    assert Problem.model_validate(response.json()).errors


def test_what_went_wrong_is_counted_and_logged(log):
    """Items and their codes reach the counters and the log, as on the other routes."""
    items = [{"n_players": 2}, {"n_players": 2, "coalitions": [[0]], "utilities": [1e300]}]

    async def ask(service):
        await service.post({"items": items}, SOLVE)
        return (await service.client.get("/metrics")).text

    text = on_service(ask)
    assert 'creditd_items_total{route="/v1/credit/shapley/solve",status="ok"} 1.0' in text
    assert 'creditd_items_total{route="/v1/credit/shapley/solve",status="error"} 1.0' in text
    assert 'code="invalid_request"' in text
    assert (log.requests[0]["items"], log.requests[0]["failed"]) == (2, 1)


def test_a_deadline_that_has_passed_ends_the_work():
    """A caller that no longer waits gets 504 before many items are gone through."""
    body = {"items": [{"n_players": 12}] * 2000, "estimator": {"budget": 1000}}
    response = post(body, SOLVE, {"X-Request-Timeout-Ms": "20"})
    assert response.status_code == 504
    assert response.json()["code"] == "deadline_exceeded"


def test_local_mode_answers_alike():
    """The conversation of a client with itself ends in the bits that the service gives."""
    items = [{"n_players": 6}]

    async def ask(service):
        return await to_the_end([service], items, estimator={"type": "stratified", "budget": 30})

    answer = on_service(ask)
    with Client("local:") as client:
        result = client.shapley([list(range(6))], utility=utility, estimator={"type": "stratified", "budget": 30})
    assert result.credits[0].tolist() == answer["items"][0]["credits"]
    assert result.advantages[0].tolist() == answer["items"][0]["advantages"]
