import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import smooth_oracles
from creditd.credit.noisy_or import (
    NoisyOr,
    NoisyOrGames,
    first_of_ties,
    product_game_semivalues,
    products_of_others,
)

EXACT = 1e-12
"""Kernel against enumeration, as a share of the scale of the game."""

probability = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0.0, 1.0))
weight = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(-10.0, 10.0))


@st.composite
def covers(draw, max_players=6):
    """Scores of one set, and a utility that fits them."""
    n, n_topics = draw(st.integers(1, max_players)), draw(st.integers(1, 3))
    rows = st.lists(probability, min_size=n_topics, max_size=n_topics)
    scores = draw(st.lists(rows, min_size=n, max_size=n))
    weights = draw(st.none() | st.lists(weight, min_size=n_topics, max_size=n_topics).map(tuple))
    return np.array(scores), NoisyOr(weights=weights, empty=draw(st.sampled_from([0.0, -0.5, 0.75])))


def size_weights(n):
    """Shapley, leave-one-out, own reward, a sum of the three, and weights of no pattern at all."""
    first, last = np.zeros(n), np.zeros(n)
    first[0], last[-1] = 1.0 / n, 1.0
    shapley = np.full(n, 1.0 / n)
    irregular = np.array([(-1.0) ** s * (1.0 + s) / n for s in range(n)])
    return [shapley, last, first, 0.5 * shapley - 2.0 * last + 3.0 * first, irregular]


def games_of(scores, utility):
    """A batch of the set and the set reversed, and all utilities of the first by definition."""
    n, n_topics = scores.shape
    weights = [1.0] * n_topics if utility.weights is None else utility.weights
    definition = smooth_oracles.noisy_or(scores.tolist(), weights, empty=utility.empty)
    return NoisyOrGames(np.stack([scores, scores[::-1]]), utility), smooth_oracles.game_of_players(n, definition)


def assert_exact(scores, utility):
    """Every rule agrees with the enumeration of coalitions."""
    games, values = games_of(scores, utility)
    n, scale = games.n_players, games.scale()[0]
    for q in size_weights(n):
        expected = smooth_oracles.semivalue(values, n, q)
        assert np.abs(games.semivalues(q)[0] - expected).max() <= EXACT * scale * max(1.0, np.abs(q).sum())


@given(covers())
def test_semivalues_equal_the_mean_over_all_coalitions(case):
    """Every rule on every set of probabilities agrees with the enumeration of coalitions."""
    assert_exact(*case)


