"""Every formula of the credit library, shifted by 10⁻⁶ with its sum kept: the first number up, the second one down.

A mutant names the function that it wraps, says which output of which calls it shifts, and which file has to notice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

SHIFT = 1e-6
"""Far above every tolerance of the suite, far below what the eye would see."""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One shifted formula.

    Attributes:
        module: Module that defines the function, below `creditd.credit`.
        function: Name of the function, or of the class and its method.
        shift: Called as `shift(result, *args, **kwargs)`; the shifted result, or None for a call that it leaves alone.
        suite: Test file that must fail.
    """

    module: str
    function: str
    shift: Callable[..., Any]
    suite: str


def shifted(values: np.ndarray | None) -> np.ndarray | None:
    """The values with the first of each row up and the second down; None where there are not two."""
    if values is None or values.shape[-1] < 2:
        return None
    result = np.array(values)
    result[..., 0] += SHIFT
    result[..., 1] -= SHIFT
    return result


def _field(result: Any, name: str) -> Any:
    """The result with one of its columns shifted."""
    values = shifted(getattr(result, name))
    return None if values is None else dataclasses.replace(result, **{name: values})


def _always(result, *_args, **_kwargs):
    """Shift every call."""
    return shifted(result)


def _kernel(utility_type, *, floor=False):
    """Shift the semivalues or grand utilities of one utility."""

    def shift(result, _rewards, utility, *_rest):
        applies = utility.type == utility_type and (getattr(utility, "floor", None) is not None) == floor
        return shifted(result) if applies else None

    return shift


def _rule(rule_type):
    """Shift the credit of one rule."""
    return lambda result, _games, rule, *_: shifted(result) if rule.type == rule_type else None


def _weights(rule_type):
    """Shift the size weights of one rule."""
    return lambda result, rule, _n: shifted(result) if rule.type == rule_type else None


def _normalization(column, **wanted):
    """Shift one column of the advantages under a normalisation."""

    def shift(result, _entries, normalization):
        applies = all(getattr(normalization, name) == value for name, value in wanted.items())
        return _field(result, column) if applies else None

    return shift


def _group_rule(rule):
    """Shift the advantages of one rule for whole responses."""
    return lambda result, *_args, **options: (
        _field(result, "advantages") if options.get("rule", "grpo") == rule else None
    )


def _tokens(**wanted):
    """Shift the tokens under one policy."""

    def shift(result, _advantages, _set_advantages, _spans, policy):
        applies = all(getattr(policy, name) == value for name, value in wanted.items())
        return shifted(result) if applies else None

    return shift


def _others(result, _values, _groups, baseline):
    """Shift the baselines that leave the response out."""
    return shifted(result) if baseline == "others" else None


def _slots(result, *_args):
    """Shift the first of two answers."""
    values = shifted(result[0])
    return None if values is None else (values, result[1])


def _set_reward_tokens(result, _batch, policy, _max_tokens, _advantages, _of_sets, whole, _failed):
    """Shift the tokens that carry the advantage of a set reward."""
    values = shifted(result[0]) if whole is not None and policy.set_reward_weight else None
    return None if values is None else (values, result[1])


def _collapsed(result, _batch, _utility, _rule, players, *_rest):
    """Shift the credits of a batch that has collapsed copies."""
    return _field(result, "credits") if players.copies.any() else None


def _column(name):
    """Shift one column of the whole answer."""
    return lambda result, *_args: _field(result, name)


UTILITY_TYPES = ("max", "min", "sum", "mean", "top_m", "rth_best", "threshold")
SEMIVALUE_TYPES = ("shapley", "leave_one_out", "own_reward", "max_at_k", "mixture")
RULE_TYPES = (*SEMIVALUE_TYPES, "set_reward", "prefix_gain", "blend")
NORMALIZATION_TYPES = ("pooled", "batch_scaled", "centered", "response_preserving", "per_slot", "none")
ANSWER_COLUMNS = (
    "credits",
    "advantages",
    "set_advantages",
    "set_reward_advantages",
    "utility_empty",
    "utility_grand",
    "credit_sums",
    "gaps",
    "token_advantages",
)

