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
from creditd.credit.evaluation_needs import MAX_EXACT_PLAYERS, EstimatorOptions
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
        TooManyEvaluationsError: If the budget, or `most`, is too small, or a sample of the whole budget above `most`.
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
            self.planned = _planned_shapley(n_units, options, most)
            self._game = EvaluatedGame(n_units, options)
            self._coalitions = np.empty((0, n_units), dtype=np.bool_)
            return
        if value == "owen":
            self._owen = _owen_plan(n_units, tree, estimator.budget, most)
            self._coalitions = self._owen.coalitions
        else:
            self._coalitions = _defining(value, n_units)
        self.planned = len(self._coalitions)
        _check_budget(value, n_units, self.planned, estimator.budget, most)
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


def _planned_shapley(n_units: int, options: EstimatorOptions, most: int) -> int:
    """Evaluations of Shapley values, once the budget is none too small and none too large."""
    everything = 1 << n_units
    if options.type == "exact":
        _check_budget("exact shapley", n_units, everything, options.budget, most)
    else:
        _check_budget("sampled shapley", n_units, min(2 * n_units + 2, everything), options.budget, most)
    planned = planned_evaluations(0, n_units, Shapley(), options, most)
    if isinstance(planned, int):
        return planned
    if options.type == "exact":
        raise TooManyEvaluationsError(
            f"exact shapley lists all coalitions: got {n_units} units, expected at most {MAX_EXACT_PLAYERS}"
        )
    raise TooManyEvaluationsError(
        f"sampled shapley of {n_units} units takes more than {most} evaluations; got a budget of {options.budget}, "
        f"expected at most {most}"
    )


def _check_budget(what: str, n_units: int, needed: int, budget: int, most: int) -> None:
    """Refuse a game that takes more evaluations than its budget, or than any may."""
    if needed <= min(budget, most):
        return
    number = str(needed) if needed < 1 << 63 else f"2^{n_units}"
    takes = f"{what} of {n_units} units takes {number} evaluations"
    if needed > most:
        raise TooManyEvaluationsError(f"{takes}; expected at most {most}, whatever the budget")
    raise TooManyEvaluationsError(f"{takes}; got a budget of {budget}, expected at least {number}")


def _owen_plan(n_units: int, tree: Integers | None, budget: int, most: int) -> OwenPlan:
    if tree is None:
        _check_budget("owen over the balanced tree", n_units, tree_evaluations(n_units), budget, most)
        return owen_plan(balanced_tree(n_units), most=most)
    if len(tree) != n_units - 1:
        raise ValueError(f"tree: got {len(tree)} merges; expected {n_units - 1} for {n_units} units")
    return owen_plan(tree, most=min(budget, most))


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
