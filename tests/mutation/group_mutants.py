"""The rules for whole responses, shifted: each kind, each convention of whitening, each sum."""

from __future__ import annotations

from mutation.mutants import Mutant, _always, _field, _group_rule, shifted


def _convention(name):
    """Shift what is whitened in one convention."""
    return lambda result, _values, whitening, *_rest: shifted(result) if whitening.type == name else None


def _pair(result, *_args, **_kwargs):
    """Shift the first of two results."""
    values = shifted(result[0])
    return None if values is None else (values, result[1])


def _whitened_rule(rule, convention):
    """Shift the advantages of one rule under one convention of whitening."""

    def shift(result, *_args, **options):
        whitening = options.get("whitening")
        applies = options.get("rule") == rule and whitening is not None and whitening.type == convention
        return _field(result, "advantages") if applies else None

    return shift


def _decoupled(*, whitens):
    """Shift the advantages of several rewards, whitened or not."""

    def shift(result, *_args, **options):
        return _field(result, "advantages") if (options.get("whitening") is not None) == whitens else None

    return shift


SUITE = "test_group_advantages.py"
CONVENTIONS = ("trl", "verl", "openrlhf")

GROUP_MUTANTS = {
    **{
        f"advantages of {rule}": Mutant("group_advantages", "group_advantages", _group_rule(rule), SUITE)
        for rule in ("reinforce++_baseline", "gdpo", "pass_at_k", "max_at_k", "leave_one_out")
    },
    **{
        f"{rule} whitened by {name}": Mutant("group_advantages", "group_advantages", _whitened_rule(rule, name), SUITE)
        for rule in ("reinforce++_baseline", "gdpo")
        for name in CONVENTIONS
    },
    **{
        f"whitening of {name}": Mutant("whitening", "whitened", _convention(name), "test_whitening.py")
        for name in CONVENTIONS
    },
    "gdpo of several rewards": Mutant("group_advantages", "gdpo_advantages", _decoupled(whitens=True), SUITE),
    "gdpo before whitening": Mutant("group_advantages", "gdpo_advantages", _decoupled(whitens=False), SUITE),
    "weighted rewards": Mutant("group_advantages", "weighted_rewards", _pair, SUITE),
    "rewards about their baseline": Mutant("group_advantages", "_centred", _pair, SUITE),
    "pass@k by counts": Mutant("pass_at_k", "pass_at_k_advantages", _pair, "test_pass_at_k.py"),
    "max@k by steps": Mutant("max_at_k", "max_at_k_advantages", _always, "test_max_at_k.py"),
    "shares of max@k": Mutant("max_at_k", "_shares", _always, "test_max_at_k.py"),
    "lead of the best": Mutant("max_at_k", "leave_one_out_advantages", _always, "test_max_at_k.py"),
}
"""Mutants of the modules group_advantages, whitening, pass_at_k and max_at_k."""
