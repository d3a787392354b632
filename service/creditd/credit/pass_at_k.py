"""Advantages that climb pass@k: the chance that one of k responses drawn from the group is right.

Legend: `N` responses, each in one of `n_groups` groups; a group is the G responses of one prompt, c of them right.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]


def pass_at_k_advantages(right: Booleans, groups: Integers, n_groups: int, *, k: int) -> tuple[Floats, Booleans]:
    """Advantage of each response when k of its group are drawn and one right among them is a success.

        ρ = 1 − q,  q = C(G − c, k)/C(G, k),  s = √(ρ·q)
        right:  (1 − ρ)/s = √(q/ρ)
        wrong:  (1 − ρ − C(G−c−1, k−1)/C(G−1, k−1))/s = −c/(G − c)·√(q/ρ)

    Args:
        right: Shape (N,), bool; True where a response is right.
        groups: Shape (N,), int64, each in [0, n_groups).
        n_groups: Number of groups.
        k: How many are drawn, ≥ 1.

    Returns:
        Advantages of shape (N,), float64, which sum to 0 within each group to 1e-12 of their scale, equal for all
        right and for all wrong responses of a group; and a mask of shape (n_groups,), True for each group without a
        contrast, whose advantages are exactly 0: fewer than k wrong (so also fewer than k responses), or none right.
        A group does not depend on the others, nor on its order, to the last bit. k = 1 is `grpo` with ddof 0 and ε 0.

    Raises:
        ValueError: If k < 1.

    Cost:
        O(N).

    Reference:
        Pass@k Training, arXiv:2508.10751; pass@k itself, Chen et al. 2021, arXiv:2107.03374.

    Differs from the paper:
        The second form of each formula is used: it needs one product and no difference. Where s = 0, which the paper
        leaves open, the advantages are 0. The estimator `grpo_passk` of verl is another one: there the best response
        alone has an advantage, its lead over the second.
    """
    if k < 1:
        raise ValueError(f"pass_at_k needs k ≥ 1: got {k}")
    counts = np.bincount(groups, minlength=n_groups)
    n_right = np.bincount(groups[right], minlength=n_groups)
    n_wrong = counts - n_right
    flat = (n_wrong < k) | (n_right == 0)
    index = np.flatnonzero(~flat)
    size, wrong = counts[index], n_wrong[index]
    all_wrong = np.ones(len(index))
    for drawn in range(k if index.size else 0):
        all_wrong = all_wrong * ((wrong - drawn) / (size - drawn))
    of_right, of_wrong = np.zeros(n_groups), np.zeros(n_groups)
    of_right[index] = np.sqrt(all_wrong / (1.0 - all_wrong))
    of_wrong[index] = 0.0 - (n_right[index] / wrong) * of_right[index]
    return np.where(right, of_right[groups], of_wrong[groups]), flat
