"""A request's `sets`, one object per set, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_features import CandidateFeatures
from creditd.credit.candidate_sets import CandidateSets, ErrorField, SetError
from creditd.credit.set_utilities import Need
from creditd.wire import v1
from creditd.wire.arrays import group_numbers, numbers_or_missing, optional_numbers, ranks_of, splits_of
from creditd.wire.errors import ErrorCode
from creditd.wire.features import score_columns, topic_columns
from creditd.wire.model_texts import ModelNeeds
from creditd.wire.rewards import RewardColumns, combined, single
from creditd.wire.set_batches import SetBatch
from creditd.wire.validation import wire_error

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]

_WANTED: dict[str, str] = {
    "reward": "expected a number, or null for a candidate that was not scored",
    "label": "expected the answer that the candidate gives",
    "topics": "expected a list of what the candidate covers",
    "scores": "expected one number per target",
    "union": "expected the name of its union",
    "text": "expected what the model reads, or null for a candidate that is not scored",
    "span": "expected [start, stop], or null for a candidate without tokens",
}
_NULLABLE = {"reward", "label", "union", "span", "text"}
PROMPT_WITHOUT_USE = "no model is asked; expected null, or rewards or a utility of type model"
TOLD_BY_A_MODEL = "a model tells this, or evaluates a utility that uses none; expected null"


def from_sets(request: v1.ShapleyRequest, needed: frozenset[Need], models: ModelNeeds, *, unions: bool) -> SetBatch:
    """The sets of a nested request as columns.

    Args:
        request: A valid request with `sets`.
        needed: What the utility needs.
        models: What models have to be told.
        unions: Whether the rule needs unions.

    Returns:
        Columns whose shapes agree; a set that lacks something is rejected.

    Raises:
        WireError: If only some sets name their group, or rewards are named differently.
    """
    sets = request.sets or []
    tokens = request.tokens is not None
    candidates = [candidate for item in sets for candidate in item.candidates]
    of_sets, fields = fields_needed(needed, models, unions=unions, tokens=tokens)
    rejected = [error for row, item in enumerate(sets) if (error := lacking(row, item, of_sets, fields))]
    rewards = _rewards(candidates, request.aggregation, needed)
    _check_untold(sets, models)
    if models.reward:
        rewards = RewardColumns(rewards.rewards, missing_texts([candidate.text for candidate in candidates]))
    groups, n_groups = group_numbers([item.group for item in sets], "/sets")
    set_rewards, set_missing = None, None
    if any(item.set_reward is not None for item in sets):
        set_rewards, set_missing = numbers_or_missing([item.set_reward for item in sets])
    tables = [item.utilities or [] for item in sets] if "utilities" in needed else None
    return SetBatch(
        sets=CandidateSets(
            rewards=rewards.rewards,
            row_splits=splits_of([len(item.candidates) for item in sets]),
            groups=groups,
            n_groups=n_groups,
            missing=rewards.missing,
            spans=_spans(candidates) if tokens else None,
            n_tokens=np.array([item.n_tokens or 0 for item in sets], dtype=np.int64) if tokens else None,
            set_rewards=set_rewards,
            set_rewards_missing=set_missing,
            text_codes=_text_codes(candidates),
            ranks=_ranks(sets, candidates) if tables is not None else None,
            tables=None if tables is None else _joined(tables),
            table_splits=None if tables is None else splits_of([len(row) for row in tables]),
            features=_features(request, sets, candidates, needed, unions=unions),
            parts=rewards.parts,
        ),
        rejected=tuple(rejected),
        ids=[item.id for item in sets],
        named=rewards.named,
    )


def lacking(
    row: int, item: v1.CandidateSet, of_set: Sequence[ErrorField], of_candidates: Sequence[ErrorField]
) -> SetError | None:
    """What a nested set lacks for a request, or None.

    Args:
        row: Its place among the sets.
        item: The set.
        of_set: Fields of the set that the request needs.
        of_candidates: Fields of each candidate that it needs.

    Returns:
        The first thing that is missing, or that has no use.
    """
    for name in of_set:
        if getattr(item, name) is None:
            return SetError(row, "invalid_request", name, None, f"{name} is missing; this request needs it")
    if item.prompt is not None and "prompt" not in of_set:
        return SetError(row, "invalid_request", "prompt", None, PROMPT_WITHOUT_USE)
    if item.utilities is not None and "utilities" not in of_set:
        return SetError(row, "invalid_request", "utilities", None, "only the table utility takes utilities")
    for place, candidate in enumerate(item.candidates):
        given = candidate.model_fields_set
        for name in of_candidates:
            if name == "reward" and "named_rewards" in given:
                continue
            if name not in given or (name not in _NULLABLE and getattr(candidate, name) is None):
                return SetError(row, "invalid_request", name, place, f"{name} is missing; {_WANTED[name]}")
    return None


def missing_texts(texts: Sequence[str | None]) -> Booleans | None:
    """Candidates without a text, which are not scored; None if all have one.

    Args:
        texts: One per candidate.
    """
    missing = np.array([text is None for text in texts], dtype=np.bool_)
    return missing if missing.any() else None


def fields_needed(
    needed: frozenset[Need], models: ModelNeeds, *, unions: bool, tokens: bool
) -> tuple[list[ErrorField], list[ErrorField]]:
    """Fields that a request needs of every set, and of every candidate.

    Args:
        needed: What the utility needs.
        models: What models have to be told.
        unions: Whether the rule needs unions.
        tokens: Whether token advantages are asked for.

    Returns:
        Names of fields of a set, and of fields of a candidate.
    """
    of_sets: list[ErrorField] = []
    of_candidates: list[ErrorField] = []
    for need in sorted(needed):
        (of_sets if need in {"utilities", "similarities"} else of_candidates).append(need)
    of_sets += ["prompt"] * models.prompts
    of_candidates += ["text"] * models.texts
    if tokens:
        of_sets.append("n_tokens")
        of_candidates.append("span")
    if unions:
        of_candidates.append("union")
    return of_sets, of_candidates


def _rewards(
    candidates: Sequence[v1.Candidate], aggregation: v1.AggregationChoice, needed: frozenset[Need]
) -> RewardColumns:
    """One reward per candidate; 0 where the utility uses none and none is given."""
    given = frozenset().union(*(candidate.model_fields_set for candidate in candidates))
    named = any(candidate.named_rewards is not None for candidate in candidates)
    if named or ("named_rewards" in given and "reward" not in given):
        return _named(candidates, aggregation)
    if "reward" in needed:
        return single([candidate.reward for candidate in candidates], aggregation)
    return single(
        [candidate.reward if "reward" in candidate.model_fields_set else 0.0 for candidate in candidates], aggregation
    )


def _check_untold(sets: Sequence[v1.CandidateSet], models: ModelNeeds) -> None:
    """Nobody gives what a model tells."""
    told = ("reward", "named_rewards") * models.reward + ("scores", "topics") * models.features
    for row, item in enumerate(sets):
        if models.features and item.similarities is not None:
            raise wire_error(ErrorCode.INVALID_REQUEST, f"/sets/{row}/similarities", TOLD_BY_A_MODEL)
        for place, candidate in enumerate(item.candidates):
            for name in told:
                if getattr(candidate, name) is not None:
                    pointer = f"/sets/{row}/candidates/{place}/{name}"
                    raise wire_error(ErrorCode.INVALID_REQUEST, pointer, TOLD_BY_A_MODEL)


def _named(candidates: Sequence[v1.Candidate], aggregation: v1.AggregationChoice) -> RewardColumns:
    """Rewards by name; null stands for all of them."""
    found = [candidate.named_rewards for candidate in candidates]
    names = {frozenset(row) for row in found if row is not None}
    if any(candidate.reward is not None for candidate in candidates):
        detail = "some candidates have reward and some named_rewards; expected one of them for all"
        raise wire_error(ErrorCode.INVALID_REQUEST, "/sets", detail)
    if len(names) != 1 or not next(iter(names)):
        detail = "named_rewards have different names, or none; expected the same names for all candidates"
        raise wire_error(ErrorCode.INVALID_REQUEST, "/sets", detail)
    columns = {name: [None if row is None else row[name] for row in found] for name in sorted(next(iter(names)))}
    return combined(columns, aggregation)


def _features(
    request: v1.ShapleyRequest,
    sets: Sequence[v1.CandidateSet],
    candidates: Sequence[v1.Candidate],
    needed: frozenset[Need],
    *,
    unions: bool,
) -> CandidateFeatures | None:
    if not needed & {"label", "topics", "scores", "similarities"} and not unions:
        return None
    columns: dict[str, Any] = {}
    if "label" in needed:
        columns["labels"] = optional_numbers([candidate.label for candidate in candidates])
    if unions:
        columns["unions"] = optional_numbers([candidate.union for candidate in candidates])
    if "topics" in needed:
        topics = [candidate.topics or [] for candidate in candidates]
        numbers, splits, weights = topic_columns(
            list(chain.from_iterable(topics)), splits_of([len(row) for row in topics]), request.utility, "/sets"
        )
        columns |= {"topics": numbers, "topic_splits": splits, "topic_weights": weights}
    if "scores" in needed:
        scores = [candidate.scores or [] for candidate in candidates]
        joined = splits_of([len(row) for row in scores])
        columns["scores"], columns["score_splits"] = score_columns(list(chain.from_iterable(scores)), joined, "/sets")
    if "similarities" in needed:
        matrices = [_square(item) for item in sets]
        columns["similarities"] = _joined(matrices)
        columns["similarity_splits"] = splits_of([len(row) for row in matrices])
    return CandidateFeatures(**columns)


def _square(item: v1.CandidateSet) -> list[float]:
    """The numbers of a K × K matrix row by row; of any other matrix none, so that its count is wrong."""
    rows, size = item.similarities or [], len(item.candidates)
    return list(chain.from_iterable(rows)) if all(len(row) == size for row in rows) else []


def _joined(rows: Sequence[Sequence[float]]) -> Floats:
    return np.array([value for row in rows for value in row], dtype=np.float64)


def _spans(candidates: Sequence[v1.Candidate]) -> Integers:
    return np.array([candidate.span or (0, 0) for candidate in candidates], dtype=np.int64).reshape(-1, 2)


def _text_codes(candidates: Sequence[v1.Candidate]) -> Integers | None:
    texts = [candidate.text for candidate in candidates]
    return None if all(text is None for text in texts) else optional_numbers(texts)


def _ranks(sets: Sequence[v1.CandidateSet], candidates: Sequence[v1.Candidate]) -> Integers | None:
    """Ranks by id within each set whose candidates all have one, else the order given; None if no candidate has one."""
    if all(candidate.id is None for candidate in candidates):
        return None
    ranks: list[int] = []
    for item in sets:
        names = [candidate.id for candidate in item.candidates]
        known = [name for name in names if name is not None]
        ranks.extend(ranks_of(known)[0].tolist() if len(known) == len(names) else range(len(names)))
    return np.array(ranks, dtype=np.int64)
