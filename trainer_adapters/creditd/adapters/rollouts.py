"""From what a trainer has to what creditd wants, and back: alignment and failure policies, for every framework alike.

Legend: `B` rollouts, in groups of consecutive rows that answer one prompt; `T` completion tokens of one rollout.
Nothing here computes a credit: the client does, in a service or in this process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from creditd.adapters.credit_config import Choice, CreditConfig
from creditd.adapters.creditors import Answered, Credited, ServiceCreditor, checked, model_metrics, of_values
from creditd.adapters.prompts import Prompt
from creditd.client import Client, InvalidRequestError, ShapleyResult
from creditd.client.bodies import type_of

MOST_CANDIDATES = 256
"""Candidates of one completion that play when no number was asked for; the service takes no more."""


@dataclass(frozen=True)
class Rollout:
    """One completion, as creditd sees it.

    Attributes:
        n_tokens: Completion tokens.
        texts: Its candidates.
        spans: Their half-open token ranges.
        rewards: One per candidate; None where it was not scored, or a model of the service scores it.
        set_reward: Reward of the whole response, or None.
        base_advantage: What the trainer itself would use for the whole response.
        prompt: What it answers; needed where a model scores.
    """

    n_tokens: int
    texts: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    rewards: tuple[float | None, ...]
    set_reward: float | None
    base_advantage: float
    prompt: Prompt | None = None


class Creditor(ServiceCreditor):
    """Asks for credit, applies the failure policy, and keeps the counts that a trainer logs.

    Args:
        config: How to ask.
        client: Whom to ask; None makes one from the configuration.
        model: Id of the reward model of the service that scores the candidates. None: they have rewards.

    Raises:
        ValueError: If the choices contradict each other, or no service would take them.
    """

    def __init__(self, config: CreditConfig, client: Client | None = None, model: str | None = None) -> None:
        super().__init__(config, client, model, "candidate reward")
        self._check_choices()

    def _check_choices(self) -> None:
        """Refuse choices that no service would take, before a run begins: they must not pass for a lost service."""
        if type_of(self.config.utility) == "table":
            raise ValueError("got the table utility; expected one of rewards: a trainer has no tables")
        probe = Rollout(1, ("",), ((0, 1),), (0.0,), None, 0.0)
        try:
            self._ask(self.local, [probe, probe], 2, self.config.rule_at(0), 1.0)
        except InvalidRequestError as error:
            if not of_values(error):
                raise ValueError(f"the credit configuration is refused: {error}") from None

    def credit(
        self, rollouts: Sequence[Rollout], group_size: int, step: int, *, set_reward_weight: float = 1.0
    ) -> Credited:
        """Advantages of every token of a batch of whole groups.

        Args:
            rollouts: B rollouts; rows i·G … i·G + G − 1 answer one prompt.
            group_size: G. The service is told, so that a split group is an error.
            step: The trainer's global step.
            set_reward_weight: Weight of the advantages of whole responses, on top of that of the configuration.

        Returns:
            One array of the rollout's own length per rollout, finite in float32.

        Raises:
            ValueError: If the schedule returns no rule.
            CreditdError: Under `raise`, whatever the service or the network did; otherwise what another try or another
                computer cannot heal: a wrong key, a wrong address, choices that are refused, and under `local` rewards
                that are wrong.
        """
        answered = self.answer(rollouts, group_size, step, set_reward_weight=set_reward_weight)
        return self.settle(answered, [rollout.base_advantage for rollout in rollouts])

    def answer(
        self, rollouts: Sequence[Rollout], group_size: int, step: int, *, set_reward_weight: float = 1.0
    ) -> Answered:
        """The same before the trainer knows its own advantages, which `settle` takes where there is no credit.

        Args:
            rollouts: As for `credit`; their `base_advantage` is not looked at.
            group_size: As for `credit`.
            step: As for `credit`.
            set_reward_weight: As for `credit`.

        Returns:
            What came, with the utilities of the sets where a model scored their candidates. A group of which the model
            said nothing has none, not even the failure reward of its sets without candidates.

        Raises:
            ValueError: As `credit`.
            CreditdError: As `credit`.
        """
        started = time.perf_counter()
        rule = self.config.rule_at(step)
        outcome = self.asked(
            lambda client: self._ask(client, rollouts, group_size, rule, set_reward_weight), len(rollouts), group_size
        )
        result, concerned, metrics = outcome.result, outcome.concerned, dict(outcome.metrics)
        if isinstance(rule, Mapping) and "position" in rule:
            metrics["credit/position"] = float(rule["position"])
        given = None if result is None else result.token_advantages
        utilities: list[float | None] | None = None
        if self.model is not None:
            texts = [one.texts for one in rollouts]
            utilities = _comparable(self._utilities_in(result, texts), texts, group_size)
        metrics["credit/seconds"] = time.perf_counter() - started
        if result is not None:
            metrics |= _credit_metrics(result, ~concerned)
        if result is not None and self.model is not None:
            metrics |= model_metrics(result)
            metrics["credit/seconds"] = max(metrics["credit/seconds"] - result.usage.engine_s, 0.0)
        return Answered(
            token_advantages=[None if out or given is None else given[row] for row, out in enumerate(concerned)],
            n_tokens=[rollout.n_tokens for rollout in rollouts],
            utilities=utilities,
            metrics=metrics,
            request_id=result.request_id if result is not None and outcome.served else None,
        )

    def utilities(
        self, rewards: Sequence[Sequence[float | None]], texts: Sequence[Sequence[str]]
    ) -> list[float | None]:
        """v(N) of each set under the policies for malformed ones, for the trainer's log and for plain advantages.

        The failure reward where nothing was parsed or scored, None where a reward cannot be used.
        """
        malformed = self._malformed()
        scored = [[reward for reward in row if reward is not None] for row in rewards]
        try:
            result = self.local.shapley(
                rewards,
                texts=list(texts) if malformed.get("duplicates") == "collapse" else None,
                utility=self.config.utility,
                malformed=malformed,
                advantage="none",
                on_item_error="return",
            )
        except InvalidRequestError:
            return self._utilities_in(None, scored)
        return self._utilities_in(result, scored)

    def _utilities_in(self, result: ShapleyResult | None, players: Sequence[Sequence[object]]) -> list[float | None]:
        """v(N) of each set by an answer, or, where there is none, the failure reward of sets without players alone."""
        failure = float(self._malformed().get("failure_reward", 0.0))
        if result is None:
            return [None if row else failure for row in players]
        grand = result.utility_grand.tolist()
        nothing = result.has_flag("no_candidates").tolist()
        values = [failure if bare else value for value, bare in zip(grand, nothing, strict=True)]
        return [value if sound else None for value, sound in zip(values, result.ok, strict=True)]

    def _malformed(self) -> dict[str, Any]:
        """Policies for malformed sets; a policy that writes without end must not end the run."""
        most = self.config.candidates if self.config.candidates is not None else MOST_CANDIDATES
        return {"candidates": most, **self.config.malformed}

    def _ask(
        self, client: Client, rollouts: Sequence[Rollout], group_size: int, rule: Choice, set_reward_weight: float
    ) -> ShapleyResult:
        malformed = self._malformed()
        tokens = dict(self.config.tokens)
        tokens["set_reward_weight"] = float(tokens.get("set_reward_weight", 1.0)) * set_reward_weight
        set_rewards = [rollout.set_reward for rollout in rollouts]
        told = self.model is not None and client is not self.local
        texts = told or malformed.get("duplicates") == "collapse"
        return checked(
            lambda: client.shapley(
                None if told else [rollout.rewards for rollout in rollouts],
                rewards=self.model if told else None,
                prompts=[rollout.prompt for rollout in rollouts] if told else None,
                groups=[row // group_size for row in range(len(rollouts))],
                spans=[rollout.spans for rollout in rollouts],
                n_tokens=[rollout.n_tokens for rollout in rollouts],
                set_rewards=set_rewards if any(reward is not None for reward in set_rewards) else None,
                texts=[rollout.texts for rollout in rollouts] if texts else None,
                utility=self.config.utility,
                credit=rule,
                advantage=self.config.advantage,
                tokens=tokens,
                malformed=malformed,
                expect={"group_size": group_size},
                deterministic=told and self.config.deterministic,
            ),
            [rollout.n_tokens for rollout in rollouts],
        )


def _comparable(
    utilities: Sequence[float | None], texts: Sequence[Sequence[str]], group_size: int
) -> list[float | None]:
    """Utilities without those of groups where only sets without candidates have one, and others should.

    Among themselves such sets would be compared by other rewards alone, and the best of them trained towards.
    """
    kept: list[float | None] = []
    for start in range(0, len(utilities), group_size):
        values = list(utilities[start : start + group_size])
        asked = [value for value, row in zip(values, texts[start : start + group_size], strict=True) if row]
        silent = bool(asked) and all(value is None for value in asked)
        kept += [None] * len(values) if silent else values
    return kept


def _credit_metrics(result: ShapleyResult, used: NDArray[np.bool_]) -> dict[str, float]:
    """What a run's log should show of the credit that it trains on."""
    rows = [row[~np.isnan(row)] for row, kept in zip(result.advantages, used, strict=True) if kept]
    played = np.concatenate([np.zeros(0), *rows])
    spread = [float(row.std()) for row in rows if len(row) > 1]
    malformed = result.has_flag("no_candidates") | result.has_flag("candidate_truncated")
    metrics = {
        "credit/malformed": float(malformed[used].mean()) if used.any() else 0.0,
        "credit/candidates": float(np.mean([len(row) for row in rows])) if rows else 0.0,
        "credit/gap_max": float(np.abs(result.gap[used]).max(initial=0.0)),
    }
    if spread:
        metrics["credit/within_set_std"] = float(np.mean(spread))
    if len(played):
        metrics["credit/zero_share"] = float((played == 0.0).mean())
    return metrics
