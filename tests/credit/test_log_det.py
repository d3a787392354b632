import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit import oracles, table_oracles
from creditd.credit import LogDet, log_det
from creditd.credit.log_det import FORMS, LogDetGames, defect, log_dets

WELL_CONDITIONED = 1e-12
"""Error of kernels whose players are not determined by one another, as a share of the largest utility."""
LOST_DIGITS = 1e-15
"""Absolute error, times the smallest share of its diagonal entry that a player keeps after the others."""


def in_full(kernel, form):
    """K = I + L or L."""
    return np.array(kernel) + (np.eye(len(kernel)) if form == "identity_plus" else 0.0)


def tolerance(values, form):
    """What holds for well-conditioned kernels."""
    return WELL_CONDITIONED * max(*map(abs, values), 1.0 if form == "plain" else 0.0)


@st.composite
def kernels(draw, max_players, form=None):
    """A symmetric kernel, and a form under which it is well conditioned: vectors of many sizes, some of them equal."""
    n = draw(st.integers(1, max_players))
    form = form or draw(st.sampled_from(FORMS))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if form == "identity_plus":
        vectors = random.normal(size=(n, draw(st.integers(1, 3)))) * 10.0 ** draw(st.integers(-6, 1))
        copied = draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n))
        vectors = vectors[copied] if draw(st.booleans()) else vectors
        kernel = np.einsum("ia,ja->ij", vectors, vectors)
    else:
        vectors = random.normal(size=(n, 4))
        kernel = np.einsum("ia,ja->ij", vectors, vectors) / 4 + np.eye(n) * draw(st.sampled_from([0.5, 2.0]))
        sizes = 10.0 ** random.uniform(-3, 3, size=n)
        kernel = kernel * sizes[:, None] * sizes[None, :]
    return (0.5 * kernel + 0.5 * kernel.T).tolist(), form


@given(kernels(5), st.sampled_from([0.0, -2.5]))
def test_every_coalition_has_its_log_determinant(case, empty):
    """The 2ⁿ utilities are the logarithms of determinants that rational numbers give exactly; v(∅) is as told."""
    kernel, form = case
    utility = LogDet(form=form, empty=empty)
    expected = table_oracles.log_det_game(kernel, form, empty)
    assert not defect(np.array([kernel]), utility).any()
    got = log_dets(np.array([kernel]), utility)[0]
    assert got[0] == empty
    assert np.abs(got - expected).max() <= tolerance(expected, form)


@given(kernels(5, "identity_plus"))
def test_small_kernels_keep_their_digits(case):
    """With entries far below the rounding of 1 the log-determinant is as exact, for its size, as with large ones."""
    kernel = (np.array(case[0]) * 1e-20).tolist()
    expected = table_oracles.log_det_game(kernel, "identity_plus")
    got = log_dets(np.array([kernel]), LogDet())[0]
    assert np.abs(got - expected).max() <= WELL_CONDITIONED * max(map(abs, expected))


@given(kernels(6), st.sampled_from([0.0, 1.5]))
def test_shapley_equals_the_mean_over_all_orders(case, empty):
    """The Shapley value is the mean marginal log-determinant over all orders of arrival."""
    kernel, form = case
    values = table_oracles.log_det_game(kernel, form, empty)
    n = len(kernel)
    games = LogDetGames(np.array([kernel]), LogDet(form=form, empty=empty))
    got = games.semivalues(np.full(n, 1.0 / n))[0]
    assert np.abs(got - oracles.shapley_by_orders(values, n)).max() <= tolerance(values, form)
    assert abs(math.fsum(got) - (games.grand() - games.empty())[0]) <= tolerance(values, form)


@given(kernels(6), st.lists(st.floats(-2, 2), min_size=6, max_size=6))
def test_semivalues_equal_the_mean_over_all_coalitions(case, weights):
    """Any weights over the sizes of coalitions agree with the enumeration."""
    kernel, form = case
    n = len(kernel)
    values = table_oracles.log_det_game(kernel, form, 0.25)
    got = LogDetGames(np.array([kernel]), LogDet(form=form, empty=0.25)).semivalues(np.array(weights[:n]))[0]
    expected = [table_oracles.semivalue_of_player(values, n, weights[:n], i) for i in range(n)]
    assert np.abs(got - expected).max() <= tolerance(values, form) * (1.0 + sum(map(abs, weights[:n])))


