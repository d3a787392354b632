"""Every utility of a candidate set, what it needs to know, and the games that a batch of sets becomes under it.

Legend: `B` sets of one size, `n` players of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_features import (
    CandidateFeatures,
    players_labels,
    players_scores,
    players_similarities,
    players_topics,
)
from creditd.credit.candidate_sets import CandidateSets
from creditd.credit.coverage import Coverage, CoverageGames, FacilityLocation, FacilityLocationGames
from creditd.credit.diversity import (
    DiversityGames,
    MaxMinusSimilarity,
    MeanPairwiseDiversity,
    QualityNovelty,
    Redundancy,
)
from creditd.credit.games import OrderStatisticGames, SetGames, Table, TableGames, WeightedGames
from creditd.credit.log_det import MAX_PLAYERS as MAX_LOG_DET_PLAYERS
from creditd.credit.log_det import LogDet, LogDetGames
from creditd.credit.log_sum_exp import LogSumExp, LogSumExpGames
from creditd.credit.noisy_or import NoisyOr, NoisyOrGames
from creditd.credit.order_statistics import OrderStatistic
from creditd.credit.votes import Plurality, PluralityGames

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

Need: TypeAlias = Literal["reward", "label", "topics", "scores", "similarities", "utilities"]
Method: TypeAlias = Literal[
    "order_statistic", "coverage", "pairwise", "vote", "quadrature", "log_det", "table", "sum", "owen"
]
Diversity: TypeAlias = Redundancy | MaxMinusSimilarity | MeanPairwiseDiversity | QualityNovelty
OneUtility: TypeAlias = (
    OrderStatistic | Coverage | FacilityLocation | NoisyOr | LogSumExp | Plurality | Diversity | LogDet | Table
)

MAX_TERMS = 16


@dataclass(frozen=True)
class SumOfUtilities:
    """A weighted sum of utilities, v(S) = Σ_t w_t · v_t(S); v(∅) is the same sum.

    Attributes:
        terms: Pairs of weight and utility, 1 to 16; no table and no sum among them.
    """

    type: ClassVar[str] = "sum"
    terms: tuple[tuple[float, OneUtility], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.terms) <= MAX_TERMS:
            raise ValueError(f"a sum has 1 to {MAX_TERMS} terms: got {len(self.terms)}")
        for weight, utility in self.terms:
            if not np.isfinite(weight):
                raise ValueError(f"a weight is {weight}; expected a finite number")
            if isinstance(utility, Table | SumOfUtilities):
                raise ValueError(f"a term is a {utility.type}; expected a utility with a formula")  # noqa: TRY004 - a value


Utility: TypeAlias = OneUtility | SumOfUtilities

_REWARDS: frozenset[Need] = frozenset({"reward"})
_NEEDS: dict[type[OneUtility], frozenset[Need]] = {
    **dict.fromkeys((*get_args(OrderStatistic), LogSumExp), _REWARDS),
    Plurality: frozenset({"reward", "label"}),
    Coverage: frozenset({"topics"}),
    FacilityLocation: frozenset({"scores"}),
    NoisyOr: frozenset({"scores"}),
    Redundancy: frozenset({"reward", "similarities"}),
    MaxMinusSimilarity: frozenset({"reward", "similarities"}),
    QualityNovelty: frozenset({"reward", "similarities"}),
    MeanPairwiseDiversity: frozenset({"similarities"}),
    LogDet: frozenset({"similarities"}),
    Table: frozenset({"utilities"}),
}
NEEDS: dict[str, frozenset[Need]] = {utility.type: needed for utility, needed in _NEEDS.items()}
"""What has to be known of every candidate, or of every set, by the name of the utility."""
_METHODS: dict[type[OneUtility], Method] = {
    **dict.fromkeys(get_args(OrderStatistic), "order_statistic"),
    **dict.fromkeys((Coverage, FacilityLocation), "coverage"),
    **dict.fromkeys(get_args(Diversity), "pairwise"),
    **dict.fromkeys((NoisyOr, LogSumExp), "quadrature"),
    Plurality: "vote",
    LogDet: "log_det",
    Table: "table",
}


def terms_of(utility: Utility) -> tuple[OneUtility, ...]:
    """The utilities that a sum adds up, or the utility itself."""
    return tuple(term for _, term in utility.terms) if isinstance(utility, SumOfUtilities) else (utility,)


def needs(utility: Utility) -> frozenset[Need]:
    """What has to be known of every candidate.

    Args:
        utility: Any utility.

    Returns:
        Names of the fields of a candidate, or of a set.

    Cost:
        O(terms).
    """
    return frozenset().union(*(_NEEDS[type(term)] for term in terms_of(utility)))


def method_of(utility: Utility) -> Method:
    """How credits under a utility are found."""
    return "sum" if isinstance(utility, SumOfUtilities) else _METHODS[type(utility)]


def every_semivalue(utility: Utility) -> bool:
    """Whether a utility has a formula for semivalues of any size weights, and not for a few named ones alone."""
    return not any(isinstance(term, LogSumExp | Plurality) for term in terms_of(utility))


def max_players_of(utility: Utility) -> int | None:
    """Most players for which a utility is solved, or None where only the caller sets a limit."""
    return MAX_LOG_DET_PLAYERS if any(isinstance(term, LogDet) for term in terms_of(utility)) else None


def empty_utility(utility: Utility) -> float:
    """v(∅) of a utility that is not a table.

    Args:
        utility: Any utility with a formula.

    Returns:
        v(∅), units of the utility.

    Raises:
        ValueError: If it depends on the set, as that of a table does.

    Cost:
        O(terms).
    """
    if isinstance(utility, SumOfUtilities):
        return float(sum(weight * empty_utility(term) for weight, term in utility.terms))
    if isinstance(utility, Table):
        raise ValueError("v(∅) of a table is its first entry")  # noqa: TRY004 - a value of the wrong kind
    if isinstance(utility, FacilityLocation):
        if utility.empty is not None:
            return utility.empty
        if utility.unserved and utility.weights is None:
            raise ValueError("facility_location needs weights or empty where unserved is not 0: they define v(∅)")
        return float(sum(weight * utility.unserved for weight in utility.weights or ()))
    return float(utility.empty_utility)


def games_of(batch: CandidateSets, utility: Utility, rows: Integers, members: Integers) -> SetGames:
    """The games of sets of one kind.

    Args:
        batch: All sets.
        utility: Utility of a set.
        rows: Shape (B,), the sets: of equal numbers of candidates where matrices or tables are needed, and of scores.
        members: Shape (B, n), flat places of their players.

    Returns:
        B games of n players.

    Raises:
        ValueError: If a column that the utility needs is absent.

    Cost:
        That of gathering what the utility needs.
    """
    if isinstance(utility, SumOfUtilities):
        return WeightedGames(
            weights=tuple(weight for weight, _ in utility.terms),
            games=tuple(games_of(batch, term, rows, members) for _, term in utility.terms),
        )
    kind = type(utility)
    return _BUILDERS[kind](_Gatherer(batch, rows, members), utility)


@dataclass(frozen=True)
class _Gatherer:
    """What utilities need to know of the players of some sets.

    Attributes:
        batch: All sets.
        rows: Shape (B,), the sets.
        members: Shape (B, n), flat places of their players.
    """

    batch: CandidateSets
    rows: Integers
    members: Integers

    @property
    def features(self) -> CandidateFeatures:
        """Features of all candidates."""
        return CandidateFeatures() if self.batch.features is None else self.batch.features

    @property
    def rewards(self) -> Floats:
        """Rewards of the players, shape (B, n)."""
        return self.batch.rewards[self.members]

    @property
    def positions(self) -> Integers:
        """Places of the players in their sets, shape (B, n)."""
        return self.members - self.batch.row_splits[self.rows][:, None]

    @property
    def scores(self) -> Floats:
        """Scores of the players, shape (B, n, T)."""
        return players_scores(self.features, self.members)

    @property
    def similarities(self) -> Floats:
        """Similarities of the players, shape (B, n, n)."""
        size = int(self.batch.sizes[self.rows[0]])
        return players_similarities(self.features, self.rows, self.positions, size)


def _table_games(of: _Gatherer) -> TableGames:
    if of.batch.tables is None or of.batch.table_splits is None:
        raise ValueError("a table utility needs tables and table_splits")
    n_values = 1 << int(of.batch.sizes[of.rows[0]])
    return TableGames(
        tables=of.batch.tables[of.batch.table_splits[of.rows][:, None] + np.arange(n_values)],
        players=of.positions,
        ranks=of.positions if of.batch.ranks is None else of.batch.ranks[of.members],
    )


_BUILDERS: dict[type[OneUtility], Callable[[_Gatherer, Any], SetGames]] = {
    **dict.fromkeys(get_args(OrderStatistic), lambda of, utility: OrderStatisticGames(of.rewards, utility)),
    **dict.fromkeys(get_args(Diversity), lambda of, utility: DiversityGames(of.similarities, of.rewards, utility)),
    LogSumExp: lambda of, utility: LogSumExpGames(of.rewards, utility),
    Plurality: lambda of, utility: PluralityGames(players_labels(of.features, of.members), of.rewards, utility),
    Coverage: lambda of, utility: CoverageGames(*players_topics(of.features, of.members), utility),
    FacilityLocation: lambda of, utility: FacilityLocationGames(of.scores, utility),
    NoisyOr: lambda of, utility: NoisyOrGames(of.scores, utility),
    LogDet: lambda of, utility: LogDetGames(of.similarities, utility),
    Table: lambda of, _: _table_games(of),
}
