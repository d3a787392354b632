"""Advantages of candidates and of whole responses from candidate credits, normalised over the responses of a prompt.

Legend: `E` entries (one per candidate, or one stand-in for a response without candidates), `S` responses (candidate
sets), `n_groups` groups of responses. D = K_g · credit is the credit on the scale of a reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.flags import Flag
from creditd.credit.group_sums import Groups, group_maxima, group_means, group_standard_deviations, group_sums

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]

NormalizationType: TypeAlias = Literal["pooled", "batch_scaled", "centered", "response_preserving", "per_slot", "none"]

DEGENERATE_SPREAD = 1e-12
"""A group whose D deviate by less than this share of max |D| and max |v| has only rounding for a contrast."""
UNSTABLE_RATIO = 100.0
"""`response_preserving` is flagged when the credits spread this many times wider than the rewards it divides by."""


@dataclass(frozen=True)
class Normalization:
    """How credits become advantages.

    Attributes:
        type: `pooled` (D − μ)/(s_D + ε), the default; `batch_scaled` with the spread of the whole request; `centered`
            D − μ; `response_preserving` (D − μ)/(σ_R + ε), whose mean over candidates is the GRPO advantage for
            efficient credits; `per_slot` over responses at a fixed position; `none` the credit itself.
        ddof: Degrees of freedom taken off the divisor of every standard deviation.
        epsilon: ε, added to every standard deviation, reward units.
        baseline: `group`, the mean over all responses; `others`, over the other G − 1, which takes the response's own
            credit out of its baseline.
    """

    type: NormalizationType = "pooled"
    ddof: int = 1
    epsilon: float = 1e-4
    baseline: Literal["group", "others"] = "group"

    def __post_init__(self) -> None:
        if self.baseline == "others" and self.type in {"per_slot", "none"}:
            raise ValueError(f"{self.type} has no baseline to choose: got others, expected group")
        if self.epsilon < 0 or self.ddof < 0:
            raise ValueError(f"ddof and epsilon must not be negative: got {self.ddof} and {self.epsilon}")


@dataclass(frozen=True)
class SetCreditEntries:
    """The credits of S responses, flat, as the normalisation needs them.

    Attributes:
        credits: Shape (E,), float64, reward units.
        owner: Shape (E,), int64: the response of each entry, in [0, S). Every response has at least one entry, its
            entries stand together in the order of their positions, and K_g of a response is the number of its entries.
        set_rewards: R, shape (S,), float64, reward units: v(N), or the failure reward.
        empty_utilities: v(∅), shape (S,), float64, reward units.
        scales: Shape (S,), float64, ≥ 0: the largest magnitude among the utilities that the credits were computed from.
        groups: Shape (S,), int64, in [0, n_groups).
        n_groups: Number of groups.
    """

    credits: Floats
    owner: Integers
    set_rewards: Floats
    empty_utilities: Floats
    scales: Floats
    groups: Integers
    n_groups: int


@dataclass(frozen=True)
class SetAdvantages:
    """Advantages of E entries and of S responses.

    Attributes:
        advantages: Shape (E,), float64.
        set_advantages: Shape (S,), float64, for tokens that belong to no candidate.
        flags: Shape (S,), int64, bits of `Flag`.
        slopes: Shape (E,), float64, ≥ 0, per reward unit: how much A rises with the credit where the baseline and the
            denominator stay as they are, K_g/denominator. `none`: 1. 0 in a group whose advantages are 0 for want of
            contrast, but for `centered`, which divides by nothing.
    """

    advantages: Floats
    set_advantages: Floats
    flags: Integers
    slopes: Floats


def set_advantages(entries: SetCreditEntries, normalization: Normalization) -> SetAdvantages:
    """Advantages A of candidates and A^set of responses.

        D̄_g = mean of D over the candidates of g,  μ_C = mean of D̄_g over the responses,  s_D = std of all D of the
        group A = (D − μ_C)/denominator,   A^set_g = (R_g − μ_R)/denominator        denominator: see `Normalization`
        none: A = D/K_g, A^set = R − v(∅)

    Args:
        entries: Credits and rewards of the responses.
        normalization: Which denominator and which baseline.

    Returns:
        For every type but `none` and `per_slot` the mean over responses of the mean of A over candidates is 0 to 1e-12.
        `pooled` with K = 1 is GRPO. A group without contrast gives exactly 0, flagged; of a single response `pooled`,
        `centered` and `none` keep the contrast inside the set, flagged, and the others give 0. A group's numbers do not
        depend on other groups (but `batch_scaled`), nor on the order of its responses and candidates, to the last bit.

    Cost:
        O(E log E).

    Reference:
        ShapE-GRPO, arXiv:2603.29871v1.

    Differs from the paper:
        The paper's normalisation is not known to us; `pooled` is our default. Of `per_slot`, A^set is the GRPO
        advantage.
    """
    groups, owner = Groups(entries.groups, entries.n_groups), Groups(entries.owner, len(entries.groups))
    group = groups.index
    single = groups.counts == 1
    flags = np.where(single[group], int(Flag.SINGLE_RESPONSE), 0).astype(np.int64)
    if normalization.type == "none":
        ones = np.ones_like(entries.credits)
        return SetAdvantages(entries.credits, entries.set_rewards - entries.empty_utilities, flags, ones)
    entry_groups = Groups(group[entries.owner], entries.n_groups)
    sizes = owner.counts[entries.owner]
    scaled = sizes * entries.credits
    # Measured from the lowest D and R of the group, so that a large offset costs no digits of the contrast.
    above = scaled + group_maxima(-scaled, entry_groups)[entry_groups.index]
    rewards_above = entries.set_rewards + group_maxima(-entries.set_rewards, groups)[group]
    spread = group_standard_deviations(above, entry_groups, ddof=normalization.ddof)
    magnitudes = np.maximum(np.abs(scaled), entries.scales[entries.owner])
    degenerate = _negligible(spread, magnitudes, entry_groups)
    denominators, rewards_flat = _denominators(
        normalization, scaled, spread, rewards_above, entries.set_rewards, groups
    )
    if normalization.type == "response_preserving":
        degenerate |= rewards_flat
        unstable = ~degenerate & (spread > UNSTABLE_RATIO * denominators)
        flags[unstable[group]] |= Flag.UNSTABLE_NORMALIZATION
    if normalization.type not in {"pooled", "centered"} or normalization.baseline == "others":
        degenerate |= single
    denominators = np.where(degenerate | (denominators == 0.0), 1.0, denominators)
    reward_baselines = _baselines(rewards_above, groups, normalization.baseline)
    whole = (rewards_above - reward_baselines) / denominators[group]
    if normalization.type == "per_slot":
        parts, slopes, flat = _per_slot(above, magnitudes, owner, entry_groups, normalization)
        flags[flat[group]] |= Flag.DEGENERATE_GROUP
        whole = np.where(rewards_flat[group], 0.0, whole)
    else:
        means = group_sums(above, owner) / owner.counts
        baselines = _baselines(means, groups, normalization.baseline)
        parts = (above - baselines[entries.owner]) / denominators[entry_groups.index]
        slopes = 1.0 / denominators[entry_groups.index]
    flags[degenerate[group]] |= Flag.DEGENERATE_GROUP
    if normalization.type != "centered":
        slopes = np.where(degenerate[entry_groups.index], 0.0, slopes)
    return SetAdvantages(
        advantages=np.where(degenerate[entry_groups.index], 0.0, parts),
        set_advantages=np.where(degenerate[group], 0.0, whole),
        flags=flags,
        slopes=sizes * slopes,
    )


def _baselines(values: Floats, groups: Groups, baseline: Literal["group", "others"]) -> Floats:
    """What each response is compared with: the mean over its group, or over the others of its group."""
    sums, counts = group_sums(values, groups)[groups.index], groups.counts[groups.index]
    return sums / counts if baseline == "group" else (sums - values) / np.maximum(counts - 1, 1)


def _denominators(
    normalization: Normalization,
    scaled: Floats,
    spread: Floats,
    rewards_above: Floats,
    set_rewards: Floats,
    groups: Groups,
) -> tuple[Floats, Booleans]:
    """Denominator of each group, and where the rewards of responses, if it takes them, have no contrast."""
    if normalization.type == "centered":
        return np.ones_like(spread), np.zeros(spread.shape, dtype=np.bool_)
    if normalization.type == "pooled":
        return spread + normalization.epsilon, np.zeros(spread.shape, dtype=np.bool_)
    if normalization.type == "batch_scaled":
        one_group = Groups(np.zeros(len(scaled), dtype=np.int64), 1)
        overall = group_standard_deviations(scaled, one_group, ddof=normalization.ddof)[0]
        return np.full_like(spread, overall + normalization.epsilon), np.zeros(spread.shape, dtype=np.bool_)
    reward_spread = group_standard_deviations(rewards_above, groups, ddof=normalization.ddof)
    return reward_spread + normalization.epsilon, _negligible(reward_spread, np.abs(set_rewards), groups)


def _negligible(spread: Floats, magnitudes: Floats, groups: Groups) -> Booleans:
    """True for each group whose spread is nothing but the rounding of numbers of these magnitudes."""
    return spread <= DEGENERATE_SPREAD * group_maxima(magnitudes, groups)


def _per_slot(
    above: Floats, magnitudes: Floats, owner: Groups, entry_groups: Groups, normalization: Normalization
) -> tuple[Floats, Floats, Booleans]:
    """D standardised at each position, one over each denominator, and the groups in which a position is flat."""
    slot = _running_count(owner.index)
    names, index = np.unique(entry_groups.index * (int(slot.max(initial=0)) + 1) + slot, return_inverse=True)
    cells = Groups(index.reshape(-1), len(names))
    spread = group_standard_deviations(above, cells, ddof=normalization.ddof)
    flat = _negligible(spread, magnitudes, cells)
    centred = above - group_means(above, cells)[cells.index]
    denominators = np.where(flat, 1.0, spread + normalization.epsilon)
    flat_groups = np.zeros(entry_groups.n_groups, dtype=np.bool_)
    flat_groups[entry_groups.index[flat[cells.index]]] = True
    slopes = np.where(flat, 0.0, 1.0 / denominators)[cells.index]
    return np.where(flat[cells.index], 0.0, centred / denominators[cells.index]), slopes, flat_groups


def _running_count(owner: Integers) -> Integers:
    """0, 1, 2, … within each run of equal numbers."""
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    lengths = np.diff(np.append(starts, len(owner)))
    return np.arange(len(owner)) - np.repeat(starts, lengths)
