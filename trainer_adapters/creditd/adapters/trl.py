"""Credit in TRL's GRPOTrainer: two lines in a script that trains already.

    from creditd.adapters.trl import CandidateReward, CreditGRPOTrainer as GRPOTrainer  # from trl import GRPOTrainer
    …
        reward_funcs=CandidateReward(score, parser={"type": "numbered"}),  # reward_funcs=score

`score(prompts, candidates, completions, **columns)` returns, for each completion, one reward or None per candidate. Its
place may take the id of a reward model of the service: `CandidateReward("rm", parser=…)`. With `SpanReward("rm")` in
that place tokens are trained on what their spans had to do with the reward of the whole completion (SCAR).

The loss of TRL takes advantages of shape (B, T) as they are; the mixin replaces them when TRL has generated and scored.
There is one request per generation. With a function that scores candidates it is sent then; otherwise it is sent when
the other reward functions have spoken, for scores and credit together: the utilities in the answer become TRL's
rewards, and the token advantages are kept until TRL has its own, so that nothing is scored twice.
A completion whose own reward is unknown has no rewards at all for TRL, which leaves it out of every mean and spread and
gives it the advantage 0: it is never compared by the other reward functions alone. Their log has what they gave.
TRL.md has every option, metric and refusal. Tested with TRL 1.14.2 and 1.16.0.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from trl import GRPOTrainer
from trl.trainer.utils import nanstd

from creditd.adapters.candidate_reward import CandidateReward
from creditd.adapters.credit_config import Anneal, CreditConfig, anneal
from creditd.adapters.credit_reward import CreditReward, Generation
from creditd.adapters.creditors import Answered, Credited, ServiceCreditor, reward_metrics
from creditd.adapters.span_reward import SpanReward
from creditd.adapters.step_share import StepShare
from creditd.adapters.trl_processes import by_all, by_one
from creditd.adapters.trl_rows import (
    check_rows,
    filled,
    filled_up,
    other_rewards,
    overrider,
    replace_last,
    same_tokens,
    tokenizer_of,
    unknown_rows,
    without_unknown,
)
from creditd.adapters.trl_settings import check_loss, check_settings

__all__ = [
    "Anneal",
    "CandidateReward",
    "CreditConfig",
    "CreditGRPOTrainer",
    "CreditMixin",
    "SpanReward",
    "anneal",
    "attach",
]

log = logging.getLogger("creditd.adapters.trl")


class CreditMixin:
    """Stands before `GRPOTrainer`, or a subclass of it that keeps its loss, and makes its advantages those of creditd.

    Attributes:
        credit_request_ids: Identities of the requests to a service whose answers this run was trained on, in order.
    """

    credit_request_ids: list[str]

    def __init__(self, *args: Any, credit: CreditConfig | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_up_credit(credit or CreditConfig())

    def _set_up_credit(self: Any, config: CreditConfig) -> None:
        """Refuse what cannot work, and get ready to ask."""
        check_loss(self)
        places = [place for place, func in enumerate(self.reward_funcs) if isinstance(func, CreditReward)]
        if len(places) != 1:
            raise ValueError(
                f"got {len(places)} rewards of creditd among reward_funcs; expected exactly one CandidateReward or "
                "SpanReward"
            )
        self._credit_place = places[0]
        self._credit_reward: CreditReward = self.reward_funcs[self._credit_place]
        check_settings(self, config, self._credit_place)
        tokenizer = tokenizer_of(self.processing_class)
        ends = {*self.eos_token_ids, tokenizer.pad_token_id}
        self._credit_reward.bind(config, tokenizer, ends, self.max_completion_length)
        self._creditor: ServiceCreditor = self._credit_reward.creditor
        self._answered: Answered | None = None
        self._generated: tuple[Any, Any, Any] | None = None
        self._scored: tuple[list[list[int]], list[Any], torch.Tensor] | None = None
        self._credit_share = StepShare(
            config.max_credit_share,
            "a service nearer to the trainer helps, and CreditConfig(max_credit_share=…) changes when this is said",
            speaks=self.accelerator.is_main_process,
        )
        self.credit_request_ids = []

    def _generate(self: Any, prompts: list[Any]) -> Any:
        generated = super()._generate(prompts)
        self._generated = tuple(generated[:3])
        return generated

    def _calculate_rewards(
        self: Any, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: Any
    ) -> torch.Tensor:
        generated, self._generated = self._generated, None
        if generated is None or not same_tokens(generated[1], completion_ids_list):
            raise ValueError(
                f"{overrider(self, CreditMixin)} has completions scored that are not those of its _generate; expected "
                "the same tokens in the same order, because only _generate knows which of them the policy wrote"
            )
        prompt_ids, ids, mask = generated
        self._credit_reward.expect(Generation(prompt_ids, None if mask is None else filled_up(mask, ids)))
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if not self._credit_reward.has_rewards:
            self._answered = self._asked(completion_ids_list, prompts, rewards)
            known = [np.nan if value is None else value for value in self._answered.utilities]
            rewards = rewards.clone()
            rewards[:, self._credit_place] = torch.tensor(known, dtype=rewards.dtype, device=rewards.device)
        self._scored = (completion_ids_list, prompts, rewards)
        return without_unknown(rewards, self._credit_place)

    def _asked(self: Any, ids: list[list[int]], prompts: list[Any], rewards: torch.Tensor) -> Answered:
        """What is said of the completions of all processes, now that the other reward functions have spoken."""
        reward: CreditReward = self._credit_reward
        others = other_rewards(rewards[self._own(ids)], self.reward_weights, self._credit_place)
        everyone = by_all(self.accelerator, lambda: reward.rollouts(ids, prompts, others))
        training, step = self.model.training, self.state.global_step
        group_size = self.num_generations if training else self.num_generations_eval
        with_credit = training or self._creditor.config.credit_in_eval
        return by_one(
            self.accelerator, lambda: reward.answer(everyone, group_size, step, others, with_credit=with_credit)
        )

    def _own(self: Any, ids: list[list[int]]) -> slice:
        """Rows of this process among those of all."""
        rank = self.accelerator.process_index
        return slice(rank * len(ids), (rank + 1) * len(ids))

    def _generate_and_score_completions(self: Any, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = super()._generate_and_score_completions(inputs)
        (ids, prompts, rewards), self._scored = self._scored, None
        answered, self._answered = self._answered, None
        training = self.model.training
        unknown = unknown_rows(rewards, self._credit_place)
        if unknown.any():
            self._log_rewards(rewards, "train" if training else "eval")
        if not training:
            self._credit_share.interrupted()
            if not self._creditor.config.credit_in_eval:
                return out

        def plain() -> list[float]:
            check_rows(out, ids, overrider(self, CreditMixin))
            own: list[float] = out["advantages"].masked_fill(unknown[self._own(ids)], 0.0).tolist()
            return own

        base = by_all(self.accelerator, plain)
        credited = self._creditor.settle(answered or self._asked(ids, prompts, rewards), base)
        credited.metrics["credit/seconds"] += self._credit_reward.seconds
        credited.metrics.update(reward_metrics(rewards[:, self._credit_place].tolist()))
        out["advantages"] = filled(out, credited.token_advantages[self._own(ids)])
        self._log_credit(credited, "train" if training else "eval")
        return out

    def _log_rewards(self: Any, rewards: torch.Tensor, mode: str) -> None:
        """Log what each reward function gave, also for completions that count for nothing in the advantages."""
        for name, given in zip(self.reward_func_names, rewards.T, strict=True):
            self._metrics[mode][f"rewards/{name}/mean"][-1:] = [torch.nanmean(given).item()]
            self._metrics[mode][f"rewards/{name}/std"][-1:] = [nanstd(given).item()]
            replace_last(self._logs["rewards"][name], given.tolist())

    def _log_credit(self: Any, credited: Credited, mode: str) -> None:
        """Put the metrics where TRL's own are, and warn once when the credit takes too much of the step."""
        metrics = dict(credited.metrics)
        if mode == "train":
            metrics |= self._credit_share.of_step(metrics["credit/seconds"])
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        if credited.request_id is not None and mode == "train":
            self.credit_request_ids.append(credited.request_id)
            log.info("step %d: credit of request %s", self.state.global_step, credited.request_id)
        means = [float(np.mean(row)) if len(row) else 0.0 for row in credited.token_advantages]
        replace_last(self._logs["advantages"], means)


