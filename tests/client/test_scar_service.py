"""Token credit from a service: the same bits as local mode, models, recordings, answers of another shape."""

import asyncio
import json
import pickle

import httpx
import numpy as np
import pytest

from creditd.cli.__main__ import main
from creditd.client import (
    AsyncClient,
    Client,
    Evaluator,
    InvalidRequestError,
    NotFoundError,
    PartialResultError,
    ResponseError,
    ServerError,
)
from creditd.client.exchanges import answer_of, parsed
from creditd.server.app import create_app
from scar_completions import COMPLETIONS, LEDGER, OFFSETS, PROMPTS, assert_returns, assert_same, judge, local, many
from server.model_services import fake, with_models

FORMATS = ["binary", "json"]
GROUPS = ["p", "p", "q"]
MASKS = [[True, False, True, True, True, True, True, True], [True] * 3, []]
EVERYTHING = {
    "token_offsets": OFFSETS,
    "completion_masks": MASKS,
    "groups": GROUPS,
    "ids": ["a", "b", 3],
    "kl": [[-0.125] * 8, [0.25] * 3, []],
    "other_rewards": [0.5, None, 1.0],
    "segmentation": {"type": "token", "max_units": 5},
    "absent": "blank",
    "estimator": {"type": "permutations", "budget": 24, "seed": 5},
    "alpha": 0.75,
    "advantage": {"type": "pooled", "ddof": 0},
    "expect": None,
}
OPTIONS = {
    "plain": {},
    "everything": EVERYTHING,
    "given": {"token_offsets": OFFSETS, "units": [[[0, 4], [4, 8]], [[0, 3]], []], "credit": "prefix"},
    "tree": {
        "token_offsets": OFFSETS,
        "units": [[[0, 1], [1, 4], [4, 8]], [[0, 3]], []],
        "trees": [[[1, 2], [0, 3]], None, None],
        "credit": "owen",
    },
}


def asked(*arguments, method="scar", resources=None, record=None, wire_format="binary", deadline_s=20, **options):
    """What the client makes of the answer of a service with a model."""

    async def call():
        held = with_models(fake(score=judge)) if resources is None else resources
        app = create_app(held.settings, held)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            AsyncClient(
                "http://credit.test", transport=transport, deadline_s=deadline_s, record=record, wire_format=wire_format
            ) as client,
        ):
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(call())


def model(prompts=PROMPTS, completions=COMPLETIONS, **options):
    """Completions judged by the model."""
    return asked(prompts, completions, model="rm", **options)


@pytest.mark.parametrize("wire_format", FORMATS)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_model_a_function_and_local_mode_give_the_same_bits(name, wire_format):
    """The model's own utilities, told coalition by coalition, make every number that the model makes."""
    options = OPTIONS[name]
    here = local(**options)
    assert_returns(here)
    there = asked(PROMPTS, COMPLETIONS, utility=judge, wire_format=wire_format, **options)
    assert_same(there, here)
    by_model = model(wire_format=wire_format, **options)
    assert_same(by_model, here)
    assert (by_model.model, there.model) == ("rm", None)
    assert by_model.usage.evaluations > 0
    assert by_model.usage.tokens_naive >= by_model.usage.tokens_computed > 0


def test_both_formats_say_the_same():
    """A request of one format has the same completions as one of the other."""
    bodies = {}

    def remember(request):
        bodies[request.headers["content-type"]] = request.content
        return httpx.Response(404)

    for wire_format in FORMATS:
        with (
            Client("http://credit.test", transport=httpx.MockTransport(remember), wire_format=wire_format) as client,
            pytest.raises(NotFoundError),
        ):
            client.scar(PROMPTS, COMPLETIONS, model="rm", **EVERYTHING)
    from creditd.wire import codec

    packed, text = sorted(bodies.values(), key=lambda body: body[:1] == b"{")
    listed = json.loads(json.dumps(codec.decode(packed, arrays=True), default=lambda array: array.tolist()))
    assert listed == json.loads(text)
    item = json.loads(text)["items"][0]
    assert (item["token_offsets"], item["completion_mask"]) == (OFFSETS[0], MASKS[0])
    assert "id" not in item
    assert "deterministic" not in json.loads(text)
    assert json.loads(text)["segmentation"] == EVERYTHING["segmentation"]


