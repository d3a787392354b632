"""Changes of weights between works, and works that are pinned to versions, with a scorer that tests hold and let go."""

import threading

import numpy as np
import pytest

from creditd.engines.batching import Batcher
from creditd.engines.errors import (
    EngineExpiredError,
    EngineOverloadedError,
    EngineStoppedError,
    WeightsRefusedError,
    WeightVersionMismatchError,
    WeightVersionUnknownError,
)
from creditd.engines.policy_protocol import WeightPin
from creditd.engines.weight_versions import WeightVersions

PATIENCE_S = 30.0


class Weighted:
    """A scorer whose weights are one number; each of its batches waits for a permit once it is held."""

    def __init__(self):
        self.weights = 1.0
        self.batches = []
        self.begun = threading.Semaphore(0)
        self.permits = threading.Semaphore(0)
        self.is_held = False

    def n_tokens(self, work):
        """Its length."""
        return len(work)

    def score(self, works, beat):
        """Each number times the weights, which are read once in the beginning and once in the end of a batch."""
        weights = self.weights
        self.batches.append((weights, [list(work) for work in works]))
        if self.is_held:
            self.begun.release()
            assert self.permits.acquire(timeout=PATIENCE_S)
        beat()
        assert weights == self.weights
        return [np.array(work, dtype=np.float64) * weights for work in works]


class Service:
    """A batcher with its scorer, its versions and a clock that tests set."""

    def __init__(self):
        self.now = 0.0
        self.scorer = Weighted()
        self.versions = WeightVersions("v1")
        self.batcher = Batcher(
            self.scorer,
            batch_tokens=4,
            max_queued_tokens=8,
            name="test",
            clock=lambda: self.now,
            versions=self.versions,
        )

    def hold(self, *work):
        """A first work that is being run until `let` is called."""
        self.scorer.is_held = True
        future = self.batcher.submit(list(work or [0.0]))
        assert self.scorer.begun.acquire(timeout=PATIENCE_S)
        return future

    def let(self, n_batches=1):
        """Let batches end."""
        for _ in range(n_batches):
            self.scorer.permits.release()

    def free(self):
        """Hold nothing any more."""
        self.scorer.is_held = False
        self.let(100)

    def swap(self, weights, version):
        """Queue a change of weights."""

        def change(beat):
            self.scorer.weights = weights
            beat()
            return version

        return self.batcher.swap(change, version)

    def found(self, future):
        """Scores and version of a work."""
        answered = future.result(PATIENCE_S)
        return answered.scores.tolist(), answered.weight_version


@pytest.fixture
def service():
    made = Service()
    yield made
    made.free()
    made.batcher.close(PATIENCE_S)


def pinned(version, if_not_ready="wait"):
    """A pin."""
    return WeightPin(version, if_not_ready)


def test_an_answer_names_the_weights_that_it_was_run_under(service):
    """Each answer carries the version; a change returns once the next work is run under its own."""
    assert service.found(service.batcher.submit([3.0])) == ([3.0], "v1")
    assert service.swap(2.0, "v2").result(PATIENCE_S) == "v2"
    assert service.found(service.batcher.submit([3.0])) == ([6.0], "v2")
    state = service.versions.state()
    assert (state.current, state.past, state.n_swaps, state.last_swap_s) == ("v2", {"v1"}, 1, 0.0)
    assert state.seen("v1")
    assert state.seen("v2")
    assert not state.seen("v3")


def test_a_change_waits_for_works_that_are_partly_run_and_for_no_others(service):
    """All slices of a work see one version; works that have not begun let the change pass."""
    service.hold()
    large = service.batcher.submit_slices([[1.0] * 3, [2.0] * 3])
    service.let()
    assert service.scorer.begun.acquire(timeout=PATIENCE_S)
    change, small = service.swap(10.0, "v2"), service.batcher.submit([5.0])
    service.free()
    assert change.result(PATIENCE_S) == "v2"
    assert service.found(large) == ([1.0] * 3 + [2.0] * 3, "v1")
    assert service.found(small) == ([50.0], "v2")
    assert service.scorer.batches == [(1.0, [[0.0]]), (1.0, [[1.0] * 3]), (1.0, [[2.0] * 3]), (10.0, [[5.0]])]


