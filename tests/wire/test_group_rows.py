"""Requests for whole responses: names, weights, tokens, and which row fails for what."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.credit import Flag, Whitening, gdpo_advantages, group_advantages
from creditd.wire import groups
from creditd.wire.columns import RequestLimits
from creditd.wire.group_rows import solve_group
from creditd.wire.validation import WireError

ROWS = [[1.0, 0.5, 0.0], [0.3, None], []]
OTHER = [[0.0, 1.0, 1.0], [0.5, 0.25], []]
WHITENED = ("reinforce++_baseline", "gdpo")
LOCAL = ("grpo", "dr_grpo", "rloo", "pass_at_k", "max_at_k", "leave_one_out")
PARAMETERS = {"pass_at_k": {"k": 2, "threshold": 0.5}, "max_at_k": {"k": 2}}


def answer(**body):
    """The rows of a request."""
    return solve_group(groups.GroupRequest.model_validate(body), RequestLimits())


def choice(kind, **options):
    """A kind with the parameters that it needs."""
    return {"type": kind, **PARAMETERS.get(kind, {}), **options}


def refusal(**body):
    """Code, pointer and detail of a request that is refused as a whole."""
    with pytest.raises(WireError) as caught:
        answer(**body)
    (item,) = caught.value.items
    return item.code.value, item.pointer, item.detail


def failures(**body):
    """Row, code and pointer of each row without an answer."""
    found = answer(**body)
    splits = found.row_splits
    for error in found.errors:
        assert np.isnan(found.advantages[splits[error.row] : splits[error.row + 1]]).all()
        assert found.flags[error.row] == 0
    assert np.isfinite(found.advantages[np.repeat(found.ok, np.diff(splits))]).all()
    return [(error.row, error.code.value, error.pointer) for error in found.errors]


# Names and weights


@pytest.mark.parametrize("kind", [*LOCAL, *WHITENED])
def test_one_name_is_no_name(kind):
    """Rows under one name, whatever its weight of 1 is called, have the bits of rows without a name."""
    plain = answer(rewards=ROWS, advantage=choice(kind))
    for weights in ({}, {"weights": {"a": 1.0}}):
        named = answer(rewards={"a": ROWS}, advantage=choice(kind), **weights)
        assert named.advantages.tobytes() == plain.advantages.tobytes()
        assert named.flags.tobytes() == plain.flags.tobytes()


@pytest.mark.parametrize("kind", [*LOCAL, *WHITENED])
def test_names_have_no_order(kind):
    """Three rewards in another order of their names have the same bits, although sums of three may not."""
    named = {"a": [[0.1, 0.7, 0.3]], "b": [[0.2, 0.6, 0.1]], "c": [[0.3, 0.9, 0.5]]}
    weights = {"c": 0.7, "a": 0.1}
    backwards = dict(reversed(named.items()))
    advantage = choice(kind) if kind != "max_at_k" else choice(kind, k=1)
    found = [answer(rewards=one, weights=weights, advantage=advantage) for one in (named, backwards)]
    assert found[0].advantages.tobytes() == found[1].advantages.tobytes()


def test_named_rewards_are_summed_by_weight_first():
    """All kinds but `gdpo` see Σ w·r, which is null where a reward of a weight other than 0 is."""
    summed = answer(rewards=[[1.0, 1.0, 0.5], [0.55, None], []])
    named = answer(rewards={"a": ROWS, "b": OTHER}, weights={"b": 0.5})
    assert named.advantages == pytest.approx(summed.advantages, rel=1e-15)
    assert named.flags.tolist() == summed.flags.tolist()
    without = answer(rewards={"a": OTHER, "b": ROWS}, weights={"b": 0.0})
    assert without.advantages.tobytes() == answer(rewards=OTHER).advantages.tobytes()
    assert not without.flags[1] & Flag.GROUP_INCOMPLETE


def test_gdpo_normalises_names_by_themselves():
    """The request's names, weights, ε and convention reach the library; a null of one name leaves the other."""
    found = answer(
        rewards={"b": OTHER, "a": ROWS},
        weights={"a": 2.0},
        n_tokens=[[3, 1, 2], [4, 5], []],
        convention="verl",
        advantage={"type": "gdpo", "ddof": 0},
    )
    rewards = np.array([[1.0, 0.5, 0.0, 0.3, np.nan], [0.0, 1.0, 1.0, 0.5, 0.25]])
    expected = gdpo_advantages(
        rewards,
        np.array([2.0, 1.0]),
        np.array([0, 0, 0, 1, 1]),
        3,
        ddof=0,
        epsilon=1e-6,
        whitening=Whitening("verl"),
        n_tokens=np.array([3, 1, 2, 4, 5]),
        missing=np.isnan(rewards),
    )
    assert found.advantages.tobytes() == expected.advantages.tobytes()
    assert found.advantages[4] != 0.0
    assert found.flags[1] == Flag.GROUP_INCOMPLETE


