"""Credit inside candidates, shifted: shares of max, credits and advantages of units, weights, parts of the accounts."""

from __future__ import annotations

import dataclasses

from mutation.mutants import SHIFT, Mutant, _always, _field, shifted


def _share(*, floor):
    """Shift the shares with a floor, or without."""
    return lambda result, share, *_: result + SHIFT if (share.floor is not None) == floor else None


def _table(result, *_args):
    """Let no unit be worth something."""
    changed = result.copy()
    changed[0] += SHIFT
    return changed


def _credits(*, tree):
    """Shift credits that come over a tree, or those that do not."""
    return lambda result, _game, merges=None: shifted(result) if (merges is not None) == tree else None


def _tokens(result, *_args, **_kwargs):
    """Shift the tokens of the first set that has two."""
    for row, item in enumerate(result.items):
        values = None if item is None else shifted(item.token_advantages)
        if values is not None:
            changed = dataclasses.replace(item, token_advantages=values)
            return dataclasses.replace(result, items=(*result.items[:row], changed, *result.items[row + 1 :]))
    return None


def _entry(name):
    """Shift one entry of an account."""

    def shift(result, *_args, **_kwargs):
        value = getattr(result, name)
        return None if value is None else dataclasses.replace(result, **{name: value + SHIFT})

    return shift


def _of_unit(name):
    """Shift one entry of the account of the first unit."""

    def shift(result, *_args, **_kwargs):
        if not result.units:
            return None
        first = dataclasses.replace(result.units[0], **{name: getattr(result.units[0], name) + SHIFT})
        return dataclasses.replace(result, units=(first, *result.units[1:]))

    return shift


def _slopes(name):
    """Shift the slopes of one normalisation."""
    return lambda result, _entries, normalization: _field(result, "slopes") if normalization.type == name else None


SUITE = "test_composition.py"
BATCHES = "test_composed_credit.py"
OF_CANDIDATES = (
    *("length_weight", "credit", "unit_sum", "credit_gap", "mass", "token_sum", "mass_gap", "absolute_mass"),
    *("n_reweighted", "effective_share", "top_share"),
)
OF_SETS = (
    *("credit_sum", "utility_gain", "credit_gap", "set_mass", "candidate_mass", "other_mass", "set_reward_mass"),
    *("total", "mass_gap"),
)
COMPOSITION_MUTANTS = {
    "share of max": Mutant("composition", "MaxShare.__call__", _share(floor=False), SUITE),
    "share of max above a floor": Mutant("composition", "MaxShare.__call__", _share(floor=True), SUITE),
    "worth of no unit": Mutant("composition", "MaxShare.of_table", _table, SUITE),
    "credits of spans": Mutant("composition", "span_credits", _credits(tree=False), SUITE),
    "credits of spans over a tree": Mutant("composition", "span_credits", _credits(tree=True), SUITE),
    "contrasts of units": Mutant("composition", "unit_contrasts", _always, SUITE),
    "additive advantages": Mutant("composition", "additive_advantages", _always, SUITE),
    "bounded advantages": Mutant("composition", "bounded_advantages", _always, SUITE),
    "composed tokens": Mutant("composed_credit", "composed_credit", _tokens, BATCHES),
    **{
        f"slopes of {name}": Mutant("set_advantages", "set_advantages", _slopes(name), BATCHES)
        for name in ("pooled", "batch_scaled", "centered", "response_preserving", "per_slot", "none")
    },
    **{
        f"account of a candidate: {name}": Mutant("composed_ledgers", "candidate_ledger", _entry(name), BATCHES)
        for name in OF_CANDIDATES
    },
    **{
        f"account of a unit: {name}": Mutant("composed_ledgers", "candidate_ledger", _of_unit(name), BATCHES)
        for name in ("value", "mass")
    },
    **{
        f"account of a set: {name}": Mutant("composed_ledgers", "set_ledger", _entry(name), BATCHES) for name in OF_SETS
    },
}
"""Mutants of the modules composition, composed_credit and composed_ledgers, and of slopes."""
