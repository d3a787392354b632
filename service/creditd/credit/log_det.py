"""Quality and diversity in one number: the log-determinant of a kernel over the candidates of a set.

Legend: `B` kernels L, `n` players, L_S the rows and columns of L that belong to the players of S. Bit i of the index of
a coalition is player i.

With L_ij = q_i·q_j·(similarity of i and j) a set gains by good candidates and loses by similar ones, as in the
determinantal point processes of Kulesza and Taskar 2012, whose log-likelihood the plain form is up to a constant. No
closed form is known for the Shapley value, so all 2ⁿ log-determinants are computed: eliminating one player after the
other, once as absent and once as present, leaves at each step the Schur complements of all coalitions of the players so
far. These shrink as they multiply, which makes the work per coalition a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.tables import table_semivalues

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

MAX_PLAYERS = 16
FORMS = ("identity_plus", "plain")
SYMMETRY = 1e-6
"""L_ij and L_ji may differ by this share of the largest entry; their mean is used."""
SINGULAR = 4e-6
"""A candidate of which less than this share is left, given all the others, leaves too few digits: the error of a
log-determinant is up to 4e-16 over the smallest share, and exact values are promised to 1e-10 of their scale."""
CHUNK_BYTES = 1 << 22
"""Aimed size of the temporaries; one set of 16 players takes 2 MB."""


@dataclass(frozen=True)
class LogDet:
    """Log-determinant of the kernel of the set, v(S) = log det(I + L_S) or log det(L_S).

    Attributes:
        form: "identity_plus" for log det(I + L_S), which is defined and ≥ 0 for every positive semidefinite kernel;
            "plain" for log det(L_S), which needs a positive definite one.
        empty: v(∅), in units of the utility (nats); 0 is the log-determinant of nothing.
    """

    type: ClassVar[str] = "log_det"
    form: str = "identity_plus"
    empty: float = 0.0

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"log_det has two forms: got {self.form!r}, expected one of {', '.join(FORMS)}")

    @property
    def identity(self) -> float:
        """What is added to the diagonal of the kernel."""
        return 1.0 if self.form == "identity_plus" else 0.0

    @property
    def empty_utility(self) -> float:
        """v(∅), units of the utility."""
        return self.empty


def defect(kernels: Floats, utility: LogDet) -> NDArray[np.bool_]:
    """Which kernels give their sets no value.

    A kernel is refused when an entry is not finite, when it differs from its transpose, or when a player of I + L (of
    L) keeps no more than 4e-6 of its diagonal entry after the elimination of all the others, 1/(K⁻¹)_ii ≤ 4e-6·K_ii:
    it is then not positive definite, or so near to that border that float64 has too few digits for an exact value. The
    limit does not depend on the scale of the players nor, beyond rounding, on their order, and what remains after fewer
    players is larger: a kernel that passes has a log-determinant for every coalition, in every order.

    Args:
        kernels: Shape (B, n, n), float64; any values.
        utility: The form.

    Returns:
        Shape (B,), bool: True for a kernel whose set has to be failed. A positive semidefinite kernel of any rank with
        entries below 1e12 passes under "identity_plus". A row does not depend on the rest of the batch.

    Cost:
        O(B · n³).
    """
    n = kernels.shape[-1]
    bad: NDArray[np.bool_] = np.logical_not(np.isfinite(kernels).all(axis=(1, 2)))
    kernels = np.where(bad[:, None, None], 0.0, kernels)
    rest = _symmetric(kernels)
    diagonal = np.arange(n)
    with np.errstate(over="ignore", invalid="ignore"):
        gaps = np.abs(kernels - kernels.transpose(0, 2, 1)).max(axis=(1, 2), initial=0.0)
        bad |= gaps > SYMMETRY * np.abs(kernels).max(axis=(1, 2), initial=0.0)
        rest[diagonal, diagonal] += utility.identity
        smallest = SINGULAR * np.abs(rest[diagonal, diagonal])
        # Gauss-Jordan elimination in place: at the end `rest` is the inverse. Kernels that failed go on as identities.
        for i in range(n):
            bad |= ~(rest[i, i] > smallest[i])
            rest = np.where(bad, np.eye(n)[:, :, None], rest)
            row, column = rest[i] / rest[i, i], rest[:, i].copy()
            rest -= column[:, None] * row[None, :]
            rest[i] = row
            rest[:, i] = -column / column[i]
            rest[i, i] = 1.0 / column[i]
        inverse = rest[diagonal, diagonal]
        bad |= ~((inverse > 0.0) & (smallest * inverse < 1.0)).all(axis=0)
    return bad


def log_dets(kernels: Floats, utility: LogDet) -> Floats:
    """Utility of every coalition of each kernel: log det(I + L_S) or log det(L_S), v(∅) at index 0.

        log det K_S = Σ_{i ∈ S} log k_i,     k_i what is left of K_ii after the elimination of the players of S before i

    "identity_plus" keeps L and adds 1 in the logarithm alone, so that small kernels keep their digits.

    Args:
        kernels: Shape (B, n, n), float64, symmetric, 0 ≤ n ≤ 16, with `defect` False.
        utility: The form and v(∅).

    Returns:
        Shape (B, 2ⁿ), float64, nats. A row does not depend on the rest of the batch, to the last bit; permuting the
        players permutes a row within rounding. Where every player keeps 1e-3 of its diagonal entry after the
        others, a value is within 1e-12 of the row's largest magnitude ("plain": of 1, if that is larger, because
        rounding enters next to the ones on the diagonal). Beyond, the absolute error grows to about
        4e-16/(the smallest share kept): 1e-10 for a kernel that `defect` just passes.

    Raises:
        ValueError: If the shapes do not fit, n > 16, or a kernel is not positive definite.

    Cost:
        O(B · 2ⁿ) time with a constant near 20 multiplications; temporaries of 4 MiB, whatever B.
    """
    if kernels.ndim != 3 or kernels.shape[1] != kernels.shape[2]:
        raise ValueError(f"kernels must have shape (B, n, n): got {kernels.shape}")
    n_sets, n, _ = kernels.shape
    if n > MAX_PLAYERS:
        raise ValueError(f"2**n log-determinants of n players: got n = {n}, expected at most {MAX_PLAYERS}")
    largest_step = max((((n - k - 1) ** 2) << (k + 1) for k in range(n)), default=0)
    chunk = max(1, CHUNK_BYTES // (3 * 8 * (largest_step + (1 << n))))
    tables = np.empty((n_sets, 1 << n))
    for start in range(0, n_sets, chunk):
        tables[start : start + chunk] = _chunk_log_dets(kernels[start : start + chunk], utility.identity)
    tables[:, 0] = utility.empty
    return tables


@dataclass(frozen=True)
class LogDetGames:
    """Games of candidates with a kernel.

    Attributes:
        kernels: Shape (B, n, n), float64, symmetric, n ≤ 16, with `defect` False.
        utility: Form and v(∅).
    """

    every_semivalue: ClassVar[bool] = True
    kernels: Floats
    utility: LogDet

    @property
    def n_players(self) -> int:
        """Number of players."""
        return int(self.kernels.shape[1])

    @cached_property
    def tables(self) -> Floats:
        """Utilities of all coalitions, shape (B, 2ⁿ); computed when first asked for, and kept."""
        return log_dets(self.kernels, self.utility)

    def empty(self) -> Floats:
        """v(∅), shape (B,)."""
        return np.full(len(self.kernels), float(self.utility.empty))

    def grand(self) -> Floats:
        """v(N), shape (B,), by one elimination of all players: the last column of the tables, to the last bit."""
        if self.n_players == 0:
            return self.empty()
        rest = _symmetric(self.kernels)
        totals = np.zeros(len(self.kernels))
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(self.n_players):
                totals = totals + _log_pivots(rest[0, 0], self.utility.identity)
                rest = _without_first(rest, self.utility.identity)
        return totals

    def scale(self) -> Floats:
        """Largest magnitude among the utilities, shape (B,)."""
        largest: Floats = np.abs(self.tables).max(axis=1)
        return largest

    def restricted(self, players: Integers) -> LogDetGames:
        """The games among some of the players, in the order named."""
        return LogDetGames(self.kernels[:, players[:, None], players[None, :]], self.utility)

    def semivalues(self, weights: Floats) -> Floats:
        """Semivalues by tables, shape (B, n); a permuted set has permuted values within rounding."""
        return table_semivalues(self.tables, weights)


def _symmetric(kernels: Floats) -> Floats:
    """The means of the kernels and their transposes, players first: shape (n, n, B)."""
    kernels = kernels.transpose(1, 2, 0)
    return np.ascontiguousarray(0.5 * kernels + 0.5 * kernels.transpose(1, 0, 2))


def _chunk_log_dets(kernels: Floats, identity: float) -> Floats:
    """Log-determinants of all coalitions of a few kernels, shape (B, 2ⁿ)."""
    n_sets, n, _ = kernels.shape
    rest = _symmetric(kernels)[:, :, None, :]
    totals = np.zeros((1, n_sets))
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(n):
            totals = np.concatenate([totals, totals + _log_pivots(rest[0, 0], identity)])
            grown = np.empty((n - k - 1, n - k - 1, 2, 1 << k, n_sets))
            grown[:, :, 0] = rest[1:, 1:]
            grown[:, :, 1] = _without_first(rest, identity)
            rest = grown.reshape(n - k - 1, n - k - 1, 2 << k, n_sets)
    return totals.T


def _log_pivots(first: Floats, identity: float) -> Floats:
    """Logarithms of the pivots of the first player, `first` less the identity."""
    first = np.ascontiguousarray(first)
    if not (first > -identity).all():
        raise ValueError("log_det needs positive definite kernels: got a pivot that is not a positive number")
    logs: Floats = np.log1p(first) if identity else np.log(first)
    return logs


def _without_first(rest: Floats, identity: float) -> Floats:
    """Schur complement of the first player, less the identity: one row and one column fewer."""
    complement: Floats = rest[1:, 1:] - rest[1:, :1] * (rest[:1, 1:] / (identity + rest[0, 0]))
    return complement
