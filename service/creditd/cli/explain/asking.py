"""A request asked of a service through the client, and its result as the service would write it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from creditd.cli.explain.reading import ExplainError
from creditd.client import Client, ScarResult

_COLUMNS = {
    "prompt": "prompts",
    "completion": "completions",
    "id": "ids",
    "group": "groups",
    "token_offsets": "token_offsets",
    "completion_mask": "completion_masks",
    "units": "units",
    "tree": "trees",
    "kl": "kl",
    "other_reward": "other_rewards",
}
"""The client's argument for each field of an item."""
_OPTIONS = ("segmentation", "absent", "credit", "estimator", "alpha", "advantage", "expect", "incomplete_group",
            "deterministic")  # fmt: skip


def asked(client: Client, request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request, as JSON has it.

    Args:
        client: Of a service.
        request: As `POST /v1/credit/scar` takes it. Without a `model` the only reward model of the service is asked.

    Returns:
        The answer; items that have none say why.

    Raises:
        ExplainError: If it has fields that there are not, or no model that could be asked.
        CreditdError: If the service does not answer any of its items.
    """
    items = request["items"]
    unknown = [name for name in request if name not in {"model", "items", *_OPTIONS}]
    unknown += [f"items/{row}/{name}" for row, item in enumerate(items) for name in item if name not in _COLUMNS]
    if unknown:
        raise ExplainError(f"/{unknown[0]}: there is no such field")
    columns: dict[str, Any] = {argument: _column(items, field) for field, argument in _COLUMNS.items()}
    if columns["prompts"] is None:
        raise ExplainError("no item has a prompt; expected one in each")
    result = client.scar(
        **columns,
        model=request.get("model") or _only_model(client),
        **{name: request[name] for name in _OPTIONS if name in request},
        on_item_error="return",
    )
    return answer_of_result(result)


def answer_of_result(result: ScarResult) -> dict[str, Any]:
    """A result as `POST /v1/credit/scar` answers it."""
    errors = {error.row: {"code": error.code, "detail": error.detail} for error in result.errors}
    rows = range(len(result.ok))
    items = [{"status": "error", "error": errors[row]} if row in errors else _item(result, row) for row in rows]
    return {
        "request_id": result.request_id,
        "service": result.service.model_dump(),
        "model": result.model,
        "usage": result.usage.model_dump(),
        "items": items,
    }


def _item(result: ScarResult, row: int) -> dict[str, Any]:
    values, lows, highs = result.unit_values[row], result.interval_low, result.interval_high
    is_shared = len(values) > 0 and not math.isnan(values[0])
    intervals = None
    if lows is not None and highs is not None:
        intervals = [list(ends) for ends in zip(_numbers(lows[row]), _numbers(highs[row]), strict=True)]
    errors, advantages = result.standard_errors, result.token_advantages
    ledger = result.ledger
    names = ("kl", "other_reward", "units", "terminal", "remainder", "total", "alpha")
    return {
        "status": "ok",
        "token_rewards": _numbers(result.token_rewards[row]),
        "token_advantages": None if advantages is None else _numbers(advantages[row]),
        "units": result.units[row].tolist(),
        "unit_characters": [] if result.unit_characters is None else result.unit_characters[row].tolist(),
        "unit_values": _numbers(values) if is_shared else None,
        "standard_errors": None if errors is None else _or_none(_numbers(errors[row])),
        "intervals": None if intervals is None else _or_none(intervals),
        "utility_empty": _number(result.utility_empty[row]),
        "utility_grand": _number(result.utility_grand[row]),
        "method": result.methods[row],
        "exact": bool(result.exact[row]) if is_shared else None,
        "gap": _number(result.gap[row]),
        "ledger": {name: float(getattr(ledger, name)[row]) for name in names},
        "flags": list(result.flags[row]),
    }


def _only_model(client: Client) -> str:
    names = [model.id for model in client.models() if model.kind == "reward"]
    if len(names) == 1:
        return names[0]
    if not names:
        raise ExplainError("this service has no reward model; `make serve-models CONFIG=FILE.toml` starts one that has")
    raise ExplainError(f"got no model; expected --model with one of {', '.join(names)}")


def _column(items: Sequence[Mapping[str, Any]], field: str) -> list[Any] | None:
    column = [item.get(field) for item in items]
    return None if all(entry is None for entry in column) else column


def _numbers(values: NDArray[Any]) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    """A number, None for what is none."""
    return None if math.isnan(value) else float(value)


def _or_none(values: list[Any]) -> list[Any] | None:
    """Values, None where none of them is a number."""
    return None if all(value is None or value == [None, None] for value in values) else values
