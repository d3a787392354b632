"""From completions of a trainer to token advantages reshaped by sensitivity, and back: alignment and failure policies.

Legend: `B` rollouts, in groups of consecutive rows that answer one prompt; `T` completion tokens of one rollout.
Nothing here measures a sensitivity or reshapes anything: the service does, or `sensitivity_in_process`.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import numpy as np

from creditd.adapters.creditors import Booleans, Floats, checked, may_fall_back, model_metrics
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.client import Client, CreditdError, OarResult, PartialResultError, WeightVersionUnknownError

Base: TypeAlias = float | Floats
"""The advantage of a completion, or one of shape (T,) for each of its tokens."""
_T = TypeVar("_T")

log = logging.getLogger("creditd.adapters")


class Pushed(Protocol):
    """What handing over weights cost."""

    @property
    def seconds(self) -> float:
        """Of this process."""

    @property
    def n_bytes(self) -> int:
        """That travelled."""


@dataclass(frozen=True)
class ReasonedRollout:
    """One completion, as creditd sees it.

    Attributes:
        prompt_ids: Tokens before it.
        completion_ids: Its T tokens.
        text: What they write, without those that end or fill up a completion.
        offsets: The characters that each of the T tokens writes.
        written: T truth values, whether the loss trains the token; None if it trains them all.
        advantage: What the trainer itself would use.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    text: str
    offsets: tuple[tuple[int, int], ...]
    written: tuple[bool, ...] | None
    advantage: Base

    @property
    def has_contrast(self) -> bool:
        """Whether a token that the loss trains has an advantage; without one no weight changes the loss."""
        return bool(plain_advantages(self).any())

    @property
    def measured(self) -> tuple[bool, ...] | None:
        """T truth values, whether the policy is asked about the token; None: about all. Without contrast about none."""
        return self.written if self.has_contrast else (False,) * len(self.completion_ids)


@dataclass(frozen=True)
class Reshaped:
    """What a batch of rollouts comes back with.

    Attributes:
        token_advantages: One array of shape (T,), float64, per rollout.
        weights: The same of weights; None where the failure policy had its way, or nobody was asked.
        metrics: Numbers for the trainer's log, by name.
        request_id: Identity of the request, None unless a service gave the answer.
        weight_version: The weights that were asked, None likewise.
        failure: Why the failure policy had its way, or None.
    """

    token_advantages: list[Floats]
    weights: list[Floats | None]
    metrics: dict[str, float]
    request_id: str | None
    weight_version: str | None
    failure: CreditdError | None = None


@dataclass(frozen=True)
class Weighed:
    """Weights of rollouts that have some, and how they are spread; the same of a service and of this process.

    Attributes:
        weights: Shape (T,) each; None without an answer.
        token_advantages: The same for advantages of whole completions.
        n_reweighted: Tokens that were weighed against each other, shape (B,).
        effective_share: Shape (B,), NaN where there is none, as are `top_share` and `spread`.
        top_share: Likewise.
        spread: Likewise.
        answer_not_found: Shape (B,), bool.
        flat: Shape (B,), bool.
    """

    weights: list[Floats | None]
    token_advantages: list[Floats | None]
    n_reweighted: Floats
    effective_share: Floats
    top_share: Floats
    spread: Floats
    answer_not_found: Booleans
    flat: Booleans


