"""Alignment and failure policies, without any trainer framework."""

import dataclasses
import math

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.adapters.rollouts import CreditConfig, Creditor, Rollout, anneal, find_candidates, token_offsets
from creditd.client import (
    Client,
    DeadlineExceededError,
    InvalidRequestError,
    PartialResultError,
    StatusError,
    TransportError,
)
from creditd.credit.candidate_parsers import Numbered

WORDS = ["<eos>", "1.", "2.", "tea", "coffee", "milk\n"]


def of_words(ids):
    """Words with spaces between them; 0 is special and leaves nothing."""
    return " ".join(WORDS[number] for number in ids if number)


def of_bytes(ids):
    """Bytes as UTF-8, as byte-level tokenizers decode."""
    return bytes(ids).decode("utf-8", errors="replace")


@given(st.text(max_size=40))
def test_bytes_of_any_text_have_offsets_without_gaps(text):
    """Every character belongs to the token that completes it; tokens that only begin one have empty ranges."""
    ids = list(text.encode())
    decoded, offsets = token_offsets(ids, of_bytes)
    assert decoded == text
    assert [start for start, _ in offsets] == [0, *[stop for _, stop in offsets[:-1]]][: len(offsets)]
    assert "".join(text[start:stop] for start, stop in offsets) == text


def test_words_carry_the_space_before_them():
    """A decoder that joins words gives each token its own word and the space that came with it."""
    text, offsets = token_offsets([1, 3, 2, 4, 0], of_words)
    assert [text[start:stop] for start, stop in offsets] == ["1.", " tea", " 2.", " coffee", ""]


def with_byte_fallback(ids):
    """As SentencePiece decodes: a run of bytes that is no UTF-8 becomes one replacement character for each byte."""
    out, run = "", bytearray()
    for number in [*ids, None]:
        if number is not None and number < 256:
            run.append(number)
            continue
        try:
            out += run.decode()
        except UnicodeDecodeError:
            out += "\N{REPLACEMENT CHARACTER}" * len(run)
        run.clear()
        out += "" if number is None else {256: "1. ", 257: "\n2. ", 258: "coffee", 259: "\n3. ", 260: "milk"}[number]
    return out


@pytest.mark.parametrize("tail", [[], [0x92]], ids=["sound", "with an invalid byte"])
def test_bytes_that_change_in_company_do_not_shift_what_follows(tail):
    """One bad byte turns all characters of its run into replacements; later candidates keep their own tokens."""
    ids = [256, *"咖啡咖啡".encode(), *tail, 257, 258, 259, 260]
    texts, spans = find_candidates(ids, with_byte_fallback, Numbered(), cut_off=False)
    assert texts[1:] == ("coffee", "milk")
    assert [ids[slice(*span)] for span in spans[1:]] == [[258], [260]]
    assert spans[0] == (1, 1 + len("咖啡咖啡".encode()) + len(tail))


@given(st.lists(st.integers(0, 260), max_size=30))
def test_any_tokens_have_offsets(ids):
    """Whatever a policy samples has offsets that cover its text without a gap: no sample ends a run."""
    text, offsets = token_offsets(ids, with_byte_fallback)
    assert text == with_byte_fallback(ids)
    assert "".join(text[start:stop] for start, stop in offsets) == (text if ids else "")
    assert all(start <= stop for start, stop in offsets)


def test_candidates_have_the_tokens_that_write_them():
    """Texts and token ranges agree; a candidate that the length limit cut off is none."""
    ids = list("1. thé\n2. coffee".encode())
    found = find_candidates(ids, of_bytes, Numbered(), cut_off=False)
    assert found == (("thé", "coffee"), ((3, 7), (11, 17)))
    assert find_candidates(ids, of_bytes, Numbered(), cut_off=True) == (("thé",), ((3, 7),))
    assert find_candidates(list(b"nothing"), of_bytes, Numbered(), cut_off=False) == ((), ())


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
        {"candidates": 0},
        {"max_credit_share": -1.0},
    ],
)
def test_choices_that_make_no_sense_are_refused_before_a_run(wrong):
    """A misspelt rule is an error at the start, and not a lost service for a whole run."""
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
