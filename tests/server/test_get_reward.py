"""`POST /get_reward`: strictly one finite number per query, or an error."""

import json
import math

import anyio
import pytest

from creditd.engines.registry import Registry
from creditd.server.reward_answers import GET_REWARD_S
from creditd.wire.fields import MAX_SETS
from server.hostile import filled
from server.model_gates import Gated, happens, remembering
from server.model_services import FakeEmbedder, fake, with_models, worth
from server.reward_calls import CLASSIFY, GET_REWARD, OF_MODEL, REWARD_PATHS, asked, body_for, failure_of, queries
from server.running import PATIENCE_S, on_service
from server.test_errors import problem_of

N = 24
"""Requests at a time, one query each, as OpenRLHF sends them."""


def of_pair(prompt, text):
    """A score that tells a prompt from its completion."""
    return 100.0 * len(prompt) + len(text)


@pytest.mark.parametrize("texts", [[], ["weather?sun"], ["weather?sun rain", "weather?snow", "weather?", ""]])
def test_one_number_per_query(texts):
    """None, one or several queries have as many rewards, in their order; the scores are the same numbers."""
    response = asked(queries(*texts))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    expected = [worth("", text.removeprefix("weather?")) for text in texts]
    assert response.json() == {"rewards": expected, "scores": expected, "extra_logs": {}}


@pytest.mark.parametrize(
    "more",
    [
        {"prompts": None, "labels": None},
        {"prompts": []},
        {"labels": [{"answer": [1]}, 2.5]},
        {"labels": 7},
        {"images": [None], "what a later version sends": {"a": [1]}},
    ],
)
def test_what_else_is_sent_changes_nothing(more):
    """Labels, fields of other versions, and prompts that are not there."""
    assert asked(queries("sun", "snow", **more)).json()["rewards"] == [1.0, 2.0]


def test_a_body_of_queries_alone():
    """The oldest versions send nothing else."""
    assert asked({"query": ["sun"]}).json()["rewards"] == [1.0]


def test_a_query_is_its_prompt_and_what_follows():
    """A query that begins with its prompt is an answer to it; any other one is read as a whole."""
    engine = fake(score=of_pair)
    body = {"query": ["ab", "xb", "a", "ab"], "prompts": ["a", "a", "a", ""]}
    assert asked(body, GET_REWARD, engine).json()["rewards"] == [101.0, 2.0, 100.0, 2.0]


def test_the_order_is_that_of_the_queries():
    """However prompts alternate, and however many queries have the same one."""
    texts = [f"{prompt}{'x' * length}" for length in range(300) for prompt in ("p", "qq")]
    prompts = ["p", "qq"] * 300
    rewards = asked({"query": texts, "prompts": prompts}, GET_REWARD, fake(score=of_pair)).json()["rewards"]
    assert rewards == [
        100.0 * len(prompt) + len(text) - len(prompt) for prompt, text in zip(prompts, texts, strict=True)
    ]


def test_special_tokens_are_not_added():
    """A query has them written out already, so the tokenizer adds none."""
    engine, seen = fake(), []
    prepared = engine.prepared
    engine.prepared = lambda texts, **options: (seen.extend(texts), prepared(texts, **options))[1]
    asked(queries("weather?sun", "rain"), GET_REWARD, engine)
    assert [one.adds_special_tokens for one in seen] == [False, False]


def test_many_equal_prompts_make_no_square():
    """As many queries as there may be, of nothing: memory of each, not of pairs of them."""
    response = asked({"query": [""] * MAX_SETS})
    assert response.json()["rewards"] == [0.0] * MAX_SETS


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({}, "invalid_request", "/query"),
        ({"query": None}, "invalid_request", "/query"),
        ({"query": "sun"}, "invalid_request", "/query"),
        ({"query": [1]}, "invalid_request", "/query/0"),
        ({"query": ["sun", None]}, "invalid_request", "/query/1"),
        ({"query": [["sun"]]}, "invalid_request", "/query/0"),
        ({"query": ["sun"], "prompts": "sun"}, "invalid_request", "/prompts"),
        ({"query": ["sun"], "prompts": [1]}, "invalid_request", "/prompts/0"),
        ({"query": ["sun"], "prompts": ["a", "b"]}, "shape_mismatch", "/prompts"),
        ({"query": [""] * (MAX_SETS + 1)}, "invalid_request", "/query"),
        ('{"query": ["sun"], "query": ["snow"]}', "invalid_request", "/query"),
        ('{"query": ["\\ud800"]}', "invalid_request", ""),
        ("[]", "invalid_request", ""),
        ("", "invalid_request", ""),
        ("[" * 100_000, "invalid_request", ""),
        ('{"labels": ' + "[" * 100_000, "invalid_request", ""),
    ],
)
def test_what_is_no_request(body, code, pointer):
    """Wrong types, lengths that differ, and what is no JSON; nothing of it comes back."""
    response = asked(body)
    document = problem_of(response, code)
    assert [item["pointer"] for item in document["errors"]][:1] == [pointer]
    assert len(response.content) < 2000


