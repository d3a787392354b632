"""Features of candidates, from lists to columns; one translation for both forms of a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.wire import utilities
from creditd.wire.arrays import ranks_of
from creditd.wire.errors import ErrorCode
from creditd.wire.utilities import MAX_TARGETS
from creditd.wire.validation import wire_error

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


def topic_columns(
    names: Sequence[str | int] | Integers, splits: Integers, choice: utilities.UtilityChoice, pointer: str
) -> tuple[Integers, Integers, Floats]:
    """Topics of all candidates as numbers, each once per candidate, and their weights.

    Args:
        names: Topics, candidate after candidate.
        splits: Shape (C + 1,), int64, their row splits.
        choice: The utility, which has the weights.
        pointer: Where the topics stand in the request.

    Returns:
        Numbers in the fixed order of all names, ascending within a candidate; their row splits; one weight per number.

    Raises:
        WireError: If a candidate has too many topics.
    """
    if int(np.diff(splits).max(initial=0)) > MAX_TARGETS:
        raise wire_error(
            ErrorCode.BUDGET_EXCEEDED, pointer, f"a candidate has more than {MAX_TARGETS} topics; expected fewer"
        )
    numbers, ordered = ranks_of(names)
    n_topics, lengths = max(len(ordered), 1), np.diff(splits)
    different = np.unique(np.repeat(np.arange(len(lengths)), lengths) * n_topics + numbers)
    coverage = coverage_in(choice)
    weights, default = ({}, 1.0) if coverage is None else (coverage.weights or {}, coverage.default_weight)
    of_topics = [weights.get(str(name), default) for name in ordered]
    return (
        different % n_topics,
        np.searchsorted(different, np.arange(len(lengths) + 1) * n_topics),
        np.array(of_topics, dtype=np.float64),
    )


def score_columns(values: Sequence[float] | Floats, splits: Integers, pointer: str) -> tuple[Floats, Integers]:
    """Scores of all candidates.

    Args:
        values: Scores, candidate after candidate.
        splits: Shape (C + 1,), int64, their row splits.
        pointer: Where they stand in the request.

    Returns:
        The same as arrays.

    Raises:
        WireError: If a candidate has too many.
    """
    if int(np.diff(splits).max(initial=0)) > MAX_TARGETS:
        raise wire_error(
            ErrorCode.BUDGET_EXCEEDED, pointer, f"a candidate has more than {MAX_TARGETS} scores; expected fewer"
        )
    return np.asarray(values, dtype=np.float64), splits


def coverage_in(choice: utilities.UtilityChoice) -> utilities.CoverageUtility | None:
    """The coverage that a utility is, or has among its terms, if any."""
    found = [term.utility for term in choice.terms or ()] if isinstance(choice, utilities.SumUtility) else [choice]
    return next((one for one in found if isinstance(one, utilities.CoverageUtility)), None)
