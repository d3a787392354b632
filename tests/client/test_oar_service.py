"""Reshaped advantages from a service: the same bits as local mode, policies and their weights, recordings, damage."""

import asyncio
import json
import pickle

import httpx
import numpy as np
import pytest
from pydantic_core import to_json

from creditd.client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    OarResult,
    PartialResultError,
    ResponseError,
    ServerError,
    WeightVersionMismatchError,
    WeightVersionUnknownError,
)
from creditd.client.exchanges import answer_of, parsed
from creditd.server.app import create_app
from creditd.wire import codec
from oar_completions import WORKED, assert_same, local
from server.oar_calls import CURSE, DOOM, policy, with_policies

FORMATS = ["binary", "json"]
PROMPTS = [[1, 2], [1, 2]]
COMPLETIONS = [[10, 11, 12, 13, 20], [9, 8, 21]]
ANSWERS = [[4, 5], [2, 3]]
RANGES = {"answers": ANSWERS, "advantages": [1.0, -0.5]}
GIVEN = {
    "plain": {"sensitivities": [WORKED, [1.0, None]], "reasoning": [None, [0, 1]], "advantages": [1.0, -2.0]},
    "everything": {
        "sensitivities": [[0.1 + 0.2, 5e-324, 3.0, None], [2.0, -1.0, 0.25]],
        "completion_masks": [[True, True, True, False], [True] * 3],
        "completions": ["a b #### 7", "c #### 8"],
        "token_offsets": [[[0, 1], [1, 4], [4, 8], [8, 10]], [[0, 2], [2, 6], [6, 8]]],
        "rewards": [0.1, 0.3],
        "groups": ["p", "p"],
        "ids": ["a", 7],
        "parser": "hashes",
        "reshape": {"quantile": 0.4, "beta": 0.5, "floor": 0.2, "preserve_mass": False},
        "advantage": {"type": "grpo", "ddof": 0},
        "expect": {"group_size": 2},
    },
}


def asked(
    *arguments,
    method="oar",
    resources=None,
    record=None,
    wire_format="binary",
    deadline_s=20,
    transport=None,
    **options,
):
    """What the client makes of the answer of a service with a policy."""

    async def call():
        held = resources or with_policies()
        app = create_app(held.settings, held)
        async with (
            app.router.lifespan_context(app),
            AsyncClient(
                "http://credit.test",
                transport=(transport or httpx.ASGITransport)(app),
                deadline_s=deadline_s,
                record=record,
                wire_format=wire_format,
            ) as client,
        ):
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(call())


def measured(prompts=PROMPTS, completions=COMPLETIONS, **options):
    """Completions whose sensitivities the policy says: its tokens modulo 7."""
    return asked(prompts, completions, **{"model": "policy"} | RANGES | options)


@pytest.mark.parametrize("wire_format", FORMATS)
@pytest.mark.parametrize("name", GIVEN)
def test_a_service_and_local_mode_give_the_same_bits(name, wire_format):
    """Of sensitivities that are given, whatever the format."""
    assert_same(asked(wire_format=wire_format, **GIVEN[name]), local(**GIVEN[name]))


@pytest.mark.parametrize("wire_format", FORMATS)
@pytest.mark.parametrize("sensitivity", [None, "perturbation", {"type": "gradient", "noise_samples": 3}])
def test_a_policy_is_asked(wire_format, sensitivity):
    """Its numbers are reshaped as the same numbers that are given; the answer names policy and version."""
    found = measured(wire_format=wire_format, sensitivity=sensitivity, ids=["x", "y"])
    rows = [[float(token % 7) for token in row] for row in COMPLETIONS]
    here = local(sensitivities=rows, **RANGES)
    for name in ("token_advantages", "weights", "sensitivities"):
        assert getattr(found, name).values.tobytes() == getattr(here, name).values.tobytes(), name
    assert (found.model, found.weight_version, found.ids) == ("policy", "v0", ("x", "y"))
    assert (found.reasoning, found.answers) == (here.reasoning, here.answers)
    assert found.usage.evaluations > 0
    assert np.isnan(found.spread).all() == (not isinstance(sensitivity, dict))
    assert repr(found).startswith("OarResult(2 rows, 0 errors")


def test_both_formats_say_the_same():
    """A request of one format has the same completions as one of the other; choices travel as they were given."""
    bodies = {}

    def remember(request):
        bodies[request.headers["content-type"]] = request.content
        return httpx.Response(404)

    for wire_format in FORMATS:
        with (
            Client("http://credit.test", transport=httpx.MockTransport(remember), wire_format=wire_format) as client,
            pytest.raises(NotFoundError),
        ):
            client.oar(PROMPTS, COMPLETIONS, model="policy", weight_version="v1", deterministic=True, **RANGES)
        with (
            Client("http://credit.test", transport=httpx.MockTransport(remember), wire_format=wire_format) as client,
            pytest.raises(NotFoundError),
        ):
            client.oar(**GIVEN["everything"])
    packed, text = sorted(bodies.values(), key=lambda body: body[:1] == b"{")
    assert json.loads(json.dumps(codec.decode(packed, arrays=True), default=plain)) == json.loads(text)
    item = json.loads(text)["items"][0]
    assert item["sensitivities"] == [0.1 + 0.2, 5e-324, 3.0, None]
    assert "id" not in item


