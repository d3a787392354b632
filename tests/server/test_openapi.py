import json
from pathlib import Path

import jsonschema
import pytest

from creditd.cli.__main__ import main
from creditd.server.app import create_app
from creditd.server.settings import Settings
from creditd.wire.catalogue import CATALOGUE
from creditd.wire.compose import ComposeRequest
from creditd.wire.errors import ErrorCode
from creditd.wire.groups import GroupRequest
from creditd.wire.oar import OarRequest
from creditd.wire.scar import ScarRequest, ScarSolveRequest
from creditd.wire.served_rewards import ClassifyRequest, GetRewardRequest
from creditd.wire.solve import SolveRequest
from creditd.wire.v1 import ShapleyRequest
from creditd.wire.weights import WeightsRequest, WeightsShard
from server.running import COMPOSE, GROUP, OAR, SCAR, SCAR_SOLVE, SHAPLEY, get, post
from wire.forms import FORMS, in_form, sets_with_everything

SOLVE = "/v1/credit/shapley/solve"
WEIGHTS = "/v1/models/{id}/weights"
REWARDS = {
    "/get_reward": GetRewardRequest,
    "/v1/models/{id}/get_reward": GetRewardRequest,
    "/classify": ClassifyRequest,
}
POSTS = {
    SHAPLEY: ShapleyRequest,
    GROUP: GroupRequest,
    SOLVE: SolveRequest,
    SCAR: ScarRequest,
    SCAR_SOLVE: ScarSolveRequest,
    OAR: OarRequest,
    COMPOSE: ComposeRequest,
    WEIGHTS: WeightsRequest,
}
COMMITTED = Path(__file__).parents[2] / "deploy" / "openapi.json"
PATHS = {*POSTS, *REWARDS, "/v1/info", "/v1/models", "/v1/utilities", "/livez", "/readyz", "/metrics"}


@pytest.fixture(scope="module")
def document():
    """The document that the service publishes."""
    return get("/openapi.json").json()


def references(value):
    """Every $ref in a document."""
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_the_document_names_every_route(document):
    """All routes are there, with an id each, and the document says which version of OpenAPI it speaks."""
    assert document["openapi"].startswith("3.")
    assert set(document["paths"]) == PATHS
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids) == len(PATHS)
    assert all(operation["responses"] and operation.get("description") for operation in operations)


def test_every_reference_resolves(document):
    """No $ref points nowhere."""
    found = set(references(document))
    assert found
    for reference in found:
        value = document
        for part in reference.removeprefix("#/").split("/"):
            value = value[part]
        assert isinstance(value, dict)


@pytest.mark.parametrize("path", POSTS)
def test_every_post_has_schemas_and_examples(document, path):
    """A POST publishes the schema of its request, of its answer, and examples that its own model accepts."""
    operation = document["paths"][path]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    assert operation["requestBody"]["required"] is True
    assert content["schema"]["$ref"].endswith(f"/{POSTS[path].__name__}")
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    examples = [example["value"] for example in content["examples"].values()]
    assert len(examples) >= 2
    for example in examples:
        POSTS[path].model_validate(example)


@pytest.mark.parametrize("path", REWARDS)
def test_routes_of_other_servers_are_open_in_the_schema(document, path):
    """Their bodies are JSON alone, with examples that fit, and may have fields that are not known here."""
    operation = document["paths"][path]["post"]
    (content,) = operation["requestBody"]["content"].values()
    assert list(operation["responses"]["200"]["content"]) == ["application/json"]
    for example in [example["value"] for example in content["examples"].values()]:
        assert fits(document, path, {**example, "what another version sends": [1]})
        REWARDS[path].model_validate(example)


@pytest.mark.parametrize("path", [*POSTS, *REWARDS])
def test_every_failure_of_a_post_is_documented(document, path):
    """Each status that a POST can fail with is there, as a problem document."""
    responses = document["paths"][path]["post"]["responses"]
    for status in ("401", "413", "415", "422", "500", "503", "504"):
        content = responses[status]["content"]
        assert list(content) == ["application/problem+json"]
        assert content["application/problem+json"]["schema"]["$ref"].endswith("Problem")


def test_a_shard_of_weights_is_documented(document):
    """The route for weights takes a file as well, told by its query, and answers in JSON alone."""
    operation = document["paths"][WEIGHTS]["post"]
    assert operation["requestBody"]["content"]["application/vnd.creditd.safetensors"]["schema"]["format"] == "binary"
    assert list(operation["responses"]["200"]["content"]) == ["application/json"]
    places = {entry["name"]: entry["in"] for entry in operation["parameters"]}
    assert places == {"id": "path", **dict.fromkeys(WeightsShard.model_fields, "query")}
    assert {"403", "404", "409", "502"} <= set(operation["responses"])


def test_the_problem_schema_lists_every_code(document):
    """The published codes are the codes."""
    assert set(document["components"]["schemas"]["ErrorCode"]["enum"]) == {code.value for code in ErrorCode}


