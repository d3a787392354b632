"""Requests whose rewards, features or utilities come from a model of the service."""

import asyncio
import json

import httpx
import numpy as np
import pytest

from creditd.cli.__main__ import main
from creditd.client import AsyncClient, Client, InvalidRequestError, NotFoundError, PartialResultError, ServerError
from creditd.client.exchanges import parsed
from creditd.server.app import create_app
from server.model_services import WORDS, fake, with_models

TEXTS = [["sun", "rain", "wind"], ["snow", "fog"], []]
PROMPTS = ["weather?", [{"role": "user", "content": "weather?"}], "weather?"]
KNOWN = [[WORDS[text] for text in row] for row in TEXTS]
GROUPS = ["p", "p", "p"]
ASKED = {"texts": TEXTS, "prompts": PROMPTS, "rewards": "rm", "groups": GROUPS}
MAPPINGS = [
    {"group": "p", "prompt": prompt, "candidates": [{"text": text} for text in row]}
    for prompt, row in zip(PROMPTS, TEXTS, strict=True)
]
FORMATS = ["binary", "json"]


def asked(*arguments, method="shapley", resources=None, record=None, wire_format="binary", deadline_s=20, **options):
    """What the client makes of the answer of a service with a model."""

    async def call():
        held = with_models() if resources is None else resources
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


@pytest.mark.parametrize("wire_format", FORMATS)
@pytest.mark.parametrize("rewards", ["rm", {"type": "model", "model": "rm"}])
def test_a_model_scores_texts_as_if_the_caller_had_sent_its_rewards(rewards, wire_format):
    """Credits, advantages and flags are those of the same rewards; the result names the model and its cost."""
    found = asked(**ASKED | {"rewards": rewards}, wire_format=wire_format)
    expected = asked(KNOWN, groups=GROUPS)
    np.testing.assert_array_equal(found.credits.values, expected.credits.values)
    np.testing.assert_array_equal(found.advantages.values, expected.advantages.values)
    assert found.flags == expected.flags
    assert (found.model, found.exact, found.standard_errors, found.usage.evaluations) == ("rm", True, None, 5)
    assert (expected.model, expected.usage.evaluations) == (None, 0)
    assert found.usage.tokens_naive >= found.usage.tokens_computed > 0
    assert found.usage.tokens_spliced >= 0


@pytest.mark.parametrize("wire_format", FORMATS)
def test_mappings_carry_prompts_and_texts(wire_format):
    """The same sets as mappings, and as flat texts beside a column that tells the sizes, are the same request."""
    expected = asked(**ASKED)
    flat = [text for row in TEXTS for text in row]
    for arguments, options in (
        ((MAPPINGS,), {"rewards": "rm"}),
        ((), ASKED | {"texts": flat, "unions": [[0, 1, 2], [0, 1], []]}),
    ):
        found = asked(*arguments, wire_format=wire_format, **options)
        np.testing.assert_array_equal(found.credits.values, expected.credits.values)
        assert found.flags == expected.flags


@pytest.mark.parametrize("wire_format", FORMATS)
@pytest.mark.parametrize("estimator", ["exact", {"type": "permutations", "budget": 12}])
def test_a_model_judges_coalitions(estimator, wire_format):
    """A utility from a model has standard errors where it was estimated, and says how it was found."""
    texts = [["sun", "rain", "wind", "snow"], ["snow", "fog"]]
    options = {"texts": texts, "prompts": ["weather?"] * 2, "estimator": estimator}
    utility = {"type": "model", "model": "rm"}
    found = asked(utility=utility, wire_format=wire_format, **options)
    assert found.model == "rm"
    assert found.usage.evaluations >= 8
    np.testing.assert_allclose(found.credits[1], [WORDS["snow"], WORDS["fog"]], atol=1e-9)
    assert found.exact is (estimator == "exact")
    if found.exact:
        np.testing.assert_allclose(found.credits[0], [1.375, -0.125, 0.25, 2.0], atol=1e-9)
        assert found.standard_errors is None
    else:
        assert found.standard_errors.row_splits.tolist() == [0, 4, 6]
        assert np.isfinite(found.standard_errors[0]).all()
    mappings = [{"prompt": "weather?", "candidates": [{"text": text} for text in row]} for row in texts]
    again = asked(mappings, utility=utility, estimator=estimator)
    np.testing.assert_array_equal(again.credits.values, found.credits.values)


