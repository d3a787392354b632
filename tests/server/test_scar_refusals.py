"""What `/v1/credit/scar` refuses, of an item and of a request, and what happens when nobody waits or nobody answers."""

import json
import threading

import anyio
import pytest

from server.model_gates import Gated, following, happens
from server.model_services import FakeEmbedder, fake, with_embedder, with_models
from server.running import PATIENCE_S, on_service
from server.scar_calls import (
    FORMATS,
    SCAR,
    SCAR_SOLVE,
    TEXT,
    answered,
    ask,
    document_of,
    item_of,
    request_of,
    say,
    scorer,
    tokens_of,
)

NAN = float("nan")
GIVEN = {"segmentation": {"type": "given"}}
OWEN = {"credit": {"type": "owen"}}
SOUND = item_of(TEXT)
TOKENS = tokens_of(TEXT)

BAD_ITEMS = {
    "offsets backwards": ({"token_offsets": [[3, 5], [0, 3]]}, {}, "shape_mismatch", "token_offsets"),
    "offsets beyond the text": ({"token_offsets": [[0, 3], [3, 99]]}, {}, "shape_mismatch", "token_offsets"),
    "no token for a text": ({"token_offsets": []}, {}, "shape_mismatch", "token_offsets"),
    "a short mask": ({"completion_mask": [True] * 9}, {}, "shape_mismatch", "completion_mask"),
    "a long mask": ({"completion_mask": [True] * 11}, {}, "shape_mismatch", "completion_mask"),
    "too few KL terms": ({"kl": [0.0]}, {}, "shape_mismatch", "kl"),
    "a KL term of NaN": ({"kl": [0.0] * 6 + [NAN] + [0.0] * 3}, {}, "non_finite_value", "kl/6"),
    "an infinite KL term": ({"kl": [float("-inf")] + [0.0] * 9}, {}, "non_finite_value", "kl/0"),
    "a huge KL term": ({"kl": [0.0] * 9 + [1e91]}, {}, "invalid_request", "kl/9"),
    "another reward of NaN": ({"other_reward": NAN}, {}, "non_finite_value", "other_reward"),
    "a huge other reward": ({"other_reward": -1e91}, {}, "invalid_request", "other_reward"),
    "units that nobody asked for": ({"units": [[0, 10]]}, {}, "invalid_request", "units"),
    "no offsets": ({"token_offsets": None}, {"segmentation": {"type": "token"}}, "invalid_request", "token_offsets"),
    "units are missing": ({}, GIVEN, "invalid_request", "units"),
    "units without offsets": ({"token_offsets": None, "units": [[0, 4]]}, GIVEN, "invalid_request", "token_offsets"),
    "units out of order": ({"units": [[4, 10], [0, 4]]}, GIVEN, "shape_mismatch", "units"),
    "units beyond the end": ({"units": [[0, 11]]}, GIVEN, "shape_mismatch", "units"),
    "a token in no unit": ({"units": [[0, 4], [5, 10]]}, GIVEN, "shape_mismatch", "units"),
    "a masked token in a unit": (
        {"units": [[0, 10]], "completion_mask": [True] * 9 + [False]},
        GIVEN,
        "shape_mismatch",
        "units",
    ),
    "a tree for another value": ({"tree": [[0, 1], [2, 3], [4, 5]]}, {}, "invalid_request", "tree"),
    "a tree of another size": ({"tree": [[0, 1]]}, OWEN, "invalid_request", "tree"),
    "a tree that is none": ({"tree": [[0, 1], [0, 2], [4, 5]]}, OWEN, "invalid_request", "tree"),
    "a tree of no units": (
        {"completion": "", "token_offsets": [], "tree": [[0, 1], [5, 9]]},
        OWEN,
        "invalid_request",
        "tree",
    ),
    "a tree of merged units": (
        {"tree": [[0, 1]]},
        {**OWEN, "segmentation": {"type": "span", "max_units": 2}},
        "invalid_request",
        "tree",
    ),
}


def sound_under(options):
    """A completion that is right under some choices."""
    return {**SOUND, "units": [[0, 4], [4, 10]]} if options.get("segmentation") == GIVEN["segmentation"] else SOUND


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", BAD_ITEMS)
def test_a_wrong_item_fails_alone(case, form):
    """Each failure that an item can have costs that item, with code, pointer and a sentence without its text."""
    bad, options, code, place = BAD_ITEMS[case]
    sound = sound_under(options)
    found = answered(request_of(sound, {**SOUND, **bad, "id": "bad"}, sound, **options), form)
    assert [one["status"] for one in found] == ["ok", "error", "ok"]
    error = found[1]["error"]
    assert (found[1]["id"], error["code"], error["pointer"]) == ("bad", code, f"/items/1/{place}")
    assert error["detail"]
    assert "sun" not in error["detail"]


