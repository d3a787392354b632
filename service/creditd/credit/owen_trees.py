"""Owen values over a binary tree of players: unions in unions, down to single players.

Legend: `n` players, `C` coalitions. A tree is its n − 1 merges, shape (n − 1, 2): node i < n is player i, node n + k
is made of the two nodes of row k, and the last node is the root. A coalition is a boolean row; True means that the
player is in.

A node is met in several *contexts*: for each ancestor, the child that does not hold the node is all there or all
absent. So a node at depth d has 2^d contexts, all distinct, and a tree needs 2 + 2·Σ 2^depth coalitions, the sum over
its inner nodes: ∅, N and, for each context of an inner node, either child alone. No two of them are one coalition,
because the deepest node that a coalition breaks up, and what it holds beside that node, tell where it comes from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]

REMEMBERED_PLAYERS = 64
"""Balanced plans of at most so many players are kept: 2,732 coalitions, a quarter of a megabyte."""


@lru_cache(maxsize=REMEMBERED_PLAYERS)
def balanced_tree(n: int) -> Integers:
    """Merges of the tree that halves the players again and again, the left half one larger at odd counts.

    Args:
        n: Players, n ≥ 1.

    Returns:
        Shape (n − 1, 2), int64, read-only: the merges from the leaves to the root. The depths of the leaves differ by
        at most one, and every node is a run of neighbours.

    Raises:
        ValueError: If n < 1.

    Cost:
        O(n log n), remembered for the last few n.

    Reference:
        SCAR, arXiv:2505.20417.

    Differs from the paper:
        SCAR takes the tree of `shap`'s text masker, which joins neighbours by punctuation and size, from the left: of
        2^m alike spans it is this one, of five it is not.
    """
    if n < 1:
        raise ValueError(f"a tree needs a leaf: got n = {n}, expected at least 1")
    merges: list[tuple[int, int]] = []

    def node(start: int, end: int) -> int:
        if end - start == 1:
            return start
        middle = start + (end - start + 1) // 2
        merges.append((node(start, middle), node(middle, end)))
        return n + len(merges) - 1

    node(0, n)
    tree = np.array(merges, dtype=np.int64).reshape(n - 1, 2)
    tree.flags.writeable = False
    return tree


def tree_evaluations(n: int) -> int:
    """Distinct coalitions that Owen values over the balanced tree need.

        (2·4^m + 4)/3 + 2^{m+1}·(n − 2^m),     m = ⌊log₂ n⌋

    Args:
        n: Players, n ≥ 1.

    Returns:
        The number of rows of the plan of `balanced_tree(n)`: 12, 44, 172, 684 for 4, 8, 16, 32.

    Raises:
        ValueError: If n < 1.

    Cost:
        O(1).

    Reference:
        SCAR, arXiv:2505.20417, which states O(n²).

    Differs from the paper:
        The count is exact. O(n²) holds for balanced trees alone: a chain needs all 2ⁿ.
    """
    if n < 1:
        raise ValueError(f"a tree needs a leaf: got n = {n}, expected at least 1")
    m = n.bit_length() - 1
    return ((2 << 2 * m) + 4) // 3 + (2 << m) * (n - (1 << m))


@dataclass(frozen=True)
class OwenPlan:
    """The coalitions that a tree needs, and how their utilities become values.

    Attributes:
        coalitions: Shape (C, n), bool, read-only, distinct rows. Row 0 is ∅, row 1 is N; the others follow from the
            root down, left before right, whatever the numbers of the merges.
        leaves: For each depth of a leaf, the L leaves there: their players, shape (L,), and the rows of `coalitions`
            that hold their contexts with and without them, each of shape (2^depth, L), int64.
    """

    coalitions: Booleans
    leaves: tuple[tuple[Integers, Integers, Integers], ...]

    def values(self, utilities: Floats) -> Floats:
        """Owen value of each player over the tree.

            φ_i = 2^−d · Σ_C [v(C ∪ i) − v(C)]

        over the 2^d contexts C of the leaf i at depth d: the mean marginal utility when at each node a coin decides
        which child arrives first, as one block.

        Args:
            utilities: Shape (C,), float64, reward units: v of each row of `coalitions`, finite.

        Returns:
            Shape (n,), float64, reward units. The sum is v(N) − v(∅) within 1e-12 of the largest utility. For n ≤ 2
            the values are Shapley values. Every sum is elementwise, over one game: there is no batch and no product
            of matrices that could change a bit. A large offset of the utilities cancels in the differences.

        Raises:
            ValueError: If there is not one utility for each coalition.

        Cost:
            O(C).

        Reference:
            Owen 1977; SCAR, arXiv:2505.20417. `shap`'s PartitionExplainer computes the same on the same tree: for node
            (a, b), context C and weight w it visits (a, C, w/2), (b, C, w/2), (a, C ∪ b, w/2), (b, C ∪ a, w/2).

        Differs from the paper:
            Nothing is approximated: a tree that needs too many coalitions is refused, where `shap` spreads the rest
            over the players of a node by their number.
        """
        if utilities.shape != (len(self.coalitions),):
            raise ValueError(
                f"a plan takes one utility per coalition: got shape {utilities.shape}, "
                f"expected ({len(self.coalitions)},)"
            )
        values = np.empty(self.coalitions.shape[1])
        for players, present, absent in self.leaves:
            terms = utilities[present] - utilities[absent]
            contexts = len(terms)
            # Halves are added to halves, so that long sums keep their digits.
            while len(terms) > 1:
                half = len(terms) // 2
                terms = terms[:half] + terms[half:]
            values[players] = terms[0] / contexts
        return values


def owen_plan(tree: Integers, *, most: int) -> OwenPlan:
    """The plan of a tree.

    Args:
        tree: Merges, shape (n − 1, 2), int64: row k joins two nodes below n + k; every node but the root is joined
            once. The players of a node need not be neighbours. No merges are the tree of one player.
        most: Largest number of coalitions.

    Returns:
        The plan; its number of coalitions is `tree_evaluations(n)` for a tree whose leaves have depths that differ by
        at most one, and 2ⁿ for a chain.

    Raises:
        ValueError: If the merges are no tree, or it needs more coalitions than `most`: then before anything is built.

    Cost:
        O(C·n) time and memory. Balanced plans of at most 64 players are remembered.

    Reference:
        SCAR, arXiv:2505.20417.

    Differs from the paper:
        None.
    """
    depths = _depths(tree)
    n = len(tree) + 1
    needed = 2
    for depth in depths[n:]:
        needed += 2 << min(depth, most.bit_length())
        if needed > most:
            break
    if needed > most:
        raise ValueError(
            f"the tree of {n} leaves, {max(depths)} merges deep, needs too many coalitions: got more than {most}, "
            f"expected at most {most}"
        )
    if n <= REMEMBERED_PLAYERS and np.array_equal(tree, balanced_tree(n)):
        return _balanced_plan(n)
    return _built(tree, needed)


def _depths(tree: Integers) -> list[int]:
    """Depth of every node, 0 for the root, once the merges are known to be a tree."""
    if tree.ndim != 2 or tree.shape[1] != 2:
        raise ValueError(f"a tree has two nodes in each merge: got shape {tree.shape}, expected (n − 1, 2)")
    n = len(tree) + 1
    parents = [-1] * (2 * n - 1)
    for merge, children in enumerate(tree.tolist()):
        for child in children:
            if not 0 <= child < n + merge:
                raise ValueError(f"merge {merge} of the tree: got node {child}, expected one of 0 to {n + merge - 1}")
            if parents[child] >= 0:
                raise ValueError(f"merge {merge} of the tree: got node {child}, which is joined before; expected once")
            parents[child] = n + merge
    # 2n − 2 children, all distinct and none the root, are all nodes but the root: nothing can be left out.
    depths = [0] * (2 * n - 1)
    for child in range(2 * n - 3, -1, -1):
        depths[child] = depths[parents[child]] + 1
    return depths


@lru_cache(maxsize=REMEMBERED_PLAYERS)
def _balanced_plan(n: int) -> OwenPlan:
    """The plan of the balanced tree, remembered."""
    return _built(balanced_tree(n), tree_evaluations(n))


def _built(tree: Integers, n_coalitions: int) -> OwenPlan:
    """The plan of a tree that was checked and counted."""
    n = len(tree) + 1
    of_node = np.zeros((2 * n - 1, n), dtype=np.bool_)
    np.fill_diagonal(of_node, val=True)
    for merge, (left, right) in enumerate(tree.tolist()):
        of_node[n + merge] = of_node[left] | of_node[right]
    coalitions = np.empty((n_coalitions, n), dtype=np.bool_)
    coalitions[0], coalitions[1] = False, True
    filled = 2
    # A node, and the rows that hold its contexts with it and without it.
    pending = [(2 * n - 2, np.array([1]), np.array([0]))]
    by_depth: dict[int, list[tuple[int, Integers, Integers]]] = {}
    while pending:
        node, present, absent = pending.pop()
        if node < n:
            by_depth.setdefault(len(present), []).append((node, present, absent))
            continue
        left, right = tree[node - n].tolist()
        contexts = coalitions[absent]
        with_left = np.arange(filled, filled + len(absent))
        with_right = with_left + len(absent)
        coalitions[with_left] = contexts | of_node[left]
        coalitions[with_right] = contexts | of_node[right]
        filled += 2 * len(absent)
        pending.append((right, np.concatenate([with_right, present]), np.concatenate([absent, with_left])))
        pending.append((left, np.concatenate([with_left, present]), np.concatenate([absent, with_right])))
    coalitions.flags.writeable = False
    leaves = tuple(_stacked(group) for _, group in sorted(by_depth.items()))
    return OwenPlan(coalitions=coalitions, leaves=leaves)


def _stacked(leaves: list[tuple[int, Integers, Integers]]) -> tuple[Integers, Integers, Integers]:
    """Leaves of one depth side by side, read-only."""
    players, present, absent = zip(*leaves, strict=True)
    stacked = np.array(players), np.stack(present, axis=1), np.stack(absent, axis=1)
    for array in stacked:
        array.flags.writeable = False
    return stacked
