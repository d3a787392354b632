"""The OpenAPI document.

Routes read raw bytes, so the schemas of requests are put in here, from the same models that check them.
"""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from creditd.wire import codec
from creditd.wire.compose import ComposeRequest
from creditd.wire.errors import ERROR_KINDS, ErrorCode, Problem
from creditd.wire.groups import GroupRequest
from creditd.wire.oar import OarRequest
from creditd.wire.scar import ScarRequest, ScarSolveRequest
from creditd.wire.served_rewards import ClassifyProblem, ClassifyRequest, GetRewardRequest
from creditd.wire.solve import SolveRequest
from creditd.wire.v1 import ShapleyRequest
from creditd.wire.weights import WeightsRequest

_REFERENCE = "#/components/schemas/{model}"
_FORMATS = (
    f"As `application/json`, or as `{codec.MEDIA_TYPE}`: the same document in MessagePack, where an array of numbers "
    'may be `{"dtype": "<f8" | "<f4" | "<i8" | "<i4", "shape": [n], "data": BYTES}`, little-endian, and where null is '
    'allowed `"missing": BYTES`, one bit per number, the lowest first. Rows of equal length may be one buffer of two '
    "axes where a list of rows stands. `Accept` chooses the format of the answer; in the binary one arrays of numbers "
    "are such buffers, with NaN for null."
)
_HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {
        "description": "The identity of the request, the caller's or a fresh one; the log knows it by this name.",
        "schema": {"type": "string"},
    },
    "WWW-Authenticate": {"description": "The scheme of the key.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 0}},
}
_HEADERS_BY_STATUS = {401: ("WWW-Authenticate",), 503: ("Retry-After",)}
_REQUESTS: tuple[type[BaseModel], ...] = (
    ShapleyRequest,
    SolveRequest,
    GroupRequest,
    ScarRequest,
    ScarSolveRequest,
    ComposeRequest,
    OarRequest,
    WeightsRequest,
    GetRewardRequest,
    ClassifyRequest,
)


def failures(*codes: ErrorCode) -> dict[int | str, dict[str, Any]]:
    """Documentation of the responses of some error codes, and of those that every `/v1/` route can give."""
    return refusals(*codes, ErrorCode.UNAUTHORIZED, ErrorCode.OVERLOADED, ErrorCode.INTERNAL)


def refusals(*codes: ErrorCode) -> dict[int | str, dict[str, Any]]:
    """Documentation of the responses of some error codes."""
    documented: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        kind = ERROR_KINDS[code]
        documented[kind.status] = {
            "description": kind.title,
            "headers": _headers(*_HEADERS_BY_STATUS.get(kind.status, ())),
            "content": {"application/problem+json": {"schema": {"$ref": _REFERENCE.format(model="Problem")}}},
        }
    return documented


def of_text(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documentation of answers in plain text."""
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "headers": _headers(), "content": content}
        for status in statuses
    }


def answered(**content: Any) -> dict[int | str, dict[str, Any]]:  # noqa: ANN401 - as FastAPI takes them
    """Documentation of an answer beside the schema of its model."""
    return {200: {"headers": _headers(), **content}}


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in ("X-Request-Id", *names)}


def described(request: type[BaseModel], response: type[BaseModel], *codes: ErrorCode) -> dict[str, Any]:
    """Arguments of a POST route that takes and gives documents of two models, in both formats; codes of its own."""
    taken, given = ({"$ref": _REFERENCE.format(model=model.__name__)} for model in (request, response))
    return {
        "response_model": response,
        "responses": {
            **answered(content={codec.MEDIA_TYPE: {"schema": given}}),
            **failures(
                *codes,
                ErrorCode.INVALID_REQUEST,
                ErrorCode.BODY_TOO_LARGE,
                ErrorCode.UNSUPPORTED_MEDIA_TYPE,
                ErrorCode.DEADLINE_EXCEEDED,
            ),
        },
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "description": _FORMATS,
                "content": {
                    codec.MEDIA_TYPE: {"schema": taken},
                    "application/json": {
                        "schema": taken,
                        "examples": {
                            f"example_{number}": {"value": example}
                            for number, example in enumerate(_examples(request), start=1)
                        },
                    },
                },
            }
        },
    }


def _examples(model: type[BaseModel]) -> list[Any]:
    extra = model.model_config.get("json_schema_extra")
    examples = extra.get("examples") if isinstance(extra, dict) else None
    return list(examples) if isinstance(examples, list) else []


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """The document of an application, with the schemas of its requests and of its failures."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    inputs = models_json_schema([(model, "validation") for model in _REQUESTS], ref_template=_REFERENCE)[1]
    failed: list[type[BaseModel]] = [Problem, ClassifyProblem]
    problems = models_json_schema([(model, "serialization") for model in failed], ref_template=_REFERENCE)[1]
    components = document.setdefault("components", {})
    components["headers"] = _HEADERS
    schemas = components.setdefault("schemas", {})
    for definitions in (inputs["$defs"], problems["$defs"]):
        schemas.update(definitions)
    _require_tags(schemas)
    return document


def _require_tags(schemas: dict[str, Any]) -> None:
    """Say of each choice that its `type` is required, whatever the model's default: it tells the models apart."""
    for choice in list(_choices(schemas)):
        for reference in choice["mapping"].values():
            chosen = schemas[reference.rsplit("/", 1)[1]]
            for form in chosen.get("anyOf", (chosen,)):
                form["required"] = list(dict.fromkeys((choice["propertyName"], *form.get("required", ()))))


def _choices(value: object) -> Iterator[dict[str, Any]]:
    """Every discriminator in a document."""
    if isinstance(value, dict):
        if "mapping" in value and "propertyName" in value:
            yield value
        for inner in value.values():
            yield from _choices(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _choices(inner)