def plain(array):
    """An array as a list, with None where it has nothing."""
    return json.loads(to_json(array.tolist(), inf_nan_mode="null"))


def test_weights_are_pinned():
    """A version that the policy never had is one error, and one that does not come in time another."""
    with pytest.raises(WeightVersionUnknownError) as caught:
        measured(weight_version="v9")
    assert (caught.value.status, caught.value.code) == (409, "weight_version_unknown")
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), WeightVersionUnknownError)  # noqa: S301 - made here
    engine = policy()
    engine.announce_weights("v1")
    with pytest.raises(WeightVersionMismatchError):
        measured(resources=with_policies(engine), weight_version="v1", if_not_ready="fail")
    engine = policy()
    engine.announce_weights("v1")
    with pytest.raises((WeightVersionMismatchError, DeadlineExceededError)):  # whose clock is faster
        measured(resources=with_policies(engine), weight_version="v1", deadline_s=1.0)
    assert measured(weight_version="v0").weight_version == "v0"


@pytest.mark.parametrize("wire_format", FORMATS)
def test_a_completion_that_the_policy_refuses(wire_format):
    """Its rows are NaN, as long as its tokens; the others have answers; the error travels whole."""
    completions = [COMPLETIONS[0], [9, CURSE, 21]]
    with pytest.raises(PartialResultError) as caught:
        measured(completions=completions, wire_format=wire_format)
    result = caught.value.result
    assert isinstance(result, OarResult)
    assert [(error.row, error.code) for error in result.errors] == [(1, "non_finite_utility")]
    assert np.isnan(result.token_advantages[1]).tolist() == [True] * 3
    assert result.token_advantages[0].tobytes() == measured().token_advantages[0].tobytes()
    assert (result.n_reweighted.tolist(), result.answers[1], result.flags[1]) == ([4, 0], None, ())
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - made here
    assert copy.result.weights.values.tobytes() == result.weights.values.tobytes()


def test_what_a_service_refuses_has_its_class():
    """No such policy is NotFoundError; one that fails is ServerError; a wrong choice says where it stands."""
    with pytest.raises(NotFoundError):
        measured(model="another")
    with pytest.raises(ServerError):
        measured(completions=[COMPLETIONS[0], [9, DOOM, 21]], deadline_s=1.0)
    with pytest.raises(InvalidRequestError) as caught:
        measured(resources=with_policies(policy(pad_id=None)), sensitivity="perturbation")
    assert caught.value.items[0].pointer == "/sensitivity/token_id"


@pytest.mark.parametrize("wire_format", FORMATS)
def test_a_recording_is_asked_again_where_the_policy_is(wire_format, tmp_path):
    """The same body again gives the same answer, and the recorded answer is the one that was given."""
    first = measured(record=tmp_path, wire_format=wire_format)
    (file,) = tmp_path.glob("*-oar-*.json")
    exchange = parsed(file.read_bytes())
    assert exchange.operation == "/v1/credit/oar"
    assert_same(answer_of(exchange), first)
    assert_same(asked(exchange, method="repeat"), first)


def damaged(change):
    """A service whose answers are changed on their way."""

    class Damaging(httpx.ASGITransport):
        async def handle_async_request(self, request):
            response = await super().handle_async_request(request)
            answer = json.loads(await response.aread())
            change(answer)
            return httpx.Response(200, content=json.dumps(answer))

    return measured(transport=Damaging, wire_format="json")


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: answer.pop("items"),
        lambda answer: answer["items"].pop(),
        lambda answer: answer["items"][0].update(status="magic"),
        lambda answer: answer["items"][0].update(token_advantages=[1.0]),
        lambda answer: answer["items"][0].update(weights=None),
        lambda answer: answer["items"][0].update(sensitivities=[[1.0]] * 5),
        lambda answer: answer["items"][0].update(reasoning=[1]),
        lambda answer: answer["items"][0].update(answer=7),
        lambda answer: answer["items"][0].pop("n_reweighted"),
        lambda answer: answer["items"][0].update(spread="wide"),
        lambda answer: answer.update(usage=None),
    ],
)
def test_an_answer_of_another_shape_is_a_response_error(change):
    """At whatever place."""
    with pytest.raises(ResponseError, match="not in the schema"):
        damaged(change)


def test_fields_of_a_newer_service_are_passed_over():
    """What this client does not know breaks nothing; a flag that it does not know has its name."""

    def newer(answer):
        answer["joules"] = 3
        for item in answer["items"]:
            item["novelty"] = 1
            item["flags"].append("shiny")

    result = damaged(newer)
    assert result.flags[0] == ("shiny",)
    assert result.has_flag("shiny").all()