def test_attention_is_a_models():
    """A model that tells no attention refuses in words; a function has none."""
    with pytest.raises(InvalidRequestError):
        model(credit="attention")


def test_deterministic_is_sent():
    """Who asks for it is read alone, and the numbers are the same."""
    assert_same(model(deterministic=True), model())


@pytest.mark.parametrize("wire_format", FORMATS)
def test_a_text_that_the_model_refuses(wire_format):
    """Too long as a whole is an error of the completion; the others have answers."""
    longest = len("why?") + len(COMPLETIONS[0]) - 1
    resources = with_models(fake(score=judge, max_tokens=longest))
    with pytest.raises(PartialResultError) as caught:
        model(resources=resources, token_offsets=OFFSETS, wire_format=wire_format)
    result = caught.value.result
    (error,) = result.errors
    assert (error.row, error.code) == (0, "context_exceeded")
    assert np.isnan(result.token_rewards[0]).all()
    assert result.token_rewards[1].tobytes() == local(token_offsets=OFFSETS).token_rewards[1].tobytes()
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - made here
    assert copy.result.errors == result.errors
    assert copy.result.ledger.total.tobytes() == result.ledger.total.tobytes()


def test_what_a_service_refuses_has_its_class():
    """No such model is NotFoundError; one that fails is ServerError."""
    with pytest.raises(NotFoundError, match="this service has: rm"):
        asked(PROMPTS, COMPLETIONS, model="another")

    def broken(*_):
        raise ValueError

    with pytest.raises(ServerError, match="the model failed"):
        model(resources=with_models(fake(score=broken)), deadline_s=1.0)


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"prompts": [[{"role": "user", "text": "?"}], "", ""]}, "/items/0/prompt/0/content"),
        ({"groups": ["a", None, "b"]}, "/items/1/group"),
        ({"units": [[[0, 4], [4, 8]], [[0, 3]], []]}, "/items/0/token_offsets"),
        ({"expect": {"group_size": 0}}, "/expect/group_size"),
    ],
)
def test_what_is_wrong_is_said_by_the_service_as_by_local_mode(options, pointer):
    """With the place in the request."""
    with pytest.raises(InvalidRequestError) as caught:
        model(**options)
    assert caught.value.items[0].pointer == pointer
    if "prompts" not in options:
        with pytest.raises(InvalidRequestError) as here:
            local(**options)
        assert here.value.items[0].pointer == pointer


def test_local_mode_says_that_a_service_is_needed(tmp_path):
    """As a service without models would, and the refusal is recorded; a wrong request is wrong before that."""
    with Client("local:", record=tmp_path) as client:
        with pytest.raises(NotFoundError, match="local mode has no models") as caught:
            client.scar(PROMPTS, COMPLETIONS, model="rm")
        with pytest.raises(InvalidRequestError):
            client.scar(PROMPTS, COMPLETIONS, model="rm", alpha=2.0)
    assert (caught.value.status, caught.value.items[0].pointer) == (404, "/model")
    first, second = sorted(tmp_path.glob("*-scar-*.json"))
    assert parsed(first.read_bytes()).error.code == "unknown_model"
    assert parsed(second.read_bytes()).error.code == "invalid_request"


@pytest.mark.parametrize("wire_format", FORMATS)
def test_a_recording_is_asked_again_where_the_model_is(wire_format, tmp_path, capsys):
    """The same body again gives the same answer, and the recorded answer is the one that was given."""
    first = model(record=tmp_path, wire_format=wire_format, **EVERYTHING)
    (file,) = tmp_path.glob("*-scar-*.json")
    exchange = parsed(file.read_bytes())
    assert exchange.operation == "/v1/credit/scar"
    assert_same(answer_of(exchange), first)
    assert_same(asked(exchange, method="repeat"), first)
    assert main(["replay", str(file)]) == 2
    assert "local mode has no models" in capsys.readouterr().err


def test_what_a_service_answered_may_have_failed_rows(tmp_path):
    """They are recorded, and repeated, with their errors."""
    resources = with_models(fake(score=judge, max_tokens=20))
    first = model(record=tmp_path, resources=resources, on_item_error="return")
    (file,) = tmp_path.glob("*.json")
    assert [error.row for error in first.errors] == [0]
    assert_same(answer_of(parsed(file.read_bytes())), first)


