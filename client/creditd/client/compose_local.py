"""Composed credit without a service: requests are checked and solved in this process, by the same code."""

from __future__ import annotations

from creditd.client import local
from creditd.client.answers import item_error
from creditd.client.bodies import Body
from creditd.client.compose_answers import result_of
from creditd.client.compose_results import ComposeResult
from creditd.wire import codec
from creditd.wire.compose import ComposeRequest
from creditd.wire.compose_items import composed_results, solve_composition
from creditd.wire.errors import causes_first
from creditd.wire.validation import WireError


def compose_result(body: Body, request_id: str) -> ComposeResult:
    """The answer of `/v1/credit/compose`.

    Args:
        body: A request, as it would be sent.
        request_id: Its identity.

    Returns:
        What the service would answer, with equal bits.

    Raises:
        InvalidRequestError: If the request is wrong, or none of its sets can be answered.
    """
    request = local.parsed(ComposeRequest, body, request_id)
    try:
        solved = solve_composition(request, local.LIMITS)
    except WireError as error:
        raise local.refused_as(error, body, request_id) from None
    if len(solved.credits.errors) == len(request.sets):
        errors = tuple(
            item_error(error.code, solved.pointer(error), error.detail, body, error.row)
            for error in causes_first(solved.credits.errors)
        )
        raise local.nothing_answered("set", errors, request_id)
    document = {**local.head(request_id), "sets": composed_results(request, solved)}
    # As it would have travelled, so that there is one way to read it.
    return result_of(codec.decode(codec.encode(document), arrays=True), body)
