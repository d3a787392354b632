"""What the caller is sure of, and what a rule or a normalisation is made for, compared with the sets that came.

Legend: `B` sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.candidate_sets import CandidateSets, Players, SetErrors
from creditd.credit.credit_rules import CreditRule, EndRule, MaxAtK, Mixture, Owen, ends_of
from creditd.credit.games import MAX_ENUMERATED_PLAYERS, Table
from creditd.credit.set_utilities import Utility, every_semivalue, max_players_of

Integers: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Expectation:
    """What the caller is sure of; a set or group that is otherwise is an error.

    Attributes:
        group_size: Sets in each group, or None.
        candidates: Candidates in each set, surplus ones left out, or None.
    """

    group_size: int | None = None
    candidates: int | None = None


def check_expectation(batch: CandidateSets, expectation: Expectation, players: Players, errors: SetErrors) -> None:
    """Fail what differs from what the caller is sure of.

    Args:
        batch: The sets.
        expectation: What is expected.
        players: Who plays.
        errors: Receives at most one error per set.

    Cost:
        O(C).
    """
    group_size, expected = expectation.group_size, expectation.candidates
    if group_size is not None:
        found = np.bincount(batch.groups, minlength=batch.n_groups)[batch.groups]
        errors.add_sets(
            np.flatnonzero(found != group_size),
            "group_size_mismatch",
            "group",
            lambda row: f"the group holds {found[row]} sets in this request; expected {group_size}",
        )
    if expected is not None:
        listed = np.bincount(batch.owner[~players.truncated], minlength=batch.n_sets)
        errors.add_sets(
            np.flatnonzero(listed != expected),
            "shape_mismatch",
            "candidates",
            lambda row: f"the set holds {listed[row]} candidates; expected {expected}",
        )


def check_rule(
    rule: CreditRule,
    utility: Utility,
    n_players: Integers,
    n_candidates: Integers,
    errors: SetErrors,
    *,
    max_table_players: int,
) -> None:
    """Fail the sets for which a rule is not made, or that it could only solve by enumerating too many coalitions.

    Args:
        rule: The rule.
        utility: The utility.
        n_players: Shape (B,), players of each set.
        n_candidates: Shape (B,), players and collapsed copies of each set.
        errors: Receives at most one error per set.
        max_table_players: Most players of a game that is solved from all its utilities.

    Cost:
        O(B).
    """
    for end in ends_of(rule):
        if isinstance(end, Mixture):
            _check_mixture(len(end.weights), n_candidates, errors)
        limit = MAX_ENUMERATED_PLAYERS if isinstance(utility, Table) else min(max_table_players, MAX_ENUMERATED_PLAYERS)
        if int(n_players.max(initial=0)) <= limit:
            continue
        too_many = _enumerates(end, utility, n_candidates) & (n_players > limit)
        name = end.type
        errors.add_sets(
            np.flatnonzero(too_many),
            "too_many_players",
            "candidates",
            lambda row, name=name, limit=limit: (  # type: ignore[misc]
                f"{name} under this utility needs all 2**n utilities of n = {n_players[row]} players; "
                f"expected at most {limit}"
            ),
        )
    most = max_players_of(utility)
    if most is not None:
        errors.add_sets(
            np.flatnonzero(n_players > most),
            "too_many_players",
            "candidates",
            lambda row: f"this utility is solved for at most {most} players; got {n_players[row]}",
        )


def _enumerates(rule: EndRule, utility: Utility, n_candidates: Integers) -> NDArray[np.bool_]:
    """Which sets the rule solves from all their utilities, by more than the kernel of tables."""
    if isinstance(rule, Owen):
        return np.ones(n_candidates.shape, dtype=np.bool_)
    if isinstance(utility, Table):
        return np.zeros(n_candidates.shape, dtype=np.bool_)
    if isinstance(rule, MaxAtK) and not every_semivalue(utility):
        return (rule.k > 1) & (rule.k < n_candidates)
    return np.full(n_candidates.shape, isinstance(rule, Mixture) and not every_semivalue(utility))


def _check_mixture(n_weights: int, n_candidates: Integers, errors: SetErrors) -> None:
    """Fail the sets for which a mixture has no weights."""
    errors.add_sets(
        np.flatnonzero((n_candidates != n_weights) & (n_candidates > 0)),
        "shape_mismatch",
        "candidates",
        lambda row: f"the set has {n_candidates[row]} candidates; expected {n_weights}, one per mixture weight",
    )


def fail_incomplete_groups(batch: CandidateSets, errors: SetErrors) -> None:
    """Fail every set of a group that lost one.

    Args:
        batch: The sets.
        errors: Holds the lost ones, receives the others.

    Cost:
        O(B).
    """
    broken = np.zeros(batch.n_groups, dtype=np.bool_)
    broken[batch.groups[errors.failed]] = True
    errors.add_sets(
        np.flatnonzero(broken[batch.groups]),
        "group_incomplete",
        "group",
        lambda _: "another set of this group failed; expected every set of the group to be sound",
    )


def fail_uneven_groups(batch: CandidateSets, n_candidates: Integers, errors: SetErrors) -> None:
    """Fail the groups whose sets differ in size, which `per_slot` cannot compare position by position.

    Args:
        batch: The sets.
        n_candidates: Shape (B,), players and collapsed copies of each set.
        errors: Receives at most one error per set.

    Cost:
        O(B).
    """
    alive = ~errors.failed
    smallest = np.full(batch.n_groups, np.iinfo(np.int64).max)
    largest = np.full(batch.n_groups, -1)
    np.minimum.at(smallest, batch.groups[alive], n_candidates[alive])
    np.maximum.at(largest, batch.groups[alive], n_candidates[alive])
    uneven = alive & ((smallest != largest) | (largest == 0))[batch.groups]
    errors.add_sets(
        np.flatnonzero(uneven),
        "shape_mismatch",
        "candidates",
        lambda row: (
            f"per_slot needs equally many candidates in each set of a group: "
            f"got {smallest[batch.groups[row]]} to {largest[batch.groups[row]]}"
        ),
    )