def test_a_conversation_has_one_identity():
    """Each of its requests has the same id, and says all that is known; v(∅) is told to all of a prompt."""
    seen = []
    held = with_models()
    app = create_app(held.settings, held)

    class Watching(httpx.ASGITransport):
        async def handle_async_request(self, request):
            seen.append((request.headers["x-request-id"], json.loads(await request.aread())))
            return await super().handle_async_request(request)

    async def call():
        async with (
            app.router.lifespan_context(app),
            AsyncClient("http://credit.test", transport=Watching(app), wire_format="json") as client,
        ):
            return await client.scar(PROMPTS, COMPLETIONS, utility=Evaluator(many, batched=True), absent="blank")

    result = asyncio.run(call())
    assert_same(result, local(absent="blank"))
    assert len({request_id for request_id, _ in seen}) == 1
    first, *_, last = [body["items"] for _, body in seen]
    assert all(item["coalitions"] == [] and "utility_empty" not in item for item in first)
    assert [item["prompt_id"] for item in first] == [0, 0, 2]
    assert all(item["utility_empty"] == judge("why?", " ") for item in last)
    assert [len(item["coalitions"]) for item in last] == [7, 3, 0]
    assert last[2]["utility_grand"] == judge("who?", "")
    assert all("prompt" not in item for item in last)


def damaged(change, path):
    """A service whose answers are changed on their way."""
    held = with_models(fake(score=judge))
    app = create_app(held.settings, held)

    class Damaging(httpx.ASGITransport):
        async def handle_async_request(self, request):
            response = await super().handle_async_request(request)
            answer = json.loads(await response.aread())
            change(answer)
            return httpx.Response(200, content=json.dumps(answer))

    async def call():
        async with (
            app.router.lifespan_context(app),
            AsyncClient("http://credit.test", transport=Damaging(app), wire_format="json") as client,
        ):
            how = {"model": "rm"} if path == "scar" else {"utility": judge}
            return await client.scar(PROMPTS, COMPLETIONS, token_offsets=OFFSETS, **how)

    return asyncio.run(call())


@pytest.mark.parametrize("path", ["scar", "solve"])
@pytest.mark.parametrize(
    "change",
    [
        lambda answer: answer.pop("items"),
        lambda answer: answer["items"].pop(),
        lambda answer: answer["items"][0].update(status="magic"),
        lambda answer: answer["items"][0].update(units=[[0.5, 1]]),
        lambda answer: answer["items"][0].update(units=[[0, 1]]),
        lambda answer: answer["items"][0].update(unit_characters=[]),
        lambda answer: answer["items"][0].update(token_rewards=[1.0], status="ok", ledger={}),
        lambda answer: answer["items"][0].update(unit_values=[1.0], status="ok"),
        lambda answer: answer["items"][0].update(ledger={"kl": 0.0}, status="ok"),
        lambda answer: answer.update(usage=None),
    ],
)
def test_an_answer_of_another_shape_is_a_response_error(change, path):
    """At whatever place, of either route."""
    with pytest.raises(ResponseError, match="not in the schema"):
        damaged(change, path)


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: answer.update(done="yes"),
        lambda answer: answer.update(done=not answer["done"]),
        lambda answer: answer["items"][0].update(next=[[3]]),
        lambda answer: answer["items"][0].update(next=[["x"]]),
        lambda answer: [item.update(next=[], needs_empty=False, needs_grand=False) for item in answer["items"]],
    ],
)
def test_a_question_of_another_shape_is_one_too(change):
    """What is to be evaluated names units that there are, as long as something is open."""
    with pytest.raises(ResponseError, match="not in the schema"):
        damaged(change, "solve")


def test_fields_of_a_newer_service_are_passed_over():
    """What this client does not know breaks nothing; a flag that it does not know has its name."""

    def newer(answer):
        answer["joules"] = 3
        answer["usage"]["joules"] = 3
        for item in answer["items"]:
            item["novelty"] = 1
            item["flags"].append("shiny")
            item["ledger"]["tax"] = 0.0

    result = damaged(newer, "scar")
    assert result.flags[0] == ("shiny",)
    assert result.has_flag("shiny").all()
    assert all(getattr(result.ledger, name).shape == (3,) for name in LEDGER)
