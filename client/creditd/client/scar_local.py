"""Token credit without a service: requests are checked and solved in this process, by the same code."""

from __future__ import annotations

from typing import Any

from creditd.client import local
from creditd.client.answers import item_error
from creditd.client.bodies import Body
from creditd.client.scar_results import ScarResult
from creditd.wire.errors import causes_first
from creditd.wire.scar import ScarRequest, ScarSolveRequest
from creditd.wire.scar_items import pointer_to
from creditd.wire.scar_solve import solve_results, solve_spans
from creditd.wire.validation import WireError


def scar_result(body: Body, request_id: str) -> ScarResult:
    """Refuse what only a model can answer.

    Args:
        body: A request, as it would be sent.
        request_id: Its identity.

    Returns:
        Never.

    Raises:
        InvalidRequestError: If the request is wrong.
        NotFoundError: Otherwise, as a service says that has no models.
    """
    local.parsed(ScarRequest, body, request_id)
    raise local.unknown_model("/model", request_id)


def solve_answer(body: Body, request_id: str) -> dict[str, Any]:
    """The answer of `/v1/credit/scar/solve` as a document.

    Args:
        body: A request, as it would be sent.
        request_id: Its identity.

    Returns:
        What the service would answer, with equal bits; arrays stay arrays.

    Raises:
        InvalidRequestError: If the request is wrong, or none of its completions can be answered.
    """
    request = local.parsed(ScarSolveRequest, body, request_id)
    try:
        solved = solve_spans(request, local.LIMITS)
    except WireError as error:
        raise local.refused_as(error, body, request_id) from None
    if len(solved.errors) == len(request.items):
        errors = tuple(
            item_error(error.code, pointer_to(error), error.detail, body, error.row)
            for error in causes_first(solved.errors)
        )
        raise local.nothing_answered("item", errors, request_id)
    return {
        **local.head(request_id),
        "done": solved.done,
        "items": solve_results(request, solved),
    }