def test_weights_that_fit_no_reward_are_refused():
    """Weights need names, names that exist, and one that is not 0."""
    code, pointer, detail = refusal(rewards=ROWS, weights={"a": 1.0})
    assert (code, pointer) == ("invalid_request", "/weights")
    assert "named rewards" in detail
    assert refusal(rewards={"a": ROWS}, weights={"b/c": 1.0})[:2] == ("invalid_request", "/weights/b~1c")
    for kind in ("grpo", "gdpo"):
        found = refusal(rewards={"a": ROWS}, weights={"a": 0.0}, advantage={"type": kind})
        assert found[:2] == ("invalid_request", "/weights")


def test_rows_of_names_and_tokens_fit_each_other():
    """The same number of rows of the same lengths everywhere, or `shape_mismatch` where they differ."""
    assert refusal(rewards={"a": ROWS, "b": OTHER[:2]}) == (
        "shape_mismatch", "/rewards/b", "got 2 rows; expected 3",
    )  # fmt: skip
    assert refusal(rewards={"a": ROWS, "b/~": [[1.0], *OTHER[1:]]})[:2] == ("shape_mismatch", "/rewards/b~1~0/0")
    assert refusal(rewards=ROWS, n_tokens=[[1, 2, 3]])[:2] == ("shape_mismatch", "/n_tokens")
    assert refusal(rewards=ROWS, n_tokens=[[1, 2, 3], [1], []]) == (
        "shape_mismatch", "/n_tokens/1", "got 1 entries; expected 2, one per response",
    )  # fmt: skip


# Rows that fail


def test_a_bad_number_is_named_under_its_name():
    """The pointer of a failure holds the name of the reward; the other rows are answered."""
    bad = [[1.0, 0.5, float("nan")], [0.3, 1e101], []]
    assert failures(rewards={"a": ROWS, "z~y": bad}) == [
        (0, "non_finite_value", "/rewards/z~0y/0/2"),
        (1, "invalid_request", "/rewards/z~0y/1/1"),
    ]
    assert failures(rewards={"z": bad, "a": ROWS}, weights={"z": 0.0}, advantage={"type": "gdpo"}) == [
        (0, "non_finite_value", "/rewards/z/0/2"),
        (1, "invalid_request", "/rewards/z/1/1"),
    ]


def test_pass_at_k_without_a_threshold_fails_the_row_that_needs_one():
    """A reward that is neither 0 nor 1 fails its row; null, 0 and 1 do not, nor does anything under a threshold."""
    rows = [[1.0, 0.0, None], [1.0, 0.5], [0.0, 1.0], []]
    pass_at_2 = {"type": "pass_at_k", "k": 1}
    assert failures(rewards=rows, advantage=pass_at_2) == [(1, "invalid_request", "/rewards/1/1")]
    assert failures(rewards=rows, advantage={**pass_at_2, "threshold": 0.5}) == []
    (error,) = answer(rewards=rows, advantage=pass_at_2).errors
    assert error.detail == "reward is 0.5; expected 0 or 1, because pass_at_k got no threshold"
    named = {"b": [[1.0, 0.0], [1.0, 1.0]], "a": [[0.0, 0.0], [1.0, 0.0]]}
    assert failures(rewards=named, advantage=pass_at_2) == [(1, "invalid_request", "/rewards/a/1/0")]
    assert failures(rewards=named, weights={"b": 0.0}, advantage=pass_at_2) == []


def test_sums_that_leave_the_range_fail_their_row():
    """Rewards may be as large as 1e100, and so may their weighted sum; `gdpo` takes no sum of rewards."""
    named = {"a": [[1e100, 0.0], [1.0, 0.0]], "b": [[1.0, 0.0], [0.0, 2.0]]}
    assert failures(rewards=named, weights={"a": 2.0}) == [(0, "invalid_request", "/rewards/a/0/0")]
    assert failures(rewards=named, weights={"a": 2.0}, advantage={"type": "gdpo"}) == []


