"""Noisy-or utilities: topics that each candidate covers with a probability, independently of the others.

Legend: `B` sets, `n` players, `T` topics; p_it is the probability that candidate i covers topic t. The same utility is
called probabilistic coverage.

Each topic is a product game, v(S) = 1 − Π_{i∈S}(1 − z_i). Player i adds z_i·Π_{k∈S}(1 − z_k), and if the others are
present with probability x, the mean of that is z_i·Π_{k≠i}(1 − x·z_k): a polynomial in x, integrated without error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.coalitions import binomials
from creditd.credit.level_games import MAX_PLAYERS
from creditd.credit.quadrature import presence_nodes, size_parts

Floats: TypeAlias = NDArray[np.float64]

CHUNK_ELEMENTS = 1 << 18
"""Elements of the largest temporary array; a few of them live at a time."""


@dataclass(frozen=True)
class NoisyOr:
    """Weighted topics that the set covers, v(S) = Σ_t w_t·(1 − Π_{i∈S}(1 − p_it)); probabilistic coverage.

    Attributes:
        weights: w_t, one per topic, in units of the utility, any sign; None: 1 each.
        empty: v(∅), in units of the utility.
    """

    type: ClassVar[str] = "noisy_or"
    weights: tuple[float, ...] | None = None
    empty: float = 0.0

    def __post_init__(self) -> None:
        for weight in self.weights or ():
            if not math.isfinite(weight):
                raise ValueError(f"noisy_or needs finite weights: got {weight}, expected a finite number")
        if not math.isfinite(self.empty):
            raise ValueError(f"noisy_or needs a finite empty: got {self.empty}, expected a finite number")

    @property
    def empty_utility(self) -> float:
        """v(∅), units of the utility."""
        return self.empty


@dataclass(frozen=True)
class NoisyOrGames:
    """Games of candidates that cover topics.

    Attributes:
        scores: Shape (B, n, T), float64: the probability that candidate i covers topic t, in [0, 1].
        utility: Weights of the topics and v(∅).
    """

    every_semivalue: ClassVar[bool] = True
    scores: Floats
    utility: NoisyOr

    def __post_init__(self) -> None:
        weights = self.utility.weights
        if weights is not None and len(weights) != self.scores.shape[2]:
            raise ValueError(
                f"noisy_or needs one weight per topic: got {len(weights)} weights, expected {self.scores.shape[2]}"
            )

    @property
    def n_players(self) -> int:
        """Number of players."""
        return int(self.scores.shape[1])

    def empty(self) -> Floats:
        """v(∅), shape (B,)."""
        return np.full(len(self.scores), float(self.utility.empty))

    def grand(self) -> Floats:
        """v(N), shape (B,); v(∅) without players."""
        return _weighted(self._covered(), self._weights()) if self.n_players else self.empty()

    def scale(self) -> Floats:
        """The larger of |v(∅)| and Σ_t |w_t|·(share of topic t that all candidates cover), shape (B,)."""
        largest: Floats = np.maximum(
            _weighted(self._covered(), np.abs(self._weights())), abs(float(self.utility.empty))
        )
        return largest

    def restricted(self, players: NDArray[np.int64]) -> NoisyOrGames:
        """The same games among the players named, in that order."""
        return NoisyOrGames(self.scores[:, players], self.utility)

    def semivalues(self, weights: Floats) -> Floats:
        """Semivalues of any coalition-size weights of shape (n,), shape (B, n)."""
        if self.n_players == 0:
            return np.empty((len(self.scores), 0))
        by_topic = product_game_semivalues(np.moveaxis(self.scores, 2, 1), weights)
        # The topics alone have v(∅) = 0.
        values: Floats = _weighted(np.moveaxis(by_topic, 1, 2), self._weights()) - weights[0] * self.utility.empty
        return values

    def _weights(self) -> Floats:
        n_topics = self.scores.shape[2]
        return np.ones(n_topics) if self.utility.weights is None else np.array(self.utility.weights, dtype=np.float64)

    def _covered(self) -> Floats:
        """1 − Π_i (1 − p_it) for each topic, shape (B, T), by additions of positive numbers in ascending order."""
        covered = np.zeros((self.scores.shape[0], self.scores.shape[2]))
        for probability in np.moveaxis(np.sort(self.scores, axis=1), 1, 0):
            covered = covered + probability * (1.0 - covered)
        return covered


def _weighted(by_topic: Floats, weights: Floats) -> Floats:
    """Σ_t w_t · x[…, t], one topic after the other."""
    total = np.zeros(by_topic.shape[:-1])
    for topic, weight in enumerate(weights):
        total += weight * by_topic[..., topic]
    return total


def product_game_semivalues(probabilities: Floats, size_weights: Floats) -> Floats:
    """Semivalue of each player of the product games v(S) = 1 − Π_{k∈S}(1 − z_k).

        φ_i = z_i · Σ_s q_s · mean over coalitions S of size s without i of Π_{k∈S}(1 − z_k)
        Shapley: z_i · ∫₀¹ Π_{k≠i}(1 − x·z_k) dx

    No division, and no cancellation when the weights have one sign.

    Args:
        probabilities: Shape (…, n), float64: z_k in [0, 1], n ≥ 1.
        size_weights: Shape (n,), float64: q_s for coalitions of s other players; 1/n each is the Shapley value.

    Returns:
        Shape (…, n), float64. Equal z get equal bits; permuting a game permutes its result to the last bit; a game does
        not depend on the rest of the batch. With q_s = 1/n it sums to v(N).

    Raises:
        ValueError: If the shapes do not fit, or n > 1,000.

    Cost:
        O(n²) per game for sums of Shapley, own reward and leave-one-out, O(n³) for other weights.

    Reference:
        Owen 1972 for the integral. A set utility in the sense of ShapE-GRPO, arXiv:2603.29871v1.

    Differs from the paper:
        The paper decomposes max only.
    """
    n = probabilities.shape[-1]
    if not 1 <= n <= MAX_PLAYERS:
        raise ValueError(f"product games need 1 to {MAX_PLAYERS} players: got n = {n}")
    if size_weights.shape != (n,):
        raise ValueError(
            f"size_weights must have one entry per coalition size: got {size_weights.shape}, expected ({n},)"
        )
    players_first = np.ascontiguousarray(probabilities.reshape(-1, n).T)
    order = np.argsort(players_first, axis=0, kind="stable")
    ordered = np.take_along_axis(players_first, order, axis=0)
    parts = size_parts(size_weights)
    if parts is None:
        values = ordered * _symmetric_means_of_others(ordered, size_weights)
    else:
        nodes, weights = presence_nodes(parts, n)
        values = ordered * (parts.first + products_of_others(ordered, nodes, weights))
    # Adding +0.0 turns a −0.0 into 0.0.
    values = np.take_along_axis(values, first_of_ties((ordered,)), axis=0) + 0.0
    result = np.empty_like(values)
    np.put_along_axis(result, order, values, axis=0)
    return np.ascontiguousarray(result.T).reshape(probabilities.shape)


def products_of_others(ordered: Floats, nodes: Floats, weights: Floats) -> Floats:
    """Weighted sum over nodes x of the product of 1 − x·z over the other players.

        Σ_j weight_j · Π_{k≠i}(1 − x_j·z_k)

    Products of the players before i and after i, so that nothing is divided.

    Args:
        ordered: Shape (n, M), float64: z in [0, 1], one game per column, in an order that the caller has fixed.
        nodes: Shape (m,), float64: x in [0, 1].
        weights: Shape (m,), float64.

    Returns:
        Shape (n, M), float64. A column does not depend on the others, to the last bit. Players of equal z agree within
        rounding only (`first_of_ties` makes them equal).

    Cost:
        O(n · M · m) time, bounded memory.
    """
    n, n_games = ordered.shape
    result = np.zeros((n, n_games))
    step = max(1, CHUNK_ELEMENTS // max(1, n * len(nodes)))
    for start in range(0, n_games, step):
        columns = slice(start, start + step)
        factors = 1.0 - nodes[None, :, None] * ordered[:, None, columns]
        products = np.empty_like(factors)
        products[0] = 1.0
        for i in range(1, n):
            np.multiply(products[i - 1], factors[i - 1], out=products[i])
        after = np.ones(factors.shape[1:])
        for i in range(n - 2, -1, -1):
            after *= factors[i + 1]
            products[i] *= after
        for j, weight in enumerate(weights):
            result[:, columns] += weight * products[:, j]
    return result


def first_of_ties(keys: tuple[NDArray[np.float64] | NDArray[np.int64], ...]) -> NDArray[np.intp]:
    """Position of the first of the equal entries that each entry belongs to.

    Args:
        keys: Arrays of one shape (n, M); entries that are equal in all of them are adjacent along the first axis.

    Returns:
        Shape (n, M), int: indices along the first axis, where every key has the same value.

    Cost:
        O(n · M).
    """
    position = np.arange(len(keys[0]), dtype=np.intp)[:, None]
    starts = np.zeros(keys[0].shape, dtype=bool)
    starts[:1] = True
    for key in keys:
        starts[1:] |= key[1:] != key[:-1]
    first: NDArray[np.intp] = np.maximum.accumulate(np.where(starts, position, 0), axis=0)
    return first


def _symmetric_means_of_others(ordered: Floats, size_weights: Floats) -> Floats:
    """Σ_s q_s · e_s(1 − z of the others) / C(n − 1, s), with e_s the elementary symmetric polynomial, shape (n, M)."""
    n, n_games = ordered.shape
    per_coalition = size_weights / binomials(1 << n.bit_length())[n - 1, :n]
    itself = np.eye(n, dtype=bool)
    result = np.empty((n, n_games))
    step = max(1, CHUNK_ELEMENTS // (n * n))
    for start in range(0, n_games, step):
        absent = 1.0 - ordered[:, start : start + step]
        # sums[s, i]: e_s of the players gone through so far, without player i.
        sums = np.zeros((n, n, absent.shape[1]))
        sums[0] = 1.0
        for k in range(n):
            factor = np.where(itself[k][:, None], 0.0, absent[k][None, :])
            sums[1:] += factor[None, :, :] * sums[:-1]
        total = np.zeros_like(absent)
        for s, weight in enumerate(per_coalition):
            total += weight * sums[s]
        result[:, start : start + step] = total
    return result
