import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import estimator_oracles as oracles
from credit.batches import EXACT
from creditd.credit import (
    Blend,
    EstimatorOptions,
    EvaluatedGame,
    LeaveOneOut,
    MaxAtK,
    Mixture,
    OwnReward,
    PrefixGain,
    SetReward,
    Shapley,
    required_evaluations,
    stratified_plan,
)
from creditd.credit.coalition_plans import row_keys
from creditd.credit.coalition_semivalues import every_coalition

TYPES = ("auto", "exact", "stratified", "permutations")


def random_game(n, seed):
    """Utilities of all coalitions by bits, and a function that looks them up."""
    table = np.random.default_rng(seed).normal(size=1 << n)
    return table, lambda coalitions: table[coalitions @ (1 << np.arange(n))]


def smooth_game(n, seed):
    """A game whose proxy is not perfect: a concave function of a sum."""
    weights = np.random.default_rng(seed).uniform(size=n)
    return lambda coalitions: np.sqrt(np.where(coalitions, weights, 0.0).sum(axis=1) + 0.01)


def play(game, utilities, limit=None):
    """Ask and tell until done; the credits and how many coalitions were asked for."""
    asked = 0
    while not game.done:
        coalitions = game.ask(limit)
        asked += len(coalitions)
        game.tell(coalitions, utilities(coalitions))
    return game.credits(), asked


def same(first, second):
    """Whether two results agree to the last bit."""
    for name in ("credits", "standard_errors", "intervals"):
        a, b = getattr(first, name), getattr(second, name)
        if (a is None) != (b is None) or (a is not None and a.tobytes() != b.tobytes()):
            return False
    return (first.evaluations, first.exact, first.scale) == (second.evaluations, second.exact, second.scale)


def rules(n):
    """Every rule, with the credit by its definition."""
    by_size = lambda q: lambda game: oracles.semivalue(game, n, q)  # noqa: E731
    k = min(2, n)
    shapley = [1 / n] * n
    only = lambda s, w: [w * (j == s) for j in range(n)]  # noqa: E731
    everyone = frozenset(range(n))
    mixture = [0.5 - 0.25 * j for j in range(n)]
    return {
        "shapley": (Shapley(), by_size(shapley)),
        "leave_one_out": (LeaveOneOut(), by_size(only(n - 1, 1.0))),
        "own_reward": (OwnReward(), by_size(only(0, 1 / n))),
        "set_reward": (SetReward(), lambda game: [(game[everyone] - game[frozenset()]) / n] * n),
        "prefix_gain": (PrefixGain(), lambda game: [game[everyone] - game[frozenset(range(i))] for i in range(n)]),
        "max_at_k": (MaxAtK(k=2), by_size(only(k - 1, k / n))),
        "mixture": (Mixture(weights=tuple(mixture)), by_size([w * (j + 1) / n for j, w in enumerate(mixture)])),
        "blend": (
            Blend(start=Shapley(), end=LeaveOneOut(), position=0.25),
            by_size([0.75 / n + 0.25 * (j == n - 1) for j in range(n)]),
        ),
    }


@pytest.mark.parametrize("name", rules(3))
@given(n=st.integers(1, 6), seed=st.integers(0, 100), limit=st.integers(1, 80), kind=st.sampled_from(TYPES))
def test_credits_equal_the_definition_of_their_rule(name, n, seed, limit, kind):
    """With a budget of 2ⁿ every rule is exact, whatever the estimator and the size of the batches."""
    table, utilities = random_game(n, seed)
    rule, definition = rules(n)[name]
    game = {s: table[sum(1 << i for i in s)] for s in oracles.every_subset(n)}
    result, asked = play(EvaluatedGame(n, EstimatorOptions(kind, 1 << n, seed), rule), utilities, limit)
    assert result.exact
    assert result.standard_errors is result.intervals is None
    assert np.abs(result.credits - definition(game)).max() <= EXACT * np.abs(table).max() * n
    assert asked == result.evaluations == required_evaluations(n, rule, EstimatorOptions(kind, 1 << n, seed))
    assert result.efficient == (name in {"shapley", "set_reward"})


@pytest.mark.parametrize(
    ("rule", "needed"),
    [
        (LeaveOneOut(), 14),
        (OwnReward(), 14),
        (PrefixGain(), 13),
        (SetReward(), 2),
        (MaxAtK(k=2), 80),
        (MaxAtK(k=12), 14),
        (Blend(start=LeaveOneOut(), end=OwnReward(), position=0.5), 26),
        (Blend(start=Shapley(), end=LeaveOneOut(), position=1.0), 14),
    ],
)
def test_a_rule_needs_the_coalitions_of_its_definition_alone(rule, needed):
    """Rules that look at few coalitions ask for these, ∅ and N alone; a smaller budget is refused with their number."""
    assert required_evaluations(12, rule, EstimatorOptions(budget=needed)) == needed
    with pytest.raises(ValueError, match=rf"expected {needed} or more"):
        required_evaluations(12, rule, EstimatorOptions(budget=needed - 1))


