"""Sensitivities by the trainer's own model, without a service: each process measures its own rollouts.

The one module of the adapters that imports engines, because it takes their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from creditd.adapters.creditors import Booleans, Floats
from creditd.adapters.sensitivity import ReasonedRollout, Reshaped, Weighed, reshaped
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.adapters.trl_processes import by_all
from creditd.client.local import LIMITS
from creditd.credit.flags import Flag
from creditd.credit.sensitivity_items import SensitivityCredit, SensitivityError
from creditd.engines.errors import ModelUnsuitableError
from creditd.engines.in_process import measure_sensitivities
from creditd.engines.perturbation import padding_to_perturb
from creditd.engines.policy_protocol import ReasonedTokens, SensitivityOptions
from creditd.wire.oar import OarRequest
from creditd.wire.oar_choices import GradientSensitivity, PerturbationSensitivity
from creditd.wire.oar_items import OarBatch, oar_batch

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

_Found: TypeAlias = SensitivityCredit | SensitivityError


class OwnPolicy:
    """Asks the trainer's own model.

    Args:
        config: How.
        tokenizer: Of the policy.
        model_config: Of the policy.
        generation: Of the policy, where it has one: it may name further tokens that end a text.

    Raises:
        ValueError: If there is no token to perturb with.
    """

    def __init__(
        self,
        config: SensitivityConfig,
        tokenizer: PreTrainedTokenizerBase,
        model_config: PretrainedConfig,
        generation: GenerationConfig | None = None,
    ) -> None:
        self._config = config
        self._options = _options(config, tokenizer, model_config, generation)

    def reshaped(
        self, model: nn.Module, accelerator: Accelerator, everyone: Sequence[ReasonedRollout], own: slice
    ) -> Reshaped:
        """Token advantages of the rollouts of all processes; all of them come here together.

        Args:
            model: The trainer's own, wrapped or not.
            accelerator: Of the trainer.
            everyone: Rollouts of all processes.
            own: Those of this process.

        Returns:
            The same in every process.

        Raises:
            ValueError: Under `raise`, if a rollout has no weights.
            Exception: In every process, what any of them raised.
        """
        rollouts, batch = everyone[own], None

        def prepare() -> list[None]:
            nonlocal batch
            batch = oar_batch(_request(self._config, rollouts), LIMITS)
            return []

        def measure() -> list[_Found]:
            return [] if batch is None else self._measured(model, batch, rollouts, agree=agree)

        def agree(n_units: int) -> int:
            counts = accelerator.gather(torch.tensor([n_units], device=accelerator.device))
            return int(counts.max())

        by_all(
            accelerator, prepare
        )  # what is wrong with rollouts is said before any process waits for a pass of others
        found = by_all(accelerator, measure)
        wrong = next((one for one in found if isinstance(one, SensitivityError)), None)
        if wrong is not None and self._config.on_failure == "raise":
            raise ValueError(f"a completion has no weights ({wrong.code}): {wrong.detail}")
        outcome = reshaped(everyone, _weighed(found))
        outcome.metrics["credit/errors"] = float(wrong is not None)
        return outcome

    def _measured(
        self, model: nn.Module, batch: OarBatch, rollouts: Sequence[ReasonedRollout], *, agree: Callable[[int], int]
    ) -> list[_Found]:
        """What the model says of rollouts, and what becomes of it."""
        asked = batch.batch
        rows = asked.wanted
        items = [
            ReasonedTokens(
                prompt_ids=np.array(rollouts[row].prompt_ids, dtype=np.int64),
                completion_ids=np.array(rollouts[row].completion_ids, dtype=np.int64),
                positions=asked.positions(row),
                answer=_answer_of(batch, row),
            )
            for row in rows
        ]
        measured = measure_sensitivities(model, items, self._options, most_tokens=self._config.most_tokens, agree=agree)
        for row, one in zip(rows, measured, strict=True):
            asked.tell(row, one.sensitivities, one.spread)
        answer = asked.answer()
        errors = {error.row: error for error in answer.errors}
        return [errors[row] if credit is None else credit for row, credit in enumerate(answer.items)]


def _options(
    config: SensitivityConfig,
    tokenizer: PreTrainedTokenizerBase,
    model_config: PretrainedConfig,
    generation: GenerationConfig | None,
) -> SensitivityOptions:
    """How sensitivities are measured."""
    asked = config.request()
    chosen, probe = asked.sensitivity, asked.probe.type
    if isinstance(chosen, GradientSensitivity):
        return SensitivityOptions(
            "gradient", probe, noise_std=chosen.noise_std, noise_samples=chosen.noise_samples, seed=chosen.seed
        )
    token_id = chosen.token_id if isinstance(chosen, PerturbationSensitivity) else None
    if token_id is None:
        try:
            token_id = padding_to_perturb(tokenizer, model_config, generation)
        except ModelUnsuitableError as error:
            raise ValueError(f"sensitivity: {error}, as {{'type': 'perturbation', 'token_id': …}}") from None
    return SensitivityOptions("perturbation", probe, perturbation_id=token_id)


def _request(config: SensitivityConfig, rollouts: Sequence[ReasonedRollout]) -> OarRequest:
    """What a service would be asked about rollouts."""
    items = [
        {
            "prompt_ids": list(one.prompt_ids),
            "completion_ids": list(one.completion_ids),
            "completion_mask": None if one.measured is None else list(one.measured),
            "completion": one.text,
            "token_offsets": [list(pair) for pair in one.offsets],
            "advantage": one.advantage if isinstance(one.advantage, float) else 1.0,
        }
        for one in rollouts
    ]
    asked = config.request()
    return OarRequest.model_validate({**asked.model_dump(), "items": items})


def _answer_of(batch: OarBatch, row: int) -> tuple[int, int]:
    """The answer of a rollout whose reasoning is measured, which has one."""
    item = batch.items[row]
    if item is None or item.answer is None:
        raise ValueError(f"rollout {row} has no answer; expected one where reasoning is measured")
    return item.answer


def _weighed(found: Sequence[_Found]) -> Weighed:
    """Weights as the failure policy takes them."""
    credited = [one if isinstance(one, SensitivityCredit) else None for one in found]

    def column(name: str) -> Floats:
        values = [None if one is None else getattr(one, name) for one in credited]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    def flagged(flag: Flag) -> Booleans:
        return np.array([one is not None and bool(Flag(one.flags) & flag) for one in credited], dtype=np.bool_)

    return Weighed(
        weights=[None if one is None else one.weights for one in credited],
        token_advantages=[None if one is None else one.token_advantages for one in credited],
        n_reweighted=column("n_reweighted"),
        effective_share=column("effective_share"),
        top_share=column("top_share"),
        spread=column("spread"),
        answer_not_found=flagged(Flag.ANSWER_NOT_FOUND),
        flat=flagged(Flag.FLAT_SENSITIVITY),
    )
