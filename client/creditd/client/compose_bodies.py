"""From sets as callers have them to the sets of a request for composed credit; no IO.

Structure is checked here only as far as arrays need it. Everything else is the schema's business, and the values are
the arithmetic's: a NaN travels, so that it costs its own set and not the request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from creditd.client.arrays import Integers, refusal, sequence, splits_of
from creditd.client.item_columns import masks, numbers_and_nulls, numbers_each, one_number_each, pairs, ranges
from creditd.client.mappings import Name
from creditd.wire.compose import ComposeCandidate, ComposeSet
from creditd.wire.errors import ErrorCode

Convert: TypeAlias = Callable[[Any, int, str], list[Any]]

_OF_SETS: dict[str, Convert] = {
    "completion_mask": masks,
    "set_reward": one_number_each,
    "set_advantage": one_number_each,
    "advantage_slope": one_number_each,
}
_OF_CANDIDATES: dict[str, Convert] = {
    "reward": one_number_each,
    "advantage": one_number_each,
    "span": ranges,
    "units": pairs,
    "tree": pairs,
    "unit_values": numbers_each,
    "utilities": numbers_each,
    "sensitivities": numbers_and_nulls,
}
"""What makes the entries of a field, where it is more than the entry itself."""


@dataclass(frozen=True)
class Composition:
    """Sets as a request has them.

    Attributes:
        sets: One mapping per set, by the fields of the wire; arrays stay arrays.
        row_splits: Shape (B + 1,), int64, of the candidates.
        token_splits: Shape (B + 1,), int64, of the tokens.
        ids: The caller's names, which are not sent.
    """

    sets: list[dict[str, Any]]
    row_splits: Integers
    token_splits: Integers
    ids: tuple[Name | None, ...] | None


def composition_of(sets: Sequence[Mapping[str, Any]]) -> Composition:
    """Sets from mappings whose numbers may be of any kind.

    Args:
        sets: B mappings in the shape of `creditd.wire.compose.ComposeSet`.

    Returns:
        The same for lists, arrays and tensors.

    Raises:
        InvalidRequestError: If a field is unknown, missing where nothing can be said without it, or not what it holds.
    """
    found: list[dict[str, Any]] = []
    names: list[Name | None] = []
    sizes: list[int] = []
    for row, item in enumerate(sequence(sets, "sets")):
        place = f"sets/{row}"
        given = _converted(item, place, frozenset(ComposeSet.model_fields), _OF_SETS)
        candidates = sequence(given.get("candidates", ()), f"{place}/candidates")
        given["candidates"] = [
            _converted(one, f"{place}/candidates/{at}", frozenset(ComposeCandidate.model_fields), _OF_CANDIDATES)
            for at, one in enumerate(candidates)
        ]
        names.append(given.pop("id", None))
        sizes.append(len(given["candidates"]))
        found.append(given)
    ids = None if all(name is None for name in names) else tuple(names)
    return Composition(found, splits_of(sizes), splits_of([n_tokens(one) for one in found]), ids)


def n_tokens(item: Mapping[str, Any]) -> int:
    """How many tokens a set of a request says that its completion has; 0 where it says nothing of use."""
    number = item.get("n_tokens")
    return number if isinstance(number, int) and number > 0 else 0


def _converted(item: object, place: str, known: frozenset[str], converts: Mapping[str, Convert]) -> dict[str, Any]:
    """The fields of a set or of a candidate, once all are known; numbers as the schema takes them."""
    if not isinstance(item, Mapping):
        raise refusal(f"/{place}", f"got {type(item).__name__}; expected a mapping")
    given: dict[str, Any] = {}
    for field, value in item.items():
        if field not in known:
            detail = f"there is no such field; expected some of {', '.join(sorted(known))}"
            raise refusal(f"/{place}/{field!s}", detail, ErrorCode.UNKNOWN_FIELD)
        convert = converts.get(field)
        if convert is None or value is None:
            given[field] = value.tolist() if hasattr(value, "tolist") else value
        else:
            given[field] = convert([value], 1, f"{place}/{field}")[0]
    return given