def test_pinned_work_is_run_before_the_change_that_came_after_it(service):
    """A change would take from it the weights that it was accepted for; one that came before it takes precedence."""
    first = service.hold()
    unpinned, before = service.batcher.submit([1.0]), service.batcher.submit([2.0], pin=pinned("v1", "fail"))
    change = service.swap(10.0, "v2")
    after = service.batcher.submit([3.0], pin=pinned("v1", "fail"))
    service.free()
    assert service.found(first) == ([0.0], "v1")
    assert service.found(before) == ([2.0], "v1")
    assert service.found(unpinned) == ([10.0], "v2")
    change.result(PATIENCE_S)
    with pytest.raises(WeightVersionMismatchError, match="v2 when the work was to be run"):
        after.result(PATIENCE_S)


def test_work_that_waits_for_weights_blocks_nothing(service):
    """It is put aside, counts by itself, and goes first once its weights are there."""
    service.versions.announce("v2")
    waiting = service.batcher.submit([1.0] * 4, pin=pinned("v2"))
    other = service.batcher.submit([2.0] * 8)
    assert service.found(other) == ([2.0] * 8, "v1")
    assert (service.batcher.parked_tokens, service.batcher.queued_tokens) == (4, 0)
    assert not waiting.done()
    service.hold()
    later = service.batcher.submit([3.0] * 4)
    service.swap(10.0, "v2")
    service.free()
    assert service.found(waiting) == ([10.0] * 4, "v2")
    assert service.found(later) == ([30.0] * 4, "v2")
    assert [batch for _, batch in service.scorer.batches][-2:] == [[[1.0] * 4], [[3.0] * 4]]
    assert (service.batcher.parked_tokens, service.batcher.queued_tokens) == (0, 0)


def test_changes_in_a_row_leave_time_for_those_who_wait_for_each(service):
    """Weights that are there for a moment only are there for the work that waited for them."""
    for version in ("v2", "v3"):
        service.versions.announce(version)
    service.hold()
    of_v3 = service.batcher.submit([1.0], pin=pinned("v3"))
    of_v2 = service.batcher.submit([1.0], pin=pinned("v2"))
    service.swap(2.0, "v2")
    service.swap(3.0, "v3")
    unpinned = service.batcher.submit([1.0])
    service.free()
    assert service.found(of_v2) == ([2.0], "v2")
    assert service.found(of_v3) == ([3.0], "v3")
    assert service.found(unpinned) == ([3.0], "v3")


def test_an_unknown_version_is_refused_at_once(service):
    """What was neither announced nor ever current may never come; whoever asks is told, and pushes."""
    for if_not_ready in ("wait", "fail"):
        with pytest.raises(WeightVersionUnknownError, match="never pushed"):
            service.batcher.submit([1.0], pin=pinned("v9", if_not_ready))
    service.versions.announce("v9")
    waiting = service.batcher.submit([1.0], pin=pinned("v9"))
    with pytest.raises(WeightVersionMismatchError):
        service.batcher.submit([1.0], pin=pinned("v9", "fail")).result(PATIENCE_S)
    assert not waiting.done()


def test_work_whose_weights_never_come_fails_at_its_deadline(service):
    """It is a mismatch and not an expiry: other weights were there all the time."""
    service.versions.announce("v2")
    waiting = service.batcher.submit([1.0], expires_s=5.0, pin=pinned("v2"))
    service.now = 5.0
    plain = service.batcher.submit([1.0])  # wakes the thread
    with pytest.raises(WeightVersionMismatchError, match="v1 when the deadline passed"):
        waiting.result(PATIENCE_S)
    plain.result(PATIENCE_S)
    assert service.batcher.parked_tokens == 0


