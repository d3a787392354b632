"""The real application behind an in-memory transport, and the bodies and scorers that the tests share."""

from __future__ import annotations

import json
import threading
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import anyio
import httpx
from fastapi import FastAPI

from creditd.scoring.candidate_credit import score_candidate_sets
from creditd.server.app import create_app
from creditd.server.resources import Resources
from creditd.server.settings import Settings

SHAPLEY = "/v1/credit/shapley"
GROUP = "/v1/credit/group"
SCAR = "/v1/credit/scar"
SCAR_SOLVE = "/v1/credit/scar/solve"
OAR = "/v1/credit/oar"
COMPOSE = "/v1/credit/compose"
PATIENCE_S = 30.0
"""How long a test waits for something that takes milliseconds."""

WORKED_REWARDS = [[0.9, 0.5, 0.5, 0.1], [0.2, 0.2, 0.2, 0.2], [1.0, 0.0, 0.0, 0.0], [0.4, 0.3, 0.8, 0.6]]
"""The worked group of the method: one prompt, four responses of four candidates."""

JSON = {"Content-Type": "application/json"}


class Service(NamedTuple):
    """An application whose lifespan is open."""

    app: FastAPI
    resources: Resources
    client: httpx.AsyncClient

    async def post(self, body: Any, path: str = SHAPLEY, **headers: str) -> httpx.Response:
        """Send a body; text and bytes go as they are."""
        content = body if isinstance(body, str | bytes) else json.dumps(body)
        return await self.client.post(path, content=content, headers={**JSON, **headers}, timeout=PATIENCE_S)

    async def in_flight(self, expected: int) -> None:
        """Wait until so many requests are admitted."""
        with anyio.fail_after(PATIENCE_S):
            while self.resources.in_flight != expected:  # noqa: ASYNC110  # the service has no event for a number
                await anyio.sleep(0.001)


@asynccontextmanager
async def running(resources: Resources | None = None, **settings: Any):
    """The application with its lifespan open, and a client for it."""
    held = Resources(Settings(**settings)) if resources is None else resources
    app = create_app(held.settings, held)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        yield Service(app, held, client)


def on_service(test, resources: Resources | None = None, **settings: Any):
    """What an async function of one `Service` returns."""

    async def inner():
        async with running(resources, **settings) as service:
            return await test(service)

    return anyio.run(inner)


def post(body: Any, path: str = SHAPLEY, headers: dict[str, str] | None = None, **settings: Any) -> httpx.Response:
    """The response of a fresh service to one request."""
    return on_service(lambda service: service.post(body, path, **(headers or {})), **settings)


def get(path: str, headers: dict[str, str] | None = None, **settings: Any) -> httpx.Response:
    """The response of a fresh service to one GET."""
    return on_service(lambda service: service.client.get(path, headers=headers), **settings)


def nested(rewards=None, **options: Any) -> dict[str, Any]:
    """A request of plain rewards in one group, set by set."""
    rows = WORKED_REWARDS if rewards is None else rewards
    return {"sets": [{"group": "p", "candidates": [{"reward": r} for r in row]} for row in rows], **options}


def columnar(rewards=None, **options: Any) -> dict[str, Any]:
    """The same request as flat values and row splits."""
    rows = WORKED_REWARDS if rewards is None else rewards
    return {"columns": {"rewards": ragged(rows), "groups": ["p"] * len(rows)}, **options}


def ragged(rows) -> dict[str, Any]:
    """Rows as values and row splits."""
    splits = [0]
    for row in rows:
        splits.append(splits[-1] + len(row))
    return {"values": [value for row in rows for value in row], "row_splits": splits}


def rows_of(ragged_result: dict[str, Any]) -> list[list[float | None]]:
    """Values and row splits as rows."""
    values, splits = ragged_result["values"], ragged_result["row_splits"]
    return [values[start:stop] for start, stop in pairwise(splits)]


class Gate:
    """A scorer that holds each batch back while it is closed; it starts open, so that the warm-up passes."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.opened.set()
        self.calls = 0

    def __call__(self, batch, options, rejected, deadline):
        """The real answer, once the gate is open."""
        self.calls += 1
        if not self.opened.wait(PATIENCE_S):
            raise RuntimeError("the gate was never opened")
        return score_candidate_sets(batch, options, rejected, deadline)


def gated(**settings: Any) -> tuple[Gate, Resources]:
    """A gate, and resources that score through it, on threads alone: what waits must not hold the loop."""
    gate = Gate()
    return gate, Resources(Settings(max_inline_candidates=0, **settings), score_sets=gate)
