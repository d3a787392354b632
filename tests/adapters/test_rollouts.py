"""Alignment and failure policies, without any trainer framework."""

import dataclasses
import json
import math
import re

import httpx
import numpy as np
import pytest

from creditd.adapters.credit_config import CreditConfig, anneal
from creditd.adapters.rollouts import Creditor, Rollout
from creditd.client import (
    Client,
    DeadlineExceededError,
    InvalidRequestError,
    PartialResultError,
    ResponseError,
    StatusError,
    TransportError,
)
from creditd.client.bodies import Body
from creditd.client.exchanges import answer_text
from creditd.client.local import shapley_result


def rollouts(rewards, base=0.5):
    """One rollout per row of rewards, whose candidates are one token each."""
    return [
        Rollout(
            n_tokens=len(row) + 1,
            texts=tuple(f"text {place}" for place in range(len(row))),
            spans=tuple((place, place + 1) for place in range(len(row))),
            rewards=tuple(row),
            set_reward=None,
            base_advantage=base,
        )
        for row in rewards
    ]


BATCH = [[0.9, 0.1], [0.4, 0.4], [1.0], []]


def refusing(_):
    """A service that is not there."""
    raise httpx.ConnectError("refused")


def creditor(policy, handler=refusing):
    """A creditor whose service does what the handler does, and which does not wait long."""
    transport = httpx.MockTransport(handler)
    config = CreditConfig(on_failure=policy)
    return Creditor(config, Client("http://credit", transport=transport, deadline_s=0.01))


def test_raise_raises_what_the_client_raises():
    """The default lets a lost service stop the training."""
    with pytest.raises((TransportError, DeadlineExceededError)):
        creditor("raise").credit(rollouts(BATCH), 2, 0)


def test_group_reward_falls_back_to_the_plain_advantage():
    """Every token of a response gets what the trainer itself would have used, and the share is counted."""
    credited = creditor("group_reward").credit(rollouts(BATCH, base=0.5), 2, 0)
    assert all((row == 0.5).all() for row in credited.token_advantages)
    assert credited.metrics["credit/fallbacks"] == credited.metrics["credit/errors"] == 1.0
    assert credited.request_id is None


def test_mask_gives_zero_to_the_whole_group():
    """A masked group does not move the policy; that is counted too."""
    credited = creditor("mask").credit(rollouts(BATCH), 2, 0)
    assert not any(row.any() for row in credited.token_advantages)
    assert credited.metrics["credit/fallbacks"] == 1.0


def test_local_computes_the_same_numbers_here():
    """The in-process computation gives the bits of a service that works."""
    credited = creditor("local").credit(rollouts(BATCH), 2, 0)
    expected = Creditor(CreditConfig(url="local:")).credit(rollouts(BATCH), 2, 0)
    for row, wanted in zip(credited.token_advantages, expected.token_advantages, strict=True):
        np.testing.assert_array_equal(row, wanted)
    assert (credited.metrics["credit/local"], expected.metrics["credit/local"]) == (1.0, 0.0)


@pytest.mark.parametrize("policy", ["group_reward", "mask"])
def test_one_bad_set_costs_its_own_group_only(policy):
    """A NaN reward fails the group of its rollout under the policy; other groups keep their credit."""
    broken = [[0.9, math.nan], [0.4, 0.4], [1.0, 0.2], [0.3]]
    credited = Creditor(CreditConfig(url="local:", on_failure=policy)).credit(rollouts(broken), 2, 0)
    assert credited.metrics["credit/fallbacks"] == 0.5
    fallback = 0.5 if policy == "group_reward" else 0.0
    assert all((row == fallback).all() for row in credited.token_advantages[:2])
    assert credited.token_advantages[2][0] > credited.token_advantages[2][1]


@pytest.mark.parametrize("policy", ["raise", "local"])
def test_rewards_that_are_wrong_stay_wrong(policy):
    """What is wrong with the rewards themselves is not healed by computing elsewhere."""
    with pytest.raises((PartialResultError, InvalidRequestError)):
        Creditor(CreditConfig(url="local:", on_failure=policy)).credit(rollouts([[math.nan], [0.1]]), 2, 0)


