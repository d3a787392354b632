"""From request bodies to the arrays of `creditd.credit`, and from its answers to pointers.

One translation for the service and for the client's local mode, so that both give the same numbers and the same errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import (
    CandidateSets,
    Expectation,
    MalformedPolicy,
    SetError,
)
from creditd.credit.credit_rules import (
    Blend,
    CreditRule,
    EndRule,
    LeaveOneOut,
    MaxAtK,
    Mixture,
    OwnReward,
    PrefixGain,
    SetReward,
    Shapley,
)
from creditd.credit.games import Table, Utility
from creditd.credit.order_statistics import Max, Mean, Min, RthBest, Sum, Threshold, TopM
from creditd.credit.set_advantages import Normalization
from creditd.credit.set_credit import SetCreditOptions
from creditd.credit.token_advantages import TokenPolicy
from creditd.wire import v1
from creditd.wire.errors import ErrorCode
from creditd.wire.validation import wire_error

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]

_UTILITIES: dict[str, type[Utility]] = {
    utility.type: utility for utility in (Max, Min, Sum, Mean, TopM, RthBest, Threshold, Table)
}
_PLAIN_RULES: dict[str, type[Shapley | LeaveOneOut | OwnReward | SetReward | PrefixGain]] = {
    rule.type: rule for rule in (Shapley, LeaveOneOut, OwnReward, SetReward, PrefixGain)
}
UTILITY_NAMES = tuple(_UTILITIES)
CREDIT_NAMES = (*_PLAIN_RULES, MaxAtK.type, Mixture.type, Blend.type)


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for.

    Attributes:
        sets: Sets, or rows of responses.
        candidates: Candidates of one set with rewards.
        table_candidates: Candidates of one set with a table.
        token_advantages: Token advantages of all sets together.
        tokens_per_set: Completion tokens of one set.
    """

    sets: int = v1.MAX_SETS
    candidates: int = 256
    table_candidates: int = 12
    token_advantages: int = 1 << 22
    tokens_per_set: int = 131_072


@dataclass(frozen=True)
class SetBatch:
    """A request's sets, ready to be solved.

    Attributes:
        sets: The columns.
        rejected: Sets that lack something the request needs.
        ids: The callers' names of the sets, or None.
        sizes_from: Pointer to the column that says how many candidates each set has.
        by_rows: Whether that column is a list of rows instead of flat values with row splits.
        tables_by_rows: The same of the column of tables.
        nested: Whether the request came as `sets`.
    """

    sets: CandidateSets
    rejected: tuple[SetError, ...]
    ids: Sequence[str | int | None] | None
    sizes_from: str
    by_rows: bool
    tables_by_rows: bool
    nested: bool

    def pointer(self, error: SetError) -> str:
        """JSON pointer to what is wrong with a set, in the form in which the request came."""
        return _nested_pointer(error) if self.nested else self._column_pointer(error)

    def _column_pointer(self, error: SetError) -> str:
        row, position = error.row, error.position
        if error.field == "candidates":
            return f"{self.sizes_from}/{row}" if self.by_rows else f"{self.sizes_from}/row_splits/{row + 1}"
        if error.field == "utilities":
            return self._table_pointer(row, position)
        if position is None:
            column = {"set_reward": "set_rewards", "group": "groups"}.get(error.field, error.field)
            return f"/columns/{column}/{row}"
        flat = int(self.sets.row_splits[row]) + position
        if error.field == "reward" and self.by_rows:
            return f"/columns/rewards/{row}/{position}"
        column = {"span": "spans/starts", "id": "candidate_ids", "reward": "rewards/values"}[error.field]
        return f"/columns/{column}/{flat}"

    def _table_pointer(self, row: int, position: int | None) -> str:
        splits = self.sets.table_splits
        if self.tables_by_rows:
            return f"/columns/utilities/{row}" + ("" if position is None else f"/{position}")
        if position is None or splits is None:
            return f"/columns/utilities/row_splits/{row + 1}"
        return f"/columns/utilities/values/{int(splits[row]) + position}"


