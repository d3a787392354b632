"""Values over trees and token rewards, shifted: each value, each placement, each part of a ledger."""

from __future__ import annotations

import dataclasses

from mutation.mutants import SHIFT, Mutant, _always, shifted


def _first_of_two(result, *_args, **_kwargs):
    """Shift the first of two results."""
    values = shifted(result[0])
    return None if values is None else (values, result[1])


def _first_completion(result, *_args, **_kwargs):
    """Shift the tokens of the first completion that has two."""
    values, flags = result
    for row, one in enumerate(values):
        if len(one) > 1:
            return [*values[:row], shifted(one), *values[row + 1 :]], flags
    return None


def _entries(one, other):
    """Move a little from one entry of a ledger to another."""

    def shift(result, *_args, **_kwargs):
        changes = {one: getattr(result, one) + SHIFT, other: getattr(result, other) - SHIFT}
        return dataclasses.replace(result, **changes)

    return shift


def _more(result, *_args, **_kwargs):
    """Count one more."""
    return result + 1


SUITE = "test_token_rewards.py"
SPAN_MUTANTS = {
    "values over a tree": Mutant("owen_trees", "OwenPlan.values", _always, "test_owen_trees.py"),
    "coalitions of a balanced tree": Mutant("owen_trees", "tree_evaluations", _more, "test_owen_trees.py"),
    "token rewards": Mutant("token_rewards", "token_rewards", _first_of_two, SUITE),
    "token densities": Mutant("token_rewards", "token_densities", _always, SUITE),
    "advantages of tokens": Mutant("token_rewards", "grouped_advantages", _first_completion, SUITE),
    **{
        f"ledger: {one} and {other}": Mutant("token_rewards", "_ledger", _entries(one, other), SUITE)
        for one, other in (("units", "terminal"), ("terminal", "remainder"), ("kl", "other_reward"))
    },
}
"""Mutants of the modules owen_trees and token_rewards."""
