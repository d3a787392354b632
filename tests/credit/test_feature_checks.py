import dataclasses

import numpy as np
import pytest

from credit.batches import splits
from credit.known_sets import columns_of
from credit.utility_oracles import KnownSet
from creditd.credit import (
    Coverage,
    FacilityLocation,
    LogDet,
    MalformedPolicy,
    NoisyOr,
    Normalization,
    Owen,
    Plurality,
    Redundancy,
    SetCreditOptions,
    SumOfUtilities,
    set_credit,
)

NAN, INF = float("nan"), float("inf")
N_SETS = 3
SIZE = 3
BAD = 1
"""The set of each batch in which something is made wrong."""

SOUND = KnownSet(
    rewards=(0.5, 0.25, 0.5),
    labels=(0, 1, 0),
    topics=(frozenset({1}), frozenset(), frozenset({0, 1})),
    scores=((0.5, 0.25), (0.0, 1.0), (0.25, 0.25)),
    vectors=((1.0, 0.0), (0.5, 0.5), (0.0, 0.25)),
    unions=(0, 0, 1),
)


def batch_of(malformed=None, **changes):
    """Three equal sets, each a group, with changes to their features."""
    batch = columns_of([SOUND] * N_SETS)
    features = dataclasses.replace(batch.features, **{k: v(batch.features) for k, v in changes.items()})
    return dataclasses.replace(batch, features=features, **(malformed or {}))


def at(index, value):
    """The column with another value at one place."""

    def change(column):
        result = np.array(column)
        result[index] = value
        return result

    return change


def errors_of(batch, utility, rule=None, **more):
    """What failed, as (row, code, field, position), with the sentences."""
    options = {"utility": utility, "normalization": Normalization(type="none"), **more}
    answer = set_credit(batch, SetCreditOptions(**options, **({} if rule is None else {"rule": rule})))
    failed = {error.row for error in answer.errors}
    for row in range(batch.n_sets):
        part = answer.credits[batch.row_splits[row] : batch.row_splits[row + 1]]
        assert np.isnan(part).all() == (row in failed), "a set has credits or an error"
    return [(e.row, e.code, e.field, e.position) for e in answer.errors], [e.detail for e in answer.errors]


FIRST = BAD * SIZE
"""The first candidate of that set."""
FIRST_SCORE = BAD * SIZE * 2
FIRST_SIMILARITY = BAD * SIZE * SIZE


@pytest.mark.parametrize(
    ("utility", "column", "change", "expected", "sentence"),
    [
        (
            Plurality(),
            "labels",
            at(FIRST + 2, -1),
            ("invalid_request", "label", 2),
            "label is missing; expected a name",
        ),
        (
            Plurality(),
            "labels",
            at(FIRST + 1, 0),
            ("invalid_request", "reward", 1),
            "reward is 0.25 for an answer that has another reward earlier in the set",
        ),
        (
            NoisyOr(),
            "scores",
            at(FIRST_SCORE + 3, NAN),
            ("non_finite_value", "scores", 1),
            "a score is NaN; expected a finite number of magnitude at most 1e+100",
        ),
        (
            FacilityLocation(),
            "scores",
            at(FIRST_SCORE + 5, -INF),
            ("non_finite_value", "scores", 2),
            "a score is -Infinity; expected a finite number of magnitude at most 1e+100",
        ),
        (
            FacilityLocation(),
            "scores",
            at(FIRST_SCORE + 1, 1e101),
            ("invalid_request", "scores", 0),
            "a score is 1e+101; expected a finite number of magnitude at most 1e+100",
        ),
        (
            NoisyOr(),
            "scores",
            at(FIRST_SCORE + 2, 1.5),
            ("invalid_request", "scores", 1),
            "a score is 1.5; expected a probability in [0, 1]",
        ),
        (
            NoisyOr(),
            "scores",
            at(FIRST_SCORE + 2, -0.5),
            ("invalid_request", "scores", 1),
            "a score is -0.5; expected a probability in [0, 1]",
        ),
        (
            Redundancy(penalty=1.0),
            "similarities",
            at(FIRST_SIMILARITY + 4, NAN),
            ("non_finite_value", "similarities", 4),
            "a similarity is NaN; expected a finite number of magnitude at most 1e+100",
        ),
        (
            Redundancy(penalty=1.0),
            "similarities",
            at(FIRST_SIMILARITY + 1, 2e100),
            ("invalid_request", "similarities", 1),
            "a similarity is 2e+100; expected a finite number of magnitude at most 1e+100",
        ),
        (
            Redundancy(penalty=1.0),
            "similarities",
            at(FIRST_SIMILARITY + 1, 0.75),
            ("invalid_request", "similarities", None),
            "the matrix differs from its transpose; expected a symmetric one",
        ),
        (
            LogDet(),
            "similarities",
            at(FIRST_SIMILARITY, -3.0),
            ("non_finite_utility", "similarities", None),
            (
                "the kernel is singular, or so nearly that its log-determinants have too few digits: "
                "some candidates are almost determined by the others"
            ),
        ),
    ],
)
def test_one_wrong_value_fails_its_own_set(utility, column, change, expected, sentence):
    """With a code, a field, the place within the set and one sentence; the other sets are answered."""
    batch = batch_of(**{column: lambda features: change(getattr(features, column))})
    found, sentences = errors_of(batch, utility)
    assert found == [(BAD, *expected)]
    assert sentences == [sentence]
    term = SumOfUtilities(((1.0, Coverage()), (-1.0, utility)))
    assert errors_of(batch, term)[0] == found, "a term asks for what its utility asks for"


