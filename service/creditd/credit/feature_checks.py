"""Checks of what utilities need beside rewards; a set whose values are wrong fails alone.

Legend: `B` sets, `C` candidates over all sets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_features import NOTHING, SYMMETRY, CandidateFeatures, players_similarities
from creditd.credit.candidate_sets import USABLE, CandidateSets, Players, SetErrors, number_name, unusable_numbers
from creditd.credit.coverage import FacilityLocation
from creditd.credit.log_det import LogDet, defect
from creditd.credit.noisy_or import NoisyOr
from creditd.credit.set_utilities import Utility, needs, terms_of

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


def check_features(
    batch: CandidateSets, utility: Utility, players: Players, errors: SetErrors, *, unions: bool
) -> None:
    """Fail the sets whose features cannot be used.

    Args:
        batch: The sets.
        utility: The utility, which says what is needed.
        players: Who plays; nothing is asked of the others.
        errors: Receives at most one error per set.
        unions: Whether the rule needs unions.

    Raises:
        ValueError: If a whole column is absent.

    Cost:
        Linear in the features, and a sort of the labels.
    """
    needed = needs(utility)
    features = CandidateFeatures() if batch.features is None else batch.features
    if "label" in needed:
        _check_labels(batch, features, players, errors)
    if "topics" in needed and (features.topics is None or features.topic_weights is None):
        raise ValueError("this utility needs topics")
    if "scores" in needed:
        _check_scores(batch, features, errors)
        for term in terms_of(utility):
            _check_targets(batch, features, term, errors)
    if "similarities" in needed:
        _check_similarities(batch, features, errors)
        for term in terms_of(utility):
            if isinstance(term, LogDet):
                _check_kernels(batch, features, term, players, errors)
    if unions:
        _check_present(batch, features.unions, "union", players, errors)


def _check_present(
    batch: CandidateSets, column: Integers | None, field: str, players: Players, errors: SetErrors
) -> None:
    """Every player has an entry."""
    if column is None:
        raise ValueError(f"this request needs {field}s")
    errors.add_entries(
        batch.row_splits,
        np.flatnonzero(players.playing & (column == NOTHING)),
        "invalid_request",
        "label" if field == "label" else "union",
        lambda _: f"{field} is missing; expected a name",
    )


def _check_labels(batch: CandidateSets, features: CandidateFeatures, players: Players, errors: SetErrors) -> None:
    """Every player has an answer, and players of one answer have one reward."""
    _check_present(batch, features.labels, "label", players, errors)
    labels = features.labels
    if labels is None:
        return
    index = np.flatnonzero(players.playing)
    order = index[np.lexsort((index, labels[index], batch.owner[index]))]
    later, earlier = order[1:], order[:-1]
    same = (labels[later] == labels[earlier]) & (batch.owner[later] == batch.owner[earlier])
    for rewards in batch.reward_columns:
        differs = same & (rewards[later] != rewards[earlier])
        errors.add_entries(
            batch.row_splits,
            np.sort(later[differs]),
            "invalid_request",
            "reward",
            lambda flat, rewards=rewards: (  # type: ignore[misc]
                f"reward is {rewards[flat]} for an answer that has another reward earlier in the set"
            ),
        )


def _check_scores(batch: CandidateSets, features: CandidateFeatures, errors: SetErrors) -> None:
    """Equally many usable scores for all candidates of a set."""
    scores, splits = features.scores, features.score_splits
    if scores is None or splits is None:
        raise ValueError("this utility needs scores")
    lengths, expected = np.diff(splits), features.targets(batch.row_splits)
    errors.add_entries(
        batch.row_splits,
        np.flatnonzero(lengths != expected[batch.owner]),
        "shape_mismatch",
        "scores",
        lambda flat: f"got {lengths[flat]} scores; expected {expected[batch.owner[flat]]} as for the first candidate",
    )
    errors.add_entries(
        batch.row_splits,
        np.flatnonzero((lengths == 0) & (expected[batch.owner] == 0)),
        "shape_mismatch",
        "scores",
        lambda _: "got no scores; expected one per target",
    )
    for code, wrong in unusable_numbers(scores, None):
        _add_score_errors(
            batch,
            splits,
            wrong,
            errors,
            code,
            lambda place: f"a score is {number_name(scores[place])}; expected {USABLE}",
        )


def _check_targets(batch: CandidateSets, features: CandidateFeatures, term: object, errors: SetErrors) -> None:
    """As many scores as weights; probabilities for a noisy-or."""
    scores, splits = features.scores, features.score_splits
    if scores is None or splits is None or not isinstance(term, FacilityLocation | NoisyOr):
        return
    targets = features.targets(batch.row_splits)
    if term.weights is not None:
        n_weights = len(term.weights)
        errors.add_sets(
            np.flatnonzero((targets != n_weights) & (batch.sizes > 0)),
            "shape_mismatch",
            "candidates",
            lambda row: f"the candidates have {targets[row]} scores each; expected {n_weights}, one per weight",
        )
    if isinstance(term, NoisyOr):
        outside = ~((scores >= 0.0) & (scores <= 1.0))
        _add_score_errors(
            batch,
            splits,
            outside,
            errors,
            "invalid_request",
            lambda place: f"a score is {number_name(scores[place])}; expected a probability in [0, 1]",
        )


def _add_score_errors(
    batch: CandidateSets,
    splits: Integers,
    wrong: NDArray[np.bool_],
    errors: SetErrors,
    code: str,
    detail: Callable[[int], str],
) -> None:
    """Fail the sets of the candidates that have a wrong score; the sentence is about the first of a candidate."""
    places = np.flatnonzero(wrong)
    candidates = np.searchsorted(splits, places, side="right") - 1
    candidates, first = np.unique(candidates, return_index=True)
    where = dict(zip(candidates.tolist(), places[first].tolist(), strict=True))
    errors.add_entries(
        batch.row_splits,
        candidates,
        "non_finite_value" if code == "non_finite_value" else "invalid_request",
        "scores",
        lambda flat: detail(where[flat]),
    )


def _check_similarities(batch: CandidateSets, features: CandidateFeatures, errors: SetErrors) -> None:
    """One symmetric K × K matrix of usable numbers per set."""
    values, splits = features.similarities, features.similarity_splits
    if values is None or splits is None:
        raise ValueError("this utility needs similarities")
    lengths, sizes = np.diff(splits), batch.sizes
    errors.add_sets(
        np.flatnonzero(lengths != sizes * sizes),
        "shape_mismatch",
        "similarities",
        lambda row: f"similarities holds {lengths[row]} numbers; expected {sizes[row]} × {sizes[row]}",
    )
    for code, wrong in unusable_numbers(values, None):
        errors.add_entries(
            splits,
            np.flatnonzero(wrong),
            code,
            "similarities",
            lambda place: f"a similarity is {number_name(values[place])}; expected {USABLE}",
        )
    usable = np.flatnonzero(~errors.failed)
    for size in np.unique(sizes[usable]).tolist():
        rows = usable[sizes[usable] == size]
        matrices = values[splits[rows][:, None] + np.arange(size * size)].reshape(len(rows), size, size)
        gaps = np.abs(matrices - matrices.transpose(0, 2, 1)).max(axis=(1, 2), initial=0.0)
        largest = np.abs(matrices).max(axis=(1, 2), initial=0.0)
        errors.add_sets(
            rows[gaps > SYMMETRY * largest],
            "invalid_request",
            "similarities",
            lambda _: "the matrix differs from its transpose; expected a symmetric one",
        )


def _check_kernels(
    batch: CandidateSets, features: CandidateFeatures, term: LogDet, players: Players, errors: SetErrors
) -> None:
    """Kernels whose determinants are positive for every coalition."""
    n_players = np.bincount(batch.owner[players.playing], minlength=batch.n_sets)
    index = np.flatnonzero(players.playing)
    first = np.cumsum(n_players) - n_players
    usable = np.flatnonzero(~errors.failed & (n_players > 0))
    kinds = np.stack([n_players[usable], batch.sizes[usable]], axis=1)
    for n, size in np.unique(kinds, axis=0).tolist():
        rows = usable[(kinds == (n, size)).all(axis=1)]
        members = index[first[rows][:, None] + np.arange(n)]
        positions = members - batch.row_splits[rows][:, None]
        bad = defect(players_similarities(features, rows, positions, size), term)
        errors.add_sets(
            rows[bad],
            "non_finite_utility",
            "similarities",
            lambda _: (
                "the kernel is singular, or so nearly that its log-determinants have too few digits: "
                "some candidates are almost determined by the others"
            ),
        )
