"""What the OpenAPI document says of the routes that speak as other servers of rewards do: JSON alone."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from creditd.server.body import JSON
from creditd.server.openapi import answered, described
from creditd.wire.errors import ErrorCode, Problem

_BODY = "As the other project sends it; fields that are not named here are not looked at."


def described_rewards(
    request: type[BaseModel], response: type[BaseModel], problem: type[Problem] = Problem
) -> dict[str, Any]:
    """Arguments of a POST route that takes and gives JSON alone.

    Args:
        request: Model of the body.
        response: Model of the answer.
        problem: Model of every failure.
    """
    found = described(request, response, ErrorCode.UNKNOWN_MODEL, ErrorCode.ENGINE_FAILED)
    found["responses"] |= answered()
    for documented in found["responses"].values():
        for content in documented.get("content", {}).values():
            content["schema"] = {"$ref": f"#/components/schemas/{problem.__name__}"}
    body = found["openapi_extra"]["requestBody"]
    body["description"] = _BODY
    body["content"] = {JSON: body["content"][JSON]}
    return found


def named_model(found: dict[str, Any]) -> dict[str, Any]:
    """The same for a route whose path names a reward model."""
    parameter = {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "The reward model; slashes in its id stand as they are.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 128},
    }
    return {**found, "openapi_extra": {**found["openapi_extra"], "parameters": [parameter]}}
