"""Asking a policy of the service about the batches of a trainer whose own process has no weights to hand over."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from creditd.adapters.checkpoint_weights import Answering
from creditd.adapters.sensitivity import ReasonedRollout, Reshaped, asked_of_service, settled, unasked
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.client import Client, CreditdError, OarResult


class PolicySensitivity:
    """Reshapes the advantages of whole batches, one request each, under the failure policy.

    Args:
        client: Of the service.
        config: How to ask.
        weights: Which weights answer.
        log: Of the adapter.
    """

    def __init__(self, client: Client, config: SensitivityConfig, weights: Answering, log: logging.Logger) -> None:
        self._client, self._config, self._weights, self._log = client, config, weights, log
        self._has_failed = False

    def sampled(self, step: int) -> None:
        """Know that a batch was sampled, whether or not anybody is asked about it.

        Args:
            step: The one after which the weights that wrote the batch were left.
        """
        self._weights.sampled(step)

    def reshaped(self, rollouts: Sequence[ReasonedRollout], group_size: int, step: int) -> Reshaped:
        """Token advantages of a batch; the plain ones where no row has a contrast, and nobody is asked.

        Args:
            rollouts: Whole groups: rows i·G … i·G + G − 1 answer one prompt.
            group_size: G.
            step: As in `sampled`.

        Returns:
            One array of the rollout's own length per rollout; the metrics have what handing over weights cost.

        Raises:
            CreditdError: As the failure policy has it.
            ValueError: If what is configured of weights cannot be.
        """
        found = self._asked(rollouts, group_size, step)
        if found.failure is not None and not self._has_failed:
            self._has_failed = True
            policy = self._config.on_failure
            self._log.warning("no weights of tokens, on_failure=%s is applied: %s", policy, found.failure)
        if found.request_id is not None:
            self._log.info("step %d: request %s, by the weights %s", step, found.request_id, found.weight_version)
        answered = found.weight_version is not None
        return replace(found, metrics=found.metrics | self._weights.metrics(answered=answered))

    def _asked(self, rollouts: Sequence[ReasonedRollout], group_size: int, step: int) -> Reshaped:
        """What is left of asking under the failure policy."""
        if not any(rollout.has_contrast for rollout in rollouts):
            return unasked(rollouts)

        def ask(version: str | None) -> OarResult:
            return asked_of_service(self._client, self._config, rollouts, group_size, version)

        answer: OarResult | CreditdError
        try:
            answer = self._weights.answer(ask, step)
        except CreditdError as error:
            answer = error
        return settled(answer, self._config, rollouts)
