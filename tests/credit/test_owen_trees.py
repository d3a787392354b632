import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import oracles, span_oracles, table_oracles
from credit.span_oracles import chain, index_of
from creditd.credit import balanced_tree, owen_plan, owen_values, table_semivalues, tree_evaluations

ENUMERATED = 1e-12
"""Values equal their enumeration to this share of the largest utility."""
MANY = 1 << 16
BALANCED_COUNTS = {1: 2, 2: 4, 3: 8, 4: 12, 5: 20, 8: 44, 9: 60, 16: 172, 17: 204, 24: 428, 26: 492, 32: 684}


@st.composite
def trees(draw, max_players=7, min_players=1):
    """Merges of any tree: of the nodes that are left, two are joined."""
    n = draw(st.integers(min_players, max_players))
    left, merges = list(range(n)), []
    for merge in range(n - 1):
        children = [left.pop(draw(st.integers(0, len(left) - 1))) for _ in range(2)]
        merges.append(tuple(children))
        left.append(n + merge)
    return np.array(merges, dtype=np.int64).reshape(-1, 2)


@st.composite
def trees_with_games(draw, max_players=7):
    """A tree and the utilities of all coalitions of its players, bit i of an index for player i."""
    tree = draw(trees(max_players))
    size = 1 << (len(tree) + 1)
    scale = 10.0 ** draw(st.integers(-3, 3))
    drawn = draw(st.lists(st.floats(-1, 1), min_size=size, max_size=size))
    return tree, [scale * value for value in drawn]


def owen(tree, table):
    """Values of the units over a tree, from the utilities that its plan asks for."""
    plan = owen_plan(tree, most=len(table))
    return plan.values(np.array([table[index_of(row)] for row in plan.coalitions]))


def utility_of(table):
    """The utilities as a function of sets."""
    return lambda coalition: table[sum(1 << i for i in coalition)]


@pytest.mark.parametrize(("n", "count"), BALANCED_COUNTS.items())
def test_balanced_trees_need_as_many_coalitions_as_the_formula_says(n, count):
    """12, 44, 172, 684 coalitions for 4, 8, 16, 32 units, all distinct; 8, 20, 60, 204, 428 for 3, 5, 9, 17, 24."""
    plan = owen_plan(balanced_tree(n), most=count)
    assert tree_evaluations(n) == len(plan.coalitions) == len({row.tobytes() for row in plan.coalitions}) == count


@pytest.mark.parametrize("n", range(1, 71))
def test_the_formula_is_the_size_of_the_plan(n):
    """The count of a balanced tree is that of its plan, for every number of units."""
    assert len(owen_plan(balanced_tree(n), most=MANY).coalitions) == tree_evaluations(n)


def test_a_budget_of_512_reaches_26_units():
    """26 units over the balanced tree fit 512 evaluations, and 27 do not."""
    assert tree_evaluations(26) <= 512 < tree_evaluations(27)


@pytest.mark.parametrize("n", range(2, 14))
def test_a_chain_needs_every_coalition(n):
    """The tree that adds one unit after the other costs 2ⁿ evaluations."""
    assert len(owen_plan(np.array(chain(n)), most=1 << n).coalitions) == 1 << n
    with pytest.raises(ValueError, match=f"more than {(1 << n) - 1}, expected at most {(1 << n) - 1}"):
        owen_plan(np.array(chain(n)), most=(1 << n) - 1)


@pytest.mark.parametrize("n", [64, 4096])
def test_a_long_chain_is_refused_before_it_is_built(n):
    """The plan of a chain of 64 or 4,096 units fits no memory: it is refused by its count."""
    with pytest.raises(ValueError, match=f"{n - 1} merges deep"):
        owen_plan(np.array(chain(n)), most=1 << 20)


@given(trees())
def test_a_plan_is_of_distinct_coalitions_and_no_larger_than_allowed(tree):
    """A plan starts with ∅ and N, repeats nothing, and is refused by one evaluation too few."""
    n = len(tree) + 1
    coalitions = owen_plan(tree, most=1 << n).coalitions
    assert not coalitions[0].any()
    assert coalitions[1].all()
    assert len({row.tobytes() for row in coalitions}) == len(coalitions)
    assert owen_plan(tree, most=len(coalitions)).coalitions.tobytes() == coalitions.tobytes()
    with pytest.raises(ValueError, match="too many coalitions"):
        owen_plan(tree, most=len(coalitions) - 1)


@given(trees_with_games())
def test_values_equal_the_recursion(game):
    """The values of any tree and game are those of the recursion, visit by visit."""
    tree, table = game
    expected = span_oracles.owen_by_recursion(tree.tolist(), utility_of(table))
    assert np.abs(owen(tree, table) - expected).max() <= ENUMERATED * oracles.scale_of(table)


@given(trees_with_games(6))
def test_values_are_means_over_the_orders_of_a_tree(game):
    """The values are mean marginal utilities over the orders that keep every node of the tree together."""
    tree, table = game
    expected = span_oracles.owen_by_orders(tree.tolist(), utility_of(table))
    assert np.abs(owen(tree, table) - expected).max() <= ENUMERATED * oracles.scale_of(table)


@given(trees_with_games())
def test_values_sum_to_what_there_is_to_share(game):
    """The values sum to v(N) − v(∅)."""
    tree, table = game
    gap = math.fsum(owen(tree, table)) - (table[-1] - table[0])
    assert abs(gap) <= ENUMERATED * oracles.scale_of(table)


@given(trees_with_games(2))
def test_one_or_two_units_get_shapley_values(game):
    """Of at most two units the Owen value is the Shapley value."""
    tree, table = game
    shapley = oracles.shapley_by_orders(table, len(tree) + 1)
    assert np.abs(owen(tree, table) - shapley).max() <= ENUMERATED * oracles.scale_of(table)


