import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import oracles, table_oracles
from credit.batches import games_of_tables
from creditd.credit import owen_values, table_semivalues
from creditd.credit.tables import TILE_ROWS, player_count

ENUMERATED = 1e-12
"""Owen values equal their enumeration to this share of the largest utility."""


def owen(values, unions):
    """Owen values of one table."""
    return owen_values(np.array([values], dtype=np.float64), np.array([unions], dtype=np.int64))[0]


@st.composite
def games_with_unions(draw, max_players):
    """A game and the numbers of its players' unions: any integers, some equal."""
    values = draw(games_of_tables(max_players))
    n = player_count(len(values))
    numbers = draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=n, max_size=n, unique=True))
    places = draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n))
    return values, [numbers[place] for place in places]


@given(games_with_unions(6))
def test_owen_equals_the_mean_over_all_orders_of_unions_and_inside_unions(game):
    """The Owen value of any game and any unions is the mean marginal utility when unions arrive as blocks."""
    values, unions = game
    expected = table_oracles.owen_by_orders(values, unions)
    assert np.abs(owen(values, unions) - expected).max() <= ENUMERATED * oracles.scale_of(values)


@pytest.mark.parametrize(
    "unions",
    [
        (0, 0, 0, 1, 1, 1, 2, 2, 2),
        (0, 1, 0, 1, 0, 1, 0, 1),
        (0, 0, 0, 0, 0, 0, 1),
        (5, 5, 1, 7, 7, 7, 1, 2, 2),
        (0, 1, 2, 3, 4, 4, 4, 4),
    ],
)
def test_nine_players_equal_the_mean_over_all_orders(unions):
    """Games of up to nine players, far from zero, agree with every order of unions and inside unions."""
    values = (1e3 + np.random.default_rng(len(unions)).normal(size=1 << len(unions))).tolist()
    expected = table_oracles.owen_by_orders(values, unions)
    assert np.abs(owen(values, unions) - expected).max() <= ENUMERATED * oracles.scale_of(values)


@given(games_with_unions(6))
def test_owen_is_efficient(game):
    """The values sum to v(N) − v(∅)."""
    values, unions = game
    gap = math.fsum(owen(values, unions)) - (values[-1] - values[0])
    assert abs(gap) <= ENUMERATED * oracles.scale_of(values)


@given(games_of_tables(6))
def test_unions_of_one_and_one_union_of_all_give_shapley(values):
    """Where unions say nothing, the Owen value is the Shapley value."""
    n = player_count(len(values))
    shapley = table_semivalues(np.array([values]), np.full(n, 1.0 / n))[0]
    for unions in (list(range(n, 0, -1)), [3] * n):
        assert np.abs(owen(values, unions) - shapley).max() <= ENUMERATED * oracles.scale_of(values)


@given(games_with_unions(6))
def test_a_union_has_its_shapley_value_in_the_game_between_unions(game):
    """The values of a union sum to what it gets as one player among the unions."""
    values, unions = game
    names = sorted(set(unions))
    credit = owen(values, unions)
    of_unions = oracles.shapley_by_orders(table_oracles.quotient_game(values, unions), len(names))
    for name, share in zip(names, of_unions, strict=True):
        total = math.fsum(c for c, union in zip(credit, unions, strict=True) if union == name)
        assert abs(total - share) <= ENUMERATED * oracles.scale_of(values)


@given(games_with_unions(5))
def test_symmetric_players_of_one_union_share_alike(game):
    """Two players of one union that change every coalition alike have one value."""
    values, unions = game
    n = len(unions) + 1
    # A new last player is made interchangeable with player 0: v counts how many of the two are present.
    gains = [v * v for v in values]
    both = [
        values[mask & ~1 | (count > 0)] + (gains[mask & ~1 | 1] if count == 2 else 0.0)
        for copy in (0, 1)
        for mask in range(1 << (n - 1))
        for count in [copy + (mask & 1)]
    ]
    credit = owen(both, [*unions, unions[0]])
    assert abs(credit[0] - credit[-1]) <= ENUMERATED * oracles.scale_of(both)


