"""Credits of all sets of a batch: one kernel call for each kind of set that occurs.

Legend: `B` sets, `C` candidates over all sets, `n` players of one set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import CandidateSets, Players
from creditd.credit.credit_rules import CreditRule
from creditd.credit.games import Table, candidate_credits
from creditd.credit.set_utilities import Utility, empty_utility, games_of, needs
from creditd.credit.set_work import targets_and_topics, work_of_credit

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]

WORK_PER_CALL = 1 << 24
"""Most additions of one kernel call, to an order of magnitude: some 10 ms, after which a deadline is looked at."""


@dataclass(frozen=True)
class SolvedSets:
    """Credits of B sets, before any normalisation. Slots of sets that were left out are NaN.

    Attributes:
        credits: Shape (C,), float64, reward units; 0 for a collapsed copy, NaN for a candidate that does not play.
        empty: v(∅), shape (B,), float64.
        grand: v(N), shape (B,), float64.
        scale: Largest magnitude among the utilities that enter, shape (B,), float64.
    """

    credits: Floats
    empty: Floats
    grand: Floats
    scale: Floats

    def only(self, row_splits: Integers, alive: Booleans) -> SolvedSets:
        """The same with NaN in the slots of sets that are not alive."""
        of_candidates = np.repeat(alive, np.diff(row_splits))
        return SolvedSets(
            credits=np.where(of_candidates, self.credits, np.nan),
            empty=np.where(alive, self.empty, np.nan),
            grand=np.where(alive, self.grand, np.nan),
            scale=np.where(alive, self.scale, np.nan),
        )


def solve_sets(
    batch: CandidateSets,
    utility: Utility,
    rule: CreditRule,
    players: Players,
    alive: Booleans,
    checkpoint: Callable[[], None],
) -> SolvedSets:
    """Credits of the players of every set.

    Args:
        batch: The sets, checked.
        utility: Utility of a set.
        rule: Which credit.
        players: Who plays.
        alive: Shape (B,), bool; False for sets that are left out.
        checkpoint: Called before each kernel call; what it raises ends the computation.

    Returns:
        The same bits for a set whatever its batch.

    Raises:
        ValueError: If columns that the utility or the rule needs are absent.

    Cost:
        That of the kernels; one call for each combination of players, candidates and features that occurs.
    """
    credits_ = np.full(len(batch.rewards), np.nan)
    empty, grand, scale = (np.full(batch.n_sets, np.nan) for _ in range(3))
    if players.copies.any():
        credits_[players.copies & alive[batch.owner]] = 0.0
    index = np.flatnonzero(players.playing)
    n_players, n_candidates = batch.per_set(players.playing), batch.per_set(players.playing | players.copies)
    first_player = np.cumsum(n_players) - n_players
    bare = np.flatnonzero(alive & (n_players == 0))
    empty[bare] = grand[bare] = _empty_utilities(batch, utility, bare)
    scale[bare] = np.abs(empty[bare])
    unions = None if batch.features is None else batch.features.unions
    busy = np.flatnonzero(alive & (n_players > 0))
    for rows in _kinds(batch, utility, rule, n_players, n_candidates, busy):
        checkpoint()
        n, k = int(n_players[rows[0]]), int(n_candidates[rows[0]])
        together = len(rows) == batch.n_sets
        members = index.reshape(-1, n) if together else index[first_player[rows][:, None] + np.arange(n)]
        games = games_of(batch, utility, rows, members)
        credits_[members] = candidate_credits(games, rule, k, None if unions is None else unions[members])
        empty[rows], grand[rows], scale[rows] = games.empty(), games.grand(), games.scale()
    return SolvedSets(credits=credits_, empty=empty, grand=grand, scale=scale)


def _kinds(
    batch: CandidateSets,
    utility: Utility,
    rule: CreditRule,
    n_players: Integers,
    n_candidates: Integers,
    busy: Integers,
) -> Iterator[Integers]:
    """Rows of sets that one kernel call can solve together."""
    targets, topics = targets_and_topics(batch, utility)
    n_topics = int(topics.max(initial=0))
    keys = [n_players, n_candidates, targets]
    if needs(utility) & {"similarities", "utilities"}:
        keys.append(batch.sizes)
    kind, n_kinds = np.zeros(len(busy), dtype=np.int64), min(1, len(busy))
    for key in keys:
        kind, n_kinds = _refined(kind, n_kinds, key[busy])
    for number in range(n_kinds):
        rows = busy[kind == number] if n_kinds > 1 else busy
        n, n_targets = int(n_players[rows[0]]), int(targets[rows[0]])
        step = max(1, WORK_PER_CALL // work_of_credit(rule, utility, n, n_targets, n_topics))
        for start in range(0, len(rows), step):
            yield rows[start : start + step]


def _refined(kind: Integers, n_kinds: int, key: Integers) -> tuple[Integers, int]:
    """Kinds split by one more number ≥ 0, in the order of kinds and then of numbers, and how many there are."""
    if len(key) == 0 or (key == key[0]).all():
        return kind, n_kinds
    kinds, refined = np.unique(kind * (int(key.max()) + 1) + key, return_inverse=True)
    return refined.reshape(-1), len(kinds)


def _empty_utilities(batch: CandidateSets, utility: Utility, rows: Integers) -> Floats:
    """v(∅) of sets in which nobody plays."""
    if isinstance(utility, Table):
        if batch.tables is None or batch.table_splits is None:
            raise ValueError("a table utility needs tables and table_splits")
        return batch.tables[batch.table_splits[rows]]
    return np.full(len(rows), empty_utility(utility))
