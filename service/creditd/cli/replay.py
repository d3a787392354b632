"""`creditd replay FILE…`: recorded exchanges, asked again; every number of the two answers is compared bit for bit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from creditd.client import (
    Client,
    ComposeResult,
    CreditdError,
    GroupResult,
    OarResult,
    Ragged,
    RaggedSpans,
    ScarLedger,
    ScarResult,
    ShapleyResult,
    StatusError,
)
from creditd.client.exchanges import answer_of, failure_of, parsed, public_url
from creditd.client.steps import Exchange, Failure
from creditd.wire.errors import ErrorCode
from creditd.wire.v1 import Service

Result: TypeAlias = ShapleyResult | GroupResult | ScarResult | OarResult | ComposeResult

_START_S = 10.0
"""How long a service that does not answer is waited for."""
_IDENTICAL, _DIFFERENT, _UNUSABLE = 0, 1, 2
_NOT_COMPARED = {"request_id", "usage", "service", "ids", "flag_names"}
_NAMES = {"ok": "status", "flag_masks": "flags"}


def run_files(options: argparse.Namespace) -> int:
    """Replay recorded exchanges, one after another; a file that cannot be used does not stop the others.

    Args:
        options: Parsed command line.

    Returns:
        0 when all answers are identical to the last bit, 1 when some differ, 2 when something could not be compared.
    """
    try:
        client = Client(options.url, deadline_s=options.timeout_s)
    except ValueError as error:
        return _unusable(error)
    with client:
        try:
            client.wait_until_ready(min(options.timeout_s, _START_S))
        except CreditdError as error:
            return _unusable(error)
        return max([_replayed(client, name) for name in options.files])


def _replayed(client: Client, name: str) -> int:
    """Replay one file; its part of the exit status."""
    try:
        exchange = parsed(Path(name).read_bytes())
        recorded = answer_of(exchange)
    except OSError as error:
        return _unusable(f"{name}: {error.strerror or error}")
    except ValueError as error:
        return _unusable(f"{name}: {error}")
    asked: Result | Failure
    try:
        asked = client.repeat(exchange)
    except StatusError as error:
        if error.code == ErrorCode.UNKNOWN_MODEL.value and recorded is not None:
            return _unusable(f"{name}: {error}; give the address of a service that has this model with --url")
        asked = failure_of(error)
    except CreditdError as error:
        return _unusable(f"{name}: {error}")
    when, where = f"{exchange.time:%Y-%m-%d %H:%M:%S}", _printable(exchange.url)
    print(f"{name}: recorded {when} from {where}, asked again at {public_url(client.base_url)}")
    for line in _ledger(exchange, recorded if isinstance(asked, Failure) else asked):
        print(f"  {line}")
    for line in _versions(recorded, asked):
        print(f"  {line}")
    return _verdict(name, exchange.error if recorded is None else recorded, asked)


def _unusable(reason: object) -> int:
    print(f"creditd replay: {reason}", file=sys.stderr)
    return _UNUSABLE


def _verdict(name: str, recorded: Result | Failure | None, asked: Result | Failure) -> int:
    """Say whether two outcomes are the same."""
    if isinstance(recorded, get_args(Result)) and not isinstance(asked, Failure):
        found = differences(recorded, asked)
        if not found:
            print(f"{name}: identical to the last bit")
            return _IDENTICAL
        print(f"{name}: different")
        for line in found:
            print(f"  {line}")
        return _DIFFERENT
    before, now = _outcome(recorded), _outcome(asked)
    if before == now:
        print(f"{name}: identical: {now} again")
        return _IDENTICAL
    print(f"{name}: different: recorded {before}, now {now}")
    return _DIFFERENT


def _outcome(outcome: Result | Failure | None) -> str:
    if not isinstance(outcome, Failure):
        return "an answer"
    return " ".join(_printable(part) for part in (outcome.kind, outcome.status, outcome.code) if part is not None)


def differences(recorded: Result, asked: Result) -> list[str]:
    """Which fields of two answers differ, in how many places and by how much.

    Numbers are compared by their bits, so that the sign of zero counts; slots without a number are alike. Identity,
    cost and version of an answer are not compared, nor the words of its errors.

    Args:
        recorded: One answer.
        asked: Another one to the same request.

    Returns:
        One line per field that differs; empty if the answers are identical.
    """
    found = []
    for name, before, now in _parts(recorded, asked):
        difference = _difference(before, now)
        if difference is not None:
            found.append(f"{_NAMES.get(name, name)}: {difference}")
    return found


def _parts(recorded: Result, asked: Result) -> Iterator[tuple[str, Any, Any]]:
    """What is compared of two answers, by name."""
    for field in fields(recorded):
        if field.name in _NOT_COMPARED:
            continue
        before, now = getattr(recorded, field.name), getattr(asked, field.name)
        if field.name == "flag_masks":
            yield field.name, recorded.flags, asked.flags
        elif field.name == "errors":
            yield field.name, _places(recorded), _places(asked)
        elif isinstance(before, ScarLedger):
            for part in fields(before):
                yield f"ledger {part.name}", getattr(before, part.name), getattr(now, part.name)
        else:
            yield field.name, before, now


def _places(result: Result) -> tuple[tuple[Any, ...], ...]:
    """What is wrong and where, without the words."""
    return tuple((error.row, error.code, error.pointer) for error in result.errors)


def _difference(before: Any, now: Any) -> str | None:  # noqa: ANN401 - a field of any type
    """How two values of a field differ, or None if they do not."""
    if isinstance(before, Ragged | RaggedSpans) and isinstance(now, Ragged | RaggedSpans):
        if not np.array_equal(before.row_splits, now.row_splits):
            return "rows of other lengths"
        return _difference(before.values, now.values)
    if isinstance(before, np.ndarray) and isinstance(now, np.ndarray):
        return _number_difference(before, now) if before.dtype == np.float64 else _rows_difference(before, now)
    if isinstance(before, tuple) and isinstance(now, tuple):
        return _rows_difference(before, now)
    if (before is None) != (now is None):
        return "recorded, and not answered now" if now is None else "not recorded, and answered now"
    return None if before == now else f"recorded {before}, now {now}"


def _number_difference(before: NDArray[np.float64], now: NDArray[np.float64]) -> str | None:
    other = (before.view(np.int64) != now.view(np.int64)) & ~(np.isnan(before) & np.isnan(now))
    if not other.any():
        return None
    apart = np.abs(before[other] - now[other])
    place = int(np.flatnonzero(other)[0])
    largest = f"largest difference {np.nanmax(apart):.3g}" if np.isfinite(apart).any() else "a number against none"
    return f"{int(other.sum())} of {len(before)} numbers differ, {largest}, first at {place}"


def _rows_difference(before: Sequence[Any] | NDArray[Any], now: Sequence[Any] | NDArray[Any]) -> str | None:
    if len(before) != len(now):
        return f"recorded {len(before)}, now {len(now)}"
    other = sum(1 for one, two in zip(before, now, strict=True) if np.any(one != two))
    return f"{other} of {len(before)} rows differ" if other else None


def _versions(recorded: Result | None, asked: Result | Failure) -> list[str]:
    """Who answered then and now, if that changed."""
    if recorded is None or isinstance(asked, Failure) or recorded.service == asked.service:
        return []
    return [f"recorded with {_version(recorded.service)}, now {_version(asked.service)}"]


def _version(service: Service) -> str:
    return f"creditd {service.version} (methods {service.methods})"


def _ledger(exchange: Exchange, result: Result | None) -> list[str]:
    """One line per set, per completion, or per prompt for whole responses, below a line of titles."""
    if result is None:
        return []
    if isinstance(result, ShapleyResult):
        titles = ["set", "group", "K", "v(∅)", "v(N)", "Σ credit", "gap", "flags"]
        rows = _set_rows(exchange, result)
    elif isinstance(result, ScarResult):
        titles = ["completion", "group", "tokens", "units", "v(∅)", "v(P)", "Σ rewards", "gap", "flags"]
        rows = _completion_rows(exchange, result)
    elif isinstance(result, ComposeResult):
        titles = ["set", "K", "tokens", "A^set", "Σ credit", "credit gap", "Σ advantages", "gap", "flags"]
        rows = _composed_rows(result)
    elif isinstance(result, OarResult):
        titles = ["completion", "tokens", "reweighted", "advantage", "Σ weights", "effective share", "flags"]
        rows = _reasoning_rows(result)
    else:
        titles = ["prompt", "G", "lowest advantage", "highest advantage", "flags"]
        rows = _prompt_rows(result)
    errors = {error.row: error.code for error in result.errors}
    cells = [titles, *([*row, _remark(result, place, errors)] for place, row in enumerate(rows))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(titles))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _set_rows(exchange: Exchange, result: ShapleyResult) -> list[list[str]]:
    groups = from_json(exchange.request)["columns"].get("groups")
    if not isinstance(groups, list) or len(groups) != len(result):
        groups = [None] * len(result)
    ids = result.ids or [None] * len(result)
    numbers = zip(result.utility_empty, result.utility_grand, result.credit_sum, result.gap, strict=True)
    return [
        [
            str(row) if ids[row] is None else _printable(ids[row]),
            "" if groups[row] is None else _printable(groups[row]),
            str(len(result.credits[row])),
            *(f"{number:.6g}" for number in four),
        ]
        for row, four in enumerate(numbers)
    ]


def _completion_rows(exchange: Exchange, result: ScarResult) -> list[list[str]]:
    items = from_json(exchange.request)["items"]
    groups = [item.get("group") for item in items] if len(items) == len(result) else [None] * len(result)
    ids = result.ids or [None] * len(result)
    numbers = zip(result.utility_empty, result.utility_grand, result.ledger.total, result.gap, strict=True)
    return [
        [
            str(row) if ids[row] is None else _printable(ids[row]),
            "" if groups[row] is None else _printable(groups[row]),
            str(len(result.token_rewards[row])),
            str(len(result.units[row])),
            *(f"{number:.6g}" for number in four),
        ]
        for row, four in enumerate(numbers)
    ]


def _reasoning_rows(result: OarResult) -> list[list[str]]:
    ids = result.ids or [None] * len(result)
    numbers = zip(result.advantages, result.weight_sum, result.effective_share, strict=True)
    return [
        [
            str(row) if ids[row] is None else _printable(ids[row]),
            str(len(result.token_advantages[row])),
            str(result.n_reweighted[row]),
            *(f"{number:.6g}" for number in three),
        ]
        for row, three in enumerate(numbers)
    ]


def _composed_rows(result: ComposeResult) -> list[list[str]]:
    ids = result.ids or [None] * len(result)
    rows = []
    for row, ledger in enumerate(result.ledgers):
        numbers: list[float | None] = [None] * 5
        if ledger is not None:
            of_set = float(result.set_advantages[row])
            numbers = [of_set, ledger.credit_sum, ledger.credit_gap, ledger.total, ledger.mass_gap]
        name = str(row) if ids[row] is None else _printable(ids[row])
        counts = [str(len(result.advantages[row])), str(len(result.token_advantages[row]))]
        rows.append([name, *counts, *("" if number is None else f"{number:.6g}" for number in numbers)])
    return rows


def _prompt_rows(result: GroupResult) -> list[list[str]]:
    return [
        [str(row), str(len(values)), *([f"{values.min():.6g}", f"{values.max():.6g}"] if len(values) else ["", ""])]
        for row, values in enumerate(result.advantages)
    ]


def _remark(result: Result, row: int, errors: dict[int | None, str]) -> str:
    """Why a row has no answer, or its flags."""
    return f"error: {_printable(errors[row])}" if row in errors else ", ".join(result.flags[row])


def _printable(name: object) -> str:
    """A name without what would move the cursor."""
    text = str(name)
    return text if text.isprintable() else ascii(text)
