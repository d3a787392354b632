import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import oracles
from credit.batches import (
    EFFICIENCY,
    EXACT,
    RULES,
    UTILITIES,
    anything,
    games_of_tables,
    grid,
    mixture_for,
    rewards_of_sets,
)
from creditd.credit import Blend, LeaveOneOut, Max, MaxAtK, Mixture, OwnReward, PrefixGain, SetReward, Shapley
from creditd.credit.games import OrderStatisticGames, TableGames, candidate_credits

MAX = Max()
RULES_OF_ANY_SIZE = st.sampled_from(sorted(RULES))
UNBIASED = 1e-13
"""A mean over a few hundred equally likely outcomes of size 1."""


def of_rewards(rewards, utility=MAX):
    """A batch of one game of sorted rewards."""
    return OrderStatisticGames(rewards=np.array([rewards], dtype=np.float64), utility=utility)


def of_table(values, ranks=None):
    """A batch of one game of a table whose players all play."""
    n = len(values).bit_length() - 1
    order = np.arange(n)[None, :]
    tables = np.array([values], dtype=np.float64)
    return TableGames(tables=tables, players=order, ranks=order if ranks is None else np.array([ranks]))


def credit_of(games, rule, n_candidates=None):
    """Credit of the players of a batch of one."""
    return candidate_credits(games, rule, games.n_players if n_candidates is None else n_candidates)[0]


@given(rewards_of_sets, st.sampled_from(sorted(UTILITIES)), RULES_OF_ANY_SIZE)
def test_every_rule_has_its_definition_on_every_utility(rewards, utility_name, rule_name):
    """Every rule on every utility of sorted rewards is its own definition, by enumeration."""
    (utility, definition), (rule, name) = UTILITIES[utility_name], RULES[rule_name]
    game = oracles.game_of(rewards, definition)
    expected = oracles.credit_by_definition(game, len(rewards), name)
    assert np.abs(credit_of(of_rewards(rewards, utility), rule) - expected).max() <= EXACT * oracles.scale_of(game)


@given(games_of_tables(5), RULES_OF_ANY_SIZE)
def test_every_rule_has_its_definition_on_every_table(values, rule_name):
    """Every rule on any game is its own definition, by enumeration."""
    rule, name = RULES[rule_name]
    n = len(values).bit_length() - 1
    expected = oracles.credit_by_definition(values, n, name)
    assert np.abs(credit_of(of_table(values), rule) - expected).max() <= EXACT * oracles.scale_of(values)


@pytest.mark.parametrize("rule_name", sorted(RULES))
def test_every_rule_on_one_plain_set(rule_name):
    """Four candidates with a tie, worth 0.9, 0.5, 0.5 and 0.1, under every rule and in both forms."""
    rule, name = RULES[rule_name]
    rewards = [0.5, 0.9, 0.5, 0.1]
    game = oracles.game_of(rewards, oracles.best())
    expected = oracles.credit_by_definition(game, 4, name)
    assert np.abs(credit_of(of_rewards(rewards), rule) - expected).max() <= EXACT
    assert np.abs(credit_of(of_table(game), rule) - expected).max() <= EXACT


@given(st.lists(anything, min_size=1, max_size=6), st.sampled_from(sorted(UTILITIES)))
def test_a_mixture_is_the_sum_of_its_parts(rewards, utility_name):
    """Σ_k w_k·sloo_minus_one(k), with weights of both signs, on rewards and on the same game as a table."""
    utility, definition = UTILITIES[utility_name]
    n = len(rewards)
    rule, name = mixture_for(n)
    game = oracles.game_of(rewards, definition)
    expected = oracles.credit_by_definition(game, n, name)
    scale = oracles.scale_of(game) * sum(map(abs, rule.weights))
    assert np.abs(credit_of(of_rewards(rewards, utility), rule) - expected).max() <= EXACT * scale
    assert np.abs(credit_of(of_table(game), rule) - expected).max() <= EXACT * scale


@given(rewards_of_sets, st.sampled_from(sorted(UTILITIES)), st.integers(0, 3), RULES_OF_ANY_SIZE)
def test_null_players_stand_outside_the_game(rewards, utility_name, nulls, rule_name):
    """The players of a set with K − n null players have the credit they have when those are enumerated."""
    (utility, definition), (rule, name) = UTILITIES[utility_name], RULES[rule_name]
    n = min(len(rewards), 4)
    rewards = rewards[:n]
    game = oracles.game_of(rewards, definition)
    wider = [game[mask & (1 << n) - 1] for mask in range(1 << n + nulls)]
    expected = oracles.credit_by_definition(wider, n + nulls, name, range(n, n + nulls))
    assert np.abs(np.array(expected[n:])).max(initial=0.0) <= EXACT * oracles.scale_of(game)
    for games in (of_rewards(rewards, utility), of_table(game)):
        got = credit_of(games, rule, n + nulls)
        assert np.abs(got - expected[:n]).max() <= EXACT * oracles.scale_of(game)