def test_negative_tokens_fail_their_row():
    """A number of tokens is a value: the row fails and leaves the whitening, the others are answered."""
    rows, advantage = [[1.0, 0.0], [0.5, 0.25], [0.0, 2.0]], {"type": "reinforce++_baseline"}
    body = {"rewards": rows, "convention": "verl", "advantage": advantage}
    assert failures(**body, n_tokens=[[1, 2], [3, -1], [4, 5]]) == [(1, "invalid_request", "/n_tokens/1/1")]
    with_failure = answer(**body, n_tokens=[[1, 2], [3, -1], [4, 5]]).advantages
    without = answer(**{**body, "rewards": rows[::2]}, n_tokens=[[1, 2], [4, 5]]).advantages
    assert with_failure[[0, 1, 4, 5]].tobytes() == without.tobytes()


def test_a_row_has_one_error():
    """Of several offences the number that is not finite is named, then tokens, then the size, then the sum."""
    body = {
        "rewards": [[1.0, float("inf")], [0.5, 0.0], [0.5], [0.5, 0.0]],
        "n_tokens": [[-1, 1], [-1, 1], [1], [1, 1]],
        "expect": {"group_size": 2},
        "advantage": {"type": "pass_at_k", "k": 1},
    }
    assert failures(**body) == [
        (0, "non_finite_value", "/rewards/0/1"),
        (1, "invalid_request", "/n_tokens/1/0"),
        (2, "group_size_mismatch", "/rewards/2"),
        (3, "invalid_request", "/rewards/3/0"),
    ]
    assert failures(rewards={"b": [[1.0]]}, expect={"group_size": 2}) == [(0, "group_size_mismatch", "/rewards/b/0")]


# Conventions


@pytest.mark.parametrize("kind", WHITENED)
@pytest.mark.parametrize("convention", ["trl", "verl", "openrlhf"])
def test_the_whitening_is_the_conventions_unless_chosen(kind, convention):
    """Without a choice the whitening is that of the convention, and a choice replaces all or part of it."""
    rows, tokens = [[1.0, 0.0, 0.25], [0.5, 2.0]], [[1, 2, 3], [4, 5]]
    flat, groups = np.array([1.0, 0.0, 0.25, 0.5, 2.0]), np.array([0, 0, 0, 1, 1])
    epsilon = {"trl": 1e-4, "verl": 1e-6, "openrlhf": 1e-9}[convention]
    for chosen, expected in (
        (None, Whitening(convention)),
        ({"type": "openrlhf"}, Whitening("openrlhf")),
        ({"type": "verl", "ddof": 0, "epsilon": 0.5}, Whitening("verl", ddof=0, epsilon=0.5)),
        ({"type": "none"}, None),
    ):
        advantage = {"type": kind} if chosen is None else {"type": kind, "whitening": chosen}
        found = answer(rewards=rows, n_tokens=tokens, convention=convention, advantage=advantage)
        library = group_advantages(
            flat, groups, 2, rule=kind, epsilon=epsilon, whitening=expected, n_tokens=np.array([1, 2, 3, 4, 5])
        )
        assert found.advantages.tobytes() == library.advantages.tobytes()


@given(
    st.lists(st.lists(st.sampled_from([None, 0.0, 0.25, 0.5, 1.0]), max_size=5), min_size=1, max_size=5),
    st.sampled_from([*LOCAL, *WHITENED]),
)
def test_only_whitened_rules_depend_on_the_other_rows(rows, kind):
    """Alone, a row has the bits that it has in company; whitened rules keep at least their flags."""
    whole = answer(rewards=rows, advantage=choice(kind))
    for row, rewards in enumerate(rows):
        alone = answer(rewards=[rewards], advantage=choice(kind))
        assert alone.flags[0] == whole.flags[row]
        if kind in LOCAL:
            part = whole.advantages[whole.row_splits[row] : whole.row_splits[row + 1]]
            assert alone.advantages.tobytes() == part.tobytes()


# Choices


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        ({"type": "pass_at_k"}, "pass_at_k needs k"),
        ({"type": "max_at_k"}, "max_at_k needs k"),
        ({"type": "grpo", "k": 2}, "take k"),
        ({"type": "max_at_k", "k": 2, "threshold": 0.5}, "takes threshold"),
        ({"type": "rloo", "whitening": {"type": "trl"}}, "take whitening"),
        ({"type": "max_at_k", "k": 0}, "greater than or equal to 1"),
    ],
)
def test_parameters_belong_to_their_kind(advantage, expected):
    """A parameter that a kind needs is missed, and one that it has no use for is refused."""
    with pytest.raises(ValueError, match=expected):
        groups.GroupRequest.model_validate({"rewards": ROWS, "advantage": advantage})
