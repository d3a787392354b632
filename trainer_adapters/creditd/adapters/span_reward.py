"""A reward model, or a function that scores texts, in the place where a trainer takes a reward function.

The reward is that of the whole completion; tokens are trained on what their units had to do with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from creditd.adapters.completions import token_offsets
from creditd.adapters.credit_config import Choice, CreditConfig, Schedule
from creditd.adapters.credit_reward import CreditReward, Generation, OtherRewards, is_async
from creditd.adapters.creditors import Answered
from creditd.adapters.prompts import readable
from creditd.adapters.span_rollouts import Score, SpanChoices, SpanCreditor, SpanRollout


class SpanReward(CreditReward):
    """SCAR in the place of one reward function; give exactly one to each trainer.

    TRL calls it like any other reward function and logs v(P), the score of the whole completion, as its reward. What
    the tokens are trained on are creditd's token advantages in the form of GRPO (SCAR.md, "Groups and advantages"):
    within the group of a prompt, α·T·u_j/ℓ_j + (1 − α)·v(P) + other rewards for each of the ℓ_j tokens of unit j,
    standardised. Tokens that the policy did not write get exactly 0 and stand in every text that is scored.

    The other reward functions of the trainer count by TRL's own weights, in units of the weight of this one, which may
    be any number above 0: `other_reward` = Σ (w_k/w)·r_k, so that v(P) + other_reward is TRL's weighted reward divided
    by w. It is in full on every token and is never shared out. Standardising a group takes the factor w away, but for ε
    (1e-4 in units of v(P)).

    Args:
        function: The id of a reward model of the service; or `score(prompts, texts)`, which gives one number or None
            for each text as an answer to its prompt, in the trainer's own process; where several train in the first of
            them, for which the others wait (`ddp_timeout`). None and NaN refuse a text; a completion whose own text is
            refused counts for nothing, whatever the other reward functions gave it.
        segmentation: Where units come from: `span`, `token`, `sentence`, `lines`, or a mapping such as
            `{"type": "regex", "pattern": "; "}`, with `max_units` (24; None: no limit).
        absent: What stands in the place of absent units: `delete`, `blank`, or `{"type": "mask_token", "text": …}`.
        credit: What units get: `auto`, `shapley`, `owen`, `prefix`, `leave_one_out`, `uniform`, with a model
            `attention`; or a schedule: a function of the trainer's global step, never of how often it was called.
        alpha: α in [0, 1], the part of v(P) that units get where they stand; or a function of the step.
        estimator: How many texts may be evaluated per completion, and how: a mapping with `type`, `budget` (512),
            `seed`, `target_standard_error`.
        advantage: `pooled`, or a mapping with `ddof` (1) and `epsilon` (1e-4).
        batch_size: Texts of one call of a function, ≥ 1.
        name: What TRL calls it in its log; None takes the function's name, or the model's id.

    Attributes:
        model: Id of the reward model, or None for a function.
        seconds: What decoding the completions took in the last call.

    Raises:
        ValueError: If a choice could not work in any trainer.
        TypeError: If the function is none, or a coroutine.
    """

    def __init__(
        self,
        function: Score | str,
        *,
        segmentation: Choice = "span",
        absent: Choice = "delete",
        credit: Choice | Schedule = "auto",
        alpha: float | Callable[[int], float] = 1.0,
        estimator: Choice | None = None,
        advantage: Choice = "pooled",
        batch_size: int = 256,
        name: str | None = None,
    ) -> None:
        super().__init__(function, name, "span reward")
        if self.function is not None and is_async(self.function):
            raise TypeError("got an async function as the span reward; expected a plain one, which scores many texts")
        self.choices = SpanChoices(segmentation, absent, credit, alpha, estimator, advantage, batch_size)
        self._creditor: SpanCreditor | None = None
        self._read: tuple[Generation, list[tuple[str, list[tuple[int, int]]]]] | None = None

    @property
    def creditor(self) -> SpanCreditor:
        """Who values the spans."""
        if self._creditor is None:
            raise RuntimeError("a SpanReward works in a CreditGRPOTrainer, after attach(trainer), or in a LoopCredit")
        return self._creditor

    @property
    def has_rewards(self) -> bool:
        """v(P) comes with the credit."""
        return False

    def ready(self, config: CreditConfig) -> None:
        """Make the creditor."""
        self._creditor = SpanCreditor(config, self.choices, score=self.function, model=self.model)

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: object
    ) -> list[float | None]:
        """Zeros, in whose place the mixin puts v(P) before TRL looks at them."""
        del prompts, completions, columns
        generation, decode = self.expected(), self.decode
        started = time.perf_counter()
        self._read = (generation, [token_offsets(ids, decode) for ids in completion_ids])
        self.seconds = time.perf_counter() - started
        return [0.0] * len(completion_ids)

    def rollouts(self, ids: Sequence[Sequence[int]], prompts: Sequence[Any], others: OtherRewards) -> list[SpanRollout]:
        """The completions of the last call, once."""
        if self._read is None:
            raise RuntimeError("the span reward was not called since the last time")
        (generation, texts), self._read = self._read, None
        masks: Sequence[Sequence[int] | None] = [None] * len(ids) if generation.written is None else generation.written
        unit = others.largest / others.own
        return [
            SpanRollout(
                prompt=prompt if self.model is None else readable(prompt),
                text=text,
                offsets=tuple(offsets),
                written=None if mask is None else tuple(map(bool, mask)),
                other_reward=0.0 if other is None else other * unit,
            )
            for prompt, (text, offsets), mask, other in zip(prompts, texts, masks, others.values, strict=True)
        ]

    def answer(
        self, rollouts: Sequence[SpanRollout], group_size: int, step: int, others: OtherRewards, *, with_credit: bool
    ) -> Answered:
        """What the creditor says."""
        del others  # they are in the rollouts
        return self.creditor.answer(rollouts, group_size, step, with_credit=with_credit)
