"""Exchanges as the text of a file, and back; no IO.

One file is one JSON object: the fields of `Exchange` and `"format": 1`. Request and response stand in it as strings and
not as objects: they hold NaN, and their bits are the point. They are JSON whatever format travelled, with the same
numbers. Fields may be added within a format; a reader passes over
those that it does not know.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from functools import cache
from typing import Any, TypeAlias
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json, to_json

from creditd.client import answers, compose_answers, oar_answers, scar_answers
from creditd.client.arrays import Integers, splits_of
from creditd.client.bodies import Body
from creditd.client.compose_bodies import n_tokens as tokens_of_set
from creditd.client.compose_results import ComposeResult
from creditd.client.documents import text_of
from creditd.client.exceptions import CreditdError, ResponseError
from creditd.client.oar_bodies import n_tokens
from creditd.client.oar_results import OarResult
from creditd.client.results import GroupResult, ItemError, Ragged, ShapleyResult
from creditd.client.scar_results import ScarResult
from creditd.client.steps import Exchange, Failure, Reply
from creditd.wire.errors import ERROR_KINDS, ErrorCode
from creditd.wire.versions import package_version

Result: TypeAlias = ShapleyResult | GroupResult | ScarResult | OarResult | ComposeResult

FORMAT = 1
SHAPLEY_PATH = "/v1/credit/shapley"
GROUP_PATH = "/v1/credit/group"
SCAR_PATH = "/v1/credit/scar"
OAR_PATH = "/v1/credit/oar"
COMPOSE_PATH = "/v1/credit/compose"
_PARTS = {SCAR_PATH: "items", OAR_PATH: "items", COMPOSE_PATH: "sets"}
"""What a request is made of, where that is not columns."""


def exchange_of(
    outcome: Result | CreditdError,
    body: Body,
    reply: Reply | None,
    *,
    time: datetime,
    url: str,
    operation: str,
    request_id: str,
    attempts: int,
    elapsed_s: float,
) -> Exchange:
    """What is kept of a request and what came of it.

    Args:
        outcome: What the caller gets, or what is raised.
        body: What was sent, or would have been.
        reply: The last answer; None in local mode and if none came.
        time: When it ended, UTC.
        url: Address of the service; credentials in it are not kept.
        operation: Path of the route.
        request_id: Identity of the request.
        attempts: How often it was sent.
        elapsed_s: Seconds that it took.

    Returns:
        A record from which the same bytes can be sent again.
    """
    address = public_url(url)
    error, status, version, response = None, None, None, None
    if isinstance(outcome, CreditdError):
        error = failure_of(outcome, {url: address})
        status, version = error.status, getattr(outcome, "service_version", None)
    else:
        status, version = 200, outcome.service.version
    if reply is not None:
        status, response = reply.status, text_of(reply)
    elif isinstance(outcome, ShapleyResult | GroupResult):
        response = answer_text(outcome)
    elif isinstance(outcome, ComposeResult):
        response = compose_answers.answer_text(outcome)
    elif isinstance(outcome, OarResult):
        response = oar_answers.answer_text(outcome)
    return Exchange(
        time=time,
        url=address,
        operation=operation,
        request_id=request_id,
        status=status,
        attempts=attempts,
        elapsed_s=elapsed_s,
        client_version=package_version(),
        service_version=version,
        ids=body.ids,
        request=body.text,
        response=response,
        error=error,
    )


def failure_of(error: CreditdError, renamed: dict[str, str] | None = None) -> Failure:
    """What is kept of an exception; texts in its message that are keys of `renamed` are replaced."""
    detail = str(error)
    for old, new in (renamed or {}).items():
        detail = detail.replace(old, new)
    return Failure(
        kind=type(error).__name__,
        status=getattr(error, "status", None),
        code=getattr(error, "code", None),
        detail=detail,
    )


def public_url(url: str) -> str:
    """An address without user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def written(exchange: Exchange) -> bytes:
    """An exchange as the content of a file.

    Args:
        exchange: Its ids may be of any type: those that are no integers become text.

    Returns:
        JSON, UTF-8.
    """
    names = None if exchange.ids is None else [_plain(name) for name in exchange.ids]
    return to_json({"format": FORMAT, **asdict(exchange), "ids": names})


def parsed(content: bytes) -> Exchange:
    """An exchange from the content of a file.

    Args:
        content: What `written` wrote, or what became of it.

    Returns:
        The exchange, whose request is one that `Client.repeat` can send.

    Raises:
        ValueError: If it is something else, in one sentence.
    """
    try:
        document = from_json(content)
    except ValueError as error:
        raise ValueError(f"not JSON ({error}); expected a file that Client(record=…) wrote") from None
    if not isinstance(document, dict) or "format" not in document:
        raise ValueError("not a recorded exchange; expected a file that Client(record=…) wrote")
    if document["format"] != FORMAT:
        raise ValueError(f"got format {str(document['format'])[:20]}; this version reads format {FORMAT}")
    try:
        exchange = _reader().validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'/'.join(map(str, first['loc']))}: {first['msg']}") from None
    body_of(exchange)
    return exchange


