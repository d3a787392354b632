"""Shapley values of utilities that are evaluated coalition by coalition, with standard errors.

Legend: `n` players, `R` coalitions, `M` complement pairs, `d` = v(S) − v(N∖S) the difference of a pair.

Two estimators, one for use and one for audits:

- *stratified*: what a proxy explains of the game is solved exactly, the rest by means over pairs of one size;
- *permutations*: the plain mean of marginal utilities over random orders and their reversals, nothing modelled.

With all 2ⁿ utilities both give the exact value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalition_plans import Booleans, core_plan, permutation_walks, stratified_plan
from creditd.credit.coalition_semivalues import coalition_semivalues
from creditd.credit.cross_fitted_ridge import cross_fitted_ridges
from creditd.credit.pair_designs import PairDesign, Stratum, pair_design
from creditd.credit.proxies import Columns, all_columns, any_columns, indicator_columns, maximum_column, share_columns
from creditd.credit.student_t import t_quantile
from creditd.credit.tables import MAX_PLAYERS, table_semivalues

Floats: TypeAlias = NDArray[np.float64]

Method: TypeAlias = Literal["stratified", "permutations", "table"]

CONFIDENCE = 0.95
"""Of the marginal intervals."""
FEWEST_PER_PLAYER = 10
"""Below this many evaluations per player there is no interval."""
ENOUGH_PER_PLAYER = 30
"""Below this many evaluations per player an interval is approximate."""
FEWEST_PAIRS = 8
"""Below this many pairs, in an open size or of permutations, there is no interval."""
ENOUGH_PERMUTATION_PAIRS = 256
"""Below this many antithetic pairs of permutations an interval is approximate."""
MODERATION = 4.0
"""Pairs' worth of the variance of a whole size in the variance among the pairs with one player."""
UNSEEN = 0.3
"""Part of the variance of the differences that a kind of coalition may have which none of the pairs of its size shows,
over the square of their number: about as often as that do such kinds occur. It keeps the standard errors of games that
the proxy nearly spans from vanishing, and adds at most a few per cent to those of others."""
ROUNDING = 1e-14
"""Share of the largest utility that a standard error never falls below: an estimate is a sum of rounded numbers."""
STOPPING_INFLATION = 1.3
"""Standard errors grow by this factor when they decided when to stop."""


@dataclass(frozen=True)
class Estimate:
    """Shapley values with what is known of their error.

    Attributes:
        shapley_values: Shape (n,), float64, reward units.
        standard_errors: Shape (n,), float64, reward units; zeros for an exact value; None when a size has fewer than
            two pairs.
        intervals: Shape (n, 2), float64: marginal 95 % intervals; None for an exact value and for samples too small.
        degrees_of_freedom: Of the t quantile; None where there is no interval.
        exact: Whether all 2ⁿ utilities were known.
        method: "stratified", "permutations", or "table" for an exact value.
        evaluations: Distinct coalitions used.
        interval_approximate: Whether the sample is too small for the promised coverage.
    """

    shapley_values: Floats
    standard_errors: Floats | None
    intervals: Floats | None
    degrees_of_freedom: int | None
    exact: bool
    method: Method
    evaluations: int
    interval_approximate: bool
    efficient: ClassVar[bool] = True
    """The values sum to v(N) − v(∅) within rounding."""


