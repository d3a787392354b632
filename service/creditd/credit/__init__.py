"""Credit assignment as mathematics: NumPy in, NumPy out, no IO, no clock, no global random state.

A coalition is a boolean row (here: bits of an index); a game is a function from coalitions to utilities in reward
units.

Modules:
    order_statistics    utilities of sorted rewards, solved exactly by one kernel
    tables              utilities given as all 2ⁿ values
    noisy_or            topics that each candidate covers with a probability
    log_sum_exp         a soft maximum of the rewards
    votes               candidates that vote for answers
    quadrature          averages over coalitions as integrals over the probability of presence
    credit_rules        the family: Shapley, leave-one-out, own reward, set reward, max@k, mixtures, blends, prefix gain
    games               a batch of games of one size, and the credit of its players
    group_advantages    GRPO and its relatives, for whole responses
    set_advantages      candidate credits normalised over the responses of a prompt
    token_advantages    from candidates to completion tokens
    candidate_sets      a batch as columns, the checks of its values, which candidates play
    set_credit          all of it in one call
    candidate_parsers   the candidates that a policy wrote in one completion
    segments            character spans to token spans
    group_sums, flags   sums that no batch shape can change; what can be unusual
"""

from creditd.credit.candidate_parsers import PARSERS, ParsedCandidates, parse_candidates, parser_of
from creditd.credit.candidate_sets import CandidateSets, Expectation, MalformedPolicy, SetError
from creditd.credit.credit_rules import (
    Blend,
    CreditRule,
    LeaveOneOut,
    MaxAtK,
    Mixture,
    OwnReward,
    PrefixGain,
    SetReward,
    Shapley,
)
from creditd.credit.flags import Flag
from creditd.credit.games import Table, Utility
from creditd.credit.group_advantages import GRPO_EPSILONS, GroupAdvantages, group_advantages
from creditd.credit.order_statistics import Max, Mean, Min, RthBest, Sum, Threshold, TopM, semivalues
from creditd.credit.segments import token_spans
from creditd.credit.set_advantages import Normalization
from creditd.credit.set_credit import SetCreditOptions, SetCredits, set_credit
from creditd.credit.tables import table_semivalues
from creditd.credit.token_advantages import TokenPolicy

__all__ = [
    "GRPO_EPSILONS",
    "PARSERS",
    "Blend",
    "CandidateSets",
    "CreditRule",
    "Expectation",
    "Flag",
    "GroupAdvantages",
    "LeaveOneOut",
    "MalformedPolicy",
    "Max",
    "MaxAtK",
    "Mean",
    "Min",
    "Mixture",
    "Normalization",
    "OwnReward",
    "ParsedCandidates",
    "PrefixGain",
    "RthBest",
    "SetCreditOptions",
    "SetCredits",
    "SetError",
    "SetReward",
    "Shapley",
    "Sum",
    "Table",
    "Threshold",
    "TokenPolicy",
    "TopM",
    "Utility",
    "group_advantages",
    "parse_candidates",
    "parser_of",
    "semivalues",
    "set_credit",
    "table_semivalues",
    "token_spans",
]
