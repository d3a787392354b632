"""Mutants of the utilities that are integrals: the quadrature, noisy-or, log-sum-exp and votes."""

from __future__ import annotations

from mutation.mutants import Mutant, _always, shifted


def _entry(index):
    """Shift one entry of a pair of arrays."""

    def shift(result, *_args):
        values = shifted(result[index])
        return None if values is None else tuple(values if k == index else each for k, each in enumerate(result))

    return shift


def _gains(index, wanted):
    """Shift one of the gains of a vote under one rule for ties."""
    shift = _entry(index)
    return lambda result, _level, _below, _rewards, ties, _arrivals: shift(result) if ties == wanted else None


def _soft(name):
    """Shift one column of the rewards with their gaps cut down."""

    def shift(result, *_args):
        values = shifted(getattr(result, name)) if getattr(result, name) is not None else None
        return None if values is None else result._replace(**{name: values})

    return shift


SMOOTH_MUTANTS = {
    "nodes of Gauss and Legendre": Mutant("quadrature", "gauss_legendre", _entry(0), "test_quadrature.py"),
    "weights of Gauss and Legendre": Mutant("quadrature", "gauss_legendre", _entry(1), "test_quadrature.py"),
    "nodes of presence": Mutant("quadrature", "presence_nodes", _entry(0), "test_quadrature.py"),
    "weights of presence": Mutant("quadrature", "presence_nodes", _entry(1), "test_quadrature.py"),
    "values of Legendre polynomials": Mutant("quadrature", "_legendre_values", _entry(1), "test_quadrature.py"),
    **{
        f"noisy-or: {name}": Mutant("noisy_or", name, _always, "test_noisy_or.py")
        for name in (
            "product_game_semivalues",
            "products_of_others",
            "_symmetric_means_of_others",
            "_weighted",
            "NoisyOrGames.empty",
            "NoisyOrGames.grand",
            "NoisyOrGames.scale",
            "NoisyOrGames.semivalues",
            "NoisyOrGames._covered",
        )
    },
    **{
        f"votes: {name}": Mutant("votes", name, _always, "test_votes.py")
        for name in (
            "plurality_semivalues",
            "_vote_gains",
            "_binomial_chances",
            "PluralityGames.empty",
            "PluralityGames.grand",
            "PluralityGames.scale",
            "PluralityGames.semivalues",
        )
    },
    **{
        f"votes: gains of {what}, {ties}": Mutant("votes", "_level_gains", _gains(index, ties), "test_votes.py")
        for index, what in enumerate(("joining", "breaking"))
        for ties in ("split", "lose")
    },
    **{
        f"log-sum-exp: {name}": Mutant("log_sum_exp", name, _always, "test_log_sum_exp.py")
        for name in (
            "log_sum_exp_semivalues",
            "_soft_values",
            "LogSumExpGames.empty",
            "LogSumExpGames.grand",
            "LogSumExpGames.scale",
            "LogSumExpGames.semivalues",
        )
    },
    **{
        f"log-sum-exp: {name} of soft rewards": Mutant(
            "log_sum_exp", "_soft_rewards", _soft(name), "test_log_sum_exp.py"
        )
        for name in ("depths", "of_baseline", "cut_off")
    },
    "log-sum-exp: products of others": Mutant("noisy_or", "products_of_others", _always, "test_log_sum_exp.py"),
}
"""Every mutant of this family by its name."""
