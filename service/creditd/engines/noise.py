"""Normal noise that is a function of where it stands: the same in any batch, on every device, in every process.

Reference: the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float32]

_BITS = 11
_UNIT = 2.0**-53


def normal_noise(seed: int, draw: int, n_positions: int, width: int) -> FloatArray:
    """Independent standard normal numbers.

    Number i, counted over positions and then the width, is one of the pair that Box and Muller make of two numbers of
    Philox4x64-10 with the key (seed, draw): √(−2·ln u)·(cos 2πv, sin 2πv).

    Args:
        seed: 0 ≤ seed < 2⁶⁴.
        draw: Number of the draw, from 0.
        n_positions: R.
        width: H.

    Returns:
        Shape (R, H), float32. More positions have the same numbers at those that there were before.

    Raises:
        ValueError: If the seed is out of its range.

    Cost:
        O(R·H), some 20 ns a number.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"got the seed {seed}; expected 0 ≤ seed < 2⁶⁴")
    n_pairs = -(-n_positions * width // 2)
    generator = np.random.Philox(key=np.array([seed, draw], dtype=np.uint64))
    raw = generator.random_raw(2 * n_pairs).reshape(n_pairs, 2) if n_pairs else np.empty((0, 2), dtype=np.uint64)
    uniform = ((raw >> np.uint64(_BITS)).astype(np.float64) + 0.5) * _UNIT
    radius, angle = np.sqrt(-2.0 * np.log(uniform[:, 0])), 2.0 * np.pi * uniform[:, 1]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(-1)[: n_positions * width].reshape(n_positions, width).astype(np.float32)
