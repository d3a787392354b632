"""What stands before OpenRLHF's experience maker: one request per batch, and its numbers on the policy's tokens.

With an estimator of groups the advantages of the batch become creditd's (`LoopCredit`). With `gae` the token rewards of
spans are added to OpenRLHF's own rewards before its critic and its advantages see them (`span_token_rewards`). Nothing
here computes a credit.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from creditd.adapters.credit_config import CreditConfig
from creditd.adapters.creditors import model_metrics, reward_metrics
from creditd.adapters.loop import SpanTokenRewards, span_token_rewards
from creditd.adapters.loop_credit import LoopCredit
from creditd.adapters.openrlhf_options import CreditChoices
from creditd.adapters.openrlhf_rows import Row, check_groups, columns_of, fill_up, rewards_of, rows_of_batch
from creditd.adapters.openrlhf_settings import has_rewards
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.adapters.span_reward import SpanReward
from creditd.adapters.span_rollouts import span_metrics
from creditd.client import Evaluator
from creditd.client.bodies import type_of

log = logging.getLogger("creditd.adapters.openrlhf")

OTHER = "other_reward"
"""Under which name OpenRLHF's log has its own rewards, where there are some beside creditd's."""


class BatchMaker:
    """What stands before `RemoteExperienceMaker`, whatever is asked.

    Attributes:
        credit_step: Steps of the optimizer before this one; the trainer sets it.
        credit_config: How it asks.
    """

    credit_step: int
    credit_config: CreditConfig | SensitivityConfig

    def get_ready(self: Any, config: CreditConfig | SensitivityConfig) -> None:
        """Begin with the first step."""
        self.credit_config, self.credit_step = config, 0
        self._credit_metrics: dict[str, float] = {}

    def taken_metrics(self: Any) -> dict[str, float]:
        """Numbers of the last batch for the trainer's log, once."""
        found: dict[str, float] = self._credit_metrics
        self._credit_metrics = {}
        return found

    def saved(self, step: int) -> None:
        """Know that OpenRLHF wrote the checkpoint of a step."""

    def group_size(self: Any) -> int:
        """Completions of a prompt."""
        return int(self.args.rollout.n_samples_per_prompt)

    def make_experience_batch(self: Any, rollout_samples: list[Any]) -> list[Any]:
        """As OpenRLHF's, of whole groups, with rewards that did not come marked as unknown."""
        check_groups([prompt for one in rollout_samples for prompt in one.prompts], self.group_size())
        if self.args.reward.remote_url:
            fill_up(rollout_samples)
        made: list[Any] = super().make_experience_batch(rollout_samples)  # type: ignore[misc]
        return made

    def compute_advantages_and_returns(self: Any, experiences: list[Any]) -> list[Any]:
        """As OpenRLHF's."""
        done: list[Any] = super().compute_advantages_and_returns(experiences)  # type: ignore[misc]
        return done


def trained_on(experience: Any, advantages: torch.Tensor) -> None:
    """Have an experience trained on other advantages.

    Args:
        experience: With advantages of OpenRLHF's.
        advantages: Of the same shape.

    Raises:
        ValueError: If they have another one: it is not the experience that was asked about.
    """
    for name in ("advantages", "action_mask"):
        got = tuple(getattr(experience, name).shape)
        if got != tuple(advantages.shape):
            raise ValueError(f"OpenRLHF returned {name} of shape {got}; expected {tuple(advantages.shape)}")
    experience.advantages = advantages
    experience.returns = advantages.clone()


