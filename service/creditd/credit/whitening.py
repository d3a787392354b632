"""Advantages of a whole request brought to mean 0 and spread 1, as each framework does it.

Legend: `N` responses of a request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.group_sums import Groups, group_sums

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]

Convention: TypeAlias = Literal["trl", "verl", "openrlhf"]

_DDOF: dict[Convention, int] = {"trl": 1, "verl": 1, "openrlhf": 0}
_EPSILONS: dict[Convention, float] = {"trl": 1e-4, "verl": 1e-8, "openrlhf": 1e-8}


@dataclass(frozen=True)
class Whitening:
    """How a request is whitened.

    Attributes:
        type: `trl`: responses count once, denominator s + ε; `verl`: tokens count, √(s² + ε); `openrlhf`: tokens
            count, √max(s², ε).
        ddof: Degrees of freedom taken off the divisor of s². None: the convention's, 1, 1 and 0.
        epsilon: ε: reward units for `trl`, their square for the others. None: the convention's, 1e-4, 1e-8 and 1e-8.
    """

    type: Convention = "trl"
    ddof: int | None = None
    epsilon: float | None = None

    def __post_init__(self) -> None:
        if (self.ddof or 0) < 0 or (self.epsilon or 0.0) < 0:
            raise ValueError(f"ddof and epsilon must not be negative: got {self.ddof} and {self.epsilon}")

    @property
    def counts_tokens(self) -> bool:
        """Whether a response counts with its trainable tokens."""
        return self.type != "trl"

    def denominator(self, deviation: float) -> float:
        """What centred values are divided by, from their standard deviation s; same units."""
        epsilon = _EPSILONS[self.type] if self.epsilon is None else self.epsilon
        if self.type == "trl":
            return deviation + epsilon
        root = float(np.sqrt(epsilon))
        return float(np.hypot(deviation, root)) if self.type == "verl" else max(deviation, root)


def whitened(values: Floats, whitening: Whitening, n_tokens: Integers | None = None) -> Floats:
    """Values less their mean, over their spread.

        (x − m)/denominator,   m = Σ L·x/Σ L,   s² = Σ L·(x − m)²/(Σ L − ddof)        denominator: see `Whitening`

    with L the trainable tokens of a response, or 1.

    Args:
        values: x, shape (N,), float64, finite: every response of the request that has a reward.
        whitening: Which convention.
        n_tokens: L, shape (N,), int64, ≥ 0. None, or a convention that counts responses: each counts once.

    Returns:
        Shape (N,), float64: Σ L·result is 0 to 1e-12 of Σ L·|result|. Exactly 0 where the values of the responses that
        count are all equal (compared exactly), or Σ L ≤ ddof: there is no spread to divide by. Permuting the responses
        permutes the result to the last bit.

    Raises:
        ValueError: If the tokens do not fit the values or are negative.

    Cost:
        O(N log N).

    Reference:
        REINFORCE++ arXiv:2501.03262; GDPO arXiv:2601.05242.

    Differs from the paper:
        The papers leave ddof and ε to their code; the conventions are those of TRL 1.16, verl 0.9.1 and OpenRLHF
        0.11.2. verl adds 1e-8 to the number of tokens too, and refuses a request of one token; here it gives 0.
    """
    counts = np.ones(values.shape) if n_tokens is None or not whitening.counts_tokens else n_tokens.astype(np.float64)
    if counts.shape != values.shape or (counts < 0).any():
        raise ValueError(f"n_tokens must be one number ≥ 0 per response: got shape {counts.shape} for {values.shape}")
    counted = values[counts > 0]
    ddof = _DDOF[whitening.type] if whitening.ddof is None else whitening.ddof
    freedom = _total(counts) - ddof
    if counted.size == 0 or freedom <= 0 or counted.max() == counted.min():
        return np.zeros(values.shape)
    # Measured from the lowest value, so that an offset costs no digits; squared in units near the range, so that the
    # squares of small values do not vanish.
    low = counted.min()
    exponent = int(np.frexp(counted.max() - low)[1])
    above = values - low
    centred = above - _total(counts * above) / _total(counts)
    scaled = np.ldexp(centred[counts > 0], -exponent)
    deviation = float(np.sqrt(_total(counts[counts > 0] * (scaled * scaled)) / freedom))
    result: Floats = centred / whitening.denominator(float(np.ldexp(deviation, exponent)))
    return result


def _total(values: Floats) -> float:
    """Sum over the request, in ascending order."""
    return float(group_sums(values, Groups(np.zeros(len(values), dtype=np.int64), 1))[0])
