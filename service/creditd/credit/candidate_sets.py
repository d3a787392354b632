"""A batch of candidate sets as columns, the checks of its values, and which of its candidates play.

Legend: `B` sets, `C` candidates over all sets (ragged, by row splits). A set whose values are wrong fails alone,
with a code and the place of the offence; nothing in here loops over the sets that are right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_features import CandidateFeatures
from creditd.credit.group_sums import MAX_MAGNITUDE
from creditd.credit.token_advantages import overlapping_candidates

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]

ErrorCode: TypeAlias = Literal[
    "non_finite_value",
    "shape_mismatch",
    "too_many_players",
    "group_size_mismatch",
    "group_incomplete",
    "invalid_request",
    "non_finite_utility",
    "budget_exceeded",
    "context_exceeded",
    "engine_failed",
]
ErrorField: TypeAlias = Literal[
    "reward",
    "label",
    "topics",
    "scores",
    "union",
    "span",
    "text",
    "prompt",
    "id",
    "utilities",
    "coalitions",
    "similarities",
    "set_reward",
    "n_tokens",
    "candidates",
    "group",
    "completion_mask",
    "set_advantage",
    "advantage_slope",
    "inside",
    "advantage",
    "units",
    "unit_values",
    "tree",
    "sensitivities",
]

USABLE = f"a finite number of magnitude at most {MAX_MAGNITUDE:g}"


@dataclass(frozen=True)
class RewardPart:
    """One of several named rewards of all candidates.

    Attributes:
        weight: Its weight, finite.
        rewards: Shape (C,), float64, reward units; NaN where missing.
    """

    weight: float
    rewards: Floats


@dataclass(frozen=True)
class CandidateSets:
    """B candidate sets, column by column.

    Attributes:
        rewards: Shape (C,), float64, reward units; NaN where missing. Ignored by tables, and by utilities that are made
            of features alone.
        row_splits: Shape (B + 1,), int64, from 0 to C, non-decreasing: set b holds candidates row_splits[b] … [b +
            1] − 1.
        groups: Shape (B,), int64 in [0, n_groups): sets of one prompt share a number.
        n_groups: Number of groups.
        missing: Shape (C,), bool; True where the reward is null: the candidate was not scored. None: none is.
        spans: Shape (C, 2), int64, half-open token ranges; (0, 0) for a candidate without tokens. None: no tokens
            asked.
        n_tokens: Shape (B,), int64, completion tokens. None: no tokens asked.
        set_rewards: Shape (B,), float64, rewards of whole responses; NaN where missing. None: there are none.
        set_rewards_missing: Shape (B,), bool; True where the reward of the response is null.
        text_codes: Shape (C,), int64; equal numbers in one set mean equal bytes, −1 an unknown text. None: unknown.
        ranks: Shape (C,), int64; the arithmetic on tables runs in ascending rank within a set. None: in the order
            given.
        tables: Shape (V,), float64: the 2^K utilities of each set, one set after another. None but for tables.
        table_splits: Shape (B + 1,), int64, row splits of `tables`.
        features: What is known of candidates beside their rewards. None: nothing.
        parts: The named rewards that are normalised one by one before they are summed; `rewards` is then their weighted
            sum. None: `rewards` is all there is.
    """

    rewards: Floats
    row_splits: Integers
    groups: Integers
    n_groups: int
    missing: Booleans | None = None
    spans: Integers | None = None
    n_tokens: Integers | None = None
    set_rewards: Floats | None = None
    set_rewards_missing: Booleans | None = None
    text_codes: Integers | None = None
    ranks: Integers | None = None
    tables: Floats | None = None
    table_splits: Integers | None = None
    features: CandidateFeatures | None = None
    parts: tuple[RewardPart, ...] | None = None

    def __post_init__(self) -> None:
        if self.row_splits[0] != 0 or self.row_splits[-1] != len(self.rewards) or (np.diff(self.row_splits) < 0).any():
            raise ValueError("row_splits must rise from 0 to the number of candidates")
        if len(self.groups) != self.n_sets:
            raise ValueError(f"groups must name one group per set: got {len(self.groups)}, expected {self.n_sets}")

    @property
    def n_sets(self) -> int:
        """Number of sets B."""
        return len(self.row_splits) - 1

    @cached_property
    def sizes(self) -> Integers:
        """Candidates listed in each set, shape (B,)."""
        return np.diff(self.row_splits)

    @property
    def reward_columns(self) -> tuple[Floats, ...]:
        """Every column of rewards, each of shape (C,): the named ones that are solved one by one, and their sum."""
        return (*(part.rewards for part in self.parts or ()), self.rewards)

    @cached_property
    def owner(self) -> Integers:
        """The set of each candidate, shape (C,)."""
        return np.repeat(np.arange(self.n_sets), self.sizes)

    @cached_property
    def position(self) -> Integers:
        """Position of each candidate within its set, shape (C,)."""
        return np.arange(len(self.rewards)) - np.repeat(self.row_splits[:-1], self.sizes)

    def per_set(self, candidates: Booleans) -> Integers:
        """How many candidates of each set are among some, shape (B,), from their mask of shape (C,)."""
        if candidates.all():
            return self.sizes
        return np.bincount(self.owner[candidates], minlength=self.n_sets) if candidates.any() else 0 * self.sizes


@dataclass(frozen=True)
class MalformedPolicy:
    """What happens to sets that are not as the prompt asked.

    Attributes:
        failure_reward: R of a response in which nothing was parsed or scored, reward units.
        extra: Candidates beyond `candidates`: `truncate` takes them out of the game, `score_all` keeps them.
        duplicates: Candidates of the same bytes: `keep` them as players, which share by symmetry, or `collapse` all
            but the first to null players with credit 0.
        candidates: K that the prompt asked for, or None. Fewer are fine: K_g is what was parsed.
    """

    failure_reward: float = 0.0
    extra: Literal["truncate", "score_all"] = "truncate"
    duplicates: Literal["keep", "collapse"] = "keep"
    candidates: int | None = None


@dataclass(frozen=True)
class SetError:
    """Why one set has no credit.

    Attributes:
        row: The set.
        code: Stable name of the kind of failure.
        field: The value that is wrong.
        position: Position of the offending candidate, or of the entry of a table, within its set; or None.
        detail: One sentence, "got …, expected …".
    """

    row: int
    code: ErrorCode
    field: ErrorField
    position: int | None
    detail: str


@dataclass(frozen=True)
class Players:
    """Which candidates play.

    Attributes:
        playing: Shape (C,), bool; True for a player of its set's game.
        copies: Shape (C,), bool; True for a collapsed duplicate: a null player with credit 0.
        truncated: Shape (C,), bool; True for a surplus candidate.
        unscored: Shape (C,), bool; True for a candidate with a null reward.
    """

    playing: Booleans
    copies: Booleans
    truncated: Booleans
    unscored: Booleans


class SetErrors:
    """The first error of each set, in the order in which the checks ran."""

    def __init__(self, n_sets: int, known: tuple[SetError, ...] = ()) -> None:
        self.failed = np.zeros(n_sets, dtype=np.bool_)
        self._first = {error.row: error for error in known}
        self.failed[list(self._first)] = True

    def add(self, error: SetError) -> None:
        """Fail one set, unless it has failed already."""
        if not self.failed[error.row]:
            self._first[error.row] = error
            self.failed[error.row] = True

    def add_sets(self, rows: Integers, code: ErrorCode, field: ErrorField, detail: Callable[[int], str]) -> None:
        """Fail whole sets; `detail` is asked for the sentence of a row that has no error yet."""
        if len(rows) == 0:
            return
        for row in rows[~self.failed[rows]].tolist():
            self._first[row] = SetError(row=row, code=code, field=field, position=None, detail=detail(row))
        self.failed[rows] = True

    def add_entries(
        self, splits: Integers, index: Integers, code: ErrorCode, field: ErrorField, detail: Callable[[int], str]
    ) -> None:
        """Fail the sets of the candidates, or table entries, named by their flat index into rows of these splits.

        The first of each set gives the error; `detail` is asked for the sentence of a flat index.
        """
        if len(index) == 0:
            return
        rows = np.searchsorted(splits, index, side="right") - 1
        fresh = ~self.failed[rows]
        found, first = np.unique(rows[fresh], return_index=True)
        for row, flat in zip(found.tolist(), index[fresh][first].tolist(), strict=True):
            place = flat - int(splits[row])
            self._first[row] = SetError(row=row, code=code, field=field, position=place, detail=detail(flat))
        self.failed[rows] = True

    def sorted(self) -> tuple[SetError, ...]:
        """All errors, by row."""
        return tuple(self._first[row] for row in sorted(self._first))


def check_candidate_sets(
    batch: CandidateSets,
    errors: SetErrors,
    *,
    kept: int | None,
    max_players: int,
    max_table_players: int,
    max_tokens: int | None,
) -> None:
    """Fail the sets whose own values cannot be used.

    Args:
        batch: The sets.
        errors: Receives at most one error per set.
        kept: Candidates that truncation leaves in a set with rewards, or None.
        max_players: Largest number of candidates of a set with rewards.
        max_table_players: Largest number of candidates of a set with a table.
        max_tokens: Largest number of completion tokens of a set, whose spans and counts must be sound. None: no token
            advantages are asked for.

    Cost:
        O(C log C), and a few microseconds per failing set.
    """
    limit = max_players if batch.tables is None else max_table_players
    sizes = batch.sizes if batch.tables is not None or kept is None else np.minimum(batch.sizes, kept)
    errors.add_sets(
        np.flatnonzero(sizes > limit),
        "too_many_players",
        "candidates",
        lambda row: f"the set holds {sizes[row]} candidates; expected at most {limit}",
    )
    if batch.tables is None:
        for rewards in batch.reward_columns:
            _check_rewards(batch, rewards, errors)
    else:
        _check_tables(batch, errors)
    if batch.set_rewards is not None:
        values = batch.set_rewards
        for code, wrong in unusable_numbers(values, batch.set_rewards_missing):
            errors.add_sets(
                np.flatnonzero(wrong),
                code,
                "set_reward",
                lambda row: f"set_reward is {number_name(values[row])}; expected {USABLE} or null",
            )
    if batch.ranks is not None:
        _check_ranks(batch, batch.ranks, errors)
    if max_tokens is not None:
        check_token_spans(batch, errors, max_tokens)


def find_players(batch: CandidateSets, malformed: MalformedPolicy, errors: SetErrors) -> Players:
    """Which candidates play, after surplus, unscored and duplicate ones are dealt with.

    Args:
        batch: The sets.
        malformed: The policy.
        errors: Receives sets in which one text has two rewards.

    Returns:
        Four masks over candidates. A candidate plays, or is a copy, or is left out; never two of these.

    Cost:
        O(C log C).
    """
    truncated = np.zeros(len(batch.rewards), dtype=np.bool_)
    if malformed.candidates is not None and malformed.extra == "truncate":
        truncated = batch.position >= malformed.candidates
    no_reward = batch.missing if batch.missing is not None and batch.tables is None else np.zeros_like(truncated)
    unscored = no_reward & ~truncated
    playing = ~truncated & ~unscored
    copies = np.zeros_like(playing)
    if malformed.duplicates == "collapse" and batch.text_codes is not None:
        known = np.flatnonzero(playing & (batch.text_codes >= 0))
        owner, codes = batch.owner[known], batch.text_codes[known]
        order = known[np.lexsort((known, codes, owner))]
        codes, owner = batch.text_codes[order], batch.owner[order]
        same = (codes[1:] == codes[:-1]) & (owner[1:] == owner[:-1])
        later, earlier = order[1:][same], order[:-1][same]
        for rewards in batch.reward_columns if batch.tables is None else ():
            differs = np.sort(later[rewards[later] != rewards[earlier]])
            errors.add_entries(
                batch.row_splits,
                differs,
                "invalid_request",
                "reward",
                lambda flat, rewards=rewards: (  # type: ignore[misc]
                    f"reward is {rewards[flat]} for a text that has another reward earlier in the set"
                ),
            )
        copies[later] = True
    return Players(playing=playing & ~copies, copies=copies, truncated=truncated, unscored=unscored)


def _check_rewards(batch: CandidateSets, rewards: Floats, errors: SetErrors) -> None:
    """Each reward is a usable number or missing."""
    for code, wrong in unusable_numbers(rewards, batch.missing):
        errors.add_entries(
            batch.row_splits,
            np.flatnonzero(wrong),
            code,
            "reward",
            lambda flat: f"reward is {number_name(rewards[flat])}; expected {USABLE} or null",
        )


def _check_tables(batch: CandidateSets, errors: SetErrors) -> None:
    """Each table has 2^K finite values."""
    tables, splits, sizes = batch.tables, batch.table_splits, batch.sizes
    if tables is None or splits is None:
        raise ValueError("a table utility needs tables and table_splits")
    lengths = np.diff(splits)
    usable = ~errors.failed
    errors.add_sets(
        np.flatnonzero(usable & (lengths != np.left_shift(1, np.where(usable, sizes, 0)))),
        "shape_mismatch",
        "utilities",
        lambda row: f"utilities holds {lengths[row]} values; expected 2**{sizes[row]} for {sizes[row]} candidates",
    )
    for code, wrong in unusable_numbers(tables, None):
        errors.add_entries(
            splits,
            np.flatnonzero(wrong),
            code,
            "utilities",
            lambda flat: f"utility is {number_name(tables[flat])}; expected {USABLE}",
        )


def _check_ranks(batch: CandidateSets, ranks: Integers, errors: SetErrors) -> None:
    """No two candidates of a set share a rank: their order, and so the last bits, would be those of the request."""
    order = np.lexsort((np.arange(len(ranks)), ranks, batch.owner))
    same = (ranks[order[1:]] == ranks[order[:-1]]) & (batch.owner[order[1:]] == batch.owner[order[:-1]])
    errors.add_entries(
        batch.row_splits,
        np.sort(order[1:][same]),
        "invalid_request",
        "id",
        lambda _: "an earlier candidate of the set has this id; expected different ones",
    )


def check_token_spans(batch: CandidateSets, errors: SetErrors, max_tokens: int) -> None:
    """Fail the sets whose token counts are out of range, or whose spans leave the completion or overlap.

    Args:
        batch: The sets, with spans and token counts.
        errors: Receives at most one error per set.
        max_tokens: Largest number of completion tokens of a set.

    Raises:
        ValueError: If there are no spans or no token counts.

    Cost:
        O(C log C).
    """
    if batch.spans is None or batch.n_tokens is None:
        raise ValueError("token advantages need spans and n_tokens")
    n_tokens, spans, owner = batch.n_tokens, batch.spans, batch.owner
    errors.add_sets(
        np.flatnonzero((n_tokens < 0) | (n_tokens > max_tokens)),
        "shape_mismatch",
        "n_tokens",
        lambda row: f"n_tokens is {n_tokens[row]}; expected 0 to {max_tokens}",
    )
    start, stop = spans[:, 0], spans[:, 1]
    outside = (start < 0) | (stop < start) | (stop > n_tokens[owner])
    errors.add_entries(
        batch.row_splits,
        np.flatnonzero(outside),
        "shape_mismatch",
        "span",
        lambda flat: (
            f"span is [{start[flat]}, {stop[flat]}]; expected 0 ≤ start ≤ stop ≤ n_tokens = {n_tokens[owner[flat]]}"
        ),
    )
    errors.add_entries(
        batch.row_splits,
        np.sort(overlapping_candidates(owner, start, stop)),
        "shape_mismatch",
        "span",
        lambda flat: f"span [{start[flat]}, {stop[flat]}] overlaps an earlier candidate; expected disjoint spans",
    )


def unusable_numbers(values: Floats, missing: Booleans | None) -> tuple[tuple[ErrorCode, Booleans], ...]:
    """Which numbers the arithmetic cannot take, by the code of their error.

    Args:
        values: Shape (N,), float64.
        missing: Shape (N,), bool; True where there is no number to judge. None: there is one everywhere.

    Returns:
        Masks of shape (N,): numbers that are not finite, and finite ones of a magnitude above 1e100. Nothing where
        every number can be taken.

    Cost:
        O(N).
    """
    if (np.abs(values) <= MAX_MAGNITUDE).all():
        return ()
    present = np.ones(values.shape, dtype=np.bool_) if missing is None else ~missing
    finite = np.isfinite(values)
    return (
        ("non_finite_value", present & ~finite),
        ("invalid_request", present & finite & (np.abs(values) > MAX_MAGNITUDE)),
    )


def number_name(value: float) -> str:
    """How an unusable number is called in a message.

    Args:
        value: The number.

    Returns:
        `NaN`, `Infinity`, `-Infinity`, or three digits of it.

    Cost:
        O(1).
    """
    if np.isnan(value):
        return "NaN"
    if np.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return f"{value:.3g}"