def test_a_deadline_wakes_the_thread_by_itself():
    """Nobody has to come for work that waits to be told that its time is over."""
    versions = WeightVersions("v1")
    versions.announce("v2")
    batcher = Batcher(Weighted(), batch_tokens=4, max_queued_tokens=8, name="test", versions=versions)
    waiting = batcher.submit([1.0], expires_s=batcher.last_beat_s + 0.05, pin=pinned("v2"))
    with pytest.raises(WeightVersionMismatchError):
        waiting.result(PATIENCE_S)
    batcher.close(PATIENCE_S)


def test_pinned_work_that_expires_in_the_queue_of_its_own_weights_has_expired(service):
    """The error says what was wrong: time here, and not weights."""
    service.hold()
    late = service.batcher.submit([1.0], expires_s=5.0, pin=pinned("v1"))
    service.now = 5.0
    service.free()
    with pytest.raises(EngineExpiredError):
        late.result(PATIENCE_S)


def test_works_that_wait_for_weights_are_bounded_by_themselves(service):
    """They take no place from others, and others none from them; those that were cancelled count no more."""
    service.versions.announce("v2")
    first = service.batcher.submit([1.0] * 8, pin=pinned("v2"))
    with pytest.raises(EngineOverloadedError, match="8 tokens wait"):
        service.batcher.submit([1.0], pin=pinned("v2"))
    service.hold(*[1.0] * 8)
    with pytest.raises(EngineOverloadedError):
        service.batcher.submit([1.0])
    assert first.cancel()
    second = service.batcher.submit([2.0] * 8, pin=pinned("v2"))
    assert service.batcher.parked_tokens == 8
    service.swap(2.0, "v2")
    service.free()
    assert service.found(second) == ([4.0] * 8, "v2")


def test_weights_may_come_back_under_their_name(service):
    """A version that was current once is known, and can be waited for."""
    service.swap(2.0, "v2").result(PATIENCE_S)
    waiting = service.batcher.submit([1.0], pin=pinned("v1"))
    assert service.found(service.batcher.submit([1.0])) == ([2.0], "v2")
    assert not waiting.done()
    service.swap(1.0, "v1").result(PATIENCE_S)
    assert service.found(waiting) == ([1.0], "v1")
    assert service.versions.state().past == {"v2"}


def test_a_refused_change_changes_nothing(service):
    """The engine goes on under the weights that it has."""

    def refuse(_beat):
        raise WeightsRefusedError("no")

    with pytest.raises(WeightsRefusedError):
        service.batcher.swap(refuse, "v2").result(PATIENCE_S)
    assert service.found(service.batcher.submit([1.0])) == ([1.0], "v1")
    assert service.versions.state().n_swaps == 0


def test_work_that_waits_for_refused_weights_fails_at_once(service):
    """Nobody waits for what will not come; works for other weights, and for those that come back, wait on."""
    service.batcher.swap(lambda _beat: None, "v2").result(PATIENCE_S)
    for version in ("v3", "v4"):
        service.versions.announce(version)
    refused, other, back = (service.batcher.submit([1.0], pin=pinned(version)) for version in ("v3", "v4", "v1"))
    service.batcher.refuse("v3")
    with pytest.raises(WeightVersionUnknownError, match="pushed and refused; those of the policy are of version v2"):
        refused.result(0.0)
    assert service.batcher.parked_tokens == 2
    with pytest.raises(WeightVersionUnknownError):
        service.batcher.submit([1.0], pin=pinned("v3"))
    service.batcher.refuse("v1")
    for version in ("v4", "v1"):
        service.swap(1.0, version).result(PATIENCE_S)
    assert service.found(other) == ([1.0], "v4")
    assert service.found(back) == ([1.0], "v1")


