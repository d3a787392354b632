"""Credit for a utility that somebody else evaluates: ask for coalitions, tell their utilities, read the credits.

Legend: `n` players, `R` coalitions. A coalition is a boolean row; True means that the player is in.

The credits are a function of the players, the rule, the options and the utilities: neither the size of the batches nor
the order in which utilities are told changes a bit. A game that lost its process is rebuilt from its options and the
utilities known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalition_plans import Booleans, row_keys
from creditd.credit.coalition_semivalues import coalition_semivalues, every_coalition
from creditd.credit.credit_rules import CreditRule, DefinedRule, Owen, PrefixGain, SetReward, Shapley, size_weights
from creditd.credit.estimators import Estimate, exact_estimate, permutation_estimate, stratified_estimate
from creditd.credit.evaluation_needs import EstimatorOptions, defining_coalitions, evaluation_needs, rule_ends
from creditd.credit.group_sums import MAX_MAGNITUDE

Floats: TypeAlias = NDArray[np.float64]
EvaluatedMethod: TypeAlias = Literal["stratified", "permutations", "table", "definition"]


@dataclass(frozen=True)
class EvaluatedCredits:
    """Credits of one game.

    Attributes:
        credits: Shape (n,), float64, reward units.
        standard_errors: Shape (n,), float64; None for exact credits and where the sample is too small for one.
        intervals: Shape (n, 2), float64: marginal 95 % intervals; None likewise.
        degrees_of_freedom: Of the intervals' t quantile, or None.
        exact: Whether the credits are the rule's value, not an estimate.
        method: "stratified" or "permutations" for estimates, "table" when all 2ⁿ utilities were used, "definition" for
            rules that need fewer.
        evaluations: Distinct coalitions used.
        empty: v(∅).
        grand: v(N).
        scale: Largest magnitude among the utilities used.
        interval_approximate: Whether the sample is too small for the promised coverage.
        efficient: Whether the rule's credits sum to v(N) − v(∅).
    """

    credits: Floats
    standard_errors: Floats | None
    intervals: Floats | None
    degrees_of_freedom: int | None
    exact: bool
    method: EvaluatedMethod
    evaluations: int
    empty: float
    grand: float
    scale: float
    interval_approximate: bool
    efficient: bool

    def reordered(self, order: NDArray[np.int64]) -> EvaluatedCredits:
        """The same with the players in another order: player order[i] of this one comes at place i."""
        return replace(
            self,
            credits=self.credits[order],
            standard_errors=None if self.standard_errors is None else self.standard_errors[order],
            intervals=None if self.intervals is None else self.intervals[order],
        )


class EvaluatedGame:
    """One game whose utilities come from outside.

    Alternate `ask` and `tell` until `done`, then read `credits`. Utilities that are known beforehand are not asked for;
    utilities that the plan does not need are kept, because all 2ⁿ together make any credit exact. A plan depends on
    the numbers of the players: whoever wants estimates that do not depend on the order in which candidates stand has to
    number them by something that stays, such as their ids.

    Args:
        n_players: n ≥ 1.
        options: Budget and estimator.
        rule: Which credit; `MaxAtK` with k > n uses n, `Mixture` needs n weights.
        known_coalitions: Shape (R, n), bool, or None.
        known_utilities: Shape (R,), float64, reward units, or None.

    Raises:
        ValueError: If the budget is too small (the message names the number needed), or a known utility is not finite.
    """

    def __init__(
        self,
        n_players: int,
        options: EstimatorOptions,
        rule: CreditRule | None = None,
        *,
        known_coalitions: Booleans | None = None,
        known_utilities: Floats | None = None,
    ) -> None:
        self.n_players = n_players
        self.options = options
        self.rule: CreditRule = Shapley() if rule is None else rule
        self._needs = evaluation_needs(n_players, self.rule, options)
        self._wanted = np.concatenate([self._needs.definition, self._needs.plan])
        self._keys = row_keys(self._wanted)
        self._first_missing = 0
        self._utilities: dict[bytes, float] = {}
        self._check_points = list(self._needs.check_points)
        self._estimate: Estimate | None = None
        self.tell(
            np.empty((0, n_players), dtype=bool) if known_coalitions is None else known_coalitions,
            np.empty(0) if known_utilities is None else known_utilities,
        )

    @property
    def done(self) -> bool:
        """Whether nothing is left to ask for."""
        return len(self.ask(1)) == 0

    @property
    def known(self) -> int:
        """How many of the coalitions that it needs so far have a utility."""
        return sum(key in self._utilities for key in self._keys[: self._end])

    def ask(self, limit: int | None = None) -> Booleans:
        """The next coalitions without a utility, in the order of the plan.

        Args:
            limit: Most rows, ≥ 1; None for all up to the next check point.

        Returns:
            Shape (R, n), bool; no rows when done. Asking twice gives the same rows until they are told.

        Raises:
            ValueError: If limit < 1.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1: got {limit}")
        if self._everything_known:
            return self._wanted[:0]
        missing: list[int] = []
        for row in range(self._skip_known(), self._end):
            if len(missing) == limit:
                break
            if self._keys[row] not in self._utilities:
                missing.append(row)
        return self._wanted[missing]

    def tell(self, coalitions: Booleans, utilities: Floats) -> None:
        """Take the utilities of coalitions, asked for or not, in any order.

        Args:
            coalitions: Shape (R, n), bool.
            utilities: Shape (R,), float64, reward units.

        Raises:
            ValueError: If shapes do not fit, a utility is not finite or above 1e100 in magnitude, or a coalition was
                told before with another utility. Nothing is taken then.
        """
        coalitions, utilities = np.asarray(coalitions), np.asarray(utilities, dtype=np.float64)
        if coalitions.dtype != np.bool_ or coalitions.ndim != 2 or coalitions.shape[1] != self.n_players:
            raise ValueError(
                f"coalitions must be boolean with shape (R, {self.n_players}): "
                f"got {coalitions.dtype} with shape {coalitions.shape}"
            )
        if utilities.shape != coalitions.shape[:1]:
            raise ValueError(f"one utility per coalition: got {utilities.shape}, expected {coalitions.shape[:1]}")
        for row in np.flatnonzero(~(np.abs(utilities) <= MAX_MAGNITUDE))[:1].tolist():
            raise ValueError(
                f"utility of coalition {_members(coalitions[row])} is {utilities[row]}: expected a finite number of "
                f"magnitude {MAX_MAGNITUDE:g} or less"
            )
        told: dict[bytes, float] = {}
        for row, (key, utility) in enumerate(zip(row_keys(coalitions), utilities.tolist(), strict=True)):
            before = told.get(key, self._utilities.get(key, utility))
            if before != utility:
                raise ValueError(
                    f"coalition {_members(coalitions[row])} has two utilities: got {utility}, was told {before}"
                )
            told[key] = utility
        self._utilities.update(told)
        self._pass_check_points()

    def credits(self) -> EvaluatedCredits:
        """Credits of the players, once everything asked for has been told.

        Returns:
            The credits; those of an efficient rule sum to v(N) − v(∅) within rounding.

        Raises:
            ValueError: If utilities are missing.
        """
        missing = len(self.ask())
        if missing:
            raise ValueError(f"{missing} coalitions have no utility yet: ask for them and tell them first")
        values, share, estimate = self._credits_and_share_of_estimate()
        used = set(self._keys[: self._end])
        if estimate is not None and estimate.exact:
            used.update(self._utilities)
        empty, grand = row_keys(np.array([[False] * self.n_players, [True] * self.n_players]))
        errors = None if estimate is None or estimate.exact else estimate.standard_errors
        widths = None
        if estimate is not None and estimate.intervals is not None:
            widths = share * (estimate.intervals - estimate.shapley_values[:, None])
        return EvaluatedCredits(
            credits=values,
            standard_errors=None if errors is None else share * errors,
            intervals=None if widths is None else values[:, None] + widths,
            degrees_of_freedom=None if estimate is None else estimate.degrees_of_freedom,
            exact=estimate is None or estimate.exact,
            method="definition" if estimate is None else estimate.method,
            evaluations=len(used),
            empty=self._utilities[empty],
            grand=self._utilities[grand],
            scale=max((abs(self._utilities[key]) for key in used), default=0.0),
            interval_approximate=estimate is not None and estimate.interval_approximate,
            efficient=all(isinstance(end, Shapley | SetReward) for end, _ in rule_ends(self.rule)),
        )

    @property
    def _end(self) -> int:
        """Rows wanted up to the present check point."""
        return len(self._needs.definition) + self._check_points[0]

    @property
    def _everything_known(self) -> bool:
        """Whether all 2ⁿ utilities are known."""
        return bool(len(self._utilities) == 2**self.n_players)

    def _skip_known(self) -> int:
        """First row wanted that has no utility; utilities stay, so it only grows."""
        while self._first_missing < len(self._keys) and self._keys[self._first_missing] in self._utilities:
            self._first_missing += 1
        return self._first_missing

    def _pass_check_points(self) -> None:
        """Go on to the next check point while the target is not met at this one."""
        while len(self._check_points) > 1 and self._skip_known() >= self._end:
            self._estimate = self._estimate or self._estimated()
            errors = self._estimate.standard_errors
            if errors is not None and float(errors.max()) <= (self.options.target_standard_error or 0.0):
                return
            del self._check_points[0]
            self._estimate = None

    def _estimated(self) -> Estimate:
        """Shapley values from the plan up to the present check point."""
        plan = self._needs.plan[: self._check_points[0]]
        utilities = self._utilities_of(row_keys(plan))
        early = len(self._needs.check_points) > 1
        if len(plan) == 2**self.n_players:
            return exact_estimate(plan, utilities)
        if self.options.type == "permutations":
            return permutation_estimate(plan, utilities, seed=self.options.seed, stopped_early=early)
        return stratified_estimate(plan, utilities, seed=self.options.seed, stopped_early=early)

    def _shapley_estimate(self) -> Estimate:
        """Shapley values from all utilities when all are known, else from the plan."""
        if self._everything_known:
            plan = every_coalition(self.n_players)
            return exact_estimate(plan, self._utilities_of(row_keys(plan)))
        return self._estimate or self._estimated()

    def _credits_and_share_of_estimate(self) -> tuple[Floats, float, Estimate | None]:
        """Credits, the weight of the Shapley value in them, and its estimate if it has any."""
        values = np.zeros(self.n_players)
        estimate, share = None, 0.0
        for end, weight in rule_ends(self.rule):
            if isinstance(end, Owen):
                raise TypeError("owen has no plan of coalitions")
            if isinstance(end, Shapley):
                estimate = self._shapley_estimate()
                share += weight
                values += weight * estimate.shapley_values
            else:
                values += weight * self._defined(end)
        return values, share, estimate

    def _defined(self, rule: DefinedRule) -> Floats:
        """Credits of a rule that is computed from the coalitions of its definition."""
        rows = defining_coalitions(rule, self.n_players)
        utilities = self._utilities_of(row_keys(rows))
        if isinstance(rule, SetReward):
            return np.full(self.n_players, (utilities[1] - utilities[0]) / self.n_players)
        if isinstance(rule, PrefixGain):
            gains: Floats = utilities[-1] - utilities[:-1]
            return gains
        return coalition_semivalues(rows, utilities, size_weights(rule, self.n_players))

    def _utilities_of(self, keys: list[bytes]) -> Floats:
        """Known utilities by the keys of their coalitions."""
        return np.array([self._utilities[key] for key in keys], dtype=np.float64)


def _members(coalition: Booleans) -> list[int]:
    """Players of a coalition, for messages."""
    return [int(player) for player in np.flatnonzero(coalition)]
