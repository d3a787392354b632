"""The formulas of OAR over plain Python numbers, one token at a time."""

from __future__ import annotations

import math
from fractions import Fraction


def quantile(values, q):
    """The q-quantile, linear between neighbours."""
    ordered = sorted(values)
    place = Fraction(q) * (len(ordered) - 1)
    below = place.numerator // place.denominator
    share = float(place - below)
    if below + 1 == len(ordered):
        return ordered[below]
    return (1 - share) * ordered[below] + share * ordered[below + 1]


def levels(sensitivities):
    """log1p of the positive parts."""
    return [math.log1p(max(value, 0.0)) for value in sensitivities]


def is_flat(sensitivities, least_range=0.0):
    """Whether no token matters more than another."""
    if len(sensitivities) < 2:
        return True
    found = levels(sensitivities)
    width = max(found) - min(found)
    return width <= 1e-5 * max(found) or width <= least_range


def weights(sensitivities, *, q=0.25, beta=1.0, floor=0.1, preserve_mass=True, least_range=0.0):
    """Weight of each token."""
    if is_flat(sensitivities, least_range):
        return [1.0] * len(sensitivities)
    found = levels(sensitivities)
    places = [(level - min(found)) / (max(found) - min(found)) for level in found]
    threshold = quantile(places, q)
    raw = [
        max(x / (threshold + 1e-8), floor) if x < threshold else 1 + beta * (x - threshold) / (1 - threshold + 1e-8)
        for x in places
    ]
    if not preserve_mass:
        return raw
    return [weight * len(raw) / math.fsum(raw) for weight in raw]
