from dataclasses import fields

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.client import Client, InvalidRequestError, PartialResultError, Ragged
from creditd.wire.versions import METHODS_VERSION, package_version

WORKED = [[0.9, 0.5, 0.5, 0.1], [0.2, 0.2, 0.2, 0.2], [1.0, 0.0, 0.0, 0.0], [0.4, 0.3, 0.8, 0.6]]
EXACT = {"type": "pooled", "epsilon": 0.0}


def test_the_worked_group_comes_out_as_derived() -> None:
    """Shapley credit, pooled, ε = 0, to 1e-9 of the numbers that were derived apart from this code."""
    with Client("local:") as client:
        result = client.shapley(WORKED, groups=["p"] * 4, advantage=EXACT)
    expected = [
        [1.4089806213, -0.0856286565, -0.0856286565, -0.5838317492],
        [-0.4904186693] * 4,
        [3.0592783657, -0.6772448290, -0.6772448290, -0.6772448290],
        [-0.2724548163, -0.3970055894, 0.8485021421, 0.1011975032],
    ]
    assert np.abs(result.advantages.values - np.concatenate(expected)).max() < 1e-9
    sets = [0.1634728898, -0.4904186693, 0.2568859696, 0.0700598099]
    assert np.abs(result.set_advantages - sets).max() < 1e-9
    assert np.abs(result.credits[0] - [0.558333333333, 0.158333333333, 0.158333333333, 0.025]).max() < 1e-9
    assert np.abs(result.gap).max() < 1e-12


def test_leave_one_out_and_the_way_there_come_out_as_derived() -> None:
    """Winners of sets 1, 3, 4 under leave-one-out, and row 1 half way between the two rules."""
    with Client("local:") as client:
        end = client.shapley(WORKED, groups=["p"] * 4, advantage=EXACT, credit="leave_one_out")
        half = {"type": "blend", "from": "shapley", "to": "leave_one_out", "position": 0.5}
        middle = client.shapley(WORKED, groups=["p"] * 4, advantage=EXACT, credit=half)
    rest = -0.3797772627
    expected = [
        [1.1393317880, rest, rest, rest],
        [rest] * 4,
        [3.4179953639, rest, rest, rest],
        [rest, rest, 0.3797772627, rest],
    ]
    assert np.abs(end.advantages.values - np.concatenate(expected)).max() < 1e-9
    assert np.abs(middle.advantages[0] - [1.2881256566, -0.2338443500, -0.2338443500, -0.4875060177]).max() < 1e-9


def test_the_baseline_of_the_worked_group() -> None:
    """GRPO on the best reward of each set: .4869, −1.4608, .7652, .2087 with ε = 0."""
    with Client("local:") as client:
        result = client.group([[max(row) for row in WORKED]], advantage={"type": "grpo", "epsilon": 0.0})
    assert np.abs(result.advantages[0] - [0.4869, -1.4608, 0.7652, 0.2087]).max() < 1e-4


@pytest.mark.parametrize(("convention", "epsilon"), [("trl", 1e-4), ("verl", 1e-6), ("openrlhf", 1e-9)])
def test_a_convention_brings_its_epsilon(convention, epsilon) -> None:
    """Rewards 1, .5, 0 have the standard deviation .5, so that the advantages are ±.5/(.5 + ε)."""
    with Client("local:") as client:
        result = client.group([[1.0, 0.5, 0.0]], convention=convention)
    assert result.advantages[0] == pytest.approx([0.5 / (0.5 + epsilon), 0.0, -0.5 / (0.5 + epsilon)], rel=1e-15)


def test_one_nan_among_512_sets_costs_one_set() -> None:
    """511 sets are answered, the bad one is named by pointer, and its group is flagged."""
    rewards = np.random.default_rng(0).normal(size=(512, 4))
    rewards[137, 2] = np.nan
    groups = np.repeat(np.arange(64), 8)
    with Client("local:") as client:
        with pytest.raises(
            PartialResultError, match=r"1 of 512 .*row 137, position 2 \(/columns/rewards/values/550\): reward is NaN"
        ) as caught:
            client.shapley(rewards, groups=groups)
        whole = client.shapley(np.delete(rewards, 137, axis=0), groups=np.delete(groups, 137))
    result = caught.value.result
    assert int(result.ok.sum()) == 511
    assert np.flatnonzero(~result.ok).tolist() == [137]
    assert np.isnan(result.advantages[137]).all()
    mates = [row for row in range(512) if groups[row] == groups[137] and row != 137]
    assert np.flatnonzero(result.has_flag("group_incomplete")).tolist() == mates
    assert np.array_equal(np.delete(result.advantages.values, slice(548, 552)), whole.advantages.values)


