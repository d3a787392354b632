"""Mutants of the methods that work on all 2ⁿ utilities."""

from __future__ import annotations

from mutation.mutants import Mutant, shifted


def _always(result, *_args, **_kwargs):
    """Shift every call."""
    return shifted(result)


def _pair(result, *_args):
    """Shift both arrays of a pair."""
    return tuple(map(shifted, result))


TABLE_MUTANTS = {
    "semivalues of folded tables": Mutant("tables", "_folded_semivalues", _always, "test_tables.py"),
    "semivalues of tiled tables": Mutant("tables", "_tiled_semivalues", _always, "test_tables.py"),
    "weights of folded tables": Mutant("tables", "_coalition_weights", _pair, "test_tables.py"),
    "weights by coalition": Mutant("tables", "_weights_by_coalition", _pair, "test_tables.py"),
    "marginals of a half of the players": Mutant("tables", "_differences", _always, "test_tables.py"),
    "references of tables": Mutant("tables", "middles", lambda result, *_: result * 0.25, "test_tables.py"),
}
"""Every mutant of these methods by its name."""
