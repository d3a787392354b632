import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from creditd.credit import (
    CandidateSets,
    Coverage,
    FacilityLocation,
    LogDet,
    MaxMinusSimilarity,
    QualityNovelty,
    Redundancy,
    SetCreditOptions,
    SetError,
    covered_topics,
    set_credit,
    set_similarities,
    sets_without_vectors,
    similarity_floor,
    target_scores,
)
from creditd.credit.embeddings import BLOCK_NUMBERS
from creditd.credit.set_utilities import SumOfUtilities

ROUNDING = 1e-14
UTILITIES = {
    "facility_location": FacilityLocation(),
    "coverage": Coverage(),
    "redundancy": Redundancy(penalty=0.5),
    "quality_novelty": QualityNovelty(penalty=0.5),
    "max_minus_similarity": MaxMinusSimilarity(penalty=0.5),
    "log_det": LogDet(),
}


def units(random, n, width):
    """Vectors of length 1 in any direction."""
    rows = random.normal(size=(n, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@st.composite
def embedded(draw, sets=4):
    """Vectors of candidates in sets and of targets, some of them equal, some of them opposite."""
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    width = draw(st.sampled_from([1, 2, 3, 16, 384]))
    sizes = draw(st.lists(st.integers(0, 5), min_size=1, max_size=sets))
    directions = units(random, 4, width)
    vectors, targets = units(random, sum(sizes), width), units(random, draw(st.integers(1, 4)), width)
    for rows in (vectors, targets):
        for row in range(len(rows)):
            which = draw(st.integers(-4, 8))
            if which < 4:
                rows[row] = directions[which] if which >= 0 else -directions[which]
    return vectors, np.concatenate([[0], np.cumsum(sizes)]), targets


def cosine(x, y):
    """By its definition, with sums that are exact but for one rounding."""
    dot = math.fsum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True))
    return dot / math.sqrt(math.fsum(a * a for a in x.tolist()) * math.fsum(b * b for b in y.tolist()))


def matrices(features, splits):
    """The similarities of each set as a matrix."""
    sizes = np.diff(splits).tolist()
    starts = features.similarity_splits.tolist()
    return [features.similarities[at : at + n * n].reshape(n, n) for at, n in zip(starts, sizes, strict=False)]


@given(embedded(), st.sampled_from([None, 0.0, 0.25]))
def test_scores_are_cosines_above_a_floor(case, floor):
    """Each candidate has the cosine with each target in the order of the targets, or the floor."""
    vectors, splits, targets = case
    found = target_scores(vectors, splits, targets, floor=floor)
    expected = [[cosine(x, y) for y in targets] for x in vectors]
    if floor is not None:
        expected = [[max(value, floor) for value in row] for row in expected]
    assert found.score_splits.tolist() == list(range(0, len(targets) * len(vectors) + 1, len(targets)))
    assert np.abs(found.scores - np.array(expected).reshape(-1)).max(initial=0.0) <= ROUNDING
    assert not np.signbit(found.scores[found.scores == 0]).any()


@given(embedded(), st.sampled_from([None, 0.0]))
def test_similarities_are_symmetric_cosines(case, floor):
    """A matrix per set: cosines, the same bits on both sides of the diagonal, exactly 1 there and between copies."""
    vectors, splits, _ = case
    found = set_similarities(vectors, splits, floor=floor)
    assert found.similarity_splits.tolist() == np.cumsum([0, *np.diff(splits) ** 2]).tolist()
    for start, matrix in zip(splits[:-1].tolist(), matrices(found, splits), strict=True):
        rows = vectors[start : start + len(matrix)]
        assert matrix.tobytes() == matrix.T.copy().tobytes()
        for i, x in enumerate(rows):
            for j, y in enumerate(rows):
                expected = cosine(x, y) if floor is None else max(cosine(x, y), floor)
                assert abs(matrix[i, j] - expected) <= ROUNDING
                assert matrix[i, j] == 1.0 or x.tobytes() != y.tobytes()
        assert (np.diagonal(matrix) == 1.0).all()
        assert np.abs(matrix).max(initial=0.0) <= 1.0


