"""Weights of policies: from a directory, or shard by shard out of request bodies that are never held in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

import anyio
import anyio.to_thread
from fastapi import Request
from pydantic import ValidationError

from creditd.engines.errors import WeightsRefusedError
from creditd.engines.policy_protocol import SensitivityMeasurer
from creditd.engines.registry import UnknownModelError
from creditd.engines.weight_files import StagedWeights, SwapReport, checked_version, staged_from_path
from creditd.engines.weight_uploads import ShardPlace, ShardWriter, UploadProgress, WeightUploads
from creditd.scoring.deadline import Deadline
from creditd.server.convert import service
from creditd.server.errors import ServiceError
from creditd.server.metrics import Metrics
from creditd.server.model_rounds import errors_of_the_service
from creditd.server.resources import Resources, resources_of
from creditd.wire.errors import ErrorCode, ErrorItem
from creditd.wire.validation import from_validation_error
from creditd.wire.weights import SHARD_MEDIA_TYPE, WeightsRequest, WeightsResponse, WeightsSeconds, WeightsShard

T = TypeVar("T")

WRITE_BYTES = 1 << 20
"""Bytes of a shard that are held before they are written."""
MOST_MISSING = 1000
"""Missing shards that an answer names."""
_CLOSE = {"Connection": "close"}


@dataclass(frozen=True)
class WeightsCall:
    """A request about the weights of a policy, let in.

    Attributes:
        request: The request.
        resources: What the application holds.
        policy: Whose weights.
        deadline: When the caller stops waiting.
    """

    request: Request
    resources: Resources
    policy: SensitivityMeasurer
    deadline: Deadline

    @property
    def is_shard(self) -> bool:
        """Whether the body is a shard."""
        return media_type_of(self.request) == SHARD_MEDIA_TYPE


def media_type_of(request: Request) -> str:
    """The media type of a body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def let_in(request: Request, deadline: Deadline) -> WeightsCall:
    """A request about weights, if its caller may make it and there is such a policy; its body is not read.

    Raises:
        ServiceError: If the key is no admin key, or there is no such policy.
    """
    if not request.state.admin:
        raise ServiceError(ErrorCode.FORBIDDEN, "got a key that may not replace weights; expected one of admin_keys")
    resources = resources_of(request)
    try:
        policy = resources.engines.policy(request.path_params["id"])
    except UnknownModelError as error:
        item = ErrorItem(pointer="id", code=ErrorCode.UNKNOWN_MODEL, detail=str(error))
        raise ServiceError(ErrorCode.UNKNOWN_MODEL, f"id: {error}", (item,)) from None
    return WeightsCall(request, resources, policy, deadline)


async def answer_named(call: WeightsCall, asked: WeightsRequest) -> WeightsResponse:
    """The answer to weights that a document names, or announces.

    Args:
        call: The request.
        asked: Its document.

    Returns:
        What became of them.

    Raises:
        ServiceError: If they are refused, or the policy fails.
        DeadlineExceededError: If the deadline passes first; the weights may still be taken.
        ClientDisconnect: If the caller leaves first; likewise.
    """
    policy, version = call.policy, asked.weight_version
    with _refusals(policy.spec.id):
        if asked.type == "announce":
            policy.announce_weights(checked_version(version))
            return _answer(call, "live" if policy.weight_version == version else "announced")
        stage = partial(
            staged_from_path,
            _root_of(call.resources),
            asked.path or "",
            version,
            adapter=asked.adapter,
            merged=asked.merged,
            checksum=asked.checksum,
        )
        started = time.perf_counter()
        staged = await call.resources.stage(stage, call.deadline, call.request.receive)
        read_s = time.perf_counter() - started
        _begin(call, staged)
        return await _taken(call, staged.outcome, read_s=read_s)


