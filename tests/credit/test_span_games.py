import numpy as np
import pytest
from hypothesis import given, strategies

from creditd.credit import EstimatorOptions
from creditd.credit.owen_trees import balanced_tree, owen_plan, tree_evaluations
from creditd.credit.span_games import SpanGame, SpanValue, TooManyEvaluationsError, affordable_value
from creditd.credit.tables import table_semivalues

BUDGET = EstimatorOptions(budget=512)


def table(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=1 << n)


def evaluated(utilities: np.ndarray, coalitions: np.ndarray) -> np.ndarray:
    return utilities[coalitions @ (1 << np.arange(coalitions.shape[1]))]


def solved(game: SpanGame, utilities: np.ndarray, attention: np.ndarray | None = None):
    asked = 0
    while len(coalitions := game.ask()):
        asked += len(coalitions)
        game.tell(coalitions, evaluated(utilities, coalitions))
    return game.values(attention), asked


def new_game(n: int, value: SpanValue, options: EstimatorOptions = BUDGET, most: int = 1 << 16, **extras) -> SpanGame:
    return SpanGame(n, value, options, lengths=np.arange(1, n + 1), most=most, **extras)


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_shapley_is_exact_while_all_coalitions_fit_the_budget(n):
    found, asked = solved(new_game(n, "shapley"), table(n))
    assert asked == 1 << n
    assert found.exact
    assert found.method == "table"
    assert found.values == pytest.approx(table_semivalues(table(n)[None], np.full(n, 1 / n))[0], abs=1e-12)


def test_beyond_the_budget_permutations_are_sampled_and_agree_with_the_exact_value_within_their_errors():
    n, exact = 11, []
    utilities = table(n, 3)
    truth = table_semivalues(utilities[None], np.full(n, 1 / n))[0]
    for seed in range(40):
        found, asked = solved(new_game(n, "shapley", EstimatorOptions(budget=512, seed=seed)), utilities)
        assert asked <= 512
        assert found.method == "permutations"
        assert not found.exact
        assert found.values.sum() == pytest.approx(utilities[-1] - utilities[0], abs=1e-9)
        exact.append((found.values - truth) / found.standard_errors)
    spread = np.array(exact)
    assert 0.8 < np.sqrt((spread**2).mean()) < 1.25
    assert abs(spread.mean()) < 0.1


def test_a_sample_of_a_few_orders_says_that_its_errors_are_rough():
    few, _ = solved(new_game(16, "shapley", EstimatorOptions("permutations", budget=96)), table(16))
    assert few.standard_errors is not None
    assert few.intervals is None
    assert few.interval_approximate
    exact, _ = solved(new_game(4, "shapley"), table(4))
    assert not exact.interval_approximate


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 12])
def test_owen_asks_for_the_coalitions_of_the_balanced_tree(n):
    found, asked = solved(new_game(n, "owen"), table(n))
    plan = owen_plan(balanced_tree(n), most=1 << 16)
    assert asked == len(plan.coalitions) == tree_evaluations(n)
    assert found.method == "owen_tree"
    assert found.values.sum() == pytest.approx(table(n)[-1] - table(n)[0], abs=1e-12)
    assert np.array_equal(found.values, plan.values(evaluated(table(n), plan.coalitions)))


def test_a_tree_of_the_caller_is_taken():
    chain = np.array([[0, 1], [4, 2], [5, 3]])
    found, asked = solved(new_game(4, "owen", tree=chain), table(4))
    balanced, _ = solved(new_game(4, "owen"), table(4))
    assert asked == 16
    assert not np.allclose(found.values, balanced.values)


@given(strategies.integers(1, 7), strategies.integers(0, 50))
def test_prefix_values_are_gains_of_what_is_written(n, seed):
    utilities = table(n, seed)
    found, asked = solved(new_game(n, "prefix"), utilities)
    assert asked == n + 1
    reached = [utilities[(1 << k) - 1] for k in range(n + 1)]
    assert found.values == pytest.approx(np.diff(reached), abs=1e-12)


@given(strategies.integers(1, 7), strategies.integers(0, 50))
def test_leave_one_out_is_what_is_lost_without_a_unit(n, seed):
    utilities = table(n, seed)
    found, asked = solved(new_game(n, "leave_one_out"), utilities)
    assert asked == (n + 2 if n > 1 else 2)
    everyone = (1 << n) - 1
    assert found.values == pytest.approx([utilities[-1] - utilities[everyone ^ (1 << k)] for k in range(n)], abs=1e-12)


