"""Servers that the service is compared with: `python -m benchmarks.http_servers NAME` serves on a free port.

    stock   FastAPI as its tutorial has it: the nested request and the nested answer as models, creditd's own
    plain   the same with models of nothing but the fields that are used, without a bound or a strict type
    echo    reads the body and answers with as many bytes as its path says: what HTTP alone costs

`stock` and `plain` call the functions of `creditd.credit` that the service calls. The port is the first line of
standard output. All run under uvicorn with uvloop and httptools, without an access log.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from creditd.credit.candidate_sets import CandidateSets
from creditd.credit.flags import Flag
from creditd.credit.set_credit import SetCreditOptions, SetCredits, set_credit
from creditd.credit.token_advantages import TokenPolicy
from creditd.wire.choices import options_of
from creditd.wire.columns import batch_of
from creditd.wire.limits import RequestLimits
from creditd.wire.v1 import Service, SetResult, ShapleyRequest, ShapleyResponse, Usage

PATH = "/v1/credit/shapley"
LARGEST_ANSWER = 1 << 24


class PlainCandidate(BaseModel):
    """One candidate."""

    reward: float
    span: tuple[int, int] | None = None


class PlainSet(BaseModel):
    """One response with its candidates."""

    group: int
    n_tokens: int | None = None
    candidates: list[PlainCandidate]


class PlainRequest(BaseModel):
    """Candidate sets."""

    sets: list[PlainSet]
    tokens: dict[str, str] | None = None


class PlainResult(BaseModel):
    """Answer for one set."""

    credits: list[float]
    advantages: list[float]
    set_advantage: float
    token_advantages: list[float] | None = None
    utility_grand: float
    gap: float
    flags: list[str]


class PlainResponse(BaseModel):
    """Answers."""

    sets: list[PlainResult]


def stock() -> FastAPI:
    """The stock server with the service's own models."""
    app, limits = _with_probe(), RequestLimits()
    service = Service(version="stock", methods=1)
    usage = Usage(evaluations=0, from_cache=0, tokens_computed=0, tokens_naive=0, engine_s=0.0, queue_s=0.0)

    @app.post(PATH)
    async def shapley(asked: ShapleyRequest) -> ShapleyResponse:
        answer = set_credit(batch_of(asked, limits).sets, options_of(asked, limits))
        results = [
            SetResult(
                id=one.id,
                status="ok",
                credits=part["credits"],
                advantages=part["advantages"],
                set_advantage=float(answer.set_advantages[row]),
                token_advantages=part["tokens"],
                utility_empty=float(answer.utility_empty[row]),
                utility_grand=float(answer.utility_grand[row]),
                credit_sum=float(answer.credit_sums[row]),
                gap=float(answer.gaps[row]),
                exact=True,
                method=answer.method,
                flags=list(Flag(int(answer.flags[row])).wire_names),
            )
            for row, (one, part) in enumerate(zip(asked.sets or (), _parts(answer), strict=True))
        ]
        return ShapleyResponse(request_id="stock", service=service, usage=usage, sets=results)

    return app


def plain() -> FastAPI:
    """The stock server with models of its own."""
    app = _with_probe()

    @app.post(PATH)
    async def shapley(asked: PlainRequest) -> PlainResponse:
        names, groups = np.unique([one.group for one in asked.sets], return_inverse=True)
        candidates = [candidate for one in asked.sets for candidate in one.candidates]
        batch = CandidateSets(
            rewards=np.array([candidate.reward for candidate in candidates]),
            row_splits=np.cumsum([0, *(len(one.candidates) for one in asked.sets)]),
            groups=groups.reshape(-1),
            n_groups=len(names),
            spans=None if asked.tokens is None else np.array([candidate.span for candidate in candidates]),
            n_tokens=None if asked.tokens is None else np.array([one.n_tokens for one in asked.sets]),
        )
        answer = set_credit(batch, SetCreditOptions(tokens=None if asked.tokens is None else TokenPolicy()))
        return PlainResponse(
            sets=[
                PlainResult(
                    credits=part["credits"],
                    advantages=part["advantages"],
                    set_advantage=float(answer.set_advantages[row]),
                    token_advantages=part["tokens"],
                    utility_grand=float(answer.utility_grand[row]),
                    gap=float(answer.gaps[row]),
                    flags=list(Flag(int(answer.flags[row])).wire_names),
                )
                for row, part in enumerate(_parts(answer))
            ]
        )

    return app


def _with_probe() -> FastAPI:
    """An application that answers probes."""
    app = FastAPI()

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    return app


def _parts(answer: SetCredits) -> Iterator[dict[str, Any]]:
    """The lists of each set."""
    splits, token_splits = answer.row_splits, answer.token_splits
    for row in range(len(answer.flags)):
        part, tokens = slice(splits[row], splits[row + 1]), None
        if token_splits is not None and answer.token_advantages is not None:
            tokens = answer.token_advantages[token_splits[row] : token_splits[row + 1]].tolist()
        yield {
            "credits": answer.credits[part].tolist(),
            "advantages": answer.advantages[part].tolist(),
            "tokens": tokens,
        }


def echo() -> Callable[..., Awaitable[None]]:
    """An application that reads a body and answers with so many bytes: `POST /NUMBER`."""
    answers: dict[str, bytes] = {}

    async def app(scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        while (await receive()).get("more_body"):
            pass
        path = scope["path"]
        if path not in answers:
            answers[path] = bytes(min(int(path[1:]), LARGEST_ANSWER))
        body = answers[path]
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-length", str(len(body)).encode())],
            }
        )
        await send({"type": "http.response.body", "body": body})

    return app


SERVERS: dict[str, Callable[[], Any]] = {"stock": stock, "plain": plain, "echo": echo}


class _Announced(uvicorn.Server):
    """A server that prints its port once it listens."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        sys.stdout.write(f"{self.servers[0].sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()


def main() -> None:
    """Serve until asked to end."""
    parser = argparse.ArgumentParser(description="A server that the service is compared with")
    parser.add_argument("name", choices=SERVERS)
    app = SERVERS[parser.parse_args().name]()
    config = uvicorn.Config(app, port=0, loop="uvloop", http="httptools", log_level="warning", access_log=False)
    _Announced(config).run()


if __name__ == "__main__":
    main()
