"""`creditd shapley FILE.jsonl`: one candidate set per line in, one result per line out, bad lines by number."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from tqdm import tqdm

from creditd.client import Client, CreditdError, InvalidRequestError, ShapleyResult
from creditd.wire.v1 import MAX_SETS, CandidateSet
from creditd.wire.validation import from_validation_error

_MAX_REPORTED = 20
"""Bad lines named on standard error; all of them stand in the output."""


@dataclass(frozen=True)
class _Line:
    number: int
    item: dict[str, Any]


class _UsageError(Exception):
    """The command line cannot be used."""


def run_file(options: argparse.Namespace) -> int:
    """Solve the candidate sets of a file.

    Args:
        options: Parsed command line.

    Returns:
        0 when every line was answered, 1 when some failed, 2 when the command cannot be used.
    """
    try:
        choices = {
            "utility": _choice(options.utility),
            "credit": _choice(options.credit),
            "advantage": _choice(options.advantage),
            "tokens": None if options.tokens is None else _choice(options.tokens),
        }
        with ExitStack() as stack:
            source = (
                sys.stdin if options.file == "-" else stack.enter_context(Path(options.file).open(encoding="utf-8"))
            )
            results, lines = _read(source)
            client = stack.enter_context(Client(options.url))
            bar = stack.enter_context(tqdm(total=len(lines), unit="set", disable=options.quiet, file=sys.stderr))
            for batch in _batches(lines, options.batch_size, whole=choices["advantage"] == "batch_scaled"):
                results.update(_solve(client, batch, choices))
                bar.update(len(batch))
            sink = (
                sys.stdout
                if options.output is None
                else stack.enter_context(options.output.open("w", encoding="utf-8"))
            )
            _write(sink, results)
    except (_UsageError, InvalidRequestError, OSError, UnicodeDecodeError) as error:
        print(f"creditd shapley: {error}", file=sys.stderr)
        return 2
    except CreditdError as error:
        print(f"creditd shapley: {error}", file=sys.stderr)
        return 1
    return _report(results)


def _choice(text: str) -> str | dict[str, Any]:
    """A choice of the command line: a name, or a JSON object."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        choice: dict[str, Any] = json.loads(text)
    except ValueError:
        raise _UsageError(f"got {text!r}; expected a name or a JSON object") from None
    return choice


def _read(source: Iterable[str]) -> tuple[dict[int, dict[str, Any]], list[_Line]]:
    """Results of the lines that are not candidate sets, and the lines that are. Blank lines do not count."""
    failed: dict[int, dict[str, Any]] = {}
    lines: list[_Line] = []
    for number, text in enumerate(source, start=1):
        if not text.strip():
            continue
        try:
            item = CandidateSet.model_validate_json(text)
        except ValidationError as error:
            found = from_validation_error(error)
            failed[number] = _failure(number, None, found.code.value, found.detail)
        else:
            lines.append(_Line(number, item.model_dump(exclude_unset=True)))
    return failed, lines


def _batches(lines: Sequence[_Line], size: int, *, whole: bool) -> Iterator[list[_Line]]:
    """Batches of about `size` sets in which every group is whole; sets without a group stand alone."""
    groups: dict[Any, list[_Line]] = {}
    for line in lines:
        name = line.item.get("group")
        groups.setdefault(("alone", line.number) if name is None else ("group", name), []).append(line)
    batch: list[_Line] = []
    limit = MAX_SETS if whole else size
    for group in groups.values():
        if batch and len(batch) + len(group) > limit:
            yield batch
            batch = []
        batch.extend(group)
    if batch:
        yield batch


def _solve(client: Client, batch: Sequence[_Line], choices: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Results of a batch by line number; sets without a group get one of their own beside those that have one."""
    sets = [{**line.item, "group": line.item.get("group", f"line {line.number}")} for line in batch]
    try:
        result = client.shapley(sets, on_item_error="return", **choices)
    except InvalidRequestError as error:
        if len(batch) == 1 or not error.items or not error.items[0].pointer.startswith("/sets/"):
            if len(batch) > 1:
                raise
            return {line.number: _failure(line.number, line.item.get("id"), error.code, str(error)) for line in batch}
        return {n: r for line in batch for n, r in _solve(client, [line], choices).items()}
    errors = {error.row: error for error in result.errors}
    return {
        line.number: _failure(line.number, line.item.get("id"), errors[row].code, errors[row].detail)
        if row in errors
        else _success(line, result, row)
        for row, line in enumerate(batch)
    }


def _success(line: _Line, result: ShapleyResult, row: int) -> dict[str, Any]:
    record: dict[str, Any] = {"line": line.number, "id": line.item.get("id"), "status": "ok"}
    record["credits"] = _numbers(result.credits[row])
    record["advantages"] = _numbers(result.advantages[row])
    record["set_advantage"] = float(result.set_advantages[row])
    if result.token_advantages is not None:
        record["token_advantages"] = _numbers(result.token_advantages[row])
    record["utility_empty"] = float(result.utility_empty[row])
    record["utility_grand"] = float(result.utility_grand[row])
    record["gap"] = float(result.gap[row])
    record["flags"] = list(result.flags[row])
    return record


def _failure(number: int, name: object, code: object, detail: str) -> dict[str, Any]:
    return {"line": number, "id": name, "status": "error", "error": {"code": str(code), "detail": detail}}


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    """Numbers as JSON has them: a slot without a number is null."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def _write(sink: IO[str], results: dict[int, dict[str, Any]]) -> None:
    for number in sorted(results):
        sink.write(json.dumps(results[number], ensure_ascii=False, allow_nan=False) + "\n")


def _report(results: dict[int, dict[str, Any]]) -> int:
    """Name the bad lines on standard error; exit status 1 when there are any."""
    failed = [results[number] for number in sorted(results) if results[number]["status"] == "error"]
    for record in failed[:_MAX_REPORTED]:
        print(f"line {record['line']}: {record['error']['code']}: {record['error']['detail']}", file=sys.stderr)
    if len(failed) > _MAX_REPORTED:
        print(f"… and {len(failed) - _MAX_REPORTED} more lines; the output names them all", file=sys.stderr)
    print(f"{len(results) - len(failed)} sets answered, {len(failed)} lines failed", file=sys.stderr)
    return 1 if failed else 0
