"""Mutants of the methods that work on all 2ⁿ utilities."""

from __future__ import annotations

from mutation.mutants import SHIFT, Mutant, shifted


def _always(result, *_args, **_kwargs):
    """Shift every call."""
    return shifted(result)


def _pair(result, *_args):
    """Shift both arrays of a pair."""
    return tuple(map(shifted, result))


def _log_dets(form):
    """Shift the utilities of one form."""
    return lambda result, _kernels, utility: shifted(result) if utility.form == form else None


def _first_up(result, *_args):
    """Shift the first number of each row, where there is one."""
    if not result.size:
        return None
    changed = result.copy()
    changed[..., 0] += SHIFT
    return changed


TABLE_MUTANTS = {
    "semivalues of folded tables": Mutant("tables", "_folded_semivalues", _always, "test_tables.py"),
    "semivalues of tiled tables": Mutant("tables", "_tiled_semivalues", _always, "test_tables.py"),
    "weights of folded tables": Mutant("tables", "_folding_weights", _pair, "test_tables.py"),
    "weights by coalition": Mutant("tables", "coalition_weights", _pair, "test_tables.py"),
    "matrix of marginals": Mutant("tables", "marginal_matrix", _always, "test_tables.py"),
    "marginals of a half of the players": Mutant("tables", "_differences", _always, "test_tables.py"),
    "Owen values": Mutant("owen", "owen_values", _always, "test_owen.py"),
    "weights of a structure": Mutant(
        "owen", "_structure_weights", lambda result, *_: (result[0], shifted(result[1])), "test_owen.py"
    ),
    **{
        f"log-determinants, {form}": Mutant("log_det", "log_dets", _log_dets(form), "test_log_det.py")
        for form in ("identity_plus", "plain")
    },
    "pivots of log-determinants": Mutant("log_det", "_log_pivots", _first_up, "test_log_det.py"),
    "Schur complements": Mutant("log_det", "_without_first", _first_up, "test_log_det.py"),
    **{
        f"{method} of LogDetGames": Mutant("log_det", f"LogDetGames.{method}", _always, "test_log_det.py")
        for method in ("empty", "grand", "scale", "semivalues")
    },
}
"""Every mutant of these methods by its name."""
