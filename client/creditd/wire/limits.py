"""What one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from creditd.wire.errors import ErrorCode
from creditd.wire.fields import MAX_SETS
from creditd.wire.validation import wire_error


@dataclass(frozen=True)
class RequestLimits:
    """Bounds of one request, settings of the service.

    Attributes:
        sets: Sets, or rows of responses.
        candidates: Candidates of one set with rewards or features.
        table_candidates: Candidates of one set with a table, or with a rule that needs all its utilities.
        token_advantages: Token advantages of all sets together.
        tokens_per_set: Completion tokens of one set.
        evaluations: Utilities of one set that the caller evaluates.
    """

    sets: int = MAX_SETS
    candidates: int = 256
    table_candidates: int = 12
    token_advantages: int = 1 << 22
    tokens_per_set: int = 131_072
    evaluations: int = 1 << 16


def check_rows(n_rows: int, limits: RequestLimits) -> None:
    """Refuse a request of too many rows.

    Args:
        n_rows: Sets, or rows of responses.
        limits: Bounds.

    Raises:
        WireError: If there are more than the limit.
    """
    if n_rows > limits.sets:
        raise wire_error(
            ErrorCode.BUDGET_EXCEEDED, "", f"got {n_rows} rows; expected at most {limits.sets} per request"
        )


def check_tokens(n_tokens: NDArray[np.int64], limits: RequestLimits) -> None:
    """Refuse a request of too many token advantages, before anything is allocated for them.

    Args:
        n_tokens: Shape (B,), int64; counts that are out of range fail their own set later.
        limits: Bounds.

    Raises:
        WireError: If there are more than the limit.
    """
    total = int(np.where((n_tokens < 0) | (n_tokens > limits.tokens_per_set), 0, n_tokens).sum())
    if total > limits.token_advantages:
        raise wire_error(
            ErrorCode.BUDGET_EXCEEDED,
            "/tokens",
            f"more than {limits.token_advantages} token advantages are asked for; expected fewer per request",
        )