@pytest.mark.parametrize("form", FORMS)
def test_nine_players_equal_the_definition(form):
    """Nine players agree with rational determinants and with the enumeration of coalitions."""
    vectors = np.random.default_rng(9).normal(size=(9, 12))
    kernel = np.einsum("ia,ja->ij", vectors, vectors).tolist()
    values = table_oracles.log_det_game(kernel, form, -1.0)
    games = LogDetGames(np.array([kernel]), LogDet(form=form, empty=-1.0))
    assert np.abs(games.tables[0] - values).max() <= tolerance(values, form)
    got = games.semivalues(np.full(9, 1.0 / 9))[0]
    expected = [table_oracles.semivalue_of_player(values, 9, [1.0 / 9] * 9, i) for i in range(9)]
    assert np.abs(got - expected).max() <= tolerance(values, form)


def test_sixteen_players_agree_with_lapack():
    """The largest games agree with numpy.linalg.slogdet coalition by coalition, and their credit is efficient."""
    vectors = np.random.default_rng(16).normal(size=(2, 16, 5))
    batch = np.einsum("bia,bja->bij", vectors, vectors)
    games = LogDetGames(batch, LogDet())
    for row, mask in itertools.product(range(2), range(1, 1 << 16, 997)):
        chosen = np.flatnonzero(mask >> np.arange(16) & 1)
        expected = np.linalg.slogdet(in_full(batch[row][np.ix_(chosen, chosen)], "identity_plus"))[1]
        assert abs(games.tables[row, mask] - expected) <= WELL_CONDITIONED * games.scale()[row]
    got = games.semivalues(np.full(16, 1.0 / 16))
    assert np.abs(got.sum(axis=1) - games.grand()).max() <= WELL_CONDITIONED * games.scale().max()


@given(kernels(6))
def test_the_grand_coalition_is_the_last_of_the_table(case):
    """v(N) is one number whether one elimination or the whole table gives it, to the last bit."""
    kernel, form = case
    games = LogDetGames(np.array([kernel] * 3), LogDet(form=form))
    assert games.grand().tobytes() == games.tables[:, -1].tobytes()
    assert (games.scale() == np.abs(games.tables).max(axis=1)).all()


@given(kernels(5), st.randoms(use_true_random=False))
def test_games_among_some_of_the_players(case, random):
    """Restricted games are those of the named rows and columns, in the order named; none is the empty coalition."""
    kernel, form = case
    n = len(kernel)
    chosen = random.sample(range(n), random.randrange(n + 1))
    games = LogDetGames(np.array([kernel, kernel]), LogDet(form=form, empty=0.75))
    smaller = games.restricted(np.array(chosen, dtype=np.int64))
    assert smaller.n_players == len(chosen)
    expected = games.tables[:, sum(1 << i for i in chosen)] if chosen else games.empty()
    assert np.abs(smaller.grand() - expected).max() <= tolerance(games.tables[0].tolist(), form)
    assert (smaller.empty() == 0.75).all()
    assert smaller.tables.shape == (2, 1 << len(chosen))


@given(kernels(6), st.randoms(use_true_random=False))
def test_relabelling_permutes_the_credit(case, random):
    """Renaming the players renames their credit, within rounding; equal players get equal credit, within rounding."""
    kernel, form = case
    n = len(kernel)
    order = np.array(random.sample(range(n), n))
    games = LogDetGames(np.array([kernel]), LogDet(form=form))
    q = np.full(n, 1.0 / n)
    credit = games.semivalues(q)[0]
    near = tolerance(games.tables[0].tolist(), form)
    assert np.abs(games.restricted(order).semivalues(q)[0] - credit[order]).max() <= near
    for i, j in itertools.combinations(range(n), 2):
        if kernel[i] == kernel[j] and kernel[i][i] == kernel[i][j]:
            assert abs(credit[i] - credit[j]) <= near


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_a_set_has_one_value_in_every_batch(n, monkeypatch):
    """Alone, in a batch of any size, and in chunks of any length, a set has the same bits."""
    random = np.random.default_rng(n)
    vectors = random.normal(size=(150, n, n + 1)) * 10.0 ** random.integers(-3, 2, size=(150, 1, 1))
    batch = np.einsum("bia,bja->bij", vectors, vectors)
    batch[0] = np.nan
    q = np.full(n, 1.0 / n)
    for form in FORMS:
        utility = LogDet(form=form)
        bad = defect(batch, utility)
        good = batch[~bad]
        together, credit = log_dets(good, utility), LogDetGames(good, utility).semivalues(q)
        for row in range(0, len(good), 7):
            alone = good[row : row + 1]
            assert log_dets(alone, utility)[0].tobytes() == together[row].tobytes()
            assert LogDetGames(alone, utility).semivalues(q)[0].tobytes() == credit[row].tobytes()
        for row in range(150):
            assert defect(batch[row : row + 1], utility)[0] == bad[row]
        monkeypatch.setattr(log_det, "CHUNK_BYTES", 0 if n == 8 else 9999)
        assert log_dets(good, utility).tobytes() == together.tobytes()
        monkeypatch.undo()


