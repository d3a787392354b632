"""What one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from creditd.credit.log_det import MAX_PLAYERS as MAX_LOG_DET_PLAYERS
from creditd.credit.set_work import MAX_WORK_PER_SET
from creditd.wire.codec import BYTES_PER_ARRAY, BYTES_PER_OBJECT
from creditd.wire.errors import ErrorCode
from creditd.wire.fields import MAX_SETS
from creditd.wire.info import Limits
from creditd.wire.scar_choices import MAX_UNITS
from creditd.wire.utilities import MAX_TARGETS, MAX_TERMS
from creditd.wire.validation import wire_error

MAX_CELLS = 1 << 23
"""Most players × evaluations of a request: the memory of its designs and of its answer."""


@dataclass(frozen=True)
class RequestLimits:
    """Bounds of one request, settings of the service.

    Attributes:
        sets: Sets, or rows of responses.
        candidates: Candidates of one set with rewards or features.
        all_candidates: Candidates of all sets together, each counted once for every reward that it has.
        table_candidates: Candidates of one set with a table, or with a rule that needs all its utilities.
        token_advantages: Token advantages of all sets together.
        tokens_per_set: Completion tokens of one set, or of one completion.
        units: Units of one completion.
        evaluations: Utilities of one set that the caller, or a model, evaluates.
        model_characters: Characters that a model reads, prompts counted with each text.
        span_characters: The same for coalitions of units, which a model is asked about round by round.
        policy_tokens: Tokens that a policy reads, prompts counted with each pass.
    """

    sets: int = MAX_SETS
    candidates: int = 256
    all_candidates: int = 1 << 22
    table_candidates: int = 12
    token_advantages: int = 1 << 22
    tokens_per_set: int = 131_072
    units: int = MAX_UNITS
    evaluations: int = 1 << 16
    model_characters: int = 1 << 26
    span_characters: int = 1 << 29
    policy_tokens: int = 1 << 24


def published(
    limits: RequestLimits,
    *,
    body_bytes: int,
    binary_body_bytes: int,
    held_bytes: int,
    body_timeout_s: float,
    requests_in_flight: int,
    weight_bytes: int,
    shard_bytes: int,
) -> Limits:
    """All limits, as `/v1/info` names them.

    Args:
        limits: Bounds of one request.
        body_bytes: Largest body of text.
        binary_body_bytes: Largest binary body.
        held_bytes: Bodies and unread answers of all requests.
        body_timeout_s: How long a body may take to arrive.
        requests_in_flight: Most requests at a time.
        weight_bytes: All shards of one version of a policy's weights.
        shard_bytes: One shard of them.

    Returns:
        Those of settings, and those that are the same everywhere.
    """
    return Limits(
        sets=limits.sets,
        candidates=limits.candidates,
        all_candidates=limits.all_candidates,
        table_candidates=limits.table_candidates,
        token_advantages=limits.token_advantages,
        tokens_per_set=limits.tokens_per_set,
        units=limits.units,
        body_bytes=body_bytes,
        binary_body_bytes=binary_body_bytes,
        held_bytes=held_bytes,
        body_timeout_s=body_timeout_s,
        arrays=body_bytes // BYTES_PER_ARRAY,
        objects=body_bytes // BYTES_PER_OBJECT,
        requests_in_flight=requests_in_flight,
        weight_bytes=weight_bytes,
        shard_bytes=shard_bytes,
        evaluations=limits.evaluations,
        model_characters=limits.model_characters,
        span_characters=limits.span_characters,
        policy_tokens=limits.policy_tokens,
        evaluated_cells=MAX_CELLS,
        targets=MAX_TARGETS,
        log_det_candidates=MAX_LOG_DET_PLAYERS,
        terms=MAX_TERMS,
        additions_per_set=MAX_WORK_PER_SET,
    )


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


def check_candidates(n_candidates: int, limits: RequestLimits) -> None:
    """Refuse a request of too many candidates, before anything is allocated for them.

    Args:
        n_candidates: Candidates of all sets, once for every reward that they have.
        limits: Bounds.

    Raises:
        WireError: If there are more than the limit.
    """
    if n_candidates > limits.all_candidates:
        raise wire_error(
            ErrorCode.BUDGET_EXCEEDED,
            "",
            f"got {n_candidates} candidates; expected at most {limits.all_candidates} per request",
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
