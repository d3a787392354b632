"""How much arithmetic a set costs, known before any of it is done: calls are cut by it, and sets refused.

Legend: `B` sets, `n` players of one set.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_features import CandidateFeatures
from creditd.credit.candidate_sets import CandidateSets, SetErrors
from creditd.credit.coverage import Coverage, FacilityLocation
from creditd.credit.credit_rules import CreditRule, EndRule, MaxAtK, Mixture, Owen, PrefixGain, SetReward, ends_of
from creditd.credit.diversity import MaxMinusSimilarity, MeanPairwiseDiversity, QualityNovelty, Redundancy
from creditd.credit.games import MAX_ENUMERATED_PLAYERS
from creditd.credit.log_det import MAX_PLAYERS as MAX_LOG_DET_PLAYERS
from creditd.credit.log_det import LogDet
from creditd.credit.log_sum_exp import LogSumExp
from creditd.credit.noisy_or import NoisyOr
from creditd.credit.set_utilities import Utility, every_semivalue, needs, terms_of
from creditd.credit.votes import Plurality

Integers: TypeAlias = NDArray[np.int64]

MAX_WORK_PER_SET = 1 << 31
"""Most additions for one set, to an order of magnitude: a second or two, in which no deadline is looked at."""


def check_work(
    batch: CandidateSets, utility: Utility, rule: CreditRule, n_players: Integers, errors: SetErrors
) -> None:
    """Fail the sets whose credit would take so long that no deadline could be kept.

    Args:
        batch: The sets.
        utility: The utility.
        rule: The rule.
        n_players: Shape (B,), players of each set.
        errors: Receives at most one error per set.

    Cost:
        O(B) where no set comes near the limit.
    """
    targets, topics = targets_and_topics(batch, utility)
    most = [int(column.max(initial=0)) for column in (n_players, targets, topics)]
    if work_of_credit(rule, utility, *most) <= MAX_WORK_PER_SET:
        return
    kinds, kind = np.unique(np.stack([n_players, targets, topics], axis=1), axis=0, return_inverse=True)
    work = [work_of_credit(rule, utility, *one) for one in kinds.tolist()]
    works = np.array(work, dtype=np.float64)[kind.reshape(-1)]
    errors.add_sets(
        np.flatnonzero(works > MAX_WORK_PER_SET),
        "budget_exceeded",
        "candidates",
        lambda row: f"the credit of this set takes about {works[row]:.1g} additions; expected {MAX_WORK_PER_SET:.1g}",
    )


def targets_and_topics(batch: CandidateSets, utility: Utility) -> tuple[Integers, Integers]:
    """How many scores each candidate of a set has, and a bound on its different topics.

    Args:
        batch: The sets.
        utility: The utility.

    Returns:
        Two arrays of shape (B,), int64, 0 where the utility has no use for them.

    Cost:
        O(B).
    """
    features, needed = CandidateFeatures() if batch.features is None else batch.features, needs(utility)
    targets, topics = np.zeros_like(batch.sizes), np.zeros_like(batch.sizes)
    if "scores" in needed:
        targets = features.targets(batch.row_splits)
    if "topics" in needed and features.topic_splits is not None:
        topics = np.diff(features.topic_splits[batch.row_splits])
    return targets, topics


def work_of_credit(rule: CreditRule, utility: Utility, n_players: int, n_targets: int, n_topics: int) -> int:
    """How much arithmetic the credit of one set costs, in additions and to an order of magnitude.

    Args:
        rule: Which credit; both ends of a blend count.
        utility: Any utility.
        n_players: n.
        n_targets: Scores of each candidate.
        n_topics: Most topics of one set.

    Returns:
        A number ≥ 1, by which calls are cut so that a deadline is noticed and memory stays bounded.

    Cost:
        O(terms).
    """
    return sum(_work_of_end(end, utility, n_players, n_targets, n_topics) for end in ends_of(rule))


def _work_of_end(rule: EndRule, utility: Utility, n_players: int, n_targets: int, n_topics: int) -> int:
    size = _size_of(utility, n_players, n_targets, n_topics)
    any_weights = isinstance(rule, MaxAtK | Mixture)
    if isinstance(rule, Owen) or (any_weights and not every_semivalue(utility)):
        # One utility after the other for all sets at once, which is several times cheaper than a kernel's addition.
        return max(1, (size << min(n_players, MAX_ENUMERATED_PLAYERS)) // 4)
    if isinstance(rule, SetReward):
        return size
    if isinstance(rule, PrefixGain):
        return size * max(n_players, 1)
    return _work_of_semivalues(utility, n_players, n_targets, n_topics, any_weights=any_weights)


def _work_of_semivalues(utility: Utility, n_players: int, n_targets: int, n_topics: int, *, any_weights: bool) -> int:
    """Additions of one call of each term's kernel; weights other than those of three rules cost some of them more."""
    n = max(n_players, 1)
    total = 0
    for term in terms_of(utility):
        if isinstance(term, LogSumExp):
            total += 400 * n * n
        elif isinstance(term, Plurality):
            total += n * n * n
        elif isinstance(term, NoisyOr):
            total += (n if any_weights else 8) * n * n * max(n_targets, 1)
        elif isinstance(term, FacilityLocation):
            total += 4 * n * max(n_targets, 1)
        elif isinstance(term, Coverage):
            total += 4 * n * max(n_topics, 1)
        elif isinstance(term, LogDet):
            total += (1 << min(n, MAX_LOG_DET_PLAYERS)) * n
        elif isinstance(term, Redundancy | MaxMinusSimilarity | MeanPairwiseDiversity | QualityNovelty):
            total += 8 * n * n
        else:
            total += n
    return total


def _size_of(utility: Utility, n_players: int, n_targets: int, n_topics: int) -> int:
    """How many numbers describe one set to all terms: what one utility of it costs."""
    n, total = max(n_players, 1), 0
    for term in terms_of(utility):
        of_pairs = isinstance(term, LogDet | Redundancy | MaxMinusSimilarity | MeanPairwiseDiversity | QualityNovelty)
        total += n * (1 + n * of_pairs)
        total += n * n_targets * isinstance(term, FacilityLocation | NoisyOr)
        total += n * n_topics * isinstance(term, Coverage)
    return total
