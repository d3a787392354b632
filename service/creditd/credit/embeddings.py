"""From vectors of texts to what utilities need: scores for targets, topics that are covered, similarities of pairs.

Legend: `B` sets, `C` candidates over all sets, `K` candidates of one set, `T` targets over all sets, `H` entries of a
vector. Everything is a cosine, x·y/√(x·x · y·y).

The products of a pair are added up from the first entry of the vectors to the last, with any number of pairs side by
side: a cosine has the same bits whatever else is asked with it, in either order of the two, and is exactly 1 for equal
vectors. A matrix product would change its last bits with the number of its rows.

A text without a vector is a row of NaN. Its cosines are NaN, which no utility takes for a number; it covers no topic,
which would be one: sets that `sets_without_vectors` names have to be rejected before credit is computed.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_features import CandidateFeatures
from creditd.credit.group_sums import added_up
from creditd.credit.log_det import LogDet
from creditd.credit.set_utilities import Utility, terms_of

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]

BLOCK_NUMBERS = 1 << 16
"""Products that are formed and added up together: half a megabyte, which stays in the cache of a core."""


def target_scores(
    vectors: Floats,
    row_splits: Integers,
    targets: Floats,
    target_splits: Integers | None = None,
    *,
    floor: float | None = 0.0,
) -> CandidateFeatures:
    """Scores of candidates for targets, as `FacilityLocation` takes them: their cosines, at least `floor`.

    The floor is `FacilityLocation.unserved`, by default 0. Below it a target would be worth more to nobody than to a
    candidate: the first candidate of a set would pay for being about something else, and the utility would no longer
    rise with every candidate.

    Args:
        vectors: Shape (C, H), float64, of the candidates; NaN where there is none.
        row_splits: Shape (B + 1,), int64, row splits of the candidates.
        targets: Shape (T, H), float64; NaN where there is none.
        target_splits: Shape (B + 1,), int64, row splits of the targets by set. None: all sets have all of them.
        floor: Least score. None: the cosine itself, in [−1, 1].

    Returns:
        The columns `scores` and `score_splits`, each candidate's scores in the order of the targets of its set.
        Permuting the candidates of a set permutes them to the last bit.

    Raises:
        ValueError: If the shapes do not fit.

    Cost:
        O(P · H) time for P pairs of a candidate and a target of its set, and O(P) memory.
    """
    left, right, splits = _served(vectors, row_splits, targets, target_splits)
    return CandidateFeatures(scores=_floored(_cosines(vectors, targets, left, right), floor), score_splits=splits)


def covered_topics(
    vectors: Floats,
    row_splits: Integers,
    targets: Floats,
    target_splits: Integers | None = None,
    *,
    threshold: float,
    weights: Floats | None = None,
) -> CandidateFeatures:
    """Topics that candidates cover, as `Coverage` takes them: the targets whose cosine with them is large enough.

    A cosine that rounding brings to the other side of the threshold changes a topic: vectors of a model are
    reproducible to some 1e−6, so a threshold is best put where no cosines lie.

    Args:
        vectors: Shape (C, H), float64, of the candidates; a row of NaN covers nothing.
        row_splits: Shape (B + 1,), int64, row splits of the candidates.
        targets: Shape (T, H), float64; a row of NaN is covered by nobody.
        target_splits: Shape (B + 1,), int64, row splits of the targets by set. None: all sets have all of them.
        threshold: Smallest cosine that covers, in [−1, 1]; equal vectors have exactly 1.
        weights: Shape (T,), float64, units of the utility. None: all 1.

    Returns:
        The columns `topics`, `topic_splits` and `topic_weights`. Topic t is target t; the topics of a candidate ascend.

    Raises:
        ValueError: If the shapes do not fit, or the threshold is no cosine.

    Cost:
        O(P · H) time for P pairs of a candidate and a target of its set, and O(P) memory.
    """
    if not -1.0 <= threshold <= 1.0:
        raise ValueError(f"a threshold of cosines is in [-1, 1]: got {threshold}")
    if weights is not None and weights.shape != targets.shape[:1]:
        raise ValueError(f"each target needs one weight: got {weights.shape}, expected ({len(targets)},)")
    left, right, _ = _served(vectors, row_splits, targets, target_splits)
    covers = _cosines(vectors, targets, left, right) >= threshold
    return CandidateFeatures(
        topics=right[covers],
        topic_splits=_splits(np.bincount(left[covers], minlength=len(vectors))),
        topic_weights=np.ones(len(targets)) if weights is None else weights,
    )


def set_similarities(vectors: Floats, row_splits: Integers, *, floor: float | None = 0.0) -> CandidateFeatures:
    """Similarities between the candidates of each set, as utilities of pairs take them: cosines, at least `floor`.

    Utilities charge for similarity, and nobody should be paid for the opposite of it: without a floor `Redundancy` and
    `MaxMinusSimilarity` reward a pair whose vectors point apart, and under `QualityNovelty` a candidate is worth more
    beside such a one than alone. Texts that have nothing in common have cosines about 0, of either sign. A
    log-determinant needs a positive semidefinite matrix, which cosines are and floored cosines need not be:
    `similarity_floor` says which.

    Args:
        vectors: Shape (C, H), float64, of the candidates; NaN where there is none.
        row_splits: Shape (B + 1,), int64, row splits of the candidates.
        floor: Least similarity. None: the cosine itself, in [−1, 1].

    Returns:
        The columns `similarities` and `similarity_splits`: symmetric to the bit, 1 on the diagonal and between equal
        vectors. Permuting the candidates of a set permutes its rows and columns to the last bit.

    Raises:
        ValueError: If the shapes do not fit.

    Cost:
        O(P · H) time for the P pairs within sets, and O(Σ K²) memory.
    """
    _check_rows(vectors, row_splits)
    sizes = np.diff(row_splits)
    splits = _splits(sizes * sizes)
    owners = np.repeat(np.arange(len(sizes)), sizes * sizes)
    rows, columns = np.divmod(np.arange(splits[-1]) - splits[owners], sizes[owners])
    upper = rows < columns
    first = row_splits[owners[upper]]
    cosines = _cosines(vectors, vectors, first + rows[upper], first + columns[upper])
    similarities = np.where(_absent(vectors)[row_splits[owners] + rows], np.nan, 1.0)
    starts, size = splits[owners[upper]], sizes[owners[upper]]
    similarities[starts + rows[upper] * size + columns[upper]] = cosines
    similarities[starts + columns[upper] * size + rows[upper]] = cosines
    return CandidateFeatures(similarities=_floored(similarities, floor), similarity_splits=splits)


def similarity_floor(utility: Utility) -> float | None:
    """Floor of `set_similarities` under which a utility means what it says.

    Args:
        utility: Any utility.

    Returns:
        0, or None where the utility or a term of it is a log-determinant: of cosines as they are.

    Cost:
        O(1) per term.
    """
    return None if any(isinstance(term, LogDet) for term in terms_of(utility)) else 0.0


def sets_without_vectors(
    vectors: Floats, row_splits: Integers, targets: Floats | None = None, target_splits: Integers | None = None
) -> Booleans:
    """Sets that have a candidate or a target without a vector: no credit can be given in them.

    Args:
        vectors: Shape (C, H), float64, of the candidates; NaN where there is none.
        row_splits: Shape (B + 1,), int64, row splits of the candidates.
        targets: Shape (T, H), float64; NaN where there is none. None: nothing is asked of targets.
        target_splits: Shape (B + 1,), int64, row splits of the targets by set. None: all sets have all of them.

    Returns:
        Shape (B,), bool.

    Raises:
        ValueError: If the shapes do not fit.

    Cost:
        O((C + T) · H).
    """
    _check_rows(vectors, row_splits)
    lacking = _any_of_rows(_absent(vectors), row_splits)
    if targets is None:
        return lacking
    absent = _absent(targets)
    if target_splits is None:
        return lacking | bool(absent.any())
    _check_rows(targets, target_splits)
    return lacking | _any_of_rows(absent, target_splits)


def _served(
    vectors: Floats, row_splits: Integers, targets: Floats, target_splits: Integers | None
) -> tuple[Integers, Integers, Integers]:
    """Every candidate with every target of its set, candidate after candidate, and where a candidate's begin."""
    _check_rows(vectors, row_splits)
    n_sets = len(row_splits) - 1
    if target_splits is None:
        starts, lengths = np.zeros(n_sets, dtype=np.int64), np.full(n_sets, len(targets))
    else:
        _check_rows(targets, target_splits)
        starts, lengths = target_splits[:-1], np.diff(target_splits)
    if len(lengths) != n_sets or targets.shape[1:] != vectors.shape[1:]:
        raise ValueError(
            f"targets must fit the candidates: got {len(lengths)} sets of targets {targets.shape}, expected {n_sets} "
            f"sets of vectors {vectors.shape}"
        )
    owner = np.repeat(np.arange(n_sets), np.diff(row_splits))
    splits = _splits(lengths[owner])
    left = np.repeat(np.arange(len(vectors)), lengths[owner])
    return left, starts[owner[left]] + np.arange(len(left)) - splits[left], splits


