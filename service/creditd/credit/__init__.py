"""Credit assignment as mathematics: NumPy in, NumPy out, no IO, no clock, no global random state.

A coalition is a boolean row (here: bits of an index); a game is a function from coalitions to utilities in reward
units.

Modules:
    coalitions          counting them: binomials, chances of a draw, weights of sizes
    level_games         the kernel that solves every utility of sorted rewards exactly
    order_statistics    utilities of sorted rewards: extremes, sums, ranks, passes
    partial_means       utilities of sorted rewards: median, quantile, trimmed mean, tails
    coverage            utilities that add up over topics and targets
    diversity           utilities of rewards and similarities
    tables              utilities given as all 2ⁿ values
    noisy_or            topics that each candidate covers with a probability
    log_sum_exp         a soft maximum of the rewards
    votes               candidates that vote for answers
    quadrature          averages over coalitions as integrals over the probability of presence
    owen                the Shapley value of candidates that come in unions
    owen_trees          the same for unions in unions, down to the units of a text
    log_det             quality and diversity as the log-determinant of a kernel
    log_sum_exp         a soft maximum
    credit_rules        the family: Shapley, leave-one-out, own reward, set reward, max@k, mixtures, blends, prefix gain
    games               a batch of games of one size, and the credit of its players
    coalition_plans     which coalitions an estimator evaluates, and in which order
    estimators          Shapley values with standard errors from the coalitions of a plan
    pair_designs, proxies, cross_fitted_ridge, student_t    what the estimators stand on
    coalition_semivalues    semivalues from those coalitions alone whose sizes a rule weighs
    evaluation_limits   how many utilities a game takes, or why that is too many
    evaluation_needs    the coalitions that a rule needs, within a budget
    evaluated_games     ask for coalitions, tell their utilities, read the credits
    group_advantages    GRPO and its relatives, for whole responses
    pass_at_k, max_at_k advantages that climb pass@k and max@k, for whole responses
    whitening           a request brought to mean 0 and spread 1
    set_advantages      candidate credits normalised over the responses of a prompt
    token_advantages    from candidates to completion tokens
    candidate_sets      a batch as columns, the checks of its values, which candidates play
    candidate_features, feature_checks    what is known of candidates beside rewards, and its checks
    embeddings          from vectors of texts to scores, topics and similarities
    set_utilities       every utility, what it needs, and the games that a batch becomes under it
    set_expectations    what the caller, the rule and the normalisation expect of the sets
    set_work            how much arithmetic a set costs, before any of it is done
    set_games           credits of all sets, one kernel call for each kind
    set_credit          all of it in one call
    candidate_parsers   the candidates that a policy wrote in one completion
    segments            character spans to token spans
    text_segments       where a text is cut: spans, sentences, lines
    text_units          from segments of a text to the units that its tokens write
    absent_units        the text of a coalition of units
    token_rewards       values of units as rewards and advantages of tokens
    span_games          what the units of one completion get: every value as a plan of coalitions
    span_items, span_credit    many completions: their words, and the batch that is asked and told
    reshaping           weights of reasoning tokens from how much the answer depends on them
    answer_parsers      the reasoning and the answer that a policy wrote in one completion
    sensitivity_items, sensitivity_credit    many completions: their words, and their token advantages
    composition         inside a candidate: what a span is worth to the set, and what its tokens receive
    composed_items, composed_checks,      sets of candidates down to tokens: their words, the checks of what is known of
    composed_ledgers, composed_credit     candidates' insides, the accounts, and the batch
    group_sums, flags   sums that no batch shape can change; what can be unusual
"""

