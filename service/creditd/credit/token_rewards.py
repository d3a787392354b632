"""From what the units of a completion are worth to rewards and advantages of its tokens.

Legend: `T` tokens of a completion, `n` units, `N` completions in `n_groups` groups; r = v(P) the utility of the
completion, v(∅) that of its absence, u the values of the units, ℓ_j the tokens of unit j. Rewards are in reward units.

The law: whatever happened to a completion, its token rewards sum to

    Σ KL + other_reward + v(P) − α·v(∅)

over its trainable tokens, so that all completions of a prompt return their reward less one number of the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.flags import Flag
from creditd.credit.group_sums import (
    MAX_MAGNITUDE,
    Groups,
    group_maxima,
    group_means,
    group_standard_deviations,
)
from creditd.credit.set_advantages import DEGENERATE_SPREAD
from creditd.credit.text_units import TextUnits

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Ledger:
    """What the return of a completion is made of, reward units.

    Attributes:
        kl: Sum of the KL terms of trainable tokens.
        other_reward: Rewards of the completion that are not shared out.
        units: α·Σu; 0 where the completion is not decomposed.
        terminal: (1 − α)·v(P); 0 where v(P) − α·v(∅) stands in one piece under `remainder`.
        remainder: α·(v(P) − v(∅) − Σu), or all of v(P) − α·v(∅) where the completion is not decomposed.
        total: Σ KL + other_reward + v(P) − α·v(∅): the sum of the five parts, within rounding.
        alpha: α as it was used: 0 where v(∅) has no utility.
    """

    kl: float
    other_reward: float
    units: float
    terminal: float
    remainder: float
    total: float
    alpha: float


@dataclass(frozen=True)
class CompletionCredit:
    """One completion whose v(P) is known, and what its units are worth.

    Attributes:
        units: Its tokens and units.
        values: u, shape (n,), float64, reward units, in the order of the units. None: it could not be decomposed.
        empty: v(∅) of its prompt, reward units. None: it has no utility, so α is 0.
        grand: v(P), reward units.
        kl: Shape (T,), float64, reward units: the KL term of each token, with its sign. None: all 0. What stands at
            tokens that are not trainable is not looked at.
        other_reward: Rewards of the completion beside v(P), reward units.

    Raises:
        ValueError: If a shape does not fit, or a number that counts is not finite or beyond 1e100 in magnitude.
    """

    units: TextUnits
    values: Floats | None
    empty: float | None
    grand: float
    kl: Floats | None = None
    other_reward: float = 0.0

    def __post_init__(self) -> None:
        n, n_tokens = self.units.n_units, self.units.n_tokens
        if self.values is not None and self.values.shape != (n,):
            raise ValueError(f"values: got shape {self.values.shape}, expected ({n},), one for each unit")
        if self.kl is not None and self.kl.shape != (n_tokens,):
            raise ValueError(f"kl: got shape {self.kl.shape}, expected ({n_tokens},), one for each token")
        _check("grand", np.array([self.grand]))
        _check("empty", np.array([0.0 if self.empty is None else self.empty]))
        _check("values", np.empty(0) if self.values is None else self.values)
        _check("kl", self.kl_terms)
        _check("other_reward", np.array([self.other_reward]))

    @property
    def kl_terms(self) -> Floats:
        """KL term of each trainable token, in their order."""
        trainable = self.units.trainable
        return np.zeros(int(trainable.sum())) if self.kl is None else self.kl[trainable]


def token_rewards(completion: CompletionCredit, alpha: float) -> tuple[Floats, Ledger]:
    """Reward of each token: the value of a unit at its last token, the rest at the last trainable token.

        R_t = KL_t + α·u_j at the last token of unit j
        and at the last trainable token + (1 − α)·v(P) + other_reward + α·(v(P) − v(∅) − Σu)

    Args:
        completion: One completion.
        alpha: α, 0 ≤ α ≤ 1: how much of the reward is shared out to the units.

    Returns:
        R, shape (T,), float64, reward units, exactly 0 at tokens that are not trainable; and the ledger, whose total
        is the sum of R within 1e-12 of the largest number in it. A completion without values or units has
        v(P) − α·v(∅) at its last trainable token in place of every term but KL and other_reward. Without v(∅) α is 0.
        Without a trainable token R is 0 throughout, and the ledger says what the completion returns all the same.

    Raises:
        ValueError: If α is not in [0, 1].

    Cost:
        O(T + n).

    Reference:
        SCAR, arXiv:2505.20417: R_t = KL_t + α·SV_t + (1 − α)·r at the last token.

    Differs from the paper:
        The published code leaves out the dense part of a completion that it cannot decompose and keeps (1 − α)·r, so
        that the return of such a completion is on another scale; here the sum is the same law for all of them. A value
        that is not efficient leaves its rest to the last token.
        The sum of all token rewards is preserved, not the rewards to come: values are computed from the finished
        completion, so a learner that judges a token by its return-to-go can prefer a worse text. Values of prefixes,
        which are differences of a function of what is written, do not have that defect.
    """
    parts = _ledger(completion, alpha)
    units = completion.units
    trainable = np.flatnonzero(units.trainable)
    rewards = np.zeros(units.n_tokens)
    if not trainable.size:
        return rewards, parts
    rewards[trainable] = completion.kl_terms
    values = _shared_out(completion)
    if values is not None:
        rewards[units.tokens[:, 1] - 1] += parts.alpha * values
    rewards[trainable[-1]] += math.fsum([parts.terminal, parts.other_reward, parts.remainder])
    return rewards, parts


def token_densities(completion: CompletionCredit, alpha: float) -> Floats:
    """What each token is worth on the scale of the whole reward: the form of the credit that GRPO takes.

        D_t = α·T·u_j/ℓ_j + (1 − α)·v(P) + other_reward + α·(v(P) − v(∅) − Σu)        for the ℓ_j tokens of unit j

    with T the trainable tokens.

    Args:
        completion: One completion.
        alpha: α, 0 ≤ α ≤ 1.

    Returns:
        D, shape (T,), float64, reward units, exactly 0 at tokens that are not trainable. The mean over trainable tokens
        is v(P) + other_reward − α·v(∅) within 1e-12 of the largest D. A completion without values or units, or without
        v(∅) (then α is 0), has that number at every trainable token. KL terms are not in it.

    Raises:
        ValueError: If α is not in [0, 1].

    Cost:
        O(T + n).

    Reference:
        SCAR, arXiv:2505.20417, which trains with PPO.

    Differs from the paper:
        This form is creditd's: with α = 0 it is the reward of the response, as GRPO has it.
    """
    parts = _ledger(completion, alpha)
    units = completion.units
    constant = math.fsum([parts.terminal, parts.other_reward, parts.remainder])
    densities = np.where(units.trainable, constant, 0.0)
    values = _shared_out(completion)
    if values is not None:
        lengths = units.lengths
        # Units hold all trainable tokens, in order.
        per_token = parts.alpha * int(lengths.sum()) * values / lengths
        densities[units.trainable] += np.repeat(per_token, lengths)
    return densities


def grouped_advantages(
    densities: Sequence[Floats],
    trainable: Sequence[Booleans],
    totals: Floats,
    groups: Integers,
    n_groups: int,
    *,
    ddof: int = 1,
    epsilon: float = 1e-4,
) -> tuple[list[Floats], Integers]:
    """Advantage of each token within its group.

        Â_t = (D_t − μ)/(s + ε)

    with μ the mean over the completions of the group of the means of their D, each completion once, and s the standard
    deviation of all D of the group about their own mean.

    Args:
        densities: D of each completion, N arrays of shape (T,), float64, reward units.
        trainable: Which tokens are trained, N arrays of shape (T,), bool; the others are not looked at.
        totals: Shape (N,), float64, reward units: the mean of each completion's D, its return without KL. A completion
            without trainable tokens counts in μ with it.
        groups: Shape (N,), int64, each in [0, n_groups).
        n_groups: Number of groups.
        ddof: Degrees of freedom taken off the divisor of s.
        epsilon: ε, added to s, reward units.

    Returns:
        Â of each completion, N arrays of shape (T,), float64, exactly 0 at tokens that are not trainable; and per
        group, shape (n_groups,), int64, bits of `Flag`. The mean over completions of the token means of Â is 0 within
        1e-12 of the largest D over the denominator, where all have trainable tokens. Where D is one number in each
        completion, Â is the GRPO advantage times one positive factor of the group. A group without contrast, its D
        deviating by less than 1e-12 of the largest, gives exactly 0, flagged; a group of one completion keeps the
        contrast between its tokens, flagged. A group depends neither on the others nor on the order of its completions,
        to the last bit.

    Raises:
        ValueError: If the columns do not fit, a number is not finite or beyond 1e100 in magnitude, or ddof or ε is
            negative.

    Cost:
        O(ΣT log ΣT).

    Reference:
        GRPO, arXiv:2402.03300; SCAR, arXiv:2505.20417.

    Differs from the paper:
        SCAR has no such form. s counts every token, where GRPO's standard deviation counts every response: the factor
        between them is one per group.
    """
    if not len(densities) == len(trainable) == len(totals) == len(groups):
        raise ValueError(
            f"got {len(densities)} densities, {len(trainable)} masks, {len(totals)} totals and {len(groups)} groups; "
            "expected one of each for each completion"
        )
    if ddof < 0 or epsilon < 0:
        raise ValueError(f"ddof and epsilon must not be negative: got {ddof} and {epsilon}")
    of_completion = Groups(groups, n_groups)
    lengths = np.array([int(mask.sum()) for mask in trainable], dtype=np.int64)
    flat = np.concatenate([np.empty(0), *(each[mask] for each, mask in zip(densities, trainable, strict=True))])
    _check("densities", flat)
    _check("totals", totals)
    of_token = Groups(np.repeat(groups, lengths), n_groups)
    # Measured from the lowest D of the group, so that neither a large offset nor a completion that trains nothing costs
    # digits of the contrast.
    lowest = np.where(of_token.counts > 0, -group_maxima(-flat, of_token), 0.0)
    above, totals_above = flat - lowest[of_token.index], totals - lowest[groups]
    # In units of a power of two near the range of the group, so that the squares of small D do not vanish.
    exponents = np.frexp(np.maximum(group_maxima(above, of_token), 0.0))[1]
    scaled = np.ldexp(above, -exponents[of_token.index])
    spread = np.ldexp(group_standard_deviations(scaled, of_token, ddof=ddof), exponents)
    degenerate = spread <= DEGENERATE_SPREAD * np.maximum(group_maxima(np.abs(flat), of_token), 0.0)
    denominators = np.where(degenerate, 1.0, spread + epsilon)
    centred = above - group_means(totals_above, of_completion)[of_token.index]
    advantages = np.where(degenerate[of_token.index], 0.0, centred / denominators[of_token.index])
    flags = np.where(degenerate, int(Flag.DEGENERATE_GROUP), 0)
    flags = flags | np.where(of_completion.counts == 1, int(Flag.SINGLE_RESPONSE), 0)
    found, start = [], 0
    for mask, length in zip(trainable, lengths.tolist(), strict=True):
        each = np.zeros(len(mask))
        each[mask] = advantages[start : start + length]
        found.append(each)
        start += length
    return found, flags.astype(np.int64)


def _shared_out(completion: CompletionCredit) -> Floats | None:
    """The values that the units of a completion get; None where it is not decomposed."""
    return None if completion.empty is None or completion.units.n_units == 0 else completion.values


def _ledger(completion: CompletionCredit, alpha: float) -> Ledger:
    """The parts of a completion's return."""
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha: got {alpha}, expected a number from 0 to 1")
    used = 0.0 if completion.empty is None else alpha
    empty = 0.0 if completion.empty is None else completion.empty
    kl = math.fsum(completion.kl_terms.tolist())
    kept = math.fsum([completion.grand, -used * empty])
    units, terminal, remainder = 0.0, 0.0, kept
    values = _shared_out(completion)
    if completion.empty is None:
        terminal, remainder = completion.grand, 0.0
    elif values is not None:
        units = used * math.fsum(values.tolist())
        terminal = (1.0 - used) * completion.grand
        remainder = used * math.fsum([completion.grand, -empty, *(-values).tolist()])
    return Ledger(
        kl=kl,
        other_reward=completion.other_reward,
        units=units,
        terminal=terminal,
        remainder=remainder,
        total=math.fsum([kl, completion.other_reward, kept]),
        alpha=used,
    )


def _check(name: str, numbers: Floats) -> None:
    """Refuse what the arithmetic cannot take."""
    beyond = ~(np.abs(numbers) <= MAX_MAGNITUDE)
    if beyond.any():
        raise ValueError(
            f"{name}: got {numbers[beyond][0]}, expected finite numbers of magnitude at most {MAX_MAGNITUDE:g}"
        )