def options_of(request: v1.ShapleyRequest, limits: RequestLimits) -> SetCreditOptions:
    """The choices of a request as the arithmetic's own types.

    Args:
        request: A valid request.
        limits: Bounds on the sizes of its sets.

    Returns:
        Options whose defaults are the wire's.

    Raises:
        WireError: If two choices contradict each other.
    """
    tokens = request.tokens
    try:
        utility = _utility_of(request.utility)
    except ValueError as error:
        raise wire_error(ErrorCode.INVALID_REQUEST, "/utility", str(error)) from None
    try:
        normalization = Normalization(**request.advantage.model_dump())
    except ValueError as error:
        raise wire_error(ErrorCode.INVALID_REQUEST, "/advantage", str(error)) from None
    return SetCreditOptions(
        utility=utility,
        rule=_rule_of(request.credit),
        normalization=normalization,
        tokens=None if tokens is None else TokenPolicy(**tokens.model_dump()),
        malformed=MalformedPolicy(**request.malformed.model_dump()),
        expect=Expectation(**request.expect.model_dump()),
        fail_incomplete_groups=request.incomplete_group == "error",
        max_players=limits.candidates,
        max_table_players=limits.table_candidates,
        max_tokens_per_set=limits.tokens_per_set,
    )


def batch_of(request: v1.ShapleyRequest, limits: RequestLimits) -> SetBatch:
    """The sets of a request as columns.

    Args:
        request: A valid request.
        limits: Bounds; the number of token advantages is refused here, before anything is allocated for them.

    Returns:
        Columns whose shapes agree; values are not checked yet.

    Raises:
        WireError: If columns disagree in length, row splits are not, a needed column is absent, or only some sets name
            their group.
    """
    batch = _from_columns(request, request.columns) if request.columns is not None else _from_sets(request)
    check_rows(batch.sets.n_sets, limits)
    collapse = request.malformed.duplicates == "collapse"
    if collapse and batch.sets.text_codes is None and len(batch.sets.rewards):
        detail = "collapse recognises duplicates by their texts; expected the texts of the candidates"
        raise wire_error(ErrorCode.INVALID_REQUEST, "/malformed/duplicates", detail)
    if request.tokens is not None and batch.sets.n_tokens is not None:
        counts = batch.sets.n_tokens
        total = int(np.where((counts < 0) | (counts > limits.tokens_per_set), 0, counts).sum())
        if total > limits.token_advantages:
            raise wire_error(
                ErrorCode.BUDGET_EXCEEDED,
                "/tokens",
                f"more than {limits.token_advantages} token advantages are asked for; expected fewer per request",
            )
    return batch


def check_rows(n_rows: int, limits: RequestLimits) -> None:
    """Refuse a request of too many rows.

    Args:
        n_rows: Sets, or rows of responses.
        limits: Bounds.

    Raises:
        WireError: If there are more than the limit.
    """
    if n_rows > limits.sets:
        raise wire_error(
            ErrorCode.BUDGET_EXCEEDED, "", f"got {n_rows} rows; expected at most {limits.sets} per request"
        )


def _utility_of(choice: v1.UtilityChoice) -> Utility:
    fields = choice.model_dump()
    return _UTILITIES[fields.pop("type")](**fields)


def _rule_of(choice: v1.CreditChoice) -> CreditRule:
    if isinstance(choice, v1.BlendCredit):
        return Blend(start=_end_of(choice.from_), end=_end_of(choice.to), position=choice.position)
    return _end_of(choice)


def _end_of(choice: v1.EndChoice) -> EndRule:
    if isinstance(choice, v1.MaxAtKCredit):
        return MaxAtK(k=choice.k)
    if isinstance(choice, v1.MixtureCredit):
        return Mixture(weights=tuple(choice.weights))
    return _PLAIN_RULES[choice if isinstance(choice, str) else choice.type]()