def stratified_estimate(coalitions: Booleans, utilities: Floats, *, seed: int, stopped_early: bool = False) -> Estimate:
    """Shapley values from a stratified plan: a proxy solved exactly, its residuals by maximum sample reuse.

        φ = P·x̄ + MSR(d − F·x̄),    MSR_i(d) = 1/n · Σ_s [mean of d where i ∈ S − mean of d where i ∉ S]

    F holds the differences of games with known Shapley values P (`proxies`). The coefficients x̄ are the mean of ridge
    regressions on all folds of the pairs but one; their strength, down to no proxy at all, is the one whose residuals
    on the folds left out promise the smallest variance. These residuals give the standard errors. A last step shares
    what is missing to v(N) − v(∅) equally.

    Args:
        coalitions: Shape (R, n), bool: `stratified_plan(n, R, seed)`, R ≥ min(2n + 2, 2ⁿ).
        utilities: Shape (R,), float64, reward units, finite.
        seed: That of the plan; chooses the folds.
        stopped_early: Whether R was decided by the standard errors, which are then multiplied by 1.3.

    Returns:
        The estimate. Exact when all 2ⁿ coalitions are there. Adding a constant to the utilities, or another number to
        v(∅) and v(N), changes nothing but rounding (and equal shares); scaling them scales the estimate. A game that
        the proxy's columns span is estimated within the shrinkage of the ridge.

    Raises:
        ValueError: If the coalitions are not the plan, or there are too few of them.

    Cost:
        O(M · p · min(M, p)) with p ≤ 4n + 300 columns of the proxy; what the plan alone decides is remembered.

    Reference:
        Stratified sampling with reuse of each utility for all players: SVARM, arXiv:2302.00736; a regression adjusted
        by sampling: Witter et al., arXiv:2506.11849.

    Differs from the paper:
        Complement pairs without replacement, the sizes 1 and n−1 exhausted, a proxy made of closed-form games and of
        interactions of three players, and standard errors by pairs.
    """
    n = _check(coalitions, utilities, core_plan, "stratified")
    if not np.array_equal(coalitions, stratified_plan(n, len(coalitions), seed)):
        raise ValueError(f"coalitions must be the stratified plan of {n} players, their number and the seed")
    if len(coalitions) == 2**n:
        return exact_estimate(coalitions, utilities)
    design = pair_design(coalitions, seed)
    differences = utilities[design.small_rows] - utilities[design.large_rows]
    values, residuals, held_out = _adjusted(design, utilities, differences)
    values = values + _means_of_strata(design, residuals)
    values += ((utilities[1] - utilities[0]) - float(np.cumsum(values)[-1])) / n
    fewest = design.pairs_in_open_size or 0
    errors = _standard_errors(design, held_out, differences) if fewest >= 2 else None
    if errors is not None:
        errors = np.maximum(errors, ROUNDING * float(np.abs(utilities).max()))
    if errors is not None and stopped_early:
        errors = STOPPING_INFLATION * errors
    estimate = _without_intervals(values, errors, "stratified", coalitions)
    if fewest < FEWEST_PAIRS or len(coalitions) < FEWEST_PER_PLAYER * n:
        return estimate
    approximate = stopped_early or len(coalitions) < ENOUGH_PER_PLAYER * n
    return _with_intervals(estimate, fewest - 1, approximate=approximate)


def permutation_estimate(
    coalitions: Booleans, utilities: Floats, *, seed: int, stopped_early: bool = False
) -> Estimate:
    """Shapley values as the mean marginal utility over random orders of the players and their reversals.

        φ_i = mean over orders of ½·[v(before i ∪ i) − v(before i)] + ½·[the same in the reversed order]

    Args:
        coalitions: Shape (R, n), bool: `permutation_plan(n, R, seed)`, with the walks of at least one order.
        utilities: Shape (R,), float64, reward units, finite.
        seed: That of the plan.
        stopped_early: Whether R was decided by the standard errors, which are then multiplied by 1.3.

    Returns:
        The estimate, unbiased; exact when all 2ⁿ coalitions are there. The pairs of orders are independent, so the
        interval is Student's, with one degree of freedom less than pairs.

    Raises:
        ValueError: If the coalitions are not the plan, or hold no complete walk.

    Cost:
        O(P · n) for P orders.

    Reference:
        Castro et al. 2009; antithetic orders: Mitchell et al., arXiv:2104.12199.

    Differs from the paper:
        No truncation of walks, which is biased for utilities that are not monotone.
    """
    n = _check(coalitions, utilities, lambda n: np.empty((min(2 * n, 2**n), n), dtype=bool), "permutation")
    plan, orders, walks = permutation_walks(n, len(coalitions), seed)
    if not np.array_equal(coalitions, plan):
        raise ValueError(f"coalitions must be the permutation plan of {n} players, their number and the seed")
    if len(coalitions) == 2**n:
        return exact_estimate(coalitions, utilities)
    gains = np.diff(utilities[walks], axis=2)
    marginals = np.empty((len(orders), n))
    # The walk back meets the players in reversed order.
    np.put_along_axis(marginals, orders, 0.5 * (gains[:, 0] + gains[:, 1, ::-1]), axis=1)
    n_pairs = len(orders)
    values = np.cumsum(marginals, axis=0)[-1] / n_pairs
    errors = None
    if n_pairs >= 2:
        squares = np.cumsum((marginals - values) ** 2, axis=0)[-1]
        errors = np.sqrt(squares / (n_pairs * (n_pairs - 1)))
        errors = STOPPING_INFLATION * errors if stopped_early else errors
    estimate = _without_intervals(values, errors, "permutations", coalitions)
    if n_pairs < FEWEST_PAIRS or len(coalitions) < FEWEST_PER_PLAYER * n:
        return estimate
    approximate = stopped_early or n_pairs < ENOUGH_PERMUTATION_PAIRS
    return _with_intervals(estimate, n_pairs - 1, approximate=approximate)


