"""Mutants of the way from a batch of sets to their games, and of sums, parts and enumerations."""

from __future__ import annotations

import dataclasses

from mutation.mutants import SHIFT, Mutant, _always, _field, shifted

SUITE = "test_set_utilities.py"


def _gathered(result, *_args):
    """Shift the first number that was gathered of each set."""
    if result.dtype.kind != "f" or not result.size:
        return None
    changed = result.copy()
    changed.reshape(len(changed), -1)[:, 0] += SHIFT
    return changed


def _symmetric(result, *_args):
    """Shift the similarity of the first two players, on both sides of the diagonal."""
    if result.shape[1] < 2:
        return None
    changed = result.copy()
    changed[:, 0, 1] += SHIFT
    changed[:, 1, 0] += SHIFT
    return changed


def _topic_weights(result, *_args):
    """Shift the weights of the first two topics of each set."""
    weights = shifted(result[1])
    return None if weights is None else (result[0], weights)


def _covers(result, *_args):
    """Let the first player cover one topic more, or less."""
    if not result[0].size:
        return None
    covers = result[0].copy()
    covers[:, 0, 0] = ~covers[:, 0, 0]
    return covers, result[1]


def _answers(result, *_args):
    """Give the first player an answer of its own."""
    changed = result.copy()
    changed[:, 0] += 1000
    return changed


def _tables(result, *_args):
    """Shift two utilities of each enumerated game."""
    tables = shifted(result.tables)
    return None if tables is None else dataclasses.replace(result, tables=tables)


def _parts(result, batch, *_rest):
    """Shift the credits of a batch of parts."""
    solved, advantages = result
    changed = None if batch.parts is None else _field(solved, "credits")
    return None if changed is None else (changed, advantages)


def _advantages_of_parts(result, batch, *_rest):
    """Shift the advantages of a batch of parts."""
    solved, advantages = result
    changed = None if batch.parts is None else _field(advantages, "advantages")
    return None if changed is None else (solved, changed)


WIRING_MUTANTS = {
    "sums of games: semivalues": Mutant("games", "WeightedGames.semivalues", _always, SUITE),
    **{
        f"sums of games: {method}": Mutant("games", f"WeightedGames.{method}", _gathered, SUITE)
        for method in ("empty", "grand", "_total")
    },
    "enumerated games": Mutant("games", "enumerated", _tables, SUITE),
    "semivalues of any weights": Mutant("games", "any_semivalues", _always, SUITE),
    "Owen values of games": Mutant("games", "_owen", _always, SUITE),
    "players at their places": Mutant("games", "_at", _always, SUITE),
    "credits of players": Mutant("games", "candidate_credits", _always, SUITE),
    "scores of players": Mutant("candidate_features", "players_scores", _gathered, SUITE),
    "similarities of players": Mutant("candidate_features", "players_similarities", _symmetric, SUITE),
    "answers of players": Mutant("candidate_features", "players_labels", _answers, SUITE),
    "topics of players": Mutant("candidate_features", "players_topics", _covers, SUITE),
    "weights of the topics of players": Mutant("candidate_features", "players_topics", _topic_weights, SUITE),
    "v(∅) of sets without players": Mutant("set_utilities", "empty_utility", lambda result, *_: result + SHIFT, SUITE),
    **{
        f"solved sets: {name}": Mutant(
            "set_games", "solve_sets", lambda result, *_, name=name: _field(result, name), SUITE
        )
        for name in ("credits", "empty", "grand")
    },
    "credits of parts": Mutant("set_credit", "_solve", _parts, SUITE),
    "advantages of parts": Mutant("set_credit", "_solve", _advantages_of_parts, SUITE),
    "weighted parts": Mutant("set_credit", "_weighted", _always, SUITE),
}
"""Every mutant of the wiring by its name."""
