"""What is asked about the insides of candidates, and what is answered: the words of `composed_credit`.

Legend: `B` sets, `C` candidates over all sets, `T` tokens of one completion, `m` units of one candidate. The mass of
some tokens is the sum of their advantages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import CandidateSets, SetError
from creditd.credit.reshaping import ReshapeOptions
from creditd.credit.set_credit import SetCreditOptions
from creditd.credit.token_advantages import TokenPolicy

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class Additive:
    """Units get the candidate's advantage plus what their credit deviates from an even share.

    Attributes:
        share: λ in [0, 1].
    """

    type: ClassVar[str] = "additive"
    share: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a share outside its range."""
        _check_share(self.share)


@dataclass(frozen=True)
class Bounded:
    """Units get the candidate's advantage, raised or lowered by at most the part λ of it.

    Attributes:
        share: λ in [0, 1].
    """

    type: ClassVar[str] = "bounded"
    share: float = 0.5

    def __post_init__(self) -> None:
        """Refuse a share outside its range."""
        _check_share(self.share)


@dataclass(frozen=True)
class BySensitivity:
    """Tokens get the candidate's advantage times a weight, by how much the outcome depends on them.

    Attributes:
        reshape: How sensitivities become weights.
    """

    type: ClassVar[str] = "sensitivity"
    reshape: ReshapeOptions = field(default_factory=ReshapeOptions)


Inside: TypeAlias = Additive | Bounded | BySensitivity


def _check_share(share: float) -> None:
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share: got {share}, expected 0 ≤ share ≤ 1")


@dataclass(frozen=True)
class CandidateParts:
    """What is known of the inside of one candidate.

    Attributes:
        units: Shape (m, 2), int64: half-open ranges of tokens of the completion, ordered and disjoint, that hold every
            token of the candidate which the policy chose, one at least in each.
        values: Shape (m,), float64, reward units: the credit of each unit.
        utilities: Shape (2^m,), float64, reward units: what the text of each coalition of units is worth, bit j of the
            index is unit j; instead of `values`. The number for no unit is not looked at.
        tree: Shape (m − 1, 2), int64: merges of the units, as `owen_trees`, beside `utilities`. None: no tree.
        sensitivities: Shape (tokens of the span,), float64: how much the outcome depends on each; NaN for a token that
            is not reweighted, such as one of the answer. Instead of units.
    """

    units: Integers | None = None
    values: Floats | None = None
    utilities: Floats | None = None
    tree: Integers | None = None
    sensitivities: Floats | None = None


@dataclass(frozen=True)
class ComposedSets:
    """B candidate sets with what is known of the insides of their candidates.

    Attributes:
        sets: The sets, with spans and token counts.
        parts: One per candidate, C of them; None where nothing is known of its inside.
        masks: One per set: shape (T,), bool, True for a token that the policy chose; None: all are.
        inside: One per set: how credit gets inside its candidates; None: `Additive`, and `Bounded` beside given
            advantages.
        advantages: Shape (C,), float64: A of each candidate as the caller has it, NaN where it has none. None: they are
            computed from the credits.
        set_advantages: Shape (B,), float64: A^set, needed beside given advantages; NaN where it is missing.
        slopes: Shape (B,), float64, per reward unit: s beside given advantages, NaN where there is none.
        scored: Whether the rewards of `sets` are rewards, so that there are credits; False beside given advantages
            alone.

    Raises:
        ValueError: If the columns differ in length.
    """

    sets: CandidateSets
    parts: tuple[CandidateParts | None, ...]
    masks: tuple[Booleans | None, ...]
    inside: tuple[Inside | None, ...]
    advantages: Floats | None = None
    set_advantages: Floats | None = None
    slopes: Floats | None = None
    scored: bool = True

    def __post_init__(self) -> None:
        """Refuse columns that do not fit each other."""
        n_candidates, n_sets = len(self.sets.rewards), self.sets.n_sets
        of_candidates = (self.parts, self.advantages)
        of_sets = (self.masks, self.inside, self.set_advantages, self.slopes)
        for columns, expected in ((of_candidates, n_candidates), (of_sets, n_sets)):
            for column in columns:
                if column is not None and len(column) != expected:
                    raise ValueError(f"got a column of {len(column)} entries, expected {expected}")

    def inside_of(self, row: int) -> Inside:
        """How credit gets inside the candidates of a set."""
        return self.inside[row] or (Additive() if self.advantages is None else Bounded())


@dataclass(frozen=True)
class UnitError(SetError):
    """Why one set has no answer, where the inside of a candidate, or a mask, is at fault.

    Attributes:
        entry: Place of the offending entry of the field, or None.
    """

    entry: int | None = None


