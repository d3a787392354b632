"""Advantages of whole responses from their rewards: the baselines that every credit is compared with.

Legend: `N` responses, each in one of `n_groups` groups; a group is the G responses of one prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.flags import Flag
from creditd.credit.group_sums import MAX_MAGNITUDE, group_maxima, group_means, group_standard_deviations

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]

GroupRule: TypeAlias = Literal["grpo", "dr_grpo", "rloo"]
Convention: TypeAlias = Literal["trl", "verl", "openrlhf"]

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
    missing: Booleans | None = None,
) -> GroupAdvantages:
    """Advantage of each response within its group.

        grpo      (r − mean)/(std + ε)
        dr_grpo    r − mean
        rloo       r − mean of the other G − 1 = G/(G − 1)·(r − mean)

    Args:
        rewards: Shape (N,), float64, reward units, finite where not missing.
        groups: Shape (N,), int64, each in [0, n_groups).
        n_groups: Number of groups.
        rule: Which advantage.
        ddof: Degrees of freedom taken off the divisor of the standard deviation (`grpo`).
        epsilon: ε, added to the standard deviation (`grpo`), reward units.
        missing: Shape (N,), bool; True where a reward is null. Such a response is left out of its baseline.

    Returns:
        The advantages sum to 0 within each group, to 1e-12 of their scale. A group whose rewards are all equal
        (compared exactly) or that has one response gives exactly 0, flagged; a missing reward gives exactly 0, its
        group flagged.

    Raises:
        ValueError: If a reward that is not missing is not finite, or larger than 1e100 in magnitude.

    Cost:
        O(N log N).

    Reference:
        GRPO arXiv:2402.03300; Dr. GRPO arXiv:2503.20783; RLOO arXiv:2402.14740.

    Differs from the paper:
        verl passes a singleton's raw reward through; here a response without a contrast has advantage 0.
    """
    absent = np.zeros(rewards.shape, dtype=np.bool_) if missing is None else missing
    if not (np.abs(rewards[~absent]) <= MAX_MAGNITUDE).all():
        raise ValueError(f"rewards must be finite, of magnitude at most {MAX_MAGNITUDE:g}, where they are not missing")
    present = np.flatnonzero(~absent)
    members, owner = rewards[present], groups[present]
    counts = np.bincount(owner, minlength=n_groups)
    constant = group_maxima(members, owner, n_groups) == -group_maxima(-members, owner, n_groups)
    degenerate = (counts <= 1) | constant
    # Measured from the lowest reward of the group, so that a large offset costs no digits of the contrast.
    above = members + group_maxima(-members, owner, n_groups)[owner]
    centred = above - group_means(above, owner, n_groups)[owner]
    if rule == "grpo":
        deviations = group_standard_deviations(above, owner, n_groups, ddof=ddof)
        degenerate |= counts <= ddof
        centred = centred / np.where(degenerate, 1.0, deviations + epsilon)[owner]
    elif rule == "rloo":
        centred = centred * (counts / np.maximum(counts - 1, 1))[owner]
    advantages = np.zeros(rewards.shape)
    advantages[present] = np.where(degenerate[owner], 0.0, centred)
    flags = np.where(degenerate, int(Flag.DEGENERATE_GROUP), 0)
    flags = flags | np.where(counts == 1, int(Flag.SINGLE_RESPONSE), 0)
    flags = flags | np.where(np.bincount(groups[absent], minlength=n_groups) > 0, int(Flag.GROUP_INCOMPLETE), 0)
    return GroupAdvantages(advantages=advantages, flags=flags.astype(np.int64))
