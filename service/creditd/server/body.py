"""Reading a request: its deadline, its media types, and its body up to the limit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeVar

import anyio
from fastapi import Request
from pydantic import BaseModel, ValidationError

from creditd.scoring.deadline import Deadline
from creditd.server.errors import ServiceError
from creditd.server.json_bodies import check_size
from creditd.server.resources import HeldBytes, resources_of
from creditd.wire import codec
from creditd.wire.errors import ErrorCode, ErrorItem
from creditd.wire.validation import from_validation_error

M = TypeVar("M", bound=BaseModel)

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
JSON = "application/json"
_LONGEST_MS = 10**9
_CLOSE = {"Connection": "close"}
_QUALITY = re.compile(r"\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*", re.IGNORECASE)


def deadline_of(request: Request, at_most_s: float = float("inf")) -> Deadline:
    """When the caller stops waiting: its header, at most the setting.

    Args:
        request: The request.
        at_most_s: What the setting is cut to, for callers who cannot name theirs and are known to leave.

    Returns:
        The deadline.

    Raises:
        ServiceError: If the header is not a whole number of milliseconds.
    """
    longest_s = min(at_most_s, resources_of(request).settings.request_timeout_s)
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return Deadline.after(longest_s)
    if not text.isascii() or not text.isdigit() or not 1 <= len(text) <= 10 or not 0 < int(text) <= _LONGEST_MS:
        detail = f"expected a whole number of milliseconds from 1 to {_LONGEST_MS}"
        item = ErrorItem(pointer=TIMEOUT_HEADER, code=ErrorCode.INVALID_REQUEST, detail=detail)
        raise ServiceError(ErrorCode.INVALID_REQUEST, f"{TIMEOUT_HEADER}: {detail}", (item,))
    return Deadline.after(min(longest_s, int(text) / 1e3))


def answer_type(request: Request) -> str:
    """The media type of the answer: the binary one where `Accept` names it and likes JSON no better, else JSON.

    Args:
        request: The request.

    Returns:
        One of the two. A caller that accepts neither is given JSON.
    """
    qualities: dict[str, float] = {}
    for part in ",".join(request.headers.getlist("accept")).split(","):
        name, *parameters = part.split(";")
        found = [match for match in map(_QUALITY.fullmatch, parameters) if match]
        qualities[name.strip().lower()] = float(found[0][1]) if found else 1.0
    binary = qualities.get(codec.MEDIA_TYPE, 0.0)
    plain = next((qualities[name] for name in (JSON, "application/*", "*/*") if name in qualities), 0.0)
    return codec.MEDIA_TYPE if binary > 0.0 and binary >= plain else JSON


@dataclass(frozen=True)
class Body:
    """The bytes of a request.

    Attributes:
        data: As they were sent.
        binary: Whether they are MessagePack, and not JSON.
    """

    data: bytes
    binary: bool


async def read_body(request: Request, deadline: Deadline, held: HeldBytes) -> Body:
    """The bytes of a request, once all of them are here.

    Args:
        request: The request.
        deadline: When the caller stops waiting, the sending of the body included.
        held: Counts what is kept of the bodies of all requests.

    Returns:
        The body, as long as the limit of its format at most.

    Raises:
        ServiceError: If the media type is neither of the two, the body is too large or too slow, or what is held of all
            requests is too much. Where the body was not read to its end the connection is closed.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in {JSON, codec.MEDIA_TYPE}:
        got = "no content type" if not media_type else "another content type"
        detail = f"got {got}; expected Content-Type: {JSON} or {codec.MEDIA_TYPE}"
        raise ServiceError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, detail)
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ServiceError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "got a compressed body; expected it as it is")
    settings, binary = resources_of(request).settings, media_type == codec.MEDIA_TYPE
    limit = settings.max_binary_body_bytes if binary else settings.max_body_bytes
    patience_s = min(max(deadline.remaining_s, 0.0), settings.body_timeout_s)
    try:
        with anyio.fail_after(patience_s):
            return Body(await _read(request, limit, held), binary)
    except TimeoutError:
        detail = f"the body was not here within {settings.body_timeout_s:g} s of its head"
        if deadline.remaining_s <= 0.0:
            detail = "the deadline of the request passed before its body was here"
        raise ServiceError(ErrorCode.DEADLINE_EXCEEDED, detail, headers=_CLOSE) from None


def parse_body(body: Body, model: type[M], max_text_bytes: int) -> M:
    """The body as a checked model.

    JSON goes to pydantic's own parser at once: no dictionary of the whole body is ever built. Of a binary body the
    schema sees the document, whose buffers stay bytes.

    Args:
        body: The body.
        model: What the body has to be.
        max_text_bytes: Most bytes of everything but buffers.

    Returns:
        The model.

    Raises:
        ServiceError: If the body is not of its type, not of the schema, or has more beside its buffers than the limit.
    """
    try:
        if body.binary:
            return model.model_validate(codec.decode(body.data, max_text_bytes), by_alias=True, by_name=False)
        check_size(body.data, max_text_bytes)
        return model.model_validate_json(body.data, by_alias=True, by_name=False)
    except codec.OversizedBodyError as error:
        raise ServiceError(ErrorCode.BODY_TOO_LARGE, f"the body is too large: {error}, the limit") from None
    except codec.MalformedBodyError as error:
        detail = f"the body is not a document in MessagePack: {error}"
        item = ErrorItem(pointer="", code=ErrorCode.INVALID_REQUEST, detail=detail)
        raise ServiceError(ErrorCode.INVALID_REQUEST, detail, (item,)) from None
    except ValidationError as error:
        found = from_validation_error(error)
        raise ServiceError(found.code, found.detail, found.items) from None


async def _read(request: Request, limit: int, held: HeldBytes) -> bytes:
    """The body's bytes, refused before they are read when Content-Length already tells."""
    declared = request.headers.get("content-length", "")
    too_large = ServiceError(
        ErrorCode.BODY_TOO_LARGE, f"the body is larger than {limit} bytes, the limit", headers=_CLOSE
    )
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > limit):
        raise too_large
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        held.add(len(chunk))
        chunks.append(chunk)
    return b"".join(chunks)