def exact_estimate(coalitions: Booleans, utilities: Floats) -> Estimate:
    """The Shapley value, all 2ⁿ utilities being known.

    Args:
        coalitions: Shape (2ⁿ, n), bool, distinct, in any order.
        utilities: Shape (2ⁿ,), float64, reward units, finite.

    Returns:
        Values equal to `table_semivalues` of the table (n ≤ 16), with standard errors of 0; the order of the coalitions
        changes no bit.

    Raises:
        ValueError: If there are not 2ⁿ coalitions.

    Cost:
        O(n · 2ⁿ).
    """
    n = coalitions.shape[1]
    if len(coalitions) != 2**n:
        raise ValueError(f"an exact value needs all coalitions: got {len(coalitions)}, expected {2**n}")
    weights = np.full(n, 1.0 / n)
    if n <= MAX_PLAYERS:
        table = np.empty((1, 2**n))
        table[0, coalitions @ (1 << np.arange(n))] = utilities
        values = table_semivalues(table, weights)[0]
    else:
        values = coalition_semivalues(coalitions, utilities, weights)
    return _without_intervals(values, np.zeros(n), "table", coalitions)


def _check(coalitions: Booleans, utilities: Floats, least: Callable[[int], Booleans], method: str) -> int:
    """Number of players, once the shapes fit and there are enough coalitions."""
    if coalitions.ndim != 2 or coalitions.shape[1] < 1 or utilities.shape != coalitions.shape[:1]:
        raise ValueError(
            "coalitions must have shape (R, n) and utilities (R,): "
            f"got {coalitions.shape} and {utilities.shape}, expected n ≥ 1 and equal R"
        )
    n = int(coalitions.shape[1])
    if len(coalitions) < len(least(n)):
        raise ValueError(
            f"a {method} estimate of {n} players needs {len(least(n))} evaluations or more: got {len(coalitions)}"
        )
    return n


def _without_intervals(values: Floats, errors: Floats | None, method: Method, coalitions: Booleans) -> Estimate:
    """An estimate that has no interval, or not yet."""
    return Estimate(
        shapley_values=values,
        standard_errors=errors,
        intervals=None,
        degrees_of_freedom=None,
        exact=method == "table",
        method=method,
        evaluations=len(coalitions),
        interval_approximate=False,
    )


def _with_intervals(estimate: Estimate, degrees_of_freedom: int, *, approximate: bool) -> Estimate:
    """The estimate with its marginal intervals."""
    if estimate.standard_errors is None:
        return estimate
    width = t_quantile(0.5 + 0.5 * CONFIDENCE, float(degrees_of_freedom)) * estimate.standard_errors
    return replace(
        estimate,
        intervals=np.stack([estimate.shapley_values - width, estimate.shapley_values + width], axis=1),
        degrees_of_freedom=degrees_of_freedom,
        interval_approximate=approximate,
    )


def _adjusted(design: PairDesign, utilities: Floats, differences: Floats) -> tuple[Floats, Floats, Floats]:
    """Shapley values of the proxy, what it leaves of the differences, and the residuals of the folds left out."""
    values, residuals, held_out = np.zeros(design.n_players), differences, differences
    if design.n_folds < 2:
        return values, residuals, held_out
    row_scale = 1.0 / np.sqrt(np.bincount(design.sizes)[design.sizes])
    fewest = _variance(design, held_out)
    for (columns, known), n_joint in _proxies(design, utilities):
        for fit in cross_fitted_ridges(columns, n_joint, differences, row_scale, design.sizes, design.folds):
            variance = _variance(design, fit.held_out)
            if variance < fewest:
                fewest, held_out = variance, fit.held_out
                values = known @ fit.coefficients
                residuals = differences - columns @ fit.coefficients
    return values, residuals, held_out