@given(embedded(), st.sampled_from([-1.0, 0.0, 0.5, 1.0]))
def test_topics_are_the_targets_that_are_near(case, threshold):
    """A candidate covers the targets whose cosine reaches the threshold, in ascending order; a copy covers at 1."""
    vectors, splits, targets = case
    found = covered_topics(vectors, splits, targets, threshold=threshold)
    scores = target_scores(vectors, splits, targets, floor=None).scores.reshape(len(vectors), len(targets))
    for row, (start, stop) in enumerate(zip(found.topic_splits[:-1], found.topic_splits[1:], strict=True)):
        assert found.topics[start:stop].tolist() == np.flatnonzero(scores[row] >= threshold).tolist()
        copies = [t for t, target in enumerate(targets) if target.tobytes() == vectors[row].tobytes()]
        assert set(copies) <= set(found.topics[start:stop].tolist())
    assert found.topic_weights.tolist() == [1.0] * len(targets)


@given(embedded(), st.randoms(use_true_random=False))
def test_the_order_of_candidates_changes_no_bit(case, random):
    """Permuting the candidates of a set permutes scores, topics, and rows with columns, to the last bit."""
    vectors, splits, targets = case
    vectors = vectors[: splits[1]]
    order = list(range(len(vectors)))
    random.shuffle(order)
    one = np.array([0, len(vectors)])
    shape = (len(vectors), len(targets))
    before, after = (target_scores(rows, one, targets).scores.reshape(shape) for rows in (vectors, vectors[order]))
    assert before[order].tobytes() == after.tobytes()
    before, after = (matrices(set_similarities(rows, one), one)[0] for rows in (vectors, vectors[order]))
    assert before[np.ix_(order, order)].tobytes() == after.tobytes()
    before, after = (covered_topics(rows, one, targets, threshold=0.3) for rows in (vectors, vectors[order]))
    assert [topics_of(before, row) for row in order] == [topics_of(after, row) for row in range(len(order))]


def topics_of(features, row):
    """The topics of a candidate."""
    return features.topics[features.topic_splits[row] : features.topic_splits[row + 1]].tolist()


@given(embedded(sets=6))
def test_a_set_does_not_know_its_batch(case):
    """Scores and similarities of a set alone have the bits that they have in any company."""
    vectors, splits, targets = case
    scores = target_scores(vectors, splits, targets).scores.reshape(len(vectors), len(targets))
    together = matrices(set_similarities(vectors, splits), splits)
    for start, stop, matrix in zip(splits[:-1], splits[1:], together, strict=True):
        one = np.array([0, stop - start])
        alone = vectors[start:stop]
        assert matrices(set_similarities(alone, one), one)[0].tobytes() == matrix.tobytes()
        assert target_scores(alone, one, targets).scores.tobytes() == scores[start:stop].tobytes()
        for target in range(len(targets)):
            of_one = target_scores(alone, one, targets[target : target + 1]).scores
            assert of_one.tobytes() == scores[start:stop, target].copy().tobytes()


