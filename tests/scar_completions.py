"""Completions, a function that judges them, and what is true of every answer about them."""

import numpy as np
import pytest

from creditd.client import Client

PROMPTS = ["why?", "why?", "who?"]
COMPLETIONS = ["It is so. We prove it, because we can.", "No, it is not.", ""]
OFFSETS = [
    [[0, 2], [2, 5], [5, 9], [9, 12], [12, 18], [18, 22], [22, 30], [30, 38]],
    [[0, 3], [3, 6], [6, 14]],
    [],
]
LEDGER = ("kl", "other_reward", "units", "terminal", "remainder", "total", "alpha")
AGREEMENT = 1e-12


def judge(prompt, text):
    """Longer is better, and a proof with a reason is better still."""
    return len(text) / 8 + len(prompt) / 16 + 3.0 * ("prove" in text and "because" in text)


def many(prompts, texts):
    """The same for lists of both."""
    return [judge(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]


def local(utility=judge, prompts=PROMPTS, completions=COMPLETIONS, **options):
    """The result in this process."""
    with Client("local:") as client:
        return client.scar(prompts, completions, utility=utility, **options)


def assert_same(one, other):
    """Equal bits."""
    for name in ("token_rewards", "token_advantages", "unit_values", "standard_errors", "interval_low", "units"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert ours.values.tobytes() == theirs.values.tobytes(), name
            assert ours.row_splits.tolist() == theirs.row_splits.tolist(), name
    for name in ("utility_empty", "utility_grand", "gap", "exact", "ok"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name
    for name in LEDGER:
        assert getattr(one.ledger, name).tobytes() == getattr(other.ledger, name).tobytes(), name
    assert (one.methods, one.flags, one.ids) == (other.methods, other.flags, other.ids)


def assert_returns(result):
    """Every return is accounted for: the tokens sum to the total, which is the sum of its parts."""
    ledger = result.ledger
    parts = ledger.kl + ledger.other_reward + ledger.units + ledger.terminal + ledger.remainder
    np.testing.assert_allclose(parts[result.ok], ledger.total[result.ok], atol=AGREEMENT)
    for row in np.flatnonzero(result.ok):
        if len(result.token_rewards[row]):
            assert result.token_rewards[row].sum() == pytest.approx(ledger.total[row], abs=AGREEMENT)
