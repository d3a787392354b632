"""Token advantages of many completions from how much their answers depend on their reasoning.

Legend: `N` completions in `n_groups` groups; of one of them `T` tokens, of which `R` are reweighted.

Weights are a matter of one completion alone: neither its company nor its place in the batch changes them. Only the
advantages that are computed from rewards compare the completions of a group.

Reference: OAR, arXiv:2601.07408.
Differs from the paper: see `reshaping`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.flags import Flag
from creditd.credit.group_advantages import GRPO_EPSILONS, GroupRule, group_advantages
from creditd.credit.reshaping import ReshapeOptions, reshape_weights
from creditd.credit.sensitivity_items import (
    SensitivityCredit,
    SensitivityCredits,
    SensitivityError,
    SensitivityErrorCode,
    SensitivityField,
    SensitivityItem,
    item_error,
    reweighted,
)
from creditd.credit.whitening import Whitening

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class GroupRuleOptions:
    """How rewards become advantages of whole completions, as `group_advantages` takes it."""

    rule: GroupRule = "grpo"
    ddof: int = 1
    epsilon: float = GRPO_EPSILONS["trl"]
    k: int | None = None
    threshold: float | None = None
    whitening: Whitening | None = Whitening()


@dataclass(frozen=True)
class SensitivityCreditOptions:
    """How completions get their token advantages.

    Attributes:
        reshape: From sensitivities to weights.
        least_range: Range of log1p(I) up to which sensitivities are flat, as `reshape_weights` takes it.
        advantage: From rewards to advantages.
        group_size: Completions that each group has to have, or None.
        fail_incomplete_groups: Whether a completion that failed takes its group with it.
    """

    reshape: ReshapeOptions = field(default_factory=ReshapeOptions)
    least_range: float = 0.0
    advantage: GroupRuleOptions = field(default_factory=GroupRuleOptions)
    group_size: int | None = None
    fail_incomplete_groups: bool = False


def reshaped_advantages(
    items: Sequence[SensitivityItem],
    groups: Integers,
    n_groups: int,
    sensitivities: Sequence[Floats | None],
    advantages: Floats,
    options: ReshapeOptions,
    *,
    least_range: float = 0.0,
    spreads: Sequence[float | None] | None = None,
    group_flags: Integers | None = None,
    checkpoint: Callable[[], None] = lambda: None,
) -> list[SensitivityCredit]:
    """Token advantages of completions whose advantages and sensitivities are known and sound.

        Â_t = A·w_t,  w_t = `reshape_weights` of the reweighted tokens, 1 for other trainable tokens, 0 for the rest

    Args:
        items: N completions without an error (`item_error`).
        groups: Shape (N,), int64, each in [0, n_groups).
        n_groups: Number of groups.
        sensitivities: N arrays of shape (R,), float64, of the tokens that `reweighted` names; None where R = 0.
        advantages: A, shape (N,), float64.
        options: From sensitivities to weights.
        least_range: As `reshape_weights` takes it.
        spreads: Standard errors of the sensitivities over their means, where they are known.
        group_flags: Shape (n_groups,), int64: bits of `Flag` that the completions of each group have.
        checkpoint: Called before each completion; what it raises ends the work.

    Returns:
        One per completion. Where mass is preserved, token advantages sum to A times the number of trainable tokens and
        their magnitudes to |A| times that number, to 1e-12 of it; no sign differs from A's. Flat sensitivities
        (flagged), no reweighted token and no answer (flagged) give A on each trainable token. Equal completions get
        equal weights to the last bit, in any batch.

    Raises:
        ValueError: If a number of rows or of tokens does not fit, or a sensitivity is not finite.

    Cost:
        O(Σ T + Σ R log R).

    Reference:
        OAR, arXiv:2601.07408.

    Differs from the paper:
        Only in the reshaping, see `reshape_weights`.
    """
    rows = len(items)
    if not len(groups) == len(sensitivities) == len(advantages) == rows:
        got = f"{len(groups)} groups, {len(sensitivities)} sensitivities and {len(advantages)} advantages"
        raise ValueError(f"got {got}; expected {rows} of each")
    flags = np.zeros(n_groups, dtype=np.int64) if group_flags is None else group_flags
    known = [None] * rows if spreads is None else spreads
    found = []
    for row, item in enumerate(items):
        checkpoint()
        advantage, bits = float(advantages[row]), int(flags[groups[row]])
        found.append(_credited(item, sensitivities[row], advantage, options, least_range, known[row], bits))
    return found


class SensitivityBatch:
    """Completions whose sensitivities come from outside: what is `wanted` is told, then `answer`.

    Not for several threads at a time. What is answered is a function of the arguments and of what was told, and not of
    the order in which that came.
    """

    def __init__(
        self,
        items: Sequence[SensitivityItem | None],
        groups: Integers,
        n_groups: int,
        options: SensitivityCreditOptions,
        rejected: Sequence[SensitivityError] = (),
    ) -> None:
        """Check every completion; nothing is measured.

        Args:
            items: N completions; None where one is rejected.
            groups: Shape (N,), int64, each in [0, n_groups): which completions are compared.
            n_groups: Number of groups.
            options: How they get their advantages.
            rejected: Completions that are wrong already.

        Cost:
            O(Σ T).
        """
        self._items, self._groups, self._n_groups = tuple(items), groups, n_groups
        self._options = options
        self._errors = {error.row: error for error in rejected}
        self._told: dict[int, tuple[Floats, float | None]] = {}
        for row, item in enumerate(items):
            error = None if item is None or row in self._errors else item_error(row, item)
            if error is not None:
                self._errors[row] = error
        self._check_sizes()
        if options.fail_incomplete_groups:
            self._fail_incomplete_groups()
        self._positions = {
            row: reweighted(item) for row, item in enumerate(items) if item is not None and row not in self._errors
        }

    @property
    def errors(self) -> tuple[SensitivityError, ...]:
        """Completions that have no answer so far, by row."""
        return tuple(self._errors[row] for row in sorted(self._errors))

    @property
    def wanted(self) -> tuple[int, ...]:
        """Completions whose sensitivities are not known yet, by row; those without a token to reweight want none."""
        return tuple(row for row in self._positions if self._wants(row))

    def positions(self, row: int) -> Integers:
        """Tokens of a completion without an error that are reweighted, shape (R,), int64, ascending."""
        return self._positions[row]

    def tell(self, row: int, sensitivities: Floats, spread: float | None = None) -> None:
        """Take the sensitivities of one completion that is wanted.

        Args:
            row: The completion.
            sensitivities: Shape (R,), float64, of the tokens that `positions` names. One that is not finite fails the
                completion.
            spread: Their standard error over their mean, where it is known.

        Raises:
            ValueError: If the completion is not wanted, or the number of sensitivities is another.
        """
        if not self._wants(row):
            raise ValueError(f"completion {row} wants no sensitivities")
        positions = self._positions[row]
        if sensitivities.shape != positions.shape:
            raise ValueError(f"completion {row}: got shape {sensitivities.shape}, expected {positions.shape}")
        wrong = np.flatnonzero(~np.isfinite(sensitivities))
        if len(wrong):
            token = int(positions[wrong[0]])
            detail = f"no finite sensitivity at token {token}; expected one for each token that is reweighted"
            self.fail(row, "non_finite_value", "sensitivities", detail, position=token)
            return
        self._told[row] = (np.asarray(sensitivities, dtype=np.float64), spread)

    def fail(
        self,
        row: int,
        code: SensitivityErrorCode,
        of: SensitivityField,
        detail: str,
        *,
        position: int | None = None,
    ) -> None:
        """Take that one completion has no answer, and why; what was said of it first counts."""
        self._errors.setdefault(row, SensitivityError(row, code, of, position, detail))

    def answer(self, checkpoint: Callable[[], None] = lambda: None) -> SensitivityCredits:
        """Every number, once nothing is wanted.

        Args:
            checkpoint: Called before each completion; what it raises ends the work.

        Raises:
            ValueError: If something is wanted.
        """
        if self.wanted:
            raise ValueError("some sensitivities are not known yet: tell them first")
        if self._options.fail_incomplete_groups:
            self._fail_incomplete_groups()
        rows = [row for row in self._positions if row not in self._errors]
        sound = [item for row in rows if (item := self._items[row]) is not None]
        advantages, flags = self._advantages()
        told = [self._told.get(row, (None, None)) for row in rows]
        credited = reshaped_advantages(
            sound,
            self._groups[rows],
            self._n_groups,
            [sensitivities for sensitivities, _ in told],
            advantages[rows],
            self._options.reshape,
            least_range=self._options.least_range,
            spreads=[spread for _, spread in told],
            group_flags=flags,
            checkpoint=checkpoint,
        )
        found: list[SensitivityCredit | None] = [None] * len(self._items)
        for row, credit in zip(rows, credited, strict=True):
            found[row] = credit
        return SensitivityCredits(tuple(found), self.errors)

    def _wants(self, row: int) -> bool:
        """Whether a completion has something to measure that is not told yet."""
        missing = row in self._positions and row not in self._told and row not in self._errors
        return missing and len(self._positions[row]) > 0

    def _advantages(self) -> tuple[Floats, Integers]:
        """Advantages of all completions, NaN of those that failed, and flags of the groups.

        A completion that failed is left out of its group, which is flagged, if advantages are computed.
        """
        count = len(self._items)
        advantages, rewards = np.full(count, np.nan), np.zeros(count)
        compared = np.zeros(count, dtype=np.bool_)
        rewarded = False
        for row, item in enumerate(self._items):
            if item is None:
                continue
            rewarded = rewarded or item.reward is not None
            if row in self._errors:
                continue
            if item.reward is None:
                advantages[row] = np.nan if item.advantage is None else item.advantage
            else:
                rewards[row], compared[row] = item.reward, True
        if not rewarded:
            return advantages, np.zeros(self._n_groups, dtype=np.int64)
        choice = self._options.advantage
        computed = group_advantages(
            rewards,
            self._groups,
            self._n_groups,
            rule=choice.rule,
            ddof=choice.ddof,
            epsilon=choice.epsilon,
            k=choice.k,
            threshold=choice.threshold,
            whitening=choice.whitening,
            n_tokens=self._n_trainable(),
            missing=~compared,
        )
        return np.where(compared, computed.advantages, advantages), computed.flags

    def _n_trainable(self) -> Integers:
        """Trainable tokens of each completion, shape (N,), int64."""
        return np.array([0 if item is None else int(item.trainable.sum()) for item in self._items], dtype=np.int64)

    def _check_sizes(self) -> None:
        """Fail the groups that are of another size than the caller is sure of."""
        expected = self._options.group_size
        if expected is None:
            return
        sizes = np.bincount(self._groups, minlength=self._n_groups).tolist()
        for row, group in enumerate(self._groups.tolist()):
            if sizes[group] != expected:
                detail = f"the group holds {sizes[group]} items in this request; expected {expected}"
                self.fail(row, "group_size_mismatch", "group", detail)

    def _fail_incomplete_groups(self) -> None:
        """Fail every completion of a group that lost one."""
        broken = {int(self._groups[row]) for row in self._errors}
        for row, group in enumerate(self._groups.tolist()):
            if group in broken:
                detail = "another item of this group failed; expected every item of the group to be sound"
                self.fail(row, "group_incomplete", "group", detail)


def _credited(
    item: SensitivityItem,
    sensitivities: Floats | None,
    advantage: float,
    options: ReshapeOptions,
    least_range: float,
    spread: float | None,
    flags: int,
) -> SensitivityCredit:
    """Return the token advantages of one completion."""
    positions = reweighted(item)
    values = np.empty(0, dtype=np.float64) if sensitivities is None else np.asarray(sensitivities, dtype=np.float64)
    if values.shape != positions.shape:
        raise ValueError(f"got sensitivities of shape {values.shape}; expected {positions.shape}")
    reshaped = reshape_weights(values, options, least_range=least_range)
    weights = item.trainable.astype(np.float64)
    weights[positions] = reshaped.weights
    measured = np.full(item.n_tokens, np.nan)
    measured[positions] = values
    if not item.answer_found:
        flags |= int(Flag.ANSWER_NOT_FOUND)
    if reshaped.flat and len(positions):
        flags |= int(Flag.FLAT_SENSITIVITY)
    return SensitivityCredit(
        token_advantages=np.where(item.trainable, advantage * weights, 0.0),
        weights=weights,
        sensitivities=measured,
        n_reweighted=len(positions),
        weight_sum=reshaped.weight_sum,
        effective_share=reshaped.effective_share,
        top_share=reshaped.top_share,
        spread=spread,
        reasoning=item.reasoning,
        answer=item.answer,
        advantage=advantage,
        flags=flags,
    )
