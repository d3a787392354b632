import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import oracles, table_oracles
from credit.batches import EFFICIENCY, EXACT, games_of_tables
from creditd.credit import Table, table_semivalues
from creditd.credit.games import TableGames
from creditd.credit.tables import MAX_PLAYERS, MAX_TILE_PLAYERS, TILE_ROWS, player_count, restrict_players

LINEAR = 1e-12
"""A sum of two games is solved once or twice: a few roundings of numbers of the size of the utilities."""

ENUMERATED = 1e-12
"""Tables equal their enumeration to this share of the largest utility, times the sum of the weights' magnitudes."""


def shapley(values):
    """Shapley values of one table."""
    n = player_count(len(values))
    return table_semivalues(np.array([values], dtype=np.float64), np.full(n, 1.0 / n))[0]


@given(games_of_tables(5))
def test_shapley_equals_the_mean_over_all_orders(values):
    """The Shapley value of any game is the mean marginal utility over all orders of arrival."""
    n = player_count(len(values))
    expected = oracles.shapley_by_orders(values, n)
    assert np.abs(shapley(values) - expected).max() <= EXACT * oracles.scale_of(values)


@pytest.mark.parametrize("n", [6, 7])
def test_seven_players_equal_the_mean_over_all_orders(n):
    """Any game of six or seven players, far from zero, agrees with every order of its players."""
    values = (1e3 + np.random.default_rng(n).normal(size=1 << n)).tolist()
    expected = oracles.shapley_by_orders(values, n)
    assert np.abs(shapley(values) - expected).max() <= EXACT * oracles.scale_of(values)


@pytest.mark.parametrize("n", [8, 9])
def test_semivalues_equal_the_mean_over_all_coalitions(n):
    """Weights of both signs on eight and nine players agree with the enumeration of coalitions."""
    values = np.random.default_rng(n).normal(size=1 << n).tolist()
    weights = [(-1) ** k * (1 + k) / 8 for k in range(n)]
    q = np.array([[w * (k + 1) / n for k, w in enumerate(weights)]])
    got = table_semivalues(np.array([values]), q[0])[0]
    expected = oracles.semivalue_by_subsets(values, n, weights)
    assert np.abs(got - expected).max() <= EXACT * oracles.scale_of(values) * sum(map(abs, weights))


@given(games_of_tables(6), st.lists(st.floats(-2, 2), min_size=6, max_size=6), st.booleans())
def test_weights_that_read_the_same_backwards_have_the_same_meaning(values, weights, offset):
    """Symmetric weights, which are solved by differences of complements, agree with the definition; so do others."""
    n = player_count(len(values))
    values = [v + 1e6 * offset for v in values]
    weights = weights[:n]
    for q in (weights, [a + b for a, b in zip(weights, weights[::-1], strict=True)]):
        credit = table_semivalues(np.array([values]), np.array(q))[0]
        expected = [table_oracles.semivalue_of_player(values, n, q, player) for player in range(n)]
        assert np.abs(credit - expected).max() <= ENUMERATED * oracles.scale_of(values) * sum(map(abs, q))


@given(games_of_tables(6))
def test_shapley_is_efficient(values):
    """The credits sum to v(N) − v(∅)."""
    gap = math.fsum(shapley(values)) - (values[-1] - values[0])
    assert abs(gap) <= EFFICIENCY * oracles.scale_of(values)


@given(st.lists(st.floats(-100, 100), min_size=8, max_size=8))
def test_symmetric_players_share_alike(values):
    """Two players that change every coalition alike have one credit."""
    # Bits 0 and 1 are made interchangeable.
    for rest in (0, 4):
        values[rest | 2] = values[rest | 1]
    credit = shapley(values)
    assert abs(credit[0] - credit[1]) <= EXACT * oracles.scale_of(values)


@given(games_of_tables(4), st.integers(0, 4))
def test_a_null_player_has_nothing_and_changes_nothing(values, place):
    """Adding a player that changes no coalition leaves the others' credit and gives it 0."""
    n = player_count(len(values))
    place = min(place, n)
    low = (1 << place) - 1
    wider = [values[(mask & low) | (mask >> place + 1 << place)] for mask in range(2 << n)]
    credit = shapley(wider)
    scale = oracles.scale_of(values)
    assert abs(credit[place]) <= EXACT * scale
    assert np.abs(np.delete(credit, place) - shapley(values)).max() <= EXACT * scale


