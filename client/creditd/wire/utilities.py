"""What a set of candidates is worth: the choices of `utility`, with the same names and defaults as in `creditd.credit`.

r is the reward of a candidate, S a set of candidates, s its size, v(∅) the utility of no candidate.
"""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator
from typing_extensions import Self

from creditd.wire.buffers import BufferOr
from creditd.wire.fields import MAX_NAME_LENGTH, Amount, Positive, Weight, WireModel
from creditd.wire.forms import Form

MAX_TARGETS = 4096
MAX_TERMS = 16
MAX_AFFIX = 64

ModelId: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)]
"""What a model of the service is called; `GET /v1/models` names them."""
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Weights: TypeAlias = Annotated[list[Weight], Field(fail_fast=True, min_length=1, max_length=MAX_TARGETS)]
Weights: TypeAlias = Annotated[list[float], BufferOr(_Weights, kept=False, longest=MAX_TARGETS)]


class MaxUtility(WireModel):
    """v(S) = max r, v(∅) = empty; with floor b, v(S) = max(b, max r), v(∅) = b."""

    type: Literal["max"] = "max"
    empty: Amount = 0.0
    floor: Amount | None = None


class MinUtility(WireModel):
    """v(S) = min r."""

    type: Literal["min"]
    empty: Amount
    """v(∅), explicit: no set of rewards defines it."""


class MeanUtility(WireModel):
    """v(S) = Σ r/s."""

    type: Literal["mean"]
    empty: Amount
    """v(∅), explicit: no set of rewards defines it."""


class MedianUtility(WireModel):
    """v(S) = the middle reward, or the mean of the two middle ones."""

    type: Literal["median"]
    empty: Amount
    """v(∅), explicit: no set of rewards defines it."""


class QuantileUtility(WireModel):
    """v(S) = the q-quantile of the rewards, linear between neighbours."""

    type: Literal["quantile"]
    q: Fraction
    empty: Amount
    """v(∅), explicit: no set of rewards defines it."""


class TrimmedMeanUtility(WireModel):
    """v(S) = mean of the rewards without the ⌊fraction·s⌋ smallest and largest."""

    type: Literal["trimmed_mean"]
    fraction: Annotated[float, Field(ge=0, lt=0.5, allow_inf_nan=False)]
    empty: Amount
    """v(∅), explicit: no set of rewards defines it."""


class CVaRUtility(WireModel):
    """v(S) = mean of the worst (or best) α·s rewards, the last of them counted in part."""

    type: Literal["cvar"]
    alpha: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
    tail: Literal["worst", "best"] = "worst"
    empty: Amount
    """v(∅), explicit: no set of rewards defines it."""


class TopMUtility(WireModel):
    """v(S) = sum of the m best rewards."""

    type: Literal["top_m"]
    m: Positive
    empty: Amount = 0.0


class TopMMeanUtility(WireModel):
    """v(S) = mean of the m best rewards, of all in a smaller set."""

    type: Literal["top_m_mean"]
    m: Positive
    empty: Amount
    """v(∅), explicit: no set of rewards defines it."""


class RthBestUtility(WireModel):
    """v(S) = the r-th best reward, `default` for a smaller non-empty set."""

    type: Literal["rth_best"]
    r: Positive
    default: Amount = 0.0
    empty: Amount | None = None
    """v(∅); null means `default`."""


class MaxAtKUtility(WireModel):
    """v(S) = expected best reward of k candidates drawn from S without replacement (of all in a smaller set)."""

    type: Literal["max_at_k"]
    k: Positive
    empty: Amount = 0.0


class PassAtKUtility(WireModel):
    """v(S) = 1 − C(failures, k)/C(s, k): the estimator of pass@k from S, with k at most s."""

    type: Literal["pass_at_k"]
    threshold: Amount
    """Smallest reward that passes."""
    k: Positive
    empty: Amount = 0.0


class ThresholdUtility(WireModel):
    """v(S) = 1 when at least `count` rewards reach the threshold, else 0: any pass, or at least r pass."""

    type: Literal["threshold"]
    threshold: Amount
    count: Positive = 1
    empty: Amount = 0.0