def test_a_text_that_is_too_long_is_named_by_set_and_candidate():
    """An item error of the model is one of the set; the others have their results."""
    resources = with_models(fake(max_tokens=20))
    with pytest.raises(PartialResultError) as caught:
        asked(texts=[["sun"], ["sun", "x" * 30]], prompts=["weather?"] * 2, rewards="rm", resources=resources)
    (error,) = caught.value.result.errors
    assert (error.code, error.row, error.candidate) == ("context_exceeded", 1, 1)
    assert caught.value.result.credits[0].tolist() == [1.0]


def test_what_a_service_refuses_has_its_class():
    """No such model is NotFoundError, which names those that there are; a model that fails is ServerError."""
    with pytest.raises(NotFoundError, match="this service has: rm") as missing:
        asked(**ASKED | {"rewards": "another"})
    assert (missing.value.code, missing.value.retryable) == ("unknown_model", False)

    def broken(*_):
        raise ValueError

    with pytest.raises(ServerError, match="the model failed") as failed:
        asked(**ASKED, resources=with_models(fake(score=broken)), deadline_s=0.05)
    assert (failed.value.code, failed.value.retryable) == ("engine_failed", True)


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        ({"texts": ["sun", "rain"]}, "/texts"),
        ({"texts": None}, "/texts"),
        ({"prompts": "weather?"}, "/prompts"),
        ({"prompts": None}, "/columns/prompts"),
        ({"prompts": ["weather?"]}, "/columns/prompts"),
        ({"prompts": [[{"role": "user", "text": "?"}], "", ""]}, "/columns/prompts/0/0/content"),
        ({"utility": {"type": "model", "model": "rm"}}, "/rewards"),
        ({"utility": lambda candidates: float(len(candidates))}, "/rewards"),
        ({"sets": KNOWN}, "/columns/rewards"),
        ({"sets": [{"prompt": "?", "candidates": [{"reward": 1.0, "text": "x"}]}]}, "/groups"),
    ],
)
def test_what_does_not_go_together_is_said_where(options, pointer):
    """By the client where it cannot make a request of it, else by the service."""
    with pytest.raises(InvalidRequestError) as caught:
        asked(**ASKED | options)
    assert caught.value.items[0].pointer == pointer


@pytest.mark.parametrize(
    ("mapping", "pointer"),
    [
        ({"candidates": [{"text": "x"}]}, "/sets/0/prompt"),
        ({"prompt": "?", "candidates": [{}]}, "/sets/0/candidates/0/text"),
    ],
)
def test_mappings_that_lack_what_the_model_reads_are_refused(mapping, pointer):
    """Before anything is sent."""
    with Client("http://127.0.0.1:9") as client, pytest.raises(InvalidRequestError) as caught:
        client.shapley([mapping], rewards="rm")
    assert caught.value.items[0].pointer == pointer


@pytest.mark.parametrize(
    ("options", "pointer"),
    [
        (ASKED, "/rewards/model"),
        ({"texts": TEXTS, "prompts": PROMPTS, "utility": {"type": "model", "model": "rm"}}, "/utility/model"),
        ({"texts": TEXTS, "features": "em", "utility": "facility_location"}, "/features/model"),
    ],
)
def test_local_mode_says_that_a_service_is_needed(options, pointer, tmp_path):
    """As a service that has no models would, and the refusal is recorded like any other."""
    with (
        Client("local:", record=tmp_path) as client,
        pytest.raises(NotFoundError, match="local mode has no models; expected the address of a service") as caught,
    ):
        client.shapley(**options)
    assert (caught.value.status, caught.value.code) == (404, "unknown_model")
    assert caught.value.items[0].pointer == pointer
    (file,) = tmp_path.glob("*.json")
    assert parsed(file.read_bytes()).error.code == "unknown_model"


