import threading
import time

import numpy as np
import pytest

from creditd.engines.batching import Batcher, answer_of
from creditd.engines.errors import (
    EngineExpiredError,
    EngineFailedError,
    EngineOverloadedError,
    EngineStoppedError,
)

PATIENCE_S = 30.0


class Numbers:
    """A scorer of lists of numbers, a token each, that waits while its gate is closed."""

    def __init__(self, per_batch_s=0.0, per_token_s=0.0):
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.batches = []
        self.per_batch_s, self.per_token_s = per_batch_s, per_token_s

    def n_tokens(self, work):
        """Its length."""
        return len(work)

    def score(self, works, beat):
        """Twice each number."""
        self.batches.append([list(work) for work in works])
        self.begun.release()
        assert self.gate.wait(PATIENCE_S)
        beat()
        if any(-1 in work for work in works):
            raise ValueError("a secret")
        if any(-2 in work for work in works):
            raise SystemExit
        time.sleep(self.per_batch_s + self.per_token_s * sum(map(len, works)))
        return [np.array(work, dtype=np.float64) * 2 for work in works]


@pytest.fixture
def scorer():
    return Numbers()


@pytest.fixture
def batcher(scorer):
    made = Batcher(scorer, batch_tokens=8, max_queued_tokens=20, name="test")
    yield made
    scorer.gate.set()
    made.close(PATIENCE_S)


def held(scorer, batcher):
    """A first work that is being run while the gate is closed."""
    scorer.gate.clear()
    future = batcher.submit([0.0])
    assert scorer.begun.acquire(timeout=PATIENCE_S)
    return future


def test_work_of_many_callers_is_run_in_few_batches(scorer, batcher):
    """What waits while a batch is run goes into the next ones, in its order, up to the budget of tokens."""
    first = held(scorer, batcher)
    futures = [batcher.submit([float(number)] * 4) for number in range(4)]
    scorer.gate.set()
    assert first.result(PATIENCE_S).scores.tolist() == [0.0]
    assert [future.result(PATIENCE_S).scores.tolist() for future in futures] == [[2.0 * n] * 4 for n in range(4)]
    assert scorer.batches == [[[0.0]], [[0.0] * 4, [1.0] * 4], [[2.0] * 4, [3.0] * 4]]
    batcher.close(PATIENCE_S)
    assert (batcher.n_batches, batcher.queued_tokens) == (3, 0)


def test_a_work_larger_than_a_batch_is_run_alone(batcher, scorer):
    """The budget closes a batch; it refuses nothing."""
    assert batcher.submit([1.0] * 15).result(PATIENCE_S).scores.tolist() == [2.0] * 15
    assert batcher.submit([1.0] * 99).result(PATIENCE_S).scores.tolist() == [2.0] * 99
    assert len(scorer.batches) == 2


def test_too_many_waiting_tokens_are_refused_with_a_time(scorer, batcher):
    """Admission is by tokens, those that are being run included; the refusal says when to come back."""
    held(scorer, batcher)
    batcher.submit([1.0] * 19)
    with pytest.raises(EngineOverloadedError, match="20 tokens wait for this model; expected at most 20") as refusal:
        batcher.submit([1.0])
    assert 1.0 <= refusal.value.retry_after_s <= 30.0


def test_cancelled_and_expired_work_is_never_run(scorer, batcher):
    """Work that nobody waits for is dropped before it is run, and gives its tokens back."""
    first = held(scorer, batcher)
    cancelled = batcher.submit([1.0])
    expired = batcher.submit([2.0], expires_s=time.monotonic() - 1.0)
    wanted = batcher.submit([3.0], expires_s=time.monotonic() + PATIENCE_S)
    assert cancelled.cancel()
    scorer.gate.set()
    assert wanted.result(PATIENCE_S).scores.tolist() == [6.0]
    first.result(PATIENCE_S)
    with pytest.raises(EngineExpiredError):
        expired.result(PATIENCE_S)
    assert scorer.batches == [[[0.0]], [[3.0]]]
    batcher.close(PATIENCE_S)
    assert batcher.queued_tokens == 0


