import threading

import pytest

from creditd.cache.breaker import FAILURES, FIRST_OPEN_S, LONGEST_OPEN_S, PROBE_S, WINDOW_S, Breaker

JUST = 1e-6
"""Less than anything that a breaker counts, more than rounding."""


class Times:
    """A breaker with a clock and a jitter that a test sets, and what it told."""

    def __init__(self, jitter=0.0):
        self.now_s, self.jitter, self.told = 1000.0, jitter, []
        self.breaker = Breaker(lambda: self.now_s, lambda: self.jitter, self.told.append)

    def fail(self, times=1):
        """Some calls that fail at once."""
        for _ in range(times):
            self.breaker.failed()

    def opened(self, seconds):
        """Whether it is open for exactly so long from now; the call that it then lets through is the probe."""
        begun = self.now_s
        closed = []
        for after in (0.0, seconds - JUST):
            self.now_s = begun + after
            closed.append((self.breaker.state, self.breaker.allows()))
        self.now_s = begun + seconds + JUST
        return closed == [("open", False)] * 2 and self.breaker.allows()


def test_a_breaker_begins_closed():
    """Before anything has failed all calls are let through, and nothing is told."""
    times = Times()
    assert [times.breaker.allows() for _ in range(9)] == [True] * 9
    times.breaker.succeeded()
    assert (times.breaker.state, times.told) == ("closed", [])


def test_failures_in_a_row_open_it():
    """It opens with the third failure and not before."""
    times = Times()
    for _ in range(FAILURES - 1):
        times.fail()
        assert (times.breaker.state, times.breaker.allows()) == ("closed", True)
    times.fail()
    assert (times.breaker.state, times.breaker.allows(), times.told) == ("open", False, ["open"])


def test_a_success_between_them_begins_anew():
    """Failures count in a row."""
    times = Times()
    for _ in range(4):
        times.fail(FAILURES - 1)
        times.breaker.succeeded()
    assert times.told == []
    times.fail(FAILURES - 1)
    assert times.breaker.state == "closed"
    times.fail()
    assert times.breaker.state == "open"


@pytest.mark.parametrize(("after", "state"), [(WINDOW_S - JUST, "open"), (WINDOW_S + JUST, "closed")])
def test_old_failures_do_not_count(after, state):
    """A failure that lies behind the window is no longer one of three."""
    times = Times()
    times.fail()
    times.now_s += after
    times.fail(FAILURES - 1)
    assert times.breaker.state == state


def test_one_call_is_let_through_to_see():
    """Once the time is over one call goes through, others do not while it is on its way."""
    times = Times()
    times.fail(FAILURES)
    assert times.opened(FIRST_OPEN_S)
    assert times.breaker.state == "half_open"
    assert [times.breaker.allows() for _ in range(3)] == [False] * 3
    assert times.told == ["open", "half_open"]


def test_it_says_that_it_would_let_one_through():
    """A breaker whose time is over is half open, also before anybody asks it; nobody is told until then."""
    times = Times()
    times.fail(FAILURES)
    times.now_s += FIRST_OPEN_S - JUST
    assert times.breaker.state == "open"
    times.now_s += 2 * JUST
    assert (times.breaker.state, times.told) == ("half_open", ["open"])


def test_a_probe_that_succeeds_closes_it():
    """After one success all calls go through, and it takes three failures again."""
    times = Times()
    times.fail(FAILURES)
    assert times.opened(FIRST_OPEN_S)
    times.breaker.succeeded()
    assert times.told == ["open", "half_open", "closed"]
    assert [times.breaker.allows() for _ in range(3)] == [True] * 3
    times.fail(FAILURES - 1)
    assert times.breaker.state == "closed"


def test_each_probe_that_fails_opens_it_for_twice_as_long():
    """The time doubles up to the longest; a success makes it as short as at first."""
    times, seconds = Times(), FIRST_OPEN_S
    times.fail(FAILURES)
    waited = []
    for _ in range(7):
        assert times.opened(seconds), seconds
        waited.append(seconds)
        times.fail()
        assert times.breaker.state == "open"
        seconds = min(2 * seconds, LONGEST_OPEN_S)
    assert waited == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert times.opened(LONGEST_OPEN_S)
    times.breaker.succeeded()
    times.fail(FAILURES)
    assert times.opened(FIRST_OPEN_S)


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_replicas_do_not_all_ask_at_once(jitter):
    """Each time that it is open is up to a quarter longer, the longest as well."""
    times = Times(jitter)
    times.fail(FAILURES)
    seconds = FIRST_OPEN_S
    for _ in range(6):
        assert times.opened(seconds * (1 + 0.25 * jitter))
        times.fail()
        seconds = min(2 * seconds, LONGEST_OPEN_S)


def test_a_probe_that_tells_nothing_is_forgotten():
    """Who never says how a probe ended does not leave the breaker open for ever: another one is made, then another."""
    times = Times()
    times.fail(FAILURES)
    assert times.opened(FIRST_OPEN_S)
    for _ in range(3):
        times.now_s += PROBE_S - 2 * JUST
        assert not times.breaker.allows()
        times.now_s += 3 * JUST
        assert times.breaker.allows()
        assert times.breaker.state == "half_open"
    assert times.told == ["open", "half_open"]
    times.breaker.succeeded()
    assert times.breaker.allows()


def test_late_failures_do_not_prolong_it():
    """Calls that began before it opened, and fail while it is open, change nothing."""
    times = Times()
    times.fail(FAILURES)
    times.now_s += FIRST_OPEN_S / 2
    times.fail(9)
    assert times.opened(FIRST_OPEN_S / 2)
    times.breaker.succeeded()
    times.fail(FAILURES - 1)
    assert times.breaker.state == "closed"


def test_a_late_success_closes_it():
    """A call that began before it opened, and succeeds, shows that the store answers."""
    times = Times()
    times.fail(FAILURES)
    times.breaker.succeeded()
    assert (times.breaker.allows(), times.told) == (True, ["open", "closed"])


def test_what_failed_before_it_opened_is_not_counted_after_it_closed():
    """It takes three new failures to open it again, however soon."""
    times = Times()
    times.fail(FAILURES)
    times.breaker.succeeded()
    times.fail(FAILURES - 1)
    assert times.breaker.state == "closed"


def test_one_probe_is_made_by_many_threads():
    """Of threads that ask at the same time one is let through."""
    times = Times()
    times.fail(FAILURES)
    times.now_s += FIRST_OPEN_S
    begin, allowed = threading.Barrier(8), []

    def ask():
        begin.wait(30.0)
        allowed.append(times.breaker.allows())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    assert sorted(allowed) == [False] * 7 + [True]


def test_a_breaker_has_a_clock_of_its_own():
    """Without a clock, a jitter or a listener it counts real seconds, and tells nobody."""
    breaker = Breaker()
    for _ in range(FAILURES):
        breaker.failed()
    assert (breaker.state, breaker.allows()) == ("open", False)
