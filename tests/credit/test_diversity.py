import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import closed_oracles, oracles
from credit.batches import ENUMERATED, WORKED, anything, grid
from creditd.credit.diversity import (
    DiversityGames,
    MaxMinusSimilarity,
    MeanPairwiseDiversity,
    QualityNovelty,
    Redundancy,
)

UTILITIES = {
    "redundancy": (Redundancy(penalty=0.7, empty=0.25), closed_oracles.redundancy_game),
    "max_minus_similarity": (MaxMinusSimilarity(penalty=0.7, empty=0.25), closed_oracles.max_minus_similarity_game),
    "mean_pairwise_diversity": (MeanPairwiseDiversity(empty=0.25, single=-0.5), closed_oracles.mean_pairwise_game),
    "quality_novelty": (QualityNovelty(penalty=0.7, empty=0.25), closed_oracles.quality_novelty_game),
}
names = st.sampled_from(sorted(UTILITIES))
unit = st.one_of(st.integers(-8, 8).map(lambda v: v / 8), st.floats(-1.0, 1.0, allow_subnormal=False))


def sets(similarity=unit, max_players=7):
    """Rewards beside the similarities of all pairs, in the order of `itertools.combinations`."""
    return st.integers(1, max_players).flatmap(
        lambda n: st.tuples(
            st.lists(st.one_of(grid, anything), min_size=n, max_size=n),
            st.lists(similarity, min_size=n * (n - 1) // 2, max_size=n * (n - 1) // 2),
        )
    )


def symmetric(n, pairs):
    """The matrix of pairs; its diagonal is no number."""
    matrix = np.full((n, n), np.nan)
    for (i, j), value in zip(itertools.combinations(range(n), 2), pairs, strict=True):
        matrix[i, j] = matrix[j, i] = value
    return matrix


def of_one_set(rewards, matrix, utility):
    """A batch of one game."""
    return DiversityGames(similarities=np.array([matrix]), rewards=np.array([rewards]), utility=utility)


def game_of(rewards, matrix, utility):
    """The same game, by its definition."""
    definition = UTILITIES[utility.type][1]
    if utility.type == "mean_pairwise_diversity":
        return definition(matrix.tolist(), single=utility.single, empty=utility.empty)
    return definition(matrix.tolist(), rewards, penalty=utility.penalty, empty=utility.empty)


def agrees(games, game):
    """Whether v(∅), v(N), a bound of all v, and four semivalues are those of the game, by enumeration."""
    n = games.n_players
    allowed = ENUMERATED * oracles.scale_of(game)
    close = [games.empty()[0] == game[0], abs(games.grand()[0] - game[-1]) <= allowed]
    close.append(max(map(abs, game)) <= games.scale()[0] * (1.0 + ENUMERATED))
    ends = [[1.0] + [0.0] * (n - 1), [0.0] * (n - 1) + [1.0]]
    for w in ([1.0 / (s + 1) for s in range(n)], [1.0 - 0.375 * s for s in range(n)], *ends):
        got = games.semivalues(np.array(w) * np.arange(1, n + 1) / n)
        close.append(got.shape == (1, n))
        close.append(np.abs(got[0] - oracles.semivalue_by_subsets(game, n, w)).max() <= allowed)
    return all(close)


def at(name, penalty, empty, single):
    """A utility with other parameters."""
    utility = UTILITIES[name][0]
    if name == "mean_pairwise_diversity":
        return replace(utility, empty=empty, single=single)
    return replace(utility, penalty=penalty, empty=empty)


@given(sets(), names, st.floats(-2, 2), st.floats(-4, 4), st.floats(-4, 4))
def test_credit_equals_the_mean_over_all_coalitions(one, name, penalty, empty, single):
    """Every utility of any rewards, similarities of both signs, penalty and v(∅) is its definition, by enumeration."""
    rewards, pairs = one
    matrix = symmetric(len(rewards), pairs)
    utility = at(name, penalty, empty, single)
    assert agrees(of_one_set(rewards, matrix, utility), game_of(rewards, matrix, utility))


@pytest.mark.parametrize("name", sorted(UTILITIES))
@pytest.mark.parametrize("n", [1, 2, 3, 8, 9])
def test_sets_of_every_size_equal_the_mean_over_all_coalitions(name, n):
    """One, two, three, eight and nine candidates with ties, negatives and v(∅) ≠ 0."""
    random = np.random.default_rng(n)
    rewards = random.normal(size=n).round(1).tolist()
    matrix = symmetric(n, random.uniform(-0.5, 1.0, size=n * (n - 1) // 2).round(1))
    utility = UTILITIES[name][0]
    assert agrees(of_one_set(rewards, matrix, utility), game_of(rewards, matrix, utility))


@pytest.mark.parametrize("n", [64, 200])
def test_large_sets_equal_the_closed_forms(n):
    """64 and 200 candidates agree with the Shapley values summed exactly, and credit closes."""
    random = np.random.default_rng(n)
    rewards = random.normal(size=n).tolist()
    matrix = symmetric(n, random.uniform(-0.2, 1.0, size=n * (n - 1) // 2))
    rows = [math.fsum(matrix[i, j] for j in range(n) if j != i) for i in range(n)]
    plain = matrix.tolist()
    expected = {
        "redundancy": [r - 0.7 * row / 2 - 0.25 / n for r, row in zip(rewards, rows, strict=True)],
        "max_minus_similarity": [
            credit - 0.7 * row / 2 for credit, row in zip(oracles.airport(rewards, 0.25), rows, strict=True)
        ],
        "mean_pairwise_diversity": closed_oracles.shapley_of_mean_pairwise(plain, empty=0.25),
        "quality_novelty": closed_oracles.shapley_of_quality_novelty(plain, rewards, penalty=0.7, empty=0.25),
    }
    for name, (utility, _) in UTILITIES.items():
        games = of_one_set(rewards, matrix, utility)
        values = games.semivalues(np.full(n, 1.0 / n))[0]
        scale = games.scale()[0]
        assert np.abs(values - expected[name]).max() <= ENUMERATED * max(map(abs, rewards))
        assert abs(math.fsum(values) - (games.grand()[0] - games.empty()[0])) <= ENUMERATED * scale


@pytest.mark.parametrize("name", sorted(UTILITIES))
@pytest.mark.parametrize("n", [64, 200])
def test_large_sets_have_their_ends(name, n):
    """Own reward is v({i}) − v(∅) and leave-one-out v(N) − v(N∖i), evaluated on the smaller games."""
    random = np.random.default_rng(n + 1)
    games = of_one_set(random.normal(size=n), symmetric(n, random.uniform(size=n * (n - 1) // 2)), UTILITIES[name][0])
    own, last = np.zeros(n), np.zeros(n)
    own[0] = last[-1] = 1.0
    singles = [games.restricted(np.array([i])).grand()[0] - games.empty()[0] for i in range(n)]
    without = [games.grand()[0] - games.restricted(np.delete(np.arange(n), i)).grand()[0] for i in range(n)]
    scale = games.scale()[0]
    assert np.abs(games.semivalues(own)[0] - singles).max() <= ENUMERATED * scale
    assert np.abs(games.semivalues(last)[0] - without).max() <= ENUMERATED * scale


@given(sets(st.integers(-2, 2).map(lambda v: v / 10)), names, st.randoms(use_true_random=False))
def test_relabelling_changes_no_bit(one, name, random):
    """Permuting the candidates permutes their credit, and leaves v(N) and the scale, to the last bit."""
    rewards, pairs = np.array(one[0]), one[1]
    n = len(rewards)
    matrix, utility = symmetric(n, pairs), UTILITIES[name][0]
    order = list(range(n))
    random.shuffle(order)
    before = of_one_set(rewards, matrix, utility)
    after = of_one_set(rewards[order], matrix[np.ix_(order, order)], utility)
    for q in (np.full(n, 1.0 / n), np.array([0.3 - 0.1 * s for s in range(n)])):
        assert before.semivalues(q)[0, order].tobytes() == after.semivalues(q)[0].tobytes()
    assert before.grand().tobytes() == after.grand().tobytes()
    assert before.scale().tobytes() == after.scale().tobytes()


@given(sets(max_players=5), names, st.integers(2, 3), st.floats(-1, 1))
def test_equal_candidates_have_equal_bits(one, name, copies, likeness):
    """Copies of the first candidate, alike to one another, have one credit to the last bit."""
    rewards, pairs = one
    n = len(rewards)
    matrix = symmetric(n, pairs)
    source = [*([0] * copies), *range(1, n)]
    wider = matrix[np.ix_(source, source)]
    wider[:copies, :copies] = likeness
    games = of_one_set([rewards[i] for i in source], wider, UTILITIES[name][0])
    size = len(source)
    for q in (np.full(size, 1.0 / size), np.array([0.3 - 0.1 * s for s in range(size)])):
        credit = games.semivalues(q)[0]
        assert len({credit[i].tobytes() for i in range(copies)}) == 1


def test_zeros_of_either_sign_have_equal_bits():
    """−0.0 and 0.0 are equal rewards and equal similarities, so credits and v(N) are equal to the bit."""
    for utility, _ in UTILITIES.values():
        for rewards, value in (([-0.0, 0.0], -0.0), ([0.0, -0.0], 0.0)):
            games = of_one_set(rewards, symmetric(2, [value]), replace(utility, empty=0.0))
            for q in ([0.5, 0.5], [-0.5, 1.5]):
                credit = games.semivalues(np.array(q))[0]
                assert credit[0].tobytes() == credit[1].tobytes()
            assert not np.signbit(games.grand() * (games.grand() == 0.0)).any()


@given(st.integers(2, 6), st.integers(1, 6), names, st.integers(0, 99))
def test_a_set_does_not_know_its_batch(n_sets, n, name, seed):
    """Alone, in company and in another memory order a set has the same bits, and its v(N) and scale too."""
    random = np.random.default_rng(seed)
    rewards, q = random.normal(size=(n_sets, n)), random.normal(size=n)
    matrices = np.stack([symmetric(n, random.normal(size=n * (n - 1) // 2)) for _ in range(n_sets)])
    utility = UTILITIES[name][0]
    together = DiversityGames(np.asfortranarray(matrices), np.asfortranarray(rewards), utility)
    alone = [DiversityGames(matrices[b : b + 1], rewards[b : b + 1], utility) for b in range(n_sets)]
    assert together.semivalues(q).tobytes() == b"".join(row.semivalues(q).tobytes() for row in alone)
    for method in ("empty", "grand", "scale"):
        assert getattr(together, method)().tobytes() == b"".join(getattr(row, method)().tobytes() for row in alone)


@given(sets(), names, st.data())
def test_the_game_among_some_players_is_the_smaller_game(one, name, data):
    """Restricting names the players in any order, or nobody, who has v(∅)."""
    rewards, pairs = np.array(one[0]), one[1]
    n, utility = len(rewards), UTILITIES[name][0]
    matrix = symmetric(n, pairs)
    chosen = data.draw(st.permutations(range(n)))[: data.draw(st.integers(0, n))]
    games = of_one_set(rewards, matrix, utility).restricted(np.array(chosen, dtype=np.int64))
    assert games.n_players == len(chosen)
    game = game_of(rewards[chosen].tolist(), matrix[np.ix_(chosen, chosen)], utility)
    assert abs(games.grand()[0] - game[-1]) <= ENUMERATED * oracles.scale_of(game)
    assert games.scale()[0] * (1.0 + ENUMERATED) >= max(map(abs, game))
    assert not chosen or agrees(games, game)


def test_diversity_does_not_read_the_rewards():
    """Mean pairwise diversity is the same beside rewards that are no numbers."""
    matrix = symmetric(3, [0.1, 0.5, 0.9])
    games = of_one_set([math.nan] * 3, matrix, MeanPairwiseDiversity())
    assert games.grand()[0] == pytest.approx(0.5, abs=WORKED)
    assert games.scale()[0] == pytest.approx(0.9, abs=WORKED)
    assert math.fsum(games.semivalues(np.full(3, 1 / 3))[0]) == pytest.approx(0.5, abs=WORKED)


def test_worked_values():
    """Two candidates that are alike by ½, and a third that is like nobody, under λ = 1."""
    matrix, rewards, shapley = symmetric(3, [0.5, 0.0, 0.0]), [1.0, 0.6, 0.2], np.full(3, 1 / 3)

    def credit(utility):
        return of_one_set(rewards, matrix, utility).semivalues(shapley)[0]

    assert credit(Redundancy(penalty=1.0)) == pytest.approx([0.75, 0.35, 0.2], abs=WORKED)
    best = oracles.airport(rewards)
    expected = [best[0] - 0.25, best[1] - 0.25, best[2]]
    assert credit(MaxMinusSimilarity(penalty=1.0)) == pytest.approx(expected, abs=WORKED)
    assert credit(QualityNovelty(penalty=1.0)) == pytest.approx([0.5, 0.1, 0.2], abs=WORKED)
    assert credit(MeanPairwiseDiversity()) == pytest.approx([7 / 36, 7 / 36, 4 / 9], abs=WORKED)


def test_magnitudes_up_to_the_limit_stay_finite():
    """Rewards and similarities of 1e100 give finite credit."""
    for utility, _ in UTILITIES.values():
        games = of_one_set([1e100, -1e100, 1e100], symmetric(3, [1e100, -1e100, 1e100]), utility)
        for value in (games.semivalues(np.full(3, 1 / 3)), games.grand(), games.scale()):
            assert np.isfinite(value).all()


@pytest.mark.parametrize("name", sorted(UTILITIES))
@pytest.mark.parametrize("n", [1, 2, 4])
def test_no_sets_have_no_credit(name, n):
    """An empty batch gives empty answers of the right shapes."""
    games = DiversityGames(np.zeros((0, n, n)), np.zeros((0, n)), UTILITIES[name][0])
    assert games.semivalues(np.full(n, 1.0 / n)).shape == (0, n)
    assert games.empty().shape == games.grand().shape == games.scale().shape == (0,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiversityGames(np.zeros((1, 2, 3)), np.zeros((1, 2)), MeanPairwiseDiversity()), "needs a similarity"),
        (lambda: DiversityGames(np.zeros((2, 2)), np.zeros(2), MeanPairwiseDiversity()), "needs a similarity"),
        (
            lambda: of_one_set([1.0], [[0.0]], Redundancy(penalty=1.0)).semivalues(np.ones(2)),
            "one entry per coalition size",
        ),
        (
            lambda: of_one_set([], np.zeros((0, 0)), Redundancy(penalty=1.0)).semivalues(np.ones(0)),
            "expected n ≥ 1",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(make, message):
    """Similarities of other candidates, weights of other sizes and a set without players are errors."""
    with pytest.raises(ValueError, match=message):
        make()