@pytest.mark.parametrize("n", [1, 2, 8, 9])
def test_eight_and_nine_players_equal_the_enumeration(n):
    """Sets of one, two, eight and nine candidates, with ties, certain and impossible ones among them."""
    scores = np.random.default_rng(n).random((n, 3))
    scores[: n // 2, 0] = scores[0, 0]
    scores[-1] = [0.0, 1.0, 1e-9]
    assert_exact(scores, NoisyOr(weights=(1.0, -0.5, 3.0), empty=0.3))


@given(covers())
def test_utilities_of_nobody_and_everybody(case):
    """v(∅), v(N) and the scale are what the definition says."""
    games, values = games_of(*case)
    scores, utility = case
    assert games.empty().tolist() == [utility.empty] * 2
    assert np.abs(games.grand() - values[-1]).max() <= EXACT * games.scale()[0]
    sizes = [abs(w) for w in utility.weights or [1.0] * scores.shape[1]]
    largest = smooth_oracles.noisy_or(scores.tolist(), sizes)(range(len(scores)))
    assert games.scale().tolist() == pytest.approx([max(largest, abs(utility.empty))] * 2, rel=EXACT, abs=0.0)
    assert games.scale()[0] >= (1.0 - EXACT) * max(map(abs, values))


@given(covers())
def test_faint_probabilities_keep_their_digits(case):
    """Probabilities near 10⁻²⁰⁰ give v(N) to full relative precision: their sum."""
    scores, _ = case
    games = NoisyOrGames(1e-200 * scores[None], NoisyOr())
    assert games.grand()[0] == pytest.approx(math.fsum(1e-200 * scores.ravel()), rel=1e-14, abs=1e-300)


@given(covers(max_players=12), st.randoms(use_true_random=False))
def test_relabelling_changes_no_bit(case, random):
    """Permuting the candidates permutes their credits, and leaves v(N), to the last bit."""
    scores, utility = case
    order = list(range(len(scores)))
    random.shuffle(order)
    before, after = (NoisyOrGames(each[None], utility) for each in (scores, scores[order]))
    for q in size_weights(len(scores)):
        assert before.semivalues(q)[0][order].tobytes() == after.semivalues(q)[0].tobytes()
    assert before.grand().tobytes() == after.grand().tobytes()


@given(covers(max_players=9))
def test_equal_candidates_have_equal_bits(case):
    """A candidate and its copy have one credit, and candidates tied in one topic share it alike."""
    scores, utility = case
    twice = np.concatenate([scores, scores[:1]])
    for q in size_weights(len(twice)):
        values = NoisyOrGames(twice[None], utility).semivalues(q)[0]
        assert values[0].tobytes() == values[-1].tobytes()
        column = product_game_semivalues(twice[:, 0], q)
        for z in set(twice[:, 0].tolist()):
            assert len({each.tobytes() for each in column[twice[:, 0] == z]}) == 1


@pytest.mark.parametrize("n", [2, 5, 16])
def test_a_row_does_not_know_its_batch(n):
    """A set alone and in any company has the same credit to the last bit."""
    scores = np.random.default_rng(n).random((700, n, 3)).round(1)
    together = NoisyOrGames(scores, NoisyOr())
    for rows in (slice(0, 1), slice(3, 10), slice(690, 700)):
        part = NoisyOrGames(scores[rows], NoisyOr())
        assert part.grand().tobytes() == together.grand()[rows].tobytes()
        for q in size_weights(n):
            assert part.semivalues(q).tobytes() == together.semivalues(q)[rows].tobytes()


@pytest.mark.parametrize("n", [64, 200])
def test_large_sets_are_efficient_and_agree_with_the_other_kernel(n):
    """The values of many candidates sum to v(N) − v(∅), and the integral agrees with symmetric polynomials."""
    scores = np.random.default_rng(n).beta(0.5, 3.0, size=(2, n, 2))
    games = NoisyOrGames(scores, NoisyOr(empty=0.25))
    shapley = games.semivalues(np.full(n, 1.0 / n))
    assert np.abs(shapley.sum(axis=1) - (games.grand() - 0.25)).max() <= EXACT * 2.0
    barely_uneven = np.full(n, 1.0 / n)
    barely_uneven[1] *= 1.0 + 1e-9
    correction = np.zeros(n)
    correction[1], correction[2] = 1e-9 / n, 1e-30
    other = games.semivalues(barely_uneven) - games.semivalues(correction)
    assert np.abs(shapley - other).max() <= EXACT * 2.0


def test_worked_values():
    """A certain candidate beside one of p = .5: ∫(1 − x/2)dx = .75 for the first, .5·∫(1 − x)dx = .25 for the other."""
    games = NoisyOrGames(np.array([[[1.0], [0.5]]]), NoisyOr(weights=(2.0,), empty=0.5))
    assert games.semivalues(np.array([0.5, 0.5]))[0] == pytest.approx([1.25, 0.25], abs=1e-15)


@given(covers())
def test_restricted_games_are_the_games_of_the_players_named(case):
    """Naming players gives their game in that order, down to none at all."""
    scores, utility = case
    games = NoisyOrGames(scores[None], utility)
    players = np.arange(len(scores))[::-2]
    assert games.restricted(players).grand().tobytes() == NoisyOrGames(scores[None, players], utility).grand().tobytes()
    nobody = games.restricted(np.array([], dtype=np.int64))
    assert nobody.n_players == 0
    assert nobody.grand().tolist() == nobody.empty().tolist() == [utility.empty]
    assert nobody.scale().tolist() == [abs(utility.empty)]
    assert nobody.semivalues(np.empty(0)).shape == (1, 0)


def test_large_weights_do_not_overflow():
    """Weights of 10¹⁰⁰ give finite credits."""
    scores = np.random.default_rng(0).random((1, 6, 2))
    assert_exact(scores[0], NoisyOr(weights=(1e100, -1e100), empty=1e100))


@given(st.lists(probability, min_size=2, max_size=7), st.lists(st.floats(0.0, 1.0), min_size=1, max_size=3))
def test_products_leave_the_player_out(z, nodes):
    """Each product runs over the other players alone."""
    weights = np.arange(1.0, len(nodes) + 1.0)
    got = products_of_others(np.array([z, z[::-1]]).T, np.array(nodes), weights)
    for i in range(len(z)):
        others = z[:i] + z[i + 1 :]
        expected = math.fsum(w * math.prod(1.0 - x * p for p in others) for w, x in zip(weights, nodes, strict=True))
        assert got[i, 0] == pytest.approx(expected, abs=1e-13)
        assert got[len(z) - 1 - i, 1] == pytest.approx(expected, abs=1e-13)


def test_first_of_ties_points_at_the_first():
    """Equal neighbours share the position of their first."""
    ordered = np.array([[0.1], [0.1], [0.2], [0.3], [0.3]])
    assert first_of_ties((ordered,))[:, 0].tolist() == [0, 0, 2, 3, 3]
    assert first_of_ties((ordered, np.array([[1], [2], [2], [2], [2]])))[:, 0].tolist() == [0, 1, 2, 3, 3]


def test_no_sets_and_no_topics_are_no_error():
    """No sets, or no topics, are no error."""
    games = NoisyOrGames(np.empty((0, 3, 2)), NoisyOr())
    assert games.grand().shape == games.empty().shape == games.scale().shape == (0,)
    for q in size_weights(3):
        assert games.semivalues(q).shape == (0, 3)
    no_topics = NoisyOrGames(np.empty((2, 3, 0)), NoisyOr(empty=0.5))
    assert no_topics.grand().tolist() == [0.0, 0.0]
    assert no_topics.semivalues(np.array([0.5, 0.25, 0.125])).tolist() == [[-0.25] * 3] * 2


def test_what_does_not_fit_is_refused():
    """Weights, topics and sizes that disagree are named with what was expected."""
    with pytest.raises(ValueError, match=r"one weight per topic: got 2 weights, expected 3"):
        NoisyOrGames(np.zeros((1, 2, 3)), NoisyOr(weights=(1.0, 2.0)))
    with pytest.raises(ValueError, match=r"finite weights: got nan"):
        NoisyOr(weights=(math.nan,))
    with pytest.raises(ValueError, match=r"finite empty: got inf"):
        NoisyOr(empty=math.inf)
    with pytest.raises(ValueError, match=r"expected \(3,\)"):
        product_game_semivalues(np.zeros((1, 3)), np.zeros(2))
    with pytest.raises(ValueError, match=r"got n = 0"):
        product_game_semivalues(np.zeros((1, 0)), np.zeros(0))