def numbers_or_missing(values: Sequence[float | None]) -> tuple[Floats, Booleans | None]:
    """Numbers with NaN for null, and where the nulls are (None when there is none).

    Args:
        values: Numbers and nulls.

    Returns:
        Two arrays of the same length. A NaN that the caller sent is not a null.
    """
    array = np.array(values, dtype=np.float64)
    if not np.isnan(array).any():
        return array, None
    missing = np.fromiter((value is None for value in values), dtype=np.bool_, count=len(values))
    return array, missing if missing.any() else None


def numbered(names: Iterable[str | int]) -> tuple[Integers, int]:
    """Each name as the number of its first occurrence, and how many different names there are."""
    seen: dict[str | int, int] = {}
    numbers = np.array([seen.setdefault(name, len(seen)) for name in names], dtype=np.int64)
    return numbers, len(seen)


def _from_columns(request: v1.ShapleyRequest, columns: v1.SetColumns) -> SetBatch:
    table = request.utility.type == "table"
    tables, table_splits = _column_tables(columns) if table else (None, None)
    if columns.rewards is not None:
        values, splits = _flat(columns.rewards, "/columns/rewards")
        rewards, missing = numbers_or_missing(values)
    elif table_splits is not None:
        splits = _splits([max(int(length).bit_length() - 1, 0) for length in np.diff(table_splits)])
        rewards, missing = np.full(splits[-1], np.nan), None
    else:
        raise wire_error(ErrorCode.INVALID_REQUEST, "/columns/rewards", "the field is required")
    n_sets, n_candidates = len(splits) - 1, len(rewards)
    if n_sets < 1 or n_sets > v1.MAX_SETS:
        raise wire_error(
            ErrorCode.INVALID_REQUEST, "/columns/rewards", f"got {n_sets} sets; expected 1 to {v1.MAX_SETS}"
        )
    _check_lengths(request, columns, n_sets, n_candidates)
    if columns.utilities is not None and not table:
        raise wire_error(ErrorCode.INVALID_REQUEST, "/columns/utilities", "only the table utility takes this column")
    if table_splits is not None and len(table_splits) != len(splits):
        raise wire_error(
            ErrorCode.SHAPE_MISMATCH, "/columns/utilities", f"got {len(table_splits) - 1} tables; expected {n_sets}"
        )
    groups, n_groups = (np.arange(n_sets), n_sets) if columns.groups is None else numbered(columns.groups)
    set_rewards, set_missing = (None, None) if columns.set_rewards is None else numbers_or_missing(columns.set_rewards)
    spans = None
    if columns.spans is not None and request.tokens is not None:
        spans = np.array([columns.spans.starts, columns.spans.stops], dtype=np.int64).T
    return SetBatch(
        sets=CandidateSets(
            rewards=rewards,
            row_splits=splits,
            groups=groups,
            n_groups=n_groups,
            missing=missing,
            spans=spans,
            n_tokens=None if columns.n_tokens is None else np.array(columns.n_tokens, dtype=np.int64),
            set_rewards=set_rewards,
            set_rewards_missing=set_missing,
            text_codes=_text_codes(columns.texts),
            ranks=_ranks(columns.candidate_ids) if table and columns.candidate_ids is not None else None,
            tables=tables,
            table_splits=table_splits,
        ),
        rejected=(),
        ids=columns.ids,
        sizes_from="/columns/utilities" if columns.rewards is None else "/columns/rewards",
        by_rows=isinstance(columns.utilities if columns.rewards is None else columns.rewards, list),
        tables_by_rows=isinstance(columns.utilities, list),
        nested=False,
    )


def _column_tables(columns: v1.SetColumns) -> tuple[Floats, Integers]:
    """Utilities of all sets, and their row splits."""
    if columns.utilities is None:
        raise wire_error(ErrorCode.INVALID_REQUEST, "/columns/utilities", "the table utility needs this column")
    values, splits = _flat(columns.utilities, "/columns/utilities")
    return np.array(values, dtype=np.float64), splits


