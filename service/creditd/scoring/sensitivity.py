"""What a policy is asked about the reasoning of completions, what that costs, and what is made of its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.credit.sensitivity_credit import SensitivityBatch
from creditd.credit.sensitivity_items import SensitivityCredits, SensitivityItem
from creditd.engines.policy_protocol import MeasuredTokens, ReasonedTokens, SensitivityOptions
from creditd.engines.protocol import EngineUsage
from creditd.scoring.model_questions import CostExceededError

Integers: TypeAlias = NDArray[np.int64]
TokensOf: TypeAlias = tuple[Integers, Integers]
"""Ids of the prompt's tokens and of the completion's."""


class PolicyQuestions:
    """One question to a policy about all completions of a request that have something to measure."""

    def __init__(
        self,
        batch: SensitivityBatch,
        items: Sequence[SensitivityItem | None],
        tokens: Sequence[TokensOf],
        options: SensitivityOptions,
        *,
        most_tokens: int,
        reads_tries: bool | None,
    ) -> None:
        """Look up what is wanted, and whether it is affordable.

        Args:
            batch: Nothing of it is told yet.
            items: Its N completions; None where one is rejected.
            tokens: Of each completion the ids of its tokens; of no use where it is rejected.
            options: How sensitivities are measured.
            most_tokens: Tokens that the policy may read.
            reads_tries: Whether it reads equal beginnings of texts once; None: nobody knows.

        Raises:
            CostExceededError: If it would have to read more, told before anything is made for it.

        Cost:
            O(reasoning tokens).
        """
        self._batch, self._most = batch, most_tokens
        self._rows: list[int] = []
        asked: list[ReasonedTokens] = []
        for row in batch.wanted:
            item, (prompt, completion) = items[row], tokens[row]
            if item is None or item.answer is None:
                continue
            positions = batch.positions(row)
            if not len(prompt) and not positions[0]:
                detail = "got a prompt of no token; expected at least one before what is measured"
                batch.fail(row, "shape_mismatch", "prompt_ids", detail)
                continue
            asked.append(ReasonedTokens(prompt, completion, positions, item.answer))
            self._rows.append(row)
        self.items = tuple(asked)
        self.options = options
        self._check(tokens_read(self.items, options, tries=reads_tries is not False))

    def check(self, usage: EngineUsage) -> None:
        """Refuse what the policy itself says that it costs, if that is too much.

        Raises:
            CostExceededError: If it would have to read more than the limit.
        """
        self._check(usage.tokens_computed)

    def tell(self, found: MeasuredTokens) -> None:
        """Take the policy's answer about all items."""
        for place, row in enumerate(self._rows):
            failure = found.failures.get(place)
            if failure is not None:
                self._batch.fail(row, failure.code, "completion_ids", failure.detail)
            else:
                self._batch.tell(row, found.sensitivities[place], found.spreads[place])

    def answer(self, checkpoint: Callable[[], None] = lambda: None) -> SensitivityCredits:
        """One answer or one error per completion, once the policy has answered; `checkpoint` may end the work."""
        return self._batch.answer(checkpoint)

    def _check(self, n_tokens: int) -> None:
        if n_tokens > self._most:
            raise CostExceededError(f"a policy would read {n_tokens} tokens; expected at most {self._most} per request")


def tokens_read(items: Sequence[ReasonedTokens], options: SensitivityOptions, *, tries: bool) -> int:
    """Tokens that a policy reads for some completions, prompts counted with each pass.

    Args:
        items: The completions.
        options: How sensitivities are measured.
        tries: Whether equal beginnings of texts are read once; not for the gradient, whose noise is everywhere.

    Returns:
        Of each completion the tokens before its last answer token: once, and once for each draw of noise; or once for
        each measured token, with `tries` only from that token on.

    Cost:
        O(measured tokens).
    """
    total = 0
    for item in items:
        length = len(item.prompt_ids) + item.answer[1] - 1
        if options.method == "gradient":
            total += (1 + options.noise_samples) * length
        elif tries:
            count = len(item.positions)
            total += length + count * (item.answer[1] - 1) - int(item.positions.sum())
        else:
            total += (1 + len(item.positions)) * length
    return total