@given(st.lists(st.one_of(grid, anything), min_size=1, max_size=30), st.sampled_from(sorted(UTILITIES)))
def test_shapley_and_set_reward_are_efficient(rewards, utility_name):
    """Under these two rules, and any blend of them, the credits sum to v(N) − v(∅)."""
    utility, definition = UTILITIES[utility_name]
    worth = definition(rewards) - definition([])
    scale = max(abs(definition(rewards)), abs(definition([])), *map(abs, rewards)) or 1.0
    for rule in (Shapley(), SetReward(), Blend(Shapley(), SetReward(), 0.25)):
        assert abs(math.fsum(credit_of(of_rewards(rewards, utility), rule)) - worth) <= EFFICIENCY * scale


@given(rewards_of_sets, st.sampled_from(sorted(UTILITIES)))
def test_the_ends_of_the_family_are_the_named_rules(rewards, utility_name):
    """Blends at 0 and 1, unit mixtures and max@1, max@K are the rules they name, to the last bit."""
    utility, _ = UTILITIES[utility_name]
    games, n = of_rewards(rewards, utility), len(rewards)

    def same(first, second):
        return np.array_equal(credit_of(games, first), credit_of(games, second))

    for start, end in [(Shapley(), LeaveOneOut()), (OwnReward(), SetReward()), (PrefixGain(), MaxAtK(k=2))]:
        assert same(Blend(start, end, 0.0), start)
        assert same(Blend(start, end, 1.0), end)
    assert same(MaxAtK(k=1), OwnReward())
    assert same(MaxAtK(k=n), LeaveOneOut())
    assert same(MaxAtK(k=n + 5), LeaveOneOut())
    assert same(Mixture((1.0,) + (0.0,) * (n - 1)), OwnReward())
    assert same(Mixture((0.0,) * (n - 1) + (1.0,)), LeaveOneOut())


@given(rewards_of_sets)
def test_harmonic_weights_are_shapley(rewards):
    """w_k = 1/k is the Shapley value, for max by PKPO's closed form too."""
    n = len(rewards)
    harmonic = Mixture(tuple(1.0 / k for k in range(1, n + 1)))
    scale = max(map(abs, rewards)) or 1.0
    got = credit_of(of_rewards(rewards), harmonic)
    assert np.abs(got - credit_of(of_rewards(rewards), Shapley())).max() <= EXACT * scale
    parts = [[r / n for r in rewards], *(oracles.pkpo(rewards, k) for k in range(2, n + 1))]
    closed = [math.fsum(part[i] / k for k, part in enumerate(parts, 1)) for i in range(n)]
    assert np.abs(got - closed).max() <= EXACT * scale


@given(st.lists(st.one_of(grid, anything), min_size=2, max_size=12), st.integers(2, 12))
def test_max_at_k_is_pkpo(rewards, k):
    """max@k of max, v(∅) = 0, is PKPO's closed form."""
    k = min(k, len(rewards))
    scale = max(map(abs, rewards)) or 1.0
    got = credit_of(of_rewards(rewards), MaxAtK(k=k))
    assert np.abs(got - oracles.pkpo(rewards, k)).max() <= EXACT * scale


@given(rewards_of_sets)
def test_own_reward_is_the_candidate_itself(rewards):
    """K times the own-reward credit is the candidate's reward, when v(∅) is 0."""
    got = len(rewards) * credit_of(of_rewards(rewards), OwnReward())
    assert np.abs(got - rewards).max() <= EXACT * (max(map(abs, rewards)) or 1.0)


@given(rewards_of_sets)
def test_leave_one_out_pays_a_unique_winner_only(rewards):
    """With max, leave-one-out is exactly 0 for all but a unique best candidate, which gets its lead."""
    rewards = [abs(r) for r in rewards]
    credit = credit_of(of_rewards(rewards), LeaveOneOut())
    runner_up, winner = sorted([0.0, *rewards])[-2:]
    for r, c in zip(rewards, credit, strict=True):
        expected = winner - runner_up if r == winner and rewards.count(winner) == 1 else 0.0
        assert c == pytest.approx(expected, abs=EXACT * (winner or 1.0))


def test_a_copied_first_candidate_has_no_leave_one_out_credit():
    """A policy that copies its first candidate gets leave-one-out credit 0 everywhere."""
    assert credit_of(of_rewards([0.7, 0.7, 0.7]), LeaveOneOut()).tolist() == [0.0, 0.0, 0.0]