def _check_lengths(request: v1.ShapleyRequest, columns: v1.SetColumns, n_sets: int, n_candidates: int) -> None:
    """Every column has one entry per set or per candidate, and those that the request needs are there."""
    for name, column, expected in (
        ("groups", columns.groups, n_sets),
        ("ids", columns.ids, n_sets),
        ("n_tokens", columns.n_tokens, n_sets),
        ("set_rewards", columns.set_rewards, n_sets),
        ("texts", columns.texts, n_candidates),
        ("candidate_ids", columns.candidate_ids, n_candidates),
        ("spans/starts", columns.spans.starts if columns.spans else None, n_candidates),
        ("spans/stops", columns.spans.stops if columns.spans else None, n_candidates),
    ):
        if column is not None and len(column) != expected:
            raise wire_error(
                ErrorCode.SHAPE_MISMATCH, f"/columns/{name}", f"got {len(column)} entries; expected {expected}"
            )
    for needed, given in (("spans", columns.spans), ("n_tokens", columns.n_tokens)):
        if request.tokens is not None and given is None:
            raise wire_error(ErrorCode.INVALID_REQUEST, f"/columns/{needed}", "token advantages need this column")


def _from_sets(request: v1.ShapleyRequest) -> SetBatch:
    sets = request.sets or []
    table, tokens = request.utility.type == "table", request.tokens is not None
    candidates = [candidate for item in sets for candidate in item.candidates]
    rewards, missing = numbers_or_missing([candidate.reward for candidate in candidates])
    splits = _splits([len(item.candidates) for item in sets])
    rejected = [error for row, item in enumerate(sets) if (error := lacking(row, item, table=table, tokens=tokens))]
    groups, n_groups = _nested_groups(sets)
    set_rewards, set_missing = None, None
    if any(item.set_reward is not None for item in sets):
        set_rewards, set_missing = numbers_or_missing([item.set_reward for item in sets])
    spans, n_tokens = None, None
    if tokens:
        spans = np.array([candidate.span or (0, 0) for candidate in candidates], dtype=np.int64).reshape(-1, 2)
        n_tokens = np.array([item.n_tokens or 0 for item in sets], dtype=np.int64)
    tables, table_splits = None, None
    if table:
        values = [item.utilities or [] for item in sets]
        tables = np.array([value for row in values for value in row], dtype=np.float64)
        table_splits = _splits([len(row) for row in values])
    has_text = any(candidate.text is not None for candidate in candidates)
    has_ids = table and any(candidate.id is not None for candidate in candidates)
    return SetBatch(
        sets=CandidateSets(
            rewards=rewards,
            row_splits=splits,
            groups=groups,
            n_groups=n_groups,
            missing=missing,
            spans=spans,
            n_tokens=n_tokens,
            set_rewards=set_rewards,
            set_rewards_missing=set_missing,
            text_codes=_text_codes([candidate.text for candidate in candidates]) if has_text else None,
            ranks=_nested_ranks(sets) if has_ids else None,
            tables=tables,
            table_splits=table_splits,
        ),
        rejected=tuple(rejected),
        ids=[item.id for item in sets],
        sizes_from="/sets",
        by_rows=True,
        tables_by_rows=True,
        nested=True,
    )