from creditd.credit.absent_units import RenderedUnits
from creditd.credit.answer_parsers import ANSWER_PARSERS, ParserOptions, find_reasoning
from creditd.credit.candidate_features import CandidateFeatures
from creditd.credit.candidate_parsers import PARSERS, ParsedCandidates, parse_candidates, parser_of
from creditd.credit.candidate_sets import CandidateSets, MalformedPolicy, RewardPart, SetError
from creditd.credit.coalition_plans import permutation_plan, stratified_plan
from creditd.credit.composed_credit import composed_credit
from creditd.credit.composed_items import (
    Additive,
    Bounded,
    BySensitivity,
    CandidateParts,
    ComposedCredit,
    ComposedCredits,
    ComposedSets,
    ComposeOptions,
)
from creditd.credit.composition import (
    MaxShare,
    additive_advantages,
    bounded_advantages,
    span_credits,
    unit_contrasts,
)
from creditd.credit.coverage import Coverage, FacilityLocation
from creditd.credit.credit_rules import (
    Blend,
    CreditRule,
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
from creditd.credit.embeddings import (
    covered_topics,
    set_similarities,
    sets_without_vectors,
    similarity_floor,
    target_scores,
)
from creditd.credit.estimators import Estimate, permutation_estimate, stratified_estimate
from creditd.credit.evaluated_games import EvaluatedCredits, EvaluatedGame
from creditd.credit.evaluation_needs import EstimatorOptions, required_evaluations
from creditd.credit.flags import Flag
from creditd.credit.games import Table
from creditd.credit.group_advantages import (
    GRPO_EPSILONS,
    GroupAdvantages,
    gdpo_advantages,
    group_advantages,
    weighted_rewards,
)
from creditd.credit.level_games import semivalues
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
from creditd.credit.owen import owen_values
from creditd.credit.owen_trees import OwenPlan, balanced_tree, owen_plan, tree_evaluations
from creditd.credit.partial_means import CVaR, Median, Quantile, TopMMean, TrimmedMean
from creditd.credit.reshaping import LEAST_PERTURBATION_RANGE, Reshaped, ReshapeOptions, reshape_weights
from creditd.credit.segments import token_spans
from creditd.credit.sensitivity_credit import (
    GroupRuleOptions,
    SensitivityBatch,
    SensitivityCreditOptions,
    reshaped_advantages,
)
from creditd.credit.sensitivity_items import (
    SensitivityCredit,
    SensitivityCredits,
    SensitivityError,
    SensitivityItem,
    reweighted,
)
from creditd.credit.set_advantages import Normalization
from creditd.credit.set_credit import SetCreditOptions, SetCredits, set_credit
from creditd.credit.set_expectations import Expectation
from creditd.credit.set_utilities import SumOfUtilities, Utility
from creditd.credit.span_credit import SpanBatch
from creditd.credit.span_items import (
    Refusal,
    SpanCredit,
    SpanCredits,
    SpanError,
    SpanItem,
    SpanOptions,
    SpanQuestions,
)
from creditd.credit.tables import table_semivalues
from creditd.credit.text_segments import filled_ends, segment_ends
from creditd.credit.text_units import TextUnits, units_of_ranges, units_of_segments
from creditd.credit.token_advantages import TokenPolicy
from creditd.credit.token_rewards import CompletionCredit, Ledger, grouped_advantages, token_densities, token_rewards
from creditd.credit.votes import Plurality
from creditd.credit.whitening import Whitening

__all__ = [
    "ANSWER_PARSERS",
    "GRPO_EPSILONS",
    "LEAST_PERTURBATION_RANGE",
    "PARSERS",
    "Additive",
    "AllPass",
    "Blend",
    "Bounded",
    "BySensitivity",
    "CVaR",
    "CandidateFeatures",
    "CandidateParts",
    "CandidateSets",
    "CompletionCredit",
    "ComposeOptions",
    "ComposedCredit",
    "ComposedCredits",
    "ComposedSets",
    "Coverage",
    "CreditRule",
    "Estimate",
    "EstimatorOptions",
    "EvaluatedCredits",
    "EvaluatedGame",
    "Expectation",
    "ExpectedMax",
    "FacilityLocation",
    "Flag",
    "GroupAdvantages",
    "GroupRuleOptions",
    "LeaveOneOut",
    "Ledger",
    "LogDet",
    "LogSumExp",
    "MalformedPolicy",
    "Max",
    "MaxAtK",
    "MaxMinusSimilarity",
    "MaxShare",
    "Mean",
    "MeanPairwiseDiversity",
    "Median",
    "Min",
    "Mixture",
    "NoisyOr",
    "Normalization",
    "Owen",
    "OwenPlan",
    "OwnReward",
    "ParsedCandidates",
    "ParserOptions",
    "PassAtK",
    "Plurality",
    "PrefixGain",
    "QualityNovelty",
    "Quantile",
    "Redundancy",
    "Refusal",
    "RenderedUnits",
    "ReshapeOptions",
    "Reshaped",
    "RewardPart",
    "RthBest",
    "SensitivityBatch",
    "SensitivityCredit",
    "SensitivityCreditOptions",
    "SensitivityCredits",
    "SensitivityError",
    "SensitivityItem",
    "SetCreditOptions",
    "SetCredits",
    "SetError",
    "SetReward",
    "Shapley",
    "SpanBatch",
    "SpanCredit",
    "SpanCredits",
    "SpanError",
    "SpanItem",
    "SpanOptions",
    "SpanQuestions",
    "Sum",
    "SumOfUtilities",
    "Table",
    "TextUnits",
    "Threshold",
    "TokenPolicy",
    "TopM",
    "TopMMean",
    "TrimmedMean",
    "Utility",
    "Whitening",
    "additive_advantages",
    "balanced_tree",
    "bounded_advantages",
    "composed_credit",
    "covered_topics",
    "filled_ends",
    "find_reasoning",
    "gdpo_advantages",
    "group_advantages",
    "grouped_advantages",
    "owen_plan",
    "owen_values",
    "parse_candidates",
    "parser_of",
    "permutation_estimate",
    "permutation_plan",
    "required_evaluations",
    "reshape_weights",
    "reshaped_advantages",
    "reweighted",
    "segment_ends",
    "semivalues",
    "set_credit",
    "set_similarities",
    "sets_without_vectors",
    "similarity_floor",
    "span_credits",
    "stratified_estimate",
    "stratified_plan",
    "table_semivalues",
    "target_scores",
    "token_densities",
    "token_rewards",
    "token_spans",
    "tree_evaluations",
    "unit_contrasts",
    "units_of_ranges",
    "units_of_segments",
    "weighted_rewards",
]
