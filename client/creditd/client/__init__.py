"""Credit for candidate sets, from a service or in this process.

from creditd.client import Client

with Client("local:") as client:                      # or Client("http://127.0.0.1:8400")
    result = client.shapley([[0.9, 0.5, 0.5, 0.1], [0.2, 0.2, 0.2, 0.2]], groups=["p1", "p1"])
    print(result.credits[0])                          # Shapley credit of the first set's four candidates
    print(result.advantages[0])                       # what a policy gradient multiplies their tokens with
    print(client.group([[1.0, 0.5, 0.0]]).advantages[0])
"""

from creditd.client.aio import AsyncClient
from creditd.client.compose_results import ComposeResult
from creditd.client.evaluators import Evaluator
from creditd.client.exceptions import (
    AuthenticationError,
    CreditdError,
    DeadlineExceededError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    NotReadyError,
    OverloadedError,
    PartialResultError,
    ResponseError,
    ServerError,
    StatusError,
    TransportError,
    WeightsRefusedError,
    WeightVersionError,
    WeightVersionMismatchError,
    WeightVersionUnknownError,
)
from creditd.client.oar_results import OarResult
from creditd.client.results import GroupResult, ItemError, Ragged, ShapleyResult
from creditd.client.scar_results import RaggedSpans, ScarLedger, ScarResult
from creditd.client.sync import Client

__all__ = [
    "AsyncClient",
    "AuthenticationError",
    "Client",
    "ComposeResult",
    "CreditdError",
    "DeadlineExceededError",
    "Evaluator",
    "ForbiddenError",
    "GroupResult",
    "InvalidRequestError",
    "ItemError",
    "NotFoundError",
    "NotReadyError",
    "OarResult",
    "OverloadedError",
    "PartialResultError",
    "Ragged",
    "RaggedSpans",
    "ResponseError",
    "ScarLedger",
    "ScarResult",
    "ServerError",
    "ShapleyResult",
    "StatusError",
    "TransportError",
    "WeightVersionError",
    "WeightVersionMismatchError",
    "WeightVersionUnknownError",
    "WeightsRefusedError",
]


def __getattr__(name: str) -> str:
    if name == "__version__":
        from creditd.wire.versions import package_version  # noqa: PLC0415 - reads metadata, which nobody else needs

        return package_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
