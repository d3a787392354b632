"""The share of a step that its credit takes: what is logged, and when it is said."""

import warnings

import pytest

from creditd.adapters import step_share
from creditd.adapters.step_share import StepShare


@pytest.fixture
def clock(monkeypatch):
    """A clock that each call of a step moves on by ten seconds."""
    now = [0.0]

    def tick():
        now[0] += 10.0
        return now[0]

    monkeypatch.setattr(step_share.time, "perf_counter", tick)


def said(share, seconds):
    """How many warnings some steps make."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for taken in seconds:
            share.of_step(taken)
    return [str(one.message) for one in caught]


@pytest.mark.usefixtures("clock")
def test_a_share_is_that_of_the_time_since_the_last_call():
    """The first step has none, and neither has one behind an interruption."""
    share = StepShare(0.5, "help")
    assert share.of_step(1.0) == {}
    assert share.of_step(4.0) == {"credit/share_of_step": 0.4}
    share.interrupted()
    assert share.of_step(4.0) == {}


@pytest.mark.usefixtures("clock")
def test_three_large_shares_in_a_row_are_said_once():
    """Two are not, nor three with a small one between."""
    assert said(StepShare(0.5, "help"), [9.0] * 3) == []
    assert said(StepShare(0.5, "help"), [9.0, 9.0, 9.0, 1.0, 9.0, 9.0]) == []
    (words,) = said(StepShare(0.5, "more room helps", what="weighing"), [9.0] * 9)
    assert words == "weighing took more than 50% of each of the last 3 steps (9.00 s in this one); more room helps"


@pytest.mark.usefixtures("clock")
def test_without_a_limit_or_in_another_process_nothing_is_said():
    """The share is logged all the same."""
    for share in (StepShare(None, "help"), StepShare(0.5, "help", speaks=False)):
        assert said(share, [9.0] * 9) == []
        assert share.of_step(9.0) == {"credit/share_of_step": 0.9}
