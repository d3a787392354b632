"""Mutants of the utilities that are integrals: the quadrature, noisy-or, log-sum-exp and votes."""

from __future__ import annotations

from mutation.mutants import Mutant, _always, shifted


def _entry(index):
    """Shift one entry of a pair of arrays."""

    def shift(result, *_args):
        values = shifted(result[index])
        return None if values is None else tuple(values if k == index else each for k, each in enumerate(result))

    return shift


SMOOTH_MUTANTS = {
    "nodes of Gauss and Legendre": Mutant("quadrature", "gauss_legendre", _entry(0), "test_quadrature.py"),
    "weights of Gauss and Legendre": Mutant("quadrature", "gauss_legendre", _entry(1), "test_quadrature.py"),
    "nodes of presence": Mutant("quadrature", "presence_nodes", _entry(0), "test_quadrature.py"),
    "weights of presence": Mutant("quadrature", "presence_nodes", _entry(1), "test_quadrature.py"),
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
}
"""Every mutant of this family by its name."""
