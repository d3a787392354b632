import json
import math

import pytest

from creditd.wire.groups import GroupResponse
from server.credit_calls import MARK, answer, approx, refusal
from server.running import GROUP


def test_group_advantages_follow_their_formulas():
    """R = (1, ½, 0) has mean ½ and standard deviation ½ with ddof 1."""
    for kind, expected in (("grpo", 0.5 / 0.5), ("dr_grpo", 0.5), ("rloo", 0.75)):
        body = {"rewards": [[1.0, 0.5, 0.0]], "advantage": {"type": kind, "epsilon": 0.0}}
        document = answer(body, GROUP, GroupResponse)
        assert document["advantages"] == [approx([expected, 0.0, -expected])]
    body = {"rewards": [[1.0, 0.5, 0.0]], "advantage": {"ddof": 0, "epsilon": 0.0}}
    root = math.sqrt(1.5)
    assert answer(body, GROUP, GroupResponse)["advantages"] == [approx([root, 0.0, -root])]


def test_rules_of_draws_follow_their_formulas():
    """Eight responses, two right: pass@4 pays √(3/11) and −⅓ of it; max@3 of four pays ¾·(.9 − .4) to the best."""
    right = [[1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    (row,) = answer({"rewards": right, "advantage": {"type": "pass_at_k", "k": 4}}, GROUP, GroupResponse)["advantages"]
    assert row == [approx(math.sqrt(3 / 11))] * 2 + [approx(-math.sqrt(3 / 11) / 3)] * 6
    rewards = [[0.9, 0.4, 0.4, 0.2]]
    for advantage, best in (({"type": "max_at_k", "k": 3}, 0.375), ({"type": "leave_one_out"}, 0.5)):
        document = answer({"rewards": rewards, "advantage": advantage}, GROUP, GroupResponse)
        assert document["advantages"] == [[approx(best), 0.0, 0.0, 0.0]]


def test_rules_of_the_whole_request_follow_their_formulas():
    """Three groups of two rollouts with two binary rewards: GDPO tells apart what a sum does not."""
    rewards = {"a": [[0.0, 1.0], [0.0, 0.0], [0.0, 1.0]], "b": [[0.0, 1.0], [0.0, 1.0], [1.0, 1.0]]}
    exact = {"epsilon": 0.0, "whitening": {"type": "trl", "epsilon": 0.0}}
    gdpo = answer({"rewards": rewards, "advantage": {"type": "gdpo", **exact}}, GROUP, GroupResponse)
    for row, winner in zip(gdpo["advantages"], (1.290994448735806, 0.645497224367903, 0.645497224367903), strict=True):
        assert row == [approx(-winner), approx(winner)]
    body = {"rewards": rewards, "advantage": {"type": "grpo", "epsilon": 0.0}}
    assert answer(body, GROUP, GroupResponse)["advantages"] == [[approx(-math.sqrt(0.5)), approx(math.sqrt(0.5))]] * 3
    body = {
        "rewards": [[1.0, 0.0], [3.0, 0.0]],
        "n_tokens": [[1, 3], [2, 2]],
        "convention": "openrlhf",
        "advantage": {"type": "reinforce++_baseline"},
    }
    root = math.sqrt(9.875 / 8)
    expected = [[approx(0.625 / root), approx(-0.375 / root)], [approx(1.625 / root), approx(-1.375 / root)]]
    assert answer(body, GROUP, GroupResponse)["advantages"] == expected


def test_a_row_without_the_threshold_that_it_needs_fails_alone():
    """Without a threshold a reward that is neither 0 nor 1 fails its row, with a pointer; the others are answered."""
    body = {"rewards": {"a": [[1.0, 0.0], [0.5, 1.0]]}, "advantage": {"type": "pass_at_k", "k": 1}}
    document = answer(body, GROUP, GroupResponse)
    assert (document["status"], document["advantages"]) == ([0, 1], [[1.0, -1.0], [None, None]])
    (error,) = document["errors"]
    assert (error["row"], error["code"], error["pointer"]) == (1, "invalid_request", "/rewards/a/1/0")


def test_rows_that_do_not_fit_each_other_are_a_shape_mismatch():
    """Names and tokens have the rows of the first reward; unknown names have no weight."""
    for body, code, pointer in (
        ({"rewards": {"a": [[1.0]], "b": [[1.0, 2.0]]}}, "shape_mismatch", "/rewards/b/0"),
        ({"rewards": [[1.0]], "n_tokens": [[1], [2]]}, "shape_mismatch", "/n_tokens"),
        ({"rewards": {"a": [[1.0]]}, "weights": {"b": 1.0}}, "invalid_request", "/weights/b"),
    ):
        document = refusal(body, GROUP)
        assert (document["code"], document["errors"][0]["pointer"]) == (code, pointer)


@pytest.mark.parametrize(("convention", "epsilon"), [("trl", 1e-4), ("verl", 1e-6), ("openrlhf", 1e-9)])
def test_a_convention_is_its_epsilon(convention, epsilon):
    """The conventions differ in ε, and a given ε wins over them."""
    body = {"rewards": [[1.0, 0.5, 0.0]], "convention": convention}
    (row,) = answer(body, GROUP, GroupResponse)["advantages"]
    assert row[0] == pytest.approx(0.5 / (0.5 + epsilon), rel=1e-14)
    (row,) = answer({**body, "advantage": {"epsilon": 0.5}}, GROUP, GroupResponse)["advantages"]
    assert row[0] == pytest.approx(0.5, rel=1e-14)


def test_a_null_reward_is_left_out():
    """A null gets 0 and a flag, and the others have the advantages of the smaller group, to the last bit."""
    document = answer({"rewards": [[1.0, None, 0.0], [1.0, 0.0], [None], [0.5, 0.5]]}, GROUP, GroupResponse)
    with_null, without, nothing, constant = document["advantages"]
    assert with_null == [without[0], 0.0, without[1]]
    assert (nothing, constant) == ([0.0], [0.0, 0.0])
    assert document["flags"][:2] == [["group_incomplete"], []]
    assert "degenerate_group" in document["flags"][3]


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-1e400"])
def test_a_bad_row_of_rewards_fails_alone(literal):
    """A row with a number that is not finite is null throughout and named; the others are answered."""
    body = json.dumps({"rewards": [[1.0, 0.0], [0.5, float(MARK)], [0.0, 1.0]]}).replace(MARK, literal)
    document = answer(body, GROUP, GroupResponse)
    assert document["status"] == [0, 1, 0]
    assert document["advantages"][1] == [None, None]
    (error,) = document["errors"]
    assert (error["row"], error["code"], error["pointer"]) == (1, "non_finite_value", "/rewards/1/1")
    document = refusal(json.dumps({"rewards": [[float(MARK)]] * 12}).replace(MARK, literal), GROUP)
    assert document["code"] == "non_finite_value"
    assert len(document["errors"]) == 10


def test_group_size_is_asserted():
    """A row of another size than expected fails alone; candidates cannot be expected of whole responses."""
    document = answer({"rewards": [[1.0, 0.0], [1.0]], "expect": {"group_size": 2}}, GROUP, GroupResponse)
    assert document["status"] == [0, 1]
    assert document["errors"][0]["code"] == "group_size_mismatch"
    assert document["errors"][0]["pointer"] == "/rewards/1"
    document = refusal({"rewards": [[1.0]], "expect": {"candidates": 2}}, GROUP)
    assert document["errors"][0]["pointer"] == "/expect/candidates"
