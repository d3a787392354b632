import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import smooth_oracles
from creditd.credit.votes import TIES, Plurality, PluralityGames, plurality_semivalues

EXACT = 1e-12
"""Kernel against enumeration, as a share of the scale of the game."""

grid = st.integers(-8, 8).map(lambda v: v / 4)
anything = st.floats(-1e3, 1e3, allow_nan=False, allow_subnormal=False)
utilities = st.builds(Plurality, ties=st.sampled_from(TIES), empty=st.sampled_from([0.0, -0.75, 2.5]))


@st.composite
def votes(draw, max_players=7, n_players=None):
    """Labels and rewards of one set."""
    n = draw(st.integers(1, max_players)) if n_players is None else n_players
    labels = draw(st.lists(st.integers(-2, 3), min_size=n, max_size=n))
    of_label = {label: draw(st.one_of(grid, anything)) for label in sorted(set(labels))}
    return np.array(labels, dtype=np.int64), np.array([of_label[label] for label in labels])


def size_weights(n):
    """Shapley, leave-one-out, own reward, and a sum of the three."""
    first, last = np.zeros(n), np.zeros(n)
    first[0], last[-1] = 1.0 / n, 1.0
    shapley = np.full(n, 1.0 / n)
    return [shapley, last, first, 0.5 * shapley - 2.0 * last + 3.0 * first]


def assert_exact(labels, rewards, utility):
    """Every rule agrees with the enumeration of coalitions, and so do v(∅), v(N) and the scale."""
    n = len(labels)
    definition = smooth_oracles.plurality(labels.tolist(), rewards.tolist(), ties=utility.ties, empty=utility.empty)
    values = smooth_oracles.game_of_players(n, definition)
    games = PluralityGames(np.stack([labels, labels[::-1]]), np.stack([rewards, rewards[::-1]]), utility)
    scale = max(map(abs, [*rewards.tolist(), utility.empty]))
    assert games.scale().tolist() == [scale] * 2
    assert games.empty().tolist() == [utility.empty] * 2
    assert np.abs(games.grand() - values[-1]).max() <= EXACT * scale
    for q in size_weights(n):
        expected = smooth_oracles.semivalue(values, n, q)
        assert np.abs(games.semivalues(q)[0] - expected).max() <= EXACT * scale * max(1.0, np.abs(q).sum())


@given(votes(), utilities)
def test_semivalues_equal_the_mean_over_all_coalitions(case, utility):
    """Every rule on every set of votes agrees with the enumeration of coalitions."""
    assert_exact(*case, utility)


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("n", [1, 2, 8, 9])
@pytest.mark.parametrize("n_answers", [1, 2, 3, 9])
def test_eight_and_nine_players_equal_the_enumeration(n, n_answers, ties):
    """Sets of one, two, eight and nine candidates, from one answer to an answer each."""
    labels = np.arange(n) % n_answers
    rewards = np.random.default_rng(n).normal(size=9)[labels]
    assert_exact(labels, rewards, Plurality(ties=ties, empty=0.3))


@given(votes(max_players=14), utilities, st.randoms(use_true_random=False))
def test_relabelling_changes_no_bit(case, utility, random):
    """Permuting the candidates permutes their credits, and leaves v(N), to the last bit."""
    labels, rewards = case
    order = list(range(len(labels)))
    random.shuffle(order)
    before = PluralityGames(labels[None], rewards[None], utility)
    after = PluralityGames(labels[None, order], rewards[None, order], utility)
    for q in size_weights(len(labels)):
        assert before.semivalues(q)[0][order].tobytes() == after.semivalues(q)[0].tobytes()
    assert before.grand().tobytes() == after.grand().tobytes()


@given(votes(max_players=10), utilities)
def test_names_of_answers_change_no_bit(case, utility):
    """Other numbers for the same answers give the same credits to the last bit."""
    labels, rewards = case
    named = np.array([-(2**62), 17, 2**62, 5, 4, 3])[labels + 2]
    for q in size_weights(len(labels)):
        values = [PluralityGames(each[None], rewards[None], utility).semivalues(q) for each in (labels, named)]
        assert values[0].tobytes() == values[1].tobytes()


