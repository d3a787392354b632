"""From request bodies to the columns of `creditd.credit`.

One translation for the service and for the client's local mode, so that both give the same numbers and the same errors.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_features import CandidateFeatures
from creditd.credit.candidate_sets import CandidateSets
from creditd.credit.credit_rules import needs_unions
from creditd.credit.set_utilities import Need
from creditd.wire import v1
from creditd.wire.arrays import (
    checked_splits,
    flat,
    n_entries,
    numbered,
    numbers_or_missing,
    optional_numbers,
    ranks_of,
    splits_of,
)
from creditd.wire.buffers import NumbersAndNulls
from creditd.wire.choices import rule_of
from creditd.wire.errors import ErrorCode
from creditd.wire.features import score_columns, topic_columns
from creditd.wire.fields import MAX_SETS
from creditd.wire.limits import RequestLimits, check_candidates, check_rows, check_tokens
from creditd.wire.model_texts import ModelNeeds, model_needs, needed_of
from creditd.wire.nested import PROMPT_WITHOUT_USE, TOLD_BY_A_MODEL, from_sets, missing_texts
from creditd.wire.rewards import RewardColumns, combined, single
from creditd.wire.set_batches import SetBatch
from creditd.wire.validation import segment_of, wire_error

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

_OF_NEEDS: dict[Need, str] = {
    "reward": "rewards",
    "label": "labels",
    "topics": "topics",
    "scores": "scores",
    "similarities": "similarities",
    "utilities": "utilities",
}


def batch_of(request: v1.ShapleyRequest, limits: RequestLimits) -> SetBatch:
    """The sets of a request as columns.

    Args:
        request: A valid request, whose choices do not contradict each other.
        limits: Bounds; the number of token advantages is refused here, before anything is allocated for them.

    Returns:
        Columns whose shapes agree; values are not checked yet.

    Raises:
        WireError: If columns disagree in length, row splits are not, a needed column is absent, or only some sets name
            their group.
    """
    models = model_needs(request)
    needed, unions = needed_of(request), needs_unions(rule_of(request.credit))
    check_candidates(_candidates_of(request), limits)
    if request.columns is not None:
        batch = _from_columns(request, request.columns, needed, models, unions=unions)
    else:
        batch = from_sets(request, needed, models, unions=unions)
    check_rows(batch.sets.n_sets, limits)
    collapse = request.malformed.duplicates == "collapse"
    if collapse and batch.sets.text_codes is None and len(batch.sets.rewards):
        detail = "collapse recognises duplicates by their texts; expected the texts of the candidates"
        raise wire_error(ErrorCode.INVALID_REQUEST, "/malformed/duplicates", detail)
    if request.tokens is not None and batch.sets.n_tokens is not None:
        check_tokens(batch.sets.n_tokens, limits)
    return batch


def _candidates_of(request: v1.ShapleyRequest) -> int:
    """Candidates of all sets, once for every reward, before anything is made of them."""
    if request.columns is None:
        return sum(len(item.candidates) for item in request.sets or ())
    columns = request.columns
    rewards = [column for column in (columns.rewards, *(columns.named_rewards or {}).values()) if column is not None]
    return sum(map(n_entries, rewards)) if rewards else max(_lengths_by_candidate(columns), default=0)


def _from_columns(
    request: v1.ShapleyRequest, columns: v1.SetColumns, needed: frozenset[Need], models: ModelNeeds, *, unions: bool
) -> SetBatch:
    table = "utilities" in needed
    _check_needed(request, columns, needed, unions=unions)
    _check_for_models(columns, models)
    tables, table_splits = None, None
    if table and columns.utilities is not None:
        values, table_splits = flat(columns.utilities, "/columns/utilities")
        tables = np.asarray(values, dtype=np.float64)
    rewards, splits, sizes_from = _rewards(request, columns, table_splits)
    if models.reward and columns.texts is not None and len(columns.texts) == len(rewards.rewards):
        rewards = RewardColumns(rewards.rewards, missing_texts(columns.texts))
    n_sets, n_candidates = len(splits) - 1, len(rewards.rewards)
    if n_sets < 1 or n_sets > MAX_SETS:
        raise wire_error(ErrorCode.INVALID_REQUEST, sizes_from, f"got {n_sets} sets; expected 1 to {MAX_SETS}")
    _check_lengths(columns, n_sets, n_candidates)
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
            rewards=rewards.rewards,
            row_splits=splits,
            groups=groups,
            n_groups=n_groups,
            missing=rewards.missing,
            spans=spans,
            n_tokens=None if columns.n_tokens is None else np.asarray(columns.n_tokens, dtype=np.int64),
            set_rewards=set_rewards,
            set_rewards_missing=set_missing,
            text_codes=None if columns.texts is None else optional_numbers(columns.texts),
            ranks=ranks_of(columns.candidate_ids)[0] if table and columns.candidate_ids is not None else None,
            tables=tables,
            table_splits=table_splits,
            features=_features(request, columns, needed, n_sets, n_candidates, unions=unions),
            parts=rewards.parts,
        ),
        rejected=(),
        ids=columns.ids,
        nested=False,
        sizes_from=sizes_from,
        by_rows=_columns_of_rows(columns),
        named=rewards.named,
    )


def _columns_of_rows(columns: v1.SetColumns) -> frozenset[str]:
    """The columns that came as rows, by their pointers below `/columns/`."""
    names = ("rewards", "utilities", "similarities", "topics", "scores")
    found: dict[str, Any] = {name: getattr(columns, name) for name in names}
    found |= {f"named_rewards/{segment_of(name)}": rows for name, rows in (columns.named_rewards or {}).items()}
    return frozenset(name for name, column in found.items() if isinstance(column, list | np.ndarray | NumbersAndNulls))


def _rewards(
    request: v1.ShapleyRequest, columns: v1.SetColumns, table_splits: Integers | None
) -> tuple[RewardColumns, Integers, str]:
    """Rewards, zeros where none are needed and none are given; the row splits of candidates, and where they stand."""
    if columns.rewards is not None and columns.named_rewards is not None:
        raise wire_error(ErrorCode.INVALID_REQUEST, "/columns/named_rewards", "rewards are given too; expected one")
    if columns.rewards is None and columns.named_rewards is None:
        if columns.row_splits is not None:
            splits, pointer = checked_splits(columns.row_splits, "/columns/row_splits"), "/columns/row_splits"
        elif table_splits is not None:
            splits = splits_of([max(int(length).bit_length() - 1, 0) for length in np.diff(table_splits)])
            pointer = "/columns/utilities"
        else:
            detail = "row_splits is missing; without rewards it says how many candidates each set has"
            raise wire_error(ErrorCode.INVALID_REQUEST, "/columns/row_splits", detail)
        if splits[-1] > _most_candidates(columns):
            raise wire_error(
                ErrorCode.SHAPE_MISMATCH, pointer, f"got {splits[-1]} candidates; no column has as many entries"
            )
        return RewardColumns(rewards=np.zeros(int(splits[-1])), missing=None), splits, pointer
    if columns.row_splits is not None:
        raise wire_error(ErrorCode.INVALID_REQUEST, "/columns/row_splits", "rewards have their own; expected null")
    if columns.rewards is not None:
        values, splits = flat(columns.rewards, "/columns/rewards")
        return single(values, request.aggregation), splits, "/columns/rewards"
    named = {
        name: flat(column, f"/columns/named_rewards/{segment_of(name)}")
        for name, column in (columns.named_rewards or {}).items()
    }
    first, (_, splits) = next(iter(named.items()))
    for name, (_, other) in named.items():
        if not np.array_equal(other, splits):
            detail = "rows have other lengths than those of the first name; expected the same candidates in all rewards"
            raise wire_error(ErrorCode.SHAPE_MISMATCH, f"/columns/named_rewards/{segment_of(name)}", detail)
    parts = combined({name: values for name, (values, _) in named.items()}, request.aggregation)
    return parts, splits, f"/columns/named_rewards/{segment_of(first)}"


def _most_candidates(columns: v1.SetColumns) -> int:
    """How many candidates the other columns can be about: row splits alone must not make anything large."""
    by_set = [n_entries(column) for column in (columns.similarities, columns.utilities) if column is not None]
    return max([*_lengths_by_candidate(columns), *by_set], default=0)


def _lengths_by_candidate(columns: v1.SetColumns) -> list[int]:
    """Lengths of the columns beside rewards that have an entry, or a row, for each candidate."""
    flat_columns = (columns.labels, columns.unions, columns.texts, columns.candidate_ids)
    rows = [column for column in (columns.topics, columns.scores) if column is not None]
    return [
        *(len(column) for column in flat_columns if column is not None),
        *(len(one) if isinstance(one, list | np.ndarray) else len(one.row_splits) - 1 for one in rows),
    ]


def _check_needed(request: v1.ShapleyRequest, columns: v1.SetColumns, needed: frozenset[Need], *, unions: bool) -> None:
    """The columns that the request needs are there, and a table only where it has a use."""
    named = columns.named_rewards is not None
    missing = [_OF_NEEDS[need] for need in sorted(needed) if getattr(columns, _OF_NEEDS[need]) is None]
    missing = [column for column in missing if column != "rewards" or not named]
    missing += ["unions"] * (unions and columns.unions is None)
    if missing:
        kind = request.utility.type if missing[0] != "unions" else "owen"
        raise wire_error(ErrorCode.INVALID_REQUEST, f"/columns/{missing[0]}", f"{kind} needs this column")
    if columns.utilities is not None and "utilities" not in needed:
        raise wire_error(ErrorCode.INVALID_REQUEST, "/columns/utilities", "only the table utility takes this column")
    for name in ("spans", "n_tokens"):
        if request.tokens is not None and getattr(columns, name) is None:
            raise wire_error(ErrorCode.INVALID_REQUEST, f"/columns/{name}", "token advantages need this column")


def _check_for_models(columns: v1.SetColumns, models: ModelNeeds) -> None:
    """What a model reads is there where one is asked, and rewards are not given beside those of a model."""
    for name, wanted in (("texts", models.texts), ("prompts", models.prompts)):
        if wanted and getattr(columns, name) is None:
            raise wire_error(ErrorCode.INVALID_REQUEST, f"/columns/{name}", "the model needs this column")
    if columns.prompts is not None and not models.prompts:
        raise wire_error(ErrorCode.INVALID_REQUEST, "/columns/prompts", PROMPT_WITHOUT_USE)
    told = ("rewards", "named_rewards") * models.reward + ("scores", "topics", "similarities") * models.features
    for name in told:
        if getattr(columns, name) is not None:
            raise wire_error(ErrorCode.INVALID_REQUEST, f"/columns/{name}", TOLD_BY_A_MODEL)


def _check_lengths(columns: v1.SetColumns, n_sets: int, n_candidates: int) -> None:
    """Every column has one entry per set or per candidate."""
    for name, column, expected in (
        ("groups", columns.groups, n_sets),
        ("ids", columns.ids, n_sets),
        ("n_tokens", columns.n_tokens, n_sets),
        ("prompts", columns.prompts, n_sets),
        ("set_rewards", columns.set_rewards, n_sets),
        ("texts", columns.texts, n_candidates),
        ("candidate_ids", columns.candidate_ids, n_candidates),
        ("labels", columns.labels, n_candidates),
        ("unions", columns.unions, n_candidates),
        ("spans/starts", columns.spans.starts if columns.spans else None, n_candidates),
        ("spans/stops", columns.spans.stops if columns.spans else None, n_candidates),
    ):
        if column is not None:
            _check_length(f"/columns/{name}", len(column), expected)


def _check_length(pointer: str, length: int, expected: int) -> None:
    if length != expected:
        raise wire_error(ErrorCode.SHAPE_MISMATCH, pointer, f"got {length} entries; expected {expected}")


def _features(
    request: v1.ShapleyRequest,
    columns: v1.SetColumns,
    needed: frozenset[Need],
    n_sets: int,
    n_candidates: int,
    *,
    unions: bool,
) -> CandidateFeatures | None:
    found: dict[str, Any] = {}
    if "label" in needed and columns.labels is not None:
        found["labels"] = optional_numbers(columns.labels)
    if unions and columns.unions is not None:
        found["unions"] = optional_numbers(columns.unions)
    if "topics" in needed and columns.topics is not None:
        names, splits = flat(columns.topics, "/columns/topics")
        _check_length("/columns/topics", len(splits) - 1, n_candidates)
        numbers, splits, weights = topic_columns(names, splits, request.utility, "/columns/topics")
        found |= {"topics": numbers, "topic_splits": splits, "topic_weights": weights}
    if "scores" in needed and columns.scores is not None:
        scores, splits = flat(columns.scores, "/columns/scores")
        _check_length("/columns/scores", len(splits) - 1, n_candidates)
        found["scores"], found["score_splits"] = score_columns(scores, splits, "/columns/scores")
    if "similarities" in needed and columns.similarities is not None:
        similarities, splits = flat(columns.similarities, "/columns/similarities")
        _check_length("/columns/similarities", len(splits) - 1, n_sets)
        found["similarities"] = np.asarray(similarities, dtype=np.float64)
        found["similarity_splits"] = splits
    return CandidateFeatures(**found) if found else None
