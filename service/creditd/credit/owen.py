"""Exact Owen values: the Shapley value of players who come in unions.

Legend: `B` tables, `n` players, `m` unions of p_1 … p_m players. Bit i of a table's index is player i. The structure of
a row is its partition of the players into unions; how the unions are numbered does not matter.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalitions import binomials
from creditd.credit.tables import TILE_ROWS, marginal_matrix, members, middles, player_count

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

MAX_PLAYERS = 16


def owen_values(tables: Floats, unions: Integers) -> Floats:
    """Owen value of each player: Shapley over the unions, then inside each union.

        φ_i = Σ_{R ⊆ M∖{k}} Σ_{T ⊆ P_k∖{i}} [v(R ∪ T ∪ i) − v(R ∪ T)] / (m·C(m−1, |R|) · p_k·C(p_k−1, |T|))

    for player i of union P_k, with M the unions and v(R ∪ T) the utility of all members of the unions R together with
    the players T: the mean marginal utility over all orders in which each union arrives as one block.
    Only coalitions that break up at most one union enter; per structure they and their weights are one matrix, and each
    tile of 64 tables, padded with zeros, is one matrix product.

    Args:
        tables: Shape (B, 2ⁿ), float64, reward units, finite. n ≥ 1.
        unions: Shape (B, n), int64: players of a row with equal numbers form a union; any numbers, each row its own.

    Returns:
        Shape (B, n), float64, reward units. A row sums to v(N) − v(∅), and the values of a union sum to its Shapley
        value in the game between the unions, both within 1e-12 of the largest utility. Unions of one player each, and
        one union of all, give the Shapley value. A row does not depend on the rest of the batch, nor on the numbers
        that its unions have, to the last bit. Permuting the players permutes the result within 1e-12 of the largest
        utility, and symmetric players of one union agree as closely.

    Raises:
        ValueError: If the shapes do not fit, or n > 16.

    Cost:
        O(B · n · c) time for c = Σ_k 2^(m−1+p_k) coalitions at most, c ≤ 2ⁿ: 512 of 65,536 for four unions of four.
        The weights of a structure, at most 8.5 MiB, are built in O(n · 2ⁿ) and remembered for the last sixteen
        structures. Memory beside them O(64 · c).

    Reference:
        Owen 1977, Values of games with a priori unions. SCAR, arXiv:2505.20417, assigns rewards to spans by the same
        idea.

    Differs from the paper:
        Owen gives the value as a formula; the restriction to the coalitions that enter is creditd's.
        SCAR nests unions in unions along a binary tree down to single spans. The value here has two levels: unions,
        and players in them. Both agree where the tree has no more than two levels.
    """
    if tables.ndim != 2:
        raise ValueError(f"tables must have shape (B, 2**n): got {tables.shape}")
    n = player_count(tables.shape[1])
    if not 1 <= n <= MAX_PLAYERS:
        raise ValueError(f"a table of {tables.shape[1]} values has n = {n} players: expected 1 to {MAX_PLAYERS}")
    if unions.shape != (len(tables), n):
        raise ValueError(f"unions must have one entry per player: got {unions.shape}, expected {(len(tables), n)}")
    values = np.empty((len(tables), n))
    structures, structure_of_row = _structures(unions)
    for number, structure in enumerate(structures.tolist()):
        rows = np.flatnonzero(structure_of_row == number)
        coalitions, weights = _structure_weights(tuple(structure))
        tile = np.zeros((TILE_ROWS, len(coalitions)))
        for start in range(0, len(rows), TILE_ROWS):
            chosen = rows[start : start + TILE_ROWS]
            utilities = tables[chosen[:, None], coalitions[None, :]]
            # The empty and the grand coalition break up no union: they are the first and the last to enter.
            tile[: len(chosen)] = utilities - middles(utilities)
            tile[len(chosen) :] = 0.0
            values[chosen] = (tile @ weights)[: len(chosen)]
    return values


def _structures(unions: Integers) -> tuple[Integers, Integers]:
    """The distinct structures, each player's union named by its first player, and which of them each row has."""
    n = unions.shape[1]
    first_of_union = np.argmax(unions[:, :, None] == unions[:, None, :], axis=2)
    # n ≤ 16 numbers below 16 are one integer of 64 bits, which sorts faster than a row.
    codes = (first_of_union.astype(np.uint64) << (4 * np.arange(n, dtype=np.uint64))).sum(axis=1, dtype=np.uint64)
    _, example, structure_of_row = np.unique(codes, return_index=True, return_inverse=True)
    return first_of_union[example], structure_of_row.reshape(-1)


@lru_cache(maxsize=16)
def _structure_weights(structure: tuple[int, ...]) -> tuple[Integers, Floats]:
    """The c coalitions that enter under a structure, ascending, and the (c, n) weights of their utilities."""
    n = len(structure)
    blocks = [[i for i in range(n) if structure[i] == union] for union in sorted(set(structure))]
    masks = [sum(1 << i for i in block) for block in blocks]
    weights = np.zeros((1 << n, n))
    enters = np.zeros(1 << n, dtype=np.bool_)
    m = len(blocks)
    for k, block in enumerate(blocks):
        whole = _subset_sums(masks[:k] + masks[k + 1 :])
        of_whole = 1.0 / (m * binomials(m)[m - 1, members(m - 1).sum(axis=1)])
        part = _subset_sums([1 << i for i in block])
        of_part = marginal_matrix(len(block), np.full(len(block), 1.0 / len(block)))
        coalitions = (whole[:, None] + part[None, :]).reshape(-1)
        enters[coalitions] = True
        weights[coalitions[:, None], block] = (of_whole[:, None, None] * of_part[None]).reshape(-1, len(block))
    chosen = np.flatnonzero(enters)
    matrix = weights[chosen]
    chosen.flags.writeable = matrix.flags.writeable = False
    return chosen, matrix


def _subset_sums(masks: list[int]) -> Integers:
    """Sums of every subset of disjoint masks; bit j of the index says whether the j-th is in."""
    return members(len(masks)) @ np.array(masks, dtype=np.int64)
