"""From the body of `/v1/credit/compose` to sets of the arithmetic and back: for the service and for local mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import USABLE, ErrorField, SetError
from creditd.credit.composed_credit import composed_credit
from creditd.credit.composed_items import (
    Additive,
    Bounded,
    BySensitivity,
    CandidateParts,
    ComposedCredit,
    ComposedCredits,
    ComposedSets,
    ComposeOptions,
    Inside,
    UnitError,
)
from creditd.credit.flags import Flag
from creditd.credit.reshaping import ReshapeOptions
from creditd.credit.set_credit import SetCreditOptions
from creditd.credit.token_advantages import TokenPolicy
from creditd.wire import v1
from creditd.wire.arrays import numbers_or_missing
from creditd.wire.choices import options_of
from creditd.wire.columns import batch_of
from creditd.wire.compose import (
    AdditiveInside,
    BoundedInside,
    ComposeCandidate,
    ComposeRequest,
    ComposeSet,
    InsideChoice,
)
from creditd.wire.errors import ERROR_KINDS, ErrorCode
from creditd.wire.limits import RequestLimits
from creditd.wire.set_batches import SetBatch
from creditd.wire.utilities import OF_REWARDS
from creditd.wire.validation import wire_error

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

_OF_SETS: tuple[ErrorField, ...] = ("set_advantage", "advantage_slope")
"""What the caller says of a set beside given advantages."""
_OF_CANDIDATES = frozenset({"advantage", "units", "unit_values", "utilities", "tree", "sensitivities"})
"""Fields of a candidate of which a `UnitError` speaks."""


@dataclass(frozen=True)
class ComposedAnswer:
    """Answers to the sets of a request.

    Attributes:
        credits: Of the arithmetic.
        batch: The sets, with the way from an error to a pointer.
    """

    credits: ComposedCredits
    batch: SetBatch

    def pointer(self, error: SetError) -> str:
        """JSON pointer to what is wrong with a set."""
        if not isinstance(error, UnitError):
            return self.batch.pointer(error)
        place = f"/sets/{error.row}"
        if error.position is not None and error.field in _OF_CANDIDATES:
            place += f"/candidates/{error.position}"
        return f"{place}/{error.field}" + ("" if error.entry is None else f"/{error.entry}")


def solve_composition(
    request: ComposeRequest, limits: RequestLimits, checkpoint: Callable[[], None] = lambda: None
) -> ComposedAnswer:
    """Answers to the sets of a request.

    Args:
        request: A valid request.
        limits: Bounds on sets, candidates, tokens, units and tables.
        checkpoint: Called between pieces of work; what it raises ends it.

    Returns:
        One answer or one error per set.

    Raises:
        WireError: If two choices contradict each other, the request is too large, only some sets name their group, or
            some candidates bring advantages and others do not.
    """
    given = _brings_advantages(request)
    scored = not given or _has_rewards(request)
    if given:
        _check_given(request, scored=scored)
    options, batch = _sets_of(request, limits, given=given, scored=scored)
    rejected = {error.row: error for error in batch.rejected}
    for row, item in enumerate(request.sets):
        error = _of_no_use(row, item, given=given) or _without_number(row, item)
        if error is not None:
            rejected.setdefault(row, error)
    composed = _composed_sets(request, batch, given=given, scored=scored)
    credits_ = composed_credit(
        composed,
        ComposeOptions(options, TokenPolicy(**request.tokens.model_dump()), max_units=limits.units),
        tuple(rejected[row] for row in sorted(rejected)),
        checkpoint,
    )
    return ComposedAnswer(credits_, batch)


def composed_results(request: ComposeRequest, answer: ComposedAnswer) -> list[dict[str, Any]]:
    """What answers say of all sets; arrays stay arrays.

    Args:
        request: The request.
        answer: Of `solve_composition`.

    Returns:
        One document per set, that fits `ComposeResult` once it is written.
    """
    errors = {error.row: error for error in answer.credits.errors}
    results: list[dict[str, Any]] = []
    for row, (item, credit) in enumerate(zip(request.sets, answer.credits.items, strict=True)):
        body = _failed(answer, errors[row]) if credit is None else _credited(credit)
        results.append({"id": item.id, **body})
    return results


def _failed(answer: ComposedAnswer, error: SetError) -> dict[str, Any]:
    """What an answer says of a set without one."""
    failure = {
        "code": error.code,
        "pointer": answer.pointer(error),
        "detail": error.detail,
        "retryable": ERROR_KINDS[ErrorCode(error.code)].retryable,
    }
    return {"status": "error", "error": failure}


def _credited(credit: ComposedCredit) -> dict[str, Any]:
    """What an answer says of a set that has one."""
    return {
        "status": "ok",
        "credits": credit.credits,
        "advantages": credit.advantages,
        "set_advantage": credit.set_advantage,
        "set_reward_advantage": credit.set_reward_advantage,
        "token_advantages": credit.token_advantages,
        "unit_values": credit.unit_values,
        "utility_empty": credit.utility_empty,
        "utility_grand": credit.utility_grand,
        "ledger": asdict(credit.ledger),
        "flags": Flag(credit.flags).wire_names,
    }


def _brings_advantages(request: ComposeRequest) -> bool:
    """Whether candidates bring advantages: all have the field or none; nulls alone count where sets have theirs."""
    candidates = [one for item in request.sets for one in item.candidates]
    present = ["advantage" in candidate.model_fields_set for candidate in candidates]
    if all(candidate.advantage is None for candidate in candidates):
        return all(present) and all(item.set_advantage is not None for item in request.sets)
    for row, item in enumerate(request.sets):
        for place, candidate in enumerate(item.candidates):
            if "advantage" not in candidate.model_fields_set:
                detail = "advantage is missing, but other candidates have one; expected it on all candidates or on none"
                raise wire_error(ErrorCode.INVALID_REQUEST, f"/sets/{row}/candidates/{place}/advantage", detail)
    return True


def _has_rewards(request: ComposeRequest) -> bool:
    """Whether some candidate has a reward, or its set a utility of its own."""
    return any(
        one.reward is not None or one.named_rewards is not None or item.utilities is not None
        for item in request.sets
        for one in item.candidates
    )


def _check_given(request: ComposeRequest, *, scored: bool) -> None:
    """Beside given advantages rewards have no names, and the utility needs them alone."""
    for row, item in enumerate(request.sets):
        for place, candidate in enumerate(item.candidates):
            if candidate.named_rewards is not None:
                pointer = f"/sets/{row}/candidates/{place}/named_rewards"
                raise wire_error(
                    ErrorCode.INVALID_REQUEST, pointer, "got named_rewards beside advantages; expected null"
                )
    if scored and request.utility.type not in OF_REWARDS:
        detail = f"candidates bring advantages; expected {', '.join(OF_REWARDS)}"
        raise wire_error(ErrorCode.INVALID_REQUEST, "/utility/type", detail)


def _of_no_use(row: int, item: ComposeSet, *, given: bool) -> UnitError | None:
    """What a set has that says nothing where advantages come from."""
    fields: tuple[ErrorField, ...] = ("set_reward",) if given else _OF_SETS
    for field in fields:
        if getattr(item, field) is not None:
            detail = "candidates bring advantages" if given else "advantages are computed"
            return UnitError(row, "invalid_request", field, None, f"got {field}, but {detail}; expected null")
    return None


def _without_number(row: int, item: ComposeSet) -> UnitError | None:
    """An advantage that was sent as NaN, which is no null."""
    for field in _OF_SETS:
        value = getattr(item, field)
        if value is not None and math.isnan(value):
            return UnitError(row, "non_finite_value", field, None, f"{field} is NaN; expected {USABLE} or null")
    for place, candidate in enumerate(item.candidates):
        if candidate.advantage is not None and math.isnan(candidate.advantage):
            detail = f"advantage is NaN; expected {USABLE} or null"
            return UnitError(row, "non_finite_value", "advantage", place, detail)
    return None


def _sets_of(
    request: ComposeRequest, limits: RequestLimits, *, given: bool, scored: bool
) -> tuple[SetCreditOptions, SetBatch]:
    """The sets as `/v1/credit/shapley` takes them, and how they are solved; without rewards all are alike."""
    sets: Sequence[v1.CandidateSet] = request.sets
    choices: dict[str, Any] = {}
    if scored:
        choices = {name: getattr(request, name) for name in ("utility", "aggregation", "credit", "malformed")}
    else:
        blank = {"reward": 0.0}
        sets = [
            one.model_copy(update={"candidates": [each.model_copy(update=blank) for each in one.candidates]})
            for one in request.sets
        ]
    if not given:
        choices["advantage"] = request.advantage
    as_shapley = v1.ShapleyRequest.model_construct(
        sets=list(sets),
        tokens=request.tokens,
        expect=request.expect,
        incomplete_group=request.incomplete_group,
        **choices,
    )
    return options_of(as_shapley, limits), batch_of(as_shapley, limits)


def _composed_sets(request: ComposeRequest, batch: SetBatch, *, given: bool, scored: bool) -> ComposedSets:
    """The sets with what is known of the insides of their candidates."""
    candidates = [candidate for item in request.sets for candidate in item.candidates]
    common = _inside_of(request.inside)
    return ComposedSets(
        sets=batch.sets,
        parts=tuple(_parts_of(candidate) for candidate in candidates),
        masks=tuple(
            None if item.completion_mask is None else np.asarray(item.completion_mask, dtype=np.bool_)
            for item in request.sets
        ),
        inside=tuple(_inside_of(item.inside) or common for item in request.sets),
        advantages=_numbers([candidate.advantage for candidate in candidates]) if given else None,
        set_advantages=_numbers([item.set_advantage for item in request.sets]) if given else None,
        slopes=_numbers([item.advantage_slope for item in request.sets]) if given else None,
        scored=scored,
    )


def _parts_of(candidate: ComposeCandidate) -> CandidateParts | None:
    """What is known of the inside of a candidate, or None."""
    sensitivities = None
    if candidate.sensitivities is not None:
        sensitivities = numbers_or_missing(candidate.sensitivities)[0]
    parts = CandidateParts(
        units=_pairs(candidate.units),
        values=_column(candidate.unit_values),
        utilities=_column(candidate.utilities),
        tree=_pairs(candidate.tree),
        sensitivities=sensitivities,
    )
    known = (parts.units, parts.values, parts.utilities, parts.tree, parts.sensitivities)
    return None if all(one is None for one in known) else parts


def _inside_of(choice: InsideChoice | None) -> Inside | None:
    """How credit gets inside candidates, as the arithmetic's own type."""
    if choice is None:
        return None
    if isinstance(choice, AdditiveInside):
        return Additive(choice.share)
    if isinstance(choice, BoundedInside):
        return Bounded(choice.share)
    return BySensitivity(ReshapeOptions(**choice.reshape.model_dump()))


def _pairs(pairs: Sequence[Sequence[int]] | Integers | None) -> Integers | None:
    """Pairs as an array of shape (n, 2)."""
    return None if pairs is None else np.asarray(pairs, dtype=np.int64).reshape(-1, 2)


def _column(values: Sequence[float] | Floats | None) -> Floats | None:
    return None if values is None else np.asarray(values, dtype=np.float64)


def _numbers(values: Sequence[float | None]) -> Floats:
    """Numbers, NaN where there is none."""
    return np.array(values, dtype=np.float64)