@given(games_of_tables(4, 4), games_of_tables(4, 4), st.floats(-3, 3), st.floats(-3, 3))
def test_credit_is_linear_in_the_game(first, second, a, b):
    """The value of a weighted sum of games is the weighted sum of their values."""
    mixed = [a * x + b * y for x, y in zip(first, second, strict=True)]
    scale = 8 * max(oracles.scale_of(first), oracles.scale_of(second))
    assert np.abs(shapley(mixed) - (a * shapley(first) + b * shapley(second))).max() <= LINEAR * scale


@given(games_of_tables(3, 3), st.floats(-1e9, 1e9))
def test_a_constant_costs_no_digits(values, offset):
    """Adding a constant to every utility changes the credit by no more than it changed the utilities."""
    moved = [v + offset for v in values]
    back = [v - offset for v in moved]
    error = max(abs(x - y) for x, y in zip(values, back, strict=True)) + EXACT * oracles.scale_of(values)
    assert np.abs(shapley(moved) - shapley(values)).max() <= 4 * error


@given(games_of_tables(5), st.randoms(use_true_random=False))
def test_relabelling_permutes_the_credit(values, random):
    """Renaming the players renames their credit, within rounding."""
    n = player_count(len(values))
    order = list(range(n))
    random.shuffle(order)
    renamed = relabelled(values, order)
    assert np.abs(shapley(renamed) - shapley(values)[order]).max() <= LINEAR * oracles.scale_of(values)


@given(games_of_tables(6), st.randoms(use_true_random=False))
def test_relabelling_changes_no_bit_under_ranks(values, random):
    """When players carry ranks, renaming them renames their credit to the last bit."""
    n = player_count(len(values))
    order = list(range(n))
    random.shuffle(order)
    ranks = np.array([random.sample(range(-50, 50), n)])
    q = np.full(n, 1.0 / n)
    players = np.arange(n)[None, :]
    given_order = TableGames(tables=np.array([values]), players=players, ranks=ranks).semivalues(q)
    renamed = TableGames(tables=np.array([relabelled(values, order)]), players=players, ranks=ranks[:, order])
    assert renamed.semivalues(q).tobytes() == given_order[:, order].tobytes()


def relabelled(values, order):
    """The game whose player j is the old player order[j]."""
    n = len(order)
    return [values[sum(1 << order[j] for j in oracles.members_of(mask, n))] for mask in range(1 << n)]


