"""What is known of an item of `/v1/credit/shapley/solve`: what the request says, and what is remembered beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import USABLE, ErrorField, SetError, number_name, unusable_numbers
from creditd.credit.candidate_sets import ErrorCode as ErrorCodeOfSets
from creditd.credit.evaluated_games import EvaluatedGame
from creditd.wire.arrays import ranks_of
from creditd.wire.fields import MAX_MAGNITUDE
from creditd.wire.limits import MAX_CELLS
from creditd.wire.solve import SolveItem

Booleans: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

_NON_FINITE: dict[ErrorCodeOfSets, ErrorCodeOfSets] = {"non_finite_value": "non_finite_utility"}


class Remembered(Protocol):
    """Utilities of one game that were supplied before; its players stand in the order of `order_of`."""

    def utilities_of(self, coalitions: Booleans) -> Floats:
        """Shape (Q,), float64: utilities of some coalitions, NaN where one is not known."""


def order_of(names: Sequence[str | int]) -> Integers:
    """Places of players in the order of their names, in which games are sampled and remembered.

    Args:
        names: All different.

    Returns:
        Shape (n,): player order[i] comes at place i.
    """
    return np.argsort(ranks_of(names)[0], kind="stable")


def known_of(row: int, item: SolveItem, *, tokens: bool) -> tuple[Booleans, Floats] | SetError:
    """What a request says of an item.

    Args:
        row: Its place.
        item: The item.
        tokens: Whether token advantages are asked for.

    Returns:
        Known coalitions as rows, players in the item's order, and their utilities; or what is wrong with the item.
    """
    wrong_shape = _misshapen(row, item, tokens=tokens)
    if wrong_shape is not None:
        return wrong_shape
    n = item.n_players
    if len(item.coalitions) > MAX_CELLS // n:
        detail = f"got {len(item.coalitions)} coalitions of {n} players; expected at most {MAX_CELLS // n}"
        return SetError(row, "budget_exceeded", "coalitions", None, detail)
    coalitions = np.zeros((len(item.coalitions), n), dtype=np.bool_)
    for place, players in enumerate(item.coalitions):
        if players and max(players) >= n:
            detail = f"player {max(players)} is not one of 0 … {n - 1}"
            return SetError(row, "invalid_request", "coalitions", place, detail)
        coalitions[place, players] = True
    utilities = np.asarray(item.utilities, dtype=np.float64)
    for code, wrong in unusable_numbers(utilities, None):
        if wrong.any():
            place = int(np.flatnonzero(wrong)[0])
            coalition, value = _named(item.coalitions[place]), number_name(utilities[place])
            detail = f"utility of players {coalition} is {value}; expected {USABLE}"
            return SetError(row, _NON_FINITE.get(code, code), "utilities", place, detail)
    return coalitions, utilities


def supplied_by(item: SolveItem) -> tuple[Booleans, Floats]:
    """What a sound item with `player_ids` says, as it is remembered.

    Returns:
        Coalitions as rows, players in the order of their names, and their utilities.

    Raises:
        ValueError: If something is wrong with the item.
    """
    known = known_of(0, item, tokens=False)
    if isinstance(known, SetError) or item.player_ids is None:
        raise ValueError("expected a sound item with player_ids")
    coalitions, utilities = known
    return coalitions[:, order_of(item.player_ids)], utilities


def tell_remembered(game: EvaluatedGame, places: Integers, known: tuple[Booleans, Floats], before: Remembered) -> int:
    """Tell a game what is remembered of the coalitions that its plan asks for.

    None beyond them, also where all 2ⁿ are remembered: a memory that may forget at any time decides how much is
    evaluated, and neither which credits come out nor whether they are exact.

    Args:
        game: It was told what the request says.
        places: Shape (n,): where the players, in the order of their names, stand in the game.
        known: What the request says: coalitions, players as the game has them, and their utilities.
        before: What is remembered.

    Returns:
        How many utilities it was told. None if the request contradicts a single one of those that are remembered.

    Cost:
        That of asking for the plan twice for each check point.
    """
    coalitions, utilities = known
    found = before.utilities_of(coalitions[:, places]) if len(coalitions) else np.zeros(0)
    if (~np.isnan(found) & (found != utilities)).any():
        return 0
    n_told = 0
    while True:
        told = _tell(game, places, before, game.ask())
        if not told:
            return n_told
        n_told += told


def _tell(game: EvaluatedGame, places: Integers, before: Remembered, rows: Booleans) -> int:
    """Tell a game those of some coalitions that are remembered; how many that were."""
    if not len(rows):
        return 0
    utilities = before.utilities_of(rows[:, places])
    usable = np.abs(utilities) <= MAX_MAGNITUDE
    game.tell(rows[usable], utilities[usable])
    return int(np.count_nonzero(usable))


def _named(coalition: Sequence[int]) -> str:
    """A coalition in a message, the first ten players of it."""
    return f"[{', '.join(map(str, coalition[:10]))}{', …' if len(coalition) > 10 else ''}]"


def _misshapen(row: int, item: SolveItem, *, tokens: bool) -> SetError | None:
    """What is missing of an item, or has another length than its players."""
    n, ids, spans = item.n_players, item.player_ids, item.spans
    if len(item.coalitions) != len(item.utilities):
        detail = f"got {len(item.utilities)} utilities; expected {len(item.coalitions)}, one per coalition"
        return SetError(row, "shape_mismatch", "utilities", None, detail)
    if ids is not None and (len(ids) != n or len(set(ids)) != n):
        return SetError(row, "invalid_request", "id", None, f"expected {n} different names, one per player")
    if tokens and (item.n_tokens is None or spans is None):
        name: ErrorField = "n_tokens" if item.n_tokens is None else "span"
        return SetError(row, "invalid_request", name, None, f"{name} is missing; token advantages need it")
    if tokens and spans is not None and len(spans) != n:
        detail = f"got {len(spans)} spans; expected {n}, one per player"
        return SetError(row, "shape_mismatch", "span", None, detail)
    return None
