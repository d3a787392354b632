"""Reshaped advantages without a service: requests are checked and solved in this process, by the same code."""

from __future__ import annotations

from creditd.client import local
from creditd.client.bodies import Body
from creditd.client.oar_results import OarResult
from creditd.wire.oar import OarRequest


def oar_result(body: Body, request_id: str) -> OarResult:
    """The answer of `/v1/credit/oar` to a request whose sensitivities are given.

    Args:
        body: A request, as it would be sent.
        request_id: Its identity.

    Returns:
        What the service would answer, with equal bits.

    Raises:
        InvalidRequestError: If the request is wrong, or none of its completions can be answered.
        NotFoundError: If it asks a policy, as a service says that has no models.
    """
    local.parsed(OarRequest, body, request_id)
    raise local.unknown_model("/model", request_id)