@given(votes(max_players=10), utilities)
def test_equal_candidates_have_equal_bits(case, utility):
    """Candidates of one answer have one credit, and so have answers of equal size and reward."""
    labels, rewards = case
    both = np.concatenate([labels, labels + 10])[None]
    twice = np.concatenate([rewards, rewards])[None]
    for q in size_weights(len(twice[0])):
        values = PluralityGames(both, twice, utility).semivalues(q)[0]
        for label in set(labels.tolist()):
            assert len({v.tobytes() for v in values[both[0] % 10 == label % 10]}) == 1


@given(st.lists(votes(n_players=6), min_size=2, max_size=9), utilities)
def test_a_row_does_not_know_its_batch(cases, utility):
    """A set alone and among sets with other numbers of answers has the same credit to the last bit."""
    labels, rewards = (np.stack(each) for each in zip(*cases, strict=True))
    together = PluralityGames(labels, rewards, utility)
    alone = [PluralityGames(labels[i : i + 1], rewards[i : i + 1], utility) for i in range(len(labels))]
    assert together.grand().tobytes() == b"".join(games.grand().tobytes() for games in alone)
    for q in size_weights(6):
        assert together.semivalues(q).tobytes() == b"".join(games.semivalues(q).tobytes() for games in alone)


@pytest.mark.parametrize("n", [24, 40])
def test_a_row_does_not_know_a_large_batch(n):
    """Batches beyond the size of a chunk give the bits of their parts."""
    random = np.random.default_rng(n)
    labels = random.integers(0, 5, size=(900, n))
    rewards = random.normal(size=(900, 5))[np.arange(900)[:, None], labels]
    q = np.full(n, 1.0 / n)
    together = PluralityGames(labels, rewards, Plurality()).semivalues(q)
    for rows in (slice(0, 1), slice(450, 460), slice(899, 900)):
        assert (
            PluralityGames(labels[rows], rewards[rows], Plurality()).semivalues(q).tobytes() == together[rows].tobytes()
        )


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize(("n", "n_answers"), [(64, 3), (64, 64), (200, 2), (200, 17), (200, 200)])
def test_large_sets_are_efficient(n, n_answers, ties):
    """The values of many candidates sum to v(N) − v(∅), from two answers to an answer each."""
    labels = np.arange(n)[None] % n_answers
    rewards = np.random.default_rng(n).normal(size=n)[labels]
    games = PluralityGames(labels, rewards, Plurality(ties=ties, empty=0.5))
    total = math.fsum(games.semivalues(np.full(n, 1.0 / n))[0])
    assert abs(total - (games.grand()[0] - 0.5)) <= EXACT * games.scale()[0]


@pytest.mark.parametrize("n", [64, 200])
def test_distinct_answers_share_like_a_mean(n):
    """With an answer each, every coalition is a tie: `split` is the mean reward, whose Shapley values are known."""
    rewards = np.random.default_rng(n).normal(size=n)
    games = PluralityGames(np.arange(n)[None], rewards[None], Plurality(empty=0.25))
    harmonic = math.fsum(1.0 / j for j in range(1, n + 1))
    others = math.fsum(rewards) - rewards
    expected = harmonic / n * rewards - (harmonic - 1.0) / (n * (n - 1)) * others - 0.25 / n
    assert np.abs(games.semivalues(np.full(n, 1.0 / n))[0] - expected).max() <= EXACT * games.scale()[0]


