import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import estimator_oracles as oracles
from credit.batches import EXACT
from creditd.credit import proxies

strengths_of = st.integers(3, 7).flatmap(
    lambda n: st.lists(st.integers(-3, 3).map(float), min_size=n, max_size=n).map(np.array)
)


def coalitions_of(n):
    """All coalitions as rows, and as sets."""
    sets = oracles.every_subset(n)
    return np.array([[i in s for i in range(n)] for s in sets]), sets


def descending(strengths):
    """Players from the strongest; ties by number."""
    return sorted(range(len(strengths)), key=lambda i: (-strengths[i], i))


def check(columns, games, n):
    """Differences and Shapley values equal those of games given as functions."""
    _, sets = coalitions_of(n)
    differences, values = columns
    everyone = frozenset(range(n))
    assert differences.shape == (len(sets), len(games))
    assert values.shape == (n, len(games))
    for column, utility in enumerate(games):
        game = oracles.game_of(utility, n)
        expected = [game[s] - game[everyone - s] for s in sets]
        scale = max(map(abs, game.values())) or 1.0
        assert np.abs(differences[:, column] - expected).max() <= EXACT * scale
        assert np.abs(values[:, column] - oracles.shapley(game, n)).max() <= EXACT * scale


@pytest.mark.parametrize("n", [3, 4, 6])
def test_indicators_are_additive_games(n):
    """1[i ∈ S] pays player i alone."""
    check(proxies.indicator_columns(coalitions_of(n)[0]), [lambda s, i=i: float(i in s) for i in range(n)], n)


@pytest.mark.parametrize("n", [3, 4, 6])
def test_shares_are_means(n):
    """1[i ∈ S]/|S|; the pair of ∅ and N is not in a design, so the sizes run from 1 to n − 1."""
    rows, sets = coalitions_of(n)
    inner = (rows.any(axis=1)) & (~rows.all(axis=1))
    differences, values = proxies.share_columns(rows[inner])
    for i in range(n):
        game = oracles.game_of(lambda s, i=i: (i in s) / max(len(s), 1), n)
        expected = [game[s] - game[frozenset(range(n)) - s] for s, keep in zip(sets, inner, strict=True) if keep]
        assert differences[:, i] == pytest.approx(expected, abs=EXACT)
        assert values[:, i] == pytest.approx(oracles.shapley(game, n), abs=EXACT)


@given(strengths_of)
def test_any_of_the_strongest(strengths):
    """1[S meets the m strongest players] is shared by the m."""
    n = len(strengths)
    order = descending(strengths)
    games = [lambda s, top=frozenset(order[:m]): float(bool(s & top)) for m in range(1, n)]
    check(proxies.any_columns(coalitions_of(n)[0], strengths), games, n)


@given(strengths_of)
def test_all_of_the_strongest(strengths):
    """1[S holds the m strongest players] is shared by the m."""
    n = len(strengths)
    order = descending(strengths)
    games = [lambda s, top=frozenset(order[:m]): float(s >= top) for m in range(1, n)]
    check(proxies.all_columns(coalitions_of(n)[0], strengths), games, n)


@given(strengths_of)
def test_the_maximum_above_the_weakest(strengths):
    """The maximum column is max(S) less the weakest strength, in units of the range, and 0 without a range."""
    n = len(strengths)
    rows, _ = coalitions_of(n)
    low, span = min(strengths), max(strengths) - min(strengths)
    column = proxies.maximum_column(proxies.any_columns(rows, strengths), strengths)
    check(column, [lambda s: (max((strengths[i] for i in s), default=low) - low) / (span or 1.0)], n)


def odd_of(s, team):
    """Product of the signs of three players."""
    return float(np.prod([1.0 if i in s else -1.0 for i in team]))


@pytest.mark.parametrize("n", [3, 4, 6])
def test_triples_are_products_of_signs(n):
    """Few players: one column per triple, in lexicographic order."""
    games = [lambda s, team=team: odd_of(s, team) for team in itertools.combinations(range(n), 3)]
    check(proxies.triple_columns(coalitions_of(n)[0]), games, n)


def assert_mixtures(columns, triples, rows, known):
    """The columns are mixtures of triples, in their differences over all rows and in their Shapley values.

    The mixture is read off the first `known` rows, of which there are fewer than triples: the one of least length.
    """
    differences, values = columns
    every, shares = triples
    kernel = every[:known] @ every[:known].T
    mixture = every[:known].T @ np.linalg.lstsq(kernel, differences[:known], rcond=None)[0]
    assert every[:rows] @ mixture == pytest.approx(differences, abs=1e-6)
    assert shares @ mixture == pytest.approx(values, abs=1e-6)


def test_directions_of_triples_carry_their_shapley_values():
    """Leading directions are mixtures of triples and have the Shapley values of these mixtures."""
    rows, _ = coalitions_of(6)
    few = proxies.triple_columns(rows, most=19)
    assert few[0].shape[1] == 19
    assert_mixtures(few, proxies.triple_columns(rows), len(rows), len(rows))


@pytest.mark.parametrize("landmarks", [400, 350])
def test_directions_are_continued_beyond_the_landmarks(landmarks):
    """Directions found on the first pairs are the same games on the others."""
    small = np.random.default_rng(0).uniform(size=(400, 16)) < 0.4
    columns = proxies.triple_columns(small, n_landmarks=landmarks)
    assert columns[0].shape[1] == proxies.MAX_TRIPLES
    assert_mixtures(columns, proxies.triple_columns(small, most=560), 400, landmarks)