@pytest.mark.parametrize(
    ("n", "kind", "rule", "needed"),
    [
        (12, "exact", Shapley(), 4096),
        (12, "auto", Shapley(), 26),
        (3, "auto", Shapley(), 8),
        (1, "stratified", Shapley(), 2),
        (12, "permutations", Shapley(), 26),
        (12, "auto", Mixture(weights=(1.0,) * 12), 4096),
        (12, "stratified", Blend(start=Shapley(), end=PrefixGain(), position=0.5), 35),
    ],
)
def test_a_budget_that_is_too_small_is_refused(n, kind, rule, needed):
    """The error names the budget that suffices."""
    with pytest.raises(ValueError, match=rf"got {needed - 1}, expected {needed} or more"):
        EvaluatedGame(n, EstimatorOptions(kind, needed - 1), rule)
    assert required_evaluations(n, rule, EstimatorOptions(kind, needed)) <= needed


@pytest.mark.parametrize("kind", ["stratified", "permutations"])
@pytest.mark.parametrize("target", [None, 0.01])
@given(limits=st.lists(st.integers(1, 60), min_size=1, max_size=5), seed=st.integers(0, 20), shuffle=st.randoms())
def test_batches_change_no_bit(kind, target, limits, seed, shuffle):
    """However many coalitions are told at once, and in which order, the credits have the same bits."""
    n, utilities = 11, smooth_game(11, seed)
    options = EstimatorOptions(kind, 400, seed, target)
    whole, _ = play(EvaluatedGame(n, options), utilities)
    game = EvaluatedGame(n, options)
    step = 0
    while not game.done:
        coalitions = game.ask(limits[step % len(limits)])
        order = list(range(len(coalitions)))
        shuffle.shuffle(order)
        game.tell(coalitions[order], utilities(coalitions[order]))
        step += 1
    assert same(game.credits(), whole)


@pytest.mark.parametrize("kind", ["stratified", "permutations"])
@given(seed=st.integers(0, 20), share=st.floats(0, 1))
def test_known_utilities_are_not_asked_for_again(kind, seed, share):
    """A game that knows some utilities asks for the others alone, and ends with the same bits."""
    n, utilities = 10, smooth_game(10, seed)
    options = EstimatorOptions(kind, 300, seed)
    whole, asked = play(EvaluatedGame(n, options), utilities)
    every = every_coalition(n)
    known = every[np.random.default_rng(seed).uniform(size=len(every)) < share]
    game = EvaluatedGame(n, options, known_coalitions=known, known_utilities=utilities(known))
    again, asked_again = play(game, utilities)
    if len(known) < len(every):
        assert same(again, whole)
        assert asked_again <= asked
        assert asked_again + len(known) >= asked
    else:
        assert again.exact


def test_all_utilities_make_an_estimate_exact():
    """When all 2ⁿ utilities are known the value is exact, whatever the budget."""
    table, utilities = random_game(9, 0)
    every = every_coalition(9)[::-1]
    game = EvaluatedGame(9, EstimatorOptions(budget=40), known_coalitions=every, known_utilities=utilities(every))
    assert game.done
    exact, _ = play(EvaluatedGame(9, EstimatorOptions("exact", 512)), utilities)
    assert same(game.credits(), exact)
    assert exact.method == "table"
    assert exact.evaluations == 512
    assert exact.scale == np.abs(table).max()


def test_a_game_stops_when_its_target_is_met():
    """The errors that stopped it are within the target and carry the factor 1.3; a target out of reach uses it all."""
    utilities = smooth_game(14, 1)
    whole, _ = play(EvaluatedGame(14, EstimatorOptions("stratified", 2000)), utilities)
    target = 4.0 * whole.standard_errors.max()
    early, asked = play(EvaluatedGame(14, EstimatorOptions("stratified", 2000, 0, target)), utilities)
    assert early.evaluations == asked < whole.evaluations
    assert early.standard_errors.max() <= target
    never, _ = play(EvaluatedGame(14, EstimatorOptions("stratified", 2000, 0, 1e-12)), utilities)
    assert never.evaluations == whole.evaluations
    assert never.credits.tobytes() == whole.credits.tobytes()
    assert never.standard_errors == pytest.approx(1.3 * whole.standard_errors, rel=1e-12)


def test_what_is_known_beyond_a_check_point_does_not_move_it():
    """A game told its whole plan at once stops where it would have stopped step by step."""
    utilities = smooth_game(14, 1)
    options = EstimatorOptions("stratified", 2000, 0, 0.003)
    step_by_step, asked = play(EvaluatedGame(14, options), utilities, 32)
    assert asked < 2000
    plan = stratified_plan(14, 2000, 0)
    game = EvaluatedGame(14, options, known_coalitions=plan, known_utilities=utilities(plan))
    assert game.done
    assert same(game.credits(), step_by_step)


