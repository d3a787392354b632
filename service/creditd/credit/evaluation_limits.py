"""How many utilities a game takes, before anything large is made, or why that is too many."""

from __future__ import annotations

from dataclasses import replace

from creditd.credit.candidate_sets import SetError
from creditd.credit.credit_rules import CreditRule, Mixture, Shapley, ends_of
from creditd.credit.evaluation_needs import EstimatorOptions, required_evaluations


def planned_evaluations(
    row: int, n_players: int, rule: CreditRule, options: EstimatorOptions, most: int
) -> int | SetError:
    """Most coalitions that a game evaluates, or why it cannot be solved.

    Args:
        row: The set whose game it is.
        n_players: n ≥ 1.
        rule: Which credit.
        options: Budget and estimator.
        most: Largest number that is allowed.

    Returns:
        Their number, or the error of the set.

    Cost:
        That of a plan of at most so many coalitions; a longer one is never made.
    """
    n = n_players
    for end in ends_of(rule):
        if isinstance(end, Mixture) and len(end.weights) != n:
            detail = f"got {n} players; expected {len(end.weights)}, one per mixture weight"
            return SetError(row, "shape_mismatch", "candidates", None, detail)
    # A plan a little longer than allowed is refused like any longer one, so that no longer one is ever made.
    longest = most + 2 + 2 * n * (options.type == "permutations")
    planned = min(2 * n + 2, 1 << n) if any(isinstance(end, Shapley) for end in ends_of(rule)) else 0
    if planned <= most:
        try:
            planned = required_evaluations(n, rule, replace(options, budget=min(options.budget, longest)))
        except ValueError as error:
            if options.budget <= longest:
                return SetError(row, "budget_exceeded", "candidates", None, str(error))
            planned = longest
    if planned > most:
        detail = f"more than {most} evaluations of {n} players are planned; expected a smaller budget, or another rule"
        return SetError(row, "budget_exceeded", "candidates", None, detail)
    return planned
