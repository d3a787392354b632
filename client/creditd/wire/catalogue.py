"""Every utility by name: what it is, what it costs, what it climbs, and a request that works.

The same entries answer `GET /v1/utilities`, print as `creditd utilities`, and make the page UTILITIES.md.
"""

from __future__ import annotations

from typing import Any

from pydantic import JsonValue

from creditd.credit.set_utilities import NEEDS
from creditd.wire.fields import WireModel

_IID = "candidates drawn i.i.d. from the policy"
"""The assumption under which a semivalue of a symmetric utility climbs its objective."""
_FEATURES_IID = "candidates drawn i.i.d. together with what is known of them"
_ALL = "every rule"
_NAMED = (
    "shapley, leave_one_out, own_reward, set_reward, prefix_gain; max_at_k, mixture and owen by all 2^K utilities, "
    "up to the limit for tables"
)


class UtilityEntry(WireModel):
    """One utility.

    With r the reward of a candidate, S a set of s candidates, N all K of them.
    """

    name: str
    """The `type` of the choice."""
    formula: str
    """v(S) for a set that is not empty."""
    empty: str
    """v(∅)."""
    needs: list[str]
    """Fields of every candidate, or of the set."""
    cost: str
    """Of the Shapley credit of one set of K candidates."""
    rules: str
    """Credits that have it exactly."""
    objective: str
    """E v(K candidates): what leave-one-out credit climbs. Shapley credit climbs Σ_k (1/k)·E v(k candidates)."""
    assumption: str
    """Under which the objective is climbed without bias."""
    example: dict[str, JsonValue]
    """A request to `POST /v1/credit/shapley` that works as it stands."""


class Catalogue(WireModel):
    """Every utility that a request can name."""

    utilities: list[UtilityEntry]


_TWO_SETS: list[Any] = [[0.9, 0.5, 0.5, 0.1], [0.2, 0.8, 0.4, 0.6]]
_GROUPS: list[Any] = ["p1", "p1"]
_SIMILARITIES: list[Any] = [[1.0, 0.8, 0.1, 0.8, 1.0, 0.2, 0.1, 0.2, 1.0]]


def _of_rewards(utility: dict[str, Any]) -> dict[str, JsonValue]:
    return {"columns": {"rewards": _TWO_SETS, "groups": _GROUPS}, "utility": utility}


def _of_pairs(utility: dict[str, Any]) -> dict[str, JsonValue]:
    columns: dict[str, Any] = {"rewards": [[0.9, 0.8, 0.5]], "similarities": _SIMILARITIES}
    return {"columns": columns, "utility": utility}


def _entry(
    name: str,
    formula: str,
    empty: str,
    cost: str,
    objective: str,
    example: dict[str, JsonValue],
    *,
    rules: str = _ALL,
    assumption: str = _IID,
) -> UtilityEntry:
    return UtilityEntry(
        name=name,
        formula=formula,
        empty=empty,
        needs=sorted(NEEDS[name]),
        cost=cost,
        rules=rules,
        objective=objective,
        assumption=assumption,
        example=example,
    )


_SORTED = "O(K log K)"
_REQUIRED = "`empty`, required"
_DEFAULT = "`empty`, default 0"