class CreditMaker(BatchMaker):
    """Stands before `RemoteExperienceMaker` for the credit of candidates and spans."""

    def set_up_credit(self: Any, choices: CreditChoices) -> None:
        """Get ready to ask.

        Args:
            choices: What was chosen.

        Raises:
            ValueError: If the choices contradict each other, or no service would take them.
        """
        reward, config = choices.made()
        tokenizer = getattr(self.tokenizer, "tokenizer", self.tokenizer)
        self._credit = LoopCredit(reward, config, tokenizer=tokenizer)
        self.get_ready(config)
        self._kl_in_reward = choices.kl_in_reward == "keep"
        self._dense: list[torch.Tensor] | None = None
        self._sums: list[torch.Tensor] = []

    def compute_advantages_and_returns(self: Any, experiences: list[Any]) -> list[Any]:
        """As OpenRLHF's, with creditd's advantages in the place of its own, or with rewards of tokens."""
        rows = rows_of_batch(experiences)
        kept = has_rewards(self.args)
        done: list[Any]
        if self.advantage_estimator == "gae":
            done = self._with_token_rewards(experiences, rows)
        else:
            done = self._with_advantages(experiences, rows, [row.other for row in rows] if kept else None)
        if kept:
            self._credit_metrics["credit/missing_rewards"] = sum(row.other is None for row in rows) / len(rows)
        return done

    # Advantages of groups.

    def _with_advantages(
        self: Any, experiences: list[Any], rows: list[Row], others: list[float | None] | None
    ) -> list[Any]:
        found = self._credit.advantages(
            [row.prompt for row in rows],
            [row.ids for row in rows],
            group_size=self.group_size(),
            step=self.credit_step,
            prompt_ids=[row.prompt_ids for row in rows],
            completion_masks=[row.written for row in rows],
            cut_off=[row.cut_off for row in rows],
            other_rewards=others,
            columns={"labels": [row.label for row in rows]},
        )
        columns = columns_of(experiences, rows, found.token_advantages)
        rewards = rewards_of(experiences, rows, found.rewards)
        penalties = [self._kl_returns(one) for one in experiences]
        for experience, reward in zip(experiences, rewards, strict=True):
            if others is not None:
                experience.info[OTHER] = experience.rewards.reshape(-1).float()
            experience.rewards = reward
        done: list[Any] = super().compute_advantages_and_returns(experiences)
        for experience, advantages, penalty, reward in zip(done, columns, penalties, rewards, strict=True):
            trained_on(experience, advantages if penalty is None else advantages + penalty)
            experience.info["reward"] = reward
        self._credit_metrics = dict(found.metrics)
        if found.request_id is not None:
            log.info("step %d: credit of request %s", self.credit_step, found.request_id)
        return done

    def _kl_returns(self: Any, experience: Any) -> torch.Tensor | None:
        """What the KL penalty adds to the advantages by OpenRLHF's own functions, 0 where the policy did not write."""
        if not self._kl_in_reward or experience.kl is None:
            return None
        from openrlhf.models.utils import compute_reward  # noqa: PLC0415 - the framework is imported where it is

        mask = experience.action_mask
        nothing = torch.zeros(len(mask), dtype=experience.kl.dtype, device=experience.kl.device)
        rewards = compute_reward(nothing, self.kl_ctl.value, experience.kl, action_mask=mask, reward_clip_range=None)
        returns: torch.Tensor = super().get_cumulative_returns(rewards, mask, 1.0)  # type: ignore[misc]
        return torch.where(mask.bool(), returns.float(), 0.0)

    # Rewards of tokens, for a critic.

    def _with_token_rewards(self: Any, experiences: list[Any], rows: list[Row]) -> list[Any]:
        unknown = next((place for place, row in enumerate(rows) if row.other is None), None)
        if unknown is not None:
            raise ValueError(
                f"got no reward of completion {unknown} beside creditd's; expected a number: a critic cannot "
                "learn from a return that nobody knows"
            )
        started = time.perf_counter()
        found, model_s = self._token_rewards(rows)
        result = found.result
        self._dense, self._sums = columns_of(experiences, rows, found.token_rewards), []
        kept = has_rewards(self.args)
        try:
            seconds = time.perf_counter() - started
            done: list[Any] = super().compute_advantages_and_returns(experiences)
            if self._dense:
                raise RuntimeError(
                    f"OpenRLHF asked for advantages of {len(self._sums)} experiences; expected all {len(experiences)}"
                )
        finally:
            self._dense = None
        values = [None if math.isnan(value) else value for value in result.utility_grand.tolist()]
        for experience, worth, total in zip(done, rewards_of(done, rows, values), self._sums, strict=True):
            if kept:
                experience.info[OTHER] = experience.rewards.reshape(-1).float()
            experience.info["reward"], experience.info["return"] = worth, total
        reward = self._credit.reward
        if reward.creditor.is_served:
            log.info("step %d: credit of request %s", self.credit_step, result.request_id)
        self._credit_metrics = {
            "credit/alpha": reward.choices.alpha_at(self.credit_step),
            "credit/fallbacks": 0.0,
            "credit/errors": 0.0,
            **model_metrics(result),
            **reward_metrics(values),
            **span_metrics(result, [], result.ok),
            "credit/seconds": max(seconds - (model_s or result.usage.engine_s), 0.0),
        }
        if model_s is not None:
            self._credit_metrics["credit/model_seconds"] = model_s
        return done

    def _token_rewards(self: Any, rows: Sequence[Row]) -> tuple[SpanTokenRewards, float | None]:
        """What spans are worth, with the seconds that a function took."""
        reward: SpanReward = self._credit.reward
        choices, creditor, step = reward.choices, reward.creditor, self.credit_step
        credit = choices.credit_at(step)
        options: dict[str, Any] = {"credit": credit, "alpha": choices.alpha_at(step), "absent": choices.absent}
        options["estimator"] = choices.estimator
        if type_of(credit) != "prefix" or choices.segmentation != "span":
            options["segmentation"] = choices.segmentation  # else units are causal
        taken: list[float] = []
        if reward.function is None:
            options |= {"model": reward.model, "deterministic": creditor.config.deterministic}
        else:
            score = reward.function

            def scores(prompts: Sequence[Any], texts: Sequence[str]) -> Sequence[float | None]:
                started = time.perf_counter()
                given: Sequence[float | None] = score(prompts, texts)
                taken.append(time.perf_counter() - started)
                return given

            options["utility"] = Evaluator(scores, batched=True, batch_size=choices.batch_size)
        found = span_token_rewards(
            creditor.client,
            [row.prompt for row in rows],
            [row.ids for row in rows],
            reward.decode,
            completion_masks=[row.written for row in rows],
            **options,
        )
        return found, None if reward.function is None else sum(taken)

    def get_advantages_and_returns(
        self: Any, values: torch.Tensor, rewards: torch.Tensor, action_mask: torch.Tensor, gamma: float, lambd: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As OpenRLHF's, of its rewards and those of tokens together."""
        if self._dense is not None:
            if not self._dense:
                raise RuntimeError(
                    "OpenRLHF asked for advantages of more experiences than there are; expected each once"
                )
            dense = self._dense.pop(0)
            if dense.shape != rewards.shape:
                raise ValueError(f"got rewards of shape {tuple(rewards.shape)}; expected {tuple(dense.shape)}")
            rewards = rewards + dense.to(rewards)
            self._sums.append(rewards.sum(dim=-1))
        made: tuple[torch.Tensor, torch.Tensor] = super().get_advantages_and_returns(  # type: ignore[misc]
            values, rewards, action_mask, gamma, lambd
        )
        return made
