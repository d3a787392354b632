"""From what a batcher answers to what a request asked: every text has its reward, or the reason why it has none."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import numpy as np

from creditd.engines.batching import Answered, Batcher
from creditd.engines.errors import EngineStoppedError
from creditd.engines.protocol import EngineUsage, PreparedTexts, ScoredTexts, TextFailure


def submitted(prepared: PreparedTexts, batcher: Batcher[Any], expires_s: float) -> Future[ScoredTexts]:
    """Queue prepared texts.

    Args:
        prepared: Their work has one score for each text that is not a failure, in their order.
        batcher: The queue of the model.
        expires_s: When nobody waits any more, on the batcher's clock.

    Returns:
        Rewards to come, or an `EngineError`. Cancelling it drops the work if it has not begun.

    Raises:
        EngineOverloadedError: If more tokens wait than the limit.
        EngineStoppedError: If the engine is closed, or its thread has ended.
    """
    answer: Future[ScoredTexts] = Future()
    if prepared.work is None:
        if not batcher.is_alive:
            raise EngineStoppedError("the engine is stopped")
        answer.set_result(_scored(prepared, None))
        return answer
    asked = batcher.submit(prepared.work, expires_s)
    asked.add_done_callback(lambda done: _deliver(prepared, done, answer))
    answer.add_done_callback(lambda done: asked.cancel() if done.cancelled() else None)
    return answer


def _deliver(prepared: PreparedTexts, asked: Future[Answered], answer: Future[ScoredTexts]) -> None:
    """Hand on what came of a work, unless nobody waits any more."""
    if asked.cancelled() or not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(_scored(prepared, asked.result()))
    except BaseException as error:  # noqa: BLE001 - whatever it is, nobody is left waiting for it
        answer.set_exception(error)


def _scored(prepared: PreparedTexts, answered: Answered | None) -> ScoredTexts:
    """The rewards of all variants, those without one named."""
    rewards, failures, usage = np.full(prepared.n_variants, np.nan), dict(prepared.failures), prepared.usage
    if answered is not None:
        fitting = [place for place in range(prepared.n_variants) if place not in failures]
        rewards[fitting] = answered.scores
        usage += EngineUsage(engine_s=answered.engine_s, queue_s=answered.queue_s)
        for place in np.flatnonzero(~np.isfinite(rewards)).tolist():
            rewards[place] = np.nan
            failures.setdefault(place, TextFailure("non_finite_utility", "the model's score is not a finite number"))
    return ScoredTexts(rewards, failures, usage)