def test_work_that_nobody_waits_for_any_more_ends_between_two_passes(scorer, batcher):
    """A batch whose callers have all gone is not run to its end; one of whom somebody waits for is."""
    scorer.gate.clear()
    kept, gone = (answer_of(batcher.submit([number]), lambda found: found.scores.tolist()) for number in (1.0, 2.0))
    assert scorer.begun.acquire(timeout=PATIENCE_S)
    assert not kept.done()
    gone.cancel()
    scorer.gate.set()
    assert kept.result(PATIENCE_S) == [2.0]
    scorer.gate.clear()
    asked = batcher.submit([3.0])
    left = answer_of(asked, lambda found: found.scores.tolist())
    while not scorer.begun.acquire(timeout=PATIENCE_S) or scorer.batches[-1] != [[3.0]]:
        pass
    assert left.cancel()
    assert asked.unwanted
    scorer.gate.set()
    with pytest.raises(EngineExpiredError, match="nobody waited any more"):
        asked.result(PATIENCE_S)
    assert batcher.submit([4.0]).result(PATIENCE_S).scores.tolist() == [8.0]


def test_work_whose_deadline_passes_ends_between_two_passes(scorer):
    """The clock ends a batch as well as its callers do."""
    now = [0.0]
    batcher = Batcher(scorer, batch_tokens=8, max_queued_tokens=20, name="test", clock=lambda: now[0])
    scorer.gate.clear()
    asked = batcher.submit([1.0], expires_s=5.0)
    assert scorer.begun.acquire(timeout=PATIENCE_S)
    now[0] = 5.0
    scorer.gate.set()
    with pytest.raises(EngineExpiredError):
        asked.result(PATIENCE_S)
    batcher.close(PATIENCE_S)


def test_cancelled_work_takes_no_place_from_others(scorer, batcher):
    """Hundreds of callers who have gone do not make an engine refuse those who come."""
    held(scorer, batcher)
    waiting = batcher.submit([1.0] * 19)
    with pytest.raises(EngineOverloadedError):
        batcher.submit([1.0] * 19)
    assert waiting.cancel()
    again = batcher.submit([2.0] * 19)
    assert batcher.queued_tokens == 20
    scorer.gate.set()
    assert again.result(PATIENCE_S).scores.tolist() == [4.0] * 19


def test_one_bad_work_does_not_fail_its_batch(scorer, batcher):
    """A batch that fails is run again work by work; the failure names its kind and no word of it."""
    held(scorer, batcher)
    good, bad, infinite = batcher.submit([1.0]), batcher.submit([-1]), batcher.submit([float("inf")])
    scorer.gate.set()
    assert good.result(PATIENCE_S).scores.tolist() == [2.0]
    with pytest.raises(EngineFailedError, match=r"^the model failed: ValueError$"):
        bad.result(PATIENCE_S)
    assert infinite.result(PATIENCE_S).scores.tolist() == [float("inf")]


def test_the_time_of_a_batch_is_shared_by_tokens(scorer):
    """Each work is told how long it waited, and its part of the seconds of the device."""
    now = [0.0]
    batcher = Batcher(scorer, batch_tokens=8, max_queued_tokens=20, name="test", clock=lambda: now[0])
    first = held(scorer, batcher)
    waiting = [batcher.submit([1.0] * n) for n in (1, 3)]
    now[0] = 2.0
    inner = scorer.score

    def slow(works, beat):
        found = inner(works, beat)
        now[0] += 4.0
        return found

    scorer.score = slow
    scorer.gate.set()
    assert first.result(PATIENCE_S).engine_s == 2.0
    done = [future.result(PATIENCE_S) for future in waiting]
    assert [one.queue_s for one in done] == [2.0, 2.0]
    assert [one.engine_s for one in done] == [1.0, 3.0]
    batcher.close(PATIENCE_S)
    assert not batcher.is_alive


