import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import closed_oracles, oracles
from credit.batches import ENUMERATED, WORKED, anything, grid
from creditd.credit.coverage import BLOCK_SIZE, Coverage, CoverageGames, FacilityLocation, FacilityLocationGames

MAX_TOPICS = 5
weights_of_topics = st.one_of(grid, anything)


def matrices(entries, max_players=7, min_topics=0):
    """Rows of players and columns of topics."""
    return st.tuples(st.integers(1, max_players), st.integers(min_topics, MAX_TOPICS)).flatmap(
        lambda shape: st.lists(
            st.lists(entries, min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
        )
    )


def coverage(covers, topic_weights, utility):
    """A batch of one game of topics."""
    shape = (1, len(covers), len(topic_weights))
    return CoverageGames(
        covers=np.array(covers, dtype=np.bool_).reshape(shape),
        topic_weights=np.array([topic_weights], dtype=np.float64).reshape(1, len(topic_weights)),
        utility=utility,
    )


def facility(scores, utility):
    """A batch of one game of targets."""
    return FacilityLocationGames(scores=np.array([scores], dtype=np.float64), utility=utility)


def agrees(games, game):
    """Whether v(∅), v(N), a bound of all v, and four semivalues are those of the game, by enumeration."""
    n = games.n_players
    allowed = ENUMERATED * oracles.scale_of(game)
    close = [games.empty()[0] == game[0], abs(games.grand()[0] - game[-1]) <= allowed]
    ends = [[1.0] + [0.0] * (n - 1), [0.0] * (n - 1) + [1.0]]
    for w in ([1.0 / (s + 1) for s in range(n)], [1.0 - 0.375 * s for s in range(n)], *ends):
        got = games.semivalues(np.array(w) * np.arange(1, n + 1) / n)
        close.append(got.shape == (1, n))
        close.append(np.abs(got[0] - oracles.semivalue_by_subsets(game, n, w)).max() <= allowed)
    return all(close)


@given(matrices(st.booleans()), st.lists(weights_of_topics, min_size=MAX_TOPICS), st.integers(1, 4), st.floats(-4, 4))
def test_coverage_equals_the_mean_over_all_coalitions(covers, weights, count, empty):
    """Coverage of any topics, weights, count and v(∅) is its definition, by enumeration."""
    weights = weights[: len(covers[0])]
    game = closed_oracles.coverage_game(covers, weights, count=count, empty=empty)
    assert agrees(coverage(covers, weights, Coverage(count=count, empty=empty)), game)


@given(
    matrices(st.one_of(grid, anything)),
    st.lists(weights_of_topics, min_size=MAX_TOPICS),
    st.booleans(),
    st.one_of(st.none(), st.floats(-4, 4)),
    st.floats(-4, 4),
)
def test_facility_location_equals_the_mean_over_all_coalitions(scores, weights, plain, empty, unserved):
    """Facility location of any scores, weights and v(∅), given or of unserved targets, by enumeration."""
    weights = [1.0] * len(scores[0]) if plain else weights[: len(scores[0])]
    unserved = unserved if empty is None else 0.0
    utility = FacilityLocation(weights=None if plain else tuple(weights), unserved=unserved, empty=empty)
    nothing = math.fsum(w * unserved for w in weights) if empty is None else empty
    games = facility(scores, utility)
    assert games.empty()[0] == pytest.approx(nothing, rel=ENUMERATED, abs=ENUMERATED)
    assert agrees(games, closed_oracles.facility_game(scores, weights, empty=float(games.empty()[0])))


@pytest.mark.parametrize("n", [8, 9])
def test_eight_and_nine_players_equal_the_mean_over_all_coalitions(n):
    """Larger sets with ties, negative weights and v(∅) ≠ 0."""
    random = np.random.default_rng(n)
    covers = (random.random((n, 6)) < 0.4).tolist()
    weights = random.normal(size=6).round(1).tolist()
    for count in (1, 2, 3):
        game = closed_oracles.coverage_game(covers, weights, count=count, empty=0.75)
        assert agrees(coverage(covers, weights, Coverage(count=count, empty=0.75)), game)
    scores = random.normal(size=(n, 6)).round(1).tolist()
    utility = FacilityLocation(weights=tuple(weights), empty=-0.5)
    assert agrees(facility(scores, utility), closed_oracles.facility_game(scores, weights, empty=-0.5))


@pytest.mark.parametrize("n", [64, 200])
def test_large_sets_equal_the_closed_forms(n):
    """64 and 200 candidates share topics evenly and targets as airports, and credit closes."""
    random = np.random.default_rng(n)
    covers, weights = random.random((n, 40)) < 0.05, random.normal(size=40)
    shapley = np.full(n, 1.0 / n)
    for count in (1, 5):
        games = coverage(covers.tolist(), weights.tolist(), Coverage(count=count, empty=0.5))
        expected = closed_oracles.shapley_by_topic(covers.tolist(), weights.tolist(), count, 0.5)
        assert np.abs(games.semivalues(shapley)[0] - expected).max() <= ENUMERATED * games.scale()[0]
    scores = random.normal(size=(n, 40))
    games = facility(scores.tolist(), FacilityLocation(weights=tuple(weights.tolist()), unserved=0.25))
    of_targets = [oracles.airport(scores[:, t].tolist(), 0.25) for t in range(40)]
    expected = [math.fsum(w * each[i] for w, each in zip(weights, of_targets, strict=True)) for i in range(n)]
    values = games.semivalues(shapley)[0]
    assert np.abs(values - expected).max() <= ENUMERATED * games.scale()[0]
    assert abs(math.fsum(values) - (games.grand()[0] - games.empty()[0])) <= ENUMERATED * games.scale()[0]


@given(matrices(st.integers(-3, 3), min_topics=1), st.randoms(use_true_random=False))
def test_relabelling_changes_no_bit_and_equals_have_equal_bits(rows, random):
    """Permuting the candidates permutes their credit, and candidates that are alike have one credit."""
    n = len(rows)
    order = list(range(n))
    random.shuffle(order)
    shuffled = [rows[i] for i in order]
    topic_weights = [0.1 + t / 7 for t in range(len(rows[0]))]
    utility = FacilityLocation(weights=tuple(topic_weights), unserved=0.3)
    q = np.array([0.3 - 0.1 * s for s in range(n)])
    scored = [facility([[0.1 * x for x in row] for row in each], utility) for each in (rows, shuffled)]
    covering = [
        coverage([[x > 0 for x in row] for row in each], topic_weights, Coverage(count=2, empty=0.1))
        for each in (rows, shuffled)
    ]
    for before, after in (scored, covering):
        values = before.semivalues(q)[0]
        assert values[order].tobytes() == after.semivalues(q)[0].tobytes()
        assert before.grand().tobytes() == after.grand().tobytes()
        assert before.scale().tobytes() == after.scale().tobytes()
        for i, j in itertools.combinations(range(n), 2):
            assert rows[i] != rows[j] or values[i].tobytes() == values[j].tobytes()


@given(st.integers(2, 6), st.integers(1, 6), st.integers(2, 5), st.integers(0, 99))
def test_a_set_does_not_know_its_batch(n_sets, n, n_topics, seed):
    """Alone, in company and in another memory order a set has the same bits, and its v(N) too."""
    random = np.random.default_rng(seed)
    q = random.normal(size=n)
    covers, weights = random.random((n_sets, n, n_topics)) < 0.5, random.normal(size=(n_sets, n_topics))
    scores = random.normal(size=(n_sets, n, n_topics))
    together = CoverageGames(np.asfortranarray(covers), weights, Coverage(empty=0.2))
    alone = [CoverageGames(covers[b : b + 1], weights[b : b + 1], Coverage(empty=0.2)) for b in range(n_sets)]
    utility = FacilityLocation(weights=tuple(random.normal(size=n_topics)), unserved=0.2)
    served = FacilityLocationGames(np.asfortranarray(scores), utility)
    served_alone = [FacilityLocationGames(scores[b : b + 1], utility) for b in range(n_sets)]
    for games, rows in ((together, alone), (served, served_alone)):
        assert games.semivalues(q).tobytes() == b"".join(row.semivalues(q).tobytes() for row in rows)
        assert games.grand().tobytes() == b"".join(row.grand().tobytes() for row in rows)
        assert games.empty().tobytes() == b"".join(row.empty().tobytes() for row in rows)


def test_many_targets_are_solved_in_blocks():
    """More scores than are solved together change no bit of a set."""
    scores = np.random.default_rng(3).normal(size=(BLOCK_SIZE // 32, 4, 11))
    games = FacilityLocationGames(scores, FacilityLocation())
    assert scores.size > BLOCK_SIZE
    alone = FacilityLocationGames(scores[-2:], FacilityLocation())
    assert games.semivalues(np.full(4, 0.25))[-2:].tobytes() == alone.semivalues(np.full(4, 0.25)).tobytes()


@given(matrices(st.booleans(), min_topics=1), st.lists(weights_of_topics, min_size=MAX_TOPICS), st.integers(0, 5))
def test_a_topic_that_pads_changes_no_bit(covers, weights, place):
    """A topic of weight 0 without coverers leaves every bit as it was, wherever it stands."""
    weights = weights[: len(covers[0])]
    place = min(place, len(weights))
    padded = [[*row[:place], False, *row[place:]] for row in covers]
    games = coverage(covers, weights, Coverage(empty=0.1))
    wider = coverage(padded, [*weights[:place], 0.0, *weights[place:]], Coverage(empty=0.1))
    q = np.array([0.4 - 0.3 * s for s in range(len(covers))])
    assert games.semivalues(q).tobytes() == wider.semivalues(q).tobytes()
    assert games.grand().tobytes() == wider.grand().tobytes()
    assert games.scale().tobytes() == wider.scale().tobytes()


@given(matrices(st.integers(-3, 3), min_topics=1), st.data())
def test_the_game_among_some_players_is_the_smaller_game(rows, data):
    """Restricting names the players in any order, or nobody, who has v(∅)."""
    chosen = data.draw(st.permutations(range(len(rows))))[: data.draw(st.integers(0, len(rows)))]
    players = np.array(chosen, dtype=np.int64)
    smaller = [rows[i] for i in chosen]
    weights = [0.5 + t for t in range(len(rows[0]))]
    utility = FacilityLocation(weights=tuple(weights), unserved=0.25)
    scored = facility(rows, utility).restricted(players)
    assert scored.grand().tolist() == [
        closed_oracles.facility_game(smaller, weights, empty=0.25 * math.fsum(weights))[-1]
    ]
    covers = [[x > 0 for x in row] for row in rows]
    covering = coverage(covers, weights, Coverage(empty=0.125)).restricted(players)
    game = closed_oracles.coverage_game([covers[i] for i in chosen], weights, empty=0.125)
    assert covering.grand().tolist() == [game[-1]]
    for games in (scored, covering):
        assert games.n_players == len(chosen)
        assert games.scale()[0] >= abs(games.grand()[0])
    assert not chosen or agrees(covering, game)


def test_worked_values():
    """A topic shared by two, one that needs both, and a target served by the better."""
    covers, weights = [[True, False], [True, True], [False, False]], [0.6, 0.4]
    shapley = np.full(3, 1 / 3)
    assert coverage(covers, weights, Coverage()).semivalues(shapley)[0] == pytest.approx([0.3, 0.7, 0.0], abs=WORKED)
    twice = coverage(covers, weights, Coverage(count=2)).semivalues(shapley)[0]
    assert twice == pytest.approx([0.3, 0.3, 0.0], abs=WORKED)
    games = facility([[0.9, 0.0], [0.5, 1.0]], FacilityLocation(weights=(1.0, 2.0)))
    assert games.semivalues(np.full(2, 0.5))[0] == pytest.approx([0.65, 2.25], abs=WORKED)


def test_magnitudes_up_to_the_limit_stay_finite():
    """Scores and weights of topics of 1e100 give finite credit."""
    shapley = np.full(3, 1 / 3)
    games = facility([[1e100, -1e100], [0.0, 1e100], [1e100, 1e100]], FacilityLocation(weights=(1e100, -1e100)))
    assert np.isfinite(games.semivalues(shapley)).all()
    assert np.isfinite(games.scale()).all()
    covering = coverage([[True, True], [True, False], [False, True]], [1e100, -1e100], Coverage())
    assert np.isfinite(covering.semivalues(shapley)).all()


def test_no_sets_and_no_topics_have_no_credit():
    """An empty batch gives an empty answer, and a set without topics only loses v(∅)."""
    none = CoverageGames(np.zeros((0, 3, 2), dtype=np.bool_), np.zeros((0, 2)), Coverage())
    assert none.semivalues(np.full(3, 1 / 3)).shape == (0, 3)
    assert none.grand().shape == none.scale().shape == (0,)
    nobody = FacilityLocationGames(np.zeros((0, 3, 2)), FacilityLocation())
    assert nobody.semivalues(np.full(3, 1 / 3)).shape == (0, 3)
    assert nobody.grand().shape == nobody.scale().shape == (0,)
    without = CoverageGames(np.zeros((1, 2, 0), dtype=np.bool_), np.zeros((1, 0)), Coverage(empty=0.5))
    assert without.semivalues(np.full(2, 0.5)).tolist() == [[-0.25, -0.25]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Coverage(count=0), "got count = 0, expected count ≥ 1"),
        (lambda: FacilityLocation(unserved=0.5, empty=0.25), "both define"),
        (lambda: facility([[1.0, 2.0]], FacilityLocation(weights=(1.0,))), "got 1 weights, expected 2"),
        (lambda: FacilityLocationGames(np.zeros((2, 3)), FacilityLocation()), "expected \\(B, n, T\\)"),
        (lambda: CoverageGames(np.zeros((2, 3, 4), dtype=np.bool_), np.zeros((2, 3)), Coverage()), "one weight"),
        (lambda: facility([[1.0], [2.0]], FacilityLocation()).semivalues(np.ones(3)), "one entry per coalition size"),
        (lambda: coverage([[True]], [1.0], Coverage()).semivalues(np.ones(3)), "one entry per coalition size"),
        (lambda: facility(np.zeros((0, 2)).tolist(), FacilityLocation()), "expected \\(B, n, T\\)"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    """Contradicting parameters, arrays of other shapes and weights of other sizes are errors."""
    with pytest.raises(ValueError, match=message):
        make()