def asked_of_service(
    client: Client,
    config: SensitivityConfig,
    rollouts: Sequence[ReasonedRollout],
    group_size: int,
    weight_version: str | None,
) -> OarResult:
    """What the policy of a service says of a batch of whole groups.

    Args:
        client: Whom to ask.
        config: How.
        rollouts: B rollouts; rows i·G … i·G + G − 1 answer one prompt.
        group_size: G. The service is told, so that a split group is an error.
        weight_version: The weights that have to answer.

    Returns:
        One usable number per token of each rollout. Of one without contrast nothing is measured, and all are 0.

    Raises:
        PartialResultError: If some rollouts have no answer.
        ResponseError: If a number is missing, not finite, or too large for a float32.
        CreditdError: Whatever else the client raises.
    """
    masks = [one.measured for one in rollouts]
    choices = config.request()

    def ask() -> OarResult:
        return client.oar(
            [one.prompt_ids for one in rollouts],
            [one.completion_ids for one in rollouts],
            advantages=[one.advantage if isinstance(one.advantage, float) else 1.0 for one in rollouts],
            model=config.model,
            weight_version=weight_version,
            completion_masks=masks if any(mask is not None for mask in masks) else None,
            completions=[one.text for one in rollouts],
            token_offsets=[one.offsets for one in rollouts],
            groups=[row // group_size for row in range(len(rollouts))],
            sensitivity=choices.sensitivity,
            probe=choices.probe,
            reshape=choices.reshape,
            parser=choices.parser,
            expect={"group_size": group_size},
            deterministic=config.deterministic,
        )

    return checked(ask, [len(one.completion_ids) for one in rollouts])


class CurrentWeights:
    """Which of a run's weights the service was given last; hands them over when they changed, or when it lost them.

    Versions are called `RUN:STEP`. RUN is new whenever training begins, because the step begins again then, and a
    service that knows a version would answer of other weights than those.

    Args:
        push: Hands over the weights as they are now under a version; raises what the client does.
        name: Begins the names of runs, or None.

    Attributes:
        seconds: What pushes took since the last `taken`.
        n_bytes: What they handed over.
        pushes: How many there were.
    """

    def __init__(self, push: Callable[[str], Pushed], name: str | None = None) -> None:
        self._push, self._name = push, name
        self._run = ""
        self._known: int | None = None
        self.seconds, self.n_bytes, self.pushes = 0.0, 0, 0
        self.begin()

    def begin(self, run: str | None = None) -> None:
        """Begin a run: the weights may be any.

        Args:
            run: Its name, which no other run has had. None: a new one.
        """
        self._run = run or self.new_name()
        self._known = None

    def new_name(self) -> str:
        """A name that no other run has."""
        unique = uuid.uuid4().hex[:12]
        return unique if self._name is None else f"{self._name}-{unique}"

    def version_at(self, step: int) -> str:
        """What the weights are called at a step."""
        return f"{self._run}:{step}"

    def lag_of(self, version: str | None, step: int) -> int | None:
        """Steps since the weights of a version; None if it is not of this run."""
        run, _, number = (version or "").rpartition(":")
        return step - int(number) if run == self._run and number.isdecimal() else None

    def bring(self, step: int) -> None:
        """Hand over the weights unless the service was given those of this step."""
        if step == self._known:
            return
        self._known = None
        try:
            self._hand_over(step)
        except WeightVersionUnknownError as error:  # it was restarted between two shards
            log.warning("the service lost a part of the weights, which are pushed once more: %s", error)
            self._hand_over(step)
        self._known = step

    def answer(self, ask: Callable[[str], _T], step: int) -> _T:
        """The answer for the weights of a step, which are handed over first if they changed.

        A service that does not know them although it was given them was restarted: it is given them once more, and
        asked once more.

        Args:
            ask: Asks for a version; raises what the client does.
            step: The trainer's global step.

        Returns:
            The answer.

        Raises:
            CreditdError: What the push raises, or the last try.
        """
        self.bring(step)
        try:
            return ask(self.version_at(step))
        except WeightVersionUnknownError as error:
            log.warning("the service does not know the weights any more, which are pushed once more: %s", error)
        self._known = None
        self.bring(step)
        return ask(self.version_at(step))

    def taken(self) -> dict[str, float]:
        """What pushes cost since the last call, for the trainer's log."""
        found = {
            "credit/push_seconds": self.seconds,
            "credit/push_bytes": float(self.n_bytes),
            "credit/pushes": float(self.pushes),
        }
        self.seconds, self.n_bytes, self.pushes = 0.0, 0, 0
        return found

    def _hand_over(self, step: int) -> None:
        pushed = self._push(self.version_at(step))
        self.seconds += pushed.seconds
        self.n_bytes += pushed.n_bytes
        self.pushes += 1


def weighed_by(result: OarResult) -> Weighed:
    """What an answer of a service says, rows without an answer left out."""
    rows = range(len(result))
    return Weighed(
        weights=[result.weights[row] if result.ok[row] else None for row in rows],
        token_advantages=[result.token_advantages[row] if result.ok[row] else None for row in rows],
        n_reweighted=result.n_reweighted.astype(np.float64),
        effective_share=result.effective_share,
        top_share=result.top_share,
        spread=result.spread,
        answer_not_found=result.has_flag("answer_not_found"),
        flat=result.has_flag("flat_sensitivity"),
    )


def settled(
    result: OarResult | CreditdError,
    config: SensitivityConfig,
    rollouts: Sequence[ReasonedRollout],
) -> Reshaped:
    """Token advantages of a batch with the failure policy applied where there are no weights.

    Args:
        result: The answer, or what came instead.
        config: How it was asked for.
        rollouts: The batch.

    Returns:
        One array of the rollout's own length per rollout.

    Raises:
        CreditdError: What came, under `raise`; otherwise what another try cannot heal: a wrong key, a wrong address,
            choices or weights that are refused.
    """
    failure = result if isinstance(result, CreditdError) else None
    answer: object = result
    if failure is not None:
        if config.on_failure == "raise" or not may_fall_back(failure):
            raise failure
        answer = failure.result if isinstance(failure, PartialResultError) else None
    counts = {"credit/errors": float(failure is not None), "credit/fallbacks": 1.0}
    if not isinstance(answer, OarResult):
        found = unasked(rollouts)
        return Reshaped(found.token_advantages, found.weights, found.metrics | counts, None, None, failure)
    found = reshaped(rollouts, weighed_by(answer))
    return Reshaped(
        found.token_advantages,
        found.weights,
        counts | found.metrics | model_metrics(answer),
        answer.request_id,
        answer.weight_version,
        failure,
    )


def reshaped(rollouts: Sequence[ReasonedRollout], weighed: Weighed) -> Reshaped:
    """Token advantages of rollouts and their weights; where there are none, the plain advantages.

    Args:
        rollouts: B rollouts.
        weighed: What is known of them, row by row.

    Returns:
        For an advantage of the whole completion the token advantages as they came; for advantages of tokens each times
        the weight of its token. `metrics` has the share of rows without contrast; of those with it the share without
        weights, and means over the others.
    """
    contrast = np.array([rollout.has_contrast for rollout in rollouts], dtype=np.bool_)
    kept = [weights if asked else None for weights, asked in zip(weighed.weights, contrast.tolist(), strict=True)]
    tokens = []
    for rollout, weights, advantages in zip(rollouts, kept, weighed.token_advantages, strict=True):
        if weights is None or advantages is None:
            tokens.append(plain_advantages(rollout))
        elif isinstance(rollout.advantage, float):
            tokens.append(advantages)
        else:
            tokens.append(rollout.advantage * weights)
    used = np.array([weights is not None for weights in kept], dtype=np.bool_)
    fallbacks = float((~used[contrast]).mean()) if contrast.any() else 0.0
    metrics = {"credit/fallbacks": fallbacks, "credit/without_contrast": float((~contrast).mean())}
    return Reshaped(tokens, kept, metrics | _metrics(weighed, used), None, None)


def unasked(rollouts: Sequence[ReasonedRollout]) -> Reshaped:
    """The plain advantages of rollouts that nobody was asked about."""
    without = sum(not rollout.has_contrast for rollout in rollouts) / len(rollouts)
    metrics = {"credit/fallbacks": 0.0, "credit/errors": 0.0, "credit/without_contrast": without}
    return Reshaped([plain_advantages(one) for one in rollouts], [None] * len(rollouts), metrics, None, None)


def plain_advantages(rollout: ReasonedRollout) -> Floats:
    """The trainer's own advantage on every token that the loss trains, shape (T,)."""
    written = True if rollout.written is None else np.array(rollout.written, dtype=np.bool_)
    own = np.broadcast_to(np.asarray(rollout.advantage, dtype=np.float64), (len(rollout.completion_ids),))
    return np.where(written, own, 0.0)


def _metrics(weighed: Weighed, used: Booleans) -> dict[str, float]:
    """What a run's log should show of the weights that it trains with."""
    if not used.any():
        return {}
    metrics = {
        "credit/reweighted": float(weighed.n_reweighted[used].mean()),
        "credit/answer_not_found": float(weighed.answer_not_found[used].mean()),
        "credit/flat": float(weighed.flat[used].mean()),
    }
    for name in ("effective_share", "top_share", "spread"):
        values: Floats = getattr(weighed, name)[used]
        known = values[~np.isnan(values)]
        metrics |= {f"credit/{name}": float(known.mean())} if len(known) else {}
    return metrics