def body_of(exchange: Exchange) -> Body:
    """The recorded request, to the bit.

    Args:
        exchange: A recorded exchange.

    Returns:
        The body that was sent.

    Raises:
        ValueError: If this client sends no such request.
    """
    try:
        request = from_json(exchange.request)
    except ValueError as error:
        raise ValueError(f"request: not JSON ({error})") from None
    named, tokens = False, None
    try:
        if exchange.operation == SHAPLEY_PATH:
            splits = _splits_in(request["columns"])
        elif exchange.operation == GROUP_PATH:
            named = isinstance(request["rewards"], dict)
            rows = next(iter(request["rewards"].values())) if named else request["rewards"]
            splits = splits_of([len(row) for row in rows])
        elif exchange.operation == SCAR_PATH:
            splits = splits_of([len(item.get("token_offsets") or ()) for item in request["items"]])
        elif exchange.operation == OAR_PATH:
            splits = splits_of([n_tokens(item) for item in request["items"]])
        elif exchange.operation == COMPOSE_PATH:
            splits = splits_of([len(item["candidates"]) for item in request["sets"]])
            tokens = splits_of([tokens_of_set(item) for item in request["sets"]])
        else:
            expected = f"{SHAPLEY_PATH}, {GROUP_PATH}, {SCAR_PATH}, {OAR_PATH} or {COMPOSE_PATH}"
            raise ValueError(f"got operation {exchange.operation[:40]!r}; expected {expected}")
    except (AttributeError, KeyError, StopIteration, TypeError, OverflowError):
        parts = _PARTS.get(exchange.operation, "columns")
        raise ValueError(f"request: expected the {parts} that this client sends to {exchange.operation}") from None
    if splits.ndim != 1 or len(splits) < 1 or splits[0] != 0 or (splits[1:] < splits[:-1]).any():
        raise ValueError("request: row_splits: expected numbers that never fall, from 0")
    if exchange.ids is not None and len(exchange.ids) != len(splits) - 1:
        raise ValueError(f"ids: got {len(exchange.ids)}; expected {len(splits) - 1}, one per set")
    return Body(
        content=exchange.request.encode(), row_splits=splits, ids=exchange.ids, named=named, token_splits=tokens
    )


def _splits_in(columns: dict[str, Any]) -> Integers:
    """Row splits of the candidates in the columns of a request."""
    named = columns.get("named_rewards")
    one = columns.get("rewards", columns) if named is None else next(iter(named.values()))
    return np.array(one["row_splits"], dtype=np.int64)


def answer_of(exchange: Exchange) -> Result | None:
    """The recorded answer.

    Args:
        exchange: A recorded exchange.

    Returns:
        The result, or None if an error was recorded.

    Raises:
        ValueError: If there is neither an error nor an answer in the schema.
    """
    if exchange.error is not None:
        return None
    if exchange.response is None:
        raise ValueError("response: expected the text of an answer, because no error is recorded")
    reply, body = Reply(200, {}, exchange.response.encode()), body_of(exchange)
    try:
        if exchange.operation == SHAPLEY_PATH:
            return answers.shapley_result(reply, body)
        if exchange.operation == SCAR_PATH:
            return scar_answers.scar_result(reply, body)
        if exchange.operation == COMPOSE_PATH:
            return compose_answers.compose_result(reply, body)
        if exchange.operation == OAR_PATH:
            return oar_answers.oar_result(reply, body)
        return answers.group_result(reply, body)
    except ResponseError as error:
        raise ValueError(f"response: {error}") from None


def answer_text(result: ShapleyResult | GroupResult) -> str:
    """The answer that the service would have sent for a result, bits included.

    Args:
        result: Of local mode.

    Returns:
        JSON that fits `v1.ShapleyResponse` or `GroupResponse`, with null where there is no number.
    """
    head = {
        "request_id": result.request_id,
        "service": result.service.model_dump(),
        "usage": result.usage.model_dump(),
    }
    errors = [_row_error(error) for error in result.errors]
    document: dict[str, Any]
    if isinstance(result, ShapleyResult):
        document = {**head, "columns": _columns(result), "errors": errors}
    else:
        document = {
            **head,
            "advantages": result.advantages.to_list(),
            "status": _status(result),
            "flags": result.flags,
            "errors": errors,
        }
    return to_json(document, inf_nan_mode="null").decode()


@cache
def _reader() -> TypeAdapter[Exchange]:
    """Made when it is first needed: most clients read no recording."""
    return TypeAdapter(Exchange)


def _columns(result: ShapleyResult) -> dict[str, Any]:
    tokens, whole = result.token_advantages, result.set_reward_advantages
    return {
        "status": _status(result),
        "credits": _ragged(result.credits),
        "advantages": _ragged(result.advantages),
        "set_advantages": result.set_advantages.tolist(),
        "set_reward_advantages": None if whole is None else whole.tolist(),
        "token_advantages": None if tokens is None else _ragged(tokens),
        "utility_empty": result.utility_empty.tolist(),
        "utility_grand": result.utility_grand.tolist(),
        "credit_sum": result.credit_sum.tolist(),
        "gap": result.gap.tolist(),
        "flags": result.flag_masks.tolist(),
        "flag_names": result.flag_names,
        "exact": result.exact,
        "method": result.method,
    }


def _status(result: Result) -> list[int]:
    return [int(not ok) for ok in result.ok.tolist()]


def _ragged(rows: Ragged) -> dict[str, Any]:
    return {"values": rows.values.tolist(), "row_splits": rows.row_splits.tolist()}


def _row_error(error: ItemError) -> dict[str, Any]:
    return {
        "row": error.row,
        "code": error.code,
        "pointer": error.pointer,
        "detail": error.detail,
        "retryable": ERROR_KINDS[ErrorCode(error.code)].retryable,
    }


def _plain(name: object) -> str | int | None:
    """A name that survives JSON."""
    if name is None or type(name) is int:
        return name
    return str(name).encode(errors="backslashreplace").decode()
