"""Asking for token advantages, and what happens when there are none: the same for candidates and for spans.

Nothing here computes a credit: the client does, in a service or in this process.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from creditd.adapters.credit_config import CreditConfig
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.client import (
    AuthenticationError,
    Client,
    CreditdError,
    InvalidRequestError,
    NotFoundError,
    OarResult,
    PartialResultError,
    ResponseError,
    ScarResult,
    ShapleyResult,
)
from creditd.wire.versions import package_version

Floats: TypeAlias = NDArray[np.float64]
Booleans: TypeAlias = NDArray[np.bool_]
_R = TypeVar("_R", ShapleyResult, ScarResult, OarResult)

MOST_ADVANTAGE = float(np.finfo(np.float32).max)
"""Trainers hold advantages in float32."""
LOCAL = "local:"
_OF_VALUES = ("/columns/", "/items/")
"""Where pointers to the values of sets and of completions begin; others are to the choices of a request."""

log = logging.getLogger("creditd.adapters")


@dataclass(frozen=True)
class Answered:
    """What came of asking, before the trainer's own advantages are known.

    Attributes:
        token_advantages: One array of shape (T,), float64, per rollout; None where the failure policy has its way.
        n_tokens: T of each rollout.
        utilities: What each rollout is worth, None where nobody knows; no list where it comes without the credit.
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


@dataclass(frozen=True)
class Outcome(Generic[_R]):
    """What is left of asking under a failure policy.

    Attributes:
        result: The answer, rows without one included; None if none came at all.
        concerned: Shape (B,), bool: rollouts that the failure policy has its way with.
        metrics: The counts that a trainer logs.
        served: Whether a service gave the result.
    """

    result: _R | None
    concerned: Booleans
    metrics: dict[str, float]
    served: bool


