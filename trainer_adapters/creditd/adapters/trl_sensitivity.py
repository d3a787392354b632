"""Advantages of TRL's GRPOTrainer, reshaped by how much the policy's answer depends on each token (OAR).

    from creditd.adapters.trl_sensitivity import SensitivityConfig, SensitivityGRPOTrainer as GRPOTrainer
    …
        sensitivity=SensitivityConfig(model="policy", parser="tags"),

Base advantages are TRL's own, by whatever reward functions; the loss of TRL takes advantages of shape (B, T) as they
are. There is one request per generation, by the main process for all of them. The policy of the service is given the
trainer's weights before the first request, and whenever the global step changed since they were given. With
`in_process=True` there is no service: each process asks its own model.
Before `CreditGRPOTrainer`, the mixin multiplies the advantage that creditd gave each token by the token's weight.
Tested with TRL 1.14.2 and 1.16.0.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from trl import GRPOTrainer

from creditd.adapters.completions import token_offsets
from creditd.adapters.credit_reward import decoder
from creditd.adapters.creditors import client_of
from creditd.adapters.sensitivity import (
    CurrentWeights,
    ReasonedRollout,
    Reshaped,
    asked_of_service,
    settled,
    unasked,
)
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.adapters.step_share import StepShare
from creditd.adapters.trl import CreditMixin
from creditd.adapters.trl_processes import by_all, by_one
from creditd.adapters.trl_rows import check_rows, filled, filled_up, overrider, replace_last, tokenizer_of
from creditd.adapters.trl_settings import check_deadlines, check_loss, check_type
from creditd.adapters.weights import push_policy
from creditd.client import CreditdError, OarResult
from creditd.client.bodies import type_of

__all__ = ["SensitivityConfig", "SensitivityGRPOTrainer", "SensitivityMixin"]

log = logging.getLogger("creditd.adapters.trl")

_PICTURES = ("pixel_values", "num_images")


class SensitivityMixin:
    """Stands before `GRPOTrainer`, or a subclass of it that keeps its loss, and reshapes its advantages.

    Attributes:
        sensitivity_request_ids: Identities of the requests to a service whose answers this run was trained on.
    """

    sensitivity_request_ids: list[str]

    def __init__(self, *args: Any, sensitivity: SensitivityConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_up_sensitivity(sensitivity)

    def _set_up_sensitivity(self: Any, config: SensitivityConfig) -> None:
        """Refuse what cannot work, and get ready to ask."""
        check_loss(self)
        check_deadlines(self, deadline_s=config.deadline_s, push_deadline_s=config.push_deadline_s)
        tokenizer = tokenizer_of(self.processing_class)
        self._sensitivity = config
        self._decode = decoder(tokenizer, {*self.eos_token_ids, tokenizer.pad_token_id}, {})
        self._reasoned: tuple[Any, Any, Any] | None = None
        self._sensitivity_share = StepShare(
            config.max_credit_share,
            "SensitivityConfig(max_credit_share=…) changes when this is said",
            what="sensitivities",
            speaks=self.accelerator.is_main_process,
        )
        self._has_failed = False
        self.sensitivity_request_ids = []
        if config.in_process:
            from creditd.adapters.sensitivity_in_process import OwnPolicy  # noqa: PLC0415 - needs the engines

            policy = self.accelerator.unwrap_model(self.model)
            generation = getattr(policy, "generation_config", None)
            if type_of(config.sensitivity) == "gradient":
                check_type(self.accelerator, policy)
            self._own_policy = OwnPolicy(config, tokenizer, policy.config, generation)
            return
        self._sensitivity_client = client_of(config)
        if self._sensitivity_client.base_url == "local:":
            raise ValueError("got url='local:', where there is no policy; expected a service, or in_process=True")
        self._policy_weights = CurrentWeights(self._push, config.run)

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Train, as the trainer does; whatever the service was given before, it is given the weights again."""
        if not self._sensitivity.in_process:
            self._policy_weights.begin(by_one(self.accelerator, self._policy_weights.new_name))
        return super().train(*args, **kwargs)

    def _push(self: Any, version: str) -> Any:
        """Give the service the weights as they are; all processes come here together."""
        config: SensitivityConfig = self._sensitivity
        return push_policy(
            self._sensitivity_client,
            str(config.model),
            self.model,
            self.accelerator,
            weight_version=version,
            deadline_s=config.push_deadline_s,
            announce_deadline_s=min(config.deadline_s, config.push_deadline_s),
        )

    def _generate(self: Any, prompts: list[Any]) -> Any:
        generated = super()._generate(prompts)
        self._reasoned = tuple(generated[:3])
        return generated

    def _generate_and_score_completions(self: Any, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = super()._generate_and_score_completions(inputs)
        generated, self._reasoned = self._reasoned, None
        if not self.model.training:
            self._sensitivity_share.interrupted()
            return out
        started = time.perf_counter()
        everyone = by_all(self.accelerator, lambda: self._rollouts(out, generated))
        n_own = len(out["completion_ids"])
        own = slice(self.accelerator.process_index * n_own, (self.accelerator.process_index + 1) * n_own)
        reshaped: Reshaped
        if not any(one.has_contrast for one in everyone):
            reshaped = unasked(everyone)
        elif self._sensitivity.in_process:
            reshaped = self._own_policy.reshaped(self.model, self.accelerator, everyone, own)
        else:
            reshaped = settled(self._answer(everyone), self._sensitivity, everyone)
        if not self._sensitivity.in_process:
            reshaped.metrics.update(self._policy_weights.taken())
            lag = self._policy_weights.lag_of(reshaped.weight_version, self.state.global_step)
            reshaped.metrics.update({} if lag is None else {"credit/version_lag": float(lag)})
        reshaped.metrics["credit/seconds"] = time.perf_counter() - started
        out["advantages"] = filled(out, reshaped.token_advantages[own])
        self._log_sensitivity(reshaped)
        return out

    def _rollouts(self: Any, out: dict[str, Any], generated: tuple[Any, Any, Any] | None) -> list[ReasonedRollout]:
        """The completions of this process, with what the trainer itself would train them on."""
        who = overrider(self, SensitivityMixin, CreditMixin)
        if generated is None:
            raise ValueError(f"{who} did not generate; expected completions from _generate, which knows the prompts")
        if any(name in out for name in _PICTURES):
            raise ValueError("got prompts with pictures, which the policy of the service does not see; expected texts")
        prompts, ids, mask = generated
        check_rows(out, ids, who, of_tokens=True)
        written = None if mask is None else filled_up(mask, ids)
        rollouts = []
        for row, tokens in enumerate(ids):
            text, offsets = token_offsets(tokens, self._decode)
            trained = out["completion_mask"][row, : len(tokens)].bool().tolist()
            if written is not None:
                trained = [kept and bool(own) for kept, own in zip(trained, written[row], strict=True)]
            base = out["advantages"][row]
            advantage = base.item() if base.ndim == 0 else base[: len(tokens)].double().cpu().numpy()
            rollouts.append(
                ReasonedRollout(
                    prompt_ids=tuple(prompts[row]),
                    completion_ids=tuple(tokens),
                    text=text,
                    offsets=tuple(offsets),
                    written=None if all(trained) else tuple(trained),
                    advantage=advantage,
                )
            )
        return rollouts

    def _answer(self: Any, everyone: Sequence[ReasonedRollout]) -> OarResult | CreditdError:
        """What the service says of the completions of all processes, or why it says nothing; the same in each."""
        config, client, group_size = self._sensitivity, self._sensitivity_client, self.num_generations

        def ask(version: str) -> OarResult:
            return by_one(
                self.accelerator, lambda: asked_of_service(client, config, everyone, group_size, weight_version=version)
            )

        try:
            answer: OarResult = self._policy_weights.answer(ask, self.state.global_step)
        except CreditdError as error:
            return error
        return answer

    def _log_sensitivity(self: Any, reshaped: Reshaped) -> None:
        """Put the metrics where TRL's own are, and warn once when they take too much of the step."""
        metrics = reshaped.metrics
        if reshaped.failure is not None and not self._has_failed:
            self._has_failed = True
            policy = self._sensitivity.on_failure
            log.warning("no weights of tokens, on_failure=%s is applied: %s", policy, reshaped.failure)
        metrics |= self._sensitivity_share.of_step(metrics["credit/seconds"])
        # Credit of the candidates or spans below has the same names.
        place = "sensitivity/" if isinstance(self, CreditMixin) else "credit/"
        for name, value in metrics.items():
            self._metrics["train"][place + name.removeprefix("credit/")].append(value)
        if reshaped.request_id is not None:
            self.sensitivity_request_ids.append(reshaped.request_id)
            log.info("step %d: weights of request %s", self.state.global_step, reshaped.request_id)
        means = [float(np.mean(row)) if len(row) else 0.0 for row in reshaped.token_advantages]
        replace_last(self._logs["advantages"], means)


class SensitivityGRPOTrainer(SensitivityMixin, GRPOTrainer):
    """`GRPOTrainer` whose advantages are reshaped by sensitivity; takes one more argument, `sensitivity`."""