SET_MUTANTS = {
    **{
        f"semivalues of {t}": Mutant("level_games", "semivalues", _kernel(t), "test_level_games.py")
        for t in UTILITY_TYPES
    },
    "semivalues of max with a floor": Mutant(
        "level_games", "semivalues", _kernel("max", floor=True), "test_level_games.py"
    ),
    **{
        f"grand utilities of {t}": Mutant("level_games", "grand_utilities", _kernel(t), "test_level_games.py")
        for t in UTILITY_TYPES
    },
    "values of the level games": Mutant(
        "level_games", "_level_values", lambda result, *_: tuple(map(shifted, result)), "test_level_games.py"
    ),
    "binomial coefficients": Mutant("coalitions", "binomials", _always, "test_coalitions.py"),
    "semivalues of tables": Mutant("tables", "table_semivalues", _always, "test_tables.py"),
    "restricted tables": Mutant("tables", "restrict_players", _always, "test_tables.py"),
    "weights of tables": Mutant("tables", "_marginal_weights", _always, "test_tables.py"),
    **{f"credit of {t}": Mutant("games", "candidate_credits", _rule(t), "test_games.py") for t in RULE_TYPES},
    **{
        f"size weights of {t}": Mutant("credit_rules", "size_weights", _weights(t), "test_credit_rules.py")
        for t in SEMIVALUE_TYPES
    },
    "size weights without null players": Mutant(
        "credit_rules", "without_null_players", _always, "test_credit_rules.py"
    ),
    "credit beside null players": Mutant("credit_rules", "without_null_players", _always, "test_games.py"),
    **{
        f"{method} of {games}": Mutant("games", f"{games}.{method}", _always, "test_games.py")
        for games in ("OrderStatisticGames", "TableGames")
        for method in ("empty", "grand", "semivalues")
    },
    **{
        f"sums of groups: {name}": Mutant("group_sums", name, _always, "test_group_sums.py")
        for name in (
            "group_sums",
            "group_means",
            "group_standard_deviations",
            "group_maxima",
            "added_up",
            "running_sums",
        )
    },
    **{
        f"advantages of {rule}": Mutant(
            "group_advantages", "group_advantages", _group_rule(rule), "test_group_advantages.py"
        )
        for rule in ("grpo", "dr_grpo", "rloo")
    },
    **{
        f"{column} under {t}": Mutant(
            "set_advantages", "set_advantages", _normalization(column, type=t), "test_set_advantages.py"
        )
        for t in NORMALIZATION_TYPES
        for column in ("advantages", "set_advantages")
    },
    **{
        f"{column} against others": Mutant(
            "set_advantages", "set_advantages", _normalization(column, baseline="others"), "test_set_advantages.py"
        )
        for column in ("advantages", "set_advantages")
    },
    "baselines of others": Mutant("set_advantages", "_baselines", _others, "test_set_advantages.py"),
    "denominators": Mutant("set_advantages", "_denominators", _slots, "test_set_advantages.py"),
    "positions": Mutant("set_advantages", "_per_slot", _slots, "test_set_advantages.py"),
    **{
        f"tokens under {other}": Mutant(
            "token_advantages", "token_advantages", _tokens(other=other), "test_token_advantages.py"
        )
        for other in ("set", "zero", "next")
    },
    "tokens under length_norm": Mutant(
        "token_advantages", "token_advantages", _tokens(length_norm=True), "test_token_advantages.py"
    ),
    "weights of length_norm": Mutant("token_advantages", "length_norm_weights", _always, "test_token_advantages.py"),
    "tokens with a set reward": Mutant("set_credit", "_token_advantages", _set_reward_tokens, "test_set_credit.py"),
    "credit beside collapsed copies": Mutant("set_games", "solve_sets", _collapsed, "test_set_credit.py"),
    **{
        f"answer: {name}": Mutant("set_credit", "set_credit", _column(name), "test_set_credit.py")
        for name in ANSWER_COLUMNS
    },
}
"""Mutants of candidate sets: kernels, rules, normalisations, tokens and the whole answer."""