class AllPassUtility(WireModel):
    """v(S) = 1 when every reward reaches the threshold, else 0."""

    type: Literal["all_pass"]
    threshold: Amount
    empty: Amount
    """v(∅), explicit: 1 if no candidate is no failure, 0 if it is no success."""


class LogSumExpUtility(WireModel):
    """v(S) = τ·log(Σ exp(r/τ)): a soft maximum. With baseline b, exp(b/τ) is added to the sum."""

    forms = (
        Form("with v(∅)", present=("empty",)),
        Form("with a baseline", present=("baseline",), absent=("empty",)),
    )

    type: Literal["log_sum_exp"]
    temperature: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
    """τ, reward units."""
    baseline: Amount | None = None
    """b: an option that is always there."""
    empty: Amount | None = None
    """v(∅); null means the baseline, and needs one."""


class PluralityUtility(WireModel):
    """v(S) = reward of the answer that most candidates of S give. Needs a `label` per candidate."""

    type: Literal["plurality"]
    ties: Literal["split", "lose"] = "split"
    """The mean of the tied answers' rewards, or 0."""
    empty: Amount = 0.0


class CoverageUtility(WireModel):
    """v(S) = total weight of the topics that at least `count` candidates of S cover. Needs `topics` per candidate."""

    type: Literal["coverage"]
    weights: Annotated[dict[str, Weight], Field(max_length=MAX_TARGETS)] | None = None
    """Weight by topic; a number is named by its digits."""
    default_weight: Weight = 1.0
    """Weight of a topic that is not in `weights`."""
    count: Positive = 1
    empty: Amount = 0.0


class FacilityLocationUtility(WireModel):
    """v(S) = Σ_t w_t · max over S of the score for target t. Needs `scores` per candidate."""

    forms = (
        Form("nothing without candidates", of={"unserved": {"const": 0, "default": 0.0}}),
        Form(
            "something without candidates",
            present=("unserved", "weights"),
            absent=("empty",),
            of={"unserved": {"not": {"const": 0}}},
        ),
    )

    type: Literal["facility_location"]
    weights: Weights | None = None
    """w_t, one per target; null: all 1."""
    unserved: Amount = 0.0
    """What a target is worth to the empty set."""
    empty: Amount | None = None
    """v(∅); null means Σ_t w_t · unserved."""

    @model_validator(mode="after")
    def _defined(self) -> Self:
        if self.unserved and self.weights is None:
            raise ValueError("give weights where unserved is not 0: they define v(∅)")
        if self.unserved and self.empty is not None:
            raise ValueError("empty and unserved both define v(∅): give one of them")
        return self


class NoisyOrUtility(WireModel):
    """v(S) = Σ_t w_t · (1 − Π over S of (1 − p_t)): probabilistic coverage. `scores` are probabilities."""

    type: Literal["noisy_or"]
    weights: Weights | None = None
    """w_t, one per topic; null: all 1."""
    empty: Amount = 0.0


class RedundancyUtility(WireModel):
    """v(S) = Σ r − λ · Σ over pairs of their similarity. Needs `similarities` per set."""

    type: Literal["redundancy"]
    penalty: Weight
    """λ."""
    empty: Amount = 0.0


class MaxMinusSimilarityUtility(WireModel):
    """v(S) = max r − λ · Σ over pairs of their similarity. Needs `similarities` per set."""

    type: Literal["max_minus_similarity"]
    penalty: Weight
    """λ."""
    empty: Amount = 0.0


class QualityNoveltyUtility(WireModel):
    """v(S) = Σ over i in S of r_i − λ · its largest similarity to another one of S. Needs `similarities` per set."""

    type: Literal["quality_novelty"]
    penalty: Weight
    """λ."""
    empty: Amount = 0.0


class MeanPairwiseDiversityUtility(WireModel):
    """v(S) = mean over pairs of 1 − similarity. Needs `similarities` per set."""

    type: Literal["mean_pairwise_diversity"]
    single: Amount = 0.0
    """v of one candidate."""
    empty: Amount = 0.0


class LogDetUtility(WireModel):
    """v(S) = log det(I + L_S), or log det(L_S): quality-diversity of a kernel, the matrix `similarities` of the set."""

    type: Literal["log_det"]
    form: Literal["identity_plus", "plain"] = "identity_plus"
    empty: Amount = 0.0