def test_requests_are_closed_in_the_schema(document):
    """The published schema refuses unknown fields, as the service does."""
    for name in ("ShapleyRequest", "GroupRequest", "CandidateSet", "SetColumns", "Candidate"):
        schema = document["components"]["schemas"][name]
        assert all(form["additionalProperties"] is False for form in schema.get("anyOf", [schema]))


def fits(document, path, body):
    """Whether a body fits the published schema of the requests of a route."""
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    return jsonschema.Draft202012Validator({**document, **content["schema"]}).is_valid(body)


EXAMPLES = [
    (path, example) for path, model in POSTS.items() for example in model.model_config["json_schema_extra"]["examples"]
]
CATALOGUED = [(SOLVE if "items" in entry.example else SHAPLEY, entry.example) for entry in CATALOGUE.utilities]
WITH_EVERYTHING = [
    (SHAPLEY, in_form(form, sets_with_everything(named=named), tokens={})) for form in FORMS for named in (False, True)
]
SOUND = EXAMPLES + CATALOGUED + WITH_EVERYTHING


@pytest.mark.parametrize(("path", "body"), SOUND)
def test_what_is_answered_fits_the_schema(document, path, body):
    """Every example, every utility and every form is in the published schema, with all defaults or none."""
    assert fits(document, path, body)
    assert fits(document, path, json.loads(POSTS[path].model_validate(body).model_dump_json(by_alias=True)))


CONTRADICTIONS = [
    (SHAPLEY, {"sets": [{"candidates": []}], "columns": {"rewards": [[1.0]]}}),
    (SHAPLEY, {}),
    (SHAPLEY, {"sets": [{"candidates": [{"reward": 1.0, "named_rewards": {"a": 1.0}}]}]}),
    (SHAPLEY, {"sets": [{"candidates": [{"reward": 1.0}, {"named_rewards": {"a": 1.0}}]}]}),
    (SHAPLEY, {"sets": [{"group": "a", "candidates": []}, {"candidates": []}]}),
    (SHAPLEY, {"sets": [{"candidates": [{"reward": 1.0}], "utilities": [0.0, 1.0]}]}),
    (SHAPLEY, {"sets": [{"candidates": [{}]}], "utility": {"type": "table"}}),
    (SHAPLEY, {"sets": [{"candidates": [{"reward": 1e101}]}]}),
    (SHAPLEY, {"columns": {"rewards": [[1.0]], "named_rewards": {"a": [[1.0]]}}}),
    (SHAPLEY, {"columns": {"rewards": [[1.0]], "row_splits": [0, 1]}}),
    (SHAPLEY, {"columns": {"groups": [1]}}),
    (SHAPLEY, {"columns": {"rewards": [[1.0]]}, "credit": {}}),
    (SHAPLEY, {"columns": {"rewards": [[1.0]]}, "utility": {"type": "log_sum_exp", "temperature": 1.0}}),
    (SHAPLEY, {"columns": {"rewards": [[1.0]]}, "utility": {"type": "facility_location", "unserved": 1.0}}),
    (GROUP, {"rewards": [[1.0, 0.0]], "weights": {"a": 1.0}}),
    (GROUP, {"rewards": [[1.0, 0.0]], "advantage": {"type": "pass_at_k"}}),
    (GROUP, {"rewards": [[1.0, 0.0]], "advantage": {"type": "grpo", "k": 1}}),
    (GROUP, {"rewards": [[1.0, 0.0]], "expect": {"candidates": 2}}),
    (SOLVE, {"items": [{"n_players": 1, "group": 1}, {"n_players": 1}]}),
    (SOLVE, {"items": [{"n_players": 1, "prompt_id": "p"}]}),
    (SOLVE, {"items": [{"n_players": 1, "prompt_id": "p"}], "utility_id": "u"}),
    (SOLVE, {"items": [{"n_players": 1, "player_ids": ["a"]}], "utility_id": "u"}),
    (SOLVE, {"items": [{"n_players": 2, "player_ids": ["a"], "prompt_id": "p"}], "utility_id": "u"}),
    (SOLVE, {"items": [{"n_players": 1, "player_ids": ["a", "b"], "prompt_id": "p"}], "utility_id": "u"}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), CONTRADICTIONS)
def test_fields_that_contradict_each_other_do_not_fit_the_schema(document, path, body):
    """What the service refuses because two fields do not go together is no request of the published schema either."""
    assert post(body, path).status_code == 422
    assert not fits(document, path, body)


def test_the_committed_document_is_the_published_one(document, capsys):
    """deploy/openapi.json is what `creditd openapi` prints, to the byte, and what a service answers."""
    assert main(["openapi"]) == 0
    assert capsys.readouterr().out == COMMITTED.read_text(), "run `creditd openapi > deploy/openapi.json`"
    assert json.loads(COMMITTED.read_text()) == document


def test_the_document_is_the_same_for_every_application():
    """Nothing of the settings or of the moment is in it."""
    assert create_app(Settings()).openapi() == create_app(Settings(port=1, api_keys=("k",))).openapi()
