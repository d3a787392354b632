"""Quantiles of Student's t distribution, for the intervals of the estimators."""

from __future__ import annotations

import math
from functools import lru_cache

TINY = 1e-300
"""Stands in for a zero inside the continued fraction."""
ROUNDING = 4e-16
"""The continued fraction has converged when one more term changes its last bit at most."""
LARGE = 50.0
"""Above this the logarithm of a ratio of gamma functions is taken from its series, which loses no digits."""


@lru_cache(maxsize=4096)
def t_quantile(probability: float, degrees_of_freedom: float) -> float:
    """Quantile of Student's t distribution.

        P(T ≤ t) = probability,     P(|T| > t) = I_{ν/(ν+t²)}(ν/2, 1/2)

    with the regularised incomplete beta function I. Newton's method on the logarithm of the tail,
    kept inside a bracket.

    Args:
        probability: In [0.5, 1).
        degrees_of_freedom: ν ≥ 1.

    Returns:
        t ≥ 0, relative error below 1e-9; 0 at probability 0.5; it falls as ν grows.

    Raises:
        ValueError: If the probability or ν is out of range.

    Cost:
        O(√ν) per step, remembered.
    """
    if not (0.5 <= probability < 1.0 and degrees_of_freedom >= 1.0):
        raise ValueError(
            "a quantile needs a probability in [0.5, 1) and degrees of freedom ≥ 1: "
            f"got {probability} and {degrees_of_freedom}"
        )
    target = 2.0 * (1.0 - probability)
    if target == 1.0:
        return 0.0
    low, high = 0.0, 1.0
    while _tails(high, degrees_of_freedom) > target:
        low, high = high, 2.0 * high
    t = 0.5 * (low + high)
    for _ in range(200):
        tails = _tails(t, degrees_of_freedom)
        low, high = (t, high) if tails > target else (low, t)
        step = (math.log(tails) - math.log(target)) * tails / (2.0 * _density(t, degrees_of_freedom))
        following = t + step if low < t + step < high else 0.5 * (low + high)
        if abs(following - t) <= 1e-15 * t:
            break
        t = following
    return t


def _density(t: float, nu: float) -> float:
    """Density of T at t."""
    return math.exp(_log_gamma_ratio(0.5 * nu) - 0.5 * (nu + 1.0) * math.log1p(t * t / nu)) / math.sqrt(nu * math.pi)


def _tails(t: float, nu: float) -> float:
    """P(|T| > t) for t ≥ 0."""
    if t == 0.0:
        return 1.0
    a, b = 0.5 * nu, 0.5
    outside, inside = nu / (nu + t * t), t * t / (nu + t * t)
    front = math.exp(_log_gamma_ratio(a) - a * math.log1p(t * t / nu)) * math.sqrt(inside / math.pi)
    if outside < (a + 1.0) / (a + b + 2.0):
        return front * _fraction(a, b, outside) / a
    return 1.0 - front * _fraction(b, a, inside) / b


def _log_gamma_ratio(a: float) -> float:
    """Log Γ(a + 1/2) − log Γ(a)."""
    if a < LARGE:
        return math.lgamma(a + 0.5) - math.lgamma(a)
    series = -1.0 / 8.0 + (1.0 / 192.0 + (-1.0 / 640.0 + 17.0 / 14336.0 / a**2) / a**2) / a**2
    return 0.5 * math.log(a) + series / a


def _fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function, evaluated forwards (Lentz)."""
    c, d = 1.0, 1.0 / _not_zero(1.0 - (a + b) * x / (a + 1.0))
    value = d
    m = 0
    while True:
        m += 1
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0)),
        ):
            d = 1.0 / _not_zero(1.0 + term * d)
            c = _not_zero(1.0 + term / c)
            value *= c * d
        if abs(c * d - 1.0) <= ROUNDING:
            return value


def _not_zero(value: float) -> float:
    """The value, or a tiny one in place of zero."""
    return value if abs(value) > TINY else TINY