def test_a_blend_carries_the_error_of_its_estimated_part():
    """Standard errors and intervals of a blend are those of the Shapley value times its weight."""
    utilities = smooth_game(12, 3)
    options = EstimatorOptions("stratified", 500, 3)
    shapley, _ = play(EvaluatedGame(12, options), utilities)
    missed, _ = play(EvaluatedGame(12, options, LeaveOneOut()), utilities)
    blend, asked = play(EvaluatedGame(12, options, Blend(start=Shapley(), end=LeaveOneOut(), position=0.25)), utilities)
    assert asked == 500
    assert blend.credits == pytest.approx(0.75 * shapley.credits + 0.25 * missed.credits, abs=1e-14)
    assert blend.standard_errors == pytest.approx(0.75 * shapley.standard_errors, rel=1e-12)
    half = (blend.intervals[:, 1] - blend.intervals[:, 0]) / 2
    assert half == pytest.approx(0.75 * (shapley.intervals[:, 1] - shapley.intervals[:, 0]) / 2, rel=1e-9)
    assert blend.intervals.mean(axis=1) == pytest.approx(blend.credits, abs=1e-14)


@pytest.mark.parametrize("rule", [LeaveOneOut(), OwnReward(), PrefixGain(), SetReward(), Shapley()])
def test_both_ends_are_reported_under_every_rule(rule):
    """v(∅) and v(N) are there whether or not the rule looks at them, and are not asked for when they are known."""
    _, utilities = random_game(5, 0)
    ends = np.array([[False] * 5, [True] * 5])
    found, asked = play(EvaluatedGame(5, EstimatorOptions(), rule), utilities)
    assert [found.empty, found.grand] == utilities(ends).tolist()
    known = EvaluatedGame(5, EstimatorOptions(), rule, known_coalitions=ends, known_utilities=utilities(ends))
    again, more = play(known, utilities)
    assert [again.empty, again.grand] == [found.empty, found.grand]
    assert more == asked - 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e101])
def test_a_utility_that_is_not_finite_is_refused(value):
    """The error names the coalition, and nothing of the batch is taken."""
    game = EvaluatedGame(4, EstimatorOptions())
    coalitions = game.ask(7)
    utilities = np.zeros(7)
    utilities[6] = value
    with pytest.raises(ValueError, match=r"coalition \[0, 1, 2\]|coalition \[1, 2, 3\]"):
        game.tell(coalitions, utilities)
    assert len(game.ask()) == 16


def test_a_coalition_has_one_utility():
    """Telling a coalition twice is fine with the same utility and an error with another, also within one batch."""
    game = EvaluatedGame(4, EstimatorOptions())
    game.tell(np.eye(4, dtype=bool), np.arange(4.0))
    game.tell(np.eye(4, dtype=bool), np.arange(4.0))
    with pytest.raises(ValueError, match=r"coalition \[2\] has two utilities: got 7.0, was told 2.0"):
        game.tell(np.eye(4, dtype=bool)[2:3], np.array([7.0]))
    with pytest.raises(ValueError, match=r"coalition \[\] has two utilities"):
        game.tell(np.zeros((2, 4), dtype=bool), np.array([0.0, 1.0]))


@pytest.mark.parametrize(
    ("coalitions", "utilities"),
    [
        (np.zeros((2, 3), dtype=bool), np.zeros(2)),
        (np.zeros((2, 4)), np.zeros(2)),
        (np.zeros((2, 4), dtype=bool), np.zeros(3)),
        (np.zeros(4, dtype=bool), np.zeros(4)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(coalitions, utilities):
    """Coalitions are boolean rows over the players, with one utility each."""
    with pytest.raises(ValueError, match="got"):
        EvaluatedGame(4, EstimatorOptions()).tell(coalitions, utilities)


def test_credits_wait_for_all_utilities():
    """Credits cannot be read while coalitions are missing."""
    game = EvaluatedGame(4, EstimatorOptions())
    game.tell(np.eye(4, dtype=bool), np.arange(4.0))
    with pytest.raises(ValueError, match="12 coalitions have no utility yet"):
        game.credits()
    with pytest.raises(ValueError, match="limit"):
        game.ask(0)


@pytest.mark.parametrize(
    "options",
    [
        {"type": "owen"},
        {"budget": 0},
        {"seed": -1},
        {"target_standard_error": 0.0},
        {"target_standard_error": float("nan")},
    ],
)
def test_options_that_mean_nothing_are_refused(options):
    """An unknown estimator, no budget, a negative seed and a target of zero are errors."""
    with pytest.raises(ValueError, match="got"):
        EstimatorOptions(**options)


def test_too_many_players_for_a_list_of_all_coalitions():
    """No budget makes 21 players exact, and no players make no game."""
    with pytest.raises(ValueError, match="got 21 players, expected 20"):
        EvaluatedGame(21, EstimatorOptions("exact", 1 << 22))
    with pytest.raises(ValueError, match="a game needs players"):
        EvaluatedGame(0, EstimatorOptions())
    assert len(row_keys(EvaluatedGame(21, EstimatorOptions("stratified", 900)).ask())) == 900
