"""Mutants of the utilities with closed forms beyond the first order statistics."""

from __future__ import annotations

from mutation.mutants import Mutant, _always, _kernel, shifted

RANK_TYPES = {
    "median": "test_partial_means.py",
    "quantile": "test_partial_means.py",
    "trimmed_mean": "test_partial_means.py",
    "cvar": "test_partial_means.py",
    "top_m_mean": "test_partial_means.py",
    "max_at_k": "test_order_statistics.py",
    "pass_at_k": "test_order_statistics.py",
    "all_pass": "test_order_statistics.py",
}
"""Each new utility of sorted rewards, and the file that holds its own tests."""


def _pair(result, *_args):
    """Shift the values of both kinds of players."""
    return tuple(map(shifted, result))


def _of_sets(result, *_args):
    """Shift the totals of a batch; not one that stands for all sets."""
    return shifted(result) if result.ndim else None


def _diversity(utility_type, method):
    """Shift what the games answer of one utility."""

    def shift(result, games, *_rest):
        return shifted(result) if games.utility.type == utility_type else None

    return Mutant("diversity", f"DiversityGames.{method}", shift, "test_diversity.py")


CLOSED_MUTANTS = {
    **{f"semivalues of {t}": Mutant("level_games", "semivalues", _kernel(t), suite) for t, suite in RANK_TYPES.items()},
    **{
        f"grand utilities of {t}": Mutant("level_games", "grand_utilities", _kernel(t), "test_level_games.py")
        for t in RANK_TYPES
    },
    "values of level games, asked for": Mutant("level_games", "level_values", _pair, "test_level_games.py"),
    **{
        f"{method} of {games}": Mutant("coverage", f"{games}.{method}", _always, "test_coverage.py")
        for games in ("CoverageGames", "FacilityLocationGames")
        for method in ("empty", "grand", "semivalues")
    },
    "totals over topics": Mutant("coverage", "_totals", _of_sets, "test_coverage.py"),
    **{
        f"{method} of {t}": _diversity(t, method)
        for t in ("redundancy", "max_minus_similarity", "mean_pairwise_diversity", "quality_novelty")
        for method in ("empty", "grand", "semivalues")
    },
    **{
        f"similarities: {name}": Mutant("diversity", name, _always, "test_diversity.py")
        for name in ("_row_sums", "_pair_sums", "_pair_shares", "_own_shares", "_expected_maximum_weights")
    },
    "chances of a draw": Mutant("coalitions", "chance_of_drawing_none", _always, "test_coalitions.py"),
}
"""Every mutant by its name."""
