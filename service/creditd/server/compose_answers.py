"""Answers about candidate sets down to their tokens."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np

from creditd.scoring.deadline import Deadline
from creditd.server.answers import Answer, nothing_answered, refused_as_a_whole
from creditd.server.convert import Encode, envelope, flag_counts
from creditd.wire.compose import ComposeRequest
from creditd.wire.compose_items import composed_results, solve_composition
from creditd.wire.errors import first_items
from creditd.wire.limits import RequestLimits


def answer_compose(
    asked: ComposeRequest,
    *,
    request_id: str,
    received_s: float,
    limits: RequestLimits,
    deadline: Deadline,
    encode: Encode,
) -> Answer:
    """The answer to `/v1/credit/compose`.

    Args:
        asked: The request.
        request_id: Its identity.
        received_s: When its last byte arrived, on `time.perf_counter`.
        limits: Bounds of one request.
        deadline: When the caller stops waiting.
        encode: Writes the answer.

    Returns:
        The body, or a refusal when no set could be answered.

    Raises:
        ServiceError: If the choices contradict each other.
        DeadlineExceededError: If the caller has stopped waiting.
    """
    queue_s = time.perf_counter() - received_s
    with refused_as_a_whole():
        answer = solve_composition(asked, limits, deadline.check)
    codes = Counter(str(error.code) for error in answer.credits.errors)
    if len(answer.credits.errors) == len(asked.sets):
        return nothing_answered("set", len(asked.sets), codes, first_items(answer.credits.errors, answer.pointer))
    document = {**envelope(request_id, queue_s), "sets": composed_results(asked, answer)}
    flags = np.array([0 if credit is None else credit.flags for credit in answer.credits.items], dtype=np.int64)
    return Answer(encode(document), len(asked.sets), codes, flag_counts(flags))
