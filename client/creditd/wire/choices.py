"""The choices of a request as the arithmetic's own types."""

from __future__ import annotations

from creditd.credit.candidate_sets import MalformedPolicy
from creditd.credit.coverage import Coverage, FacilityLocation
from creditd.credit.credit_rules import (
    Blend,
    CreditRule,
    EndRule,
    LeaveOneOut,
    MaxAtK,
    Mixture,
    Owen,
    OwnReward,
    PrefixGain,
    SetReward,
    Shapley,
)
from creditd.credit.diversity import MaxMinusSimilarity, MeanPairwiseDiversity, QualityNovelty, Redundancy
from creditd.credit.games import Table
from creditd.credit.log_det import LogDet
from creditd.credit.log_sum_exp import LogSumExp
from creditd.credit.noisy_or import NoisyOr
from creditd.credit.order_statistics import (
    AllPass,
    ExpectedMax,
    Max,
    Mean,
    Min,
    PassAtK,
    RthBest,
    Sum,
    Threshold,
    TopM,
)
from creditd.credit.partial_means import CVaR, Median, Quantile, TopMMean, TrimmedMean
from creditd.credit.set_advantages import Normalization
from creditd.credit.set_credit import SetCreditOptions
from creditd.credit.set_expectations import Expectation
from creditd.credit.set_utilities import OneUtility, SumOfUtilities, Utility
from creditd.credit.token_advantages import TokenPolicy
from creditd.credit.votes import Plurality
from creditd.wire import utilities, v1
from creditd.wire.errors import ErrorCode
from creditd.wire.limits import RequestLimits
from creditd.wire.validation import wire_error

_UTILITIES: dict[str, type[OneUtility]] = {
    utility.type: utility
    for utility in (
        Max,
        Min,
        Sum,
        Mean,
        Median,
        Quantile,
        TrimmedMean,
        CVaR,
        TopM,
        TopMMean,
        RthBest,
        ExpectedMax,
        PassAtK,
        Threshold,
        AllPass,
        LogSumExp,
        Plurality,
        Coverage,
        FacilityLocation,
        NoisyOr,
        Redundancy,
        MaxMinusSimilarity,
        QualityNovelty,
        MeanPairwiseDiversity,
        LogDet,
        Table,
    )
}
_PLAIN_RULES: dict[str, type[Shapley | LeaveOneOut | OwnReward | SetReward | PrefixGain | Owen]] = {
    rule.type: rule for rule in (Shapley, LeaveOneOut, OwnReward, SetReward, PrefixGain, Owen)
}
UTILITY_NAMES = tuple(_UTILITIES)
CREDIT_NAMES = (*_PLAIN_RULES, MaxAtK.type, Mixture.type, Blend.type)


def options_of(request: v1.ShapleyRequest, limits: RequestLimits) -> SetCreditOptions:
    """The choices of a request as the arithmetic's own types.

    Args:
        request: A valid request.
        limits: Bounds on the sizes of its sets.

    Returns:
        Options whose defaults are the wire's.

    Raises:
        WireError: If two choices contradict each other.
    """
    try:
        # Credits under a utility that a model evaluates are found elsewhere, and no formula is asked.
        utility = Max() if isinstance(request.utility, utilities.ModelUtility) else utility_of(request.utility)
    except ValueError as error:
        raise wire_error(ErrorCode.INVALID_REQUEST, "/utility", str(error)) from None
    return SetCreditOptions(
        utility=utility,
        rule=rule_of(request.credit),
        normalization=normalization_of(request.advantage),
        tokens=None if request.tokens is None else TokenPolicy(**request.tokens.model_dump()),
        malformed=MalformedPolicy(**request.malformed.model_dump()),
        expect=Expectation(**request.expect.model_dump()),
        fail_incomplete_groups=request.incomplete_group == "error",
        max_players=limits.candidates,
        max_table_players=limits.table_candidates,
        max_tokens_per_set=limits.tokens_per_set,
    )


def utility_of(choice: utilities.UtilityChoice) -> Utility:
    """The utility that a request names.

    Args:
        choice: A valid choice.

    Returns:
        The same with the arithmetic's defaults.

    Raises:
        ValueError: If its parameters contradict each other.
    """
    if isinstance(choice, utilities.ModelUtility):
        raise ValueError("a utility that a model evaluates has no formula")  # noqa: TRY004 - as the others of this function
    if not isinstance(choice, utilities.SumUtility):
        return _one(choice)
    if choice.terms is None:
        return Sum(empty=0.0 if choice.empty is None else choice.empty)
    if sum(isinstance(term.utility, utilities.CoverageUtility) for term in choice.terms) > 1:
        raise ValueError("a sum takes one coverage: candidates have one list of topics")
    return SumOfUtilities(terms=tuple((term.weight, _one(term.utility)) for term in choice.terms))


def rule_of(choice: v1.CreditChoice) -> CreditRule:
    """The credit rule that a request names."""
    if isinstance(choice, v1.BlendCredit):
        return Blend(start=_end_of(choice.from_), end=_end_of(choice.to), position=choice.position)
    return _end_of(choice)


def normalization_of(choice: v1.AdvantageChoice) -> Normalization:
    """The normalisation that a request names.

    Args:
        choice: A valid choice.

    Returns:
        The arithmetic's own type.

    Raises:
        WireError: If type and baseline contradict each other.
    """
    try:
        return Normalization(**choice.model_dump())
    except ValueError as error:
        raise wire_error(ErrorCode.INVALID_REQUEST, "/advantage", str(error)) from None


def _one(choice: utilities.TermChoice | utilities.TableUtility) -> OneUtility:
    fields = choice.model_dump(exclude={"type"})
    if isinstance(choice, utilities.CoverageUtility):
        fields = {"count": choice.count, "empty": choice.empty}
    elif fields.get("weights") is not None:
        fields["weights"] = tuple(fields["weights"])
    return _UTILITIES[choice.type](**fields)


def _end_of(choice: v1.EndChoice) -> EndRule:
    if isinstance(choice, v1.MaxAtKCredit):
        return MaxAtK(k=choice.k)
    if isinstance(choice, v1.MixtureCredit):
        return Mixture(weights=tuple(choice.weights))
    return _PLAIN_RULES[choice if isinstance(choice, str) else choice.type]()
