"""Sets of candidates with something known inside them, as the arithmetic takes them."""

import math
from types import SimpleNamespace

import numpy as np

from creditd.credit import (
    CandidateParts,
    CandidateSets,
    ComposedSets,
    ComposeOptions,
    SetCreditOptions,
    TokenPolicy,
    composed_credit,
)


def candidate(reward, span, *, advantage=None, **parts):
    """One candidate of the sets below."""
    arrays = {
        name: np.array(value, dtype=np.int64 if name in {"units", "tree"} else np.float64).reshape(
            (-1, 2) if name in {"units", "tree"} else -1
        )
        for name, value in parts.items()
    }
    return SimpleNamespace(
        reward=reward, span=span, advantage=advantage, parts=CandidateParts(**arrays) if arrays else None
    )


def batch_of(*sets, n_tokens=12, masks=None, inside=None, groups=None, given=False, scored=True, **columns):
    """Sets of candidates as columns."""
    every = [one for members in sets for one in members]
    rewards = np.array([math.nan if one.reward is None else one.reward for one in every], dtype=np.float64)
    missing = np.array([one.reward is None for one in every], dtype=np.bool_)
    if not scored:
        rewards, missing = np.zeros(len(every)), np.zeros(len(every), dtype=np.bool_)
    names = list(range(len(sets))) if groups is None else groups
    of_sets = {name: columns.pop(name) for name in ("set_advantages", "slopes") if name in columns}
    numbers = [math.nan if one.advantage is None else one.advantage for one in every]
    return ComposedSets(
        sets=CandidateSets(
            rewards=rewards,
            row_splits=np.append(0, np.cumsum([len(members) for members in sets])),
            groups=np.array(names),
            n_groups=1 + max(names),
            missing=missing,
            spans=np.array([one.span for one in every], dtype=np.int64).reshape(-1, 2),
            n_tokens=np.full(len(sets), n_tokens),
            **columns,
        ),
        parts=tuple(one.parts for one in every),
        masks=(None,) * len(sets) if masks is None else tuple(masks),
        inside=(inside,) * len(sets),
        advantages=np.array(numbers) if given else None,
        scored=scored,
        **{name: np.array(value, dtype=np.float64) for name, value in of_sets.items()},
    )


def options_of(tokens=TokenPolicy(), **choices):  # noqa: B008 - frozen
    """Choices of a request."""
    return ComposeOptions(SetCreditOptions(**choices), tokens)


def answered(batch, options=ComposeOptions(), **more):  # noqa: B008 - frozen
    """The answers about all sets, once there are no errors."""
    found = composed_credit(batch, options, **more)
    assert found.errors == ()
    return found.items


def refused(batch, options=ComposeOptions()):  # noqa: B008 - frozen
    """The one error of a batch."""
    (error,) = composed_credit(batch, options).errors
    return error


TWO = [
    [
        candidate(1.0, (1, 5), units=[[1, 2], [2, 5]], values=[0.5, 0.25]),
        candidate(0.5, (6, 11), units=[[6, 8], [8, 11]], values=[0.3, -0.05]),
    ],
    [candidate(0.2, (0, 4)), candidate(0.1, (4, 12), units=[[4, 12]], values=[0.05])],
]
"""Two responses to one prompt."""
