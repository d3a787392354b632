"""Weights of reasoning tokens from how much the answer depends on them.

Legend: `L` reweighted tokens of one completion, I_t the sensitivity of its outcome to token t.

Reference: OAR, arXiv:2601.07408, whose bi-level reshaping this is.
Differs from the paper: see `reshape_weights`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

FLAT_SHARE = 1e-5
"""Range of log1p(I), as a share of its maximum, up to which all tokens are equally important: rounding of a float32
model is of this order."""
LEAST_PERTURBATION_RANGE = 1e-6
"""Range of log1p(I) up to which divergences of a float32 model differ by rounding alone."""
GUARD = 1e-8
"""What the published formula adds to its two divisors."""
MAX_BETA = 1e6


@dataclass(frozen=True)
class ReshapeOptions:
    """How sensitivities become weights.

    Attributes:
        quantile: q, part of the tokens that are weighed down, 0 ≤ q < 1.
        beta: β, what the most important token gets beyond 1, in [0, 1e6].
        floor: Smallest weight before the mass is restored, in [0, 1].
        preserve_mass: Whether the weights are brought to the sum L.

    Raises:
        ValueError: If a number is outside its range.
    """

    quantile: float = 0.25
    beta: float = 1.0
    floor: float = 0.1
    preserve_mass: bool = True

    def __post_init__(self) -> None:
        """Refuse numbers outside their ranges."""
        if not 0.0 <= self.quantile < 1.0:
            raise ValueError(f"quantile: got {self.quantile}, expected 0 ≤ quantile < 1")
        if not 0.0 <= self.beta <= MAX_BETA:
            raise ValueError(f"beta: got {self.beta}, expected 0 ≤ beta ≤ {MAX_BETA:g}")
        if not 0.0 <= self.floor <= 1.0:
            raise ValueError(f"floor: got {self.floor}, expected 0 ≤ floor ≤ 1")


@dataclass(frozen=True)
class Reshaped:
    """Weights of the reweighted tokens of one completion.

    Attributes:
        weights: w, shape (L,), float64, dimensionless, ≥ 0.
        weight_sum: Σ w; 0 without tokens.
        effective_share: (Σ w)²/(L·Σ w²), in (0, 1]; None without tokens.
        top_share: Share of Σ w that the ⌈L/10⌉ largest weights hold, in (0, 1]; None without tokens.
        flat: Whether the sensitivities tell no token from another, so that all weights are 1.
    """

    weights: Floats
    weight_sum: float
    effective_share: float | None
    top_share: float | None
    flat: bool


def reshape_weights(sensitivities: Floats, options: ReshapeOptions, *, least_range: float = 0.0) -> Reshaped:
    """Weights of the tokens of one completion: important ones above 1, unimportant ones below.

        ℓ = log1p(max(I, 0)),  x = (ℓ − min ℓ)/(max ℓ − min ℓ)
        τ = the q-quantile of x, linear between neighbours
        w = max(x/(τ + 1e-8), floor)               where x < τ
        w = 1 + β·(x − τ)/(1 − τ + 1e-8)           where x ≥ τ
        w ← w·L/Σ w                                with `preserve_mass`

    Args:
        sensitivities: I, shape (L,), float64, nats, or any unit of importance: a larger number is more important.
            Numbers below 0 count as 0.
        options: q, β, floor and `preserve_mass`.
        least_range: Range of ℓ up to which the sensitivities are flat whatever their size, ≥ 0.

    Returns:
        With `preserve_mass` Σ w = L to 1e-12·L, whatever the sensitivities. Weights are ordered as the sensitivities
        are, and equal where these are equal; before the mass is restored the smallest is at least `floor` and the
        largest at most 1 + β. A permutation of the sensitivities permutes the weights, to the last bit. No token: no
        weight. L = 1, or max ℓ − min ℓ ≤ 1e-5·max ℓ, or ≤ `least_range`: `flat`, and all weights are exactly 1.

    Raises:
        ValueError: If a sensitivity is not finite, the array has not one axis, or `least_range` is negative.

    Cost:
        O(L log L).

    Reference:
        OAR, arXiv:2601.07408.

    Differs from the paper:
        The quantile is taken of each completion; in the published code the threshold of one completion is the quantile
        level of the next, so that equal completions of a batch get unequal weights. The positive part is taken, where
        the published code has no number for a signed sensitivity below −1. What is flat has weights 1, where the
        published code divides by a range of rounding errors, and there is no guard in the divisor Σ w.
    """
    values = np.asarray(sensitivities, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"sensitivities: got shape {values.shape}, expected (L,)")
    if not np.isfinite(values).all():
        t = int(np.argmin(np.isfinite(values)))
        raise ValueError(f"sensitivity {t}: got {values[t]}, expected a finite number")
    if not least_range >= 0.0:
        raise ValueError(f"least_range: got {least_range}, expected at least 0")
    if not len(values):
        return Reshaped(np.empty(0, dtype=np.float64), 0.0, None, None, flat=True)
    levels = np.log1p(np.maximum(values, 0.0))
    lowest, highest = float(levels.min()), float(levels.max())
    width = highest - lowest
    if len(levels) == 1 or width <= max(FLAT_SHARE * highest, least_range):
        return _described(np.ones_like(levels), flat=True)
    places = (levels - lowest) / width
    threshold = _quantile(places, options.quantile)
    lower = np.maximum(places / (threshold + GUARD), options.floor)
    upper = 1.0 + options.beta * (places - threshold) / (1.0 - threshold + GUARD)
    weights = np.where(places < threshold, lower, upper)
    if options.preserve_mass:
        weights *= len(weights) / _sum(weights)
    return _described(weights, flat=False)


def _described(weights: Floats, *, flat: bool) -> Reshaped:
    """Return the weights of at least one token with their measures of concentration."""
    total, count = _sum(weights), len(weights)
    largest = np.sort(weights)[-math.ceil(count / 10) :]
    return Reshaped(
        weights=weights,
        weight_sum=total,
        effective_share=min(total**2 / (count * _sum(weights**2)), 1.0),
        top_share=min(_sum(largest) / total, 1.0),
        flat=flat,
    )


def _quantile(values: Floats, level: float) -> float:
    """The quantile of at least two values, linear between neighbours."""
    ordered = np.sort(values)
    place = level * (len(ordered) - 1)
    below = int(place)
    lower, upper = ordered[below : below + 2].tolist() if below + 1 < len(ordered) else (float(ordered[-1]),) * 2
    return float(lower + (place - below) * (upper - lower))


def _sum(values: Floats) -> float:
    """Sum over sorted values, so that no order of the tokens changes it."""
    return float(np.sum(np.sort(values)))
