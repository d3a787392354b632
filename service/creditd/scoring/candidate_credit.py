"""Credit for candidate sets whose rewards, or whose utilities, are known."""

from __future__ import annotations

from creditd.credit.candidate_sets import CandidateSets, SetError
from creditd.credit.set_credit import SetCreditOptions, SetCredits, set_credit
from creditd.credit.set_games import SolvedSets
from creditd.scoring.deadline import Deadline


def score_candidate_sets(
    batch: CandidateSets,
    options: SetCreditOptions,
    rejected: tuple[SetError, ...],
    deadline: Deadline,
    given: SolvedSets | None = None,
) -> SetCredits:
    """Answer a batch of candidate sets, unless it waited past its deadline.

    Args:
        batch: The sets.
        options: Every choice of the request.
        rejected: Sets that lack something.
        deadline: When the caller stops waiting.
        given: Credits under a utility that a model evaluated, instead of those of the options' utility.

    Returns:
        One answer or one error per set.

    Raises:
        DeadlineExceededError: If the deadline passes before the last kernel call; nobody waits for the rest.

    Cost:
        One call into `creditd.credit`; O(C log C + T) for C candidates and T tokens.
    """
    return set_credit(batch, options, rejected, deadline.check, given)
