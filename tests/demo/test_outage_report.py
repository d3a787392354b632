"""What is compared between runs with and without Redis, and what may move."""

import math
from dataclasses import replace

import pytest

import outage_report
from outage_report import Run

PAGE = """\
# HELP creditd_cache_games_total Games.
# TYPE creditd_cache_games_total counter
creditd_cache_games_total{outcome="redis"} 12.0
creditd_cache_games_created{outcome="redis"} 1.7e+09
creditd_evaluations_total{model="rm"} 1024.0
creditd_requests_total{route="/metrics",status="200"} 1.0
creditd_cache_queued_bytes 0.0
"""


def run(name="none", *, evaluations=100.0, seconds=0.2, service=None, **logged):
    """Two steps; what is given is logged in the second."""
    entry = {
        "reward": 1.25,
        "grad_norm": 0.1,
        "reward_std": math.nan,
        "credit/evaluations": evaluations,
        "credit/model_seconds": seconds,
        "credit/seconds": 0.1,
        "credit/request_id": name,
        "step_time": seconds,
    }
    curve = [{"step": 0, "max_at_k": 0.25}, {"step": 2, "max_at_k": 0.5}]
    return Run(name, ["a1", "b2"], curve, [entry, entry | logged], service or {}, seconds)


def test_counters_and_times_may_move():
    """Evaluations, what was remembered, seconds and identities of requests say nothing of the policy."""
    other = run("full", evaluations=0.0, seconds=0.1, **{"credit/from_cache": 100.0, "credit/share_of_step": 0.3})
    assert outage_report.differences(run(), other) == []
    outage_report.check_same([run(), other])
    assert outage_report.log_digest(run()) == outage_report.log_digest(other)
    assert outage_report.compared(other) == ["grad_norm", "reward", "reward_std"]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (run("full", reward=math.nextafter(1.25, 2)), "log 1, reward: 1.25 in none, 1.2500000000000002 in full"),
        (run("full", reward=None), "log 1, reward: 1.25 in none, None in full"),
        (run("full", **{"credit/zero_share": 0.0}), "log 1, credit/zero_share: None in none, 0.0 in full"),
        (run("full", grad_norm=-0.0), "log 1, grad_norm: 0.1 in none, -0.0 in full"),
        (replace(run("full"), weights=["a1", "c3"]), "weights 1, itself: 'b2' in none, 'c3' in full"),
        (replace(run("full"), weights=["a1"]), "weights: 2 entries in none, 1 in full"),
        (replace(run("full"), curve=run().curve[:1]), "curve: 2 entries in none, 1 in full"),
    ],
)
def test_any_other_bit_is_said(other, said):
    """The last bit of a number, a number that is not there, a step that is missing: each by name."""
    assert said in outage_report.differences(run(), other)
    with pytest.raises(RuntimeError, match="the trainings are not the same"):
        outage_report.check_same([run(), run("empty"), other])


def test_an_error_says_the_first_differences_and_how_many_more():
    """It can be read."""
    other = run("full", **{f"extra {place}": 1.0 for place in range(8)})
    with pytest.raises(RuntimeError) as caught:
        outage_report.check_same([run(), other])
    assert len(str(caught.value).splitlines()) == 1 + outage_report.SHOWN + 1
    assert str(caught.value).endswith("and 3 more")


def test_counters_that_are_the_same_everywhere_are_left_out():
    """A counter that a run lacks is 0 there."""
    runs = [
        run(service={"creditd_evaluations_total": 200.0, "steady": 3.0}),
        run("full", evaluations=0.0, service={"steady": 3.0, "creditd_cache_games_total": 12.0}),
    ]
    assert outage_report.moved(runs) == {
        "credit/evaluations": [200.0, 0.0],
        "creditd_evaluations_total": [200.0, 0.0],
        "creditd_cache_games_total": [0.0, 12.0],
    }


def test_the_text_has_what_is_the_same_and_both_tables():
    """Columns are runs; a row per counter, and one per step."""
    runs = [run(), run("full", evaluations=0.5)]
    said, counted, steps = outage_report.text(runs).split("\n\n")
    assert said.startswith("The same bits in all 2 trainings: weights after each of 2 steps (the last b2), 3 entries")
    assert "max@K at the end 0.5000" in said
    assert counted.splitlines()[0].split() == ["counters", "that", "moved", "none", "full"]
    assert counted.splitlines()[1].split() == ["seconds", "per", "step", "0.200", "0.200"]
    assert counted.splitlines()[2].split() == ["seconds", "of", "the", "longest", "request", "0.300", "0.300"]
    assert counted.splitlines()[3].split() == ["credit/evaluations", "200", "1"]
    assert [line.split() for line in steps.splitlines()[1:]] == [["1", "100", "0.500"], ["2", "100", "0.500"]]
    assert len({len(line) for line in counted.splitlines()}) == 1


def test_samples_are_those_of_the_page_that_are_wanted():
    """Names with their labels; no comment, no time at which a counter was made."""
    assert outage_report.samples(PAGE, ("creditd_cache_", "creditd_evaluations_total")) == {
        'creditd_cache_games_total{outcome="redis"}': 12.0,
        'creditd_evaluations_total{model="rm"}': 1024.0,
        "creditd_cache_queued_bytes": 0.0,
    }