def test_too_large_a_body():
    """The limit on bodies is that of every route, and so is the one on characters."""
    problem_of(asked({"query": ["x" * 2000]}, max_body_bytes=1024), "body_too_large")
    problem_of(asked(queries("x" * 50, "x" * 51), max_model_characters=100), "budget_exceeded")


@pytest.mark.slow
@pytest.mark.parametrize("path", REWARD_PATHS)
@pytest.mark.parametrize(
    ("head", "unit", "code"),
    [
        ('{"FIELD": [', '""', "invalid_request"),
        ('{"FIELD": [', "[]", "body_too_large"),
        ('{"FIELD": ["sun"], "labels": [', "{}", "body_too_large"),
        ('{"FIELD": ["sun"], "labels": [', '{"a":1}', "body_too_large"),
    ],
)
def test_eight_megabytes_of_little(path, head, unit, code):
    """Refused in one short sentence, whatever field they stand in."""
    body = filled(head.replace("FIELD", "input" if path == CLASSIFY else "query"), unit, "]}")
    response = asked(body, path)
    problem_of(response, code)
    assert len(response.content) < 2000


@pytest.mark.parametrize("path", REWARD_PATHS)
def test_json_alone(path):
    """Another content type is 415; the answer is JSON whatever the caller accepts."""

    async def ask(service):
        body = json.dumps(body_for(path, "sun"))
        binary = {"Content-Type": "application/vnd.creditd.v1+msgpack"}
        accepts = {"Accept": "application/vnd.creditd.v1+msgpack"}
        return await service.post(body, path, **binary), await service.post(body, path, **accepts)

    refused, answered = on_service(ask, with_models())
    problem_of(refused, "unsupported_media_type")
    assert answered.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("text", "code", "options"),
    [("weather?curse", "non_finite_utility", {}), ("weather?" + "sun " * 9, "context_exceeded", {"max_tokens": 20})],
)
def test_a_query_without_a_reward_fails_the_request(text, code, options):
    """NaN, or too long: an error that names the query, and no number for the others either."""
    response = asked(queries("weather?sun", text, "weather?rain"), GET_REWARD, fake(**options))
    document = problem_of(response, code)
    assert [item["pointer"] for item in document["errors"]] == ["/query/1"]
    assert "rewards" not in document


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinities_are_no_rewards(value):
    """Whatever is not finite."""
    problem_of(asked(queries("sun"), GET_REWARD, fake(score=lambda *_: value)), "non_finite_utility")


def broken(*_):
    """A model that fails."""
    raise ValueError


@pytest.mark.parametrize("path", REWARD_PATHS)
def test_a_model_that_fails(path):
    """502: an error, and never a number."""
    failure_of(asked(body_for(path, "sun"), path, fake(score=broken)), "engine_failed", path)


def test_the_only_model_needs_no_name():
    """Embedding models are none; of several reward models the address has to name one."""
    registry = Registry({"rm": fake()}, {"emb": FakeEmbedder()})
    resources = with_models()
    resources.engines.close()
    resources.engines = registry
    assert on_service(lambda service: service.post(queries("sun"), GET_REWARD), resources).status_code == 200

    async def ask(service):
        paths = (GET_REWARD, OF_MODEL.format("a"), OF_MODEL.format("org/b"), OF_MODEL.format("c"))
        return [await service.post(queries("sun"), path) for path in paths]

    unnamed, first, second, unknown = on_service(
        ask, with_models(fake("a"), fake("org/b", score=lambda *_: 7.0), max_inline_candidates=0)
    )
    assert "a, org/b" in problem_of(unnamed, "unknown_model")["detail"]
    assert (first.json()["rewards"], second.json()["rewards"]) == ([1.0], [7.0])
    problem_of(unknown, "unknown_model")


def test_a_service_without_a_reward_model():
    """404, whatever is asked, and nothing at all, too: a wrong address is said at once."""
    for body in (queries("sun"), {"query": []}):
        problem_of(on_service(lambda service, body=body: service.post(body, GET_REWARD)), "unknown_model")