@pytest.mark.parametrize(
    ("tree", "unions"),
    [
        (balanced_tree(4), (0, 0, 1, 1)),
        (balanced_tree(3), (0, 0, 1)),
        (np.array([[1, 2], [0, 3]]), (0, 1, 1)),
        (np.array([[0, 2], [1, 3], [4, 5]]), (0, 1, 0, 1)),
        (np.array([[3, 0], [2, 1], [5, 4]]), (0, 1, 1, 0)),
    ],
)
@given(data=st.data())
def test_trees_of_two_levels_are_unions(tree, unions, data):
    """Two nodes of at most two players each are two unions: the tree has their Owen value."""
    size = 1 << len(unions)
    table = data.draw(st.lists(st.floats(-100, 100), min_size=size, max_size=size))
    expected = owen_values(np.array([table]), np.array([unions]))[0]
    assert np.abs(owen(tree, table) - expected).max() <= ENUMERATED * oracles.scale_of(table)
    by_orders = table_oracles.owen_by_orders(table, unions)
    assert np.abs(owen(tree, table) - by_orders).max() <= ENUMERATED * oracles.scale_of(table)


def test_worked_values_of_four_spans():
    """A bonus of .4 for the first three of four spans splits ¼, ¼, ½ over the tree and in thirds without it."""
    own = (2.4, 0.05, 1.9, 0.95)
    table = [
        math.fsum(own[i] for i in range(4) if mask >> i & 1) + (0.4 if mask & 0b0111 == 0b0111 else 0.0)
        for mask in range(16)
    ]
    shapley = table_semivalues(np.array([table]), np.full(4, 0.25))[0]
    assert owen(balanced_tree(4), table).tolist() == pytest.approx([2.5, 0.15, 2.1, 0.95], abs=1e-12)
    assert shapley.round(4).tolist() == [2.5333, 0.1833, 2.0333, 0.95]


@given(st.integers(1, 200))
def test_a_balanced_tree_halves_its_runs(n):
    """Every node is a run of neighbours whose left half is as long as the right one, or one longer."""
    runs = [(i, i + 1) for i in range(n)]
    for left, right in balanced_tree(n).tolist():
        (start, middle), (again, end) = runs[left], runs[right]
        assert middle == again
        assert (middle - start) - (end - middle) in {0, 1}
        runs.append((start, end))
    assert runs[-1] == (0, n)
    assert len(runs) == 2 * n - 1


@given(trees(min_players=2), st.randoms(use_true_random=False))
def test_the_plan_does_not_depend_on_how_merges_are_numbered(tree, random):
    """The same tree with its merges in another order is the same plan, bit for bit."""
    n = len(tree) + 1
    waiting, order = list(range(n - 1)), []
    while waiting:
        ready = [k for k in waiting if all(child < n or child - n in order for child in tree[k].tolist())]
        order.append(random.choice(ready))
        waiting.remove(order[-1])
    new = {n + old: n + place for place, old in enumerate(order)}
    renumbered = np.array([[new.get(child, child) for child in tree[old].tolist()] for old in order])
    plan, other = owen_plan(tree, most=MANY), owen_plan(renumbered, most=MANY)
    utilities = np.random.default_rng(n).normal(size=len(plan.coalitions))
    assert plan.coalitions.tobytes() == other.coalitions.tobytes()
    assert plan.values(utilities).tobytes() == other.values(utilities).tobytes()


def test_an_offset_of_all_utilities_changes_no_bit():
    """Utilities that are far from zero lose no digits: on a grid a large offset cancels exactly."""
    plan = owen_plan(balanced_tree(11), most=MANY)
    utilities = np.random.default_rng(11).integers(-1000, 1000, size=len(plan.coalitions)) / 1024
    assert plan.values(utilities + 2.0**40).tobytes() == plan.values(utilities).tobytes()


def test_plans_of_balanced_trees_are_made_once_and_cannot_be_written():
    """Completions of one length share one plan, which nobody can change."""
    plan = owen_plan(balanced_tree(26), most=512)
    assert owen_plan(balanced_tree(26).copy(), most=492) is plan
    for array in (plan.coalitions, balanced_tree(26), *plan.leaves[0]):
        assert not array.flags.writeable


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (np.zeros(2), "two nodes in each merge"),
        (np.zeros((2, 4)), "two nodes in each merge"),
        ([[0, 3], [1, 2]], "got node 3, expected one of 0 to 2"),
        ([[0, 1], [3, 4]], "got node 4, expected one of 0 to 3"),
        ([[0, -1], [1, 2]], "got node -1"),
        ([[0, 1], [0, 2]], "merge 1 of the tree: got node 0, which is joined before"),
        ([[1, 1], [0, 3]], "got node 1, which is joined before"),
    ],
)
def test_what_is_no_tree_is_refused(tree, message):
    """A merge joins two nodes that stand before it and were not joined."""
    with pytest.raises(ValueError, match=message):
        owen_plan(np.array(tree, dtype=np.int64), most=MANY)


def test_no_players_have_no_tree():
    """A tree has a leaf, and its plan two coalitions."""
    for refuses in (balanced_tree, tree_evaluations):
        with pytest.raises(ValueError, match="got n = 0, expected at least 1"):
            refuses(0)
    with pytest.raises(ValueError, match="more than 1, expected at most 1"):
        owen_plan(balanced_tree(1), most=1)


@pytest.mark.parametrize("shape", [(11,), (13,), (12, 1), ()])
def test_a_plan_takes_one_utility_for_each_coalition(shape):
    """Utilities of another shape than (C,) are refused."""
    with pytest.raises(ValueError, match=r"expected \(12,\)"):
        owen_plan(balanced_tree(4), most=12).values(np.zeros(shape))