@dataclass(frozen=True)
class ComposeOptions:
    """Every choice of a request.

    Attributes:
        sets: How sets are solved and normalised; its `tokens` is not looked at.
        tokens: What tokens receive.
        max_units: Largest number of units of a candidate; with utilities also `sets.max_table_players`.
    """

    sets: SetCreditOptions = field(default_factory=SetCreditOptions)
    tokens: TokenPolicy = field(default_factory=TokenPolicy)
    max_units: int = 4096


@dataclass(frozen=True)
class UnitLedger:
    """What one unit has.

    Attributes:
        tokens: ℓ_j, tokens that the policy chose.
        value: x_j, reward units.
        mass: Mass of its tokens.
    """

    tokens: int
    value: float
    mass: float


@dataclass(frozen=True)
class CandidateLedger:
    """Where the mass of one candidate goes.

    Attributes:
        tokens: L_k, tokens that the policy chose.
        length_weight: ω_k.
        credit: φ_k, reward units; None without rewards, and for a candidate that is no player.
        unit_sum: Σ x_j, reward units; None without units.
        credit_gap: Σ x_j − φ_k; None where one of them is.
        mass: M_k = L_k·ω_k·A_k; None for a candidate without an advantage, whose tokens are other tokens.
        token_sum: Mass of its tokens, the advantage of `set_reward` not counted.
        mass_gap: token_sum − mass: rounding, but for weights whose mass is not kept. None where mass is.
        absolute_mass: Σ |Â| of its tokens.
        n_reweighted: Tokens that were weighed against each other by sensitivity; None without sensitivities.
        effective_share: (Σ w)²/(n·Σ w²) of the weights of these n, or None.
        top_share: What the tenth of these with the largest weights holds of them, or None.
        units: Its units; None without.
    """

    tokens: int
    length_weight: float
    credit: float | None
    unit_sum: float | None
    credit_gap: float | None
    mass: float | None
    token_sum: float
    mass_gap: float | None
    absolute_mass: float
    n_reweighted: int | None
    effective_share: float | None
    top_share: float | None
    units: tuple[UnitLedger, ...] | None


@dataclass(frozen=True)
class SetLedger:
    """Where the mass of one completion goes.

    Attributes:
        credit_sum: Σ φ_k, reward units; None without rewards.
        utility_gain: v(N) − v(∅), reward units; None without rewards.
        credit_gap: Σ φ_k − (v(N) − v(∅)): rounding for efficient credits, a fact of the others.
        tokens: Tokens that the policy chose.
        set_mass: tokens·A^set, what plain group advantages would give.
        candidate_mass: Σ of the candidates' `token_sum`, of those with an advantage.
        other_mass: Mass of all other tokens.
        set_reward_mass: What the advantage of `set_reward` adds.
        total: Σ of all token advantages.
        mass_gap: candidate_mass + other_mass − set_mass.
        candidates: One per candidate.
    """

    credit_sum: float | None
    utility_gain: float | None
    credit_gap: float | None
    tokens: int
    set_mass: float
    candidate_mass: float
    other_mass: float
    set_reward_mass: float
    total: float
    mass_gap: float
    candidates: tuple[CandidateLedger, ...]


@dataclass(frozen=True)
class ComposedCredit:
    """Everything about one set of K candidates.

    Attributes:
        credits: φ, shape (K,), float64, reward units, NaN for a candidate that is no player; None without rewards.
        advantages: A, shape (K,), float64, NaN for a candidate without one.
        set_advantage: A^set, computed or as it was given.
        set_reward_advantage: GRPO advantage of `set_reward` before its weight, or None.
        token_advantages: Â, shape (T,), float64; exactly 0 where the mask is False.
        unit_values: One per candidate: x, shape (m,), float64, reward units, or None.
        utility_empty: v(∅), reward units; None without rewards.
        utility_grand: v(N), reward units; None without rewards.
        ledger: Where the mass goes.
        flags: Bits of `Flag`.
    """

    credits: Floats | None
    advantages: Floats
    set_advantage: float
    set_reward_advantage: float | None
    token_advantages: Floats
    unit_values: tuple[Floats | None, ...]
    utility_empty: float | None
    utility_grand: float | None
    ledger: SetLedger
    flags: int


@dataclass(frozen=True)
class ComposedCredits:
    """Answers to B sets.

    Attributes:
        items: One per set; None for one that failed.
        errors: At most one per set, by row.
    """

    items: tuple[ComposedCredit | None, ...]
    errors: tuple[SetError, ...]
