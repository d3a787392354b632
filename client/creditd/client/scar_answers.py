"""From answers of `/v1/credit/scar` and `/v1/credit/scar/solve` to results; no IO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.client.answers import flag_masks, item_error
from creditd.client.arrays import splits_of
from creditd.client.bodies import Body
from creditd.client.documents import NOT_IN_SCHEMA, known, read, unreadable
from creditd.client.results import ItemError, Ragged
from creditd.client.scar_results import RaggedSpans, ScarLedger, ScarResult
from creditd.client.steps import Reply
from creditd.wire import v1

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

_OPEN_AND_ENDED = {"open", "ok", "error"}


def scar_result(reply: Reply, body: Body) -> ScarResult:
    """The answer of `/v1/credit/scar`.

    Args:
        reply: As it came.
        body: The request that it answers.

    Returns:
        Rows as the completions of the request.

    Raises:
        ResponseError: If the answer is not in the schema, or not about the completions of the request.
    """
    return read(reply, lambda answer: _result(answer, body))


def solved_result(answer: dict[str, Any], body: Body) -> ScarResult:
    """The result of a conversation whose last answer leaves no completion open.

    Args:
        answer: The last answer, as a document.
        body: The request that it answers.

    Returns:
        As `scar_result`.

    Raises:
        ResponseError: As `scar_result`.
    """
    try:
        return _result(answer, body)
    except NOT_IN_SCHEMA as error:
        raise unreadable(error, answer, str(answer.get("request_id"))) from error


def solve_answer(reply: Reply, body: Body) -> dict[str, Any]:
    """The answer of `/v1/credit/scar/solve`, as far as a conversation needs it.

    Args:
        reply: As it came.
        body: The request that it answers.

    Returns:
        The document; what an open completion wants is about its own units.

    Raises:
        ResponseError: As `scar_result`.
    """
    return read(reply, lambda answer: _checked(answer, len(body.row_splits) - 1))


def _checked(answer: dict[str, Any], n_rows: int) -> dict[str, Any]:
    items = answer["items"]
    if len(items) != n_rows:
        raise ValueError(f"got {len(items)} items; expected {n_rows}")
    if not isinstance(answer["done"], bool) or not {item["status"] for item in items} <= _OPEN_AND_ENDED:
        raise ValueError("items: expected one of open, ok, error in each")
    progress = False
    for item in items:
        if item["status"] != "open":
            continue
        n_units = len(_spans(item["units"]))
        if len(_spans(item["unit_characters"])) != n_units:
            raise ValueError("unit_characters: expected one range per unit")
        coalitions = () if item.get("next") is None else item["next"]
        if any(not 0 <= unit < n_units for units in coalitions for unit in units):
            raise ValueError(f"next: expected units from 0 to {n_units - 1}")
        progress |= len(coalitions) > 0 or bool(item.get("needs_empty")) or bool(item.get("needs_grand"))
    if progress == answer["done"]:
        raise ValueError("next: expected something to evaluate exactly as long as an item is open")
    return answer


def _result(answer: dict[str, Any], body: Body) -> ScarResult:
    items, lengths = answer["items"], np.diff(body.row_splits).tolist()
    if len(items) != len(lengths):
        raise ValueError(f"got {len(items)} items; expected {len(lengths)}")
    if not {item["status"] for item in items} <= {"ok", "error"}:
        raise ValueError("items: expected ok or error in each")
    ok = np.array([item["status"] == "ok" for item in items], dtype=np.bool_)
    sound = [item if item["status"] == "ok" else {} for item in items]
    rewards = [
        _row(item.get("token_rewards"), 0 if item else length) for item, length in zip(sound, lengths, strict=True)
    ]
    if any(length and len(row) != length for row, length in zip(rewards, lengths, strict=True)):
        raise ValueError("token_rewards: expected one number per token of the request")
    units = [_spans(item.get("units")) for item in sound]
    sizes = [len(row) for row in units]
    has_text = any(item.get("unit_characters") is not None for item in sound)
    characters = [_spans(item.get("unit_characters")) for item in sound]
    if has_text and [len(row) for row in characters] != sizes:
        raise ValueError("unit_characters: expected one range per unit")

    def per_token(name: str) -> Ragged | None:
        return _optional(sound, name, [len(row) for row in rewards])

    def per_unit(name: str, place: int | None = None) -> Ragged | None:
        return _optional(sound, name, sizes, place)

    def column(name: str) -> Floats:
        return _numbers([item.get(name) for item in sound])

    names, masks = flag_masks([list(item.get("flags", ())) for item in sound])
    model = answer.get("model")
    return ScarResult(
        token_rewards=Ragged.from_rows(rewards),
        token_advantages=per_token("token_advantages"),
        units=_ragged_spans(units),
        unit_characters=_ragged_spans(characters) if has_text else None,
        unit_values=per_unit("unit_values") or Ragged.from_rows([np.full(size, np.nan) for size in sizes]),
        standard_errors=per_unit("standard_errors"),
        interval_low=per_unit("intervals", 0),
        interval_high=per_unit("intervals", 1),
        utility_empty=column("utility_empty"),
        utility_grand=column("utility_grand"),
        gap=column("gap"),
        exact=np.array([item.get("exact") is True for item in sound], dtype=np.bool_),
        methods=tuple(None if (method := item.get("method")) is None else str(method) for item in sound),
        ledger=ScarLedger(
            **{part.name: _numbers([item["ledger"][part.name] if item else None for item in sound]) for part in _PARTS}
        ),
        model=None if model is None else str(model),
        ids=body.ids,
        ok=ok,
        flag_masks=np.array(masks, dtype=np.int64),
        flag_names=names,
        errors=tuple(_error(item["error"], body, row) for row, item in enumerate(items) if item["status"] == "error"),
        usage=known(v1.Usage, answer["usage"]),
        request_id=str(answer["request_id"]),
        service=known(v1.Service, answer["service"]),
    )


_PARTS = fields(ScarLedger)


def _numbers(values: Sequence[float | None]) -> Floats:
    """Numbers, NaN where there is none."""
    return np.array(values, dtype=np.float64)


def _row(values: Any, length: int) -> Floats:  # noqa: ANN401 - a list or an array
    """Numbers of one row; where there is none, NaN of some length."""
    if values is None:
        return np.full(length, np.nan)
    row = np.array(values, dtype=np.float64)
    if row.ndim != 1:
        raise ValueError(f"got an array of shape {row.shape}; expected one axis")
    return row


def _optional(sound: Sequence[dict[str, Any]], name: str, sizes: list[int], place: int | None = None) -> Ragged | None:
    """Rows of a field that some items have, or None if none has it."""
    if all(item.get(name) is None for item in sound):
        return None
    rows = [item.get(name) for item in sound]
    if place is not None:
        rows = [None if row is None else np.array(row, dtype=np.float64).reshape(-1, 2)[:, place] for row in rows]
    found = [_row(row, size) for row, size in zip(rows, sizes, strict=True)]
    if [len(row) for row in found] != sizes:
        raise ValueError(f"{name}: expected rows of {sizes} numbers")
    return Ragged.from_rows(found)


def _spans(pairs: Any) -> Integers:  # noqa: ANN401 - a list or an array
    """Ranges of one item, shape (n, 2); none of an item that has none."""
    found = np.array(() if pairs is None else pairs)
    if found.size and found.dtype.kind not in "iu":
        raise ValueError(f"got ranges of {found.dtype}; expected integers")
    return found.astype(np.int64).reshape(-1, 2)


def _ragged_spans(rows: Sequence[Integers]) -> RaggedSpans:
    return RaggedSpans(np.concatenate([np.empty((0, 2), dtype=np.int64), *rows]), splits_of([len(row) for row in rows]))


def _error(error: dict[str, Any], body: Body, row: int) -> ItemError:
    return item_error(str(error["code"]), str(error["pointer"]), str(error["detail"]), body, row)