def together(resources, bodies, path=GET_REWARD):
    """Responses to requests that are sent at the same time."""

    async def ask(service):
        responses = [None] * len(bodies)

        async def one(place):
            responses[place] = await service.post(bodies[place], path)

        async with anyio.create_task_group() as tasks:
            for place in range(len(bodies)):
                tasks.start_soon(one, place)
        return responses

    return on_service(ask, resources)


def test_requests_of_one_query_share_batches():
    """Many requests of one query each, at the same time, are fewer batches; each has its own reward."""
    engine = fake(per_batch_s=0.05)
    texts = [f"weather?{word} {number}" for number, word in enumerate(["sun", "rain", "snow"] * (N // 3))]
    responses = together(with_models(engine), [queries(text) for text in texts])
    assert [response.json()["rewards"] for response in responses] == [[worth("", text[8:])] for text in texts]
    assert sum(engine.batches) == N
    assert len(engine.batches) <= N // 3


def test_a_query_without_a_reward_fails_no_other_request():
    """Requests share batches and nothing else."""
    responses = together(with_models(fake(per_batch_s=0.05)), [queries("sun"), queries("curse"), queries("snow")])
    assert [response.status_code for response in responses] == [200, 422, 200]


def test_nothing_is_remembered():
    """Equal queries are asked about again, and what is kept of other routes is not touched."""
    engine = fake()

    async def ask(service):
        return [await service.post(queries("sun"), GET_REWARD) for _ in range(2)]

    on_service(ask, with_models(engine, cache_min_evaluation_s=0))
    assert engine.batches == [1, 1]


@pytest.mark.parametrize("path", REWARD_PATHS)
def test_a_full_queue_is_an_overload(path):
    """503 with Retry-After once more tokens wait for the model than it takes."""
    gate = Gated()
    engine = fake(score=gate, max_queued_tokens=20)

    async def ask(service):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.post, body_for(path, "sun"), path)
            await happens(gate.begun)
            response = await service.post(body_for(path, "rain" * 5), path)
            gate.opened.set()
        return response

    response = on_service(ask, with_models(engine))
    failure_of(response, "overloaded", path)
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize("path", REWARD_PATHS)
def test_the_limit_on_requests_in_flight_holds(path):
    """503 with Retry-After where the service has as many as it takes, and while it is shutting down."""
    gate = Gated()

    async def ask(service):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.post, body_for(path, "sun"), path)
            await happens(gate.begun)
            full = await service.post(body_for(path, "rain"), path)
            gate.opened.set()
        service.resources.draining = True
        return full, await service.post(body_for(path, "rain"), path)

    full, draining = on_service(ask, remembering(gate, max_requests_in_flight=1))
    problem_of(full, "overloaded")
    problem_of(draining, "draining")
    assert full.headers["retry-after"] == draining.headers["retry-after"] == "1"


@pytest.mark.parametrize("path", REWARD_PATHS)
def test_a_deadline_is_an_error(path):
    """504 when the time is over, with the work dropped; a caller without a header has the time of the setting."""
    gate = Gated()

    async def ask(service):
        response = await service.post(body_for(path, "sun"), path)
        gate.opened.set()
        return response

    problem_of(on_service(ask, remembering(gate, request_timeout_s=0.2)), "deadline_exceeded")


def test_the_deadline_is_well_inside_the_patience_of_openrlhf():
    """Its client leaves after 180 s, which it says nowhere."""
    assert GET_REWARD_S <= 120.0
    assert PATIENCE_S < GET_REWARD_S


def test_what_is_counted(log):
    """The log line and the counters have the route, the queries, and what they cost; no text."""

    async def ask(service):
        await service.post(queries("weather?sun", "weather?rain"), GET_REWARD)
        await service.post(queries("weather?curse"), OF_MODEL.format("rm"))
        await service.post({"input": "snow"}, CLASSIFY)
        return (await service.client.get("/metrics")).text

    metrics = on_service(ask, with_models())
    assert 'creditd_items_total{route="/get_reward",status="ok"} 2.0' in metrics
    assert 'creditd_items_total{route="/v1/models/{id}/get_reward",status="error"} 1.0' in metrics
    assert 'creditd_item_errors_total{code="non_finite_utility"} 1.0' in metrics
    assert 'creditd_evaluations_total{model="rm"} 4.0' in metrics
    routes = [(line["route"], line["status"], line.get("items")) for line in log.requests]
    assert routes[:3] == [(GET_REWARD, 200, 2), (OF_MODEL.format("{id}"), 422, 1), (CLASSIFY, 200, 1)]
    assert not any(word in line for line in log.texts for word in ("sun", "curse", "snow"))
