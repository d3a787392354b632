import numpy as np
import pytest

from credit.known_sets import RULES, UTILITIES, columns_of
from credit.utility_oracles import KnownSet
from creditd.credit import (
    Blend,
    CandidateFeatures,
    CandidateSets,
    Coverage,
    Max,
    MaxAtK,
    NoisyOr,
    Owen,
    Plurality,
    PrefixGain,
    SetCreditOptions,
    SetReward,
    Shapley,
    set_credit,
)
from creditd.credit.set_games import WORK_PER_CALL
from creditd.credit.set_work import MAX_WORK_PER_SET, targets_and_topics, work_of_credit


def sets_of(n_sets, size, **features):
    """Sets of rewards, each a group, candidates in unions of two."""
    n = n_sets * size
    return CandidateSets(
        rewards=np.arange(n) % 7 / 4.0,
        row_splits=np.arange(n_sets + 1) * size,
        groups=np.arange(n_sets),
        n_groups=n_sets,
        features=CandidateFeatures(unions=np.arange(n) // 2, labels=np.arange(n) % 7, **features),
    )


def calls_of(batch, options):
    """How often a deadline is looked at, and the answer."""
    calls = []
    return set_credit(batch, options, checkpoint=lambda: calls.append(1)), len(calls)


@pytest.mark.parametrize("name", UTILITIES)
def test_work_is_counted_for_every_utility_and_rule(name):
    """Work is a number above 0 that does not fall with the players, the targets or the topics."""
    utility, _ = UTILITIES[name]
    for of_size in RULES.values():
        smallest = 1
        for n, n_targets, n_topics in ((0, 0, 0), (1, 0, 0), (2, 0, 0), (2, 3, 5), (12, 3, 5), (12, 30, 50)):
            work = work_of_credit(of_size(max(n, 1))[0], utility, n, n_targets, n_topics)
            assert work >= smallest
            smallest = work


def test_a_blend_costs_both_of_its_ends():
    """Work of a blend is that of its ends together."""
    ends = (Owen(), PrefixGain())
    parts = [work_of_credit(end, Max(), 8, 0, 0) for end in ends]
    assert work_of_credit(Blend(*ends, 0.5), Max(), 8, 0, 0) == sum(parts)


def test_enumeration_counts_every_coalition():
    """Two more players make four times the coalitions where all are gone through, not for a formula."""
    for rule in (Owen(), MaxAtK(k=3)):
        assert work_of_credit(rule, Plurality(), 12, 0, 0) > 4 * work_of_credit(rule, Plurality(), 10, 0, 0)
    assert work_of_credit(MaxAtK(k=3), Max(), 12, 0, 0) < 2 * work_of_credit(MaxAtK(k=3), Max(), 10, 0, 0)
    assert work_of_credit(SetReward(), Max(), 12, 0, 0) < work_of_credit(PrefixGain(), Max(), 12, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "size"), [(Owen(), 10), (PrefixGain(), 200), (MaxAtK(k=2), 10)])
def test_calls_are_cut_by_the_work_of_the_rule(rule, size):
    """Many sets are solved in calls of bounded memory, between which a deadline is looked at; no bit depends on it."""
    work = work_of_credit(rule, Plurality(), size, 0, 0)
    n_sets = 2 * WORK_PER_CALL // work + 1
    options = SetCreditOptions(utility=Plurality(), rule=rule)
    one = sets_of(1, size)
    batch = CandidateSets(
        rewards=np.tile(one.rewards, n_sets),
        row_splits=np.arange(n_sets + 1) * size,
        groups=np.arange(n_sets),
        n_groups=n_sets,
        features=CandidateFeatures(
            unions=np.tile(one.features.unions, n_sets), labels=np.tile(one.features.labels, n_sets)
        ),
    )
    answer, calls = calls_of(batch, options)
    assert calls >= 3
    alone, _ = calls_of(one, options)
    assert answer.credits.tobytes() == np.tile(alone.credits, n_sets).tobytes()


def test_a_set_that_costs_too_much_fails_alone():
    """A set whose credit would outlast every deadline is refused, with about how much it costs; others are answered."""
    n, n_targets = 200, 1200
    rule, utility = MaxAtK(k=50), NoisyOr()
    batch = CandidateSets(
        rewards=np.zeros(n + 2),
        row_splits=np.array([0, n, n + 2]),
        groups=np.arange(2),
        n_groups=2,
        features=CandidateFeatures(scores=np.zeros((n + 2) * n_targets), score_splits=np.arange(n + 3) * n_targets),
    )
    assert work_of_credit(rule, utility, n, n_targets, 0) > MAX_WORK_PER_SET
    answer = set_credit(batch, SetCreditOptions(utility=utility, rule=rule))
    assert [(e.row, e.code, e.field, e.position) for e in answer.errors] == [(0, "budget_exceeded", "candidates", None)]
    assert answer.errors[0].detail == "the credit of this set takes about 1e+10 additions; expected 2e+09"
    assert set_credit(batch, SetCreditOptions(utility=utility)).errors == ()


def test_topics_and_targets_count_where_they_are_needed():
    """A set has the scores of its first candidate and at most as many topics as its candidates name."""
    one = KnownSet(
        (0.0,) * 2, (0,) * 2, (frozenset({1, 2}), frozenset({2})), ((0.5,) * 3,) * 2, ((0.0,),) * 2, (0,) * 2
    )
    batch = columns_of([one, one.only([1])])
    assert [column.tolist() for column in targets_and_topics(batch, NoisyOr())] == [[3, 3], [0, 0]]
    assert [column.tolist() for column in targets_and_topics(batch, Coverage())] == [[0, 0], [3, 1]]
    assert [column.tolist() for column in targets_and_topics(batch, Max())] == [[0, 0], [0, 0]]
    assert work_of_credit(Shapley(), Coverage(), 0, 0, 0) >= 1
