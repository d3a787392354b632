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
    "weights of folded tables": Mutant("tables", "_folding_weights", _pair, "test_tables.py"),
    "weights by coalition": Mutant("tables", "coalition_weights", _pair, "test_tables.py"),
    "matrix of marginals": Mutant("tables", "marginal_matrix", _always, "test_tables.py"),
    "marginals of a half of the players": Mutant("tables", "_differences", _always, "test_tables.py"),
    "references of tables": Mutant("tables", "middles", lambda result, *_: result * 0.25, "test_tables.py"),
    "Owen values": Mutant("owen", "owen_values", _always, "test_owen.py"),
    "weights of a structure": Mutant(
        "owen", "_structure_weights", lambda result, *_: (result[0], shifted(result[1])), "test_owen.py"
    ),
}
"""Every mutant of these methods by its name."""
