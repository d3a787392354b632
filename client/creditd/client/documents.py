"""Answers as documents: out of either format, and in words what is none; no IO.

What this client knows of a document is read and the rest is passed over, because changes within v1 are additive.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from creditd.client.exceptions import ResponseError
from creditd.client.steps import Reply
from creditd.wire import codec
from creditd.wire.versions import package_version

_T = TypeVar("_T")
_M = TypeVar("_M", bound=BaseModel)

NOT_IN_SCHEMA = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What reading an answer of another shape raises."""


def read(reply: Reply, parse: Callable[[dict[str, Any]], _T]) -> _T:
    """What `parse` makes of an answer, or one error for all the ways in which it can be something else."""
    answer: Any = None
    try:
        answer = _document(reply)
        return parse(answer)
    except NOT_IN_SCHEMA as error:
        raise unreadable(error, answer, reply.headers.get("x-request-id")) from error


def _document(reply: Reply) -> Any:  # noqa: ANN401 - whatever came
    """The document of an answer in either format; arrays of numbers are lists or arrays."""
    return codec.decode(reply.content, arrays=True) if _is_binary(reply) else from_json(reply.content)


def _is_binary(reply: Reply) -> bool:
    return reply.headers.get("content-type", "").partition(";")[0].strip().lower() == codec.MEDIA_TYPE


def text_of(reply: Reply) -> str:
    """An answer as JSON, with the bits of every number; what is no document becomes what text it is."""
    if _is_binary(reply):
        with suppress(codec.MalformedBodyError):
            return to_json(_document(reply), inf_nan_mode="null", fallback=lambda array: array.tolist()).decode()
    return reply.content.decode(errors="replace")


def unreadable(error: Exception, answer: object, request_id: str | None) -> ResponseError:
    """The exception of an answer that is not in the schema."""
    service = answer.get("service") if isinstance(answer, dict) else None
    version = service.get("version") if isinstance(service, dict) else None
    return ResponseError(
        f"got an answer that is not in the schema of this client ({type(error).__name__}: {error}); "
        f"client {package_version()}, service {version or 'of unknown version, or not creditd at all'}",
        client_version=package_version(),
        service_version=None if version is None else str(version),
        request_id=request_id,
    )


def known(model: type[_M], answer: dict[str, Any]) -> _M:
    """A model of the wire, from an answer that may have more fields than this client knows."""
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name in answer:
            kind: Any = field.annotation
            nested = isinstance(kind, type) and issubclass(kind, BaseModel)
            fields[name] = known(kind, answer[name]) if nested else answer[name]
    return model.model_validate(fields)
