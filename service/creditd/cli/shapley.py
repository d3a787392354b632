"""`creditd shapley FILE.jsonl`: one candidate set per line in, one result per line out, bad lines by number."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from tqdm import tqdm

from creditd.client import Client, CreditdError, InvalidRequestError, ShapleyResult
from creditd.wire.columns import RequestLimits, lacking, options_of
from creditd.wire.v1 import CandidateSet, ShapleyRequest
from creditd.wire.validation import WireError, from_validation_error

_START_S = 10.0
"""How long a service that does not answer is waited for."""
_MAX_REPORTED = 20
"""Bad lines named on standard error; all of them stand in the output."""


@dataclass(frozen=True)
class _Line:
    """A candidate set and where it stands."""

    number: int
    item: dict[str, Any]

    @property
    def group(self) -> str | int:
        """The prompt; a set that names none has one of its own, which no other line can have."""
        name: str | int | None = self.item.get("group")
        return f"line {self.number} of the file" if name is None else name


@dataclass
class _Work:
    """Lines to ask about, results by line number, and groups that lost a line before anything was asked."""

    lines: list[_Line] = field(default_factory=list)
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    broken_groups: set[str | int | None] = field(default_factory=set)

    def fail(self, number: int, name: object, code: str | None, detail: str) -> None:
        """Record why a line has no answer."""
        self.results[number] = {
            "line": number,
            "id": name,
            "status": "error",
            "error": {"code": code, "detail": detail},
        }


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
        choices = _choices(options)
        with ExitStack() as stack:
            from_stdin = options.file == "-"
            source = sys.stdin if from_stdin else stack.enter_context(Path(options.file).open(encoding="utf-8"))
            work = _read(source, choices)
            client = stack.enter_context(Client(options.url, deadline_s=options.timeout_s))
            client.wait_until_ready(min(options.timeout_s, _START_S))
            bar = stack.enter_context(tqdm(total=len(work.lines), unit="set", disable=options.quiet, file=sys.stderr))
            for batch in _batches(work.lines, options.batch_size, whole=choices.advantage.type == "batch_scaled"):
                _solve(client, batch, choices, work)
                bar.update(len(batch))
            to_stdout = options.output is None
            sink = sys.stdout if to_stdout else stack.enter_context(options.output.open("w", encoding="utf-8"))
            for number in sorted(work.results):
                sink.write(json.dumps(work.results[number], ensure_ascii=False, allow_nan=False) + "\n")
    except (_UsageError, OSError, UnicodeDecodeError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        print(f"creditd shapley: {error}", file=sys.stderr)
        return 2
    except CreditdError as error:
        print(f"creditd shapley: {error}", file=sys.stderr)
        return 1
    return _report(work.results)


def _choices(options: argparse.Namespace) -> ShapleyRequest:
    """The choices of the command line, checked before anything is read; the sets of this request stand for all."""
    body: dict[str, Any] = {"columns": {"rewards": []}}
    for name in ("utility", "credit", "advantage", "tokens"):
        text = getattr(options, name)
        if text is None:
            continue
        if text.lstrip().startswith("{"):
            try:
                body[name] = json.loads(text)
            except ValueError:
                raise _UsageError(f"--{name}: got {text!r}; expected a name or a JSON object") from None
        else:
            body[name] = {"type": text}
    try:
        request = ShapleyRequest.model_validate(body)
        options_of(request, RequestLimits())
    except ValidationError as error:
        raise _UsageError(from_validation_error(error).detail) from None
    except WireError as error:
        raise _UsageError(error.detail) from None
    return request


def _read(source: Iterable[str], choices: ShapleyRequest) -> _Work:
    """The lines that can be asked about, and results for those that cannot. Blank lines do not count."""
    work = _Work()
    table, tokens = choices.utility.type == "table", choices.tokens is not None
    for number, text in enumerate(source, start=1):
        if not text.strip():
            continue
        try:
            item = CandidateSet.model_validate_json(text)
        except ValidationError as error:
            found = from_validation_error(error)
            work.fail(number, None, found.code.value, found.detail)
            continue
        lack = lacking(0, item, table=table, tokens=tokens)
        if lack is not None:
            place = "" if lack.candidate is None else f"/candidates/{lack.candidate}/{lack.field}: "
            work.fail(number, item.id, lack.code, place + lack.detail)
            work.broken_groups.add(item.group)
            continue
        work.lines.append(_Line(number, item.model_dump(exclude_unset=True)))
    return work


def _batches(lines: Sequence[_Line], size: int, *, whole: bool) -> Iterator[list[_Line]]:
    """Batches of about `size` sets in which every group is whole; sets without a group stand alone.

    `whole` puts all sets into one batch, for the normalisation that depends on the request.
    """
    groups: dict[str | int, list[_Line]] = {}
    for line in lines:
        groups.setdefault(line.group, []).append(line)
    batch: list[_Line] = []
    for group in groups.values():
        if batch and not whole and len(batch) + len(group) > size:
            yield batch
            batch = []
        batch.extend(group)
    if batch:
        yield batch


def _solve(client: Client, batch: Sequence[_Line], choices: ShapleyRequest, work: _Work) -> None:
    """Results of a batch."""
    sets = [{**line.item, "group": line.group} for line in batch]
    try:
        result = client.shapley(
            sets,
            utility=choices.utility,
            credit=choices.credit,
            advantage=choices.advantage,
            tokens=choices.tokens,
            on_item_error="return",
        )
    except InvalidRequestError as error:
        # Nothing of the batch could be answered: the first lines are named one by one, the others by the first's code.
        named = {item.row: item for item in error.items}
        for row, line in enumerate(batch):
            detail = named[row].detail if row in named else "no set of its batch could be answered"
            work.fail(line.number, line.item.get("id"), named[row].code if row in named else error.code, detail)
        return
    errors = {error.row: error for error in result.errors}
    for row, line in enumerate(batch):
        if row in errors:
            work.fail(line.number, line.item.get("id"), errors[row].code, errors[row].detail)
        else:
            work.results[line.number] = _success(line, result, row, incomplete=line.group in work.broken_groups)


def _success(line: _Line, result: ShapleyResult, row: int, *, incomplete: bool) -> dict[str, Any]:
    record: dict[str, Any] = {"line": line.number, "id": line.item.get("id"), "status": "ok"}
    record["credits"] = _numbers(result.credits[row])
    record["advantages"] = _numbers(result.advantages[row])
    record["set_advantage"] = float(result.set_advantages[row])
    if result.token_advantages is not None:
        record["token_advantages"] = _numbers(result.token_advantages[row])
    record["utility_empty"] = float(result.utility_empty[row])
    record["utility_grand"] = float(result.utility_grand[row])
    record["gap"] = float(result.gap[row])
    flags = result.flags[row]
    record["flags"] = [*flags, "group_incomplete"] if incomplete and "group_incomplete" not in flags else list(flags)
    return record


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    """Numbers as JSON has them: a slot without a number is null."""
    return [None if math.isnan(value) else value for value in values.tolist()]


def _report(results: dict[int, dict[str, Any]]) -> int:
    """Name the bad lines on standard error; exit status 1 when there are any."""
    failed = [results[number] for number in sorted(results) if results[number]["status"] == "error"]
    for record in failed[:_MAX_REPORTED]:
        print(f"line {record['line']}: {record['error']['code']}: {record['error']['detail']}", file=sys.stderr)
    if len(failed) > _MAX_REPORTED:
        print(f"… and {len(failed) - _MAX_REPORTED} more lines; the output names them all", file=sys.stderr)
    print(f"{len(results) - len(failed)} sets answered, {len(failed)} lines failed", file=sys.stderr)
    return 1 if failed else 0
