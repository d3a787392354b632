"""From answers to results; no IO.

Answers are read by what this client knows and the rest is passed over, because changes within v1 are additive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from creditd.client import evaluation
from creditd.client.bodies import Body
from creditd.client.documents import NOT_IN_SCHEMA, known, read, unreadable
from creditd.client.exceptions import (
    CreditdError,
    DeadlineExceededError,
    ResponseError,
    StatusError,
    TransportError,
    status_error_class,
)
from creditd.client.results import GroupResult, ItemError, Ragged, ShapleyResult
from creditd.client.retry import OUT_OF_TIME_S, is_retried
from creditd.client.steps import Reply
from creditd.credit.flags import Flag
from creditd.wire import v1
from creditd.wire.errors import ERROR_KINDS, MAX_ERRORS, ErrorCode
from creditd.wire.info import Info, ModelInfo
from creditd.wire.versions import package_version

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]

FLAG_NAMES = tuple(str(flag.name).lower() for flag in Flag)
"""Bit i of a mask of `creditd.credit.flags.Flag` is called FLAG_NAMES[i]."""


def shapley_result(reply: Reply, body: Body) -> ShapleyResult:
    """The answer of `/v1/credit/shapley` to a columnar request.

    Raises:
        ResponseError: If the answer is not in the schema, or not about the sets of the request.
    """
    return read(reply, lambda answer: _shapley_result(answer, body))


def group_result(reply: Reply, body: Body) -> GroupResult:
    """The answer of `/v1/credit/group`.

    Raises:
        ResponseError: If the answer is not in the schema, or not about the rows of the request.
    """
    return read(reply, lambda answer: _group_result(answer, body))


def solve_answer(reply: Reply, body: Body) -> dict[str, Any]:
    """The answer of `/v1/credit/shapley/solve`, as far as a conversation needs it.

    Raises:
        ResponseError: If the answer is not in the schema, or not about the sets of the request.
    """
    return read(reply, lambda answer: _solve_answer(answer, np.diff(body.row_splits).tolist()))


def _solve_answer(answer: dict[str, Any], sizes: list[int]) -> dict[str, Any]:
    items = answer["items"]
    if not isinstance(answer["done"], bool) or not {item["status"] for item in items} <= {"open", "ok", "error"}:
        raise ValueError("items: expected one of open, ok, error in each")
    if len(items) != len(sizes):
        raise ValueError(f"got {len(items)} items; expected {len(sizes)}")
    wanted = evaluation.wanted_in(answer)
    if not wanted and any(item["status"] == "open" for item in items):
        raise ValueError("next: expected coalitions, because an item is open")
    for row, players in wanted:
        if any(not 0 <= player < sizes[row] for player in players):
            raise ValueError(f"next: expected players from 0 to {sizes[row] - 1}")
    return answer


def solve_result(answer: dict[str, Any], body: Body) -> ShapleyResult:
    """The result of a conversation whose last answer leaves no item open.

    Raises:
        ResponseError: If the answer is not about the sets of the request.
    """
    try:
        return _solve_result(answer, body)
    except NOT_IN_SCHEMA as error:
        raise unreadable(error, answer, str(answer.get("request_id"))) from error


def _solve_result(answer: dict[str, Any], body: Body) -> ShapleyResult:
    errors = tuple(
        item_error(str(item["error"]["code"]), str(item["error"]["pointer"]), str(item["error"]["detail"]), body, row)
        for row, item in enumerate(answer["items"])
        if item["status"] == "error"
    )
    usage, service = known(v1.Usage, answer["usage"]), known(v1.Service, answer["service"])
    return evaluation.result_of(answer, body, FLAG_NAMES, errors, usage, service)


def info(reply: Reply) -> Info:
    """The answer of `/v1/info`.

    Raises:
        ResponseError: If the answer is not in the schema.
    """
    return read(reply, lambda answer: known(Info, answer))


def models(reply: Reply) -> list[ModelInfo]:
    """The answer of `/v1/models`.

    Raises:
        ResponseError: If the answer is not in the schema.
    """
    return read(reply, lambda answer: [known(ModelInfo, one) for one in answer["models"]])


def failure(
    outcome: Reply | httpx.RequestError,
    body: Body | None,
    *,
    url: str,
    request_id: str,
    attempts: int,
    elapsed_s: float,
    deadline_s: float,
) -> CreditdError:
    """The exception of an outcome that is not a success.

    Args:
        outcome: An answer with another status than 200, or what the transport raised.
        body: What was sent, to name sets and candidates.
        url: Address of the service.
        request_id: Identity of the request.
        attempts: How often it was sent.
        elapsed_s: Seconds since the first attempt began.
        deadline_s: Seconds allowed for everything.

    Returns:
        An exception of the class of the status, `ResponseError` for a redirect, or one for the lack of an answer.
    """
    effort = f" ({attempts} attempts in {elapsed_s:.1f} s)" if attempts > 1 else ""
    tail = f"{effort} [request {request_id}]"
    if isinstance(outcome, Reply):
        if outcome.status >= 400:
            return _status_error(outcome, body, tail, request_id, attempts, elapsed_s)
        return ResponseError(
            f"got status {outcome.status} from {url}; expected 200: is this the address of creditd?{tail}",
            client_version=package_version(),
            request_id=request_id,
        )
    if isinstance(outcome, httpx.TimeoutException) and deadline_s - elapsed_s <= OUT_OF_TIME_S:
        return DeadlineExceededError(
            f"no answer from {url} within {deadline_s:g} s{tail}",
            status=504,
            code=ErrorCode.DEADLINE_EXCEEDED.value,
            request_id=request_id,
            retryable=True,
            attempts=attempts,
            elapsed_s=elapsed_s,
        )
    return TransportError(
        f"no answer from {url}: {type(outcome).__name__}: {outcome}{tail}",
        request_id=request_id,
        attempts=attempts,
        elapsed_s=elapsed_s,
    )


def refused(code: ErrorCode, detail: str, items: tuple[ItemError, ...], request_id: str) -> StatusError:
    """The exception of a request that local mode refuses, as the service's refusal would be raised."""
    kind = ERROR_KINDS[code]
    return status_error_class(kind.status, code.value)(
        f"{kind.status} {code.value}: {detail} [request {request_id}]",
        status=kind.status,
        code=code.value,
        request_id=request_id,
        retryable=kind.retryable,
        items=items[:MAX_ERRORS],
    )