def test_nothing_answered_is_an_invalid_request(runner) -> None:
    """When every set fails there is no result; the first 10 offences are attached, each with its place."""
    sets = [[0.5, float("nan")] for _ in range(12)]
    with pytest.raises(InvalidRequestError, match="422 non_finite_value: no set could be answered") as caught:
        runner.call(runner.client(url="local:"), "shapley", sets)
    assert [(item.row, item.candidate) for item in caught.value.items] == [(row, 1) for row in range(10)]
    with pytest.raises(InvalidRequestError, match="422 non_finite_value: no group could be answered"):
        runner.call(runner.client(url="local:"), "group", sets)


def test_who_answers_locally(runner) -> None:
    """This package, at no cost, under the request's own identity."""
    result = runner.call(runner.client(url="local:"), "shapley", WORKED, request_id="mine")
    assert result.request_id == "mine"
    assert (result.service.version, result.service.methods) == (package_version(), METHODS_VERSION)
    assert result.usage.evaluations == 0
    assert result.exact
    assert result.method == "order_statistic"


sizes = st.lists(st.integers(0, 6), min_size=1, max_size=8)
rewards = st.one_of(st.none(), st.floats(-10, 10), st.sampled_from([0.0, -0.0, 0.5, 1e-300, 1e100, np.nan, np.inf]))


@given(
    sizes=sizes,
    advantage=st.sampled_from(["pooled", "batch_scaled", "centered", "response_preserving", "none"]),
    credit=st.sampled_from(["shapley", "leave_one_out", "prefix_gain"]),
    asks_tokens=st.booleans(),
    data=st.data(),
)
def test_the_wire_changes_no_bit(service, sizes, advantage, credit, asks_tokens, data) -> None:
    """Answers that travelled as JSON equal local ones bit for bit, in every column, errors and flags included."""
    sets = [data.draw(st.lists(rewards, min_size=size, max_size=size)) for size in sizes]
    options = {
        "groups": data.draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes))),
        "set_rewards": data.draw(st.lists(rewards, min_size=len(sizes), max_size=len(sizes))),
        "advantage": advantage,
        "credit": credit,
        "on_item_error": "return",
    }
    if asks_tokens:
        options["spans"] = [[[2 * place, 2 * place + 1] for place in range(size)] for size in sizes]
        options["n_tokens"] = [2 * size + 1 for size in sizes]
        options["tokens"] = {"other": "next"}
    assert_same(*[answer_of(client, "shapley", sets, **options) for client in pair(service)])


@given(
    st.lists(st.lists(rewards, max_size=5), min_size=1, max_size=6),
    st.sampled_from(["grpo", "dr_grpo", "rloo", "reinforce++_baseline", "gdpo", "leave_one_out"]),
)
def test_the_wire_changes_no_bit_of_a_group(service, rows, advantage) -> None:
    """The same for whole responses."""
    options = {"advantage": advantage, "on_item_error": "return"}
    assert_same(*[answer_of(client, "group", rows, **options) for client in pair(service)])


@given(st.integers(0, 4), st.data())
def test_the_wire_changes_no_bit_of_a_table(service, size, data) -> None:
    """The same for tables, also when the candidates have names."""
    numbers = st.floats(-1e3, 1e3)
    tables = [data.draw(st.lists(numbers, min_size=1 << size, max_size=1 << size)) for _ in range(3)]
    names = data.draw(st.lists(st.permutations(range(size)), min_size=3, max_size=3))
    options = {"utilities": tables, "utility": "table", "candidate_ids": [list(row) for row in names]}
    assert_same(*[answer_of(client, "shapley", None, **options) for client in pair(service)])


def pair(service) -> tuple[Client, Client]:
    """Make a client of a service and one of local mode."""
    return Client("http://credit.test", transport=httpx.MockTransport(service)), Client("local:")


def answer_of(client: Client, method: str, *arguments, **options):
    """Call, and take the refusal for an answer when nothing could be answered."""
    try:
        return getattr(client, method)(*arguments, **options)
    except InvalidRequestError as error:
        return error


def assert_same(remote, local) -> None:
    """Compare two answers field by field, by their bytes where they are numbers."""
    assert type(remote) is type(local)
    if isinstance(remote, InvalidRequestError):
        assert (remote.status, remote.code, remote.items) == (local.status, local.code, local.items)
        return
    for field in fields(remote):
        ours, theirs = getattr(local, field.name), getattr(remote, field.name)
        if field.name not in {"request_id", "service", "usage"}:
            assert comparable(ours) == comparable(theirs), field.name
    assert remote.flags == local.flags


def comparable(value):
    """Give bytes for numbers, so that the sign of zero counts."""
    if isinstance(value, Ragged):
        return comparable(value.values), comparable(value.row_splits)
    return (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
