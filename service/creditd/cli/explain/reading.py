"""Requests and answers from files: what they must be for a page to be made of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from creditd.wire.fields import WireModel
from creditd.wire.scar import ScarSolveResult
from creditd.wire.v1 import Prompt
from creditd.wire.validation import from_validation_error

_M = TypeVar("_M", bound=WireModel)


class ExplainError(Exception):
    """There is nothing to show; the message says why."""


class _Shown(WireModel):
    """What is shown of an item."""

    completion: str
    prompt: Prompt | None = None
    token_offsets: list[tuple[int, int]] | None = None
    completion_mask: list[bool] | None = None


def request_of(text: str) -> dict[str, Any]:
    """A request from what stands in a file.

    Args:
        text: A request as `POST /v1/credit/scar` takes it, a list of its items, one item, or one item per line.

    Returns:
        A request; it has `items`, each a mapping with its `completion`.

    Raises:
        ExplainError: If it is none of these.
    """
    found = _document(text)
    if isinstance(found, dict) and "items" not in found:
        found = [found]
    request = {"items": found} if isinstance(found, list) else found
    if not isinstance(request, dict):
        raise ExplainError(f"got {type(found).__name__}; expected a request, or its items")
    items = request["items"]
    if not isinstance(items, list) or not items:
        raise ExplainError("got no item; expected at least one completion")
    for row, item in enumerate(items):
        if not isinstance(item, dict):
            raise ExplainError(f"item {row + 1}: expected an object with its completion, a text")
        _checked(_Shown, item, f"item {row + 1}")
    return request


def answer_of(text: str, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """An answer of the service from what stands in a file.

    Args:
        text: The body of the answer, in JSON; of `/v1/credit/scar`, or the last one of `/v1/credit/scar/solve`.
        items: What it answers.

    Returns:
        The answer; each of its items has every field of the schema and fits the item that it answers.

    Raises:
        ExplainError: If it is no such answer, or that of other items.
    """
    try:
        found = json.loads(text, parse_constant=_refused, parse_float=_finite, parse_int=_integer)
    except ValueError as error:
        raise ExplainError(f"the answer is not JSON: {error}") from None
    answers = found.get("items") if isinstance(found, dict) else None
    if not isinstance(answers, list):
        raise ExplainError("the answer has no items; expected what POST /v1/credit/scar answered, in JSON")
    if len(answers) != len(items):
        raise ExplainError(f"got {len(answers)} answers; expected {len(items)}, one for each item of the request")
    rows = zip(items, answers, strict=True)
    return {**found, "items": [_fitted(row, item, answer) for row, (item, answer) in enumerate(rows)]}


def _document(text: str) -> Any:  # noqa: ANN401 - whatever stands in a file
    """JSON, or a list of what stands on each line."""
    try:
        return json.loads(text)
    except ValueError as error:
        whole = error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if len(lines) < 2:
        raise ExplainError(f"the request is not JSON: {whole}")
    return [_line(number, line) for number, line in lines]


def _line(number: int, line: str) -> Any:  # noqa: ANN401 - as _document
    try:
        return json.loads(line)
    except ValueError as error:
        raise ExplainError(f"neither the whole file nor its line {number} is JSON: {error}") from None


def _refused(name: str) -> float:
    raise ValueError(f"got {name}, expected a number")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refused(digits)


def _integer(digits: str) -> int:
    _finite(digits)
    return int(digits)


def _checked(kind: type[_M], found: Mapping[str, Any], where: str) -> _M:
    """The fields of an object that are those of a model; it may have others."""
    known = {name: found[name] for name in kind.model_fields if name in found}
    try:
        return kind.model_validate_json(json.dumps(known))
    except ValidationError as error:
        detail = from_validation_error(error).detail
        raise ExplainError(f"{where}{'' if detail.startswith('/') else ': '}{detail}") from None


def _fitted(row: int, item: Mapping[str, Any], answer: object) -> dict[str, Any]:
    """The answer to one item, once it is sure that the two belong together."""
    where = f"answer {row + 1}"
    if not isinstance(answer, dict):
        raise ExplainError(f"{where}: expected an object")
    result = _checked(ScarSolveResult, answer, where)
    if result.status == "error" and result.error is not None:
        return result.model_dump(mode="json")
    if result.status != "ok":
        raise ExplainError(f"{where} has the status {result.status}; expected ok, or an error that says which")
    if result.units is None or result.token_rewards is None or result.ledger is None or result.unit_characters is None:
        raise ExplainError(f"{where}: expected units, unit_characters, token_rewards and ledger")
    n_units, n_tokens = len(result.units), len(result.token_rewards)
    _check_lengths(where, result, ("unit_characters", "unit_values", "standard_errors", "intervals"), n_units)
    _check_lengths(where, result, ("token_advantages",), n_tokens)
    for name in ("token_offsets", "completion_mask"):
        given = item.get(name)
        if given is not None and len(given) != n_tokens:
            raise ExplainError(f"{where}: got {n_tokens} token_rewards; expected one for each of its {name}")
    n_characters = len(item["completion"])
    _check_ranges(f"{where}: unit_characters", result.unit_characters, n_characters, "characters")
    _check_units(f"{where}: units", result.units, n_tokens)
    _check_offsets(f"item {row + 1}/token_offsets", item.get("token_offsets") or (), n_characters)
    return result.model_dump(mode="json")


def _check_lengths(where: str, result: ScarSolveResult, names: Sequence[str], length: int) -> None:
    for name in names:
        values = getattr(result, name)
        if values is not None and len(values) != length:
            raise ExplainError(f"{where}: got {len(values)} {name}, expected {length}")


def _check_units(where: str, units: Sequence[tuple[int, int]], n_tokens: int) -> None:
    _check_ranges(where, units, n_tokens, "tokens")
    for start, stop in units:
        if start == stop:
            raise ExplainError(f"{where}: got [{start}, {stop}]; expected at least one token in each")


def _check_offsets(where: str, offsets: Sequence[tuple[int, int]], n_characters: int) -> None:
    """Tokens that share a character have the same offsets, so that these need not be disjoint."""
    for start, stop in offsets:
        if not 0 <= start <= stop <= n_characters:
            raise ExplainError(f"{where}: got [{start}, {stop}]; expected ranges within {n_characters} characters")


def _check_ranges(where: str, ranges: Sequence[tuple[int, int]], most: int, what: str) -> None:
    end = 0
    for start, stop in ranges:
        if not end <= start <= stop <= most:
            raise ExplainError(
                f"{where}: got [{start}, {stop}] behind {end}; expected ranges in order, within {most} {what}"
            )
        end = stop
