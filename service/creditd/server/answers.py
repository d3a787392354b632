"""What happens to a parsed request: arithmetic, conversion, and an account of both; off the event loop if not small."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from creditd.credit.flags import Flag
from creditd.credit.set_credit import SetCredits
from creditd.engines.protocol import EngineUsage
from creditd.scoring.deadline import Deadline
from creditd.scoring.model_questions import Estimates
from creditd.server.convert import (
    Encode,
    envelope,
    flag_counts,
    group_document,
    shapley_document,
    solve_document,
)
from creditd.server.errors import ServiceError
from creditd.server.resources import CandidateScorer
from creditd.wire.choices import options_of
from creditd.wire.columns import batch_of
from creditd.wire.errors import ErrorItem, first_items
from creditd.wire.group_rows import solve_group
from creditd.wire.groups import GroupRequest
from creditd.wire.limits import RequestLimits
from creditd.wire.set_batches import SetBatch
from creditd.wire.solve import SolveRequest
from creditd.wire.solve_items import SolvedItems, item_flags, solve_items
from creditd.wire.solve_items import pointer_to as solve_pointer
from creditd.wire.v1 import ShapleyRequest
from creditd.wire.validation import WireError


@dataclass(frozen=True)
class Answer:
    """A response body, and what the log and the counters say of it.

    Attributes:
        body: In the format asked for; empty when there is a refusal.
        n_items: Sets or groups that were asked about.
        error_codes: How many failed, by code.
        flags: How many carry each flag.
        refusal: Why there is no body: nothing could be answered.
    """

    body: bytes
    n_items: int
    error_codes: Mapping[str, int]
    flags: Mapping[str, int]
    refusal: ServiceError | None = None

    @property
    def n_failed(self) -> int:
        """Items without an answer."""
        return sum(self.error_codes.values())


def answer_sets(
    asked: ShapleyRequest,
    *,
    request_id: str,
    received_s: float,
    limits: RequestLimits,
    score: CandidateScorer,
    deadline: Deadline,
    encode: Encode,
) -> Answer:
    """The answer to `/v1/credit/shapley`.

    Args:
        asked: The request.
        request_id: Its identity.
        received_s: When its last byte arrived, on `time.perf_counter`.
        limits: Bounds of one request.
        score: The use case.
        deadline: When the caller stops waiting.
        encode: Writes the answer.

    Returns:
        The body, in the form of the request, or a refusal when no set could be answered.

    Raises:
        ServiceError: If the columns do not fit each other.
        DeadlineExceededError: If the caller has stopped waiting.
    """
    queue_s = time.perf_counter() - received_s
    with refused_as_a_whole():
        options, batch = options_of(asked, limits), batch_of(asked, limits)
    head = {**envelope(request_id, queue_s), "model": None, "weight_version": None}
    if asked.dry_run:
        return Answer(encode(head), batch.sets.n_sets, {}, {})
    return answer_batch(batch, head, encode, score(batch.sets, options, batch.rejected, deadline))


def answer_batch(
    batch: SetBatch,
    head: Mapping[str, Any],
    encode: Encode,
    answer: SetCredits,
    estimates: Estimates | None = None,
) -> Answer:
    """The answer about a batch whose credits are known.

    Args:
        batch: The sets that were asked about.
        head: The envelope.
        encode: Writes the answer.
        answer: What the arithmetic returned.
        estimates: How credits under a utility that a model evaluated were found, or None.

    Returns:
        The body, or a refusal when no set could be answered.
    """
    codes, n_sets = Counter(str(error.code) for error in answer.errors), batch.sets.n_sets
    if len(answer.errors) == n_sets:
        return nothing_answered("set", n_sets, codes, first_items(answer.errors, batch.pointer))
    flags = answer.flags
    if estimates is not None:
        flags = flags | np.where(estimates.approximate & answer.ok, int(Flag.INTERVAL_APPROXIMATE), 0)
        answer = replace(answer, flags=flags)
    return Answer(encode(shapley_document(answer, batch, head, estimates)), n_sets, codes, flag_counts(flags))


def answer_solve(
    asked: SolveRequest,
    *,
    request_id: str,
    received_s: float,
    limits: RequestLimits,
    deadline: Deadline,
    encode: Encode,
) -> Answer:
    """The answer to `/v1/credit/shapley/solve`.

    Args:
        asked: The request.
        request_id: Its identity.
        received_s: When its last byte arrived, on `time.perf_counter`.
        limits: Bounds of one request.
        deadline: When the caller stops waiting.
        encode: Writes the answer.

    Returns:
        The body, or a refusal when no item could be answered.

    Raises:
        ServiceError: If the choices contradict each other.
        DeadlineExceededError: If the caller has stopped waiting.
    """
    queue_s = time.perf_counter() - received_s
    with refused_as_a_whole():
        answer = solve_items(asked, limits, deadline.check)
    return answer_items(asked, answer, partial(envelope, request_id, queue_s), encode)


def answer_items(
    asked: SolveRequest, answer: SolvedItems, head: Callable[[EngineUsage], Mapping[str, Any]], encode: Encode
) -> Answer:
    """The answer about games of which the solution, or what to evaluate next, is known.

    Args:
        asked: The request.
        answer: What the arithmetic returned.
        head: The envelope, by what was used.
        encode: Writes the answer.

    Returns:
        The body, or a refusal when no item could be answered.
    """
    codes = Counter(str(error.code) for error in answer.errors)
    if len(answer.errors) == len(asked.items):
        return nothing_answered("item", len(asked.items), codes, first_items(answer.errors, solve_pointer))
    failed = {error.row for error in answer.errors}
    flags = np.array([0 if row in failed else item_flags(answer, row) for row in range(len(asked.items))])
    used = EngineUsage(from_cache=answer.n_remembered)
    return Answer(encode(solve_document(answer, asked, head(used))), len(asked.items), codes, flag_counts(flags))


def answer_groups(
    asked: GroupRequest,
    *,
    request_id: str,
    received_s: float,
    limits: RequestLimits,
    deadline: Deadline,
    encode: Encode,
) -> Answer:
    """The answer to `/v1/credit/group`.

    Args:
        asked: The request.
        request_id: Its identity.
        received_s: When its last byte arrived, on `time.perf_counter`.
        limits: Bounds of one request.
        deadline: When the caller stops waiting.
        encode: Writes the answer.

    Returns:
        The body, or a refusal when no group could be answered.

    Raises:
        ServiceError: If the choices contradict each other.
        DeadlineExceededError: If the caller has stopped waiting.
    """
    queue_s = time.perf_counter() - received_s
    deadline.check()
    with refused_as_a_whole():
        answer = solve_group(asked, limits)
    n_rows = len(answer.flags)
    codes = Counter(error.code.value for error in answer.errors)
    if len(answer.errors) == n_rows:
        items = tuple(
            ErrorItem(pointer=error.pointer, code=error.code, detail=error.detail) for error in answer.errors[:10]
        )
        return nothing_answered("group", n_rows, codes, items)
    document = group_document(answer, envelope(request_id, queue_s))
    return Answer(encode(document), n_rows, codes, flag_counts(answer.flags))


@contextmanager
def refused_as_a_whole() -> Iterator[None]:
    """What the wire refuses, raised as the error of the service that says the same."""
    try:
        yield
    except WireError as error:
        raise ServiceError(error.code, error.detail, error.items) from None


def nothing_answered(kind: str, n_items: int, codes: Mapping[str, int], items: tuple[ErrorItem, ...]) -> Answer:
    """The account of a request that fails because all of its items do.

    Args:
        kind: What an item is called.
        n_items: How many there are.
        codes: How many failed, by code.
        items: Why, causes before consequences, at most 10.

    Returns:
        A refusal with the code of the first one.
    """
    detail = f"no {kind} could be answered; the first: {items[0].pointer}: {items[0].detail}"
    return Answer(b"", n_items, codes, {}, refusal=ServiceError(items[0].code, detail, items))
