"""Conversations about games whose utilities the caller evaluates: bodies out, coalitions or results in; no IO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from creditd.client.arrays import Column, Integers, Rows, refusal, sequence, splits_of
from creditd.client.bodies import JSON, Body, encoded, per_candidate, per_set, span_pairs
from creditd.client.content_names import candidate_names, prompt_names
from creditd.client.evaluators import Evaluate, Evaluator
from creditd.client.mappings import Name
from creditd.client.results import ItemError, Ragged, ShapleyResult
from creditd.wire import v1
from creditd.wire.errors import ErrorCode

SOLVE_PATH = "/v1/credit/shapley/solve"
BATCH_SIZE = 4096
"""Coalitions that one answer names per set: enough that a budget takes few rounds."""


@dataclass
class Games:
    """Sets of candidates, and what is known of their coalitions so far.

    Attributes:
        sets: The candidates of each set, of any type.
        columns: What else each item of the request says, by its field; one entry per set.
        coalitions: Players of the known coalitions, per set.
        utilities: Their utilities.
    """

    sets: list[Sequence[Any]]
    columns: dict[str, Sequence[Any]]
    coalitions: list[list[list[int]]] = field(default_factory=list)
    utilities: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.coalitions = [[] for _ in self.sets]
        self.utilities = [[] for _ in self.sets]

    @property
    def n_known(self) -> int:
        """Utilities known over all sets."""
        return sum(map(len, self.utilities))

    def items(self) -> list[dict[str, Any]]:
        """The items of a request."""
        return [
            {
                "n_players": len(candidates),
                "coalitions": self.coalitions[row],
                "utilities": self.utilities[row],
                **{name: column[row] for name, column in self.columns.items()},
            }
            for row, candidates in enumerate(self.sets)
        ]

    def learn(self, wanted: Sequence[tuple[int, list[int]]], values: Sequence[float]) -> None:
        """Add the utilities of coalitions, named by set and players."""
        for (row, players), value in zip(wanted, values, strict=True):
            self.coalitions[row].append(players)
            self.utilities[row].append(value)


def games_of(sets: object, columns: Mapping[str, Column | Rows | None], *, tokens: bool) -> Games:
    """Sets whose candidates are anything, with the columns beside them.

    Args:
        sets: B lists of candidates.
        columns: `groups`, `set_rewards`, `n_tokens`, `spans`, `candidate_ids`; None where there is none.
        tokens: Whether token advantages are asked for.

    Returns:
        Games of which nothing is known.

    Raises:
        InvalidRequestError: If something is not of the type it should be, or another column is given.
    """
    rows = [sequence(row, f"sets/{place}") for place, row in enumerate(sequence(sets, "sets"))]
    for place, row in enumerate(rows):
        if len(row) == 0:
            raise refusal(f"/sets/{place}", "got no candidates; expected at least one", ErrorCode.SHAPE_MISMATCH)
    splits = splits_of([len(row) for row in rows])
    found: dict[str, Sequence[Any]] = {}
    for name, column in columns.items():
        if column is None or (name in {"spans", "n_tokens"} and not tokens):
            continue
        if name == "groups":
            found["group"] = per_set(column, len(rows), name)
        elif name == "set_rewards":
            found["set_reward"] = per_set(column, len(rows), name)
        elif name == "n_tokens":
            found["n_tokens"] = per_set(column, len(rows), name)
        elif name == "candidate_ids":
            found["player_ids"] = _by_set(per_candidate(column, splits, name), splits, name)
        elif name == "spans":
            found["spans"] = _by_set(span_pairs(column, splits, name), splits, name)
        else:
            raise refusal(f"/{name}", "got a column that a utility which you evaluate does not take; expected None")
    return Games(sets=rows, columns=found)


def named(games: Games, utility_id: Name | None, prompts: Column | None, prompt_ids: Column | None) -> Games:
    """Games with the names that utilities are remembered by.

    Args:
        games: With or without names of their candidates.
        utility_id: What the function is called; None if nothing is remembered.
        prompts: What the candidates answer, or None.
        prompt_ids: Names of that, or None.

    Returns:
        Under a `utility_id`, the games with a name of each prompt, and of each candidate that has none; else the games.

    Raises:
        InvalidRequestError: If something has no name, or prompts have one without a `utility_id`.
    """
    if utility_id is None:
        for name, column in (("prompts", prompts), ("prompt_ids", prompt_ids)):
            if column is not None:
                detail = "got a column that a utility which you evaluate takes beside a utility_id alone; expected None"
                raise refusal(f"/{name}", detail)
        return games
    names: dict[str, Sequence[Any]] = {"prompt_id": prompt_names(prompts, prompt_ids, len(games.sets))}
    if "player_ids" not in games.columns:
        names["player_ids"] = candidate_names(games.sets)
    return replace(games, columns={**games.columns, **names})


def body_of(
    games: Games, options: Mapping[str, Any], ids: tuple[Name | None, ...] | None, media_type: str = JSON
) -> Body:
    """The request that says all that is known."""
    content = encoded({"items": games.items(), "batch_size": BATCH_SIZE, **options}, media_type)
    return Body(content=content, row_splits=splits_of([len(row) for row in games.sets]), ids=ids, media_type=media_type)


def wanted_in(answer: Mapping[str, Any]) -> list[tuple[int, list[int]]]:
    """Coalitions to evaluate, by set and players; none when all is solved."""
    return [
        (row, [int(player) for player in players])
        for row, item in enumerate(answer["items"])
        for players in item.get("next") or ()
    ]


def evaluation_of(
    games: Games, evaluator: Evaluator, wanted: Sequence[tuple[int, list[int]]], answer: Mapping[str, Any]
) -> Evaluate:
    """The step that evaluates coalitions."""
    known_there = int((answer.get("usage") or {}).get("from_cache") or 0)
    planned = sum(int(item.get("planned") or 0) for item in answer["items"]) - known_there
    subsets = [[games.sets[row][player] for player in players] for row, players in wanted]
    return Evaluate(evaluator=evaluator, subsets=subsets, done=games.n_known, planned=max(planned, games.n_known))


def result_of(
    answer: Mapping[str, Any],
    body: Body,
    flag_names: tuple[str, ...],
    errors: tuple[ItemError, ...],
    usage: v1.Usage,
    service: v1.Service,
) -> ShapleyResult:
    """The result of a conversation in which no item is open.

    Args:
        answer: The last answer.
        body: The request that it answers.
        flag_names: Names of the bits of flags.
        errors: Why items failed, by row.
        usage: What the answer cost the service.
        service: Who answered.

    Returns:
        The same as of any other utility, with standard errors and intervals.

    Raises:
        ValueError: If the answer is not about the sets of the request.
    """
    items, splits = answer["items"], body.row_splits
    sizes = np.diff(splits).tolist()
    if len(items) != len(sizes):
        raise ValueError(f"got {len(items)} items; expected {len(sizes)}")
    ok = np.array([item["status"] == "ok" for item in items])
    bits = {name: 1 << bit for bit, name in enumerate(flag_names)}

    def ragged(name: str, values: Sequence[Sequence[float] | None] | None = None) -> Ragged:
        rows = [item.get(name) for item in items] if values is None else values
        filled = [[np.nan] * size if row is None else row for row, size in zip(rows, sizes, strict=True)]
        if [len(row) for row in filled] != sizes:
            raise ValueError(f"{name}: expected one number per candidate")
        return Ragged(values=np.array([value for row in filled for value in row], dtype=np.float64), row_splits=splits)

    def column(name: str) -> Any:  # noqa: ANN401 - an array
        return np.array([item.get(name) if item.get(name) is not None else np.nan for item in items], dtype=np.float64)

    def present(name: str) -> bool:
        return any(item.get(name) is not None for item in items)

    intervals = [item.get("intervals") for item in items]
    tokens = [item.get("token_advantages") for item in items]
    masks = [sum(bits.get(name, 0) for name in item.get("flags") or ()) for item in items]
    methods = sorted({str(item["method"]) for item in items if item["status"] == "ok"})
    return ShapleyResult(
        credits=ragged("credits"),
        advantages=ragged("advantages"),
        token_advantages=_tokens(tokens) if present("token_advantages") else None,
        set_advantages=column("set_advantage"),
        set_reward_advantages=column("set_reward_advantage") if present("set_reward_advantage") else None,
        utility_empty=column("utility_empty"),
        utility_grand=column("utility_grand"),
        credit_sum=column("credit_sum"),
        gap=column("gap"),
        exact=all(bool(item["exact"]) for item in items if item["status"] == "ok"),
        method="+".join(methods),
        standard_errors=ragged("standard_errors") if present("standard_errors") else None,
        interval_low=_end(ragged, intervals, 0) if present("intervals") else None,
        interval_high=_end(ragged, intervals, 1) if present("intervals") else None,
        evaluations=np.array([int(item.get("evaluations") or 0) for item in items], dtype=np.int64),
        ids=body.ids,
        ok=ok,
        flag_masks=np.array(masks, dtype=np.int64),
        flag_names=flag_names,
        errors=errors,
        usage=usage,
        request_id=str(answer["request_id"]),
        service=service,
    )


def _end(ragged: Any, intervals: Sequence[Any], place: int) -> Ragged:  # noqa: ANN401 - the closure above
    """Lower or upper ends of all intervals."""
    rows = [None if row is None else [pair[place] for pair in row] for row in intervals]
    found: Ragged = ragged("intervals", rows)
    return found


def _tokens(rows: Sequence[Sequence[float] | None]) -> Ragged:
    filled = [row if row is not None else [] for row in rows]
    values = np.array([value for row in filled for value in row], dtype=np.float64)
    return Ragged(values=values, row_splits=splits_of([len(row) for row in filled]))


def _by_set(flat: Sequence[Any], splits: Integers, name: str) -> list[list[Any]]:
    """A flat column, set by set."""
    bounds = splits.tolist()
    if len(flat) != bounds[-1]:
        detail = f"got {len(flat)} entries; expected {bounds[-1]}, one per candidate"
        raise refusal(f"/{name}", detail, ErrorCode.SHAPE_MISMATCH)
    return [list(flat[start:stop]) for start, stop in pairwise(bounds)]
