"""Credit, advantages and token advantages of a whole batch of candidate sets, in one call.

Legend: `B` sets, `C` candidates over all sets, `P` players, `T` completion tokens over all sets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import (
    CandidateSets,
    MalformedPolicy,
    Players,
    SetError,
    SetErrors,
    check_candidate_sets,
    find_players,
)
from creditd.credit.credit_rules import CreditRule, Shapley, needs_unions
from creditd.credit.feature_checks import check_features
from creditd.credit.flags import Flag
from creditd.credit.group_advantages import group_advantages
from creditd.credit.group_sums import Groups, group_sums
from creditd.credit.order_statistics import Max
from creditd.credit.set_advantages import Normalization, SetAdvantages, SetCreditEntries, set_advantages
from creditd.credit.set_expectations import (
    Expectation,
    check_expectation,
    check_rule,
    fail_incomplete_groups,
    fail_uneven_groups,
)
from creditd.credit.set_games import SolvedSets, solve_sets
from creditd.credit.set_utilities import Method, Utility, method_of
from creditd.credit.set_work import check_work
from creditd.credit.token_advantages import CandidateSpans, TokenPolicy, token_advantages

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class SetCreditOptions:
    """Every choice of a request, with the defaults of the wire.

    Attributes:
        utility: Utility of a set.
        rule: Which credit.
        normalization: How credits become advantages.
        tokens: What tokens receive; None asks for no token advantages.
        malformed: What happens to sets that are not as asked.
        expect: What the caller is sure of.
        fail_incomplete_groups: Whether a failed set fails its whole group instead of flagging it.
        max_players: Largest number of candidates of a set with rewards.
        max_table_players: Largest number of candidates of a set with a table.
        max_tokens_per_set: Largest number of completion tokens of a set.
    """

    utility: Utility = Max()
    rule: CreditRule = Shapley()
    normalization: Normalization = Normalization()
    tokens: TokenPolicy | None = None
    malformed: MalformedPolicy = MalformedPolicy()
    expect: Expectation = Expectation()
    fail_incomplete_groups: bool = False
    max_players: int = 256
    max_table_players: int = 16
    max_tokens_per_set: int = 131_072


@dataclass(frozen=True)
class SetCredits:
    """What a batch of B sets comes back with. Slots of a failed set are NaN.

    Attributes:
        credits: Shape (C,), float64, reward units; NaN for a candidate that is not a player.
        advantages: Shape (C,), float64; NaN for a candidate that is not a player.
        row_splits: Shape (B + 1,), int64, of both.
        set_advantages: Shape (B,), float64, for tokens outside the candidates.
        set_reward_advantages: Shape (B,), float64: the GRPO advantage of `set_rewards`, or None without them.
        utility_empty: v(∅), shape (B,), float64, reward units.
        utility_grand: v(N), shape (B,), float64, reward units.
        credit_sums: Σ credit, shape (B,), float64, reward units.
        gaps: Σ credit − (v(N) − v(∅)), shape (B,), float64; near 0 for efficient rules, and a fact of the others.
        flags: Shape (B,), int64, bits of `Flag`.
        token_advantages: Shape (T,), float64, completion after completion, or None. A failed set has NaN.
        token_splits: Shape (B + 1,), int64, or None.
        errors: At most one per set, by row.
        method: How the credits were found.
        slopes: Shape (C,), float64, per reward unit: what a candidate's advantage gains by one more of its credit, as
            `SetAdvantages`; NaN for a candidate that is not a player. None where each of several named rewards has its
            own.
    """

    credits: Floats
    advantages: Floats
    row_splits: Integers
    set_advantages: Floats
    set_reward_advantages: Floats | None
    utility_empty: Floats
    utility_grand: Floats
    credit_sums: Floats
    gaps: Floats
    flags: Integers
    token_advantages: Floats | None
    token_splits: Integers | None
    errors: tuple[SetError, ...]
    method: Method
    slopes: Floats | None = None

    @property
    def ok(self) -> Booleans:
        """True for each set that has an answer, shape (B,)."""
        answered = np.ones(len(self.flags), dtype=np.bool_)
        answered[[error.row for error in self.errors]] = False
        return answered


def _no_checkpoint() -> None:
    """Let the computation go on."""


def set_credit(
    batch: CandidateSets,
    options: SetCreditOptions,
    rejected: tuple[SetError, ...] = (),
    checkpoint: Callable[[], None] = _no_checkpoint,
    given: SolvedSets | None = None,
) -> SetCredits:
    """Credit, advantages and token advantages of candidate sets.

    Args:
        batch: B sets as columns.
        options: Utility, rule, normalisation and policies.
        rejected: Sets that failed before, at most one error each; they fail here too and count as lost to their groups.
        checkpoint: Called before each kernel call; what it raises ends the computation.
        given: Credits that were found elsewhere, such as by asking for utilities, instead of those of `options.utility`
            and `options.rule`.

    Returns:
        One answer or one error per set. The credit of a set is the same to the last bit in any batch, and its
        advantages given its group (but for `batch_scaled`).

    Raises:
        ValueError: If columns that the options need are absent.

    Cost:
        O(C log C + T) for rewards, O(C · 2^K) for tables of K players, and nothing per set in Python.

    Reference:
        ShapE-GRPO, arXiv:2603.29871v1.

    Differs from the paper:
        Normalisation, other tokens and malformed sets are not known to us from the paper; each is a named choice here.
    """
    errors = SetErrors(batch.n_sets, rejected)
    check_candidate_sets(
        batch,
        errors,
        kept=options.malformed.candidates if options.malformed.extra == "truncate" else None,
        max_players=options.max_players,
        max_table_players=options.max_table_players,
        max_tokens=None if options.tokens is None else options.max_tokens_per_set,
    )
    players = find_players(batch, options.malformed, errors)
    n_players = batch.per_set(players.playing)
    n_candidates = n_players + batch.per_set(players.copies)
    _check(batch, options, players, n_players, n_candidates, errors, given=given is not None)
    alive = ~errors.failed
    solved, advantages = _solve(batch, options, players, n_candidates, alive, checkpoint, given)
    flags = _flags(batch, players, errors.failed, n_candidates) | advantages.flags
    whole = _set_reward_advantages(batch, options, errors.failed, flags)
    tokens, token_splits = None, None
    if options.tokens is not None and batch.spans is not None and batch.n_tokens is not None:
        tokens, token_splits = _token_advantages(
            batch,
            options.tokens,
            options.max_tokens_per_set,
            advantages.advantages,
            advantages.set_advantages,
            whole,
            errors.failed,
        )
    credits_ = np.where(np.isnan(solved.credits), 0.0, solved.credits)
    sums = group_sums(credits_, Groups(batch.owner, batch.n_sets))
    sums[errors.failed] = np.nan
    return SetCredits(
        credits=solved.credits,
        advantages=advantages.advantages,
        row_splits=batch.row_splits,
        set_advantages=advantages.set_advantages,
        set_reward_advantages=whole,
        utility_empty=solved.empty,
        utility_grand=solved.grand,
        credit_sums=sums,
        gaps=sums - (solved.grand - solved.empty),
        flags=np.where(errors.failed, 0, flags),
        token_advantages=tokens,
        token_splits=token_splits,
        errors=errors.sorted(),
        method="owen" if needs_unions(options.rule) else method_of(options.utility),
        slopes=None if batch.parts is not None else advantages.slopes,
    )


def _check(
    batch: CandidateSets,
    options: SetCreditOptions,
    players: Players,
    n_players: Integers,
    n_candidates: Integers,
    errors: SetErrors,
    *,
    given: bool,
) -> None:
    """Fail the sets that the utility, the rule, the caller or the normalisation cannot take."""
    if not given:
        limit = options.max_table_players
        check_rule(options.rule, options.utility, n_players, n_candidates, errors, max_table_players=limit)
        check_features(batch, options.utility, players, errors, unions=needs_unions(options.rule))
        check_work(batch, options.utility, options.rule, n_players, errors)
    check_expectation(batch, options.expect, players, errors)
    if options.fail_incomplete_groups:
        fail_incomplete_groups(batch, errors)
    if options.normalization.type == "per_slot":
        fail_uneven_groups(batch, n_candidates, errors)


def _solve(
    batch: CandidateSets,
    options: SetCreditOptions,
    players: Players,
    n_candidates: Integers,
    alive: Booleans,
    checkpoint: Callable[[], None],
    given: SolvedSets | None,
) -> tuple[SolvedSets, SetAdvantages]:
    """Credits and advantages; of named rewards that are normalised one by one, their weighted sums."""
    if given is not None:
        solved = given.only(batch.row_splits, alive)
        return solved, _advantages(batch, options, players, solved, n_candidates, alive)
    if batch.parts is None:
        solved = solve_sets(batch, options.utility, options.rule, players, alive, checkpoint)
        return solved, _advantages(batch, options, players, solved, n_candidates, alive)
    pairs = []
    for part in batch.parts:
        one = replace(batch, rewards=part.rewards)
        solved = solve_sets(one, options.utility, options.rule, players, alive, checkpoint)
        pairs.append((solved, _advantages(one, options, players, solved, n_candidates, alive)))
    weights = [part.weight for part in batch.parts]
    solutions, advantages = zip(*pairs, strict=True)
    return (
        SolvedSets(
            credits=_weighted(weights, [one.credits for one in solutions]),
            empty=_weighted(weights, [one.empty for one in solutions]),
            grand=_weighted(weights, [one.grand for one in solutions]),
            scale=_weighted([abs(weight) for weight in weights], [one.scale for one in solutions]),
        ),
        SetAdvantages(
            advantages=_weighted(weights, [one.advantages for one in advantages]),
            set_advantages=_weighted(weights, [one.set_advantages for one in advantages]),
            flags=np.bitwise_or.reduce([one.flags for one in advantages]),
            slopes=_weighted(weights, [one.slopes for one in advantages]),
        ),
    )


def _weighted(weights: list[float], columns: list[Floats]) -> Floats:
    """The weighted sum of columns, added in their order."""
    parts = [weight * column for weight, column in zip(weights, columns, strict=True)]
    total: Floats = np.cumsum(parts, axis=0)[-1]
    return total


def _flags(batch: CandidateSets, players: Players, failed: Booleans, n_candidates: Integers) -> Integers:
    """Bits that concern a set's own candidates, and those of groups that lost a set."""
    flags = np.zeros(batch.n_sets, dtype=np.int64)
    for candidates, flag in (
        (players.unscored, Flag.CANDIDATE_UNSCORED),
        (players.truncated, Flag.CANDIDATE_TRUNCATED),
        (players.copies, Flag.DUPLICATES_COLLAPSED),
    ):
        if candidates.any():
            flags[batch.per_set(candidates) > 0] |= flag
    flags[n_candidates == 0] |= Flag.NO_CANDIDATES
    if failed.any():
        incomplete = np.zeros(batch.n_groups, dtype=np.bool_)
        incomplete[batch.groups[failed]] = True
        flags[incomplete[batch.groups]] |= Flag.GROUP_INCOMPLETE
    return flags