def test_a_candidate_without_a_union_fails_its_set():
    """The Owen value needs a union for each player; nothing else does."""
    batch = batch_of(unions=lambda features: at(FIRST + 1, -1)(features.unions))
    assert errors_of(batch, Coverage(), Owen())[0] == [(BAD, "invalid_request", "union", 1)]
    assert errors_of(batch, Coverage())[0] == []
    with pytest.raises(ValueError, match="this request needs unions"):
        errors_of(batch_of(unions=lambda _: None), Coverage(), Owen())


def test_who_does_not_play_needs_nothing():
    """Surplus candidates have no answer, no union and no reward of their answer to agree with."""
    policy = {"malformed": MalformedPolicy(candidates=2)}
    rewards = np.array([0.5, 0.25, 9.0] * N_SETS)
    batch = batch_of({"rewards": rewards}, unions=lambda features: at(FIRST + 2, -1)(features.unions))
    assert errors_of(batch, Plurality(), Owen(), **policy)[0] == []
    batch = batch_of(labels=lambda features: at(FIRST + 2, -1)(features.labels))
    assert errors_of(batch, Plurality(), **policy)[0] == []
    kernel = batch_of(similarities=lambda features: at(FIRST_SIMILARITY + 8, -3.0)(features.similarities))
    assert errors_of(kernel, LogDet(), **policy)[0] == []
    assert errors_of(kernel, LogDet())[0] == [(BAD, "non_finite_utility", "similarities", None)]


def test_candidates_of_a_set_have_equally_many_scores():
    """The first candidate says how many; a set without any fails, too."""
    rows = [*SOUND.scores, (0.5, 0.5), (0.5,), (0.5, 0.5), *SOUND.scores]

    def changed(rows):
        return batch_of(
            scores=lambda _: np.array([value for row in rows for value in row]),
            score_splits=lambda _: splits(map(len, rows)),
        )

    found, sentences = errors_of(changed(rows), FacilityLocation())
    assert found == [(BAD, "shape_mismatch", "scores", 1)]
    assert sentences == ["got 1 scores; expected 2 as for the first candidate"]
    found, sentences = errors_of(changed([*SOUND.scores, (), (), (), *SOUND.scores]), NoisyOr())
    assert found == [(BAD, "shape_mismatch", "scores", 0)]
    assert sentences == ["got no scores; expected one per target"]
    everywhere, _ = errors_of(changed([()] * (N_SETS * SIZE)), NoisyOr())
    assert everywhere == [(row, "shape_mismatch", "scores", 0) for row in range(N_SETS)]


def test_sets_may_have_other_numbers_of_targets_where_no_weight_counts_them():
    """Without weights each set has its own targets; with weights there are as many."""
    rows = [*SOUND.scores, (0.5,), (0.25,), (1.0,), *SOUND.scores]
    batch = batch_of(
        scores=lambda _: np.array([value for row in rows for value in row]),
        score_splits=lambda _: splits(map(len, rows)),
    )
    assert errors_of(batch, NoisyOr())[0] == []
    for utility in (NoisyOr(weights=(1.0, 2.0)), FacilityLocation(weights=(1.0, 2.0))):
        found, sentences = errors_of(batch, utility)
        assert found == [(BAD, "shape_mismatch", "candidates", None)]
        assert sentences == ["the candidates have 1 scores each; expected 2, one per weight"]


def test_a_matrix_has_a_row_and_a_column_per_candidate():
    """A set with another count of similarities fails alone."""
    matrix = [value for row in SOUND.similarities for value in row]
    rows = [matrix, matrix[:4], matrix]
    batch = batch_of(
        similarities=lambda _: np.array([value for row in rows for value in row]),
        similarity_splits=lambda _: splits(map(len, rows)),
    )
    found, sentences = errors_of(batch, Redundancy(penalty=1.0))
    assert found == [(BAD, "shape_mismatch", "similarities", None)]
    assert sentences == ["similarities holds 4 numbers; expected 3 × 3"]


def test_rounding_of_a_symmetric_matrix_is_forgiven():
    """Entries may differ from their mirror images by a share of the largest; their mean is used."""
    share = 1e-7
    batch = batch_of(
        similarities=lambda features: (
            features.similarities + at(FIRST_SIMILARITY + 1, share)(np.zeros(len(features.similarities)))
        )
    )
    options = SetCreditOptions(utility=Redundancy(penalty=1.0), normalization=Normalization(type="none"))
    answer = set_credit(batch, options)
    assert answer.errors == ()
    exact = set_credit(columns_of([SOUND] * N_SETS), options)
    moved = answer.credits - exact.credits
    np.testing.assert_allclose(moved[FIRST : FIRST + 2], -share / 4, rtol=1e-6)


def test_an_empty_set_has_nothing_wrong():
    """A set without candidates is answered under every utility that needs features."""
    nobody = KnownSet((), (), (), (), (), ())
    weights = (1.0, 1.0)
    for utility in (
        Plurality(),
        Coverage(),
        NoisyOr(weights=weights),
        FacilityLocation(weights=weights),
        Redundancy(penalty=1.0),
        LogDet(),
    ):
        for sets in ([SOUND, nobody], [nobody], [nobody, SOUND]):
            answer = set_credit(columns_of(sets), SetCreditOptions(utility=utility))
            assert answer.errors == (), utility
