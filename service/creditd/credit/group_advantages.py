"""Advantages of whole responses from their rewards: the baselines that every credit is compared with.

Legend: `N` responses, each in one of `n_groups` groups; a group is the G responses of one prompt. `M` named rewards of
one response.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.flags import Flag
from creditd.credit.group_sums import MAX_MAGNITUDE, Groups, group_maxima, group_means, group_standard_deviations
from creditd.credit.max_at_k import leave_one_out_advantages, max_at_k_advantages
from creditd.credit.pass_at_k import pass_at_k_advantages
from creditd.credit.whitening import Convention, Whitening, whitened

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]

GroupRule: TypeAlias = Literal[
    "grpo", "dr_grpo", "rloo", "reinforce++_baseline", "gdpo", "pass_at_k", "max_at_k", "leave_one_out"
]

GRPO_EPSILONS: dict[Convention, float] = {"trl": 1e-4, "verl": 1e-6, "openrlhf": 1e-9}
"""What each framework adds to the standard deviation, in reward units."""


@dataclass(frozen=True)
class GroupAdvantages:
    """Advantages of N responses and the flags of their groups.

    Attributes:
        advantages: Shape (N,), float64.
        flags: Shape (n_groups,), int64, bits of `Flag`.
    """

    advantages: Floats
    flags: Integers


def group_advantages(
    rewards: Floats,
    groups: Integers,
    n_groups: int,
    *,
    rule: GroupRule = "grpo",
    ddof: int = 1,
    epsilon: float = GRPO_EPSILONS["trl"],
    k: int | None = None,
    threshold: float | None = None,
    whitening: Whitening | None = Whitening(),
    n_tokens: Integers | None = None,
    missing: Booleans | None = None,
) -> GroupAdvantages:
    """Advantage of each response within its group.

        grpo                    (r − mean)/(std + ε)
        dr_grpo                  r − mean
        rloo                     r − mean of the other G − 1 = G/(G − 1)·(r − mean)
        reinforce++_baseline     r − mean, then whitened over the request
        gdpo                     grpo, then whitened over the request; of several rewards: `gdpo_advantages`
        pass_at_k                as `pass_at_k_advantages`, a response is right where r ≥ threshold
        max_at_k                 as `max_at_k_advantages`
        leave_one_out            max of the group − max of the others

    Args:
        rewards: Shape (N,), float64, reward units, finite where not missing.
        groups: Shape (N,), int64, each in [0, n_groups).
        n_groups: Number of groups.
        rule: Which advantage.
        ddof: Degrees of freedom taken off the divisor of the standard deviation (`grpo`, `gdpo`).
        epsilon: ε, added to the standard deviation (`grpo`, `gdpo`), reward units.
        k: How many responses are drawn, ≥ 1 (`pass_at_k`, `max_at_k`).
        threshold: Smallest reward of a right response (`pass_at_k`), reward units. None: rewards are 0 or 1.
        whitening: How the request is whitened (`reinforce++_baseline`, `gdpo`). None: not at all.
        n_tokens: Shape (N,), int64, ≥ 0: trainable tokens of each response, for the conventions of whitening that
            count them. None: each response counts once.
        missing: Shape (N,), bool; True where a reward is null. Such a response is left out of its baseline and of the
            whitening.

    Returns:
        The advantages of every rule but `max_at_k` and `leave_one_out` sum to 0 within each group, to 1e-12 of their
        scale; under a whitening that counts tokens the sum over the request, weighted by tokens, is 0 instead, where
        no group is degenerate. A group whose rewards are all equal (compared exactly), that has one response, or in
        which `pass_at_k` has no contrast (none right, or fewer than k wrong) gives exactly 0 under those rules and
        `max_at_k` with k ≥ 2, flagged; `max_at_k` with k = 1 and `leave_one_out` follow their formulas. A missing
        reward gives exactly 0, its group flagged. Without whitening a group does not depend on the others, nor on its
        order, to the last bit; with it on the whole request, by definition, but not on any order.

    Raises:
        ValueError: If a reward that is not missing is not finite, or larger than 1e100 in magnitude; if k is missing
            or below 1; if `pass_at_k` without a threshold finds a reward that is neither 0 nor 1.

    Cost:
        O(N log N).

    Reference:
        GRPO arXiv:2402.03300; Dr. GRPO arXiv:2503.20783; RLOO arXiv:2402.14740; REINFORCE++ arXiv:2501.03262; GDPO
        arXiv:2601.05242; Pass@k Training arXiv:2508.10751; PKPO arXiv:2505.15201.

    Differs from the paper:
        The frameworks agree with these numbers where every group has a contrast, and differ where one has none. verl
        passes a singleton's raw reward through (and whitens it with the others); here it is 0. verl and OpenRLHF give
        constant groups the shift −m/s of the whitening; here they stay 0, but count in m and s as zeros. OpenRLHF
        divides 0 by 0 for singletons. TRL sums named rewards with a null as 0, where `weighted_rewards` has a null.
    """
    absent = np.zeros(rewards.shape, dtype=np.bool_) if missing is None else missing
    if rule == "gdpo":
        return gdpo_advantages(
            rewards[None],
            np.ones(1),
            groups,
            n_groups,
            ddof=ddof,
            epsilon=epsilon,
            whitening=whitening,
            n_tokens=n_tokens,
            missing=absent[None],
        )
    present = np.flatnonzero(~absent)
    members, owner = _usable(rewards[present]), groups[present]
    if rule == "leave_one_out":
        values, flat = leave_one_out_advantages(members, owner, n_groups), np.zeros(n_groups, dtype=np.bool_)
    elif rule == "max_at_k":
        values = max_at_k_advantages(members, owner, n_groups, k=_drawn(rule, k))
        flat = _without_contrast(members, owner, n_groups) & (k != 1)
    elif rule == "pass_at_k":
        values, flat = pass_at_k_advantages(_right(members, threshold), owner, n_groups, k=_drawn(rule, k))
    else:
        values, flat = _centred(members, owner, n_groups, rule=rule, ddof=ddof, epsilon=epsilon)
        if rule == "reinforce++_baseline" and whitening is not None:
            values = whitened(values, whitening, None if n_tokens is None else n_tokens[present])
            values = np.where(flat[owner], 0.0, values)
    return _answer(values, flat, groups, scored=~absent, complete=~absent)


def gdpo_advantages(
    rewards: Floats,
    weights: Floats,
    groups: Integers,
    n_groups: int,
    *,
    ddof: int = 1,
    epsilon: float = GRPO_EPSILONS["trl"],
    whitening: Whitening | None = Whitening(),
    n_tokens: Integers | None = None,
    missing: Booleans | None = None,
) -> GroupAdvantages:
    """Advantage of each response from several rewards, each brought to its own scale within the group first.

        x = Σ_m w_m·(r_m − mean_m)/(std_m + ε),   A = x whitened over the request

    Args:
        rewards: Shape (M, N), float64, units of each reward, finite where not missing.
        weights: w, shape (M,), float64; a reward of weight 0 is not looked at.
        groups: Shape (N,), int64, each in [0, n_groups).
        n_groups: Number of groups.
        ddof: Degrees of freedom taken off the divisors of the standard deviations within groups.
        epsilon: ε, added to the standard deviations within groups, units of the rewards.
        whitening: How the request is whitened. None: not at all, A = x.
        n_tokens: Shape (N,), int64, ≥ 0: trainable tokens of each response, for the conventions of whitening that
            count them. None: each response counts once.
        missing: Shape (M, N), bool; True where a reward is null. It is left out of the baseline of its name, and adds
            nothing to x.

    Returns:
        The advantages depend on the whole request, by definition, but not on any order but that of the names; without
        whitening x sums to 0 within each group, to 1e-12 of its scale. A name that has no contrast in a group adds
        nothing there. A group in which no name has one gives exactly 0, applied after whitening, flagged. A response
        without any reward gives exactly 0 and does not count in the whitening; a group with a missing reward is
        flagged. With one name of weight 1 it is `group_advantages` with rule `gdpo`.

    Raises:
        ValueError: If a reward that is not missing is not finite, or larger than 1e100 in magnitude, or every weight
            is 0.

    Cost:
        O(M·N log N).

    Reference:
        GDPO, arXiv:2601.05242.

    Differs from the paper:
        Nulls, singletons and constant groups are ours, as in `group_advantages`. TRL calls it `normalize_then_sum`
        and leaves nulls out in the same way; in verl a singleton keeps its raw rewards, and there are no nulls.
    """
    looked_at = np.flatnonzero(weights)
    if not looked_at.size:
        raise ValueError("every weight is 0; expected one that is not")
    absent = np.zeros(rewards.shape, dtype=np.bool_) if missing is None else missing
    sums, flat = np.zeros(len(groups)), np.ones(n_groups, dtype=np.bool_)
    for name in looked_at.tolist():
        present = np.flatnonzero(~absent[name])
        members, owner = _usable(rewards[name, present]), groups[present]
        values, flat_here = _centred(members, owner, n_groups, rule="grpo", ddof=ddof, epsilon=epsilon)
        sums[present] += weights[name] * values
        flat &= flat_here
    scored: Booleans = np.logical_or.reduce(~absent[looked_at])
    complete: Booleans = np.logical_and.reduce(~absent[looked_at])
    index = np.flatnonzero(scored)
    if whitening is not None:
        sums[index] = whitened(sums[index], whitening, None if n_tokens is None else n_tokens[index])
    values = np.where(flat[groups[index]], 0.0, sums[index])
    return _answer(values, flat, groups, scored=scored, complete=complete)


def weighted_rewards(rewards: Floats, weights: Floats, missing: Booleans | None = None) -> tuple[Floats, Booleans]:
    """Weighted sum of the rewards of each response, and where it is missing.

        r = Σ_m w_m·r_m

    Args:
        rewards: Shape (M, N), float64, units of each reward.
        weights: w, shape (M,), float64; a reward of weight 0 is not looked at.
        missing: Shape (M, N), bool; True where a reward is null. None: none is.

    Returns:
        Shape (N,), float64, reward units, added in the order of the names, 0 where missing; and a mask of shape (N,),
        True for a response that lacks a reward of a weight other than 0. One reward of weight 1 is itself.

    Raises:
        ValueError: If every weight is 0.

    Cost:
        O(M·N).
    """
    looked_at = np.flatnonzero(weights)
    if not looked_at.size:
        raise ValueError("every weight is 0; expected one that is not")
    lacking: Booleans = np.zeros(rewards.shape[1], dtype=np.bool_)
    if missing is not None:
        lacking = np.logical_or.reduce(missing[looked_at])
    sums = np.zeros(rewards.shape[1])
    for name in looked_at.tolist():
        sums[~lacking] += weights[name] * rewards[name, ~lacking]
    return sums, lacking


def _usable(rewards: Floats) -> Floats:
    """The rewards, if the arithmetic can take them."""
    if not (np.abs(rewards) <= MAX_MAGNITUDE).all():
        raise ValueError(f"rewards must be finite, of magnitude at most {MAX_MAGNITUDE:g}, where they are not missing")
    return rewards


def _drawn(rule: GroupRule, k: int | None) -> int:
    if k is None:
        raise ValueError(f"{rule} needs k: got None")
    return k


def _right(rewards: Floats, threshold: float | None) -> Booleans:
    """Which rewards are those of right responses."""
    if threshold is None and not ((rewards == 0.0) | (rewards == 1.0)).all():
        raise ValueError("pass_at_k needs a threshold for rewards other than 0 and 1: got none")
    return rewards >= (1.0 if threshold is None else threshold)


def _without_contrast(members: Floats, owner: Integers, n_groups: int) -> Booleans:
    """True for each group of at most one reward, or of equal ones."""
    groups = Groups(owner, n_groups)
    return group_maxima(members, groups) <= -group_maxima(-members, groups)


def _centred(
    members: Floats, owner: Integers, n_groups: int, *, rule: GroupRule, ddof: int, epsilon: float
) -> tuple[Floats, Booleans]:
    """Rewards about the baseline of their group, on the scale of the rule, and which groups have no contrast."""
    groups = Groups(owner, n_groups)
    flat = _without_contrast(members, owner, n_groups)
    # Measured from the lowest reward of the group, so that a large offset costs no digits of the contrast.
    above = members + group_maxima(-members, groups)[owner]
    centred = above - group_means(above, groups)[owner]
    if rule == "grpo":
        # In units of a power of two near the range of the group, so that the squares of small rewards do not vanish.
        exponents = np.frexp(np.maximum(group_maxima(above, groups), 0.0))[1]
        scaled = np.ldexp(above, -exponents[owner])
        deviations = np.ldexp(group_standard_deviations(scaled, groups, ddof=ddof), exponents)
        flat |= groups.counts <= ddof
        centred = centred / np.where(flat, 1.0, deviations + epsilon)[owner]
    elif rule == "rloo":
        centred = centred * (groups.counts / np.maximum(groups.counts - 1, 1))[owner]
    return np.where(flat[owner], 0.0, centred), flat


def _answer(
    values: Floats, flat: Booleans, groups: Integers, *, scored: Booleans, complete: Booleans
) -> GroupAdvantages:
    """Advantages of all responses from those of the scored ones, and what is unusual about their groups."""
    n_groups = len(flat)
    advantages = np.zeros(len(groups))
    advantages[scored] = values
    flags = np.where(flat, int(Flag.DEGENERATE_GROUP), 0)
    flags = flags | np.where(np.bincount(groups[scored], minlength=n_groups) == 1, int(Flag.SINGLE_RESPONSE), 0)
    flags = flags | np.where(np.bincount(groups[~complete], minlength=n_groups) > 0, int(Flag.GROUP_INCOMPLETE), 0)
    return GroupAdvantages(advantages=advantages, flags=flags.astype(np.int64))