@given(games_with_unions(5), st.randoms(use_true_random=False))
def test_relabelling_permutes_the_values(game, random):
    """Renaming the players renames their values, within rounding."""
    values, unions = game
    n = len(unions)
    order = random.sample(range(n), n)
    renamed = [values[sum(1 << order[j] for j in oracles.members_of(mask, n))] for mask in range(1 << n)]
    credit = owen(renamed, [unions[i] for i in order])
    assert np.abs(credit - owen(values, unions)[order]).max() <= ENUMERATED * oracles.scale_of(values)


@given(st.integers(1, 6), st.integers(1, 150), st.integers(1, 4), st.randoms(use_true_random=False))
def test_a_row_has_one_value_in_every_batch(n, size, n_structures, random):
    """Beside rows of its own and of other structures, in any order, under other numbers, a row has the same bits."""
    rng = np.random.default_rng(random.randrange(1 << 30))
    tables = rng.normal(size=(size, 1 << n)) * 10.0 ** rng.integers(-3, 4)
    unions = rng.integers(0, n, size=(n_structures, n))[rng.integers(0, n_structures, size=size)]
    together = owen_values(tables, unions)
    order = rng.permutation(size)
    renumbered = rng.permutation(np.arange(-100, 100))[unions]
    assert owen_values(tables[order], renumbered[order]).tobytes() == together[order].tobytes()
    for row in {0, size // 2, size - 1}:
        assert owen_values(tables[row : row + 1], unions[row : row + 1])[0].tobytes() == together[row].tobytes()


@pytest.mark.parametrize("unions", [(0,) * 8, tuple(range(8)), (0, 0, 0, 0, 1, 1, 1, 1), (0, 0, 1, 1, 2, 2, 3, 3)])
def test_a_table_has_one_value_at_every_row_of_a_tile(unions):
    """The same table has the same bits at each of the 64 rows of a tile, whatever fills the others."""
    random = np.random.default_rng(8)
    values = random.normal(size=(1, 1 << 8))
    alone = owen_values(values, np.array([unions]))[0].tobytes()
    for row in range(TILE_ROWS):
        tile = random.normal(size=(TILE_ROWS, 1 << 8))
        tile[row] = values[0]
        assert owen_values(tile, np.repeat([unions], TILE_ROWS, axis=0))[row].tobytes() == alone


@pytest.mark.parametrize("unions", [(0,) * 16, (0, 1, 2, 3) * 4, tuple(range(16)), tuple(range(8)) * 2])
def test_sixteen_players_of_max_are_solved(unions):
    """With sixteen players an additive game pays each its share, and max pays each union its part of the steps."""
    random = np.random.default_rng(16)
    rewards = random.normal(size=16)
    additive, best = np.zeros(1), np.array([-np.inf])
    for reward in rewards:
        additive = np.concatenate([additive, additive + reward])
        best = np.concatenate([best, np.maximum(best, reward)])
    best[0] = 0.25
    assert np.abs(owen(additive, unions) - rewards).max() <= ENUMERATED * np.abs(additive).max()
    credit = owen(best, unions)
    of_unions = oracles.airport(
        [max(r for r, u in zip(rewards, unions, strict=True) if u == name) for name in sorted(set(unions))], 0.25
    )
    for name, share in zip(sorted(set(unions)), of_unions, strict=True):
        assert abs(math.fsum(credit[np.array(unions) == name]) - share) <= ENUMERATED * np.abs(best).max()


@pytest.mark.parametrize(
    ("tables", "unions", "message"),
    [
        (np.zeros(4), np.zeros((1, 2)), "shape"),
        (np.zeros((1, 3)), np.zeros((1, 2)), "power of two"),
        (np.zeros((1, 1)), np.zeros((1, 0)), "0 players"),
        (np.broadcast_to(0.0, (1, 1 << 17)), np.zeros((1, 17)), "17 players"),
        (np.zeros((1, 4)), np.zeros((1, 3)), "one entry per player"),
        (np.zeros((2, 4)), np.zeros((1, 2)), "one entry per player"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(tables, unions, message):
    """Tables are rows of 2ⁿ values with 1 ≤ n ≤ 16, and unions are one number per player."""
    with pytest.raises(ValueError, match=message):
        owen_values(tables, unions.astype(np.int64))


def test_no_tables_have_no_values():
    """An empty batch gives an empty answer of the right shape."""
    assert owen_values(np.empty((0, 8)), np.empty((0, 3), dtype=np.int64)).shape == (0, 3)