def test_prefix_gain_depends_on_the_order():
    """prefix_gain is v(N) less the running maximum of the candidates before, in the order given."""
    credit = credit_of(of_rewards([0.5, 0.9, 0.1]), PrefixGain())
    assert credit == pytest.approx([0.9, 0.4, 0.0], abs=EXACT)
    assert credit_of(of_rewards([0.9, 0.5, 0.1]), PrefixGain()) == pytest.approx([0.9, 0.0, 0.0], abs=EXACT)
    additive = oracles.game_of([0.5, 0.9, 0.1], oracles.total())
    assert credit_of(of_table(additive), PrefixGain()) == pytest.approx([1.5, 1.0, 0.1], abs=EXACT)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_credit_climbs_max_at_k_for_independent_candidates(k):
    """Averaged over independent candidates, Σ credit·∇log π is ∇ max@k, here of three-armed policies by enumeration."""
    worth, odds = [0.2, 1.0, -0.4], [0.5, 0.2, 0.3]
    outcomes = [(a, b, c) for a in range(3) for b in range(3) for c in range(3)]
    scores = np.eye(3) - odds
    gradient, expected = np.zeros(3), np.zeros(3)
    for outcome in outcomes:
        probability = math.prod(odds[arm] for arm in outcome)
        credit = credit_of(of_rewards([worth[arm] for arm in outcome]), MaxAtK(k=k))
        gradient += probability * sum(share * scores[arm] for share, arm in zip(credit, outcome, strict=True))
        best = max(worth[arm] for arm in outcome[:k])
        expected += probability * best * sum(scores[arm] for arm in outcome[:k])
    assert np.abs(gradient - expected).max() <= UNBIASED


@given(st.lists(st.one_of(grid, anything), min_size=1, max_size=9), st.randoms(use_true_random=False))
def test_relabelling_changes_no_bit(rewards, random):
    """Every rule but prefix_gain gives permuted candidates their permuted credit, to the last bit."""
    order = list(range(len(rewards)))
    random.shuffle(order)
    shuffled = [rewards[i] for i in order]
    for rule_name, (rule, _) in RULES.items():
        if rule_name != "prefix_gain":
            before, after = credit_of(of_rewards(rewards), rule), credit_of(of_rewards(shuffled), rule)
            assert before[order].tobytes() == after.tobytes()


@given(games_of_tables(5, 2), st.randoms(use_true_random=False), st.data())
def test_absent_players_change_nothing(values, random, data):
    """A table played by some of its players, in any order and rank, is the smaller game."""
    n = len(values).bit_length() - 1
    chosen = random.sample(range(n), data.draw(st.integers(1, n)))
    smaller = [
        values[sum(1 << chosen[j] for j in oracles.members_of(mask, len(chosen)))] for mask in range(1 << len(chosen))
    ]
    ranks = random.sample(range(100), len(chosen))
    games = TableGames(tables=np.array([values]), players=np.array([chosen]), ranks=np.array([ranks]))
    scale = oracles.scale_of(values)
    for rule, name in (*RULES.values(), mixture_for(len(chosen))):
        expected = oracles.credit_by_definition(smaller, len(chosen), name)
        assert np.abs(credit_of(games, rule) - expected).max() <= 4 * EXACT * scale
    assert (games.empty()[0], games.grand()[0]) == (smaller[0], smaller[-1])


@given(st.lists(st.lists(anything, min_size=4, max_size=4), min_size=2, max_size=6), RULES_OF_ANY_SIZE)
def test_a_set_does_not_know_its_batch(rows, rule_name):
    """Under every rule a set alone and in company has the same credit to the last bit."""
    rule, _ = RULES[rule_name]
    together = candidate_credits(OrderStatisticGames(np.array(rows), Max()), rule, 5)
    alone = [candidate_credits(OrderStatisticGames(np.array([row]), Max()), rule, 5)[0] for row in rows]
    assert together.tobytes() == np.array(alone).tobytes()


def test_every_utility_answers_its_four_questions():
    """v(∅), v(N) and v of any players in any order are the utility's own, in each row of a batch."""
    rows = [[0.5, -0.25, 0.75], [1.0, 1.0, -2.0]]
    for utility, definition in UTILITIES.values():
        games = OrderStatisticGames(np.array(rows), utility)
        assert games.empty().tolist() == [definition([])] * 2
        assert games.grand() == pytest.approx([definition(row) for row in rows], abs=EXACT)
        tables = TableGames(
            np.array([oracles.game_of(row, definition) for row in rows]), *(np.array([[0, 1, 2]] * 2),) * 2
        )
        assert tables.empty().tolist() == [definition([])] * 2
        assert tables.grand() == pytest.approx([definition(row) for row in rows], abs=EXACT)
        for players in ([], [1], [2, 0], [0, 1, 2]):
            worth = pytest.approx([definition([row[i] for i in players]) for row in rows], abs=EXACT)
            for some in (games, tables):
                part = some.restricted(np.array(players, dtype=np.int64))
                assert part.n_players == len(players)
                assert part.grand() == worth
                assert part.empty().tolist() == [definition([])] * 2


def test_a_mixture_for_another_size_is_refused():
    """A mixture with as many weights as players, but not as candidates, is an error."""
    with pytest.raises(ValueError, match="expected 3"):
        candidate_credits(of_rewards([1.0, 2.0]), Mixture((1.0, 2.0)), 3)
