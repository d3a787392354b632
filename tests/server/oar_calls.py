"""A policy whose sensitivities the tests know, requests about its completions, and what every answer keeps."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest

from creditd.engines.fake_policy import FakePolicy
from creditd.engines.model_spec import ModelSpec
from creditd.engines.registry import Registry
from creditd.server.resources import Resources
from creditd.server.settings import Settings
from creditd.wire import codec
from creditd.wire.oar import OarResponse
from server.model_services import fake
from server.running import OAR, on_service
from server.test_binary import packed, plain

FORMATS = ("json", "binary")
TOLERANCE = 1e-12
"""Of sums of a few numbers of size 1."""
IMPORTANCE = (0.0, 0.1, 0.5, 1.0, 4.0)
"""The worked sensitivities of the method."""
BEFORE_MASS = (0.1, 1.0, 1.204841, 1.394839, 2.0)
WORKED_WEIGHTS = (0.087724, 0.877242, 1.056937, 1.223612, 1.754484)
EFFECTIVE_SHARE, TOP_SHARE = 0.7728, 0.3509
"""Their weights and measures of concentration, to the digits that the method gives."""
GIVEN = {"sensitivity": {"type": "given"}}
VERSIONS = {"v0": 1.0, "v1": 10.0, "v2": 0.25}
"""What each version of the weights multiplies sensitivities by."""
CURSE, DOOM = 666, 667
"""Tokens: a sensitivity of the first is not finite, on the second the policy fails."""


def measure(version: str, item: Any, _: Any) -> list[float]:
    """The id of each measured token, modulo 7, by the version; curses and doom are what they are."""
    ids = item.completion_ids[item.positions]
    if DOOM in item.completion_ids:
        raise RuntimeError("doom")
    return np.where(ids == CURSE, np.nan, ids % 7 * VERSIONS.get(version, 1.0)).tolist()


def policy(
    name: str = "policy",
    measured: Any = measure,
    *,
    max_tokens: int | None = None,
    max_queued_tokens: int = 1 << 20,
    **options: Any,
) -> FakePolicy:
    """A fake policy of those sensitivities."""
    spec = ModelSpec(name, "nowhere", kind="policy", max_tokens=max_tokens, max_queued_tokens=max_queued_tokens)
    return FakePolicy(measured, spec, **options)


def with_policies(*engines: FakePolicy, **settings: Any) -> Resources:
    """Resources of a service that has some policies, and a reward model."""
    found = engines or (policy(),)
    registry = Registry({"rm": fake()}, policies={engine.spec.id: engine for engine in found})
    return Resources(Settings(**settings), engines=registry)


def item_of(completion: list[int], *, answer: Any = -1, **fields: Any) -> dict[str, Any]:
    """A completion whose last token is its answer, unless another range is."""
    n_tokens = len(completion)
    found = [n_tokens - 1, n_tokens] if answer == -1 else answer
    outcome = {} if {"reward", "advantage"} & fields.keys() else {"advantage": 1.0}
    return {"prompt_ids": [1, 2, 3], "completion_ids": completion, "answer": found, **outcome, **fields}


def given_item(sensitivities: Any = IMPORTANCE, **fields: Any) -> dict[str, Any]:
    """A completion whose sensitivities are known."""
    outcome = {} if {"reward", "advantage"} & fields.keys() else {"advantage": 1.0}
    return {"sensitivities": list(sensitivities), **outcome, **fields}


def request_of(*items: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A request to the policy about some completions."""
    return {"model": "policy", "items": list(items), **options}


def given_request(*items: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A request about completions whose sensitivities are given."""
    return {"items": list(items), **GIVEN, **options}


async def say(service: Any, body: dict[str, Any], form: str = "json", **headers: str) -> httpx.Response:
    """The response to a body in one of the formats."""
    if form == "json":
        return await service.post(json.dumps(body), OAR, **headers)
    binary = {"Content-Type": codec.MEDIA_TYPE, "Accept": codec.MEDIA_TYPE, **headers}
    return await service.post(msgpack.packb(packed(body, axes=2)), OAR, **binary)


def document_of(response: httpx.Response) -> dict[str, Any]:
    """The answer as it would stand in JSON, once it is in the schema of its route."""
    binary = response.headers["content-type"] == codec.MEDIA_TYPE
    document = plain(msgpack.unpackb(response.content)) if binary else response.json()
    if response.status_code == 200:
        document["usage"].setdefault("queue_s", 0.0)
        OarResponse.model_validate_json(json.dumps(document))
    return document


def ask(body: dict[str, Any], form: str = "json", resources: Resources | None = None) -> dict[str, Any]:
    """The answer of a fresh service to one request."""

    async def inner(service):
        return document_of(await say(service, body, form))

    return on_service(inner, resources or with_policies())


def answered(body: dict[str, Any], form: str = "json", resources: Resources | None = None) -> list[dict[str, Any]]:
    """The items of an answer, each of which keeps the law."""
    found = ask(body, form, resources)
    assert "items" in found, found
    for item, result in zip(body["items"], found["items"], strict=True):
        if result["status"] == "ok":
            assert_lawful(item, result)
    return found["items"]


def assert_lawful(item: dict[str, Any], result: dict[str, Any]) -> None:
    """Advantages are the advantage times the weights; masked tokens get 0, and those that are not reweighted 1."""
    weights = np.array(result["weights"], dtype=np.float64)
    mask = np.array(item.get("completion_mask", [True] * len(weights)), dtype=np.bool_)
    measured = np.array([value is not None for value in result["sensitivities"]], dtype=np.bool_)
    assert len(weights) == len(item.get("sensitivities") or item.get("completion_ids") or ())
    assert result["token_advantages"] == pytest.approx((weights * result["advantage"]).tolist(), abs=TOLERANCE)
    assert not weights[~mask].any()
    assert result["n_reweighted"] == measured.sum()
    assert (weights[mask & ~measured] == 1.0).all()
    assert weights[measured].sum() == pytest.approx(result["weight_sum"], abs=TOLERANCE)


def problem(body: dict[str, Any], resources: Resources | None = None, **headers: str) -> tuple[int, dict[str, Any]]:
    """Status and document of a refusal."""

    async def inner(service):
        response = await say(service, body, **headers)
        return response.status_code, response.json()

    return on_service(inner, resources or with_policies())