class ServiceCreditor:
    """Whom to ask, and the failure policy.

    Args:
        config: How to ask.
        client: Whom to ask; None makes one from the configuration.
        model: Id of the model of the service that says what things are worth; None if they have rewards, or a function
            says it.
        what: What the model stands in the place of, for errors.

    Raises:
        ValueError: If a model is asked for where there is none.
    """

    def __init__(self, config: CreditConfig, client: Client | None, model: str | None, what: str) -> None:
        self.config = config
        self.model = model
        self.client = client or client_of(config)
        self.local = Client(LOCAL)
        self._warned = False
        self._check_model(what)

    @property
    def is_served(self) -> bool:
        """Whether a service is asked, and not this process."""
        return self.client.base_url != LOCAL

    def _check_model(self, what: str) -> None:
        """Refuse to compute here what only a model can say."""
        if self.model is None:
            return
        if not self.is_served:
            raise ValueError(
                f"got the model {self.model!r} as {what} with url={LOCAL!r}, where there is no model; "
                "expected the address of a service that has it, or a function"
            )
        if self.config.on_failure == "local":
            raise ValueError(
                f"got the model {self.model!r} as {what} with on_failure='local': without the service there "
                "are no rewards; expected 'raise', 'group_reward' or 'mask', or a function"
            )

    def asked(self, ask: Callable[[Client], _R], n_rollouts: int, group_size: int) -> Outcome[_R]:
        """The answer, or what the failure policy leaves of it.

        Args:
            ask: Asks a client; raises what the client does.
            n_rollouts: B.
            group_size: Rows i·G … i·G + G − 1 are a group.

        Returns:
            What came of it. Under `mask` and `group_reward` a group with a rollout that has no answer is concerned.

        Raises:
            CreditdError: Under `raise`, whatever the service or the network did; otherwise what another try or another
                computer cannot heal: a wrong key, a wrong address, choices that are refused, and under `local` rewards
                that are wrong.
        """
        metrics = {"credit/fallbacks": 0.0, "credit/local": 0.0, "credit/errors": 0.0}
        concerned = np.zeros(n_rollouts, dtype=np.bool_)
        served, result = self.is_served, None
        try:
            result = ask(self.client)
        except CreditdError as error:
            if self.config.on_failure == "raise" or not may_fall_back(error):
                raise
            metrics["credit/errors"] = 1.0
            self._warn_once(error)
            if self.config.on_failure == "local":
                result = ask(self.local)
                metrics["credit/local"], served = 1.0, False
            elif isinstance(error, PartialResultError):
                partial: Any = error.result
                result = partial
                failed = np.flatnonzero(~partial.ok) // group_size
                concerned = np.isin(np.arange(n_rollouts) // group_size, failed)
            else:
                concerned[:] = True
        metrics["credit/fallbacks"] = float(concerned.mean()) if n_rollouts else 0.0
        return Outcome(result, concerned, metrics, served)

    def settle(self, answered: Answered, base_advantages: Sequence[float]) -> Credited:
        """The answer with the failure policy applied where there is no credit.

        Under `group_reward` a rollout whose utility is unknown has 0: nobody can compare it with others.

        Args:
            answered: What came of asking.
            base_advantages: What the trainer itself would use, one per rollout; best among those of known utility.

        Returns:
            One array of the rollout's own length per rollout.
        """
        plain = self.config.on_failure == "group_reward"
        known = [True] * len(answered.n_tokens)
        if answered.utilities is not None:
            known = [utility is not None for utility in answered.utilities]
        rows = zip(answered.token_advantages, answered.n_tokens, base_advantages, known, strict=True)
        tokens = [
            np.full(n_tokens, base if plain and is_known else 0.0) if given is None else given
            for given, n_tokens, base, is_known in rows
        ]
        return Credited(tokens, dict(answered.metrics), answered.request_id)

    def _warn_once(self, error: CreditdError) -> None:
        if not self._warned:
            self._warned = True
            log.warning("no credit, on_failure=%s is applied: %s", self.config.on_failure, error)


def client_of(config: CreditConfig | SensitivityConfig) -> Client:
    """The client that a configuration describes.

    Args:
        config: Whose address, key, deadline and recordings are taken.

    Returns:
        A new one.
    """
    return Client(
        config.url, api_key=config.api_key, deadline_s=config.deadline_s, record=config.record, keep=config.keep
    )


def checked(ask: Callable[[], _R], n_tokens: Sequence[int]) -> _R:
    """An answer with one usable number per token of each answered rollout: no advantage is made up.

    Args:
        ask: Asks; raises what the client does.
        n_tokens: T of each rollout.

    Returns:
        The answer.

    Raises:
        ResponseError: If a number is missing, not finite, or too large for a float32.
        CreditdError: Whatever the client raises.
    """
    try:
        result = ask()
    except PartialResultError as error:
        partial: Any = error.result
        _check_answer(partial, n_tokens)
        raise
    _check_answer(result, n_tokens)
    return result


def of_values(error: InvalidRequestError) -> bool:
    """Whether a refusal is about the values of sets or completions, and not about the choices of the request."""
    return bool(error.items) and all(item.pointer.startswith(_OF_VALUES) for item in error.items)


def may_fall_back(error: CreditdError) -> bool:
    """Whether the service is at fault, or single sets; a wrong key, address or choice is the configuration's fault."""
    if isinstance(error, InvalidRequestError):
        return of_values(error)
    return not isinstance(error, AuthenticationError | NotFoundError)


def _check_answer(result: ShapleyResult | ScarResult | OarResult, n_tokens: Sequence[int]) -> None:
    answered = np.flatnonzero(result.ok).tolist()
    wrong = next((fault for row in answered if (fault := _fault_of(result, row, n_tokens[row]))), None)
    if wrong:
        raise ResponseError(
            f"got {wrong}; expected one finite float32 per token [request {result.request_id}]",
            client_version=package_version(),
            service_version=result.service.version,
            request_id=result.request_id,
        )


def _fault_of(result: ShapleyResult | ScarResult | OarResult, row: int, n_tokens: int) -> str | None:
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


def reward_metrics(rewards: Iterable[float | None]) -> dict[str, float]:
    """The mean of what completions are worth, among those of which it is known; nothing where it is of none."""
    known = [reward for reward in rewards if reward is not None and not math.isnan(reward)]
    return {"credit/reward/mean": math.fsum(known) / len(known)} if known else {}


def model_metrics(result: ShapleyResult | ScarResult | OarResult) -> dict[str, float]:
    """What the model did for an answer, and what was remembered."""
    return {
        "credit/evaluations": float(result.usage.evaluations),
        "credit/from_cache": float(result.usage.from_cache),
        "credit/tokens_computed": float(result.usage.tokens_computed),
        "credit/tokens_naive": float(result.usage.tokens_naive),
        "credit/model_seconds": result.usage.engine_s,
    }
