"""Error codes of the wire and the body that carries them (RFC 9457, `application/problem+json`).

Codes are append-only: a code never changes its meaning, its status or whether a retry can help.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

MAX_ERRORS = 10
"""Most entries of `Problem.errors`: enough to see the pattern, too few to amplify a hostile body."""


class ErrorCode(str, Enum):
    """What went wrong, as a stable name."""

    INVALID_REQUEST = "invalid_request"
    UNKNOWN_FIELD = "unknown_field"
    SHAPE_MISMATCH = "shape_mismatch"
    NON_FINITE_VALUE = "non_finite_value"
    GROUP_INCOMPLETE = "group_incomplete"
    GROUP_SIZE_MISMATCH = "group_size_mismatch"
    TOO_MANY_PLAYERS = "too_many_players"
    BUDGET_EXCEEDED = "budget_exceeded"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    OVERLOADED = "overloaded"
    DRAINING = "draining"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    NON_FINITE_UTILITY = "non_finite_utility"
    UNKNOWN_MODEL = "unknown_model"
    CONTEXT_EXCEEDED = "context_exceeded"
    ENGINE_FAILED = "engine_failed"
    INTERNAL = "internal"
    FORBIDDEN = "forbidden"
    WEIGHT_VERSION_MISMATCH = "weight_version_mismatch"
    WEIGHT_VERSION_UNKNOWN = "weight_version_unknown"
    WEIGHTS_REFUSED = "weights_refused"


@dataclass(frozen=True)
class ErrorKind:
    """What a code means to HTTP and to a caller.

    Attributes:
        status: HTTP status of a whole response that fails with this code.
        retryable: Whether the same request may succeed later.
        title: One short sentence that does not depend on the occasion.
    """

    status: int
    retryable: bool
    title: str


ERROR_KINDS: dict[ErrorCode, ErrorKind] = {
    ErrorCode.INVALID_REQUEST: ErrorKind(422, retryable=False, title="The request does not fit the schema."),
    ErrorCode.UNKNOWN_FIELD: ErrorKind(422, retryable=False, title="The request has a field that the schema lacks."),
    ErrorCode.SHAPE_MISMATCH: ErrorKind(422, retryable=False, title="Two arrays do not fit each other."),
    ErrorCode.NON_FINITE_VALUE: ErrorKind(422, retryable=False, title="A number is NaN or infinite."),
    ErrorCode.GROUP_INCOMPLETE: ErrorKind(422, retryable=False, title="A group lost a set to an error."),
    ErrorCode.GROUP_SIZE_MISMATCH: ErrorKind(422, retryable=False, title="A group has another size than expected."),
    ErrorCode.TOO_MANY_PLAYERS: ErrorKind(
        422, retryable=False, title="A set or a completion has more players than the limit."
    ),
    ErrorCode.BUDGET_EXCEEDED: ErrorKind(422, retryable=False, title="The request would cost more than the limit."),
    ErrorCode.BODY_TOO_LARGE: ErrorKind(413, retryable=False, title="The body is larger than the limit."),
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: ErrorKind(415, retryable=False, title="The body is not in a format spoken here."),
    ErrorCode.UNAUTHORIZED: ErrorKind(401, retryable=False, title="A valid API key is needed."),
    ErrorCode.NOT_FOUND: ErrorKind(404, retryable=False, title="There is no such route."),
    ErrorCode.METHOD_NOT_ALLOWED: ErrorKind(405, retryable=False, title="The route does not take this method."),
    ErrorCode.OVERLOADED: ErrorKind(503, retryable=True, title="The service has as many requests as it can take."),
    ErrorCode.DRAINING: ErrorKind(503, retryable=True, title="The service is shutting down."),
    ErrorCode.DEADLINE_EXCEEDED: ErrorKind(504, retryable=True, title="The request's deadline passed."),
    ErrorCode.NON_FINITE_UTILITY: ErrorKind(422, retryable=False, title="A utility is not a finite number."),
    ErrorCode.UNKNOWN_MODEL: ErrorKind(404, retryable=False, title="The service has no such model for this."),
    ErrorCode.CONTEXT_EXCEEDED: ErrorKind(422, retryable=False, title="A text is longer than the model reads."),
    ErrorCode.ENGINE_FAILED: ErrorKind(502, retryable=True, title="The model failed, or cannot be reached."),
    ErrorCode.INTERNAL: ErrorKind(500, retryable=True, title="The service failed."),
    ErrorCode.FORBIDDEN: ErrorKind(403, retryable=False, title="The API key may not do this."),
    ErrorCode.WEIGHT_VERSION_MISMATCH: ErrorKind(
        409, retryable=False, title="The policy has other weights than the request names."
    ),
    ErrorCode.WEIGHT_VERSION_UNKNOWN: ErrorKind(
        409, retryable=False, title="The policy has never had the weights that the request names."
    ),
    ErrorCode.WEIGHTS_REFUSED: ErrorKind(422, retryable=False, title="The weights do not fit the policy."),
}


class ErrorItem(BaseModel):
    """One offence: where it is and what would be right."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pointer: str
    """JSON pointer into the request body, or the name of a header or parameter."""
    code: ErrorCode
    detail: str


class Problem(BaseModel):
    """Body of every response that is not a success."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str
    """`urn:creditd:error:CODE`."""
    title: str
    status: int
    detail: str
    code: ErrorCode
    request_id: str
    retryable: bool
    errors: tuple[ErrorItem, ...] = ()
    """At most 10 offences; never the input itself."""


def problem(code: ErrorCode, detail: str, *, request_id: str, errors: tuple[ErrorItem, ...] = ()) -> Problem:
    """The problem document of a code.

    Args:
        code: What went wrong.
        detail: One sentence about this occasion; must not repeat the caller's data.
        request_id: Identity of the request.
        errors: Offences; the first 10 are kept.

    Returns:
        A document whose type, title, status and retryable follow from the code.
    """
    kind = ERROR_KINDS[code]
    return Problem(
        type=f"urn:creditd:error:{code.value}",
        title=kind.title,
        status=kind.status,
        detail=detail,
        code=code,
        request_id=request_id,
        retryable=kind.retryable,
        errors=errors[:MAX_ERRORS],
    )


class ItemFailure(Protocol):
    """Why one set, or one completion, has no answer; each route has its own kind."""

    @property
    def code(self) -> str:
        """Stable name of the kind of failure."""

    @property
    def detail(self) -> str:
        """One sentence."""


F = TypeVar("F", bound=ItemFailure)


def causes_first(errors: Sequence[F]) -> list[F]:
    """Errors with those that only follow from another one last.

    Args:
        errors: By row.

    Returns:
        The same errors; within causes and within consequences by row.
    """
    return sorted(errors, key=lambda error: error.code == ErrorCode.GROUP_INCOMPLETE.value)


def first_items(errors: Sequence[F], pointer: Callable[[F], str]) -> tuple[ErrorItem, ...]:
    """The first failures of an answer in which nothing succeeded.

    Args:
        errors: By row.
        pointer: Where an error is in the request.

    Returns:
        As many as a problem document has, causes first.
    """
    return tuple(
        ErrorItem(pointer=pointer(error), code=ErrorCode(error.code), detail=error.detail)
        for error in causes_first(errors)[:MAX_ERRORS]
    )
