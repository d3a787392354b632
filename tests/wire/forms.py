"""One request in every form in which it can be written, and JSON pointers."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

FORMS = ("sets", "rows", "ragged")

REWARDS = [[0.9, 0.5, 0.9, 0.1], [0.2, 0.8], [1.0, 0.0, 0.5]]
LABELS = [["42", 17, "42", "17"], ["42", "17"], [1, "1", None]]
TOPICS = [[["a", "b"], [], ["b", 3], ["3"]], [["c"], ["a", "a"]], [[], ["b"], [3, "c"]]]
SCORES = [[[0.5, 0.25], [0.0, 1.0], [0.5, 0.5], [0.0, 0.0]], [[1.0, 0.0], [0.75, 0.25]], [[0.5, 0.5]] * 3]
UNIONS = [["u", "u", 1, "1"], [7, 8], ["x", "x", "x"]]
MATRICES = [
    [[1.0, 0.5, 0.25, 0.0], [0.5, 1.0, 0.5, 0.25], [0.25, 0.5, 1.0, 0.5], [0.0, 0.25, 0.5, 1.0]],
    [[1.0, 0.75], [0.75, 1.0]],
    [[1.0, 0.0, 0.125], [0.0, 1.0, 0.0], [0.125, 0.0, 1.0]],
]


def sets_with_everything(*, named: bool = False) -> list[dict[str, Any]]:
    """Three sets of which everything but tables is known; rewards with names, if asked for."""
    sets = []
    for row, rewards in enumerate(REWARDS):
        candidates = []
        for place, reward in enumerate(rewards):
            label = LABELS[row][place]
            one: dict[str, Any] = {"reward": reward}
            if named:
                one = {"named_rewards": {"helpful": reward, "a/b~c": 1.0 - reward}}
            candidates.append(
                {
                    **one,
                    "label": "other" if label is None else label,
                    "topics": TOPICS[row][place],
                    "scores": SCORES[row][place],
                    "union": UNIONS[row][place],
                    "span": [3 * place, 3 * place + 2],
                    "text": f"text {row} {place}",
                    "id": f"c{9 - place}",
                }
            )
        one_set = {"id": f"s{row}", "group": "p", "n_tokens": 12, "set_reward": 0.25 * row}
        sets.append({**one_set, "similarities": MATRICES[row], "candidates": candidates})
    return copy.deepcopy(sets)


_OF_SETS = {"group": "groups", "id": "ids", "n_tokens": "n_tokens", "set_reward": "set_rewards"}
_OF_CANDIDATES = {"label": "labels", "union": "unions", "text": "texts", "id": "candidate_ids"}


def in_form(form: str, sets: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    """The request in one of its forms: `sets`, columns as lists of rows, or columns with row splits."""
    if form == "sets":
        return {"sets": sets, **options}
    candidates = [candidate for one in sets for candidate in one["candidates"]]
    columns = _reward_columns(form, candidates, [len(one["candidates"]) for one in sets])
    columns |= {column: [one[name] for one in sets] for name, column in _OF_SETS.items() if name in sets[0]}
    columns |= {
        column: [one[name] for one in candidates] for name, column in _OF_CANDIDATES.items() if name in candidates[0]
    }
    for name in ("topics", "scores"):
        if name in candidates[0]:
            columns[name] = _rows(form, [one[name] for one in candidates])
    if "similarities" in sets[0]:
        columns["similarities"] = _rows(form, [[v for row in one["similarities"] for v in row] for one in sets])
    if "utilities" in sets[0]:
        columns["utilities"] = _rows(form, [one["utilities"] for one in sets])
    if "span" in candidates[0]:
        spans = [one["span"] or [0, 0] for one in candidates]
        columns["spans"] = {"starts": [start for start, _ in spans], "stops": [stop for _, stop in spans]}
    return {"columns": columns, **options}


def _reward_columns(form: str, candidates: list[dict[str, Any]], sizes: list[int]) -> dict[str, Any]:
    splits = splits_of(sizes)

    def column(values: list[Any]) -> Any:
        return _rows(form, [values[start:stop] for start, stop in pairwise(splits)])

    if "reward" in candidates[0]:
        return {"rewards": column([one["reward"] for one in candidates])}
    if "named_rewards" in candidates[0]:
        names = candidates[0]["named_rewards"]
        return {"named_rewards": {name: column([one["named_rewards"][name] for one in candidates]) for name in names}}
    return {"row_splits": splits}


def _rows(form: str, rows: list[list[Any]]) -> Any:
    return rows if form == "rows" else ragged([value for row in rows for value in row], [len(row) for row in rows])


def ragged(values: list[Any], lengths: list[int]) -> dict[str, Any]:
    """Values with row splits."""
    return {"values": values, "row_splits": splits_of(lengths)}


def splits_of(lengths: list[int]) -> list[int]:
    """Row splits."""
    return [sum(lengths[:row]) for row in range(len(lengths) + 1)]


def at_pointer(document: Any, pointer: str) -> Any:
    """The value at a JSON pointer (RFC 6901).

    Raises:
        KeyError: If there is none.
        IndexError: If a list is too short.
    """
    value = document
    for segment in pointer.split("/")[1:]:
        name = segment.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value[name]
        elif isinstance(value, list) and name.isdecimal():
            value = value[int(name)]
        else:
            raise KeyError(pointer)
    return value