def test_a_change_that_fails_half_way_stops_the_engine(service, caplog):
    """Nobody knows what the weights are: nothing is answered any more, and everybody is told why."""

    def fail(_beat):
        service.scorer.weights = float("nan")
        raise OSError("the disk is gone")

    service.versions.announce("v3")
    waiting = service.batcher.submit([1.0], pin=pinned("v3"))
    service.hold()
    broken, behind = service.batcher.swap(fail, "v2"), service.swap(3.0, "v3")
    queued = service.batcher.submit([1.0])
    service.free()
    for future in (broken, behind, waiting, queued):
        with pytest.raises(EngineStoppedError, match="failed half-way"):
            future.result(PATIENCE_S)
    with pytest.raises(EngineStoppedError, match="failed half-way"):
        service.batcher.submit([1.0])
    with pytest.raises(EngineStoppedError):
        service.swap(1.0, "v4")
    assert not service.batcher.is_alive
    assert service.versions.current == "v1"
    assert "failed half-way" in caplog.text


def test_closing_fails_changes_and_works_that_wait(service):
    """Nobody is left waiting."""
    service.versions.announce("v2")
    waiting = service.batcher.submit([1.0], pin=pinned("v2"))
    service.hold()
    change = service.swap(2.0, "v2")
    closing = threading.Thread(target=service.batcher.close)
    closing.start()
    while service.batcher.is_alive:
        pass
    service.free()
    closing.join(PATIENCE_S)
    for future in (waiting, change):
        with pytest.raises(EngineStoppedError):
            future.result(PATIENCE_S)
    assert service.scorer.weights == 1.0


def test_a_name_stands_for_the_same_weights():
    """Names are told apart by digests; the name of what was loaded stands for nothing that can be pushed."""
    versions = WeightVersions("v1")
    assert not versions.claim("v2", "a")
    versions.make_current("v2", 0.0)
    assert versions.claim("v2", "a")
    with pytest.raises(WeightVersionMismatchError, match="other bytes"):
        versions.claim("v2", "b")
    with pytest.raises(WeightVersionMismatchError, match="loaded from"):
        versions.claim("v1", "a")
    versions.disclaim("v2")
    with pytest.raises(WeightVersionMismatchError):
        versions.claim("v2", "b")
    versions.claim("v3", "a")
    versions.demand_known(pinned("v3"))
    versions.disclaim("v3")
    assert not versions.claim("v3", "b")


def test_old_versions_and_announcements_are_forgotten():
    """The newest 1024 versions are remembered, and 64 announcements."""
    versions = WeightVersions("0")
    for number in range(1, 1030):
        versions.claim(str(number), "a")
        versions.make_current(str(number), 0.0)
    assert len(versions.state().past) == 1024
    with pytest.raises(WeightVersionUnknownError):
        versions.demand_known(pinned("4"))
    versions.demand_known(pinned("5"))
    assert not versions.claim("4", "b")
    for number in range(2000, 2100):
        versions.announce(str(number))
    assert versions.state().announced == tuple(map(str, range(2036, 2100)))
    versions.announce(versions.current)
    assert versions.current not in versions.state().announced


def test_every_work_sees_one_of_the_weights_whole_while_they_change():
    """200 works and 20 changes between two sets of weights: each answer is exactly one set's, and names it."""
    service = Service()
    service.batcher._max_queued_tokens = 10**6
    sets = {"v1": 1.0, "a": 2.0, "b": 3.0}
    futures, changes, version = [], [], "v1"
    for number in range(200):
        if number % 10 == 0:
            version = "ab"[number // 10 % 2]
            service.versions.announce(version)
            changes.append(service.swap(sets[version], version))
        pin = [WeightPin(), pinned(version), pinned("v1", "fail")][number % 3]
        futures.append(service.batcher.submit_slices([[1.0] * 3, [1.0] * 2][: 1 + number % 2], pin=pin))
    for change in changes:
        change.result(PATIENCE_S)
    seen = set()
    for future in futures:
        try:
            scores, version = service.found(future)
        except WeightVersionMismatchError:
            continue
        assert set(scores) == {sets[version]}
        seen.add(version)
    assert {"a", "b"} <= seen
    assert service.versions.state().n_swaps == 20
    service.batcher.close(PATIENCE_S)