def lacking(row: int, item: v1.CandidateSet, *, table: bool, tokens: bool) -> SetError | None:
    """What a nested set lacks for a request, or None.

    Args:
        row: Its place among the sets.
        item: The set.
        table: Whether the utility is a table.
        tokens: Whether token advantages are asked for.

    Returns:
        The first thing that is missing, or that has no use.
    """
    if table and item.utilities is None:
        return SetError(
            row, "invalid_request", "utilities", None, "utilities is missing; the table utility needs 2**K values"
        )
    if not table and item.utilities is not None:
        return SetError(row, "invalid_request", "utilities", None, "only the table utility takes utilities")
    if tokens and item.n_tokens is None:
        return SetError(row, "invalid_request", "n_tokens", None, "n_tokens is missing; token advantages need it")
    for place, candidate in enumerate(item.candidates):
        given = candidate.model_fields_set
        if not table and "reward" not in given:
            detail = "reward is missing; expected a number, or null for a candidate that was not scored"
            return SetError(row, "invalid_request", "reward", place, detail)
        if tokens and "span" not in given:
            detail = "span is missing; expected [start, stop], or null for a candidate without tokens"
            return SetError(row, "invalid_request", "span", place, detail)
    return None


def _nested_groups(sets: Sequence[v1.CandidateSet]) -> tuple[Integers, int]:
    names = [item.group for item in sets]
    known = [name for name in names if name is not None]
    if not known:
        return np.arange(len(sets)), len(sets)
    if len(known) < len(names):
        raise wire_error(
            ErrorCode.INVALID_REQUEST,
            f"/sets/{names.index(None)}/group",
            "group is missing, but other sets have one; expected it on all sets or on none",
        )
    return numbered(known)


def _flat(
    ragged: v1.Ragged | v1.RaggedNumbers | Sequence[Sequence[float | None]], pointer: str
) -> tuple[Sequence[float | None], Integers]:
    """Values and row splits of a ragged array in either form."""
    if not isinstance(ragged, v1.Ragged | v1.RaggedNumbers):
        return [value for row in ragged for value in row], _splits([len(row) for row in ragged])
    splits = np.array(ragged.row_splits, dtype=np.int64)
    if len(splits) < 1 or splits[0] != 0 or splits[-1] != len(ragged.values) or (np.diff(splits) < 0).any():
        raise wire_error(
            ErrorCode.SHAPE_MISMATCH,
            f"{pointer}/row_splits",
            f"expected numbers that never fall, from 0 to {len(ragged.values)}, the number of values",
        )
    return ragged.values, splits


def _splits(lengths: Sequence[int]) -> Integers:
    return np.append(np.int64(0), np.cumsum(np.array(lengths, dtype=np.int64)))


def _text_codes(texts: Sequence[str | None] | None) -> Integers | None:
    if texts is None:
        return None
    seen: dict[str, int] = {}
    return np.array([-1 if text is None else seen.setdefault(text, len(seen)) for text in texts], dtype=np.int64)


def _ranks(names: Sequence[str | int]) -> Integers:
    """Rank of each name in a fixed order of all names: numbers by value, then strings."""
    order = {name: rank for rank, name in enumerate(sorted(set(names), key=_name_order))}
    return np.array([order[name] for name in names], dtype=np.int64)


def _name_order(name: str | int) -> tuple[bool, int, str]:
    return (isinstance(name, str), 0, name) if isinstance(name, str) else (False, name, "")


def _nested_ranks(sets: Sequence[v1.CandidateSet]) -> Integers:
    """Ranks by id within each set whose candidates all have one, else the order given."""
    ranks: list[int] = []
    for item in sets:
        names = [candidate.id for candidate in item.candidates]
        known = [name for name in names if name is not None]
        ranks.extend(_ranks(known).tolist() if len(known) == len(names) else range(len(names)))
    return np.array(ranks, dtype=np.int64)


def _nested_pointer(error: SetError) -> str:
    base = f"/sets/{error.row}"
    if error.position is None:
        return f"{base}/{error.field}"
    if error.field == "utilities":
        return f"{base}/utilities/{error.position}"
    return f"{base}/candidates/{error.position}/{error.field}"


def causes_first(errors: Sequence[SetError]) -> list[SetError]:
    """Errors with those that only follow from another one last.

    Args:
        errors: By row.

    Returns:
        The same errors; within causes and within consequences by row.
    """
    return sorted(errors, key=lambda error: error.code == "group_incomplete")
