"""From the bodies of `/v1/credit/scar` and `/v1/credit/scar/solve` to completions of the arithmetic, item by item.

Legend: `N` items, `T` tokens and `n` units of one of them. A value that does not fit its item rejects the item alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import number_name
from creditd.credit.evaluation_needs import EstimatorOptions
from creditd.credit.owen_trees import tree_evaluations
from creditd.credit.span_items import (
    MAX_SPAN_MAGNITUDE,
    SpanError,
    SpanErrorCode,
    SpanField,
    SpanItem,
    SpanOptions,
    field_of_units,
)
from creditd.credit.text_segments import segment_ends
from creditd.credit.text_units import TextUnits, units_of_ranges, units_of_segments
from creditd.wire.arrays import group_numbers, numbered
from creditd.wire.errors import ErrorCode
from creditd.wire.limits import RequestLimits, check_rows
from creditd.wire.patterns import pattern_ends
from creditd.wire.scar import ScarItem, ScarRequest, ScarSolveItem, ScarSolveRequest
from creditd.wire.scar_choices import GivenSegmentation, RegexSegmentation, SegmentationChoice, TokenSegmentation
from creditd.wire.v1 import Prompt
from creditd.wire.validation import wire_error

Integers: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Booleans: TypeAlias = NDArray[np.bool_]
Column: TypeAlias = Sequence[float] | Floats | Booleans
Item: TypeAlias = ScarItem | ScarSolveItem
Request: TypeAlias = ScarRequest | ScarSolveRequest

MAX_SPAN_CELLS = 1 << 25
"""Most units × evaluations of a request: the memory of its plans."""
_USABLE = f"a finite number of magnitude at most {MAX_SPAN_MAGNITUDE:g}"


@dataclass(frozen=True)
class SpanRequest:
    """The completions of a request.

    Attributes:
        items: N completions; None for one that is rejected.
        prompts: Shape (N,), int64, from 0 on: items of equal prompts have equal numbers.
        groups: Shape (N,), int64, from 0 on: which items are compared.
        rejected: Why items are, at most one error each, by row.
        options: How they get their credit.
    """

    items: tuple[SpanItem | None, ...]
    prompts: Integers
    groups: Integers
    rejected: tuple[SpanError, ...]
    options: SpanOptions


class _ItemError(Exception):
    """What is wrong with one item."""

    def __init__(self, code: SpanErrorCode, field: SpanField, detail: str, position: int | None = None) -> None:
        super().__init__(detail)
        self.code, self.field, self.detail, self.position = code, field, detail, position

    def at(self, row: int) -> SpanError:
        """The same of an item of a request."""
        return SpanError(row, self.code, self.field, self.position, self.detail)


def span_request(request: Request, limits: RequestLimits, checkpoint: Callable[[], None] = lambda: None) -> SpanRequest:
    """The completions of a request, and how they get their credit.

    Args:
        request: A valid request.
        limits: Bounds on items, tokens, units and evaluations.
        checkpoint: Called before each item; what it raises ends the work.

    Returns:
        Completions whose values fit each other, and why the others do not.

    Raises:
        WireError: If there are too many items or tokens, the plans would take too much, only some items name their
            group or prompt, the pattern is none, or the estimator does not go with the credit.

    Cost:
        O(characters + tokens), before anything is evaluated or planned.
    """
    items: Sequence[Item] = request.items
    check_rows(len(items), limits)
    options = _options(request, limits)
    prompts = _prompts(items)
    named = any(item.group is not None for item in items)
    groups = group_numbers([item.group for item in items], "/items")[0] if named else prompts
    _check_tokens(items, limits)
    ends_of = _ends_of(request.segmentation)
    found: list[SpanItem | None] = []
    rejected: dict[int, SpanError] = {}
    for row, item in enumerate(items):
        checkpoint()
        try:
            found.append(_completion(item, request.segmentation, ends_of, limits))
        except _ItemError as error:
            rejected[row] = error.at(row)
            found.append(None)
    _check_cells(found, options, rejected)
    return SpanRequest(tuple(found), prompts, groups, tuple(rejected[row] for row in sorted(rejected)), options)


def plain_prompt(prompt: Prompt) -> str | list[dict[str, str]]:
    """A prompt as engines take it."""
    return prompt if isinstance(prompt, str) else [message.model_dump() for message in prompt]


def pointer_to(error: SpanError) -> str:
    """JSON pointer to what is wrong with an item."""
    return f"/items/{error.row}/{error.field}" + ("" if error.position is None else f"/{error.position}")


def _options(request: Request, limits: RequestLimits) -> SpanOptions:
    """How completions get their credit."""
    try:
        return SpanOptions(
            value=request.credit.type,
            estimator=EstimatorOptions(**request.estimator.model_dump()),
            alpha=request.alpha,
            ddof=None if request.advantage.type == "none" else request.advantage.ddof,
            epsilon=request.advantage.epsilon,
            group_size=request.expect.group_size,
            fail_incomplete_groups=request.incomplete_group == "error",
            most_units=limits.units,
            most_evaluations=limits.evaluations,
        )
    except ValueError as error:
        raise wire_error(ErrorCode.INVALID_REQUEST, "/estimator", str(error)) from None


def _prompts(items: Sequence[Item]) -> Integers:
    """The number of each item's prompt."""
    contents: list[Hashable] = []
    for item in items:
        if isinstance(item, ScarSolveItem):
            break
        prompt = item.prompt
        contents.append(prompt if isinstance(prompt, str) else tuple((one.role, one.content) for one in prompt))
    if contents:
        return _numbers(contents)
    names = [item.prompt_id for item in items if isinstance(item, ScarSolveItem)]
    if all(name is None for name in names):
        return group_numbers([item.group for item in items], "/items")[0]
    if None in names:
        detail = "prompt_id is missing, but other items have one; expected it on all items or on none"
        raise wire_error(ErrorCode.INVALID_REQUEST, f"/items/{names.index(None)}/prompt_id", detail)
    return numbered([name for name in names if name is not None])[0]


