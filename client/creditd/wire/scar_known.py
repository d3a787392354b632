"""What is known of the utilities of an item of `/v1/credit/scar/solve`, as its request says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalition_plans import row_keys
from creditd.credit.span_items import SpanError, SpanErrorCode, SpanField
from creditd.credit.text_units import TextUnits
from creditd.wire.arrays import numbers_or_missing
from creditd.wire.scar import ScarSolveItem

Booleans: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True)
class KnownSpans:
    """What a request says of one item.

    Attributes:
        utilities: By the key of a coalition of its units; NaN for one that was refused.
        empty: v(∅) of the prompt, as far as this item says; NaN where it is refused, None where it is not known.
    """

    utilities: dict[bytes, float]
    empty: float | None


class _ItemError(Exception):
    """What is wrong with what is known of one item."""

    def __init__(self, code: SpanErrorCode, field: SpanField, detail: str, position: int | None = None) -> None:
        super().__init__(detail)
        self.code, self.field, self.detail, self.position = code, field, detail, position


def known_spans(row: int, item: ScarSolveItem, units: TextUnits) -> KnownSpans | SpanError:
    """What a request says of an item.

    Args:
        row: Its place.
        item: The item.
        units: Its units.

    Returns:
        The utilities of coalitions and of the empty completion; or what is wrong with them.

    Cost:
        O(coalitions · units).
    """
    try:
        utilities = _utilities(item, units.n_units)
        _add_grand(item, units.n_units, utilities)
        return KnownSpans(utilities, _empty(item, units, utilities))
    except _ItemError as error:
        return SpanError(row, error.code, error.field, error.position, error.detail)


def coalition_keys(coalitions: Booleans) -> list[bytes]:
    """One hashable key per coalition, shape (R, n), bool; also where there is no unit."""
    return row_keys(coalitions) if coalitions.shape[1] else [b""] * len(coalitions)


def _utilities(item: ScarSolveItem, n: int) -> dict[bytes, float]:
    """The utilities of coalitions."""
    if len(item.coalitions) != len(item.utilities):
        detail = f"got {len(item.utilities)} utilities; expected {len(item.coalitions)}, one per coalition"
        raise _ItemError("shape_mismatch", "utilities", detail)
    if item.coalitions and n == 0:
        detail = "got coalitions of a completion without units; expected none, and utility_grand"
        raise _ItemError("invalid_request", "coalitions", detail)
    coalitions = np.zeros((len(item.coalitions), n), dtype=np.bool_)
    for place, players in enumerate(item.coalitions):
        if players and max(players) >= n:
            detail = f"unit {max(players)} is not one of 0 … {n - 1}"
            raise _ItemError("invalid_request", "coalitions", detail, place)
        coalitions[place, players] = True
    found: dict[bytes, float] = {}
    values = numbers_or_missing(item.utilities)[0].tolist()
    for place, (key, value) in enumerate(zip(coalition_keys(coalitions), values, strict=True)):
        if not _same(found.setdefault(key, value), value):
            detail = "the coalition is there twice, with two utilities; expected it once"
            raise _ItemError("invalid_request", "coalitions", detail, place)
    return found


def _add_grand(item: ScarSolveItem, n: int, utilities: dict[bytes, float]) -> None:
    """Add v(P) where it has a field of its own."""
    grand = _told(item.utility_grand, "utility_grand", refused=item.grand_refused)
    if grand is not None and not _same(utilities.setdefault(_key(n, everyone=True), grand), grand):
        detail = "got another utility than that of all units; expected the same"
        raise _ItemError("invalid_request", "utility_grand", detail)


def _empty(item: ScarSolveItem, units: TextUnits, utilities: dict[bytes, float]) -> float | None:
    """v(∅) of the prompt: its own field, or the coalition of no unit where nothing is frozen, which is taken out."""
    empty = _told(item.utility_empty, "utility_empty", refused=item.empty_refused)
    if units.n_units == 0 or units.has_frozen_text:
        return empty
    nobody = utilities.pop(_key(units.n_units, everyone=False), None)
    if empty is not None and nobody is not None and not _same(empty, nobody):
        detail = "got another utility than that of no unit; expected the same"
        raise _ItemError("invalid_request", "utility_empty", detail)
    return nobody if empty is None else empty


def _told(utility: float | None, field: SpanField, *, refused: bool) -> float | None:
    """A utility that has a field of its own: NaN where it is refused, None where it is not known."""
    if refused and utility is not None:
        raise _ItemError("invalid_request", field, "got a utility that is refused; expected null")
    return math.nan if refused else utility


def _key(n: int, *, everyone: bool) -> bytes:
    """The key of the coalition of all units, or of none."""
    return coalition_keys(np.full((1, n), everyone))[0]


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