def _advantages(
    batch: CandidateSets,
    options: SetCreditOptions,
    players: Players,
    solved: SolvedSets,
    n_candidates: Integers,
    alive: Booleans,
) -> SetAdvantages:
    """Advantages of all candidates and sets, NaN where there is none, and the flags of their groups."""
    advantages, slopes = np.full(len(batch.rewards), np.nan), np.full(len(batch.rewards), np.nan)
    of_sets, flags = np.full(batch.n_sets, np.nan), np.zeros(batch.n_sets, dtype=np.int64)
    if not alive.any():
        return SetAdvantages(advantages=advantages, set_advantages=of_sets, flags=flags, slopes=slopes)
    counted = players.playing | players.copies
    sets: slice | Integers = slice(None)
    owner, groups, n_groups = batch.owner, batch.groups, batch.n_groups
    if not alive.all():
        counted &= alive[owner]
        sets, owner = np.flatnonzero(alive), (np.cumsum(alive) - 1)[owner]
        names, groups = np.unique(groups[sets], return_inverse=True)
        groups, n_groups = groups.reshape(-1), len(names)
    index = slice(None) if counted.all() else np.flatnonzero(counted)
    empty, grand, bare = solved.empty[sets], solved.grand[sets], (n_candidates == 0)[sets]
    credits_, entry_sets = solved.credits[index], owner[index]
    n_entries = len(credits_)
    if bare.any():
        # A response without candidates stands in the comparison with one entry, its failure reward.
        failure = options.malformed.failure_reward
        credits_ = np.concatenate([credits_, failure - empty[bare]])
        entry_sets = np.concatenate([entry_sets, np.flatnonzero(bare)])
        grand = np.where(bare, failure, grand)
    result = set_advantages(
        SetCreditEntries(
            credits=credits_,
            owner=entry_sets,
            set_rewards=grand,
            empty_utilities=empty,
            scales=solved.scale[sets],
            groups=groups,
            n_groups=n_groups,
        ),
        options.normalization,
    )
    advantages[index], slopes[index] = result.advantages[:n_entries], result.slopes[:n_entries]
    of_sets[sets], flags[sets] = result.set_advantages, result.flags
    return SetAdvantages(advantages=advantages, set_advantages=of_sets, flags=flags, slopes=slopes)


