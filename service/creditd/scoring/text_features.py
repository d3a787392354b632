"""Scores, topics and similarities of candidates from an embedding model: their cosines with targets and each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_features import CandidateFeatures
from creditd.credit.candidate_sets import CandidateSets, SetError
from creditd.credit.embeddings import (
    covered_topics,
    set_similarities,
    sets_without_vectors,
    similarity_floor,
    target_scores,
)
from creditd.credit.set_utilities import Need, Utility, needs
from creditd.engines.protocol import EmbeddedTexts, TextFailure
from creditd.scoring.model_questions import (
    CostExceededError,
    EvaluatedSets,
    RememberedBy,
    check_characters,
    failed_text,
)

Floats: TypeAlias = NDArray[np.float64]

MAX_PAIRS = 1 << 20
"""Most cosines of a request: some two seconds for vectors of 384 numbers."""


@dataclass(frozen=True)
class Targets:
    """What candidates may serve or cover.

    Attributes:
        texts: The same for all sets; None: the candidates of each set.
        threshold: Smallest cosine that covers; None where nothing is covered.
        weights: Weight of a topic by its text.
        default_weight: Weight of a topic without one.
    """

    texts: tuple[str, ...] | None
    threshold: float | None
    weights: Mapping[str, float]
    default_weight: float


class UnusableTargetError(Exception):
    """A target has no vector, so that no set has its features.

    Attributes:
        number: Which target.
        failure: Why.
    """

    def __init__(self, number: int, failure: TextFailure) -> None:
        super().__init__(number, failure)
        self.number = number
        self.failure = failure


class TextFeatures:
    """Asks for one vector per text; then the sets have the features that their utility needs."""

    remembered_by: RememberedBy | None = None

    def __init__(
        self,
        sets: CandidateSets,
        rejected: tuple[SetError, ...],
        texts: Sequence[str | None],
        *,
        utility: Utility,
        targets: Targets,
        most_characters: int,
    ) -> None:
        """Take the sets.

        Args:
            sets: B sets whose scores, topics or similarities are not known.
            rejected: Sets that lack something.
            texts: One per candidate; a set in which one is missing is rejected.
            utility: What the features are for.
            targets: What candidates may serve or cover.
            most_characters: Limit on the characters that the model reads.

        Raises:
            CostExceededError: If the texts have more, or too many cosines are asked for.
        """
        self._sets, self._utility, self._targets = sets, utility, targets
        self._errors = {error.row: error for error in rejected}
        for flat in [flat for flat, text in enumerate(texts) if text is None]:
            row, position = int(sets.owner[flat]), int(sets.position[flat])
            detail = "text is null; the embedding model reads the text of every candidate"
            self._errors.setdefault(row, SetError(row, "invalid_request", "text", position, detail))
        self._texts = [text or "" for text in texts]
        named = targets.texts or ()
        check_characters(sum(map(len, self._texts)) + sum(map(len, named)), most_characters)
        own = int((sets.sizes**2).sum())
        pairs = own if targets.texts is None else own * ("similarities" in self._needed) + len(texts) * len(named)
        if pairs > MAX_PAIRS:
            raise CostExceededError(f"got {pairs} pairs of texts to compare; expected at most {MAX_PAIRS} per request")
        self._question = [*self._texts, *named]
        self._features: CandidateFeatures | None = None

    @property
    def _needed(self) -> frozenset[Need]:
        return needs(self._utility)

    def ask(self) -> Sequence[str]:
        """All texts of candidates, then those of targets."""
        return self._question

    def tell(self, found: EmbeddedTexts) -> None:
        """Take the vectors; a set with a text that has none fails.

        Raises:
            UnusableTargetError: If a target has none.
        """
        n_candidates, splits = len(self._texts), self._sets.row_splits
        vectors, targets = found.vectors[:n_candidates], found.vectors[n_candidates:]
        self._question = []
        for place in sorted(found.failures):
            self._fail(place, found.failures[place])
        target_splits = None
        if self._targets.texts is None:
            targets, target_splits = vectors, splits
        lacking = np.flatnonzero(sets_without_vectors(vectors, splits)).tolist()
        if any(row not in self._errors for row in lacking):
            raise RuntimeError("a text has neither a vector nor a reason for having none")
        features = self._sets.features or CandidateFeatures()
        if "scores" in self._needed:
            made = target_scores(vectors, splits, targets, target_splits)
            features = replace(features, scores=made.scores, score_splits=made.score_splits)
        if "topics" in self._needed and self._targets.threshold is not None:
            weights = self._weights(len(targets))
            made = covered_topics(
                vectors, splits, targets, target_splits, threshold=self._targets.threshold, weights=weights
            )
            features = replace(
                features, topics=made.topics, topic_splits=made.topic_splits, topic_weights=made.topic_weights
            )
        if "similarities" in self._needed:
            made = set_similarities(vectors, splits, floor=similarity_floor(self._utility))
            features = replace(features, similarities=made.similarities, similarity_splits=made.similarity_splits)
        self._features = features

    def answer(self) -> EvaluatedSets:
        """The sets with their features; those of no text at all need no model."""
        if self._features is None:
            self.tell(EmbeddedTexts(np.empty((0, 1))))
        sets = replace(self._sets, features=self._features)
        return EvaluatedSets(sets, tuple(self._errors[row] for row in sorted(self._errors)))

    def _weights(self, n_targets: int) -> Floats:
        default, named = self._targets.default_weight, self._targets.weights
        if self._targets.texts is None:
            return np.full(n_targets, default)
        return np.array([named.get(text, default) for text in self._targets.texts])

    def _fail(self, place: int, failure: TextFailure) -> None:
        """Fail the set of a candidate."""
        if place >= len(self._texts):
            raise UnusableTargetError(place - len(self._texts), failure)
        row, position = int(self._sets.owner[place]), int(self._sets.position[place])
        self._errors.setdefault(row, failed_text(row, position, failure))
