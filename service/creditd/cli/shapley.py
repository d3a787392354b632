"""`creditd shapley FILE.jsonl`: one candidate set per line in, one result per line out, bad lines by number."""

from __future__ import annotations

import argparse
import codecs
import json
import math
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import from_json
from tqdm import tqdm

from creditd.client import Client, CreditdError, InvalidRequestError, ShapleyResult, StatusError
from creditd.client.bodies import wanted_by
from creditd.wire.choices import options_of
from creditd.wire.limits import RequestLimits
from creditd.wire.nested import lacking
from creditd.wire.utilities import FacilityLocationUtility, NoisyOrUtility, SumUtility
from creditd.wire.v1 import BlendCredit, CandidateSet, MixtureCredit, ShapleyRequest
from creditd.wire.validation import WireError, from_validation_error

_ALONE = secrets.token_hex(8)
"""Begins the groups of sets that name none, so that no line of the file can have the same."""
_TOO_MUCH = frozenset({"body_too_large", "budget_exceeded"})
"""Codes of a request that may succeed in parts."""
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
        return f"{_ALONE}:{self.number}" if name is None else name


@dataclass
class _Work:
    """Lines to ask about, results by line number, and groups that lost a line before anything was asked."""

    lines: list[_Line] = field(default_factory=list)
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    broken_groups: set[str | int | None] = field(default_factory=set)

    def lose(self, number: int, names: Mapping[str, str | int | None], code: str, detail: str) -> None:
        """Record why a line cannot even be asked about; its group is incomplete."""
        self.fail(number, names.get("id"), code, detail)
        self.broken_groups.add(names.get("group"))

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
        0 when every line was answered, 1 when some were not, 2 when the command cannot be used.
    """
    try:
        choices = _choices(options)
        with ExitStack() as stack:
            from_stdin, to_stdout = options.file == "-", options.output is None
            source = sys.stdin.buffer if from_stdin else stack.enter_context(Path(options.file).open("rb"))
            sink = sys.stdout if to_stdout else stack.enter_context(options.output.open("w", encoding="utf-8"))
            client = stack.enter_context(_client(options))
            work = _read(source, choices)
            bar = stack.enter_context(tqdm(total=len(work.lines), unit="set", disable=options.quiet, file=sys.stderr))
            _solve_all(client, work, choices, options, bar)
            for number in sorted(work.results):
                sink.write(json.dumps(work.results[number], ensure_ascii=False, allow_nan=False) + "\n")
    except BrokenPipeError:
        raise
    except (_UsageError, OSError) as error:
        print(f"creditd shapley: {error}", file=sys.stderr)
        return 2
    return _report(work.results)


def _client(options: argparse.Namespace) -> Client:
    """The client that the command line asks for."""
    try:
        return Client(options.url, deadline_s=options.timeout_s)
    except ValueError as error:
        raise _UsageError(str(error)) from None


def _solve_all(
    client: Client, work: _Work, choices: ShapleyRequest, options: argparse.Namespace, bar: tqdm[NoReturn]
) -> None:
    """Results of all lines; when the service fails for good, the lines that are left say so."""
    try:
        client.wait_until_ready(min(options.timeout_s, _START_S))
        for batch in _batches(work.lines, options.batch_size, whole=choices.advantage.type == "batch_scaled"):
            _solve(client, batch, choices, work)
            bar.update(len(batch))
    except CreditdError as error:
        print(f"creditd shapley: {error}", file=sys.stderr)
        for line in work.lines:
            if line.number not in work.results:
                code = error.code if isinstance(error, StatusError) and error.code else "not_answered"
                work.fail(line.number, line.item.get("id"), code, f"not answered: {type(error).__name__}")


def _choices(options: argparse.Namespace) -> ShapleyRequest:
    """The choices of the command line, checked before anything is read; the sets of this request stand for all."""
    body: dict[str, Any] = {"columns": {"rewards": []}}
    for name in ("utility", "aggregation", "credit", "advantage", "tokens"):
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


def _read(source: Iterable[bytes], choices: ShapleyRequest) -> _Work:
    """The lines that can be asked about, and results for those that cannot. Blank lines do not count.

    Texts are not kept: this command treats duplicates as players, and needs them for nothing else.
    """
    work = _Work()
    wanted = wanted_by(choices.utility, choices.credit, tokens=choices.tokens is not None)
    of_sets, of_candidates = wanted.fields()
    names = _RewardNames()
    for number, raw in enumerate(source, start=1):
        text = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
        if not text.strip():
            continue
        try:
            item = CandidateSet.model_validate_json(text)
        except ValidationError as error:
            found = from_validation_error(error)
            work.lose(number, _names(text), found.code.value, found.detail)
            continue
        problem = names.problem(number, item)
        if problem is not None:
            work.lose(number, {"id": item.id, "group": item.group}, "invalid_request", problem)
            continue
        lack = lacking(0, item, of_sets, of_candidates)
        if lack is not None:
            place = "" if lack.position is None else f"/candidates/{lack.position}/{lack.field}: "
            work.lose(number, {"id": item.id, "group": item.group}, lack.code, place + lack.detail)
            continue
        fields = item.model_dump(exclude_unset=True)
        for candidate in fields["candidates"]:
            candidate.pop("text", None)
        work.lines.append(_Line(number, fields))
    for line in work.lines:
        for candidate in line.item["candidates"]:
            names.spell_out(candidate)
    return work


@dataclass
class _RewardNames:
    """The names of the rewards of a file, as the first line that has rewards tells them; none without names."""

    line: int = 0
    names: frozenset[str] = frozenset()

    def problem(self, number: int, item: CandidateSet) -> str | None:
        """What is wrong with the names of a line, if anything is. A line without any reward fits every other one."""
        given = [candidate.model_fields_set for candidate in item.candidates]
        named = [candidate.named_rewards for candidate in item.candidates if candidate.named_rewards is not None]
        is_named = ["named_rewards" in fields for fields in given]
        names = {frozenset(row) for row in named}
        if len(names) > 1 or frozenset() in names or len(set(is_named)) > 1:
            return "candidates have other names of rewards than others of this line; expected the same names for all"
        if any(is_named) and any("reward" in fields for fields in given):
            return "some candidates have reward and some named_rewards; expected one of them for all"
        if not given or (any(is_named) and not names):
            return None
        found = next(iter(names), frozenset[str]())
        if self.line == 0:
            self.line, self.names = number, found
        if found != self.names:
            return f"rewards have other names than those of line {self.line}; expected the same names on all lines"
        return None

    def spell_out(self, candidate: dict[str, Any]) -> None:
        """Give a candidate that was not scored a null under each name, so that it can be asked about alone."""
        if "named_rewards" in candidate and candidate["named_rewards"] is None:
            if self.names:
                candidate["named_rewards"] = dict.fromkeys(sorted(self.names))
            else:
                del candidate["named_rewards"]
                candidate["reward"] = None


def _names(text: bytes) -> dict[str, str | int]:
    """The id and the group of a line that is JSON but no candidate set, as far as it has them."""
    try:
        found = from_json(text)
    except ValueError:
        return {}
    fields = found if isinstance(found, dict) else {}
    names = {name: fields.get(name) for name in ("id", "group")}
    return {name: value for name, value in names.items() if isinstance(value, str | int) and value is not True}


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
    """Results of a batch; one that is too large for the service is halved between two groups."""
    try:
        result = _ask(client, batch, choices)
    except InvalidRequestError as error:
        halves = _halves(batch)
        if error.code in _TOO_MUCH and halves and choices.advantage.type != "batch_scaled":
            for half in halves:
                _solve(client, half, choices, work)
            return
        if error.code in _TOO_MUCH or len(error.items) == 0:
            for line in batch:
                work.fail(line.number, line.item.get("id"), error.code, str(error))
            return
        # Nothing could be answered, and a refusal names ten sets at most; beside a sound set each one is named.
        result = _ask(client, batch, choices, beside=_sound_set(choices, _names_of_rewards(batch)))
    errors = {error.row: error for error in result.errors}
    for row, line in enumerate(batch):
        if row in errors:
            work.fail(line.number, line.item.get("id"), errors[row].code, errors[row].detail)
        else:
            work.results[line.number] = _success(line, result, row, incomplete=line.group in work.broken_groups)


def _names_of_rewards(batch: Sequence[_Line]) -> list[str]:
    """Names of the rewards of a batch, the same on all of its lines."""
    rewards = (candidate.get("named_rewards") for line in batch for candidate in line.item["candidates"])
    return next((sorted(row) for row in rewards if row), [])


def _ask(
    client: Client, batch: Sequence[_Line], choices: ShapleyRequest, beside: dict[str, Any] | None = None
) -> ShapleyResult:
    """The answer to a batch, and to one more set at its end."""
    sets = [{**line.item, "group": line.group} for line in batch]
    return client.shapley(
        sets if beside is None else [*sets, beside],
        utility=choices.utility,
        aggregation=choices.aggregation,
        credit=choices.credit,
        advantage=choices.advantage,
        tokens=choices.tokens,
        on_item_error="return",
    )


def _sound_set(choices: ShapleyRequest, names: Iterable[str]) -> dict[str, Any]:
    """A set that any choices can answer, in a group of its own; its rewards have the names given, if any."""
    named = dict.fromkeys(names, 0.0)
    reward: dict[str, Any] = {"named_rewards": named} if named else {"reward": 0.0}
    ends = [choices.credit]
    if isinstance(choices.credit, BlendCredit):
        ends = [end for end in (choices.credit.from_, choices.credit.to) if not isinstance(end, str)]
    utility = choices.utility
    terms = [term.utility for term in utility.terms or ()] if isinstance(utility, SumUtility) else [utility]
    weights = [term.weights for term in terms if isinstance(term, FacilityLocationUtility | NoisyOrUtility)]
    scores = [0.0] * max([len(found) for found in weights if found] or [1])
    size = next((len(end.weights) for end in ends if isinstance(end, MixtureCredit)), 1)
    sound: dict[str, Any] = {
        "group": f"{_ALONE}:sound",
        "n_tokens": 0,
        "similarities": [[float(i == j) for j in range(size)] for i in range(size)],
        "candidates": [
            {**reward, "span": None, "label": 0, "topics": [], "scores": scores, "union": 0} for _ in range(size)
        ],
    }
    if choices.utility.type == "table":
        sound["utilities"] = [0.0] * 2**size
    return sound


def _halves(batch: Sequence[_Line]) -> tuple[Sequence[_Line], Sequence[_Line]] | None:
    """The batch in two, cut between groups as near to its middle as can be; None for a single group."""
    cuts = [place for place in range(1, len(batch)) if batch[place].group != batch[place - 1].group]
    if not cuts:
        return None
    cut = min(cuts, key=lambda place: abs(2 * place - len(batch)))
    return batch[:cut], batch[cut:]


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
