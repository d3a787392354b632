"""What comes back of `oar`: an advantage for each token, the weights and sensitivities behind it, and their mass.

Legend: `B` completions, `T` tokens of one, `L` of them reweighted.
There is NaN wherever there is no number. Rows of a completion without an answer have NaN for each of its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.client.results import Ragged, Result

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
TokenRange: TypeAlias = tuple[int, int]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class OarResult(Result):
    """Token advantages of completions, reshaped by how much the answer depends on each token.

    Attributes:
        token_advantages: B rows of one advantage per token: advantage · weight; exactly 0 on tokens that are masked.
        weights: B rows of one weight per token: 0 on tokens that are masked, 1 on those that are not reweighted.
        sensitivities: B rows of one sensitivity per token, nats where a policy measured it; NaN where nobody did.
        advantages: Of the completions, given or computed, shape (B,), float64.
        n_reweighted: L of each, shape (B,), int64; 0 without an answer.
        weight_sum: Σ of the weights of reweighted tokens, shape (B,), float64: L where mass is preserved.
        effective_share: (Σw)²/(L·Σw²) of them, shape (B,), float64; 1 when all weigh the same, NaN for L = 0.
        top_share: Share of Σw that the ⌈L/10⌉ heaviest have, shape (B,), float64; NaN for L = 0.
        spread: Standard error of the sensitivities over their mean, shape (B,), float64; NaN for one draw.
        reasoning: Half-open token range of each, or None.
        answers: Half-open token range of each, or None where it was not found or not given.
        model: Id of the policy that was asked, or None.
        weight_version: The version of its weights that all sensitivities belong to, or None.
        ids: The caller's names of the completions, or None.
    """

    token_advantages: Ragged
    weights: Ragged
    sensitivities: Ragged
    advantages: Floats
    n_reweighted: Integers
    weight_sum: Floats
    effective_share: Floats
    top_share: Floats
    spread: Floats
    reasoning: tuple[TokenRange | None, ...]
    answers: tuple[TokenRange | None, ...]
    model: str | None = None
    weight_version: str | None = None
    ids: tuple[str | int | None, ...] | None = None
