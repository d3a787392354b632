"""Published games and their published Shapley values; each file entry names its source."""

import json
from pathlib import Path

import numpy as np
import pytest

from credit import oracles
from creditd.credit import Max, semivalues, table_semivalues

CASES = json.loads((Path(__file__).parent / "cases" / "shapley.json").read_text(encoding="utf-8"))


def rewards_of(case):
    """Rewards of a case whose utility is max, or None."""
    utility = case["utility"]
    if utility["kind"] == "max":
        return utility["values"]
    if utility["kind"] == "max_by_type":
        return [cost for cost, count in zip(utility["cost"], utility["count"], strict=True) for _ in range(count)]
    return None


def worth(utility, members):
    """Utility of a coalition, by the kind of its game."""
    kind = utility["kind"]
    if kind == "glove":
        left = sum(i in utility["left"] for i in members)
        return float(min(left, len(members) - left))
    if kind == "unanimity_sum":
        pairs = zip(utility["sets"], utility["coefs"], strict=True)
        return float(sum(coefficient for needed, coefficient in pairs if set(needed) <= set(members)))
    if kind == "weighted_vote":
        return float(sum(utility["weights"][i] for i in members) >= utility["quota"])
    if kind == "sets":
        return float(utility["values"].get(",".join(map(str, members)), 0.0))
    return utility["values"][sum(1 << i for i in members)]


def table_of(case):
    """All utilities of a case."""
    n, rewards = case["n"], rewards_of(case)
    if rewards is not None:
        return oracles.game_of(rewards, oracles.best(empty=float(case["utility"].get("empty", 0.0))))
    return [worth(case["utility"], oracles.members_of(mask, n)) for mask in range(1 << n)]


def published(case):
    """The Shapley value of each player; a game by type lists one value per type."""
    if case["utility"]["kind"] == "max_by_type":
        pairs = zip(case["shapley"], case["utility"]["count"], strict=True)
        return [value for value, count in pairs for _ in range(count)]
    return case["shapley"]


@pytest.mark.parametrize("case", [c for c in CASES if c["n"] <= 16], ids=lambda case: case["name"])
def test_published_values_of_tables(case):
    """The table of each published game has the published values, to the digits published."""
    n = case["n"]
    got = table_semivalues(np.array([table_of(case)], dtype=np.float64), np.full(n, 1.0 / n))[0]
    assert np.abs(got - published(case)).max() <= case["tol"]


@pytest.mark.parametrize("case", [c for c in CASES if rewards_of(c)], ids=lambda case: case["name"])
def test_published_values_of_max(case):
    """Each published airport game has the published values under the closed form."""
    rewards, n = np.array([rewards_of(case)], dtype=np.float64), case["n"]
    empty = float(case["utility"].get("empty", 0.0))
    got = semivalues(rewards, Max(empty=empty), np.full(n, 1.0 / n))[0]
    assert np.abs(got - published(case)).max() <= case["tol"]


def test_no_case_is_left_out():
    """Every published case runs at least once."""
    assert len(CASES) == 12
    assert all(case["n"] <= 16 or rewards_of(case) for case in CASES)