def test_uniform_gives_every_token_as_much():
    found, asked = solved(new_game(3, "uniform"), table(3))
    assert asked == 2
    assert found.values == pytest.approx((table(3)[-1] - table(3)[0]) * np.array([1, 2, 3]) / 6)


def test_attention_shares_the_same_total():
    found, asked = solved(new_game(3, "attention"), table(3), np.array([0.2, 0.0, 0.6]))
    assert asked == 2
    assert found.values == pytest.approx((table(3)[-1] - table(3)[0]) * np.array([0.25, 0.0, 0.75]))


@pytest.mark.parametrize("weights", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_attention_that_leaves_nothing_to_share_by_gives_no_value(weights):
    found, _ = solved(new_game(2, "attention"), table(2), np.array(weights))
    assert found is None


def test_attention_has_to_be_told():
    game = new_game(2, "attention")
    game.tell(game.ask(), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="attention of each unit"):
        game.values()


@pytest.mark.parametrize(("n", "value"), [(27, "owen"), (512, "prefix"), (511, "leave_one_out"), (256, "shapley")])
def test_too_many_evaluations_are_refused_with_both_numbers(n, value):
    with pytest.raises(TooManyEvaluationsError, match="512"):
        new_game(n, value)


@pytest.mark.parametrize(
    ("n", "value", "options", "message"),
    [
        (2, "uniform", {"budget": 1}, "uniform of 2 units takes 2 evaluations; got a budget of 1, expected at least 2"),
        (4, "prefix", {"budget": 4}, "prefix of 4 units takes 5 evaluations; got a budget of 4, expected at least 5"),
        (
            4,
            "owen",
            {"budget": 11},
            "owen over the balanced tree of 4 units takes 12 evaluations; got a budget of 11, expected at least 12",
        ),
        (
            9,
            "shapley",
            {"budget": 19},
            "sampled shapley of 9 units takes 20 evaluations; got a budget of 19, expected at least 20",
        ),
        (
            3,
            "shapley",
            {"type": "exact", "budget": 7},
            "exact shapley of 3 units takes 8 evaluations; got a budget of 7, expected at least 8",
        ),
        (
            17,
            "shapley",
            {"type": "exact", "budget": 1 << 20},
            "exact shapley of 17 units takes 131072 evaluations; expected at most 65536, whatever the budget",
        ),
        (
            4096,
            "shapley",
            {"type": "exact", "budget": 512},
            "exact shapley of 4096 units takes 2^4096 evaluations; expected at most 65536, whatever the budget",
        ),
        (
            30,
            "shapley",
            {"type": "stratified", "budget": 1 << 20},
            """sampled shapley of 30 units takes more than 65536 evaluations; got a budget of 1048576, \
expected at most 65536""",
        ),
    ],
)
def test_a_budget_that_does_not_do_is_told_in_units_with_what_would(n, value, options, message):
    with pytest.raises(TooManyEvaluationsError) as caught:
        new_game(n, value, EstimatorOptions(**options))
    assert str(caught.value) == message


def test_more_units_than_can_be_listed_are_refused_whatever_the_limit():
    with pytest.raises(TooManyEvaluationsError, match="got 21 units, expected at most 20"):
        new_game(21, "shapley", EstimatorOptions("exact", budget=1 << 21), most=1 << 22)


@pytest.mark.parametrize("value", ["owen", "prefix", "leave_one_out", "shapley", "uniform"])
def test_the_limit_of_the_service_counts_like_a_budget(value):
    with pytest.raises(TooManyEvaluationsError):
        new_game(9, value, EstimatorOptions(budget=1 << 12), most=1)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (0, ("shapley", True)),
        (9, ("shapley", True)),
        (10, ("owen", True)),
        (26, ("owen", True)),
        (27, ("shapley", False)),
        (4096, ("shapley", False)),
    ],
)
def test_auto_takes_what_the_budget_of_512_affords(n, expected):
    assert affordable_value(n, 512) == expected


def test_two_utilities_of_one_coalition_are_refused():
    game = new_game(4, "owen")
    asked = game.ask()
    game.tell(asked[:2], np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="two utilities"):
        game.tell(asked[:1], np.array([0.5]))
