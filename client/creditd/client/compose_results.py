"""What comes back of `compose`: an advantage for each token, what candidates and their units have, and the account.

Legend: `B` sets, `C` candidates over all sets, `T` tokens of one completion. There is NaN wherever there is no number:
in the slots of a failed set, and of a candidate that is not a player or has no advantage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.client.results import Ragged, Result
from creditd.credit.composed_items import SetLedger

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ComposeResult(Result):
    """Credit of candidate sets down to their tokens.

    Attributes:
        token_advantages: B rows of one advantage per token; exactly 0 on tokens that are masked.
        credits: B rows of K credits, reward units; None where no set has rewards.
        advantages: B rows of K advantages, computed or as they were given.
        unit_values: One row per candidate, the candidates of all sets one after another (`candidate_rows` says which):
            the credits of its units, reward units; an empty row for a candidate without units.
        set_advantages: Shape (B,), float64, for tokens outside the candidates.
        set_reward_advantages: Shape (B,), float64: the GRPO advantage of `set_reward`, or None without.
        utility_empty: v(∅), shape (B,), float64, reward units.
        utility_grand: v(N), shape (B,), float64, reward units.
        ledgers: Where the advantages of each completion go, by set, by candidate, by unit; None for a failed set.
        ids: The caller's names of the sets, or None.
    """

    token_advantages: Ragged
    credits: Ragged | None
    advantages: Ragged
    unit_values: Ragged
    set_advantages: Floats
    set_reward_advantages: Floats | None
    utility_empty: Floats
    utility_grand: Floats
    ledgers: tuple[SetLedger | None, ...]
    ids: tuple[str | int | None, ...] | None = None

    def candidate_rows(self, row: int) -> range:
        """Where the candidates of a set stand among the rows of `unit_values`.

        Args:
            row: The set.

        Returns:
            Numbers of rows, one per candidate.
        """
        splits = self.advantages.row_splits
        return range(int(splits[row]), int(splits[row + 1]))
