"""From answers of `/v1/credit/oar` to results; no IO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic_core import to_json

from creditd.client.answers import flag_masks, item_error
from creditd.client.bodies import Body
from creditd.client.documents import known, read
from creditd.client.oar_results import Floats, OarResult, TokenRange
from creditd.client.results import ItemError, Ragged
from creditd.client.steps import Reply
from creditd.wire import v1


def oar_result(reply: Reply, body: Body) -> OarResult:
    """The answer of `/v1/credit/oar`.

    Args:
        reply: As it came.
        body: The request that it answers.

    Returns:
        Rows as the completions of the request.

    Raises:
        ResponseError: If the answer is not in the schema, or not about the completions of the request.
    """
    return read(reply, lambda answer: result_of(answer, body))


def result_of(answer: dict[str, Any], body: Body) -> OarResult:
    """The result of an answer as a document.

    Args:
        answer: The document; lists may be arrays.
        body: The request that it answers.

    Returns:
        Rows as the completions of the request.

    Raises:
        ValueError: If the answer is not about the completions of the request, as are others for other faults of shape.
    """
    items, lengths = answer["items"], np.diff(body.row_splits).tolist()
    if len(items) != len(lengths):
        raise ValueError(f"got {len(items)} items; expected {len(lengths)}")
    if not {item["status"] for item in items} <= {"ok", "error"}:
        raise ValueError("items: expected ok or error in each")
    sound = [item if item["status"] == "ok" else None for item in items]

    def column(name: str) -> Floats:
        return np.array([np.nan if item is None else _number(item.get(name)) for item in sound], dtype=np.float64)

    def ranges(name: str) -> tuple[TokenRange | None, ...]:
        return tuple(None if item is None else _range(item.get(name)) for item in sound)

    names, masks = flag_masks([[] if item is None else list(item.get("flags", ())) for item in sound])
    model, version = answer.get("model"), answer.get("weight_version")
    return OarResult(
        token_advantages=_rows(sound, "token_advantages", lengths),
        weights=_rows(sound, "weights", lengths),
        sensitivities=_rows(sound, "sensitivities", lengths),
        advantages=column("advantage"),
        n_reweighted=np.array([0 if item is None else int(item["n_reweighted"]) for item in sound], dtype=np.int64),
        weight_sum=column("weight_sum"),
        effective_share=column("effective_share"),
        top_share=column("top_share"),
        spread=column("spread"),
        reasoning=ranges("reasoning"),
        answers=ranges("answer"),
        model=None if model is None else str(model),
        weight_version=None if version is None else str(version),
        ids=body.ids,
        ok=np.array([item is not None for item in sound], dtype=np.bool_),
        flag_masks=np.array(masks, dtype=np.int64),
        flag_names=names,
        errors=tuple(_error(item["error"], body, row) for row, item in enumerate(items) if item["status"] == "error"),
        usage=known(v1.Usage, answer["usage"]),
        request_id=str(answer["request_id"]),
        service=known(v1.Service, answer["service"]),
    )


def answer_text(result: OarResult) -> str:
    """The answer that the service would have sent for a result, bits included.

    Args:
        result: Of local mode.

    Returns:
        JSON that fits `OarResponse`, with null where there is no number.
    """
    failed = {error.row: error for error in result.errors}
    items = [_failed(failed[row]) if row in failed else _item(result, row) for row in range(len(result))]
    document = {
        "request_id": result.request_id,
        "service": result.service.model_dump(),
        "model": result.model,
        "weight_version": result.weight_version,
        "usage": result.usage.model_dump(),
        "items": items,
    }
    return to_json(document, inf_nan_mode="null").decode()


def _failed(error: ItemError) -> dict[str, Any]:
    said = {"code": error.code, "pointer": error.pointer, "detail": error.detail, "retryable": False}
    return {"status": "error", "error": said}


def _item(result: OarResult, row: int) -> dict[str, Any]:
    return {
        "status": "ok",
        "token_advantages": result.token_advantages[row].tolist(),
        "weights": result.weights[row].tolist(),
        "sensitivities": result.sensitivities[row].tolist(),
        "advantage": float(result.advantages[row]),
        "n_reweighted": int(result.n_reweighted[row]),
        "weight_sum": float(result.weight_sum[row]),
        "effective_share": float(result.effective_share[row]),
        "top_share": float(result.top_share[row]),
        "spread": float(result.spread[row]),
        "reasoning": result.reasoning[row],
        "answer": result.answers[row],
        "flags": result.flags[row],
    }


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _range(value: Any) -> TokenRange | None:  # noqa: ANN401 - a list or an array
    if value is None:
        return None
    start, stop = value
    return int(start), int(stop)


def _rows(sound: Sequence[dict[str, Any] | None], name: str, lengths: Sequence[int]) -> Ragged:
    """One number per token of the request, NaN where there is none."""
    rows = []
    for item, length in zip(sound, lengths, strict=True):
        if item is None:
            rows.append(np.full(length, np.nan))
            continue
        given = item[name]
        row = np.array(given.tolist() if hasattr(given, "tolist") else given, dtype=np.float64)
        if row.shape != (length,):
            raise ValueError(f"{name}: expected one number per token of the request")
        rows.append(row)
    return Ragged.from_rows(rows)


def _error(error: dict[str, Any], body: Body, row: int) -> ItemError:
    return item_error(str(error["code"]), str(error["pointer"]), str(error["detail"]), body, row)