async def answer_shard(call: WeightsCall) -> WeightsResponse:
    """The answer to a body that is a shard; the last one that was missing is answered once the weights are live.

    Args:
        call: The request.

    Returns:
        What became of it.

    Raises:
        ServiceError: If the query or the body is refused, too large or too slow, or the policy fails.
        DeadlineExceededError: If the deadline passes while the weights are taken; they may still be.
        ClientDisconnect: If the caller leaves; a shard that is not here completely is forgotten.

    Cost:
        Memory for about 1 MiB of the body.
    """
    place, uploads = _place_of(call), _uploads_of(call.resources)
    _refuse_unread(call)
    started = time.perf_counter()
    with _refusals(call.policy.spec.id, _CLOSE):
        writer = await _off(call, partial(uploads.begin, place, call.policy.weight_version))
        try:
            async with aclosing(_pieces(call)) as pieces:
                async for piece in pieces:
                    await _off(call, partial(writer.write, piece))
            receive_s = time.perf_counter() - started
            progress = await _off(call, partial(_arrived, call, writer))
        finally:
            with anyio.CancelScope(shield=True):
                await _off(call, writer.abort)
        if progress.staged is None:
            return _answer(call, "staged", progress=progress, receive_s=receive_s)
        return await _taken(call, progress.staged.outcome, receive_s=receive_s)


def _arrived(call: WeightsCall, writer: ShardWriter) -> UploadProgress:
    """Take a shard, and have the weights taken if it was the last one; on a thread, so that nothing comes between."""
    progress = writer.finish()
    if progress.starts and progress.staged is not None:
        _begin(call, progress.staged)
    return progress


def _begin(call: WeightsCall, staged: StagedWeights) -> None:
    """Have weights taken; whatever comes of it, it comes to all who wait for them."""
    metrics, name = call.resources.metrics, call.policy.spec.id
    staged.outcome.add_done_callback(partial(_count, metrics, name))
    try:
        call.policy.replace_weights(staged)
    except BaseException as error:
        staged.release()
        if not staged.outcome.done():
            staged.outcome.set_exception(error)
        raise


def _count(metrics: Metrics, name: str, outcome: Future[SwapReport]) -> None:
    if outcome.exception() is None and not outcome.result().skipped:
        metrics.weight_swaps.labels(name).inc()
        metrics.weight_swap_seconds.labels(name).observe(outcome.result().swap_s)


async def _taken(
    call: WeightsCall, outcome: Future[SwapReport], *, receive_s: float = 0.0, read_s: float = 0.0
) -> WeightsResponse:
    """The answer once the weights are live."""
    report = await call.resources.wait_for(asyncio.wrap_future(outcome), call.deadline, call.request.receive)
    return _answer(call, "live", report=report, receive_s=receive_s, read_s=read_s)


def _answer(
    call: WeightsCall,
    status: Literal["announced", "staged", "live"],
    *,
    progress: UploadProgress | None = None,
    report: SwapReport | None = None,
    receive_s: float = 0.0,
    read_s: float = 0.0,
) -> WeightsResponse:
    seconds = {
        "receive": receive_s,
        "verify": read_s + (0.0 if report is None else report.verify_s),
        "swap": 0.0 if report is None else report.swap_s,
    }
    n_bytes = 0 if progress is None else progress.n_bytes
    return WeightsResponse(
        request_id=call.request.state.request_id,
        service=service(),
        model=call.policy.spec.id,
        weight_version=call.policy.weight_version,
        status=status,
        missing_shards=[] if progress is None else list(progress.missing[:MOST_MISSING]),
        n_bytes=n_bytes if report is None else report.n_bytes,
        n_tensors=0 if report is None else report.n_tensors,
        seconds=WeightsSeconds(**{name: round(value, 6) for name, value in seconds.items()}),
        cast_from=None if report is None else report.cast_from,
    )