def test_a_split_group_is_an_error():
    """Rows that do not make whole groups are refused by the expectation that travels with them."""
    with pytest.raises((PartialResultError, InvalidRequestError)):
        Creditor(CreditConfig(url="local:")).credit(rollouts([[0.1], [0.2], [0.3]]), 2, 0)


def test_a_schedule_is_a_function_of_the_step():
    """The same step gives the same rule, however often it was asked before."""
    rule = anneal("shapley", "leave_one_out", steps=10)
    assert [rule(step)["position"] for step in (0, 5, 10, 99, 5)] == [0.0, 0.5, 1.0, 1.0, 0.5]
    ask = Creditor(CreditConfig(url="local:", credit=rule))
    assert ask.credit(rollouts(BATCH), 2, 5).metrics["credit/position"] == 0.5
    with pytest.raises(ValueError, match="steps"):
        anneal("shapley", "leave_one_out", steps=0)


def test_metrics_tell_what_a_run_should_watch():
    """Candidates, malformed sets, contrast and gap are in the log, as numbers."""
    metrics = Creditor(CreditConfig(url="local:", candidates=1)).credit(rollouts(BATCH), 2, 0).metrics
    assert metrics["credit/candidates"] == 0.75
    assert metrics["credit/malformed"] == 0.75
    assert metrics["credit/gap_max"] < 1e-12
    assert all(math.isfinite(value) for value in metrics.values())


def test_utilities_are_those_of_the_configuration():
    """The reward that a trainer logs is the utility of the set, or the failure reward, or nothing."""
    ask = Creditor(CreditConfig(url="local:", utility="sum", malformed={"failure_reward": -1.0}))
    rewards = [[0.5, 0.25], [], [None], [math.nan, 1.0]]
    assert ask.utilities(rewards, [[""] * len(row) for row in rewards]) == [0.75, -1.0, -1.0, None]
    assert ask.utilities([[math.nan]], [["x"]]) == [None]


def test_utilities_see_the_policies_for_malformed_sets():
    """What does not play is not paid in the log either."""
    kept = Creditor(CreditConfig(url="local:", candidates=2))
    assert kept.utilities([[0.1, 0.2, 1.0]], [["a", "b", "c"]]) == [0.2]
    once = Creditor(CreditConfig(url="local:", utility="sum", malformed={"duplicates": "collapse"}))
    assert once.utilities([[0.5, 0.5]], [["a", "a"]]) == [0.5]


def test_a_policy_that_writes_without_end_costs_no_run():
    """Hundreds of candidates in one completion are truncated, asked for or not."""
    for config in (CreditConfig(url="local:"), CreditConfig(url="local:", candidates=4)):
        credited = Creditor(config).credit(rollouts([[0.5] * 300, [0.1]]), 2, 0)
        assert all(np.isfinite(row).all() for row in credited.token_advantages)
        assert credited.metrics["credit/malformed"] == 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"credit": "shaply"},
        {"credit": {"type": "max_at_k"}},
        {"advantage": "pool"},
        {"utility": "table"},
        {"tokens": {"othr": "set"}},
        {"malformed": {"candidatez": 3}},
        {"malformed": {"failure_reward": None}},
        {"on_failure": "bogus"},
        {"keep": 0, "record": "RECORD"},
        {"deadline_s": 0.0},
        {"credit": lambda _: "shaply"},
    ],
)
def test_choices_that_make_no_sense_are_refused_before_a_run(wrong, tmp_path):
    """A misspelt rule is an error at the start, and not a lost service for a whole run."""
    wrong = {name: str(tmp_path) if value == "RECORD" else value for name, value in wrong.items()}
    with pytest.raises((ValueError, TypeError)):
        Creditor(CreditConfig(url="local:", **({"on_failure": "mask"} | wrong)))


