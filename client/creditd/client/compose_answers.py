"""From answers of `/v1/credit/compose` to results; no IO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from creditd.client.answers import flag_masks, item_error
from creditd.client.bodies import Body
from creditd.client.compose_results import ComposeResult
from creditd.client.documents import known, read
from creditd.client.results import ItemError, Ragged
from creditd.client.steps import Reply
from creditd.credit.composed_items import CandidateLedger, SetLedger, UnitLedger
from creditd.wire import v1

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


def compose_result(reply: Reply, body: Body) -> ComposeResult:
    """The answer of `/v1/credit/compose`.

    Args:
        reply: As it came.
        body: The request that it answers.

    Returns:
        Rows as the sets of the request.

    Raises:
        ResponseError: If the answer is not in the schema, or not about the sets of the request.
    """
    return read(reply, lambda answer: result_of(answer, body))


def result_of(answer: dict[str, Any], body: Body) -> ComposeResult:
    """The result of an answer as a document.

    Args:
        answer: The document; lists may be arrays.
        body: The request that it answers.

    Returns:
        Rows as the sets of the request.

    Raises:
        ValueError: If the answer is not about the sets of the request, as are others for other faults of shape.
    """
    sets, sizes = answer["sets"], np.diff(body.row_splits).tolist()
    lengths = [0] * len(sizes) if body.token_splits is None else np.diff(body.token_splits).tolist()
    if len(sets) != len(sizes):
        raise ValueError(f"got {len(sets)} sets; expected {len(sizes)}")
    if not {item["status"] for item in sets} <= {"ok", "error"}:
        raise ValueError("sets: expected ok or error in each")
    sound = [item if item["status"] == "ok" else {} for item in sets]

    def column(name: str) -> Floats:
        return np.array([item.get(name) for item in sound], dtype=np.float64)

    has_credits = any(item.get("credits") is not None for item in sound)
    has_set_rewards = any(item.get("set_reward_advantage") is not None for item in sound)
    names, masks = flag_masks([list(item.get("flags", ())) for item in sound])
    return ComposeResult(
        token_advantages=_rows(sound, "token_advantages", lengths),
        credits=_rows(sound, "credits", sizes) if has_credits else None,
        advantages=_rows(sound, "advantages", sizes),
        unit_values=_unit_values(sound, sizes),
        set_advantages=column("set_advantage"),
        set_reward_advantages=column("set_reward_advantage") if has_set_rewards else None,
        utility_empty=column("utility_empty"),
        utility_grand=column("utility_grand"),
        ledgers=tuple(_ledger(item["ledger"]) if item else None for item in sound),
        ids=body.ids,
        ok=np.array([bool(item) for item in sound], dtype=np.bool_),
        flag_masks=np.array(masks, dtype=np.int64),
        flag_names=names,
        errors=tuple(_error(item["error"], body, row) for row, item in enumerate(sets) if item["status"] == "error"),
        usage=known(v1.Usage, answer["usage"]),
        request_id=str(answer["request_id"]),
        service=known(v1.Service, answer["service"]),
    )


def answer_text(result: ComposeResult) -> str:
    """The answer that the service would have sent for a result, bits included.

    Args:
        result: Of local mode.

    Returns:
        JSON that fits `ComposeResponse`, with null where there is no number.
    """
    failed = {error.row: error for error in result.errors}
    document = {
        "request_id": result.request_id,
        "service": result.service.model_dump(),
        "usage": result.usage.model_dump(),
        "sets": [_failed(failed[row]) if row in failed else _set(result, row) for row in range(len(result))],
    }
    return to_json(document, inf_nan_mode="null").decode()


def _failed(error: ItemError) -> dict[str, Any]:
    said = {"code": error.code, "pointer": error.pointer, "detail": error.detail, "retryable": False}
    return {"status": "error", "error": said}


def _set(result: ComposeResult, row: int) -> dict[str, Any]:
    ledger, whole = result.ledgers[row], result.set_reward_advantages
    accounts = () if ledger is None else ledger.candidates
    values = zip(accounts, result.candidate_rows(row), strict=True)
    return {
        "status": "ok",
        "credits": None if result.credits is None else result.credits[row].tolist(),
        "advantages": result.advantages[row].tolist(),
        "set_advantage": float(result.set_advantages[row]),
        "set_reward_advantage": None if whole is None else float(whole[row]),
        "token_advantages": result.token_advantages[row].tolist(),
        "unit_values": [None if one.units is None else result.unit_values[at].tolist() for one, at in values],
        "utility_empty": float(result.utility_empty[row]),
        "utility_grand": float(result.utility_grand[row]),
        "ledger": None if ledger is None else asdict(ledger),
        "flags": result.flags[row],
    }


def _rows(sound: Sequence[dict[str, Any]], name: str, lengths: Sequence[int]) -> Ragged:
    """Rows of a field, NaN where there is no number, each as long as the request says."""
    rows = []
    for item, length in zip(sound, lengths, strict=True):
        values = item.get(name)
        row = np.full(length, np.nan) if values is None else np.array(values, dtype=np.float64)
        if row.shape != (length,):
            raise ValueError(f"{name}: got shape {row.shape}; expected ({length},)")
        rows.append(row)
    return Ragged.from_rows(rows)


def _unit_values(sound: Sequence[dict[str, Any]], sizes: Sequence[int]) -> Ragged:
    """A row per candidate of all sets."""
    rows: list[Floats] = []
    for item, size in zip(sound, sizes, strict=True):
        values = item["unit_values"] if item else [None] * size
        if len(values) != size:
            raise ValueError(f"unit_values: got {len(values)} rows; expected {size}")
        rows += [np.zeros(0) if row is None else np.array(row, dtype=np.float64) for row in values]
    return Ragged.from_rows(rows)


def _ledger(account: dict[str, Any]) -> SetLedger:
    """An account, and those in it; what this client does not know of them is passed over."""
    candidates = tuple(
        CandidateLedger(
            **_entries(CandidateLedger, one, "units"),
            units=None if one["units"] is None else tuple(UnitLedger(**_entries(UnitLedger, u)) for u in one["units"]),
        )
        for one in account["candidates"]
    )
    return SetLedger(**_entries(SetLedger, account, "candidates"), candidates=candidates)


def _entries(kind: type, account: dict[str, Any], *without: str) -> dict[str, Any]:
    return {field.name: account[field.name] for field in fields(kind) if field.name not in without}


def _error(error: dict[str, Any], body: Body, row: int) -> ItemError:
    return item_error(str(error["code"]), str(error["pointer"]), str(error["detail"]), body, row)
