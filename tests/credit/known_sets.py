"""Sets of which everything is known as columns, and every utility beside its definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from credit.batches import splits
from credit.utility_oracles import Choice, KnownSet
from creditd.credit import (
    AllPass,
    Blend,
    CandidateFeatures,
    CandidateSets,
    Coverage,
    CVaR,
    ExpectedMax,
    FacilityLocation,
    LeaveOneOut,
    LogDet,
    LogSumExp,
    Max,
    MaxAtK,
    MaxMinusSimilarity,
    Mean,
    MeanPairwiseDiversity,
    Median,
    Min,
    Mixture,
    NoisyOr,
    Owen,
    OwnReward,
    PassAtK,
    Plurality,
    PrefixGain,
    QualityNovelty,
    Quantile,
    Redundancy,
    RthBest,
    SetReward,
    Shapley,
    Sum,
    SumOfUtilities,
    Threshold,
    TopM,
    TopMMean,
    TrimmedMean,
)

N_TOPICS = 6
TOPIC_WEIGHTS = {0: 1.0, 1: -0.5, 2: 2.25, 3: 0.0, 4: 0.1, 5: 3.0}
N_TARGETS = 3
TARGET_WEIGHTS = (1.0, -0.75, 0.3)
ONES = (1.0,) * N_TARGETS

UTILITIES: dict[str, tuple[Any, Choice | list[tuple[float, Choice]]]] = {
    "max": (Max(empty=0.25), ("max", {"empty": 0.25})),
    "max with a floor": (Max(floor=0.25), ("max", {"floor": 0.25})),
    "min": (Min(empty=-0.5), ("min", {"empty": -0.5})),
    "sum": (Sum(empty=0.75), ("sum", {"empty": 0.75})),
    "mean": (Mean(empty=0.125), ("mean", {"empty": 0.125})),
    "median": (Median(empty=-0.75), ("median", {"empty": -0.75})),
    "quantile": (Quantile(q=0.3, empty=0.625), ("quantile", {"q": 0.3, "empty": 0.625})),
    "trimmed mean": (TrimmedMean(fraction=0.29, empty=0.5), ("trimmed_mean", {"fraction": 0.29, "empty": 0.5})),
    "cvar": (CVaR(alpha=0.3, empty=-0.125), ("cvar", {"alpha": 0.3, "tail": "worst", "empty": -0.125})),
    "cvar, best": (
        CVaR(alpha=0.7, empty=1.5, tail="best"),
        ("cvar", {"alpha": 0.7, "tail": "best", "empty": 1.5}),
    ),
    "top m": (TopM(m=2, empty=-0.25), ("top_m", {"m": 2, "empty": -0.25})),
    "top m mean": (TopMMean(m=3, empty=0.875), ("top_m_mean", {"m": 3, "empty": 0.875})),
    "rth best": (
        RthBest(r=2, default=0.5, empty=2.0),
        ("rth_best", {"r": 2, "default": 0.5, "empty": 2.0}),
    ),
    "max at k": (ExpectedMax(k=3, empty=-0.375), ("max_at_k", {"k": 3, "empty": -0.375})),
    "pass at k": (
        PassAtK(threshold=0.25, k=2, empty=0.25),
        ("pass_at_k", {"threshold": 0.25, "k": 2, "empty": 0.25}),
    ),
    "threshold": (
        Threshold(threshold=0.25, count=2, empty=0.5),
        ("threshold", {"threshold": 0.25, "count": 2, "empty": 0.5}),
    ),
    "all pass": (AllPass(threshold=-0.5, empty=0.75), ("all_pass", {"threshold": -0.5, "empty": 0.75})),
    "log-sum-exp": (
        LogSumExp(temperature=0.5, empty=-1.0),
        ("log_sum_exp", {"temperature": 0.5, "empty": -1.0}),
    ),
    "log-sum-exp with a baseline": (
        LogSumExp(temperature=2.0, baseline=0.5),
        ("log_sum_exp", {"temperature": 2.0, "empty": 0.5, "baseline": 0.5}),
    ),
    "plurality": (Plurality(empty=0.3), ("plurality", {"ties": "split", "empty": 0.3})),
    "plurality, ties lose": (
        Plurality(ties="lose", empty=-0.2),
        ("plurality", {"ties": "lose", "empty": -0.2}),
    ),
    "coverage": (
        Coverage(empty=0.4),
        ("coverage", {"weights": TOPIC_WEIGHTS, "count": 1, "empty": 0.4}),
    ),
    "coverage by two": (
        Coverage(count=2, empty=-0.4),
        ("coverage", {"weights": TOPIC_WEIGHTS, "count": 2, "empty": -0.4}),
    ),
    "facility location": (
        FacilityLocation(weights=TARGET_WEIGHTS, empty=0.6),
        ("facility_location", {"weights": TARGET_WEIGHTS, "empty": 0.6}),
    ),
    "facility location, equal weights": (
        FacilityLocation(empty=0.0),
        ("facility_location", {"weights": ONES, "empty": 0.0}),
    ),
    "noisy-or": (
        NoisyOr(weights=TARGET_WEIGHTS, empty=0.2),
        ("noisy_or", {"weights": TARGET_WEIGHTS, "empty": 0.2}),
    ),
    "redundancy": (
        Redundancy(penalty=0.7, empty=0.1),
        ("redundancy", {"penalty": 0.7, "empty": 0.1}),
    ),
    "max minus similarity": (
        MaxMinusSimilarity(penalty=0.3, empty=-0.1),
        ("max_minus_similarity", {"penalty": 0.3, "empty": -0.1}),
    ),
    "quality and novelty": (
        QualityNovelty(penalty=0.5, empty=0.9),
        ("quality_novelty", {"penalty": 0.5, "empty": 0.9}),
    ),
    "mean pairwise diversity": (
        MeanPairwiseDiversity(single=0.35, empty=-0.6),
        ("mean_pairwise_diversity", {"single": 0.35, "empty": -0.6}),
    ),
    "log-det": (LogDet(empty=0.15), ("log_det", {"form": "identity_plus", "empty": 0.15})),
}
"""Every utility with a formula, with v(∅) ≠ 0 where it can be, beside its definition."""

SUMS = {
    "a sum of all kinds": ("max", "coverage", "noisy-or", "redundancy", "mean"),
    "a sum with votes": ("plurality", "log-sum-exp", "facility location", "rth best"),
    "a sum of one": ("quality and novelty",),
    "a sum with a term twice": ("max", "max", "max with a floor"),
    "a sum with a kernel": ("log-det", "min"),
}
SUM_WEIGHTS = (0.7, -1.25, 2.0, 0.0, 0.5)
UTILITIES |= {
    name: (
        SumOfUtilities(tuple((weight, UTILITIES[term][0]) for weight, term in zip(SUM_WEIGHTS, terms, strict=False))),
        [(weight, UTILITIES[term][1]) for weight, term in zip(SUM_WEIGHTS, terms, strict=False)],
    )
    for name, terms in SUMS.items()
}

RULES: dict[str, Callable[[int], tuple[Any, tuple[Any, ...]]]] = {
    "shapley": lambda _: (Shapley(), ("shapley",)),
    "leave_one_out": lambda _: (LeaveOneOut(), ("leave_one_out",)),
    "own_reward": lambda _: (OwnReward(), ("own_reward",)),
    "set_reward": lambda _: (SetReward(), ("set_reward",)),
    "prefix_gain": lambda _: (PrefixGain(), ("prefix_gain",)),
    "owen": lambda _: (Owen(), ("owen",)),
    "max_at_k": lambda _: (MaxAtK(k=2), ("max_at_k", 2)),
    "mixture": lambda n: (
        Mixture(tuple(0.75 - 0.5 * k for k in range(n))),
        ("mixture", [0.75 - 0.5 * k for k in range(n)]),
    ),
    "blend": lambda _: (Blend(Shapley(), Owen(), 0.375), ("blend", ("shapley",), ("owen",), 0.375)),
    "blend in order": lambda _: (
        Blend(PrefixGain(), MaxAtK(k=3), 0.25),
        ("blend", ("prefix_gain",), ("max_at_k", 3), 0.25),
    ),
}
"""Every rule for sets of n candidates, beside its definition."""

eighths = st.integers(-16, 16).map(lambda v: v / 8)
chances = st.integers(0, 8).map(lambda v: v / 8)
vectors = st.tuples(*[st.integers(-4, 4).map(lambda v: v / 4)] * 2)


@st.composite
def known_sets(draw, min_size: int = 1, max_size: int = 5, *, unscored: bool = False) -> KnownSet:
    """A set of which everything is known; ties are frequent, candidates of one answer have one reward."""
    size = draw(st.integers(min_size, max_size))

    def column(strategy):
        return tuple(draw(st.lists(strategy, min_size=size, max_size=size)))

    labels = column(st.integers(0, 3))
    reward_of = draw(st.tuples(*[eighths] * 4))
    rewards = tuple(reward_of[label] for label in labels)
    if unscored:
        rewards = tuple(draw(st.sampled_from([reward, reward, None])) for reward in rewards)
    return KnownSet(
        rewards=rewards,
        labels=labels,
        topics=column(st.frozensets(st.integers(0, N_TOPICS - 1), max_size=4)),
        scores=column(st.tuples(*[chances] * N_TARGETS)),
        vectors=column(vectors),
        unions=column(st.integers(0, 2)),
    )


def columns_of(
    sets: Sequence[KnownSet],
    *,
    groups: Sequence[int] | None = None,
    topic_numbers: Sequence[int] = range(N_TOPICS),
    label_numbers: Sequence[int] = range(4),
    **more: Any,
) -> CandidateSets:
    """A batch as columns; topics, and labels, may be numbered in other ways."""
    rewards = [np.nan if r is None else r for one in sets for r in one.rewards]
    topics = [sorted(topic_numbers[topic] for topic in row) for one in sets for row in one.topics]
    weights = np.zeros(max(topic_numbers) + 1)
    for topic, weight in TOPIC_WEIGHTS.items():
        weights[topic_numbers[topic]] = weight
    scores = [row for one in sets for row in one.scores]
    matrices = [[value for row in one.similarities for value in row] for one in sets]
    groups = list(range(len(sets))) if groups is None else list(groups)
    return CandidateSets(
        rewards=np.array(rewards, dtype=np.float64),
        row_splits=splits(one.size for one in sets),
        groups=np.array(groups, dtype=np.int64),
        n_groups=max(groups, default=-1) + 1,
        missing=np.array([r is None for one in sets for r in one.rewards], dtype=np.bool_),
        features=CandidateFeatures(
            labels=np.array([label_numbers[label] for one in sets for label in one.labels], dtype=np.int64),
            topics=np.array([topic for row in topics for topic in row], dtype=np.int64),
            topic_splits=splits(map(len, topics)),
            topic_weights=weights,
            scores=np.array([value for row in scores for value in row], dtype=np.float64),
            score_splits=splits(map(len, scores)),
            similarities=np.array([value for row in matrices for value in row], dtype=np.float64),
            similarity_splits=splits(map(len, matrices)),
            unions=np.array([union for one in sets for union in one.unions], dtype=np.int64),
        ),
        **more,
    )