@pytest.mark.parametrize("width", [7, 384, BLOCK_NUMBERS + 1])
def test_blocks_change_no_bit(width):
    """More pairs than a block holds, or one pair that is larger than a block, have the bits of single pairs."""
    random = np.random.default_rng(width)
    n, n_targets = (3, 2) if width > 1000 else (700, 20)
    vectors, targets = units(random, n, width), units(random, n_targets, width)
    scores = target_scores(vectors, np.array([0, n]), targets).scores.reshape(n, n_targets)
    for row, target in [(0, 0), (n - 1, n_targets - 1), (n // 2, 1)]:
        alone = target_scores(vectors[row : row + 1], np.array([0, 1]), targets[target : target + 1]).scores
        assert alone[0] == scores[row, target]


def test_sets_may_have_targets_of_their_own():
    """Row splits of targets give each set its own, as many as it has; topics keep the numbers of all."""
    random = np.random.default_rng(5)
    vectors, targets = units(random, 5, 8), units(random, 4, 8)
    splits, of_targets = np.array([0, 2, 2, 5]), np.array([0, 3, 3, 4])
    found = target_scores(vectors, splits, targets, of_targets)
    assert found.score_splits.tolist() == [0, 3, 6, 7, 8, 9]
    assert found.targets(splits).tolist() == [3, 0, 1]
    whole = target_scores(vectors, np.array([0, 5]), targets).scores.reshape(5, 4)
    assert found.scores.tobytes() == np.concatenate([whole[:2, :3].reshape(-1), whole[2:, 3]]).tobytes()
    topics = covered_topics(vectors, splits, targets, of_targets, threshold=-1.0, weights=np.arange(4.0))
    assert topics.topics.tolist() == [0, 1, 2, 0, 1, 2, 3, 3, 3]
    assert topics.topic_weights.tolist() == [0.0, 1.0, 2.0, 3.0]


def features_of(name, vectors, splits, targets):
    """The columns that a utility needs."""
    if name == "facility_location":
        return target_scores(vectors, splits, targets)
    if name == "coverage":
        return covered_topics(vectors, splits, targets, threshold=0.2)
    return set_similarities(vectors, splits, floor=similarity_floor(UTILITIES[name]))


def credits_of(name, vectors, splits, targets, rejected=()):
    """Credit of sets whose rewards are all 1, under a utility."""
    n_sets = len(splits) - 1
    batch = CandidateSets(np.ones(len(vectors)), splits, np.arange(n_sets), n_sets)
    batch = replace(batch, features=features_of(name, vectors, splits, targets))
    return set_credit(batch, SetCreditOptions(utility=UTILITIES[name]), rejected)


@pytest.mark.parametrize("name", UTILITIES)
def test_credit_from_vectors_closes_and_knows_no_batch(name):
    """Credits of a set sum to its gain, are the same bits alone, and favour who says what no other says."""
    random = np.random.default_rng(3)
    vectors, targets, splits = units(random, 12, 32), units(random, 5, 32), np.arange(0, 13, 4)
    vectors[1] = vectors[0] + 0.05 * vectors[1]
    found = credits_of(name, vectors, splits, targets)
    assert found.errors == ()
    assert np.abs(found.gaps).max() <= 1e-12
    alone = credits_of(name, vectors[:4], splits[:2], targets)
    assert alone.credits.tobytes() == found.credits[:4].tobytes()
    if name not in {"facility_location", "coverage"}:
        assert found.credits[:2].max() < found.credits[2:4].min()


@pytest.mark.parametrize("name", UTILITIES)
def test_a_text_without_a_vector_fails_its_set_alone(name):
    """The sets that lack a vector are named; rejected, they have no credit, and the others have the bits they had."""
    random = np.random.default_rng(4)
    vectors, targets, splits = units(random, 12, 32), units(random, 5, 32), np.arange(0, 13, 4)
    before = credits_of(name, vectors, splits, targets)
    vectors[5] = np.nan
    lacking = sets_without_vectors(vectors, splits, targets)
    assert lacking.tolist() == [False, True, False]
    rejected = tuple(
        SetError(row, "invalid_request", "candidates", None, "no vector") for row in np.flatnonzero(lacking).tolist()
    )
    found = credits_of(name, vectors, splits, targets, rejected)
    assert [error.row for error in found.errors] == [1]
    assert np.isnan(found.credits[4:8]).all()
    assert found.credits[[0, 1, 2, 3, 8, 9, 10, 11]].tobytes() == before.credits[[0, 1, 2, 3, 8, 9, 10, 11]].tobytes()


def test_a_target_without_a_vector_fails_the_sets_that_have_it():
    """A target of all sets fails them all, one of a set fails that set; without targets only candidates count."""
    random = np.random.default_rng(4)
    vectors, targets, splits = units(random, 4, 3), units(random, 3, 3), np.array([0, 1, 1, 4])
    targets[2] = np.nan
    assert sets_without_vectors(vectors, splits, targets).tolist() == [True] * 3
    assert sets_without_vectors(vectors, splits, targets, np.array([0, 2, 2, 3])).tolist() == [False, False, True]
    assert sets_without_vectors(vectors, splits).tolist() == [False] * 3
    scores = target_scores(vectors, splits, targets).scores.reshape(4, 3)
    assert np.isnan(scores).tolist() == [[False, False, True]] * 4
    vectors[3] = np.nan
    last = matrices(set_similarities(vectors, splits), splits)[2]
    assert np.isnan(last).tolist() == [[False, False, True], [False, False, True], [True, True, True]]


def test_floors_keep_what_utilities_mean():
    """Opposite candidates are no better than unrelated ones, and a kernel of a log-determinant stays one."""
    opposite, unrelated = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.eye(2)
    splits, nowhere = np.array([0, 2]), np.ones((1, 2))
    for name in ("redundancy", "quality_novelty", "max_minus_similarity"):
        found, expected = (credits_of(name, rows, splits, nowhere).credits for rows in (opposite, unrelated))
        assert found.tobytes() == expected.tobytes()
    assert similarity_floor(LogDet()) is None
    assert similarity_floor(SumOfUtilities(terms=((1.0, Redundancy(penalty=1.0)), (1.0, LogDet())))) is None
    assert similarity_floor(Redundancy(penalty=1.0)) == 0.0
    angles = np.radians(30.0) * np.arange(12)
    circle, one = np.stack([np.cos(angles), np.sin(angles)], axis=1), np.array([0, 12])
    plain, floored = (
        np.linalg.eigvalsh(matrices(set_similarities(circle, one, floor=floor), one)[0])[0] for floor in (None, 0.0)
    )
    assert plain > -1e-12
    # The fourth Fourier coefficient of max(0, cos) is negative, and twelve points on a circle see it.
    assert floored < -0.25


def test_facility_location_never_charges_for_being_elsewhere():
    """A candidate that points away from every target is worth what nobody is worth, and not less."""
    vectors, targets = np.array([[-1.0, 0.0], [0.6, 0.8]]), np.array([[1.0, 0.0]])
    found = credits_of("facility_location", vectors, np.array([0, 2]), targets)
    assert found.credits.tolist() == pytest.approx([0.0, 0.6])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda v, s, t: target_scores(v[:, :0], s, t[:, :0]), r"H >= 1: got \(4, 0\)"),
        (lambda v, s, t: target_scores(v[0], s, t), r"H >= 1: got \(3,\)"),
        (lambda v, s, t: target_scores(v, s[:-1], t), "rise from 0 to 4"),
        (lambda v, s, t: target_scores(v, s, t[:, :2]), r"targets must fit the candidates: got 2 sets"),
        (lambda v, s, t: target_scores(v, s, t, np.array([0, 2])), r"got 1 sets of targets \(2, 3\), expected 2"),
        (lambda v, s, t: covered_topics(v, s, t, threshold=1.5), r"in \[-1, 1\]: got 1\.5"),
        (lambda v, s, t: covered_topics(v, s, t, threshold=0.5, weights=np.ones(3)), r"got \(3,\), expected \(2,\)"),
        (lambda v, s, _: set_similarities(v, s[::-1]), "rise from 0 to 4"),
        (lambda v, s, t: sets_without_vectors(v, s, t, np.array([0, 1, 3])), "rise from 0 to 2"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call, sentence):
    """What disagrees is said, with what was got."""
    random = np.random.default_rng(1)
    with pytest.raises(ValueError, match=sentence):
        call(units(random, 4, 3), np.array([0, 2, 4]), units(random, 2, 3))
