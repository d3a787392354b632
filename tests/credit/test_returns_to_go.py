"""What token rewards preserve, and what a learner loses that judges a token by the rewards from it on."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import oracles
from creditd.credit import CompletionCredit, EstimatorOptions, token_rewards
from creditd.credit.span_games import SpanGame
from creditd.credit.text_units import units_of_ranges

ROUNDING = 1e-12
"""Sums agree to this share of the largest utility."""
ALL_COALITIONS = EstimatorOptions(budget=512)

V = {
    (): 0.0,
    ("not",): 0.0,
    ("so",): 0.0,
    ("bad",): -1.0,
    ("good",): 1.0,
    ("not", "bad"): 0.5,
    ("not", "good"): 0.25,
    ("so", "bad"): -1.5,
    ("so", "good"): 1.5,
}
"""A reward model of two words that reads a lone word as it stands: "not bad" is better than "not good"."""


def values_of(value, n, utility):
    """Values of the n units of a completion, from the utilities of tuples of unit numbers."""
    game = SpanGame(n, value, ALL_COALITIONS, lengths=np.ones(n, dtype=np.int64), most=512)
    while len(asked := game.ask()):
        game.tell(asked, np.array([utility(tuple(np.flatnonzero(row).tolist())) for row in asked]))
    return game.values().values


def rewards_of(value, n, utility, alpha=1.0):
    """Rewards of a completion whose units are its tokens."""
    units = units_of_ranges(n, [[j, j + 1] for j in range(n)])
    credit = CompletionCredit(units, values_of(value, n, utility), utility(()), utility(tuple(range(n))))
    return token_rewards(credit, alpha)[0]


def returns_to_go(rewards):
    """Rewards from each token on."""
    return [math.fsum(rewards[t:]) for t in range(len(rewards))]


def of_words(words, value, alpha=1.0):
    """Rewards of a text of two words."""
    return rewards_of(value, 2, lambda units: V[tuple(words[j] for j in units)], alpha)


def logit_gradient(first, quantity):
    """Policy gradient on the logit of "bad" after a first word, both second words at chance ½.

    Σ_b π_b·(∂ log π_b/∂ logit of "bad")·quantity(b) = ¼·(quantity("bad") − quantity("good"))
    """
    return 0.5 * 0.5 * (quantity((first, "bad")) - quantity((first, "good")))


def test_a_learner_from_returns_to_go_prefers_the_worse_text():
    """After "not" the Shapley values −¼ of "bad" and ⅝ of "good" reward what makes the text worse.

    SV_2 = ½·[v(12) − v(1)] + ½·[v(2) − v(∅)]: half of it is the word alone, which is not what the text says.
    """
    assert V["not", "bad"] > V["not", "good"]
    assert of_words(("not", "bad"), "shapley").tolist() == [0.75, -0.25]
    assert of_words(("not", "good"), "shapley").tolist() == [-0.375, 0.625]
    from_last = {first: logit_gradient(first, lambda words: of_words(words, "shapley")[1]) for first in ("not", "so")}
    of_reward = {first: logit_gradient(first, lambda words: V[words]) for first in ("not", "so")}
    assert from_last == {"not": -0.21875, "so": -0.625}
    assert of_reward == {"not": 0.0625, "so": -0.75}
    # The learner moves away from "not bad" to "not good", and is right only where both terms agree.
    assert from_last["not"] * of_reward["not"] < 0.0 < from_last["so"] * of_reward["so"]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("value", ["shapley", "owen", "prefix", "uniform", "leave_one_out"])
def test_a_learner_from_whole_returns_climbs_the_reward(value, alpha):
    """The sum of the token rewards has the gradient of the reward, whatever the value and α."""
    for first in ("not", "so"):
        gradient = logit_gradient(first, lambda words: math.fsum(of_words(words, value, alpha)))
        assert gradient == pytest.approx(logit_gradient(first, lambda words: V[words]), abs=ROUNDING)


def test_the_bias_of_the_last_token_shrinks_with_alpha():
    """What the last token gets is α·SV_2 + (1 − α)·v(P): here it prefers the worse text from α = 2/9 on."""

    def preference(alpha):
        return logit_gradient("not", lambda words: of_words(words, "shapley", alpha)[1])

    assert preference(0.0) == 0.0625
    assert preference(2 / 9) == pytest.approx(0.0, abs=ROUNDING)
    assert preference(0.2) > 0.0 > preference(0.25)


@pytest.mark.parametrize("first", ["not", "so"])
def test_values_of_prefixes_follow_the_reward_at_every_token(first):
    """With prefix values the last token is rewarded with v(P) − v(first word): the better text is preferred."""
    gradient = logit_gradient(first, lambda words: of_words(words, "prefix")[1])
    assert gradient == logit_gradient(first, lambda words: V[words])


def random_pairs(n_games):
    """Two texts with one first unit: v(∅), v(1), and v(2), v(12) of either second unit, independent normals."""
    drawn = np.random.default_rng(25).normal(size=(n_games, 6))
    for empty, first, *seconds in drawn.tolist():
        yield [{(): empty, (0,): first, (1,): alone, (0, 1): both} for alone, both in (seconds[:2], seconds[2:])]


@pytest.mark.parametrize(("value", "share"), [("shapley", 0.25), ("prefix", 0.0)])
def test_the_last_token_prefers_the_worse_text_in_a_quarter_of_random_games(value, share):
    """Shapley values order two second units wrongly in 25 % of random games, values of prefixes in none.

    X = v(12) − v(12') and Y = v(2) − v(2') are independent and symmetric with one distribution, and the difference of
    the Shapley values is (X + Y)/2: its sign is that of Y where |Y| > |X|, half of the time, and then wrong half of it.
    """
    n_games, four_standard_errors = 2000, 4 * math.sqrt(0.25 * 0.75 / 2000)
    wrong = 0
    for one, other in random_pairs(n_games):
        last = [rewards_of(value, 2, game.__getitem__)[1] for game in (one, other)]
        wrong += (last[0] > last[1]) != (one[0, 1] > other[0, 1])
    assert abs(wrong / n_games - share) <= (four_standard_errors if share else 0.0)


@st.composite
def two_texts_with_a_common_start(draw):
    """Utilities of two texts of n units that agree in every coalition of the first k units."""
    n = draw(st.integers(1, 6))
    k = draw(st.integers(0, n))
    grid = st.integers(-512, 512).map(lambda number: number / 8)
    tables = [draw(st.lists(grid, min_size=1 << n, max_size=1 << n)) for _ in range(2)]
    tables[1][: 1 << k] = tables[0][: 1 << k]
    return n, k, tables


@given(two_texts_with_a_common_start(), st.floats(0, 1))
def test_returns_to_go_of_prefix_values_differ_as_the_rewards_do(texts, alpha):
    """Behind a common start two texts differ in their returns-to-go by v(P) − v(P'), at every α."""
    n, k, tables = texts
    found = [
        returns_to_go(rewards_of("prefix", n, lambda units, of=table: of[sum(1 << j for j in units)], alpha))
        for table in tables
    ]
    for t in range(min(k + 1, n)):
        gap = (found[0][t] - found[1][t]) - (tables[0][-1] - tables[1][-1])
        assert abs(gap) <= ROUNDING * 2 * n * max(map(oracles.scale_of, tables))
