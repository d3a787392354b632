"""The same answers without a service: requests are checked and solved in this process, by the same code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from creditd.client.answers import FLAG_NAMES, item_error, refused
from creditd.client.bodies import Body
from creditd.client.results import GroupResult, ItemError, Ragged, ShapleyResult
from creditd.credit.group_advantages import GroupRule
from creditd.credit.set_advantages import NormalizationType
from creditd.credit.set_credit import SetCreditOptions, set_credit
from creditd.wire import codec, groups, v1
from creditd.wire.choices import CREDIT_NAMES, UTILITY_NAMES, options_of
from creditd.wire.columns import batch_of
from creditd.wire.errors import ErrorCode, causes_first
from creditd.wire.group_rows import GroupRows, solve_group
from creditd.wire.info import Info
from creditd.wire.limits import RequestLimits, published
from creditd.wire.model_texts import asks_models
from creditd.wire.oar_choices import PARSER_NAMES, PROBE_NAMES, SENSITIVITY_NAMES
from creditd.wire.scar_choices import SEGMENTATION_NAMES, SPAN_CREDIT_NAMES
from creditd.wire.set_batches import SetBatch
from creditd.wire.solve import SolveRequest
from creditd.wire.solve_items import pointer_to, solve_item, solve_items
from creditd.wire.validation import WireError, from_validation_error
from creditd.wire.versions import METHODS_VERSION, package_version

Integers: TypeAlias = NDArray[np.int64]
_M = TypeVar("_M", bound=BaseModel)

_USAGE = v1.Usage(evaluations=0, from_cache=0, tokens_computed=0, tokens_naive=0, engine_s=0.0, queue_s=0.0)
_UNLIMITED = sys.maxsize
LIMITS = RequestLimits(table_candidates=16)
"""As a service's by default, but for tables, which no body carries here."""


def shapley_result(body: Body, request_id: str) -> ShapleyResult:
    """The answer of `/v1/credit/shapley`.

    Args:
        body: A columnar request, as it would be sent.
        request_id: Its identity.

    Returns:
        What the service would answer, with equal bits.

    Raises:
        InvalidRequestError: If the request is wrong, or none of its sets can be answered.
        NotFoundError: If it asks a model.
    """
    request = parsed(v1.ShapleyRequest, body, request_id)
    _refuse_models(request, request_id)
    batch, options = _batch_and_options(request, body, request_id)
    solved = set_credit(batch.sets, options, batch.rejected)
    errors = tuple(
        item_error(error.code, batch.pointer(error), error.detail, body, error.row) for error in solved.errors
    )
    if len(errors) == batch.sets.n_sets:
        errors = tuple(
            item_error(error.code, batch.pointer(error), error.detail, body, error.row)
            for error in causes_first(solved.errors)
        )
        raise nothing_answered("set", errors, request_id)
    tokens = None
    if solved.token_advantages is not None and solved.token_splits is not None:
        tokens = Ragged(values=solved.token_advantages, row_splits=solved.token_splits)
    return ShapleyResult(
        credits=Ragged(values=solved.credits, row_splits=solved.row_splits),
        advantages=Ragged(values=solved.advantages, row_splits=solved.row_splits),
        token_advantages=tokens,
        set_advantages=solved.set_advantages,
        set_reward_advantages=solved.set_reward_advantages,
        utility_empty=solved.utility_empty,
        utility_grand=solved.utility_grand,
        credit_sum=solved.credit_sums,
        gap=solved.gaps,
        exact=True,
        method=solved.method,
        ids=body.ids,
        ok=solved.ok,
        flag_masks=solved.flags,
        flag_names=FLAG_NAMES,
        errors=errors,
        usage=_USAGE,
        request_id=request_id,
        service=_service(),
    )


def solve_answer(body: Body, request_id: str) -> dict[str, Any]:
    """The answer of `/v1/credit/shapley/solve` as a document.

    Args:
        body: A request, as it would be sent.
        request_id: Its identity.

    Returns:
        What the service would answer, with equal bits; arrays stay arrays.

    Raises:
        InvalidRequestError: If the request is wrong, or none of its items can be answered.
    """
    request = parsed(SolveRequest, body, request_id)
    try:
        solved = solve_items(request, LIMITS)
    except WireError as error:
        raise refused_as(error, body, request_id) from None
    errors = {
        error.row: item_error(error.code, pointer_to(error), error.detail, body, error.row)
        for error in causes_first(solved.errors)
    }
    if len(errors) == len(request.items):
        raise nothing_answered("item", tuple(errors.values()), request_id)
    items: list[dict[str, Any]] = []
    for row, item in enumerate(solved.items):
        if row in errors or item is None:
            failed = errors[row]
            failure = {"code": failed.code, "pointer": failed.pointer, "detail": failed.detail, "retryable": False}
            items.append({"status": "error", "error": failure})
        else:
            items.append(solve_item(item, solved, row))
    return {**head(request_id), "done": solved.done, "items": items}