def test_a_recording_is_asked_again_where_the_model_is(tmp_path, capsys):
    """The same body again gives the same answer; without a service, replay says that it cannot."""
    first = asked(**ASKED, record=tmp_path)
    (file,) = tmp_path.glob("*.json")
    again = asked(parsed(file.read_bytes()), method="repeat")
    np.testing.assert_array_equal(again.credits.values, first.credits.values)
    assert json.loads(parsed(file.read_bytes()).request)["columns"]["texts"] == [text for row in TEXTS for text in row]
    assert main(["replay", str(file)]) == 2
    assert "local mode has no models" in capsys.readouterr().err


def test_what_costs_nothing_is_not_sent_and_deterministic_is():
    """A request without models is what it was for older services."""
    bodies = []

    def remember(request):
        bodies.append(json.loads(request.content))
        return httpx.Response(404)

    with Client("http://credit.test", transport=httpx.MockTransport(remember), wire_format="json") as client:
        for options in ({"sets": KNOWN}, ASKED | {"deterministic": True}):
            with pytest.raises(NotFoundError):
                client.shapley(**options)
    assert not {"rewards", "features", "deterministic"} & bodies[0].keys()
    assert bodies[1]["rewards"] == {"type": "model", "model": "rm"}
    assert bodies[1]["deterministic"] is True


def test_features_from_a_model_take_the_place_of_columns():
    """The utility's scores are not missed where an embedding model tells them."""
    bodies = []

    def remember(request):
        bodies.append(json.loads(request.content))
        return httpx.Response(404)

    with Client("http://credit.test", transport=httpx.MockTransport(remember), wire_format="json") as client:
        for options in ({"texts": TEXTS}, {"sets": MAPPINGS}):
            with pytest.raises(NotFoundError):
                client.shapley(**options, features="em", utility="facility_location")
    for body in bodies:
        assert body["features"] == {"type": "embedding", "model": "em"}
        assert body["columns"]["row_splits"] == [0, 3, 5, 5]
        assert {"scores", "prompts", "rewards"}.isdisjoint(body["columns"])


def test_models_are_listed():
    """As the service names them; local mode has none."""
    (model,) = asked(method="models", resources=with_models(fake(revision="r1", max_tokens=100)))
    assert (model.id, model.kind, model.revision, model.max_tokens, model.alive) == ("rm", "reward", "r1", 100, True)
    with Client("local:") as client:
        assert client.models() == []


def test_fields_of_a_newer_service_are_passed_over():
    """What this client does not know of an answer about models breaks nothing."""
    entry = {
        "id": "rm", "kind": "reward", "backend": "local", "revision": "", "weight_version": None, "dtype": "float32",
        "device": "cpu", "attention": None, "reads_tries": True, "max_tokens": 9, "weight_bytes": 1, "working_bytes": 1,
        "queued_tokens": 0, "max_queued_tokens": 1, "batches": 0, "silent_s": 0.0, "alive": True, "colour": "red",
    }  # fmt: skip
    usage = {
        "evaluations": 2, "from_cache": 0, "tokens_computed": 3, "tokens_naive": 4, "engine_s": 0.5, "queue_s": 0.5,
        "joules": 7,
    }  # fmt: skip
    row, number = {"values": [0.5, 0.25], "row_splits": [0, 2]}, [0.75]
    columns = dict.fromkeys(("credits", "advantages", "standard_errors", "novelties"), row)
    columns |= dict.fromkeys(("set_advantages", "utility_empty", "utility_grand", "credit_sum", "gap"), number)
    answers = {
        "/v1/models": {"models": [entry], "more": 1},
        "/v1/credit/shapley": {
            "request_id": "r", "service": {"version": "9", "methods": 9, "name": "x"}, "usage": usage, "model": "rm",
            "columns": columns | {"status": [0], "flags": [0], "flag_names": [], "exact": False, "method": "several"},
            "errors": [],
        },
    }  # fmt: skip
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=answers[request.url.path]))
    with Client("http://credit.test", transport=transport) as client:
        assert [model.id for model in client.models()] == ["rm"]
        found = client.shapley(texts=[["a", "b"]], prompts=["?"], utility={"type": "model", "model": "rm"})
    assert found.standard_errors[0].tolist() == [0.5, 0.25]
    assert (found.model, found.exact, found.usage.tokens_spliced) == ("rm", False, 0)