def item_error(
    code: str | ErrorCode, pointer: str, detail: str, body: Body | None, row: int | None = None
) -> ItemError:
    """An offence, with the set and the candidate that its pointer means."""
    found, candidate = (None, None) if body is None else _located(pointer, body)
    return ItemError(
        code=code.value if isinstance(code, ErrorCode) else code,
        pointer=pointer,
        detail=detail,
        row=found if row is None else row,
        candidate=candidate,
    )


_VALUES = (["rewards", "values"], ["spans", "starts"], ["spans", "stops"])
_OF_CANDIDATES = frozenset({"texts", "labels", "unions", "candidate_ids", "topics", "scores"})
"""Columns with one entry per candidate, flat."""
_OF_ROWS = frozenset({"topics", "scores"})
"""Those of them with a row per candidate, which its row split ends."""


def _located(pointer: str, body: Body) -> tuple[int | None, int | None]:
    """Row and position within it that a pointer into a request of this client means."""
    parts, splits = pointer.split("/")[1:], body.row_splits
    if parts[:2] == ["columns", "named_rewards"]:
        parts[1:3] = ["rewards"]
    if body.named and parts[0] == "rewards":
        del parts[1:2]
    numbers = [int(part) for part in parts if part.isdecimal()]
    if not numbers or parts[0] == "items":
        return (numbers[0] if numbers else None), None
    if parts[0] == "sets" and parts[2:3] != ["candidates"]:
        del numbers[1:]
    if parts[0] in {"rewards", "n_tokens", "sets"}:
        return numbers[0], numbers[1] if len(numbers) > 1 else None
    if parts[0] != "columns":
        return None, None
    place = numbers[0]
    if parts[1] in _OF_ROWS and "row_splits" in parts:
        place -= 1
    if (parts[1] in _OF_CANDIDATES or parts[1:3] in _VALUES) and 0 <= place < splits[-1]:
        row = int(np.searchsorted(splits, place, side="right")) - 1
        return row, place - int(splits[row])
    if "row_splits" in parts:
        return numbers[0] - 1, None
    return (place if len(parts) == 3 or parts[1] == "prompts" else None), None


def _shapley_result(answer: dict[str, Any], body: Body) -> ShapleyResult:
    columns = answer["columns"]
    n_sets = len(body.row_splits) - 1
    ok = _answered(columns["status"], n_sets)
    credits_ = _ragged(columns["credits"], body.row_splits)
    advantages = _ragged(columns["advantages"], body.row_splits)
    tokens, whole = columns.get("token_advantages"), columns.get("set_reward_advantages")
    errors, model = columns.get("standard_errors"), answer.get("model")
    return ShapleyResult(
        credits=credits_,
        advantages=advantages,
        token_advantages=None if tokens is None else _ragged(tokens, None, n_sets),
        set_advantages=_floats(columns["set_advantages"], n_sets),
        set_reward_advantages=None if whole is None else _floats(whole, n_sets),
        utility_empty=_floats(columns["utility_empty"], n_sets),
        utility_grand=_floats(columns["utility_grand"], n_sets),
        credit_sum=_floats(columns["credit_sum"], n_sets),
        gap=_floats(columns["gap"], n_sets),
        exact=bool(columns["exact"]),
        method=str(columns["method"]),
        standard_errors=None if errors is None else _ragged(errors, body.row_splits),
        model=None if model is None else str(model),
        ids=body.ids,
        ok=ok,
        flag_masks=_integers(columns["flags"], n_sets),
        flag_names=tuple(map(str, columns["flag_names"])),
        errors=_row_errors(answer.get("errors"), body, ok),
        usage=known(v1.Usage, answer["usage"]),
        request_id=str(answer["request_id"]),
        service=known(v1.Service, answer["service"]),
    )


