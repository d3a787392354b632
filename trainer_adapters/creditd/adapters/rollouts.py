"""From what a trainer has to what creditd wants, and back: alignment and failure policies, for every framework alike.

Legend: `B` rollouts, in groups of consecutive rows that answer one prompt; `T` completion tokens of one rollout.
Nothing here computes a credit: the client does, in a service or in this process.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.adapters.credit_config import Choice, CreditConfig
from creditd.adapters.prompts import Prompt
from creditd.client import (
    AuthenticationError,
    Client,
    CreditdError,
    InvalidRequestError,
    NotFoundError,
    PartialResultError,
    ResponseError,
    ShapleyResult,
)
from creditd.client.bodies import type_of
from creditd.wire.versions import package_version

Floats: TypeAlias = NDArray[np.float64]

MOST_CANDIDATES = 256
"""Candidates of one completion that play when no number was asked for; the service takes no more."""
MOST_ADVANTAGE = float(np.finfo(np.float32).max)
"""Trainers hold advantages in float32."""
LOCAL = "local:"

log = logging.getLogger("creditd.adapters")


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


@dataclass(frozen=True)
class Answered:
    """What came of asking, before the trainer's own advantages are known.

    Attributes:
        token_advantages: One array of shape (T,), float64, per rollout; None where the failure policy has its way.
        n_tokens: T of each rollout.
        utilities: v(N) of each set as `Creditor.utilities` says them, where a model gave the rewards; else None.
        metrics: Numbers for the trainer's log, by name.
        request_id: Identity of the request, None unless a service gave the answer.
    """

    token_advantages: list[Floats | None]
    n_tokens: list[int]
    utilities: list[float | None] | None
    metrics: dict[str, float]
    request_id: str | None


@dataclass(frozen=True)
class Credited:
    """What a batch of rollouts comes back with.

    Attributes:
        token_advantages: One array of shape (T,), float64, per rollout.
        metrics: Numbers for the trainer's log, by name.
        request_id: Identity of the request, None unless a service gave the answer.
    """

    token_advantages: list[Floats]
    metrics: dict[str, float]
    request_id: str | None


class Creditor:
    """Asks for credit, applies the failure policy, and keeps the counts that a trainer logs.

    Args:
        config: How to ask.
        client: Whom to ask; None makes one from the configuration.
        model: Id of the reward model of the service that scores the candidates. None: they have rewards.

    Raises:
        ValueError: If the choices contradict each other, or no service would take them.
    """

    def __init__(self, config: CreditConfig, client: Client | None = None, model: str | None = None) -> None:
        self.config = config
        self.model = model
        self.client = client or Client(
            config.url,
            api_key=config.api_key,
            deadline_s=config.deadline_s,
            record=config.record,
            keep=config.keep,
        )
        self._local = Client(LOCAL)
        self._warned = False
        self._check_model()
        self._check_choices()

    def _check_model(self) -> None:
        """Refuse to compute here what only a model can say."""
        if self.model is None:
            return
        if self.client.base_url == LOCAL:
            raise ValueError(
                f"got the model {self.model!r} as candidate reward with url={LOCAL!r}, where there is no model; "
                "expected the address of a service that has it, or a function"
            )
        if self.config.on_failure == "local":
            raise ValueError(
                f"got the model {self.model!r} as candidate reward with on_failure='local': without the service there "
                "are no rewards; expected 'raise', 'group_reward' or 'mask', or a function"
            )

    def _check_choices(self) -> None:
        """Refuse choices that no service would take, before a run begins: they must not pass for a lost service."""
        if type_of(self.config.utility) == "table":
            raise ValueError("got the table utility; expected one of rewards: a trainer has no tables")
        probe = Rollout(1, ("",), ((0, 1),), (0.0,), None, 0.0)
        try:
            self._ask(self._local, [probe, probe], 2, self.config.rule_at(0), 1.0)
        except InvalidRequestError as error:
            if not _of_values(error):
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

    def settle(self, answered: Answered, base_advantages: Sequence[float]) -> Credited:
        """The answer with the failure policy applied where there is no credit.

        Args:
            answered: What came of asking.
            base_advantages: What the trainer itself would use, one per rollout.

        Returns:
            One array of the rollout's own length per rollout.
        """
        plain = self.config.on_failure == "group_reward"
        tokens = [
            np.full(n_tokens, base if plain else 0.0) if given is None else given
            for given, n_tokens, base in zip(answered.token_advantages, answered.n_tokens, base_advantages, strict=True)
        ]
        return Credited(tokens, dict(answered.metrics), answered.request_id)

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
            What came, with the utilities of the sets where a model scored their candidates.

        Raises:
            ValueError: As `credit`.
            CreditdError: As `credit`.
        """
        started = time.perf_counter()
        metrics = {"credit/fallbacks": 0.0, "credit/local": 0.0, "credit/errors": 0.0}
        served = self.client.base_url != LOCAL
        rule = self.config.rule_at(step)
        if isinstance(rule, Mapping) and "position" in rule:
            metrics["credit/position"] = float(rule["position"])
        concerned = np.zeros(len(rollouts), dtype=np.bool_)
        result: ShapleyResult | None = None
        try:
            result = self._ask(self.client, rollouts, group_size, rule, set_reward_weight)
        except CreditdError as error:
            if self.config.on_failure == "raise" or not _may_fall_back(error):
                raise
            metrics["credit/errors"] = 1.0
            self._warn_once(error)
            if self.config.on_failure == "local":
                result = self._ask(self._local, rollouts, group_size, rule, set_reward_weight)
                metrics["credit/local"], served = 1.0, False
            elif isinstance(error, PartialResultError) and isinstance(error.result, ShapleyResult):
                result = error.result
                failed = np.flatnonzero(~result.ok) // group_size
                concerned = np.isin(np.arange(len(rollouts)) // group_size, failed)
            else:
                concerned[:] = True
        metrics["credit/fallbacks"] = float(concerned.mean()) if len(rollouts) else 0.0
        given = None if result is None else result.token_advantages
        metrics["credit/seconds"] = time.perf_counter() - started
        if result is not None:
            metrics |= _credit_metrics(result, ~concerned)
        if result is not None and self.model is not None:
            metrics |= _model_metrics(result)
            metrics["credit/seconds"] = max(metrics["credit/seconds"] - result.usage.engine_s, 0.0)
        return Answered(
            token_advantages=[None if out or given is None else given[row] for row, out in enumerate(concerned)],
            n_tokens=[rollout.n_tokens for rollout in rollouts],
            utilities=None if self.model is None else self._utilities_in(result, [one.texts for one in rollouts]),
            metrics=metrics,
            request_id=result.request_id if result is not None and served else None,
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
            result = self._local.shapley(
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

    def _warn_once(self, error: CreditdError) -> None:
        if not self._warned:
            self._warned = True
            log.warning("no credit, on_failure=%s is applied: %s", self.config.on_failure, error)

    def _ask(
        self, client: Client, rollouts: Sequence[Rollout], group_size: int, rule: Choice, set_reward_weight: float
    ) -> ShapleyResult:
        malformed = self._malformed()
        tokens = dict(self.config.tokens)
        tokens["set_reward_weight"] = float(tokens.get("set_reward_weight", 1.0)) * set_reward_weight
        set_rewards = [rollout.set_reward for rollout in rollouts]
        told = self.model is not None and client is not self._local
        texts = told or malformed.get("duplicates") == "collapse"
        try:
            result = client.shapley(
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
            )
        except PartialResultError as error:
            if isinstance(error.result, ShapleyResult):
                _check_answer(error.result, rollouts)
            raise
        _check_answer(result, rollouts)
        return result


def _of_values(error: InvalidRequestError) -> bool:
    """Whether a refusal is about the values of sets, and not about the choices of the request."""
    return bool(error.items) and all(item.pointer.startswith("/columns/") for item in error.items)


def _may_fall_back(error: CreditdError) -> bool:
    """Whether the service is at fault, or single sets; a wrong key, address or choice is the configuration's fault."""
    if isinstance(error, InvalidRequestError):
        return _of_values(error)
    return not isinstance(error, AuthenticationError | NotFoundError)


def _check_answer(result: ShapleyResult, rollouts: Sequence[Rollout]) -> None:
    """Refuse an answer without one usable number per token of each answered rollout: no advantage is made up."""
    answered = np.flatnonzero(result.ok).tolist()
    wrong = next((fault for row in answered if (fault := _fault_of(result, row, rollouts[row].n_tokens))), None)
    if wrong:
        raise ResponseError(
            f"got {wrong}; expected one finite float32 per token [request {result.request_id}]",
            client_version=package_version(),
            service_version=result.service.version,
            request_id=result.request_id,
        )


def _fault_of(result: ShapleyResult, row: int, n_tokens: int) -> str | None:
    """What is wrong with the token advantages of a rollout, or None."""
    if result.token_advantages is None:
        return "no token advantages"
    values = result.token_advantages[row]
    if len(values) != n_tokens:
        return f"{len(values)} token advantages for rollout {row}, which has {n_tokens} tokens"
    unusable = np.flatnonzero(~(np.abs(values) <= MOST_ADVANTAGE))  # NaN compares false
    return (
        f"{values[unusable[0]]:g} as the advantage of token {unusable[0]} of rollout {row}" if len(unusable) else None
    )


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


def _model_metrics(result: ShapleyResult) -> dict[str, float]:
    """What the model did for an answer, and what was remembered."""
    return {
        "credit/evaluations": float(result.usage.evaluations),
        "credit/from_cache": float(result.usage.from_cache),
        "credit/tokens_computed": float(result.usage.tokens_computed),
        "credit/tokens_naive": float(result.usage.tokens_naive),
        "credit/model_seconds": result.usage.engine_s,
    }
