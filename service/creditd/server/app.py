"""The application: resources, middleware, routes and the table of failures, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

import anyio.to_thread
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from creditd.scoring.deadline import DeadlineExceededError
from creditd.server.errors import ServiceError, problem_response
from creditd.server.middleware import Admission, KeyCheck, RequestRecord
from creditd.server.openapi import openapi_document
from creditd.server.path_keys import PathKey
from creditd.server.resources import Resources
from creditd.server.routes import credit, document, health, info, page, rewards, weights
from creditd.server.settings import Settings
from creditd.server.warmup import warm_up
from creditd.wire.errors import ErrorCode
from creditd.wire.versions import package_version

DESCRIPTION = "Credit assignment for RL post-training: Shapley credit for candidate sets, ready for GRPO."
_STATUS_CODES = {404: ErrorCode.NOT_FOUND, 405: ErrorCode.METHOD_NOT_ALLOWED}


def create_app(settings: Settings, resources: Resources | None = None) -> FastAPI:
    """The service as an ASGI application.

    Args:
        settings: Checked settings.
        resources: What the application holds; made from the settings when absent, but for models, which are loaded
            before (`creditd serve` does). Tests pass their own.

    Returns:
        An application that opens its resources at start-up and closes them at shutdown.

    Raises:
        ValueError: If the settings name a model that the resources do not hold.
    """
    held = Resources(settings) if resources is None else resources
    missing = {model.id for model in settings.models} - set(held.engines.ids)
    if missing:
        raise ValueError(f"the settings name models that are not loaded: {', '.join(sorted(missing))}")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await held.open()
        await anyio.to_thread.run_sync(warm_up, held)
        try:
            yield
        finally:
            await held.close()

    routers = (
        credit.router,
        info.router,
        weights.router,
        rewards.router,
        document.router,
        health.router,
        page.router,
    )
    routes = [route for router in routers for route in router.routes if isinstance(route, Route)]
    paths = {route.path_format: route.path_regex for route in routes}
    app = FastAPI(
        title="creditd",
        version=package_version(),
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[
            Middleware(PathKey),
            Middleware(RequestRecord, resources=held, paths=paths),
            Middleware(KeyCheck, resources=held),
            Middleware(Admission, resources=held),
        ],
        exception_handlers={
            ServiceError: _service_error,
            DeadlineExceededError: _deadline_exceeded,
            HTTPException: _http_error,
            ClientDisconnect: _client_gone,
        },
    )
    app.state.resources = held
    for router in routers:
        app.include_router(router)
    app.openapi = cache(lambda: openapi_document(app))  # type: ignore[method-assign]
    return app


async def _service_error(request: Request, error: Exception) -> Response:
    """A failure that the service names itself."""
    if not isinstance(error, ServiceError):
        raise error
    request.state.record["code"] = error.code.value
    return problem_response(error, request.state.request_id)


async def _deadline_exceeded(request: Request, _: Exception) -> Response:
    """Nobody waits any more, or nobody would have in time."""
    return await _service_error(
        request, ServiceError(ErrorCode.DEADLINE_EXCEEDED, "the deadline of the request passed before its answer")
    )


async def _http_error(request: Request, error: Exception) -> Response:
    """A path or a method that the router does not know."""
    if not isinstance(error, HTTPException) or error.status_code not in _STATUS_CODES:
        raise error
    code = _STATUS_CODES[error.status_code]
    known = "GET /v1/info names what this service does, GET /openapi.json its routes"
    missing = code is ErrorCode.NOT_FOUND
    detail = f"{'nothing is at this path' if missing else f'{request.method} is not answered at this path'}; {known}"
    return await _service_error(request, ServiceError(code, detail, headers=error.headers))


async def _client_gone(request: Request, _: Exception) -> Response:
    """The caller left while its body was being read; nobody sees this response, the log line says 499."""
    request.state.record["code"] = "client_gone"
    return Response(status_code=499)