@pytest.mark.parametrize("status", [401, 404, 422])
def test_a_wrong_key_address_or_choice_is_no_lost_service(status):
    """No failure policy hides what another try cannot heal."""
    with pytest.raises(StatusError):
        creditor("mask", lambda _: httpx.Response(status, json={"detail": "no"})).credit(rollouts(BATCH), 2, 0)


def test_the_first_fallback_is_said(caplog):
    """A run that goes on without credit says so once in its log."""
    ask = creditor("mask")
    for step in range(3):
        ask.credit(rollouts(BATCH), 2, step)
    assert [record.name for record in caplog.records] == ["creditd.adapters"]


def test_set_rewards_have_their_weight():
    """The advantage of whole responses is added with the weight that is asked for."""
    batch = [dataclasses.replace(one, set_reward=float(row)) for row, one in enumerate(rollouts(BATCH))]
    ask = Creditor(CreditConfig(url="local:", tokens={"other": "set", "set_reward_weight": 0.5}))
    plain, weighted, double = (ask.credit(batch, 2, 0, set_reward_weight=w).token_advantages for w in (0.0, 1.0, 2.0))
    for none, once, twice in zip(plain, weighted, double, strict=True):
        np.testing.assert_allclose(twice - none, 2 * (once - none), atol=1e-12)
        assert (once != none).all()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"utility": "plurality"}, "utility needs label, which no candidate reward gives"),
        ({"utility": {"type": "redundancy", "penalty": 1.0}}, "utility needs similarities"),
        ({"utility": max}, "utility is a function"),
        ({"credit": "owen"}, "owen, which needs unions of candidates"),
        ({"candidates": 0}, "got candidates 0; expected a whole number of at least 1, or None"),
        ({"candidates": "4"}, "got candidates '4'; expected a whole number"),
        ({"candidates": 2.5}, "got candidates 2.5; expected a whole number"),
        ({"candidates": True}, "got candidates True; expected a whole number"),
        ({"tokens": None}, "got tokens None; expected a mapping"),
        ({"tokens": "set"}, "got tokens 'set'; expected a mapping"),
        ({"malformed": None}, "got malformed None; expected a mapping"),
        ({"max_credit_share": "a"}, "got max_credit_share 'a'; expected a share of at least 0, or None"),
        ({"max_credit_share": -1.0}, "got max_credit_share -1.0; expected a share"),
        ({"max_credit_share": math.nan}, "got max_credit_share nan; expected a share"),
        ({"credit": None}, "credit is None; expected a rule such as 'shapley'"),
        ({"credit": {}}, "credit is {}; expected a rule"),
        ({"credit": {"type": "mixture", "weights": [1.0, 0.5]}, "candidates": 4}, "a mixture of 2 weights; expected 4"),
        (
            {
                "credit": {
                    "type": "blend",
                    "from": "shapley",
                    "to": {"type": "mixture", "weights": [1.0]},
                    "position": 0.5,
                },
                "candidates": 2,
            },
            "a mixture of 1 weights; expected 2",
        ),
    ],
)
def test_a_configuration_is_refused_where_it_is_written(wrong, said):
    """The argument is named, with what it is and what it should be."""
    with pytest.raises(ValueError, match=re.escape(said)):
        CreditConfig(**wrong)


def test_a_mixture_for_the_candidates_that_are_asked_for_is_taken():
    """As many weights as candidates, or no number of candidates at all."""
    rule = {"type": "mixture", "weights": [1.0, 0.5]}
    for candidates in (2, None):
        Creditor(CreditConfig(url="local:", credit=rule, candidates=candidates))


@pytest.mark.parametrize("returned", [None, {}, 3, {"type": "mixture", "weights": [1.0]}])
def test_a_schedule_that_returns_no_rule_raises(returned):
    """A forgotten `return` is not Shapley; the step is named, whatever the failure policy."""
    config = CreditConfig(
        url="local:", credit=lambda step: "shapley" if step < 7 else returned, candidates=2, on_failure="mask"
    )
    ask = Creditor(config)
    ask.credit(rollouts(BATCH), 2, 6)
    with pytest.raises(ValueError, match="the schedule returned, at step 7, "):
        ask.credit(rollouts(BATCH), 2, 7)