@pytest.mark.parametrize(("m", "opponents"), [(1, 5), (40, 24), (120, 80), (100, 100)])
def test_two_answers_equal_the_sum_over_numbers_of_votes(m, opponents):
    """A vote between two answers agrees with the hypergeometric sum over the votes of each."""
    labels = np.repeat([7, 3], [m, opponents])
    rewards = np.repeat([1.0, 0.0], [m, opponents])
    n = m + opponents
    values = PluralityGames(labels[None], rewards[None], Plurality(empty=0.5)).semivalues(np.full(n, 1.0 / n))[0]
    expected = smooth_oracles.shapley_of_two_kinds(m, opponents, lambda a, b: 0.5 if a == b else float(a > b))
    assert values[[0, -1]] == pytest.approx(expected, abs=EXACT)


def test_worked_values():
    """Votes a, a, b for rewards 1 and 0: in two of six orders b ties with one a, and takes half (all, if ties lose)."""
    labels, rewards = np.array([[0, 0, 1]]), np.array([[1.0, 1.0, 0.0]])
    third = np.full(3, 1.0 / 3)
    split = PluralityGames(labels, rewards, Plurality()).semivalues(third)[0]
    assert split == pytest.approx([7 / 12, 7 / 12, -1 / 6], abs=1e-15)
    lose = PluralityGames(labels, rewards, Plurality(ties="lose")).semivalues(third)[0]
    assert lose == pytest.approx([2 / 3, 2 / 3, -1 / 3], abs=1e-15)


@given(votes(), utilities)
def test_restricted_games_are_the_games_of_the_players_named(case, utility):
    """Naming players gives their game in that order, down to none at all."""
    labels, rewards = case
    games = PluralityGames(labels[None], rewards[None], utility)
    players = np.arange(len(labels))[::-2]
    named = games.restricted(players)
    assert named.labels[0].tolist() == labels[players].tolist()
    assert named.rewards[0].tolist() == rewards[players].tolist()
    nobody = games.restricted(np.array([], dtype=np.int64))
    assert nobody.n_players == 0
    assert nobody.grand().tolist() == nobody.empty().tolist() == [utility.empty]
    assert nobody.scale().tolist() == [abs(utility.empty)]
    assert nobody.semivalues(np.empty(0)).shape == (1, 0)


@pytest.mark.parametrize("ties", TIES)
def test_large_rewards_do_not_overflow(ties):
    """Rewards of 10¹⁰⁰ give finite credits."""
    labels = np.array([0, 0, 1, 1, 2, 2, 3])
    assert_exact(labels, np.array([1e100, -1e100, 1e100, 3.0])[labels], Plurality(ties=ties, empty=-1e100))


def test_no_sets_are_no_error():
    """No sets are no error."""
    games = PluralityGames(np.empty((0, 3), dtype=np.int64), np.empty((0, 3)), Plurality())
    assert games.grand().shape == games.empty().shape == games.scale().shape == (0,)
    for q in size_weights(3):
        assert games.semivalues(q).shape == (0, 3)


def test_what_does_not_fit_is_refused():
    """Ties, shapes and weights that do not fit are named with what was expected."""
    with pytest.raises(ValueError, match=r"got 'win', expected one of split, lose"):
        Plurality(ties="win")
    with pytest.raises(ValueError, match=r"finite empty: got nan"):
        Plurality(empty=math.nan)
    labels, rewards = np.zeros((1, 4), dtype=np.int64), np.ones((1, 4))
    with pytest.raises(ValueError, match="plurality has credit for Shapley, leave-one-out and own reward only"):
        PluralityGames(labels, rewards, Plurality()).semivalues(np.array([0.1, 0.2, 0.3, 0.4]))
    with pytest.raises(ValueError, match=r"expected \(4,\)"):
        plurality_semivalues(labels, rewards, Plurality(), np.zeros(3))
    with pytest.raises(ValueError, match=r"one shape: got \(1, 4\) and \(1, 3\)"):
        plurality_semivalues(labels, rewards[:, :3], Plurality(), np.zeros(4))
    with pytest.raises(ValueError, match=r"got n = 0"):
        plurality_semivalues(labels[:, :0], rewards[:, :0], Plurality(), np.zeros(0))
