"""Which coalitions a credit rule needs, within a budget: known before the first one is evaluated.

Legend: `n` players. Rules other than Shapley's need the coalitions of their definition; the Shapley value needs all 2ⁿ,
or the plan of an estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NoReturn, TypeAlias

import numpy as np

from creditd.credit.coalition_plans import Booleans, permutation_plan, row_keys, stratified_plan
from creditd.credit.coalition_semivalues import coalition_count, coalitions_of_sizes, weighed_sizes
from creditd.credit.credit_rules import (
    Blend,
    CreditRule,
    DefinedRule,
    EndRule,
    Owen,
    PrefixGain,
    SetReward,
    Shapley,
    size_weights,
)
from creditd.credit.estimators import FEWEST_PER_PLAYER

EstimatorType: TypeAlias = Literal["auto", "exact", "stratified", "permutations"]
ESTIMATOR_TYPES: tuple[EstimatorType, ...] = ("auto", "exact", "stratified", "permutations")
MAX_EXACT_PLAYERS = 20
"""More players than this have too many coalitions to list them all."""
MOST_LISTED = 1 << 12
"""Coalitions that are listed only to say how many a budget lacks."""
CHECK_POINT_GROWTH = 1.5
"""From one check point of early stopping to the next."""


@dataclass(frozen=True)
class EstimatorOptions:
    """How Shapley credit is found when utilities have to be evaluated.

    Attributes:
        type: "exact" evaluates all 2ⁿ coalitions, "stratified" and "permutations" estimate (`estimators`); "auto" is
            exact where the budget allows, else stratified.
        budget: Most distinct coalitions to evaluate, ≥ 1.
        seed: Of the plan, ≥ 0.
        target_standard_error: Stop once the largest standard error (times 1.3, because it decides) is as small, reward
            units, > 0; None uses the whole budget.
    """

    type: EstimatorType = "auto"
    budget: int = 1024
    seed: int = 0
    target_standard_error: float | None = None

    def __post_init__(self) -> None:
        if self.type not in ESTIMATOR_TYPES:
            raise ValueError(f"unknown estimator: got {self.type!r}, expected one of {', '.join(ESTIMATOR_TYPES)}")
        if self.budget < 1 or self.seed < 0:
            raise ValueError(
                f"an estimator needs budget ≥ 1 and seed ≥ 0: got budget {self.budget} and seed {self.seed}"
            )
        target = self.target_standard_error
        if target is not None and not (0.0 < target < np.inf):
            raise ValueError(f"target_standard_error must be positive and finite: got {target}")


def required_evaluations(n_players: int, rule: CreditRule, options: EstimatorOptions) -> int:
    """Most coalitions that a game evaluates, known before the first one is.

        shapley: all 2ⁿ or the size of the plan;  set_reward: 2;  prefix_gain: n + 1;  others: Σ C(n, s)
        over the sizes s that the rule weighs, 0 and n (leave_one_out and own_reward: n + 2)

    Args:
        n_players: n ≥ 1.
        rule: Which credit.
        options: Budget and estimator.

    Returns:
        The number of distinct coalitions, ≤ options.budget. An `EvaluatedGame` without a target, told nothing
        beforehand, asks for exactly as many.

    Raises:
        ValueError: If the budget is too small for the rule (the message names the number needed), or the rule does not
            fit n.

    Cost:
        That of the plan.
    """
    needs = evaluation_needs(n_players, rule, options)
    return len(needs.definition) + len(needs.plan)


@dataclass(frozen=True)
class Needs:
    """What a game evaluates.

    Attributes:
        definition: Shape (D, n), bool: coalitions of the definitions of rules, less those in the plan.
        plan: Shape (R, n), bool: those of the Shapley value.
        check_points: Rows of the plan at which it may stop, ascending; the last one is R.
    """

    definition: Booleans
    plan: Booleans
    check_points: tuple[int, ...]


def evaluation_needs(n_players: int, rule: CreditRule, options: EstimatorOptions) -> Needs:
    """What a game of n players evaluates, within its budget.

    Args:
        n_players: n ≥ 1.
        rule: Which credit.
        options: Budget and estimator.

    Returns:
        The coalitions, distinct and at most options.budget; a function of the arguments alone.

    Raises:
        ValueError: As `required_evaluations`.

    Cost:
        That of the plan.
    """
    if n_players < 1:
        raise ValueError(f"a game needs players: got {n_players}")
    ends = [end for end, _ in rule_ends(rule)]
    if any(isinstance(end, Owen) for end in ends):
        raise ValueError("owen has no plan of coalitions: send all 2**n utilities as a table")
    defined = [end for end in ends if not isinstance(end, Shapley | Owen)]
    counted = sum(_definition_size(end, n_players) for end in defined)
    everything = 2**n_players
    if len(ends) == len(defined):
        # Rules share coalitions, so that the sum is an upper bound; the exact number needs the rows, if they are few.
        at_most = min(counted + 2, everything)
        if at_most > max(MOST_LISTED, options.budget):
            _refuse(options.budget, at_most, n_players)
        # v(∅) and v(N) stand in every answer, whether or not the rule looks at them.
        limits = defining_coalitions(SetReward(), n_players)
        rows = _union(n_players, [limits, *(defining_coalitions(end, n_players) for end in defined)])
        if len(rows) > options.budget:
            _refuse(options.budget, len(rows), n_players)
        return Needs(rows, np.empty((0, n_players), dtype=bool), (0,))
    exact = options.type == "exact" or (options.type == "auto" and everything <= options.budget)
    least = everything if options.type == "exact" else min(2 * n_players + 2, everything)
    if max([least, *(_definition_size(end, n_players) for end in defined)]) > options.budget:
        _refuse(options.budget, min(least + counted, everything), n_players)
    if exact and n_players > MAX_EXACT_PLAYERS:
        raise ValueError(
            f"exact credit lists all coalitions: got {n_players} players, expected {MAX_EXACT_PLAYERS} or less"
        )
    rows = _union(n_players, [defining_coalitions(end, n_players) for end in defined])
    if exact:
        plan = stratified_plan(n_players, everything, options.seed)
        return Needs(rows[:0], plan, (len(plan),))
    planned = permutation_plan if options.type == "permutations" else stratified_plan
    start = set(row_keys(planned(n_players, least, options.seed)))
    # With room for all coalitions there is room for those of every definition.
    reserved = 0 if everything <= options.budget else sum(key not in start for key in row_keys(rows))
    if least + reserved > options.budget:
        _refuse(options.budget, least + reserved, n_players)
    plan = planned(n_players, options.budget - reserved, options.seed)
    in_plan = set(row_keys(plan))
    rows = rows[[key not in in_plan for key in row_keys(rows)]]
    return Needs(rows, plan, _check_points(n_players, len(plan), options))


def _refuse(budget: int, needed: int, n_players: int) -> NoReturn:
    """Raise the error of a budget that is too small."""
    raise ValueError(f"the budget is too small for {n_players} players: got {budget}, expected {needed} or more")


def _check_points(n_players: int, n_rows: int, options: EstimatorOptions) -> tuple[int, ...]:
    """Rows of the plan at which the target is looked at: 10n, then half as many more each time, then all."""
    points: list[int] = []
    if options.target_standard_error is not None:
        planned = permutation_plan if options.type == "permutations" else stratified_plan
        rows = FEWEST_PER_PLAYER * n_players
        while rows < n_rows:
            point = len(planned(n_players, rows, options.seed))
            points += [point] if point not in points else []
            rows = int(CHECK_POINT_GROWTH * rows)
    return (*(point for point in points if point < n_rows), n_rows)


def rule_ends(rule: CreditRule) -> list[tuple[EndRule, float]]:
    """The rules that a credit is a mixture of, with their weights.

    Args:
        rule: Which credit.

    Returns:
        One rule of weight 1, or the ends of a blend; weights sum to 1 and none is 0.

    Cost:
        O(1).
    """
    if isinstance(rule, Blend):
        ends: list[tuple[EndRule, float]] = [(rule.start, 1.0 - rule.position), (rule.end, rule.position)]
        return [(end, weight) for end, weight in ends if weight != 0.0]
    return [(rule, 1.0)]


def _definition_size(rule: DefinedRule, n_players: int) -> int:
    """Number of coalitions in the definition of a rule."""
    if isinstance(rule, SetReward):
        return 2
    if isinstance(rule, PrefixGain):
        return n_players + 1
    return coalition_count(n_players, weighed_sizes(size_weights(rule, n_players)))


def defining_coalitions(rule: DefinedRule, n_players: int) -> Booleans:
    """The coalitions in the definition of a rule other than Shapley's.

        set_reward: ∅, N;  prefix_gain: the prefixes, ∅ first;  semivalues: all of the sizes that carry weight

    Args:
        rule: Which credit.
        n_players: n ≥ 1.

    Returns:
        Shape (D, n), bool, distinct rows.

    Raises:
        ValueError: If a `Mixture` has another number of weights than n.

    Cost:
        O(D · n).
    """
    if isinstance(rule, SetReward):
        return np.array([[False] * n_players, [True] * n_players])
    if isinstance(rule, PrefixGain):
        return np.arange(n_players)[None, :] < np.arange(n_players + 1)[:, None]
    return coalitions_of_sizes(n_players, weighed_sizes(size_weights(rule, n_players)))


def _union(n_players: int, blocks: list[Booleans]) -> Booleans:
    """Distinct rows of all blocks, in the order in which they first come."""
    rows = np.concatenate([np.empty((0, n_players), dtype=bool), *blocks])
    first: dict[bytes, int] = {}
    for row, key in enumerate(row_keys(rows)):
        first.setdefault(key, row)
    return rows[list(first.values())]