def test_a_key_is_not_shown():
    """What is printed of a configuration can go into a log."""
    assert "SECRET" not in repr(CreditConfig(api_key="SECRET"))


def test_as_many_recordings_are_kept_as_are_asked_for(tmp_path):
    """The directory holds the newest ones."""
    ask = Creditor(CreditConfig(url="local:", record=str(tmp_path), keep=2))
    for step in range(4):
        ask.credit(rollouts(BATCH), 2, step)
    assert len(list(tmp_path.glob("*.json"))) == 2


def answering(change):
    """A service that answers as it should, but for one change to the columns."""

    def handler(request):
        received = Body(
            content=request.content, row_splits=np.zeros(1, dtype=np.int64), media_type=request.headers["Content-Type"]
        )
        splits = np.array(json.loads(received.text)["columns"]["rewards"]["row_splits"])
        sent = dataclasses.replace(received, row_splits=splits)
        answer = json.loads(answer_text(shapley_result(sent, request.headers["X-Request-Id"])))
        change(answer["columns"])
        return httpx.Response(200, json=answer)

    return handler


def shorter(columns):
    """The last row has one token less."""
    columns["token_advantages"]["values"].pop()
    columns["token_advantages"]["row_splits"][-1] -= 1


def shifted(columns):
    """The first row has one token more, the second one less."""
    columns["token_advantages"]["row_splits"][1] += 1


def null(columns):
    """A number is missing."""
    columns["token_advantages"]["values"][1] = None


def huge(columns):
    """A number that no trainer can hold."""
    columns["token_advantages"]["values"][0] = 1e300


def absent(columns):
    """There are none."""
    columns["token_advantages"] = None


CHANGES = {
    shorter: "0 token advantages for rollout 3, which has 1 tokens",
    shifted: "4 token advantages for rollout 0, which has 3 tokens",
    null: "nan as the advantage of token 1 of rollout 0",
    huge: "1e+300 as the advantage of token 0 of rollout 0",
    absent: "no token advantages",
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_answer_that_does_not_fit_is_no_credit(change):
    """An answer without one finite number per token is the failure policy's, and never padded with zeros."""
    with pytest.raises(ResponseError, match=re.escape(f"got {CHANGES[change]}; expected one finite float32 per token")):
        creditor("raise", answering(change)).credit(rollouts(BATCH), 2, 0)
    for policy, expected in (("mask", 0.0), ("group_reward", 0.5)):
        credited = creditor(policy, answering(change)).credit(rollouts(BATCH), 2, 0)
        assert all((row == expected).all() for row in credited.token_advantages)
        assert [len(row) for row in credited.token_advantages] == [3, 3, 2, 1]
        assert credited.metrics["credit/errors"] == credited.metrics["credit/fallbacks"] == 1.0
    local = creditor("local", answering(change)).credit(rollouts(BATCH), 2, 0)
    sound = creditor("raise", answering(lambda _: None)).credit(rollouts(BATCH), 2, 0)
    for row, wanted in zip(local.token_advantages, sound.token_advantages, strict=True):
        np.testing.assert_array_equal(row, wanted)
    assert (local.request_id, local.metrics["credit/local"]) == (None, 1.0)
    assert sound.request_id is not None


def test_an_answer_that_is_partial_is_checked_too():
    """One bad set does not hide that the rows of the others do not fit."""
    broken = [[0.9, math.nan], [0.4, 0.4], [1.0, 0.2], [0.3]]
    credited = creditor("mask", answering(null)).credit(rollouts(broken), 2, 0)
    assert credited.metrics["credit/fallbacks"] == 0.5  # the change hit the set that failed
    credited = creditor("mask", answering(shorter)).credit(rollouts(broken), 2, 0)
    assert credited.metrics["credit/fallbacks"] == 1.0
