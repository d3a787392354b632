"""The numbers of an answer without what rounding left. The script of the page at `/` does the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

DUST = 1e-12
"""Beside the largest number of a completion: some 10,000 roundings of it."""
_NUMBERS = (
    "token_rewards",
    "token_advantages",
    "unit_values",
    "standard_errors",
    "intervals",
    "utility_empty",
    "utility_grand",
    "gap",
)


def without_dust(answer: Mapping[str, Any]) -> dict[str, Any]:
    """An answer as it is shown.

    Args:
        answer: That of a completion which has a credit.

    Returns:
        The answer with two more numbers: `whole`, v(P) − v(∅), and `together`, Σ unit values; None where they are not
        known. A number, but for α, is 0 where its magnitude is below `DUST` times the largest of them.
    """
    empty, grand, values = answer["utility_empty"], answer["utility_grand"], answer["unit_values"]
    numbers = {
        **{name: answer[name] for name in _NUMBERS},
        "ledger": {name: value for name, value in answer["ledger"].items() if name != "alpha"},
        "whole": None if empty is None or grand is None else grand - empty,
        "together": None if values is None else _sum(values),
    }
    least = DUST * max(_sizes(numbers), default=0.0)
    kept = _kept(numbers, least)
    return {**answer, **kept, "ledger": {**answer["ledger"], **kept["ledger"]}}


def _sum(values: list[float]) -> float:
    """One after another, as in ECMAScript: `sum` of later versions of Python makes up for what is rounded."""
    total = 0.0
    for value in values:
        total += value
    return total


def _sizes(value: Any) -> Iterator[float]:  # noqa: ANN401 - of numbers in lists and mappings
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for entry in value:
            yield from _sizes(entry)
    elif value is not None:
        yield abs(value)


def _kept(value: Any, least: float) -> Any:  # noqa: ANN401 - as _sizes
    if isinstance(value, dict):
        return {name: _kept(entry, least) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_kept(entry, least) for entry in value]
    return 0.0 if value is not None and abs(value) < least else value