def _set_reward_advantages(
    batch: CandidateSets, options: SetCreditOptions, failed: Booleans, flags: Integers
) -> Floats | None:
    """The GRPO advantage of the responses' own rewards; a group with a null among them is flagged."""
    if batch.set_rewards is None:
        return None
    missing = np.zeros(batch.n_sets, dtype=np.bool_) if batch.set_rewards_missing is None else batch.set_rewards_missing
    result = group_advantages(
        batch.set_rewards,
        batch.groups,
        batch.n_groups,
        ddof=options.normalization.ddof,
        epsilon=options.normalization.epsilon,
        missing=missing | failed,
    )
    lacking = np.zeros(batch.n_groups, dtype=np.bool_)
    lacking[batch.groups[missing]] = True
    flags[lacking[batch.groups]] |= Flag.GROUP_INCOMPLETE
    return np.where(failed, np.nan, result.advantages)


def _token_advantages(
    batch: CandidateSets,
    policy: TokenPolicy,
    max_tokens: int,
    advantages: Floats,
    of_sets: Floats,
    whole: Floats | None,
    failed: Booleans,
) -> tuple[Floats, Integers]:
    """Token advantages of all sets, and their row splits; a failed set has no candidates and NaN on its tokens."""
    if batch.spans is None or batch.n_tokens is None:
        raise ValueError("token advantages need spans and n_tokens")
    out_of_range = (batch.n_tokens < 0) | (batch.n_tokens > max_tokens)
    n_tokens = np.where(failed & out_of_range, 0, batch.n_tokens)
    absent = np.isnan(advantages)
    index = np.flatnonzero(~absent) if absent.any() else slice(None)
    spans = CandidateSpans(
        owner=batch.owner[index], start=batch.spans[index, 0], stop=batch.spans[index, 1], n_tokens=n_tokens
    )
    values = token_advantages(advantages[index], of_sets, spans, policy)
    splits = np.append(np.int64(0), np.cumsum(n_tokens))
    if whole is not None and policy.set_reward_weight:
        values = values + np.repeat(policy.set_reward_weight * whole, n_tokens)
    return values, splits