@pytest.mark.parametrize("case", BAD_ITEMS)
def test_a_wrong_item_alone_is_refused_with_the_same_code(case):
    """A request of one wrong item is 422 with its code and pointer, and asks the model nothing."""
    bad, options, code, place = BAD_ITEMS[case]
    engine = scorer()
    problem = ask(request_of({**SOUND, **bad}, **options), resources=with_models(engine))
    assert (problem["status"], problem["code"]) == (422, code)
    assert [(item["code"], item["pointer"]) for item in problem["errors"]] == [(code, f"/items/0/{place}")]
    assert problem["detail"].startswith("no item could be answered; the first: ")
    assert engine.batches == []


REFUSED = {
    "unknown model": ({"model": "other"}, "unknown_model", "/model"),
    "estimator of a definition": (
        {"credit": {"type": "prefix"}, "estimator": {"type": "permutations"}},
        "invalid_request",
        "/estimator",
    ),
    "no such segmentation": ({"segmentation": {"type": "word"}}, "invalid_request", "/segmentation"),
    "no such credit": ({"credit": {"type": "banzhaf"}}, "invalid_request", "/credit"),
    "no pattern": ({"segmentation": {"type": "regex"}}, "invalid_request", "/segmentation/pattern"),
    "a bad pattern": ({"segmentation": {"type": "regex", "pattern": "("}}, "invalid_request", "/segmentation/pattern"),
    "no unit at most": (
        {"segmentation": {"type": "span", "max_units": 0}},
        "invalid_request",
        "/segmentation/max_units",
    ),
    "text and id": ({"absent": {"type": "mask_token", "text": "a", "id": 1}}, "invalid_request", "/absent"),
    "neither text nor id": ({"absent": {"type": "mask_token"}}, "invalid_request", "/absent"),
    "no such token": ({"absent": {"type": "mask_token", "id": 0xD800}}, "invalid_request", "/absent/id"),
    "alpha above 1": ({"alpha": 1.5}, "invalid_request", "/alpha"),
    "alpha below 0": ({"alpha": -0.5}, "invalid_request", "/alpha"),
    "no such advantage": ({"advantage": {"type": "grpo"}}, "invalid_request", "/advantage/type"),
    "an unknown field": ({"utility": {"type": "max"}}, "unknown_field", "/utility"),
    "no item": ({"items": []}, "invalid_request", "/items"),
    "a group for some": ({"items": [SOUND, {**SOUND, "group": 1}]}, "invalid_request", "/items/0/group"),
    "no prompt": ({"items": [{"completion": "a"}]}, "invalid_request", "/items/0/prompt"),
    "a prompt of no message": ({"items": [{**SOUND, "prompt": []}]}, "invalid_request", "/items/0/prompt"),
    "pairs of three": (
        {"items": [{**SOUND, "token_offsets": [[0, 1, 2]]}]},
        "invalid_request",
        "/items/0/token_offsets/0",
    ),
    "a mask of numbers": (
        {"items": [{**SOUND, "completion_mask": [1] * 10}]},
        "invalid_request",
        "/items/0/completion_mask/0",
    ),
    "no text": ({"items": [{"prompt": "?"}]}, "invalid_request", "/items/0/completion"),
    "a number of tokens": ({"items": [{**SOUND, "n_tokens": 10}]}, "unknown_field", "/items/0/n_tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_is_refused_before_the_model_is_asked(case):
    """Each refusal has its code and a pointer, and costs no evaluation."""
    options, code, pointer = REFUSED[case]
    engine = scorer()
    problem = ask({**request_of(SOUND), **options}, resources=with_models(engine))
    assert (problem["code"], problem["errors"][0]["pointer"]) == (code, pointer), problem
    assert engine.batches == []


def test_an_embedding_model_is_no_reward_model():
    """A model of another kind is as unknown as none; the message names those that would do."""
    problem = ask({**request_of(SOUND), "model": "emb"}, resources=with_embedder(FakeEmbedder()))
    assert (problem["status"], problem["code"]) == (404, "unknown_model")
    assert "rm" in problem["detail"]


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_model_without_attention_says_so_before_it_is_asked(dry_run):
    """The credit is named, and nothing is evaluated."""
    engine = fake()
    problem = ask(request_of(SOUND, credit={"type": "attention"}, dry_run=dry_run), resources=with_models(engine))
    assert (problem["code"], problem["errors"][0]["pointer"]) == ("invalid_request", "/credit")
    assert "no attention" in problem["detail"]
    assert engine.batches == []


def test_a_pattern_that_takes_for_ever_is_refused():
    """After two seconds the pattern is at fault, for the whole request."""
    item = item_of("a" * 40 + "b", tokens=False)
    body = request_of(item, item, segmentation={"type": "regex", "pattern": "(?:a|a)+$"})
    problem = ask(body)
    assert (problem["code"], problem["errors"][0]["pointer"]) == ("invalid_request", "/segmentation/pattern")
    assert "takes more than 2 s" in problem["detail"]


LIMITS = {
    "characters": (
        {},
        {"max_span_characters": 500},
        "",
        "the model would read 608 characters, prompts counted with each text; expected at most 500",
    ),
    "evaluations": (
        {"credit": {"type": "shapley"}, "estimator": {"type": "exact"}},
        {"max_evaluations": 15},
        "/items/0/completion",
        "exact shapley of 4 units takes 16 evaluations; expected at most 15, whatever the budget",
    ),
    "budget": (
        {"credit": {"type": "owen"}, "estimator": {"budget": 11}},
        {},
        "/items/0/completion",
        "owen over the balanced tree of 4 units takes 12 evaluations; got a budget of 11, expected at least 12",
    ),
    "units": ({}, {"max_units": 3}, "/items/0/completion", "got 4 units; expected at most 3"),
    "tokens": ({}, {"max_tokens_per_set": 9}, "/items/0/token_offsets", "got 10 tokens; expected 0 to 9"),
    "all tokens": ({}, {"max_token_advantages": 9}, "/items", "got 10 tokens; expected at most 9 per request"),
    "items": ({"items": [SOUND] * 3}, {"max_sets": 2}, "", "got 3 rows; expected at most 2 per request"),
}


@pytest.mark.parametrize("case", LIMITS)
def test_what_costs_too_much_is_refused_with_its_cost(case):
    """Each limit is a setting, and is said beside what was asked; nothing is evaluated."""
    options, settings, pointer, words = LIMITS[case]
    engine = scorer()
    problem = ask({**request_of(SOUND), **options}, resources=with_models(engine, **settings))
    assert problem["status"] == 422
    assert [item["pointer"] for item in problem["errors"]] == [pointer]
    assert words in problem["detail"]
    codes = {"units": "too_many_players", "tokens": "shape_mismatch"}
    assert problem["code"] == codes.get(case, "budget_exceeded")
    assert engine.batches == []


@pytest.mark.parametrize("path", [SCAR, SCAR_SOLVE])
def test_a_key_twice_is_refused(path):
    """In an item as anywhere."""
    body = {SCAR: '{"model": "rm", "items": [{"prompt": "?", "completion": "a", "completion": "b"}]}'}
    body[SCAR_SOLVE] = '{"items": [{"completion": "a", "completion": "b"}]}'

    async def send(service):
        return (await service.post(body[path], path)).json()

    problem = on_service(send, with_models(scorer()))
    assert (problem["code"], problem["errors"][0]["pointer"]) == ("invalid_request", "/items/0/completion")
    assert problem["errors"][0]["detail"] == "the key is repeated; expected it once"


# Time


def test_a_deadline_ends_the_wait_for_the_model():
    """504 where the model takes too long, and the work that has not begun is dropped."""
    gate = Gated()

    async def send(service):
        response = await service.post(request_of(SOUND), SCAR, **{"X-Request-Timeout-Ms": "100"})
        gate.opened.set()
        return response

    response = on_service(send, with_models(fake(score=gate)))
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("path", [SCAR, SCAR_SOLVE])
def test_a_deadline_ends_the_arithmetic(path):
    """A caller that no longer waits gets 504 before many completions are gone through."""
    item = {"completion": " ".join(["sun, rain."] * 200), **({"prompt": "?"} if path == SCAR else {})}
    body = {"items": [item] * 2000, **({"model": "rm"} if path == SCAR else {})}

    async def send(service):
        return await service.post(json.dumps(body), path, **{"X-Request-Timeout-Ms": "50"})

    response = on_service(send, with_models(scorer(), max_span_characters=1 << 40))
    assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")


def test_an_overloaded_model_says_when_to_come_back():
    """503 with Retry-After, by the tokens that wait."""
    gate = threading.Event()
    engine = fake(score=lambda _, text: float(gate.wait(PATIENCE_S)) + len(text), max_queued_tokens=150)
    one = request_of(item_of("sun. fog. wind."), credit={"type": "uniform"})

    async def both(service):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(say, service, one)
            with anyio.fail_after(PATIENCE_S):
                while not engine.status().queued_tokens:  # noqa: ASYNC110 - the engine has no event for it
                    await anyio.sleep(0.001)
            refused = await say(service, request_of(SOUND))
            gate.set()
        return refused

    response = on_service(both, with_models(engine, cache_bytes=0))
    assert (response.status_code, response.json()["code"]) == (503, "overloaded")
    assert int(response.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("credit", ["auto", "attention"])
def test_a_model_that_fails_is_an_error_and_never_a_number(credit):
    """502 without the words of the failure."""

    def broken(*_):
        raise ValueError("a secret")

    attention = broken if credit == "attention" else None
    engine = fake(score=broken, attention=attention)
    problem = ask(request_of(SOUND, credit={"type": credit}), resources=with_models(engine))
    assert (problem["status"], problem["code"]) == (502, "engine_failed")
    assert "secret" not in str(problem)


def test_equal_requests_at_a_time_are_evaluated_once():
    """Who asks for what another request is finding out waits for it; both have the same numbers."""
    gate = Gated()
    body, found = request_of(SOUND), []

    async def both(service):
        async def one():
            found.append(document_of(await say(service, body)))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            await happens(gate.begun)
            tasks.start_soon(one)
            await following(service, 1)
            gate.opened.set()

    on_service(both, with_models(fake(score=gate), cache_min_evaluation_s=0))
    assert found[0]["items"] == found[1]["items"]
    assert sorted(one["usage"]["evaluations"] for one in found) == [0, 16]
    assert set(gate.texts.values()) == {1}