def _cosines(vectors: Floats, others: Floats, left: Integers, right: Integers) -> Floats:
    """Cosine of vectors[left] with others[right], pair by pair, in [−1, 1]; NaN where a vector is."""
    columns, other_columns = np.ascontiguousarray(vectors.T), np.ascontiguousarray(others.T)
    all_of, all_of_others = np.arange(len(vectors)), np.arange(len(others))
    squares = _dots(columns, columns, all_of, all_of)
    other_squares = _dots(other_columns, other_columns, all_of_others, all_of_others)
    dots = _dots(columns, other_columns, left, right)
    # √(x²) is x in binary arithmetic: equal vectors have a cosine of exactly 1, of whatever length rounding left them.
    with np.errstate(invalid="ignore"):
        cosines: Floats = np.clip(dots / np.sqrt(squares[left] * other_squares[right]), -1.0, 1.0)
    return cosines


def _dots(columns: Floats, others: Floats, left: Integers, right: Integers) -> Floats:
    """Σ_h columns[h, left]·others[h, right], from the first h to the last, shape (P,)."""
    dots = np.empty(len(left))
    together = max(1, BLOCK_NUMBERS // len(columns))
    for start in range(0, len(left), together):
        part = slice(start, start + together)
        dots[part] = added_up(columns[:, left[part]] * others[:, right[part]])
    return dots


def _absent(vectors: Floats) -> Booleans:
    """Which rows are no vector, shape (rows,)."""
    absent: Booleans = np.logical_or.reduce(np.isnan(vectors), axis=1)
    return absent


def _floored(cosines: Floats, floor: float | None) -> Floats:
    """The cosines, at least the floor; NaN stays NaN, and no zero is negative."""
    floored: Floats = (cosines if floor is None else np.maximum(cosines, floor)) + 0.0
    return floored


def _splits(lengths: Integers) -> Integers:
    """Row splits of rows of these lengths."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def _any_of_rows(flags: Booleans, splits: Integers) -> Booleans:
    """Whether a flag of each row is True, shape (rows,)."""
    seen = _splits(flags.astype(np.int64))
    found: Booleans = seen[splits[1:]] > seen[splits[:-1]]
    return found


def _check_rows(vectors: Floats, splits: Integers) -> None:
    """Vectors of some entries, and row splits of them."""
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise ValueError(f"vectors have shape (C, H) with H >= 1: got {vectors.shape}")
    if len(splits) == 0 or splits[0] != 0 or splits[-1] != len(vectors) or (np.diff(splits) < 0).any():
        raise ValueError(f"row splits must rise from 0 to {len(vectors)}, the number of vectors")