CATALOGUE = Catalogue(
    utilities=[
        _entry(
            "max",
            "max r; with `floor` b, max(b, max r)",
            "`empty`, default 0; with a floor, b",
            _SORTED,
            "max@K: the expected best of K candidates",
            _of_rewards({"type": "max"}),
        ),
        _entry(
            "min",
            "min r",
            _REQUIRED,
            _SORTED,
            "the expected worst of K candidates",
            _of_rewards({"type": "min", "empty": 0.0}),
        ),
        _entry(
            "sum",
            "Σ r; with `terms`, Σ_t weight_t · utility_t(S), up to 16 terms of this page but table and sum of terms",
            "`empty`, default 0; of terms, their weighted sum",
            "O(K); of terms, their sum",
            "K times the expected reward; of terms, the weighted sum of their objectives",
            _of_rewards(
                {
                    "type": "sum",
                    "terms": [
                        {"weight": 1.0, "utility": {"type": "max"}},
                        {"weight": 0.2, "utility": {"type": "mean", "empty": 0.0}},
                    ],
                }
            ),
        ),
        _entry(
            "mean",
            "Σ r / s",
            _REQUIRED,
            _SORTED,
            "the expected reward",
            _of_rewards({"type": "mean", "empty": 0.0}),
        ),
        _entry(
            "median",
            "the middle reward; of an even number, the mean of the two middle ones",
            _REQUIRED,
            _SORTED,
            "the expected median of K candidates",
            _of_rewards({"type": "median", "empty": 0.0}),
        ),
        _entry(
            "quantile",
            "the q-quantile of the rewards, linear between neighbours (q = 1 is max, q = 0 min)",
            _REQUIRED,
            _SORTED,
            "the expected q-quantile of K candidates",
            _of_rewards({"type": "quantile", "q": 0.75, "empty": 0.0}),
        ),
        _entry(
            "trimmed_mean",
            "mean without the ⌊fraction·s⌋ smallest and as many largest rewards",
            _REQUIRED,
            _SORTED,
            "the expected trimmed mean of K candidates: less moved by single outliers of a noisy judge",
            _of_rewards({"type": "trimmed_mean", "fraction": 0.25, "empty": 0.0}),
        ),
        _entry(
            "cvar",
            "mean of the worst α·s rewards, the last counted in part; `tail` best: of the best ones",
            _REQUIRED,
            _SORTED,
            "the expected mean of the worst (best) α·K of K candidates, the empirical CVaR of the set",
            _of_rewards({"type": "cvar", "alpha": 0.5, "tail": "worst", "empty": 0.0}),
        ),
        _entry(
            "top_m",
            "sum of the m best rewards (of all in a smaller set)",
            _DEFAULT,
            _SORTED,
            "the expected total of the m best of K",
            _of_rewards({"type": "top_m", "m": 2}),
        ),
        _entry(
            "top_m_mean",
            "mean of the m best rewards (of all in a smaller set)",
            _REQUIRED,
            _SORTED,
            "the expected mean of the m best of K",
            _of_rewards({"type": "top_m_mean", "m": 2, "empty": 0.0}),
        ),
        _entry(
            "rth_best",
            "the r-th best reward; `default` for fewer than r candidates",
            "`empty`, or `default`",
            _SORTED,
            "the expected r-th best of K: a set with r good candidates",
            _of_rewards({"type": "rth_best", "r": 2}),
        ),
        _entry(
            "max_at_k",
            "expected best of k candidates drawn from S without replacement (of all in a smaller set)",
            _DEFAULT,
            _SORTED,
            "max@k for a k below the K that are sampled (PKPO, arXiv:2505.15201)",
            _of_rewards({"type": "max_at_k", "k": 2}),
        ),
        _entry(
            "pass_at_k",
            "1 − C(f, k)/C(s, k), f of s rewards below `threshold`, k at most s",
            _DEFAULT,
            _SORTED,
            "pass@k for a k below the K that are sampled",
            _of_rewards({"type": "pass_at_k", "threshold": 0.5, "k": 2}),
        ),
        _entry(
            "threshold",
            "1 when at least `count` rewards reach `threshold`, else 0 (count 1: any pass)",
            _DEFAULT,
            _SORTED,
            "the probability that at least `count` of K pass; with count 1, pass@K",
            _of_rewards({"type": "threshold", "threshold": 0.5, "count": 1}),
        ),
        _entry(
            "all_pass",
            "1 when every reward reaches `threshold`, else 0",
            _REQUIRED,
            _SORTED,
            "the probability that all of K pass: reliability",
            _of_rewards({"type": "all_pass", "threshold": 0.5, "empty": 1.0}),
        ),
        _entry(
            "log_sum_exp",
            "τ·log Σ exp(r/τ), τ = `temperature`; with `baseline` b, exp(b/τ) is added to the sum",
            "`empty`, or `baseline`; one of them is required",
            "O(K²·(40 + 6·D)), D the spread of the rewards in temperatures",
            "the expected soft maximum of K candidates, in which a second good one still counts",
            _of_rewards({"type": "log_sum_exp", "temperature": 0.5, "empty": 0.0}),
            rules=_NAMED,
        ),
        _entry(
            "plurality",
            "reward of the answer that most candidates of S give; ties: mean of the tied (`split`) or 0 (`lose`)",
            _DEFAULT,
            "O(K²·answers)",
            "maj@K: the expected reward of the majority's answer (self-consistency)",
            {
                "columns": {
                    "rewards": [[1.0, 0.0, 1.0, 0.0, 0.0]],
                    "labels": ["42", "17", "42", "18", "17"],
                },
                "utility": {"type": "plurality", "ties": "split"},
            },
            rules=_NAMED,
            assumption=_FEATURES_IID,
        ),
        _entry(
            "coverage",
            "Σ over topics that at least `count` candidates of S cover of the topic's weight",
            _DEFAULT,
            "O(topics of all candidates)",
            "the expected weight of what K candidates cover together",
            {
                "columns": {"row_splits": [0, 3], "topics": [["a", "b"], ["b"], ["c"]]},
                "utility": {"type": "coverage", "weights": {"c": 2.0}},
            },
            assumption=_FEATURES_IID,
        ),
        _entry(
            "facility_location",
            "Σ_t w_t · max over S of the score for target t",
            "`empty`, or Σ_t w_t·`unserved`",
            "O(T·K log K), T targets",
            "the expected sum over targets (user types, criteria, tests) of what the best of K candidates gives each",
            {
                "columns": {"row_splits": [0, 3], "scores": [[0.9, 0.1], [0.8, 0.2], [0.0, 0.7]]},
                "utility": {"type": "facility_location", "weights": [0.5, 0.5]},
            },
            assumption=_FEATURES_IID,
        ),
        _entry(
            "noisy_or",
            "Σ_t w_t · (1 − Π over S of (1 − p_t)): probabilistic coverage",
            _DEFAULT,
            "O(T·K²), T topics",
            "the expected number (weight) of topics that at least one candidate covers",
            {
                "columns": {"row_splits": [0, 3], "scores": [[0.9, 0.1], [0.8, 0.2], [0.0, 0.7]]},
                "utility": {"type": "noisy_or"},
            },
            assumption=_FEATURES_IID,
        ),
        _entry(
            "redundancy",
            "Σ r − λ · Σ over pairs of their similarity, λ = `penalty`",
            _DEFAULT,
            "O(K²)",
            "the expected total reward of K candidates less λ times their expected total similarity",
            _of_pairs({"type": "redundancy", "penalty": 0.5}),
            assumption=_FEATURES_IID,
        ),
        _entry(
            "max_minus_similarity",
            "max r − λ · Σ over pairs of their similarity, λ = `penalty`",
            _DEFAULT,
            "O(K²)",
            "the expected best of K candidates less λ times their expected total similarity",
            _of_pairs({"type": "max_minus_similarity", "penalty": 0.2}),
            assumption=_FEATURES_IID,
        ),
        _entry(
            "mean_pairwise_diversity",
            "mean over pairs of 1 − similarity; `single` for one candidate",
            _DEFAULT,
            "O(K²)",
            "the expected mean distance of K candidates (1 − similarity)",
            {
                "columns": {"row_splits": [0, 3], "similarities": _SIMILARITIES},
                "utility": {"type": "mean_pairwise_diversity"},
            },
            assumption=_FEATURES_IID,
        ),
        _entry(
            "quality_novelty",
            "Σ over i in S of r_i − λ · its largest similarity to another one of S, λ = `penalty`",
            _DEFAULT,
            "O(K² log K)",
            "the expected total over K candidates of reward less λ times the similarity to the nearest other one",
            _of_pairs({"type": "quality_novelty", "penalty": 0.5}),
            assumption=_FEATURES_IID,
        ),
        _entry(
            "log_det",
            "log det(I + L_S), or log det(L_S) with `form` plain; L is the matrix `similarities`",
            _DEFAULT,
            "O(2^K·K), K ≤ 16",
            "the expected log-determinant of K candidates: quality and diversity, as of a determinantal point process",
            {
                "columns": {"row_splits": [0, 3], "similarities": _SIMILARITIES},
                "utility": {"type": "log_det"},
            },
            assumption=_FEATURES_IID,
        ),
        _entry(
            "table",
            "any utility: `utilities` holds its 2^K values, bit i of the index is candidate i",
            "the first value",
            "O(2^K·K), K ≤ 12 in a service by default (at most 20), 16 in `local:`",
            "the expected value of the table's utility for K candidates",
            {
                "columns": {"utilities": [[0.0, 0.3, 0.5, 1.0]]},
                "utility": {"type": "table"},
                "advantage": {"type": "none"},
            },
            assumption="a utility that does not depend on the order of the candidates; " + _FEATURES_IID,
        ),
    ]
)
