"""What is known of candidates beside their rewards, as columns: answers, topics, scores, similarities, unions.

Legend: `B` sets, `C` candidates over all sets, `n` players of each set of a kind, `T` targets or topics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]

NOTHING = -1
"""Stands where a candidate has no label or no union."""
SYMMETRY = 1e-6
"""Similarities of i with j and of j with i may differ by this share of the largest; their mean is used."""


@dataclass(frozen=True)
class CandidateFeatures:
    """Columns that some utilities and rules need; None where the request has none.

    Attributes:
        labels: Shape (C,), int64: the answer that a candidate gives, −1 if none. Equal numbers mean equal answers.
        topics: Shape (W,), int64 in [0, M): the topics that candidates cover, candidate after candidate, each topic of
            a candidate once.
        topic_splits: Shape (C + 1,), int64, row splits of `topics`.
        topic_weights: Shape (M,), float64, units of the utility.
        scores: Shape (V,), float64: what each candidate is worth to each target, candidate after candidate.
        score_splits: Shape (C + 1,), int64, row splits of `scores`; all candidates of a set have equally many.
        similarities: Shape (U,), float64: one K × K matrix per set, row by row, set after set.
        similarity_splits: Shape (B + 1,), int64, row splits of `similarities`.
        unions: Shape (C,), int64: candidates of one union share a number, −1 if none.
    """

    labels: Integers | None = None
    topics: Integers | None = None
    topic_splits: Integers | None = None
    topic_weights: Floats | None = None
    scores: Floats | None = None
    score_splits: Integers | None = None
    similarities: Floats | None = None
    similarity_splits: Integers | None = None
    unions: Integers | None = None

    def targets(self, row_splits: Integers) -> Integers:
        """How many scores each candidate of a set has, by its first candidate, shape (B,); 0 without scores."""
        if self.score_splits is None:
            return np.zeros(len(row_splits) - 1, dtype=np.int64)
        first = np.minimum(row_splits[:-1], len(self.score_splits) - 2)
        lengths = np.diff(self.score_splits)
        return np.where(np.diff(row_splits) > 0, lengths[first] if len(lengths) else 0, 0)


def players_labels(features: CandidateFeatures, members: Integers) -> Integers:
    """Answers of players.

    Args:
        features: With labels.
        members: Shape (B, n), flat places of the players.

    Returns:
        Shape (B, n), int64.

    Raises:
        ValueError: If there are no labels.

    Cost:
        O(B · n).
    """
    if features.labels is None:
        raise ValueError("this utility needs labels")
    return features.labels[members]


def players_scores(features: CandidateFeatures, members: Integers) -> Floats:
    """Scores of players that have equally many.

    Args:
        features: With scores.
        members: Shape (B, n), flat places of the players, n ≥ 1.

    Returns:
        Shape (B, n, T), float64.

    Raises:
        ValueError: If there are no scores.

    Cost:
        O(B · n · T).
    """
    if features.scores is None or features.score_splits is None:
        raise ValueError("this utility needs scores")
    starts = features.score_splits[members]
    n_targets = int(features.score_splits[members[0, 0] + 1] - starts[0, 0])
    scores: Floats = features.scores[starts[:, :, None] + np.arange(n_targets)]
    return scores


def players_similarities(features: CandidateFeatures, rows: Integers, positions: Integers, size: int) -> Floats:
    """Similarities among players of sets of one size, made exactly symmetric.

    Args:
        features: With similarities.
        rows: Shape (B,), the sets.
        positions: Shape (B, n), places of the players in their set.
        size: K, candidates of each of these sets.

    Returns:
        Shape (B, n, n), float64: the mean of the matrix and its transpose.

    Raises:
        ValueError: If there are no similarities.

    Cost:
        O(B · n²).
    """
    if features.similarities is None or features.similarity_splits is None:
        raise ValueError("this utility needs similarities")
    place = positions[:, :, None] * size + positions[:, None, :]
    matrices: Floats = features.similarities[features.similarity_splits[rows][:, None, None] + place]
    symmetric: Floats = 0.5 * matrices + 0.5 * matrices.transpose(0, 2, 1)
    return symmetric


def players_topics(features: CandidateFeatures, members: Integers) -> tuple[Booleans, Floats]:
    """Which topics players cover, topics numbered within each set in their order over all sets.

    Args:
        features: With topics.
        members: Shape (B, n), flat places of the players.

    Returns:
        Which player covers which topic, shape (B, n, T), bool, and the weights of the topics, shape (B, T), float64. A
        set with fewer topics than T has topics of weight 0 that nobody covers at its end.

    Raises:
        ValueError: If there are no topics.

    Cost:
        O(B · n · T) memory, O(W log W) time for W topics of these players.
    """
    if features.topics is None or features.topic_splits is None or features.topic_weights is None:
        raise ValueError("this utility needs topics")
    n_sets, n = members.shape
    lengths = np.diff(features.topic_splits)[members].reshape(-1)
    slots = np.repeat(np.arange(n_sets * n), lengths)
    within = np.arange(len(slots)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    topics = features.topics[features.topic_splits[members].reshape(-1)[slots] + within]
    n_topics = len(features.topic_weights)
    keys, which = np.unique((slots // n) * n_topics + topics, return_inverse=True)
    owners = keys // max(n_topics, 1)
    firsts = np.searchsorted(owners, np.arange(n_sets + 1))
    width = int(np.diff(firsts).max(initial=0))
    local = np.arange(len(keys)) - firsts[owners]
    covers = np.zeros((n_sets * n, width), dtype=np.bool_)
    covers[slots, local[which.reshape(-1)]] = True
    weights = np.zeros((n_sets, width))
    weights[owners, local] = features.topic_weights[keys - owners * n_topics]
    return covers.reshape(n_sets, n, width), weights
