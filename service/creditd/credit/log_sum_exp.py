"""Log-sum-exp utilities: a soft maximum of the rewards, which also pays for a second good candidate.

Legend: `B` sets, `n` players, r_i rewards, τ the temperature, w_i = e^{r_i/τ}. A logarithm is an integral of
exponentials,

    log(W + w_i) − log W = ∫₀^∞ e^{−sW}·(1 − e^{−s·w_i}) ds/s

and e^{−sW} of a random coalition is a product over its members: at every s stands a product game with
z_k = 1 − e^{−s·w_k}, whose values `noisy_or` has. The integral over log s is a trapezoid sum, which converges
exponentially. Rewards that stand more than 40 temperatures below the next better one never matter beside it: such a gap
is cut down to 40 temperatures, and what was cut off is a game of its own, the maximum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.group_sums import MAX_MAGNITUDE
from creditd.credit.level_games import MAX_PLAYERS, semivalues
from creditd.credit.noisy_or import CHUNK_ELEMENTS, first_of_ties, products_of_others
from creditd.credit.order_statistics import Max
from creditd.credit.quadrature import SizeParts, presence_nodes, three_rules_only

Floats: TypeAlias = NDArray[np.float64]

STEP = 0.1875
"""Step of the trapezoid sum; its error is about e^{−π²/STEP} = 10⁻²³. Few bits, so that nodes have no rounding."""
FIRST_NODE = -3.75
"""Before it s is below 10⁻¹⁸ in units where all w sum to 1."""
LAST_NODE = 3.75
"""Beyond it, counted from the smallest w, every z is 1 to the last bit."""
PAGE_NODES = 16
"""Sets get a multiple of so many nodes, so that many sets share a number of nodes."""
WIDE_ELEMENTS = 1 << 14
"""A set with more candidates times nodes is solved alone, page by page: its candidates matter on few pages each."""
UNSEEN = 42.0
"""A candidate whose w is e^{−42} of 1/s or less has z below 10⁻¹⁸."""
SATURATED = 5.0
"""1 − exp(−e⁵) is 1; larger arguments would only overflow."""
WIDEST_GAP = 40.0
"""In temperatures: a thousand rewards so far below the best change a log-sum-exp by less than 10⁻¹⁴ temperatures."""
NO_WEIGHT = 800.0
"""In temperatures below the best: e^{−800} is 0."""


@dataclass(frozen=True)
class LogSumExp:
    """Soft maximum of the rewards, v(S) = τ·log(e^{b/τ} + Σ_{i∈S} e^{r_i/τ}); no first term without a baseline.

    Attributes:
        temperature: τ > 0, reward units: near 0 the utility is the maximum.
        empty: v(∅), reward units; None: the baseline. Explicit without one, because log 0 defines nothing.
        baseline: b, reward units: an option that is always there; None: there is none.
    """

    type: ClassVar[str] = "log_sum_exp"
    temperature: float
    empty: float | None = None
    baseline: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature <= MAX_MAGNITUDE:
            raise ValueError(
                f"log_sum_exp needs a temperature: got {self.temperature}, expected one in (0, {MAX_MAGNITUDE}]"
            )
        if self.empty is None and self.baseline is None:
            raise ValueError("log_sum_exp needs v(∅): got neither empty nor baseline, expected one of them")
        for name, value in (("empty", self.empty), ("baseline", self.baseline)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"log_sum_exp needs a finite {name}: got {value}, expected a finite number")

    @property
    def empty_utility(self) -> float:
        """v(∅), reward units."""
        return float(self.baseline if self.empty is None else self.empty)  # type: ignore[arg-type]


@dataclass(frozen=True)
class LogSumExpGames:
    """Games of candidates whose rewards add up softly.

    Attributes:
        rewards: Shape (B, n), float64, reward units, finite.
        utility: Temperature, baseline and v(∅).
    """

    every_semivalue: ClassVar[bool] = False
    rewards: Floats
    utility: LogSumExp

    @property
    def n_players(self) -> int:
        """Number of players."""
        return int(self.rewards.shape[1])

    def empty(self) -> Floats:
        """v(∅), shape (B,)."""
        return np.full(len(self.rewards), self.utility.empty_utility)

    def grand(self) -> Floats:
        """v(N), shape (B,); v(∅) without players."""
        if self.n_players == 0:
            return self.empty()
        temperature = self.utility.temperature
        ordered = np.sort(_with_baseline(self.rewards, self.utility.baseline), axis=1)
        below = np.maximum(ordered - ordered[:, -1:], -NO_WEIGHT * temperature)
        total = np.cumsum(np.exp(below / temperature), axis=1)[:, -1]
        result: Floats = ordered[:, -1] + temperature * np.log(total)
        return result

    def scale(self) -> Floats:
        """Largest magnitude among v(∅), v(N) and the rewards; with a baseline, max(r, b) for r, and τ, shape (B,)."""
        baseline = self.utility.baseline
        inputs = np.abs(self.rewards if baseline is None else np.maximum(self.rewards, baseline))
        least = max(abs(self.utility.empty_utility), 0.0 if baseline is None else self.utility.temperature)
        result: Floats = np.maximum(inputs.max(axis=1, initial=least), np.abs(self.grand()))
        return result

    def restricted(self, players: NDArray[np.int64]) -> LogSumExpGames:
        """The same games among the players named, in that order."""
        return LogSumExpGames(self.rewards[:, players], self.utility)

    def semivalues(self, weights: Floats) -> Floats:
        """Semivalues of sums of Shapley, own reward and leave-one-out, shape (B, n)."""
        if self.n_players == 0:
            return np.empty((len(self.rewards), 0))
        return log_sum_exp_semivalues(self.rewards, self.utility, weights)


def log_sum_exp_semivalues(rewards: Floats, utility: LogSumExp, size_weights: Floats) -> Floats:
    """Semivalue of each candidate of a log-sum-exp utility.

        φ_i = q_0·(v({i}) − v(∅)) + τ·∫ z_i·e^{−s·c}·[Σ_t weight_t·Π_{k≠i}(1 − t·z_k) − even] ds/s

    with z_k = 1 − e^{−s·w_k}, c = e^{b/τ} (0 without a baseline), and the t and weights of `presence_nodes`. `even`
    takes out the empty coalition, whose integral diverges when c = 0. Nodes over log s: x − e^{−x} at equal steps, as
    many as the set's own rewards need.

    Args:
        rewards: Shape (B, n), float64, reward units, magnitudes up to 1e100; any spread, ties allowed. n ≥ 1.
        utility: Temperature, baseline and v(∅).
        size_weights: Shape (n,), float64: q_s for coalitions of s other players; any sum of Shapley (1/n each), own
            reward (s = 0) and leave-one-out (s = n − 1).

    Returns:
        Shape (B, n), float64, reward units, within 1e-12 of the scale. Equal rewards get equal bits; permuting a set
        permutes its result to the last bit; a set does not depend on the rest of the batch. With q_s = 1/n it sums to
        v(N) − v(∅). A candidate far below a baseline has a credit of the order of τ·e^{−40} at least, though less may
        be due.

    Raises:
        ValueError: If the shapes do not fit, n > 1,000, or the weights are no sum of the three rules.

    Cost:
        O(n² · (40 + 6·D)) per set, D the distance between the best and the worst reward in temperatures plus log n,
        with gaps above 40 counted as 40; less for large D, where few candidates matter at any s. Bounded memory.

    Reference:
        Owen 1972 for the integral over t; Takahasi and Mori 1974 for the nodes over s. A set utility in the sense of
        ShapE-GRPO, arXiv:2603.29871v1.

    Differs from the paper:
        The paper decomposes max only, which is the limit τ → 0.
    """
    n_sets, n = rewards.shape
    if not 1 <= n <= MAX_PLAYERS:
        raise ValueError(f"log_sum_exp needs 1 to {MAX_PLAYERS} players: got n = {n}")
    if size_weights.shape != (n,):
        raise ValueError(
            f"size_weights must have one entry per coalition size: got {size_weights.shape}, expected ({n},)"
        )
    parts = three_rules_only(utility.type, size_weights)
    soft = _soft_rewards(rewards, utility)
    values = utility.temperature * _soft_values(soft, parts)
    cut = np.flatnonzero(soft.cut_off.any(axis=1))
    if cut.size:
        values[cut] += semivalues(soft.cut_off[cut], Max(), np.append(0.0, size_weights[1:]))
    alone = LogSumExpGames(rewards.reshape(-1, 1), utility).grand().reshape(n_sets, n)
    # Adding +0.0 turns a −0.0 into 0.0.
    values += size_weights[0] * (alone - utility.empty_utility) + 0.0
    return values


def _with_baseline(rewards: Floats, baseline: float | None) -> Floats:
    """The rewards, and the baseline as one more of them, shape (B, n) or (B, n + 1)."""
    if baseline is None:
        return rewards
    return np.concatenate([rewards, np.full((len(rewards), 1), float(baseline))], axis=1)


class _SoftRewards(NamedTuple):
    """Rewards with their wide gaps cut down.

    Attributes:
        depths: Shape (B, n), ≥ 0: −log of w, where all w (and that of the baseline) sum to 1.
        of_baseline: Shape (B,): the depth of the baseline, or None.
        cut_off: Shape (B, n), reward units, ≤ 0: what the cuts took above the candidate, or above the baseline where
            that is better.
    """

    depths: Floats
    of_baseline: Floats | None
    cut_off: Floats


def _soft_rewards(rewards: Floats, utility: LogSumExp) -> _SoftRewards:
    """For S ≠ ∅ v(S) = τ·log(Σ_{i∈S} e^{−depth_i} + …) + max_{i∈S} cut_off_i + a constant, within τ·10⁻¹⁴."""
    n = rewards.shape[1]
    temperature = utility.temperature
    widest = WIDEST_GAP * temperature
    everyone = _with_baseline(rewards, utility.baseline)
    order = np.argsort(-everyone, axis=1, kind="stable")
    gaps = -np.diff(np.take_along_axis(everyone, order, axis=1), axis=1)
    none = np.zeros((len(rewards), 1))
    kept = np.cumsum(np.concatenate([none, np.minimum(gaps, widest) / temperature], axis=1), axis=1)
    cut = np.cumsum(np.concatenate([none, np.maximum(gaps - widest, 0.0)], axis=1), axis=1)
    total = np.cumsum(np.exp(-kept)[:, ::-1], axis=1)[:, -1]
    depths, cut_off = np.empty_like(everyone), np.empty_like(everyone)
    np.put_along_axis(depths, order, kept + np.log(total)[:, None], axis=1)
    np.put_along_axis(cut_off, order, -cut, axis=1)
    if utility.baseline is None:
        return _SoftRewards(depths, None, cut_off)
    return _SoftRewards(depths[:, :n], np.ascontiguousarray(depths[:, n]), np.maximum(cut_off[:, :n], cut_off[:, n:]))


def _soft_values(soft: _SoftRewards, parts: SizeParts) -> Floats:
    """Semivalues of log(Σ e^{−depth} + …) over the non-empty coalitions, shape (B, n)."""
    n_sets, n = soft.depths.shape
    presence = _Presence(*presence_nodes(parts, n), parts.even)
    if not presence.nodes.size:
        return np.zeros((n_sets, n))
    order = np.argsort(soft.depths, axis=1, kind="stable")
    depths = np.take_along_axis(soft.depths, order, axis=1)
    of_baseline = np.full(n_sets, np.inf) if soft.of_baseline is None else soft.of_baseline
    deepest = np.maximum(depths[:, -1], 0.0 if soft.of_baseline is None else of_baseline)
    pages = np.ceil((deepest + (LAST_NODE - FIRST_NODE)) / (STEP * PAGE_NODES)).astype(np.int64)
    integrals = np.empty((n_sets, n))
    for n_pages in np.unique(pages).tolist():
        rows = np.flatnonzero(pages == n_pages)
        grid = FIRST_NODE + STEP * np.arange(n_pages * PAGE_NODES)
        by_page = n * len(grid) > WIDE_ELEMENTS
        step = 1 if by_page else max(1, CHUNK_ELEMENTS // (n * len(grid)))
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step]
            columns = np.ascontiguousarray(depths[chunk].T)
            values = np.zeros_like(columns)
            for page in grid.reshape(n_pages if by_page else 1, -1):
                _add_integral(values, page, columns, of_baseline[chunk], presence)
            integrals[chunk] = np.take_along_axis(values, first_of_ties((columns,)), axis=0).T
    result = np.empty_like(integrals)
    np.put_along_axis(result, order, integrals, axis=1)
    return result


class _Presence(NamedTuple):
    """Nodes t and weights of the product games, and the share of the empty coalition in them."""

    nodes: Floats
    weights: Floats
    even: float


def _add_integral(values: Floats, grid: Floats, depths: Floats, of_baseline: Floats, presence: _Presence) -> None:
    """Add the part of the integral over s that the nodes of the grid give to values, shape (n, b).

    A single set computes with the players for whom z changes on the grid, and one of those who have z = 1 already:
    they are alike. On the grid of all nodes that is everybody, so the set has the bits that it has among others. The
    sum runs in the order of the nodes.
    """
    backward = np.exp(-grid)
    log_s = grid - backward
    start, stop = 0, len(depths)
    if depths.shape[1] == 1:
        start = max(0, int(np.count_nonzero(depths < log_s[0] - LAST_NODE)) - 1)
        stop = int(np.count_nonzero(depths < log_s[-1] + UNSEEN))
        if not stop:
            return
    some = depths[start:stop]
    chances = -np.expm1(-np.exp(np.minimum(log_s[:, None] - some[:, None, :], SATURATED)))
    weights = presence.weights * (1.0 - presence.nodes) ** start
    gains = products_of_others(chances.reshape(len(some), -1), presence.nodes, weights).reshape(chances.shape)
    gains -= presence.even
    gains *= chances
    gains *= np.exp(-np.exp(np.minimum(log_s[:, None] - of_baseline, SATURATED)))
    for j, density in enumerate(STEP * (1.0 + backward)):
        values[start:stop] += density * gains[:, j]
        values[:start] += density * gains[:1, j]