async def _pieces(call: WeightsCall) -> AsyncGenerator[bytes, None]:
    """The body, about `WRITE_BYTES` at a time; what is not handed on yet counts as held."""
    settings, stream = call.resources.settings, call.request.stream()
    size, chunks, n_waiting = 0, [], 0
    with call.resources.hold() as held:
        while True:
            patience_s = min(max(call.deadline.remaining_s, 0.0), settings.body_timeout_s)
            try:
                with anyio.fail_after(patience_s):
                    chunk = await anext(stream, None)
            except TimeoutError:
                raise _too_slow(call) from None
            if chunk is not None:
                size += len(chunk)
                if size > settings.max_shard_bytes:
                    raise _too_large(settings.max_shard_bytes)
                held.add(len(chunk))
                chunks.append(chunk)
                n_waiting += len(chunk)
            if chunks and (chunk is None or n_waiting >= WRITE_BYTES):
                yield b"".join(chunks)
                held.release(n_waiting)
                chunks, n_waiting = [], 0
            if chunk is None:
                return


def _place_of(call: WeightsCall) -> ShardPlace:
    """Which shard the query names.

    Raises:
        ServiceError: If it names none.
    """
    query = call.request.query_params
    names = [name for name, _ in query.multi_items()]
    repeated = next((name for name in names if names.count(name) > 1 and name in WeightsShard.model_fields), None)
    if repeated is not None:
        item = ErrorItem(pointer=repeated, code=ErrorCode.INVALID_REQUEST, detail="the parameter comes twice")
        raise ServiceError(ErrorCode.INVALID_REQUEST, f"{repeated}: {item.detail}", (item,), _CLOSE)
    try:
        asked = WeightsShard.model_validate(dict(query))
    except ValidationError as error:
        found = from_validation_error(error)
        items = tuple(item.model_copy(update={"pointer": item.pointer.removeprefix("/")}) for item in found.items)
        raise ServiceError(found.code, found.detail, items, _CLOSE) from None
    return ShardPlace(
        call.policy.spec.id,
        asked.weight_version,
        asked.shard,
        asked.shards,
        asked.checksum,
        adapter=asked.adapter,
        merged=asked.merged,
    )


def _refuse_unread(call: WeightsCall) -> None:
    """Refuse a body that is compressed, or says in its head that it is too large."""
    headers, limit = call.request.headers, call.resources.settings.max_shard_bytes
    if headers.get("content-encoding", "identity").lower() != "identity":
        detail = "got a compressed body; expected it as it is"
        raise ServiceError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, detail, headers=_CLOSE)
    declared = headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise _too_large(limit)


def _too_large(limit: int) -> ServiceError:
    detail = f"the shard is larger than {limit} bytes, the limit (max_shard_bytes); expected more and smaller ones"
    return ServiceError(ErrorCode.BODY_TOO_LARGE, detail, headers=_CLOSE)


def _too_slow(call: WeightsCall) -> ServiceError:
    detail = f"nothing of the body came for {call.resources.settings.body_timeout_s:g} s"
    if call.deadline.remaining_s <= 0.0:
        detail = "the deadline of the request passed before its body was here"
    return ServiceError(ErrorCode.DEADLINE_EXCEEDED, detail, headers=_CLOSE)


def _uploads_of(resources: Resources) -> WeightUploads:
    if resources.uploads is None:
        raise RuntimeError("the resources are not open")
    return resources.uploads


def _root_of(resources: Resources) -> Path:
    root = resources.settings.weights_root or resources.settings.models_root
    if root is None:
        raise WeightsRefusedError("this service has no weights_root, the directory for weights that are named")
    return root


async def _off(call: WeightsCall, work: Callable[[], T]) -> T:
    """Run disk work on a thread; it ends before anything else happens to its request."""
    return await anyio.to_thread.run_sync(work, limiter=call.resources.weight_threads)


@contextmanager
def _refusals(name: str, headers: Mapping[str, str] = MappingProxyType({})) -> Iterator[None]:
    """What an engine says of weights, raised as the error of the service that says the same, with these headers."""
    try:
        with errors_of_the_service(name):
            try:
                yield
            except WeightsRefusedError as error:
                raise ServiceError(ErrorCode.WEIGHTS_REFUSED, f"model {name}: {error}") from None
    except ServiceError as error:
        error.headers.update(headers)
        raise