@given(st.integers(0, 2**32 - 1), st.sampled_from(FORMS))
def test_a_kernel_that_passes_has_a_value_for_every_coalition_in_every_order(seed, form):
    """Near the limit of float64 too: what `defect` passes is solved, and the error is what the docstring says."""
    random = np.random.default_rng(seed)
    n = int(random.integers(2, 6))
    vectors = random.normal(size=(n, n))
    vectors[1:] = vectors[0] + vectors[1:] * 10.0 ** random.uniform(-9, 0, size=(n - 1, 1))
    vectors *= 10.0 ** random.uniform(-3, 3, size=(n, 1))
    kernel = np.einsum("ia,ja->ij", vectors, vectors)
    kernel = 0.5 * kernel + 0.5 * kernel.T
    utility = LogDet(form=form)
    if defect(kernel[None], utility)[0]:
        return
    full = in_full(kernel, form)
    share = (1.0 / (np.diag(np.linalg.inv(full)) * np.diag(full))).min()
    expected = table_oracles.log_det_game(kernel.tolist(), form)
    allowed = LOST_DIGITS / share + tolerance(expected, form)
    games = LogDetGames(kernel[None], utility)
    assert np.abs(games.tables[0] - expected).max() <= allowed
    for _ in range(5):
        order = random.permutation(n)
        assert abs(games.restricted(order).tables[0, -1] - expected[-1]) <= allowed


@pytest.mark.parametrize(
    ("kernel", "forms"),
    [
        ([[1.0, np.nan], [np.nan, 1.0]], FORMS),
        ([[np.inf, 0.0], [0.0, 1.0]], FORMS),
        ([[1.0, 0.5], [0.4, 1.0]], FORMS),
        ([[-2.0]], FORMS),
        ([[-1.0]], FORMS),
        ([[1.0, 3.0], [3.0, 1.0]], FORMS),
        ([[1e-300, 1e100], [1e100, 1.0]], FORMS),
        ([[1e300, 1e299], [1e299, -1e300]], FORMS),
        ([[0.0]], ("plain",)),
        ([[-0.5]], ("plain",)),
        ([[1.0, 1.0], [1.0, 1.0]], ("plain",)),
        ([[1e-8, 1e-4], [1e-4, 1.0]], ("plain",)),
        ([[2.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0]], ("plain",)),
        ([[1e14, 1e14], [1e14, 1e14]], FORMS),
        ([[1.0, 1.5], [1.5, 1.0]], ("plain",)),
        ([[1e100, 0.0], [0.0, 1e-100]], ()),
        ([[1.0, 0.5], [0.5 + 1e-9, 1.0]], ()),
        ([[1e-150]], ()),
    ],
)
def test_kernels_without_a_value_are_named(kernel, forms):
    """Not finite, not symmetric, not positive definite under the form: such sets are named before they are solved."""
    for form in FORMS:
        verdict = defect(np.array([np.eye(len(kernel)), kernel, np.eye(len(kernel))]), LogDet(form=form))
        assert verdict.tolist() == [False, form in forms, False]


def test_no_players_have_no_defect():
    """A kernel without players has v(∅) as its one utility."""
    games = LogDetGames(np.zeros((2, 0, 0)), LogDet(empty=0.5))
    assert not defect(games.kernels, games.utility).any()
    assert games.grand().tolist() == games.empty().tolist() == games.scale().tolist() == [0.5, 0.5]
    assert log_dets(np.zeros((0, 3, 3)), LogDet()).shape == (0, 8)


@pytest.mark.parametrize("kernel", [[[1.0, 3.0], [3.0, 1.0]], [[-1.0]], [[np.nan]], [[1e-300, 1e100], [1e100, 1.0]]])
def test_asking_for_what_has_no_value_is_an_error(kernel):
    """A kernel that is not positive definite raises; no number is invented."""
    for form in FORMS:
        with pytest.raises(ValueError, match="positive definite"):
            log_dets(np.array([kernel]), LogDet(form=form))
        with pytest.raises(ValueError, match="positive definite"):
            LogDetGames(np.array([kernel]), LogDet(form=form)).grand()


def test_shapes_that_do_not_fit_are_refused():
    """Kernels are square, of at most sixteen players, and a form is one of two."""
    for shape in ((2, 2), (1, 2, 3)):
        with pytest.raises(ValueError, match="shape"):
            log_dets(np.zeros(shape), LogDet())
    with pytest.raises(ValueError, match="n = 17"):
        log_dets(np.zeros((1, 17, 17)), LogDet())
    with pytest.raises(ValueError, match="'identity'"):
        LogDet(form="identity")