class PlainSumUtility(WireModel):
    """v(S) = Σ r, as a term."""

    type: Literal["sum"]
    empty: Amount = 0.0


_WithFormula: TypeAlias = (
    MaxUtility
    | MinUtility
    | MeanUtility
    | MedianUtility
    | QuantileUtility
    | TrimmedMeanUtility
    | CVaRUtility
    | TopMUtility
    | TopMMeanUtility
    | RthBestUtility
    | MaxAtKUtility
    | PassAtKUtility
    | ThresholdUtility
    | AllPassUtility
    | LogSumExpUtility
    | PluralityUtility
    | CoverageUtility
    | FacilityLocationUtility
    | NoisyOrUtility
    | RedundancyUtility
    | MaxMinusSimilarityUtility
    | QualityNoveltyUtility
    | MeanPairwiseDiversityUtility
    | LogDetUtility
)
TermChoice: TypeAlias = Annotated[_WithFormula | PlainSumUtility, Field(discriminator="type")]


class Term(WireModel):
    """One term of a sum of utilities."""

    weight: Weight = 1.0
    utility: TermChoice


class SumUtility(WireModel):
    """v(S) = Σ r; with terms, v(S) = Σ_t weight_t · utility_t(S), v(∅) included."""

    forms = (
        Form("of rewards", absent=("terms",)),
        Form("of utilities", present=("terms",), absent=("empty",)),
    )

    type: Literal["sum"]
    terms: Annotated[list[Term], Field(min_length=1, max_length=MAX_TERMS)] | None = None
    empty: Amount | None = None
    """v(∅) of Σ r; null means 0. The terms of a sum have their own."""

    @model_validator(mode="after")
    def _one_empty(self) -> Self:
        if self.terms is not None and self.empty is not None:
            raise ValueError("empty belongs to the terms: give it there")
        return self


class TableUtility(WireModel):
    """Any utility: `utilities` holds its 2^K values per set; bit i of the index is candidate i, entry 0 is v(∅)."""

    type: Literal["table"]


class SortedTemplate(WireModel):
    """The texts of the coalition in the order of their bytes, so that the order of the candidates changes nothing."""

    type: Literal["sorted"] = "sorted"
    before: Annotated[str, Field(max_length=MAX_AFFIX)] = ""
    """Stands before each text."""
    after: Annotated[str, Field(max_length=MAX_AFFIX)] = "\n"
    """Stands behind each text."""


class ModelUtility(WireModel):
    """v(S) = the score that a reward model of the service gives to the texts of S, as one answer to the set's `prompt`.

    Costs one evaluation per coalition: 2^K of them, or the estimator's budget.
    """

    type: Literal["model"]
    model: ModelId
    template: SortedTemplate = SortedTemplate()
    empty: Amount | None = None
    """v(∅); null asks the model, about an answer without a word."""


UtilityChoice: TypeAlias = Annotated[
    _WithFormula | SumUtility | TableUtility | ModelUtility, Field(discriminator="type")
]
KnownUtilityChoice: TypeAlias = Annotated[_WithFormula | SumUtility | TableUtility, Field(discriminator="type")]
"""Without those that somebody has to evaluate."""

OF_REWARDS = (
    "max", "min", "mean", "median", "quantile", "trimmed_mean", "cvar", "top_m", "top_m_mean", "rth_best", "max_at_k",
    "pass_at_k", "threshold", "all_pass", "log_sum_exp",
)  # fmt: skip
"""Utilities that need a reward of each candidate and nothing else."""
OF_FEATURES = {"label": ("plurality",), "topics": ("coverage",), "scores": ("facility_location", "noisy_or")}
"""Utilities that need another field of each candidate, by that field; `plurality` needs rewards as well."""
OF_SIMILARITIES = ("redundancy", "max_minus_similarity", "quality_novelty", "mean_pairwise_diversity", "log_det")
"""Utilities that need the similarities of each set; the first three need rewards as well."""
OF_EMBEDDINGS = ("facility_location", *OF_SIMILARITIES)
"""Utilities whose features an embedding model can tell without a choice of its own; `coverage` needs a threshold."""
ALL_BUT_TABLES = (*OF_REWARDS, *chain.from_iterable(OF_FEATURES.values()), *OF_SIMILARITIES, "sum")
