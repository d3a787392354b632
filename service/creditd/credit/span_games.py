"""The game of one completion: which coalitions of its units are evaluated, and what its units are then worth.

Legend: `n` units, `R` coalitions. A coalition is a boolean row; True means that the unit stands in the text.

Every value is a method with a plan of coalitions. Whatever the value, v(∅) and v(N) are in the plan, because every
return is made of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalition_plans import Booleans, row_keys
from creditd.credit.credit_rules import Shapley
from creditd.credit.evaluated_games import EvaluatedGame
from creditd.credit.evaluation_limits import planned_evaluations
from creditd.credit.evaluation_needs import EstimatorOptions
from creditd.credit.owen_trees import OwenPlan, balanced_tree, owen_plan, tree_evaluations

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

SpanValue: TypeAlias = Literal["shapley", "owen", "prefix", "leave_one_out", "uniform", "attention"]
SpanMethod: TypeAlias = Literal[
    "table", "stratified", "permutations", "owen_tree", "definition", "uniform", "attention"
]


class TooManyEvaluationsError(ValueError):
    """A game would take more evaluations than it may; the message names both numbers."""


@dataclass(frozen=True)
class UnitValues:
    """What the units of one completion are worth.

    Attributes:
        values: u, shape (n,), float64, reward units.
        standard_errors: Shape (n,), float64, or None for a value that is no estimate, or too small a sample.
        intervals: Shape (n, 2), float64: marginal 95 % intervals, or None likewise.
        exact: Whether the values are what they are called, and no estimate of it.
        method: How they were found.
        interval_approximate: Whether the sample is too small for the promised coverage, or for any interval.
    """

    values: Floats
    standard_errors: Floats | None
    intervals: Floats | None
    exact: bool
    method: SpanMethod
    interval_approximate: bool = False


def affordable_value(n_units: int, budget: int) -> tuple[SpanValue, bool]:
    """The value that `auto` takes for completions of one prompt, by the longest of them.

    Args:
        n_units: n ≥ 0 of the longest one.
        budget: Evaluations that one completion may take.

    Returns:
        The value, and whether it is no estimate: `shapley` where all 2ⁿ coalitions fit the budget; `owen`, over the
        balanced tree, where those of the tree do; `shapley` and False, to be sampled, where neither does.

    Cost:
        O(1).

    Reference:
        SCAR, arXiv:2505.20417.

    Differs from the paper:
        It takes Owen values whatever the length, over a tree that its library builds from punctuation, and stops early
        where the budget ends.
    """
    if n_units < 63 and 1 << n_units <= budget:
        return "shapley", True
    if tree_evaluations(n_units) <= budget:
        return "owen", True
    return "shapley", False


class SpanGame:
    """One completion whose utilities come from outside: `ask`, `tell`, until `done`; then `values`.

    Args:
        n_units: n ≥ 1.
        value: What its units get.
        estimator: How many coalitions may be evaluated; how Shapley values are found. `auto` samples permutations where
            not all coalitions fit the budget.
        lengths: Shape (n,), int64: trainable tokens of each unit (`uniform`).
        most: Most evaluations, whatever the budget.
        tree: Merges, shape (n − 1, 2), as `owen_trees`; None is the balanced one (`owen`).

    Raises:
        TooManyEvaluationsError: If the budget, or `most`, is too small.
        ValueError: If the tree is none of n leaves.
    """

    def __init__(
        self,
        n_units: int,
        value: SpanValue,
        estimator: EstimatorOptions,
        *,
        lengths: Integers,
        most: int,
        tree: Integers | None = None,
    ) -> None:
        self.n_units = n_units
        self.value = value
        self._lengths = lengths
        self._game: EvaluatedGame | None = None
        self._owen: OwenPlan | None = None
        if value == "shapley":
            options = _sampled(n_units, estimator)
            planned = planned_evaluations(0, n_units, Shapley(), options, most)
            if not isinstance(planned, int):
                raise TooManyEvaluationsError(planned.detail)
            self.planned = planned
            self._game = EvaluatedGame(n_units, options)
            self._coalitions = np.empty((0, n_units), dtype=np.bool_)
            return
        if value == "owen":
            self._owen = _owen_plan(n_units, tree, min(estimator.budget, most))
            self._coalitions = self._owen.coalitions
        else:
            self._coalitions = _defining(value, n_units)
        self.planned = len(self._coalitions)
        if self.planned > min(estimator.budget, most):
            raise TooManyEvaluationsError(
                f"{value} of {n_units} units takes {self.planned} evaluations; got a budget of "
                f"{min(estimator.budget, most)}"
            )
        self._keys = row_keys(self._coalitions)
        self._known: dict[bytes, float] = {}

    def ask(self) -> Booleans:
        """Coalitions without a utility, v(∅) and v(N) first; the same until they are told.

        Returns:
            Shape (R, n), bool; no rows when done.
        """
        if self._game is not None:
            return self._game.ask()
        if not self._known:
            return self._coalitions
        if len(self._known) == len(self._keys):
            return self._coalitions[:0]
        return self._coalitions[[row for row, key in enumerate(self._keys) if key not in self._known]]

    def tell(self, coalitions: Booleans, utilities: Floats) -> None:
        """Take utilities of its coalitions, in any order.

        Args:
            coalitions: Shape (R, n), bool.
            utilities: Shape (R,), float64, reward units.

        Raises:
            ValueError: If a utility is not finite, or a coalition was told before with another utility.
        """
        if self._game is not None:
            self._game.tell(coalitions, utilities)
            return
        told = dict(zip(row_keys(coalitions), utilities.tolist(), strict=True))
        for key, utility in told.items():
            if self._known.get(key, utility) != utility:
                raise ValueError(f"a coalition has two utilities: got {utility}, was told {self._known[key]}")
        self._known |= told

    @property
    def n_known(self) -> int:
        """How many of the coalitions that it needs so far have a utility."""
        return self._game.known if self._game is not None else sum(key in self._known for key in self._keys)

    def values(self, attention: Floats | None = None) -> UnitValues | None:
        """What the units are worth, once nothing is left to ask for.

        Args:
            attention: Shape (n,), float64, ≥ 0: what the model attends to of each unit (`attention`).

        Returns:
            The values; None where the attention leaves nothing to share by: none of it, or not finite.
        """
        if self._game is not None:
            found = self._game.credits()
            return UnitValues(
                values=found.credits,
                standard_errors=found.standard_errors,
                intervals=found.intervals,
                exact=found.exact,
                method=found.method,
                interval_approximate=found.interval_approximate or not (found.exact or found.intervals is not None),
            )
        utilities = np.array([self._known[key] for key in self._keys])
        if self._owen is not None:
            return _definite(self._owen.values(utilities), "owen_tree")
        if self.value == "prefix":
            return _definite(np.diff(np.append(np.append(utilities[0], utilities[2:]), utilities[1])), "definition")
        if self.value == "leave_one_out":
            without = utilities[2:] if self.n_units > 1 else utilities[:1]
            return _definite(utilities[1] - without, "definition")
        if self.value == "uniform":
            return _shared(utilities[1] - utilities[0], self._lengths.astype(np.float64), "uniform")
        if attention is None:
            raise ValueError("attention needs the attention of each unit: got None")
        return _shared(utilities[1] - utilities[0], attention, "attention")


def _sampled(n_units: int, estimator: EstimatorOptions) -> EstimatorOptions:
    """The options with `auto` decided: all coalitions where they fit, else permutations."""
    if estimator.type != "auto":
        return estimator
    fits = affordable_value(n_units, estimator.budget) == ("shapley", True)
    return EstimatorOptions(
        type="exact" if fits else "permutations",
        budget=estimator.budget,
        seed=estimator.seed,
        target_standard_error=estimator.target_standard_error,
    )


def _owen_plan(n_units: int, tree: Integers | None, most: int) -> OwenPlan:
    needed = tree_evaluations(n_units) if tree is None else 0
    if needed > most:
        raise TooManyEvaluationsError(
            f"owen over the balanced tree of {n_units} units takes {needed} evaluations; got a budget of {most}"
        )
    merges = balanced_tree(n_units) if tree is None else tree
    if len(merges) != n_units - 1:
        raise ValueError(f"tree: got {len(merges)} merges; expected {n_units - 1} for {n_units} units")
    return owen_plan(merges, most=most)


def _defining(value: SpanValue, n_units: int) -> Booleans:
    """The coalitions of a definition: ∅, N, then the others in the order of the units; none twice."""
    ends = np.array([[False] * n_units, [True] * n_units])
    if value == "prefix":
        return np.concatenate([ends, np.tri(n_units - 1, n_units, dtype=np.bool_)])
    if value == "leave_one_out" and n_units > 1:
        return np.concatenate([ends, ~np.eye(n_units, dtype=np.bool_)])
    return ends


def _definite(values: Floats, method: SpanMethod) -> UnitValues:
    return UnitValues(values, None, None, exact=True, method=method)


def _shared(total: float, shares: Floats, method: SpanMethod) -> UnitValues | None:
    """The total in proportion to the shares."""
    whole = float(np.cumsum(shares)[-1])
    if not (np.isfinite(shares).all() and whole > 0.0):
        return None
    return _definite(total * (shares / whole), method)
