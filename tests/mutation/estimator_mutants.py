"""Mutants of the estimators and of what they stand on."""

from __future__ import annotations

import dataclasses

from mutation.mutants import SHIFT, Mutant, _always, _column, _field, shifted


def _number(result, *_args):
    """Shift a single number."""
    return result + SHIFT if result else None


def _column_of_pair(place):
    """Shift the differences or the Shapley values of the columns of a proxy; a column has no sum to keep over rows."""

    def shift(result, *_args, **_options):
        parts = list(result)
        parts[place] = shifted(parts[place].T)
        return None if parts[place] is None else (*parts[:place], parts[place].T, *parts[place + 1 :])

    return shift


def _estimated(name, *, exact):
    """Shift one column of the estimates that are exact, or of those that are not."""
    return lambda result, *_args, **_options: (
        _field(result, name) if result.exact == exact and getattr(result, name) is not None else None
    )


def _fits(name):
    """Shift one array of every ridge."""
    return lambda result, *_args: (dataclasses.replace(fit, **{name: shifted(getattr(fit, name))}) for fit in result)


def _first(result, *_args):
    """Shift the first of several arrays."""
    return (shifted(result[0]), *result[1:])


COLUMNS = ("indicator_columns", "share_columns", "any_columns", "all_columns", "triple_columns")

ESTIMATOR_MUTANTS = {
    "t quantiles": Mutant("student_t", "t_quantile", _number, "test_student_t.py"),
    **{
        f"{part} of {name}": Mutant("proxies", name, _column_of_pair(place), "test_proxies.py")
        for name in COLUMNS
        for place, part in enumerate(("differences", "Shapley values"))
    },
    "Shapley values of maximum_column": Mutant("proxies", "maximum_column", _column_of_pair(1), "test_proxies.py"),
    **{
        f"{name} of ridges": Mutant(
            "cross_fitted_ridge", "cross_fitted_ridges", _fits(name), "test_cross_fitted_ridge.py"
        )
        for name in ("coefficients", "held_out")
    },
    "semivalues of coalitions": Mutant(
        "coalition_semivalues", "coalition_semivalues", _always, "test_coalition_semivalues.py"
    ),
    "exact estimates": Mutant(
        "estimators", "exact_estimate", _estimated("shapley_values", exact=True), "test_estimators.py"
    ),
    **{
        f"{name} of {method}": Mutant(
            "estimators", f"{method}_estimate", _estimated(name, exact=False), "test_estimators.py"
        )
        for method in ("stratified", "permutation")
        for name in ("shapley_values", "standard_errors", "intervals")
    },
    "values of the proxy": Mutant("estimators", "_adjusted", _first, "test_estimators.py"),
    "means of strata": Mutant("estimators", "_means_of_strata", _always, "test_estimators.py"),
    "contrasts": Mutant("estimators", "_contrast", _always, "test_estimators.py"),
    "variances of contrasts": Mutant("estimators", "_contrast_variance", _always, "test_estimators.py"),
    "standard errors": Mutant("estimators", "_standard_errors", _always, "test_estimators.py"),
    "weights of pairs": Mutant(
        "pair_designs",
        "pair_design",
        lambda result, *_args: dataclasses.replace(result, row_weight=shifted(result.row_weight)),
        "test_pair_designs.py",
    ),
    **{
        f"evaluated {name}": Mutant(
            "evaluated_games", "EvaluatedGame.credits", _column(name), "test_evaluated_games.py"
        )
        for name in ("credits", "standard_errors", "intervals")
    },
}
"""Every mutant by its name."""
