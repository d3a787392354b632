"""`POST /classify`: vLLM's body and answer, for verl and for other services of creditd."""

import time

import numpy as np
import pytest

from creditd.engines.errors import EngineFailedError
from creditd.engines.model_spec import ModelSpec, RemoteChoice
from creditd.engines.protocol import VariantTexts
from creditd.engines.remote import RemoteEngine
from creditd.wire.served_rewards import ClassifyProblem
from reward_service import CURSE, MAX_TOKENS, MODEL, reward_service, scored
from server.model_services import fake, with_models
from server.reward_calls import CLASSIFY, asked
from server.running import on_service
from server.test_errors import problem_of

MESSAGES = [{"role": "user", "content": "weather?"}, {"role": "assistant", "content": "sun rain"}]
PATIENCE_S = 60.0
KEY = "a-key-of-the-service"


def probs(response):
    """The numbers of an answer."""
    assert response.status_code == 200, response.text
    return [row["probs"] for row in response.json()["data"]]


def test_the_answer_has_the_shape_of_vllm():
    """One row per text, one number per row; the names and types that vLLM 0.33.0 gives."""
    document = asked({"model": "rm", "input": ["sun", "snow"], "use_activation": False}, CLASSIFY).json()
    assert document["id"].startswith("classify-")
    assert abs(document.pop("created") - time.time()) < PATIENCE_S
    assert document | {"id": ""} == {
        "id": "",
        "object": "list",
        "model": "rm",
        "data": [
            {"index": 0, "label": None, "probs": [1.0], "num_classes": 1},
            {"index": 1, "label": None, "probs": [2.0], "num_classes": 1},
        ],
        "usage": {"prompt_tokens": 7, "total_tokens": 7, "completion_tokens": 0, "prompt_tokens_details": None},
    }


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"input": "sun"}, [[1.0]]),
        ({"input": []}, []),
        ({"model": None, "input": ["sun"], "user": "me", "priority": 3}, [[1.0]]),
        ({"model": "", "input": ["sun"], "activation": False, "softmax": False}, [[1.0]]),
        ({"messages": MESSAGES, "add_special_tokens": False, "add_generation_prompt": False}, [[1.25]]),
        ({"input": ["sun"], "truncate_prompt_tokens": None, "chat_template": None, "messages": None}, [[1.0]]),
    ],
)
def test_what_may_be_asked(body, expected):
    """One text, several, none, or a conversation; what does not change the number is not looked at."""
    assert probs(asked(body, CLASSIFY)) == expected


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({}, "invalid_request", ""),
        ({"input": "a", "messages": MESSAGES}, "invalid_request", ""),
        ({"messages": [MESSAGES[1], MESSAGES[0]]}, "invalid_request", ""),
        ({"messages": MESSAGES, "add_special_tokens": True}, "invalid_request", ""),
        ({"messages": MESSAGES[:1]}, "invalid_request", "/messages"),
        ({"messages": [{"role": "user"}, MESSAGES[1]]}, "invalid_request", "/messages/0/content"),
        ({"input": [1, 2, 3]}, "invalid_request", "/input/0"),
        ({"input": "a", "model": 7}, "invalid_request", "/model"),
        ({"input": "a", "use_activation": True}, "invalid_request", "/use_activation"),
        ({"input": "a", "activation": True}, "invalid_request", "/activation"),
        ({"input": "a", "softmax": True}, "invalid_request", "/softmax"),
        ({"input": "a", "softmax": 0}, "invalid_request", "/softmax"),
        ({"input": "a", "softmax": 0.0}, "invalid_request", "/softmax"),
        ({"input": "a", "truncate_prompt_tokens": 9}, "invalid_request", "/truncate_prompt_tokens"),
        ({"messages": MESSAGES, "chat_template": "{{ messages }}"}, "invalid_request", "/chat_template"),
        ({"messages": MESSAGES, "add_generation_prompt": True}, "invalid_request", "/add_generation_prompt"),
    ],
)
def test_what_is_refused(body, code, pointer):
    """Wrong types, token ids, and every choice that would change the number and cannot be followed."""
    document = problem_of(asked(body, CLASSIFY), code)
    assert [item["pointer"] for item in document["errors"]] == [pointer]


@pytest.mark.parametrize("adds", [None, True, False])
def test_special_tokens_are_added_unless_the_caller_says_otherwise(adds):
    """As vLLM does."""
    engine, seen = fake(), []
    prepared = engine.prepared
    engine.prepared = lambda texts, **options: (seen.extend(texts), prepared(texts, **options))[1]
    probs(asked({"input": "sun", "add_special_tokens": adds}, CLASSIFY, engine))
    assert [one.adds_special_tokens for one in seen] == [adds is not False]