def _group_result(answer: dict[str, Any], body: Body) -> GroupResult:
    rows, n_rows = answer["advantages"], len(body.row_splits) - 1
    splits = np.append(np.int64(0), np.cumsum([len(row) for row in rows], dtype=np.int64))
    values = [np.array(row, dtype=np.float64) for row in rows]
    flat = {"values": np.concatenate([np.zeros(0), *values]), "row_splits": splits}
    names, masks = flag_masks(answer["flags"])
    ok = _answered(answer["status"], n_rows)
    return GroupResult(
        advantages=_ragged(flat, body.row_splits),
        ok=ok,
        flag_masks=_integers(masks, n_rows),
        flag_names=names,
        errors=_row_errors(answer["errors"], body, ok),
        usage=known(v1.Usage, answer["usage"]),
        request_id=str(answer["request_id"]),
        service=known(v1.Service, answer["service"]),
    )


def _ragged(ragged: dict[str, Any], expected: Integers | None, n_rows: int | None = None) -> Ragged:
    """A ragged array with the rows of the request, or with as many."""
    found = Ragged(values=np.array(ragged["values"], dtype=np.float64), row_splits=np.array(ragged["row_splits"]))
    if expected is not None and not np.array_equal(found.row_splits, expected):
        raise ValueError("row_splits: expected those of the request")
    if n_rows is not None and len(found) != n_rows:
        raise ValueError(f"got {len(found)} rows; expected {n_rows}")
    return found


def _floats(values: Sequence[float | None] | Floats, n_rows: int) -> Floats:
    return _long(np.array(values, dtype=np.float64), n_rows)


def _integers(values: Sequence[int] | Integers, n_rows: int) -> Integers:
    return _long(np.array(values, dtype=np.int64), n_rows)


def _answered(status: Sequence[int] | Integers, n_rows: int) -> Booleans:
    found: Booleans = _integers(status, n_rows) == 0
    return found


def _long(array: NDArray[Any], n_rows: int) -> NDArray[Any]:
    if array.shape != (n_rows,):
        raise ValueError(f"got shape {array.shape}; expected ({n_rows},)")
    return array


def flag_masks(flags: list[list[str]]) -> tuple[tuple[str, ...], list[int]]:
    """Lists of names as bit masks: the known names in their order, then those of a newer service."""
    names = (*FLAG_NAMES, *sorted({name for row in flags for name in row} - set(FLAG_NAMES)))
    bits = {name: 1 << bit for bit, name in enumerate(names)}
    return names, [sum(bits[name] for name in row) for row in flags]


def _row_errors(errors: list[dict[str, Any]] | None, body: Body, ok: Booleans) -> tuple[ItemError, ...]:
    """One error for each row without an answer."""
    found = tuple(
        item_error(str(error["code"]), str(error["pointer"]), str(error["detail"]), body, int(error["row"]))
        for error in errors or ()
    )
    if sorted(error.row or 0 for error in found) != np.flatnonzero(~ok).tolist():
        raise ValueError(f"errors: expected one for each of the {int((~ok).sum())} rows without an answer")
    return found


def _status_error(
    reply: Reply, body: Body | None, tail: str, request_id: str, attempts: int, elapsed_s: float
) -> StatusError:
    """The exception of a problem document, or of whatever something before the service says."""
    problem = _problem(reply)
    code, detail = problem.get("code"), problem.get("detail", "no explanation")
    return status_error_class(reply.status, code)(
        f"{reply.status}{f' {code}' if code else ''}: {detail}{tail}",
        status=reply.status,
        code=None if code is None else str(code),
        request_id=request_id,
        retryable=bool(problem.get("retryable", is_retried(reply.status))),
        items=_problem_items(problem.get("errors"), body),
        attempts=attempts,
        elapsed_s=elapsed_s,
    )


def _problem(reply: Reply) -> dict[str, Any]:
    """The problem document of a failed answer; empty if it has none."""
    try:
        found = from_json(reply.content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _problem_items(errors: object, body: Body | None) -> tuple[ItemError, ...]:
    if not isinstance(errors, list):
        return ()
    return tuple(
        item_error(str(error.get("code")), str(error.get("pointer")), str(error.get("detail")), body)
        for error in errors
        if isinstance(error, dict)
    )
