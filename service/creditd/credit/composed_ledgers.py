"""Where the mass of candidates and of whole completions goes: the accounts of `composed_credit`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.composed_items import CandidateLedger, SetLedger, UnitLedger

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class InsideCredit:
    """What credit does inside one candidate of m units.

    Attributes:
        tokens: Advantages of its tokens that the policy chose, or None where they stay as they were.
        values: x, shape (m,), float64, reward units, or None.
        units: Tokens that the policy chose and advantage of each unit, both of shape (m,), or None.
        n_reweighted: As `CandidateLedger`.
        effective_share: As `CandidateLedger`.
        top_share: As `CandidateLedger`.
        flags: Bits of `Flag`.
    """

    tokens: Floats | None = None
    values: Floats | None = None
    units: tuple[Integers, Floats] | None = None
    n_reweighted: int | None = None
    effective_share: float | None = None
    top_share: float | None = None
    flags: int = 0


def candidate_ledger(
    tokens: Floats, advantage: float, length_weight: float, credit: float, inside: InsideCredit
) -> CandidateLedger:
    """The account of one candidate.

    Args:
        tokens: Advantages of its tokens that the policy chose, shape (L,), float64.
        advantage: A, or NaN where it has none.
        length_weight: ω.
        credit: φ, reward units, or NaN where it has none.
        inside: What credit does inside it.

    Returns:
        The account, whose sums are exact to the last rounding.

    Cost:
        O(L + m).
    """
    unit_sum = None if inside.values is None else math.fsum(inside.values.tolist())
    mass = None if math.isnan(advantage) else len(tokens) * length_weight * advantage
    total = math.fsum(tokens.tolist())
    units = None
    if inside.units is not None and inside.values is not None:
        columns = (inside.units[0].tolist(), inside.values.tolist(), inside.units[1].tolist())
        units = tuple(UnitLedger(length, value, length * one) for length, value, one in zip(*columns, strict=True))
    return CandidateLedger(
        tokens=len(tokens),
        length_weight=length_weight,
        credit=None if math.isnan(credit) else credit,
        unit_sum=unit_sum,
        credit_gap=None if unit_sum is None or math.isnan(credit) else unit_sum - credit,
        mass=mass,
        token_sum=total,
        mass_gap=None if mass is None else total - mass,
        absolute_mass=math.fsum(np.abs(tokens).tolist()),
        n_reweighted=inside.n_reweighted,
        effective_share=inside.effective_share,
        top_share=inside.top_share,
        units=units,
    )


def set_ledger(
    tokens: Floats,
    with_set_reward: Floats,
    of_candidates: Booleans,
    set_advantage: float,
    credit: tuple[float, float] | None,
    candidates: tuple[CandidateLedger, ...],
) -> SetLedger:
    """The account of one completion.

    Args:
        tokens: Advantages of its tokens that the policy chose, shape (T,), float64.
        with_set_reward: The same with the advantage of `set_reward`, shape (T,).
        of_candidates: Shape (T,), bool, True for tokens of candidates that have an advantage.
        set_advantage: A^set.
        credit: Σ φ and v(N) − v(∅), reward units, or None where there are no rewards.
        candidates: The accounts of its candidates.

    Returns:
        The account, whose sums are exact to the last rounding.

    Cost:
        O(T).
    """
    inside, others = math.fsum(tokens[of_candidates].tolist()), math.fsum(tokens[~of_candidates].tolist())
    set_mass = len(tokens) * set_advantage
    return SetLedger(
        credit_sum=None if credit is None else float(credit[0]),
        utility_gain=None if credit is None else float(credit[1]),
        credit_gap=None if credit is None else float(credit[0] - credit[1]),
        tokens=len(tokens),
        set_mass=set_mass,
        candidate_mass=inside,
        other_mass=others,
        set_reward_mass=math.fsum((with_set_reward - tokens).tolist()),
        total=math.fsum(with_set_reward.tolist()),
        mass_gap=inside + others - set_mass,
        candidates=candidates,
    )