@pytest.mark.parametrize(
    ("text", "code", "words", "param"),
    [
        ("curse", "non_finite_utility", "Out of range float values", None),
        ("sun " * 9, "context_exceeded", "tokens", "input_tokens"),
    ],
)
def test_a_text_without_a_reward_fails_the_request_in_both_words(text, code, words, param):
    """A problem that names the text, and the error that a client of vLLM reads."""
    response = asked({"input": ["sun", text]}, CLASSIFY, fake(max_tokens=20))
    document = problem_of(response, code, ClassifyProblem)
    assert [item["pointer"] for item in document["errors"]] == ["/input/1"]
    assert words in document["error"]["message"]
    assert (document["error"]["param"], document["error"]["code"]) == (param, 422)


def test_a_model_that_is_not_there():
    """404 in both words."""
    document = problem_of(asked({"model": "zz", "input": "a"}, CLASSIFY), "unknown_model", ClassifyProblem)
    assert document["error"]["type"] == "NotFoundError"
    assert document["errors"][0]["pointer"] == "/model"


def test_models_are_listed_for_clients_of_vllm():
    """`GET /v1/models` has the cards that they look for, of reward models alone."""

    async def ask(service):
        return await service.client.get("/v1/models")

    document = on_service(ask, with_models(fake("a", max_tokens=9), fake("org/b"))).json()
    assert document["object"] == "list"
    cards = [(card["id"], card["object"], card["max_model_len"]) for card in document["data"]]
    assert cards == [("a", "model", 9), ("org/b", "model", None)]


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service in a process of its own."""
    with reward_service(tmp_path_factory.mktemp("served"), api_keys=[KEY]) as url:
        yield url


@pytest.fixture
def engine_of():
    """Remote engines, closed behind the test."""
    engines = []

    def made(url, **options):
        options = {"model": MODEL, "key": KEY, **options}
        engines.append(RemoteEngine(ModelSpec("remote", remote=RemoteChoice(url, **options))))
        return engines[-1]

    yield made
    for engine in engines:
        engine.close()


def answer_of(engine, *texts):
    """What an engine says of texts."""
    prepared = engine.prepared(texts)
    return engine.submit(prepared, time.monotonic() + PATIENCE_S).result(PATIENCE_S)


def completions(prompt, *texts, **options):
    """Completions of a prompt."""
    return VariantTexts(prompt, texts, np.eye(len(texts), dtype=np.bool_), **options)


def expected(*asked_of):
    """What the model of the service says of them."""
    return [scored(one.prompt, text) for one in asked_of for text in one.units]


@pytest.mark.slow
def test_a_remote_engine_finds_the_model_of_another_service(service, engine_of):
    """The check at start is passed, and the longest text is known then."""
    engine = engine_of(service)
    assert engine.check() is None
    assert engine.status().max_tokens == MAX_TOKENS


@pytest.mark.slow
@pytest.mark.parametrize("texts_per_request", [1, 3, 64])
def test_rewards_are_those_of_the_other_service(service, engine_of, texts_per_request):
    """To the last bit, of strings and of conversations, in requests of any number of texts."""
    engine = engine_of(service, texts_per_request=texts_per_request)
    of_text = completions("why? ", "because", "I know not", "", "é" * 9)
    of_messages = completions([{"role": "user", "content": "why?"}], "because", "so")
    found = answer_of(engine, of_text, of_messages)
    assert found.rewards.tolist() == expected(of_text, of_messages)
    assert not found.failures
    written = completions("<s>why? ", "because</s>", adds_special_tokens=False)
    assert answer_of(engine, written).rewards.tolist() == expected(written)


@pytest.mark.slow
def test_a_text_without_a_reward_costs_no_other_text_its_own(service, engine_of):
    """A remote engine that asks about many texts at once finds those that have none, and why."""
    texts = completions("", "one", CURSE, "two", "x" * (MAX_TOKENS + 1), "three")
    found = answer_of(engine_of(service), texts)
    assert {place: failure.code for place, failure in found.failures.items()} == {
        1: "non_finite_utility",
        3: "context_exceeded",
    }
    fitting = [0, 2, 4]
    assert found.rewards[fitting].tolist() == [expected(texts)[place] for place in fitting]
    assert np.isnan(found.rewards[[1, 3]]).all()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"key": "wrong"}, {"model": "org/other"}])
def test_what_is_wrong_with_a_registration_is_said(service, engine_of, options):
    """Another key, another model: an error."""
    engine = engine_of(service, **options)
    with pytest.raises(EngineFailedError, match="remote"):
        answer_of(engine, completions("why? ", "because"))
