"""What can go wrong, as one tree.

    CreditdError
    ├─ TransportError              no answer came: address, connection or protocol
    ├─ StatusError                 the service refused or failed: status, code, request_id, retryable, items
    │  ├─ InvalidRequestError      the request is wrong, or no set of it could be answered (400, 413, 415, 422 …)
    │  │  └─ WeightsRefusedError   the weights do not fit the policy, or did not arrive whole (`weights_refused`)
    │  ├─ WeightVersionError       the policy does not have the weights that the request names (409)
    │  │  ├─ WeightVersionMismatchError  it has others (`weight_version_mismatch`)
    │  │  └─ WeightVersionUnknownError   it never had them: push them (`weight_version_unknown`)
    │  ├─ AuthenticationError      the key is missing or wrong (401)
    │  │  └─ ForbiddenError        the key may not do this (403)
    │  ├─ NotFoundError            there is no such route, or no such model: is this the right address? (404, 405)
    │  ├─ OverloadedError          too much at once, or shutting down (429, 503)
    │  ├─ DeadlineExceededError    no answer in time: the service's deadline or the client's own (408, 504)
    │  └─ ServerError              the service failed (500 and other 5xx)
    ├─ ResponseError               an answer came, but not in this client's schema
    ├─ PartialResultError          some sets have no answer: `result` holds the others
    └─ NotReadyError               the service was not ready in time

    try:
        result = client.shapley(sets)
    except PartialResultError as error:
        result = error.result

What the client finds wrong by itself, and what local mode finds, carries the status and the code that the service would
have given. Every class keeps its attributes where Ray sends an exception from one process to another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from creditd.client.compose_results import ComposeResult
    from creditd.client.oar_results import OarResult
    from creditd.client.results import GroupResult, ItemError, ShapleyResult
    from creditd.client.scar_results import ScarResult

_E = TypeVar("_E", bound="CreditdError")


class CreditdError(Exception):
    """Base of all errors of this package."""

    def __reduce__(self) -> tuple[Callable[..., CreditdError], tuple[Any, ...]]:
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[_E], args: tuple[Any, ...], state: dict[str, Any]) -> _E:
    """An exception as it was, without running its constructor."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class TransportError(CreditdError):
    """No answer came, for as long as there was time to ask.

    Attributes:
        request_id: Identity of the request, the same in all attempts.
        attempts: How often it was sent.
        elapsed_s: Seconds from the first attempt to the end of the last one.
    """

    def __init__(
        self, message: str, *, request_id: str | None = None, attempts: int = 1, elapsed_s: float = 0.0
    ) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.attempts = attempts
        self.elapsed_s = elapsed_s


class StatusError(CreditdError):
    """The service answered with an error, or the client knows that it would.

    Attributes:
        status: HTTP status.
        code: Stable name of the kind of error (`creditd.wire.errors.ErrorCode`), or None if something before the
            service answered.
        request_id: Identity of the request, the same in all attempts; None if it was never sent.
        retryable: Whether the same request may succeed later.
        items: What is wrong and where, at most 10.
        attempts: How often the request was sent; 0 if it never was.
        elapsed_s: Seconds from the first attempt to the end of the last one.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        request_id: str | None = None,
        retryable: bool = False,
        items: tuple[ItemError, ...] = (),
        attempts: int = 0,
        elapsed_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retryable = retryable
        self.items = items
        self.attempts = attempts
        self.elapsed_s = elapsed_s


class InvalidRequestError(StatusError):
    """The request is wrong as it stands, or none of its sets could be answered."""


class WeightsRefusedError(InvalidRequestError):
    """Weights that were pushed do not fit the policy, or are not the bytes that were named. It keeps those it has."""


class WeightVersionError(StatusError):
    """The policy does not have the weights that the request names."""


class WeightVersionMismatchError(WeightVersionError):
    """The policy has other weights than the request names, and had no others before its deadline."""


class WeightVersionUnknownError(WeightVersionError):
    """The policy never had the weights that the request names, nor were they announced: it may have been restarted."""


class AuthenticationError(StatusError):
    """The service wants a key, or another one."""


class ForbiddenError(AuthenticationError):
    """The key is valid and may not do this."""


class NotFoundError(StatusError):
    """There is no such route at this address, or the service has no such model."""


class OverloadedError(StatusError):
    """The service takes no more requests now."""


class DeadlineExceededError(StatusError):
    """No answer in time."""


class ServerError(StatusError):
    """The service failed."""


_CLASSES: dict[int, type[StatusError]] = {
    401: AuthenticationError,
    403: ForbiddenError,
    404: NotFoundError,
    405: NotFoundError,
    408: DeadlineExceededError,
    409: WeightVersionError,
    429: OverloadedError,
    503: OverloadedError,
    504: DeadlineExceededError,
}


_CLASSES_OF_CODES: dict[str, type[StatusError]] = {
    "weight_version_mismatch": WeightVersionMismatchError,
    "weight_version_unknown": WeightVersionUnknownError,
    "weights_refused": WeightsRefusedError,
}


def status_error_class(status: int, code: object = None) -> type[StatusError]:
    """The exception of an HTTP status from 400 up, and of the code that came with it if that has one of its own."""
    own = _CLASSES_OF_CODES.get(code) if isinstance(code, str) else None
    return own or _CLASSES.get(status, InvalidRequestError if status < 500 else ServerError)


class ResponseError(CreditdError):
    """An answer came that is not in the schema of this client: a different version, or not creditd at all.

    Attributes:
        request_id: Identity of the request.
        client_version: Version of this package.
        service_version: Version that the answer names, or None if it names none.
    """

    def __init__(
        self,
        message: str,
        *,
        client_version: str,
        service_version: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.client_version = client_version
        self.service_version = service_version
        self.request_id = request_id


class PartialResultError(CreditdError):
    """Some sets or rows have no answer.

    Attributes:
        result: All answers there are, with NaN in the slots of the others and `errors` saying why.
    """

    def __init__(
        self, message: str, result: ShapleyResult | GroupResult | ScarResult | OarResult | ComposeResult
    ) -> None:
        super().__init__(message)
        self.result = result


class NotReadyError(CreditdError):
    """The service was not ready in time.

    Attributes:
        waited_s: Seconds waited.
    """

    def __init__(self, message: str, *, waited_s: float) -> None:
        super().__init__(message)
        self.waited_s = waited_s