def test_nobody_waits_for_a_closed_engine(scorer, batcher):
    """Closing finishes the batch that is being run and fails what waits; afterwards nothing is taken."""
    first = held(scorer, batcher)
    waiting = batcher.submit([1.0])
    closing = threading.Thread(target=batcher.close)
    closing.start()
    scorer.gate.set()
    closing.join(PATIENCE_S)
    assert first.result(PATIENCE_S).scores.tolist() == [0.0]
    with pytest.raises(EngineStoppedError):
        waiting.result(PATIENCE_S)
    with pytest.raises(EngineStoppedError):
        batcher.submit([1.0])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_has_ended(scorer, batcher):
    """Whatever ends the thread, its batch and all that waits fail, and nothing more is taken."""
    held(scorer, batcher)
    deadly, waiting = batcher.submit([-2] * 8), batcher.submit([1.0] * 8)
    scorer.gate.set()
    for future in (deadly, waiting):
        with pytest.raises(EngineStoppedError):
            future.result(PATIENCE_S)
    with pytest.raises(EngineStoppedError):
        batcher.submit([1.0])


def test_the_thread_says_that_it_lives(scorer):
    """Each forward pass is a sign of life, so that a wedged model is told from a busy one."""
    now = [0.0]
    batcher = Batcher(scorer, batch_tokens=8, max_queued_tokens=20, name="test", clock=lambda: now[0])
    held(scorer, batcher)
    now[0] = 5.0
    assert batcher.last_beat_s == 0.0
    scorer.gate.set()
    batcher.submit([1.0]).result(PATIENCE_S)
    assert batcher.last_beat_s == 5.0
    batcher.close(PATIENCE_S)


def test_many_small_requests_are_nearly_as_fast_as_one_large():
    """64 callers of one set each reach 70 % of the throughput of one request of 64 sets.

    A batch costs 2 ms and a token 1 µs. Time is counted, not measured: batches are formed while others run.
    """
    n_callers, n_tokens = 64, 1000
    scorer = Numbers(per_batch_s=0.002, per_token_s=1e-6)
    batcher = Batcher(scorer, batch_tokens=n_callers * n_tokens, max_queued_tokens=10**9, name="test")
    start, futures = threading.Barrier(n_callers), []

    def ask():
        start.wait(PATIENCE_S)
        futures.append(batcher.submit([1.0] * n_tokens))

    callers = [threading.Thread(target=ask) for _ in range(n_callers)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(PATIENCE_S)
    for future in futures:
        assert future.result(PATIENCE_S).scores.shape == (n_tokens,)
    batcher.close(PATIENCE_S)
    tokens_s = 1e-6 * n_callers * n_tokens
    assert sum(map(len, scorer.batches)) == n_callers
    assert (0.002 + tokens_s) / (0.002 * len(scorer.batches) + tokens_s) >= 0.7


def test_others_have_their_turn_between_the_slices_of_a_work(scorer, batcher):
    """A large work comes in slices; what came after it is not behind all of them, and its scores are in order."""
    first = held(scorer, batcher)
    large = batcher.submit_slices([[1.0] * 6, [2.0] * 6, [3.0] * 6])
    small = batcher.submit([4.0])
    assert batcher.queued_tokens == 20
    scorer.gate.set()
    first.result(PATIENCE_S)
    assert large.result(PATIENCE_S).scores.tolist() == [2.0] * 6 + [4.0] * 6 + [6.0] * 6
    assert small.result(PATIENCE_S).scores.tolist() == [8.0]
    assert scorer.batches == [[[0.0]], [[1.0] * 6, [4.0]], [[2.0] * 6], [[3.0] * 6]]
    assert batcher.queued_tokens == 0


def test_a_work_of_slices_fails_or_ends_as_a_whole(scorer, batcher):
    """A slice that fails fails its work, and the rest of it counts no more; so does the rest of one that was left."""
    failing = batcher.submit_slices([[1.0], [-1], [2.0]])
    with pytest.raises(EngineFailedError):
        failing.result(PATIENCE_S)
    held(scorer, batcher)
    left = batcher.submit_slices([[1.0], [2.0]])
    left.unwanted = True
    closing = threading.Thread(target=batcher.close)
    waiting = batcher.submit_slices([[3.0] * 8, [4.0] * 8])
    closing.start()
    scorer.gate.set()
    closing.join(PATIENCE_S)
    for future in (left, waiting):
        with pytest.raises((EngineExpiredError, EngineStoppedError)):
            future.result(PATIENCE_S)
    assert batcher.queued_tokens == 0