def head(request_id: str) -> dict[str, Any]:
    """What every answer begins with."""
    return {"request_id": request_id, "service": _service().model_dump(), "usage": _USAGE.model_dump()}


def group_result(body: Body, request_id: str) -> GroupResult:
    """The answer of `/v1/credit/group`.

    Args:
        body: A request, as it would be sent.
        request_id: Its identity.

    Returns:
        What the service would answer, with equal bits.

    Raises:
        InvalidRequestError: If the request is wrong, or none of its rows can be answered.
    """
    solved = _solved_group(parsed(groups.GroupRequest, body, request_id), body, request_id)
    errors = tuple(item_error(error.code, error.pointer, error.detail, body, error.row) for error in solved.errors)
    if len(errors) == len(solved.flags):
        raise nothing_answered("group", errors, request_id)
    return GroupResult(
        advantages=Ragged(values=solved.advantages, row_splits=solved.row_splits),
        ok=solved.ok,
        flag_masks=solved.flags,
        flag_names=FLAG_NAMES,
        errors=errors,
        usage=_USAGE,
        request_id=request_id,
        service=_service(),
    )


def info() -> Info:
    """The answer of `/v1/info`; bodies and requests in flight have no limit here."""
    return Info(
        service=_service(),
        utilities=list(UTILITY_NAMES),
        credits=list(CREDIT_NAMES),
        advantages=list(get_args(NormalizationType)),
        group_advantages=list(get_args(GroupRule)),
        span_credits=list(SPAN_CREDIT_NAMES),
        segmentations=list(SEGMENTATION_NAMES),
        sensitivities=list(SENSITIVITY_NAMES),
        probes=list(PROBE_NAMES),
        parsers=list(PARSER_NAMES),
        limits=published(
            LIMITS,
            body_bytes=_UNLIMITED,
            binary_body_bytes=_UNLIMITED,
            held_bytes=_UNLIMITED,
            body_timeout_s=_UNLIMITED,
            requests_in_flight=_UNLIMITED,
            weight_bytes=_UNLIMITED,
            shard_bytes=_UNLIMITED,
        ),
        models=[],
    )


def _service() -> v1.Service:
    return v1.Service(version=package_version(), methods=METHODS_VERSION)


def parsed(model: type[_M], body: Body, request_id: str) -> _M:
    """The request, read from the bytes that would be sent, so that nothing can differ."""
    try:
        if body.media_type == codec.MEDIA_TYPE:
            return model.model_validate(codec.decode(body.content))
        return model.model_validate_json(body.content)
    except ValidationError as error:
        raise refused_as(from_validation_error(error), body, request_id) from None


def _refuse_models(request: v1.ShapleyRequest, request_id: str) -> None:
    """Refuse what only a model can answer, as a service refuses it that has none."""
    if not asks_models(request):
        return
    asked = {"features": request.features, "utility": request.utility, "rewards": request.rewards}
    pointer = next(f"/{name}/model" for name, choice in asked.items() if hasattr(choice, "model"))
    raise unknown_model(pointer, request_id)


def unknown_model(pointer: str, request_id: str) -> Exception:
    """The refusal of what only a model can answer; the pointer is to its name."""
    detail = "local mode has no models; expected the address of a service that has this one"
    items = (ItemError(code=ErrorCode.UNKNOWN_MODEL.value, pointer=pointer, detail=detail),)
    return refused(ErrorCode.UNKNOWN_MODEL, f"{pointer}: {detail}", items, request_id)


def _batch_and_options(request: v1.ShapleyRequest, body: Body, request_id: str) -> tuple[SetBatch, SetCreditOptions]:
    try:
        options, batch = options_of(request, LIMITS), batch_of(request, LIMITS)
    except WireError as error:
        raise refused_as(error, body, request_id) from None
    return batch, options


def _solved_group(request: groups.GroupRequest, body: Body, request_id: str) -> GroupRows:
    try:
        return solve_group(request, LIMITS)
    except WireError as error:
        raise refused_as(error, body, request_id) from None


def refused_as(error: WireError, body: Body, request_id: str) -> Exception:
    """The refusal of a request, with the places that are meant."""
    items = tuple(item_error(item.code, item.pointer, item.detail, body) for item in error.items)
    return refused(error.code, error.detail, items, request_id)


def nothing_answered(kind: str, errors: Sequence[ItemError], request_id: str) -> Exception:
    """The refusal of a request of which no part can be answered; the first error gives the kind."""
    first = errors[0]
    detail = f"no {kind} could be answered; the first: {first.pointer}: {first.detail}"
    return refused(ErrorCode(first.code), detail, tuple(errors), request_id)