def _proxies(design: PairDesign, utilities: Floats) -> list[tuple[Columns, int]]:
    """Games that a proxy is a mixture of: closed forms on the singletons and the leave-one-outs; these and triples."""
    n = design.n_players
    alone = utilities[2 : 2 + n]
    missed = utilities[1] - utilities[2 + n : 2 + 2 * n]
    best = any_columns(design.small, alone)
    closed = [
        indicator_columns(design.small),
        share_columns(design.small),
        best,
        maximum_column(best, alone),
        all_columns(design.small, missed),
    ]
    return [(_side_by_side(closed), 0), (_side_by_side([*closed, design.triples]), design.triples[0].shape[1])]


def _side_by_side(blocks: list[Columns]) -> Columns:
    """The columns of all blocks."""
    return np.concatenate([block[0] for block in blocks], axis=1), np.concatenate(
        [block[1] for block in blocks], axis=1
    )


def _variance(design: PairDesign, residuals: Floats) -> float:
    """Variance of the estimate, summed over players, up to a factor: what the choice of a proxy minimises."""
    total = 0.0
    for stratum in design.strata:
        own = residuals[stratum.pairs]
        centred = own - float(np.cumsum(own)[-1]) / len(own)
        total += float(np.cumsum(design.row_weight[stratum.pairs] * centred * centred)[-1])
    return total


def _means_of_strata(design: PairDesign, differences: Floats) -> Floats:
    """Sum over sizes of the mean with a player less the mean without it, over n."""
    values = np.zeros(design.n_players)
    for stratum in design.strata:
        values += stratum.mass * _contrast(stratum, differences[stratum.pairs])
    return values / design.n_players


def _contrast(stratum: Stratum, differences: Floats) -> Floats:
    """Mean difference with a player less the mean without it; the mean of all stands in for a mean of none."""
    count = len(differences)
    total = float(np.cumsum(differences)[-1])
    inside = stratum.members @ differences
    if stratum.is_middle:
        return (2.0 * inside - total) / count
    n_inside = stratum.inside
    n_outside = count - n_inside
    with_player = np.where(n_inside > 0, inside / np.maximum(n_inside, 1.0), total / count)
    without = np.where(n_outside > 0, (total - inside) / np.maximum(n_outside, 1.0), total / count)
    return with_player - without


def _standard_errors(design: PairDesign, residuals: Floats, differences: Floats) -> Floats:
    """Standard error of each player, from the spread of the residuals in each size that is not exhausted.

    The variance among the pairs with a player is moderated by that of all pairs of the size, because a player may be in
    one or two of them only. What no pair shows has a share of the variance of the differences themselves (`UNSEEN`).
    """
    variances = np.zeros(design.n_players)
    for stratum in design.strata:
        if stratum.undrawn:
            unseen = UNSEEN * _spread(differences[stratum.pairs]) / len(stratum.pairs) ** 2
            variance = _contrast_variance(stratum, residuals[stratum.pairs], unseen)
            variances += stratum.mass**2 * stratum.undrawn * variance
    return np.sqrt(variances) / design.n_players


def _spread(values: Floats) -> float:
    """Variance of some values about their mean, 0 for one."""
    centred = values - float(np.cumsum(values)[-1]) / len(values)
    return float(np.cumsum(centred * centred)[-1]) / max(len(values) - 1, 1)


def _contrast_variance(stratum: Stratum, residuals: Floats, unseen: float) -> Floats:
    """Variance of the contrast of each player, for pairs drawn with replacement; `unseen` adds to that of a pair."""
    count = len(residuals)
    if stratum.is_middle:
        oriented = (2.0 * stratum.members - 1.0) * residuals
        mean = np.cumsum(oriented, axis=1)[:, -1] / count
        squares = np.cumsum((oriented - mean[:, None]) ** 2, axis=1)[:, -1]
        return squares / (count * (count - 1)) + unseen / count
    centred = residuals - float(np.cumsum(residuals)[-1]) / count
    pooled = float(np.cumsum(centred * centred)[-1]) / (count - 1)
    total = np.zeros(len(stratum.members))
    for members in (stratum.members, 1.0 - stratum.members):
        n_members = np.cumsum(members, axis=1)[:, -1]
        at_least_one = np.maximum(n_members, 1.0)
        mean = (members @ centred) / at_least_one
        squares = np.cumsum(members * (centred - mean[:, None]) ** 2, axis=1)[:, -1]
        moderated = (squares + MODERATION * pooled) / (at_least_one - 1.0 + MODERATION)
        total += (moderated + unseen) / at_least_one
    return total