@pytest.mark.parametrize("n", range(1, 13))
@pytest.mark.parametrize("generic", [False, True])
def test_a_table_has_one_value_at_every_row_of_a_tile(n, generic):
    """The same table has the same bits at each of the 64 rows of a tile, whatever fills the others."""
    random = np.random.default_rng(n)
    q = random.normal(size=n) if generic else np.full(n, 1.0 / n)
    values = random.normal(size=(1, 1 << n)) * 10.0 ** random.integers(-3, 4)
    alone = table_semivalues(values, q)[0].tobytes()
    crowd = table_semivalues(np.repeat(values, TILE_ROWS, axis=0), q)
    assert {row.tobytes() for row in crowd} == {alone}
    company = random.normal(size=(TILE_ROWS, 1 << n))
    for row in range(TILE_ROWS):
        tile = company.copy()
        tile[row] = values[0]
        assert table_semivalues(tile, q)[row].tobytes() == alone


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 10])
@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 500])
def test_a_table_has_one_value_in_every_batch(n, size):
    """Alone, in a tile that is not full, full, or one of many, a table has the same bits."""
    tables = np.random.default_rng(size).normal(size=(size, 1 << n))
    q = np.full(n, 1.0 / n)
    together = table_semivalues(tables, q)
    for row in {0, 1, 61, 62, 63, 64, size // 2, size - 2, size - 1} & set(range(size)):
        assert table_semivalues(tables[row : row + 1], q)[0].tobytes() == together[row].tobytes()


@given(st.integers(1, 6), st.integers(1, 130), st.randoms(use_true_random=False))
def test_the_order_of_tables_changes_no_bit(n, size, random):
    """Tables in another order have their results in that order, to the last bit."""
    tables = np.random.default_rng(random.randrange(1 << 30)).normal(size=(size, 1 << n))
    order = list(range(size))
    random.shuffle(order)
    q = np.full(n, 1.0 / n)
    assert table_semivalues(tables[order], q).tobytes() == table_semivalues(tables, q)[order].tobytes()


@pytest.mark.parametrize("n", [2, 4])
def test_players_left_out_are_absent(n):
    """Restricting a table keeps the coalitions of the named players, in the order named."""
    tables = np.arange(2.0 * 2**5).reshape(2, 32)
    for chosen in itertools.permutations(range(5), n):
        smaller = restrict_players(tables, np.array([chosen, chosen[::-1]]))
        for mask in range(1 << n):
            members = oracles.members_of(mask, n)
            assert smaller[0, mask] == tables[0, sum(1 << chosen[j] for j in members)]
            assert smaller[1, mask] == tables[1, sum(1 << chosen[::-1][j] for j in members)]


@pytest.mark.parametrize("n", [16, 17, 18])
@pytest.mark.parametrize("offset", [0.0, -1e6])
def test_large_tables_equal_the_definition(n, offset):
    """Below and above the change of method a player's semivalue is its weighted mean marginal, whatever the offset."""
    random = np.random.default_rng(n)
    values = offset + random.normal(size=1 << n)
    weights = random.normal(size=n)
    credit = table_semivalues(values[None, :], weights)[0]
    tolerance = ENUMERATED * np.abs(values).max() * np.abs(weights).sum()
    for player in (0, n // 2 - 1, n // 2, n - 1):
        expected = table_oracles.semivalue_of_player(values.tolist(), n, weights.tolist(), player)
        assert abs(credit[player] - expected) <= tolerance


@pytest.mark.parametrize("n", [17, 20])
def test_large_tables_of_max_equal_their_closed_form(n):
    """The best reward of up to twenty candidates, ties and v(∅) ≠ 0 included, has the credit of the airport game."""
    rewards = (np.random.default_rng(n).integers(-20, 20, size=n) / 8).tolist()
    values = np.array([-9.0])
    for reward in rewards:
        values = np.concatenate([values, np.maximum(values, reward)])
    values[0] = 0.625
    assert np.abs(shapley(values) - oracles.airport(rewards, 0.625)).max() <= ENUMERATED * 3.0


@pytest.mark.parametrize(("size", "n"), [(1, 17), (16, 17), (0, 18), (17, 18)])
def test_large_tables_with_one_size_of_coalition_equal_the_definition(size, n):
    """Own reward, leave-one-out and what lies beside them: all weight on coalitions of one size."""
    values = np.random.default_rng(size).normal(size=1 << n)
    weights = np.zeros(n)
    weights[size] = 1.0
    credit = table_semivalues(values[None, :], weights)[0]
    expected = table_oracles.semivalue_of_player(values.tolist(), n, weights.tolist(), 3)
    assert abs(credit[3] - expected) <= ENUMERATED * np.abs(values).max()
    if size == n - 1:
        out = values[-1] - values[values.size - 1 - (1 << np.arange(n))]
        assert np.abs(credit - out).max() <= ENUMERATED * np.abs(values).max()


def test_a_large_table_has_one_value_in_every_batch():
    """Alone, beside others, and as a view with other strides, a folded table has the same bits."""
    n = MAX_TILE_PLAYERS + 1
    tables = np.random.default_rng(0).normal(size=(3, 1 << n))
    q = np.full(n, 1.0 / n)
    together = table_semivalues(tables, q)
    spread = table_semivalues(np.asfortranarray(tables), q)
    assert spread.tobytes() == together.tobytes()
    for row in range(3):
        assert table_semivalues(tables[row : row + 1], q)[0].tobytes() == together[row].tobytes()


@pytest.mark.parametrize("n", [16, MAX_PLAYERS])
def test_the_largest_tables_are_solved(n):
    """The largest table of each method agrees with an additive game, also where the utilities are huge."""
    shares = np.arange(1.0, n + 1)
    values = np.zeros(1)
    for share in shares:
        values = np.concatenate([values, values + share])
    assert np.abs(shapley(values) - shares).max() <= EXACT * values[-1]
    assert np.abs(shapley(1e98 * values) / 1e98 - shares).max() <= EXACT * values[-1]


def test_twenty_one_players_are_refused():
    """A table of more than twenty players is an error before anything is computed."""
    with pytest.raises(ValueError, match="21 players"):
        table_semivalues(np.broadcast_to(0.0, (1, 1 << 21)), np.full(21, 1.0 / 21))


@pytest.mark.parametrize(
    ("tables", "weights", "message"),
    [
        (np.zeros(4), np.ones(2), "shape"),
        (np.zeros((1, 3)), np.ones(2), "power of two"),
        (np.zeros((1, 0)), np.ones(2), "power of two"),
        (np.zeros((1, 1)), np.ones(0), "0 players"),
        (np.zeros((1, 4)), np.ones(3), "one entry per coalition size"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(tables, weights, message):
    """Tables are rows of 2ⁿ values with n ≥ 1, and weights are one per coalition size."""
    with pytest.raises(ValueError, match=message):
        table_semivalues(tables, weights)


def test_no_tables_have_no_credit():
    """An empty batch gives an empty answer of the right shape."""
    assert table_semivalues(np.empty((0, 8)), np.full(3, 1 / 3)).shape == (0, 3)
    assert Table.type == "table"