class CreditGRPOTrainer(CreditMixin, GRPOTrainer):
    """`GRPOTrainer` whose advantages come from creditd; takes one more argument, `credit`."""


def attach(trainer: GRPOTrainer, credit: CreditConfig | None = None) -> GRPOTrainer:
    """Make a trainer that exists already use creditd.

    Args:
        trainer: A `GRPOTrainer` with one `CandidateReward` or `SpanReward` among its reward functions.
        credit: How to ask.

    Returns:
        The same object, whose class now has the mixin before it.

    Raises:
        TypeError: If it is no `GRPOTrainer`, or has credit already.
        ValueError: If the trainer's settings would lose the credit.
    """
    kind = type(trainer)
    if isinstance(trainer, CreditMixin):
        raise TypeError(f"got a {kind.__name__}, which has credit already; expected a GRPOTrainer without it")
    if not isinstance(trainer, GRPOTrainer):
        raise TypeError(f"got a {kind.__name__}; expected a GRPOTrainer, whose loss takes advantages of shape (B, T)")
    trainer.__class__ = type(f"Credit{kind.__name__}", (CreditMixin, kind), {})
    try:
        trainer._set_up_credit(credit or CreditConfig())  # noqa: SLF001
    except BaseException:
        trainer.__class__ = kind  # whatever stopped the set-up is raised again, and the trainer is as it was
        raise
    return trainer
