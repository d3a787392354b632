"""Ridge regression whose strength is chosen on data left out, with the residuals of every fold left out.

Legend: `M` rows, `p` columns. Folds are left out one after another; rows outside every fold (fold −1) always take part.
One eigendecomposition serves all strengths and all folds: the residuals of a fold left out follow from those of the
whole regression by a system of the fold's size (Sherman, Morrison and Woodbury).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

STRENGTHS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
"""Ridge penalties, relative to the largest eigenvalue of the scaled columns."""
JOINT_LENGTH = 2.0
"""Of the columns that are scaled together."""
NEGLIGIBLE = 1e-12
"""A column this small after the means of groups have been taken off was constant within them, and a direction this
small beside the largest is none: rounding."""


@dataclass(frozen=True)
class RidgeFit:
    """One ridge regression.

    Attributes:
        coefficients: Shape (p,), float64: mean over the folds of the coefficients without that fold.
        held_out: Shape (M,), float64: target less prediction, made without the row's own fold; up to one constant per
            group.
    """

    coefficients: Floats
    held_out: Floats


def cross_fitted_ridges(
    columns: Floats, n_joint: int, target: Floats, row_scale: Floats, groups: Integers, folds: Integers
) -> Iterator[RidgeFit]:
    """Ridge regressions of the target on the columns and one free constant per group, one per strength.

        minimise Σ_r (row_scale_r · (target_r − constant_{group of r} − columns_r·x))² + strength · |x|²

    Columns are scaled to length 1 first, so that a strength means the same for all; the last n_joint of them keep their
    proportions and get length 2 together.

    Args:
        columns: Shape (M, p), float64, finite.
        n_joint: How many of the last columns are scaled together.
        target: Shape (M,), float64, finite.
        row_scale: Shape (M,), float64, > 0, equal within a group.
        groups: Shape (M,), int64, ≥ 0.
        folds: Shape (M,), int64: fold of each row, −1 for rows that no fold holds.

    Returns:
        One fit per strength, weakest first; none where no column varies within a group. Residuals equal those of
        regressions without the fold. Scaling the target scales coefficients and residuals.

    Cost:
        O(M·p·min(M, p)) once, O(M²·p/k + M³/k²) per strength for k folds.

    Reference:
        Sherman and Morrison 1950; averaging over folds: Chernozhukov et al., arXiv:1608.00060.

    Differs from the paper:
        The coefficients of all folds are averaged, and one fit serves every row.
    """
    scaled = _centred(columns, groups) * row_scale[:, None]
    response = _centred(target[:, None], groups)[:, 0] * row_scale
    lengths = np.sqrt(np.cumsum(scaled * scaled, axis=0)[-1])
    used = np.flatnonzero(lengths > NEGLIGIBLE * np.sqrt(np.cumsum(columns * columns, axis=0)[-1]))
    if len(used) == 0:
        return
    joint = used[used >= columns.shape[1] - n_joint]
    if len(joint):
        lengths[joint] = math.sqrt(float(np.cumsum(lengths[joint] ** 2)[-1])) / JOINT_LENGTH
    scaled = scaled[:, used] / lengths[used]
    eigenvalues, vectors = _directions(scaled)
    rotated = scaled @ vectors
    projected = rotated.T @ response
    n_folds = int(folds.max(initial=-1)) + 1
    members = [np.flatnonzero(folds == fold) for fold in range(n_folds)]
    for strength in STRENGTHS:
        shrinkage = 1.0 / (eigenvalues + strength * eigenvalues[-1])
        residuals = response - rotated @ (shrinkage * projected)
        held_out = residuals.copy()
        for rows in members:
            own = rotated[rows]
            held_out[rows] = np.linalg.solve(np.eye(len(rows)) - (own * shrinkage) @ own.T, residuals[rows])
        # Leaving out a fold moves the coefficients by −shrinkage·rotatedᵀ of its rows · its residuals left out.
        moved = rotated.T @ np.where(folds >= 0, held_out, 0.0) / max(n_folds, 1)
        coefficients = np.zeros(columns.shape[1])
        coefficients[used] = (vectors @ (shrinkage * (projected - moved))) / lengths[used]
        yield RidgeFit(coefficients, held_out / row_scale)


def _directions(scaled: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues, ascending, and eigenvectors of scaledᵀ·scaled, by the smaller of the two products."""
    n_rows, n_columns = scaled.shape
    if n_columns <= n_rows:
        eigenvalues, vectors = np.linalg.eigh(scaled.T @ scaled)
        return np.maximum(eigenvalues, 0.0), vectors
    eigenvalues, vectors = np.linalg.eigh(scaled @ scaled.T)
    kept = eigenvalues > NEGLIGIBLE * eigenvalues[-1]
    return eigenvalues[kept], scaled.T @ vectors[:, kept] / np.sqrt(eigenvalues[kept])


def _centred(values: Floats, groups: Integers) -> Floats:
    """The values less the mean of their group, per column."""
    result = np.empty_like(values)
    for group in np.unique(groups).tolist():
        rows = np.flatnonzero(groups == group)
        result[rows] = values[rows] - np.cumsum(values[rows], axis=0)[-1] / len(rows)
    return result
