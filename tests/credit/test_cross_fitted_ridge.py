import numpy as np
import pytest

from credit.estimator_oracles import solve
from creditd.credit.cross_fitted_ridge import JOINT_LENGTH, STRENGTHS, cross_fitted_ridges

ROUNDING = 1e-7
"""Relative; normal equations at the weakest strength have a condition of 1e7."""


def problem(seed, n_rows=60, n_columns=7, n_joint=3):
    """A regression with three groups and five folds, the first six rows in none of them."""
    random = np.random.default_rng(seed)
    columns = random.normal(size=(n_rows, n_columns)) * 10.0 ** random.integers(-3, 4, size=n_columns)
    target = random.normal(size=n_rows)
    groups = np.sort(random.integers(0, 3, size=n_rows))
    row_scale = np.array([0.5, 1.0, 3.0])[groups]
    folds = np.where(np.arange(n_rows) < 6, -1, np.arange(n_rows) % 5)
    return columns, n_joint, target, row_scale, groups, folds


def ridge_of(columns, target, strength):
    """Ridge coefficients from the normal equations, in plain Python."""
    size = len(columns[0])
    normal = [
        [sum(row[a] * row[b] for row in columns) + (strength if a == b else 0.0) for b in range(size)]
        for a in range(size)
    ]
    return solve(normal, [sum(row[a] * y for row, y in zip(columns, target, strict=True)) for a in range(size)])


def centred(values, groups):
    """The values less the mean of their group."""
    return values - np.array([values[groups == group].mean(axis=0) for group in groups])


@pytest.mark.parametrize(("seed", "n_columns"), [(0, 7), (1, 7), (2, 7), (3, 70)])
def test_residuals_equal_those_of_regressions_without_the_fold(seed, n_columns):
    """Every fold is predicted by a ridge that never saw it, and the coefficients are the mean of these ridges."""
    columns, n_joint, target, row_scale, groups, folds = problem(seed, n_columns=n_columns)
    scaled = centred(columns, groups) * row_scale[:, None]
    lengths = np.sqrt((scaled**2).sum(axis=0))
    lengths[-n_joint:] = np.sqrt((lengths[-n_joint:] ** 2).sum()) / JOINT_LENGTH
    scaled /= lengths
    response = centred(target, groups) * row_scale
    largest = np.linalg.eigvalsh(scaled.T @ scaled)[-1]
    fits = list(cross_fitted_ridges(columns, n_joint, target, row_scale, groups, folds))
    assert len(fits) == len(STRENGTHS)
    for strength, fit in zip(STRENGTHS, fits, strict=True):
        coefficients = []
        for fold in range(5):
            kept = folds != fold
            x = np.array(ridge_of(scaled[kept].tolist(), response[kept].tolist(), strength * largest))
            coefficients.append(x / lengths)
            expected = (response - scaled @ x)[~kept] / row_scale[~kept]
            assert fit.held_out[~kept] == pytest.approx(expected, abs=ROUNDING * np.abs(target).max())
        mean = np.mean(coefficients, axis=0)
        assert fit.coefficients * lengths == pytest.approx(mean * lengths, abs=ROUNDING * np.abs(mean * lengths).max())


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**30])
def test_scaling_the_target_scales_everything(factor):
    """Coefficients and residuals are linear in the target, to the last bit for powers of two."""
    columns, n_joint, target, row_scale, groups, folds = problem(1)
    plain = list(cross_fitted_ridges(columns, n_joint, target, row_scale, groups, folds))
    scaled = list(cross_fitted_ridges(columns, n_joint, factor * target, row_scale, groups, folds))
    for one, other in zip(plain, scaled, strict=True):
        assert (factor * one.coefficients).tobytes() == other.coefficients.tobytes()
        assert (factor * one.held_out).tobytes() == other.held_out.tobytes()


def test_columns_that_are_constant_within_groups_are_left_out():
    """Such columns get coefficient 0, and no column at all gives no fit."""
    columns, _, target, row_scale, groups, folds = problem(2)
    constant = np.column_stack([columns[:, :2], 1.0 + groups, np.zeros(len(groups))])
    for fit in cross_fitted_ridges(constant, 0, target, row_scale, groups, folds):
        assert fit.coefficients[2:].tolist() == [0.0, 0.0]
        assert fit.coefficients[:2].all()
    assert list(cross_fitted_ridges(constant[:, 2:], 1, target, row_scale, groups, folds)) == []


def test_a_target_in_the_span_leaves_no_residual():
    """What the columns and the constants explain is explained, up to the weakest strength."""
    columns, _, _, row_scale, groups, folds = problem(3)
    columns = columns / np.abs(columns).max(axis=0)
    target = columns @ np.arange(1.0, 8.0) + groups
    weakest = next(cross_fitted_ridges(columns, 0, target, row_scale, groups, folds))
    assert weakest.coefficients == pytest.approx(np.arange(1.0, 8.0), rel=1e-4)
    assert np.abs(centred(weakest.held_out, groups)).max() < 1e-4
