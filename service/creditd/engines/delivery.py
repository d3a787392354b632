"""From what a batcher answers to what a request asked: every text has its number, or the reason why it has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from creditd.engines.batching import Batcher, answer_of
from creditd.engines.errors import EngineStoppedError
from creditd.engines.protocol import (
    AttendedTexts,
    EngineUsage,
    PreparedAttention,
    PreparedTexts,
    ScoredTexts,
    TextFailure,
)
from creditd.engines.work_queue import Answered

T = TypeVar("T")


def submitted(
    prepared: PreparedTexts,
    slices: Sequence[Any],
    batcher: Batcher[Any],
    expires_s: float,
    made: Callable[[Answered | None], T],
) -> Future[T]:
    """Queue prepared texts.

    Args:
        prepared: Their work has one score for each text that is not a failure.
        slices: That work, as much of it at a time as is run in a row.
        batcher: The queue of the model.
        expires_s: When nobody waits any more, on the batcher's clock.
        made: The answer, from what the batcher answered; from None where nothing fits the model.

    Returns:
        What `made` returns, to come, or an `EngineError`. Cancelling it drops the work if it has not begun.

    Raises:
        EngineOverloadedError: If more tokens wait than the limit.
        EngineStoppedError: If the engine is closed, or its thread has ended.
    """
    if prepared.work is not None:
        return answer_of(batcher.submit_slices(slices, expires_s), made)
    if not batcher.is_alive:
        raise EngineStoppedError("the engine is stopped")
    answer: Future[T] = Future()
    answer.set_result(made(None))
    return answer


def scored(prepared: PreparedTexts, answered: Answered | None) -> ScoredTexts:
    """The rewards of all variants, those without one named.

    Args:
        prepared: What was asked.
        answered: One score for each variant that is not a failure; None if there is none.
    """
    rewards, failures, usage = np.full(prepared.n_variants, np.nan), dict(prepared.failures), prepared.usage
    if answered is not None:
        fitting = [place for place in range(prepared.n_variants) if place not in failures]
        rewards[fitting] = answered.scores
        usage += EngineUsage(engine_s=answered.engine_s, queue_s=answered.queue_s)
        for place in np.flatnonzero(~np.isfinite(rewards)).tolist():
            rewards[place] = np.nan
            failures.setdefault(place, TextFailure("non_finite_utility", "the model's score is not a finite number"))
    return ScoredTexts(rewards, failures, usage)


def attended(prepared: PreparedAttention, answered: Answered | None) -> AttendedTexts:
    """The weights of the units of all texts, those without any named.

    Args:
        prepared: What was asked.
        answered: The weights of each text that is not a failure, one text after another; None if there are none.
    """
    failures, usage = dict(prepared.failures), prepared.usage
    weights = [np.full(n_units, np.nan) for n_units in prepared.n_units]
    if answered is not None:
        fitting = [place for place in range(prepared.n_variants) if place not in failures]
        cuts = np.cumsum([prepared.n_units[place] for place in fitting])[:-1]
        usage += EngineUsage(engine_s=answered.engine_s, queue_s=answered.queue_s)
        for place, found in zip(fitting, np.split(answered.scores, cuts), strict=True):
            if np.isfinite(found).all():
                weights[place] = found
            else:
                failures[place] = TextFailure("non_finite_utility", "the model's attention is not a finite number")
    return AttendedTexts(tuple(weights), failures, usage)
