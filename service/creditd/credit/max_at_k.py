"""Advantages that climb max@k: the best reward of k responses drawn from the group.

Legend: `N` responses, each in one of `n_groups` groups; a group is the G responses of one prompt.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]


def max_at_k_advantages(rewards: Floats, groups: Integers, n_groups: int, *, k: int) -> Floats:
    """What each response adds to the best of k − 1 others, the estimator `sloo_minus_one`.

        A_i = (k/G) · mean over (k−1)-subsets S without i of [max(S ∪ i) − max S]
        A_(p) = (k/G)/C(G−1, k−1) · Σ_{q=k−2}^{p−1} C(q, k−2)·(r_(p) − r_(q))                ascending ranks p = 0 … G−1
              = (k/G) · Σ_{t ≤ p} (r_(t) − r_(t−1)) · C(t, k−1)/C(G−1, k−1)
        k = 1:  A_i = r_i/G

    Args:
        rewards: Shape (N,), float64, reward units, finite.
        groups: Shape (N,), int64, each in [0, n_groups).
        n_groups: Number of groups.
        k: How many are drawn, ≥ 1. A group of fewer responses uses all of them; a single response gets 0 for k ≥ 2.

    Returns:
        Shape (N,), float64, reward units, ≥ 0 for k ≥ 2 and exactly 0 for the k − 1 lowest responses and for all
        responses of a group whose rewards are equal. Equal rewards of a group get equal bits; a group does not depend
        on the others, nor on its order, to the last bit.

    Raises:
        ValueError: If k < 1.

    Cost:
        O(N log N), and one pass per distinct G.

    Reference:
        PKPO, arXiv:2505.15201.

    Differs from the paper:
        The second closed form is used, which needs no subtraction of sums and no large binomial. The paper leaves
        max ∅ open; here it is 0, which k = 1 alone can see.
    """
    if k < 1:
        raise ValueError(f"max_at_k needs k ≥ 1: got {k}")
    counts = np.bincount(groups, minlength=n_groups)
    if k == 1:
        return rewards / counts[groups] + 0.0  # which turns a −0.0 into 0.0
    result = np.zeros(rewards.shape)
    order = np.lexsort((rewards, groups))
    starts = np.cumsum(counts) - counts
    for size in np.unique(counts[counts > 1]).tolist():
        drawn = min(k, size)
        members = order[starts[counts == size][:, None] + np.arange(size)]
        ordered = rewards[members]
        steps = np.diff(ordered, axis=-1, prepend=ordered[:, :1])
        result[members] = np.cumsum(steps * _shares(size, drawn), axis=-1) * (drawn / size)
    return result


def leave_one_out_advantages(rewards: Floats, groups: Integers, n_groups: int) -> Floats:
    """What the best reward of the group would lose without each response.

        A_i = v(N) − v(N∖i),   v = max,   v(∅) = 0

    Args:
        rewards: Shape (N,), float64, reward units, finite.
        groups: Shape (N,), int64, each in [0, n_groups).
        n_groups: Number of groups.

    Returns:
        Shape (N,), float64, reward units: the lead of the best response over the second, exactly 0 for all others and
        wherever the two best are equal; the reward itself for a response without others. A group does not depend on the
        others, nor on its order, to the last bit. It is `max_at_k` with k = G ≥ 2.

    Cost:
        O(N log N).

    Reference:
        Difference rewards, Wolpert and Tumer 2001; best-only form, arXiv:2503.19595.

    Differs from the paper:
        arXiv:2503.19595, as the estimator `grpo_passk` of verl, may divide the lead by the standard deviation of the
        group; here it is not divided.
    """
    counts = np.bincount(groups, minlength=n_groups)
    order = np.lexsort((rewards, groups))
    best = order[(np.cumsum(counts) - 1)[counts > 0]]
    second = order[(np.cumsum(counts) - 2)[counts > 0]]
    result = np.zeros(rewards.shape)
    result[best] = rewards[best] - np.where(counts[counts > 0] > 1, rewards[second], 0.0)
    return result + 0.0  # which turns a −0.0 into 0.0


def _shares(size: int, k: int) -> Floats:
    """C(t, k−1)/C(G−1, k−1) for t = 0 … G−1: the chance that the k − 1 others are all among the t lowest."""
    t = np.arange(size - 1, 0, -1, dtype=np.float64)
    return np.cumprod(np.append(1.0, np.maximum(t - (k - 1), 0.0) / t))[::-1]
