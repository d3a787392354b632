"""What the OpenAPI document says of the route for weights, whose body is a document or a shard."""

from __future__ import annotations

from typing import Any

from creditd.server.openapi import answered, described
from creditd.wire.errors import ErrorCode
from creditd.wire.weights import SHARD_MEDIA_TYPE, WeightsRequest, WeightsResponse, WeightsShard

_OF_A_SHARD = f"Only where the body is `{SHARD_MEDIA_TYPE}`, a shard. "
_BODY = (
    f" Or, as `{SHARD_MEDIA_TYPE}`, one safetensors file of weights, told by the query: it is written to a file while "
    "it comes, and may be as large as `max_shard_bytes`. The answer is JSON in any case."
)


def described_weights() -> dict[str, Any]:
    """Arguments of `POST /v1/models/{id}/weights`."""
    found = described(
        WeightsRequest,
        WeightsResponse,
        ErrorCode.FORBIDDEN,
        ErrorCode.UNKNOWN_MODEL,
        ErrorCode.WEIGHT_VERSION_MISMATCH,
        ErrorCode.ENGINE_FAILED,
    )
    found["responses"] |= answered()
    body = found["openapi_extra"]["requestBody"]
    body["description"] += _BODY
    body["content"][SHARD_MEDIA_TYPE] = {"schema": {"type": "string", "format": "binary"}}
    found["openapi_extra"]["parameters"] = [
        {
            "name": "id",
            "in": "path",
            "required": True,
            "description": "The policy; slashes in its id stand as they are.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 128},
        },
        *_query(),
    ]
    return found


def _query() -> list[dict[str, Any]]:
    """The parameters of a shard."""
    properties = WeightsShard.model_json_schema()["properties"]
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": _OF_A_SHARD + schema.pop("description", ""),
            "schema": {key: value for key, value in schema.items() if key != "title"},
        }
        for name, schema in properties.items()
    ]
