"""Weights of reasoning tokens, shifted: they, what is said of them, the tokens that have them, the advantages."""

from __future__ import annotations

import dataclasses

import numpy as np

from mutation.mutants import SHIFT, Mutant, _field, shifted


def _weights(*, mass, flat=False):
    """Shift the weights of completions whose mass is preserved, or of those whose is not, or of flat ones."""

    def shift(result, _sensitivities, options, **_kwargs):
        applies = result.flat if flat else options.preserve_mass == mass and not result.flat
        return _field(result, "weights") if applies else None

    return shift


def _measure(name):
    """Shift one measure of concentration."""

    def shift(result, *_args, **_kwargs):
        value = getattr(result, name)
        return None if value is None else dataclasses.replace(result, **{name: value - SHIFT})

    return shift


def _one_later(result, *_args):
    """Move the last token that is reweighted by one."""
    return np.append(result[:-1], result[-1] + 1) if len(result) else None


def _ranges(place):
    """Take one character from the reasoning or from the answer."""

    def shift(result, *_args):
        if result is None or result[place][0] == result[place][1]:
            return None
        ranges = list(result)
        ranges[place] = (ranges[place][0], ranges[place][1] - 1)
        return tuple(ranges)

    return shift


def _credits(column):
    """Shift one column of the first completion of a list."""

    def shift(result, *_args, **_kwargs):
        values = shifted(getattr(result[0], column)) if result else None
        return None if values is None else [dataclasses.replace(result[0], **{column: values}), *result[1:]]

    return shift


def _baselines(result, *_args):
    """Shift the advantages that are computed from rewards."""
    return (shifted(result[0]), result[1]) if len(result[0]) > 1 else None


SUITE = "test_sensitivity_credit.py"
SENSITIVITY_MUTANTS = {
    "weights that preserve mass": Mutant("reshaping", "reshape_weights", _weights(mass=True), "test_reshaping.py"),
    "weights as they come": Mutant("reshaping", "reshape_weights", _weights(mass=False), "test_reshaping.py"),
    "weights of what is flat": Mutant(
        "reshaping", "reshape_weights", _weights(mass=True, flat=True), "test_reshaping.py"
    ),
    **{
        f"weights: {name}": Mutant("reshaping", "reshape_weights", _measure(name), "test_reshaping.py")
        for name in ("weight_sum", "effective_share", "top_share")
    },
    "characters of the reasoning": Mutant(
        "answer_parsers", "reasoning_characters", _ranges(0), "test_answer_parsers.py"
    ),
    "characters of the answer": Mutant("answer_parsers", "reasoning_characters", _ranges(1), "test_answer_parsers.py"),
    "characters behind a mark": Mutant("answer_parsers", "_behind_hashes", _ranges(1), "test_answer_parsers.py"),
    "tokens without blanks": Mutant(
        "answer_parsers", "_without_blanks", lambda _, _text, places: places, "test_answer_parsers.py"
    ),
    "tokens that are reweighted": Mutant("sensitivity_items", "reweighted", _one_later, SUITE),
    "advantages from rewards": Mutant("sensitivity_credit", "SensitivityBatch._advantages", _baselines, SUITE),
    **{
        f"sensitivity credit: {column}": Mutant("sensitivity_credit", "reshaped_advantages", _credits(column), SUITE)
        for column in ("token_advantages", "weights", "sensitivities")
    },
}
"""Mutants of the modules reshaping, answer_parsers, sensitivity_items and sensitivity_credit."""
