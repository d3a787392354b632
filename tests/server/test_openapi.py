import pytest

from creditd.server.app import create_app
from creditd.server.settings import Settings
from creditd.wire.errors import ErrorCode
from creditd.wire.solve import SolveRequest
from creditd.wire.v1 import GroupRequest, ShapleyRequest
from server.running import get

POSTS = {
    "/v1/credit/shapley": ShapleyRequest,
    "/v1/credit/group": GroupRequest,
    "/v1/credit/shapley/solve": SolveRequest,
}
PATHS = {*POSTS, "/v1/info", "/v1/utilities", "/livez", "/readyz", "/metrics"}


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


@pytest.mark.parametrize("path", POSTS)
def test_every_failure_of_a_post_is_documented(document, path):
    """Each status that a POST can fail with is there, as a problem document."""
    responses = document["paths"][path]["post"]["responses"]
    for status in ("401", "413", "415", "422", "500", "503", "504"):
        content = responses[status]["content"]
        assert list(content) == ["application/problem+json"]
        assert content["application/problem+json"]["schema"]["$ref"].endswith("/Problem")


def test_the_problem_schema_lists_every_code(document):
    """The published codes are the codes."""
    assert set(document["components"]["schemas"]["ErrorCode"]["enum"]) == {code.value for code in ErrorCode}


def test_requests_are_closed_in_the_schema(document):
    """The published schema refuses unknown fields, as the service does."""
    for name in ("ShapleyRequest", "GroupRequest", "CandidateSet", "SetColumns", "Candidate"):
        assert document["components"]["schemas"][name]["additionalProperties"] is False


def test_the_document_is_the_same_for_every_application():
    """Nothing of the settings or of the moment is in it."""
    assert create_app(Settings()).openapi() == create_app(Settings(port=1, api_keys=("k",))).openapi()
