"""Reshaped advantages without a service: requests are checked and solved in this process, by the same code."""

from __future__ import annotations

from creditd.client import local
from creditd.client.answers import item_error
from creditd.client.bodies import Body
from creditd.client.oar_answers import result_of
from creditd.client.oar_results import OarResult
from creditd.wire.errors import causes_first
from creditd.wire.oar import OarRequest
from creditd.wire.oar_items import pointer_to, solve_given
from creditd.wire.oar_results import failed_item, reshaped_item
from creditd.wire.validation import WireError


def oar_result(body: Body, request_id: str) -> OarResult:
    """The answer of `/v1/credit/oar` to a request whose sensitivities are given.

    Args:
        body: A request, as it would be sent.
        request_id: Its identity.

    Returns:
        What the service would answer, with equal bits.

    Raises:
        InvalidRequestError: If the request is wrong, or none of its completions can be answered.
        NotFoundError: If it asks a policy, as a service says that has none.
    """
    request = local.parsed(OarRequest, body, request_id)
    if request.model is not None:
        raise local.unknown_model("/model", request_id)
    try:
        solved = solve_given(request, local.LIMITS)
    except WireError as error:
        raise local.refused_as(error, body, request_id) from None
    if len(solved.errors) == len(request.items):
        errors = tuple(
            item_error(error.code, pointer_to(error), error.detail, body, error.row)
            for error in causes_first(solved.errors)
        )
        raise local.nothing_answered("item", errors, request_id)
    failed = {error.row: failed_item(error) for error in solved.errors}
    items = [failed[row] if credit is None else reshaped_item(credit) for row, credit in enumerate(solved.items)]
    return result_of({**local.head(request_id), "items": items}, body)