def _numbers(contents: Sequence[Hashable]) -> Integers:
    """Each content as the number of its first occurrence."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(content, len(seen)) for content in contents], dtype=np.int64)


def _check_tokens(items: Sequence[Item], limits: RequestLimits) -> None:
    """Refuse a request of too many tokens, before anything is made for them."""
    total = 0
    for item in items:
        n_tokens = _n_tokens(item)
        total += 0 if n_tokens is None or not 0 <= n_tokens <= limits.tokens_per_set else n_tokens
    if total > limits.token_advantages:
        detail = f"got {total} tokens; expected at most {limits.token_advantages} per request"
        raise wire_error(ErrorCode.BUDGET_EXCEEDED, "/items", detail)


def _n_tokens(item: Item) -> int | None:
    """How many tokens an item says that it has; None where segments are tokens."""
    if item.token_offsets is not None:
        return len(item.token_offsets)
    return item.n_tokens if isinstance(item, ScarSolveItem) else None


EndsOf: TypeAlias = Callable[[str], Integers]


def _ends_of(segmentation: SegmentationChoice) -> EndsOf | None:
    """What cuts a text; None where no text is cut."""
    if isinstance(segmentation, RegexSegmentation):
        return _ends_of_pattern(segmentation.pattern)
    if isinstance(segmentation, TokenSegmentation | GivenSegmentation):
        return None
    cut = segmentation.type
    return lambda text: segment_ends(text, cut)


def _ends_of_pattern(pattern: str) -> EndsOf:
    """What cuts texts behind each match of a pattern; the pattern is at fault where it does not."""
    with _pattern_is_usable():
        ends_of = pattern_ends(pattern)

    def ends(text: str) -> Integers:
        with _pattern_is_usable():
            return ends_of(text)

    return ends


@contextmanager
def _pattern_is_usable() -> Iterator[None]:
    """What a pattern cannot do refuses the request: for how long it runs says nothing of one item."""
    try:
        yield
    except ValueError as error:
        raise wire_error(ErrorCode.INVALID_REQUEST, "/segmentation/pattern", str(error)) from None


def _completion(
    item: Item, segmentation: SegmentationChoice, ends_of: EndsOf | None, limits: RequestLimits
) -> SpanItem:
    """One completion, once its values fit each other."""
    _check_presence(item, segmentation)
    n_tokens, ends, most = _n_tokens(item), None, limits.tokens_per_set
    if n_tokens is not None and not 0 <= n_tokens <= most:
        field: SpanField = "n_tokens" if item.token_offsets is None else "token_offsets"
        raise _ItemError("shape_mismatch", field, f"got {n_tokens} tokens; expected 0 to {most}")
    if ends_of is not None and item.completion is not None:
        ends = ends_of(item.completion)
        n_tokens = len(ends) if n_tokens is None else n_tokens
        if n_tokens > most:
            raise _ItemError("shape_mismatch", "completion", f"got {n_tokens} segments; expected at most {most}")
    n_tokens = n_tokens or 0
    _check_length("completion_mask", item.completion_mask, n_tokens)
    _check_length("kl", item.kl, n_tokens)
    units = _units(item, n_tokens, ends, segmentation.max_units)
    return SpanItem(
        units=units,
        kl=_kl(item, units.trainable),
        other_reward=_checked("other_reward", item.other_reward),
        tree=None if item.tree is None else _pairs(item.tree),
    )


def _check_presence(item: Item, segmentation: SegmentationChoice) -> None:
    """Refuse an item that lacks what its segmentation needs, or has what is of no use to it."""
    kind = segmentation.type
    if isinstance(item, ScarSolveItem):
        if (item.completion is None) == (item.n_tokens is None):
            detail = "expected a completion or n_tokens, and not both"
            raise _ItemError("invalid_request", "completion", detail)
        if item.completion is None:
            if kind != "given":
                detail = f"the completion is missing; the segmentation {kind} cuts it"
                raise _ItemError("invalid_request", "completion", detail)
            if item.token_offsets is not None:
                detail = "got characters of tokens without a completion; expected null"
                raise _ItemError("invalid_request", "token_offsets", detail)
    if kind != "given" and item.units is not None:
        detail = f"got units, but the segmentation is {kind}; expected null, or the segmentation given"
        raise _ItemError("invalid_request", "units", detail)
    if kind == "given" and item.units is None:
        raise _ItemError("invalid_request", "units", "units is missing; the segmentation given needs it")
    if kind in {"given", "token"} and item.completion is not None and item.token_offsets is None:
        detail = f"token_offsets is missing; the segmentation {kind} needs it"
        raise _ItemError("invalid_request", "token_offsets", detail)


def _check_length(field: SpanField, column: Column | None, n_tokens: int) -> None:
    """Refuse a column that has not one entry for each token."""
    if column is not None and len(column) != n_tokens:
        detail = f"got {len(column)} entries; expected {n_tokens}, one per token"
        raise _ItemError("shape_mismatch", field, detail)


def _units(item: Item, n_tokens: int, ends: Integers | None, max_units: int | None) -> TextUnits:
    """The units of a completion."""
    mask = None if item.completion_mask is None else np.asarray(item.completion_mask, dtype=np.bool_)
    offsets = None if item.token_offsets is None else _pairs(item.token_offsets)
    text = item.completion
    try:
        if item.units is None:
            return units_of_segments(len(text or ""), ends, offsets, mask, max_units=max_units)
        return units_of_ranges(
            n_tokens,
            _pairs(item.units),
            mask,
            token_offsets=offsets,
            n_characters=None if text is None else len(text),
            max_units=max_units,
        )
    except ValueError as error:
        of_offsets = item.units is None or str(error).startswith(("offsets", "token_offsets"))
        raise _ItemError("shape_mismatch", "token_offsets" if of_offsets else "units", str(error)) from None


def _pairs(pairs: Sequence[Sequence[int]] | Integers) -> Integers:
    """Pairs as an array of shape (n, 2)."""
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 2)


def _kl(item: Item, trainable: Booleans) -> Floats | None:
    """The KL terms of a completion, once those that count are numbers."""
    if item.kl is None:
        return None
    terms = np.asarray(item.kl, dtype=np.float64)
    wrong = np.flatnonzero(trainable & ~(np.abs(terms) <= MAX_SPAN_MAGNITUDE))
    if len(wrong):
        _checked("kl", float(terms[wrong[0]]), int(wrong[0]))
    return terms


def _checked(field: SpanField, value: float, position: int | None = None) -> float:
    """A number in reward units, once it is finite and not too large."""
    if abs(value) <= MAX_SPAN_MAGNITUDE:
        return value
    code: SpanErrorCode = "invalid_request" if np.isfinite(value) else "non_finite_value"
    raise _ItemError(code, field, f"{field} is {number_name(value)}; expected {_USABLE}", position)


def _check_cells(items: list[SpanItem | None], options: SpanOptions, rejected: dict[int, SpanError]) -> None:
    """Reject each item whose plan may be too large, and refuse the request if all together may be; none is made yet."""
    sizes = [0 if item is None or item.units.n_units > options.most_units else item.units.n_units for item in items]
    total, longest = 0, max(sizes)
    for row, (item, n_units) in enumerate(zip(items, sizes, strict=True)):
        if item is None:
            continue
        cells = n_units * planned_at_most(n_units, longest, options, has_tree=item.tree is not None)
        if cells > MAX_SPAN_CELLS:
            detail = f"up to {cells} units times evaluations are planned; expected at most {MAX_SPAN_CELLS}"
            rejected[row] = SpanError(row, "budget_exceeded", field_of_units(item), None, detail)
            items[row] = None
            continue
        total += cells
    if total > MAX_SPAN_CELLS:
        detail = f"up to {total} units times evaluations are planned; expected at most {MAX_SPAN_CELLS} per request"
        raise wire_error(ErrorCode.BUDGET_EXCEEDED, "", detail)


def planned_at_most(n_units: int, longest: int, options: SpanOptions, *, has_tree: bool) -> int:
    """Most evaluations that a completion can take, told before any plan is made.

    Args:
        n_units: Its units n ≥ 0.
        longest: Units of the longest completion of the request.
        options: How completions get their credit.
        has_tree: Whether it comes with a tree.

    Returns:
        No fewer than its plan has, and about as many but for trees that are sent.

    Cost:
        O(1).
    """
    value, estimator = options.value, options.estimator
    most = options.most_evaluations + 2 * n_units + 2  # a longer plan is refused before it is made
    everything = 1 << min(n_units, most.bit_length())
    if n_units == 0 or value in {"uniform", "attention"}:
        planned = 2
    elif value in {"prefix", "leave_one_out"}:
        planned = n_units + 2
    elif value == "owen":
        planned = estimator.budget if has_tree else tree_evaluations(n_units)
    elif value == "auto" and estimator.type == "auto" and tree_evaluations(longest) <= estimator.budget < everything:
        planned = tree_evaluations(n_units)
    else:
        planned = everything if estimator.type == "exact" else estimator.budget
    return min(planned, everything, most)
