"""Pytest plugin: run a suite against the library with one formula shifted.

`CREDITD_MUTANT` names the mutant (empty: none), `CREDITD_MUTANT_MARKER` a file written when it first shifts a call.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from pathlib import Path

from hypothesis import Phase, settings

from mutation.mutants import Mutant
from mutation.registry import MUTANTS

PROFILE = "mutation"
EXAMPLES = 25
"""A shifted formula is wrong on nearly every example, so a few find it."""


def install(mutant: Mutant, marker: Path) -> None:
    """Wrap the mutant's function wherever the library holds it, before any test imports it."""
    importlib.import_module("creditd.credit")
    holder = importlib.import_module(f"creditd.credit.{mutant.module}")
    *classes, name = mutant.function.split(".")
    for each in classes:
        holder = getattr(holder, each)
    original = getattr(holder, name)

    @functools.wraps(original)
    def mutated(*args, **kwargs):
        result = original(*args, **kwargs)
        changed = mutant.shift(result, *args, **kwargs)
        if changed is None:
            return result
        marker.touch()
        return changed

    if classes:
        setattr(holder, name, mutated)
        return
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("creditd.credit") and getattr(module, name, None) is original:
            setattr(module, name, mutated)


# A failure is all that is asked for, so no time goes into a smaller one.
PHASES = (Phase.explicit, Phase.generate)
settings.register_profile(PROFILE, max_examples=EXAMPLES, phases=PHASES, derandomize=True, deadline=None, database=None)
if chosen := os.environ.get("CREDITD_MUTANT"):
    install(MUTANTS[chosen], Path(os.environ["CREDITD_MUTANT_MARKER"]))
