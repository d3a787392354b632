"""From the body of `/v1/credit/scar/solve` to token rewards, or to what to evaluate: for the service and local mode.

The answer is a function of the request: as if what the plans of the completions ask for were evaluated when it was
asked, and found to be what the request says. Utilities that no plan asks for change nothing. So the numbers are those
of `/v1/credit/scar` for a model of the same utilities, to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.flags import Flag
from creditd.credit.span_credit import SpanBatch
from creditd.credit.span_items import SpanCredits, SpanError
from creditd.credit.text_units import TextUnits
from creditd.wire.errors import ErrorCode
from creditd.wire.limits import MAX_CELLS, RequestLimits
from creditd.wire.scar import ScarSolveRequest
from creditd.wire.scar_items import MAX_SPAN_CELLS, SpanRequest, span_request
from creditd.wire.scar_known import KnownSpans, coalition_keys, known_spans
from creditd.wire.scar_results import credited_item, failed_item
from creditd.wire.validation import wire_error

Booleans: TypeAlias = NDArray[np.bool_]
Integers: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class OpenSpans:
    """What a completion lacks.

    Attributes:
        units: Its units.
        next: Shape (R, n), bool: coalitions to evaluate.
        needs_empty: Whether v(∅) of its prompt is to be evaluated, and this is the completion that is asked for it.
        needs_grand: Whether it has no unit and its v(P) is to be evaluated.
        planned: Most evaluations altogether.
        known: Evaluations that are known.
    """

    units: TextUnits
    next: Booleans
    needs_empty: bool
    needs_grand: bool
    planned: int
    known: int


@dataclass(frozen=True)
class SolvedSpans:
    """Answers to all items of a request.

    Attributes:
        items: One per item; None for one that failed.
        credits: The answer, or None while any item is open.
        errors: At most one per item, by row.
    """

    items: tuple[OpenSpans | None, ...]
    credits: SpanCredits | None
    errors: tuple[SpanError, ...]

    @property
    def done(self) -> bool:
        """Whether no item is open."""
        return self.credits is not None


def solve_spans(
    request: ScarSolveRequest, limits: RequestLimits, checkpoint: Callable[[], None] = lambda: None
) -> SolvedSpans:
    """Token rewards of completions whose utilities the caller gives, or what to evaluate next.

    Args:
        request: A valid request.
        limits: Bounds on items, tokens, units and evaluations.
        checkpoint: Called before each item; what it raises ends the computation.

    Returns:
        A pure function of the request.

    Raises:
        WireError: As `span_request`.
    """
    spans = span_request(request, limits, checkpoint)
    spans, known = _with_known(request, spans, checkpoint)
    batch = SpanBatch(spans.items, spans.prompts, spans.groups, spans.options, spans.rejected)
    _tell_empty(batch, spans, known)
    for row, one in enumerate(known):
        checkpoint()
        if one is not None:
            _tell(batch, row, one)
    asked = batch.ask()
    credits_ = None if asked else batch.answer()
    errors = batch.errors if credits_ is None else credits_.errors
    failed = {error.row for error in errors}
    wants_empty = _first_rows(spans, failed, set(asked.empty))
    cells, found = MAX_CELLS, list[OpenSpans | None]()
    for row, item in enumerate(spans.items):
        if item is None or row in failed:
            found.append(None)
            continue
        n_units, wanted = item.units.n_units, batch.ask_of(row)
        most = min(request.batch_size, cells // max(n_units, 1))
        upcoming = wanted[: most if n_units else 0]
        cells -= upcoming.size
        found.append(
            OpenSpans(
                units=item.units,
                next=upcoming,
                needs_empty=row in wants_empty,
                needs_grand=n_units == 0 and len(wanted) > 0,
                planned=int(batch.planned[row]),
                known=batch.n_known(row),
            )
        )
    return SolvedSpans(tuple(found), credits_, tuple(_pointed(request, error) for error in errors))


def solve_results(request: ScarSolveRequest, answer: SolvedSpans) -> list[dict[str, Any]]:
    """The `items` of a `ScarSolveResponse`.

    Args:
        request: The request.
        answer: What was found.

    Returns:
        One object per item; arrays stay arrays.
    """
    errors = {error.row: error for error in answer.errors}
    items: list[dict[str, Any]] = []
    for row, (asked, item) in enumerate(zip(request.items, answer.items, strict=True)):
        if row in errors or item is None:
            items.append({"id": asked.id, **failed_item(errors[row])})
            continue
        counts = {"planned": item.planned, "evaluations": item.known}
        credit = None if answer.credits is None else answer.credits.items[row]
        if credit is None:
            merged = Flag.UNITS_MERGED if item.units.merged else Flag(0)
            wanted = {
                "units": item.units.tokens,
                "unit_characters": item.units.characters,
                "next": [np.flatnonzero(coalition).tolist() for coalition in item.next],
                "needs_empty": item.needs_empty,
                "needs_grand": item.needs_grand,
                "flags": merged.wire_names,
            }
            items.append({"id": asked.id, "status": "open", **wanted, **counts})
        else:
            items.append({"id": asked.id, **credited_item(credit), **counts})
    return items


def _with_known(
    request: ScarSolveRequest, spans: SpanRequest, checkpoint: Callable[[], None]
) -> tuple[SpanRequest, list[KnownSpans | None]]:
    """What is known of each item; items of which something impossible is said are rejected."""
    items, rejected = list(spans.items), list(spans.rejected)
    told = zip(items, request.items, strict=True)
    cells = sum(0 if item is None else item.units.n_units * len(asked.coalitions) for item, asked in told)
    if cells > MAX_SPAN_CELLS:
        detail = f"got {cells} units times coalitions; expected at most {MAX_SPAN_CELLS} per request"
        raise wire_error(ErrorCode.BUDGET_EXCEEDED, "/items", detail)
    known: list[KnownSpans | None] = []
    for row, asked in enumerate(request.items):
        checkpoint()
        item = items[row]
        one = None if item is None else known_spans(row, asked, item.units)
        if isinstance(one, SpanError):
            items[row] = None
            rejected.append(one)
        known.append(None if isinstance(one, SpanError) else one)
    return replace(spans, items=tuple(items), rejected=tuple(rejected)), known


def _tell_empty(batch: SpanBatch, spans: SpanRequest, known: list[KnownSpans | None]) -> None:
    """Tell v(∅) of each prompt, as the first item of it says that says so."""
    told: dict[int, float] = {}
    for prompt, one in zip(spans.prompts.tolist(), known, strict=True):
        if one is not None and one.empty is not None:
            told.setdefault(prompt, one.empty)
    for prompt, utility in told.items():
        batch.tell_empty(prompt, utility)


def _tell(batch: SpanBatch, row: int, known: KnownSpans) -> None:
    """Tell what is known of one item, as far as it is asked for."""
    while True:
        asked = batch.ask_of(row)
        keys = coalition_keys(asked)
        places = [place for place, key in enumerate(keys) if key in known.utilities]
        if not places:
            return
        batch.tell(row, asked[places], np.array([known.utilities[keys[place]] for place in places]))


def _first_rows(spans: SpanRequest, failed: set[int], prompts: set[int]) -> set[int]:
    """The first item that has not failed of each of some prompts."""
    first: dict[int, int] = {}
    for row, prompt in enumerate(spans.prompts.tolist()):
        if prompt in prompts and row not in failed:
            first.setdefault(prompt, row)
    return set(first.values())


def _pointed(request: ScarSolveRequest, error: SpanError) -> SpanError:
    """The error with the field of this route that is wrong: a completion has its utilities from the caller."""
    if error.code != "non_finite_utility" or error.field != "completion":
        return error
    item = request.items[error.row]
    if item.utility_grand is not None or item.grand_refused:
        return replace(error, field="utility_grand")
    return replace(error, field="utilities")
