"""From completions of a trainer to token advantages of spans, and back: alignment and failure policies.

Legend: `B` rollouts, in groups of consecutive rows that answer one prompt; `T` completion tokens of one rollout.
Nothing here computes a credit: the client does, in a service or in this process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np

from creditd.adapters.credit_config import Choice, CreditConfig, Schedule
from creditd.adapters.creditors import Answered, Booleans, ServiceCreditor, checked, model_metrics, of_values
from creditd.client import Client, Evaluator, InvalidRequestError, ScarResult
from creditd.client.bodies import type_of

Score: TypeAlias = Callable[[Sequence[Any], Sequence[str]], Sequence[float | None]]
"""What scores texts: prompts and as many texts in, one number or None each out."""

_OF_CANDIDATES = ("credit", "utility", "advantage", "tokens", "candidates", "malformed")
"""What a configuration says about candidates alone."""


@dataclass(frozen=True)
class SpanRollout:
    """One completion, as creditd sees it.

    Attributes:
        prompt: What it answers: for a model as the wire has it, for a function as the trainer has it.
        text: What all of its tokens write.
        offsets: The characters that each of its T tokens writes.
        written: T truth values, whether the policy wrote the token; None if it wrote them all.
        other_reward: What other reward functions give it, in units of its own reward.
    """

    prompt: Any
    text: str
    offsets: tuple[tuple[int, int], ...]
    written: tuple[bool, ...] | None = None
    other_reward: float = 0.0


@dataclass(frozen=True)
class SpanChoices:
    """What is asked about spans; `SpanReward` says what each means.

    Attributes:
        segmentation: Where units come from.
        absent: What stands in the place of absent units.
        credit: What units get, or a function of the trainer's global step that says it.
        alpha: α, or a function of the step that says it.
        estimator: How many texts are evaluated, and how.
        advantage: `pooled`, or a mapping with `ddof` and `epsilon`.
        batch_size: Texts of one call of a function, ≥ 1.

    Raises:
        ValueError: If a value cannot work in any trainer.
    """

    segmentation: Choice = "span"
    absent: Choice = "delete"
    credit: Choice | Schedule = "auto"
    alpha: float | Callable[[int], float] = 1.0
    estimator: Choice | None = None
    advantage: Choice = "pooled"
    batch_size: int = 256

    def __post_init__(self) -> None:
        if type_of(self.segmentation) == "given":
            raise ValueError("got segmentation 'given'; expected one that cuts texts: nobody gives units here")
        if type_of(self.advantage) != "pooled":
            raise ValueError(f"got advantage {self.advantage!r}; expected 'pooled', or a mapping of this type")
        size: object = self.batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"got batch_size {size!r}; expected a whole number of at least 1")
        self.credit_at(0)
        self.alpha_at(0)

    def credit_at(self, step: int) -> Choice:
        """What units get at a step.

        Args:
            step: The trainer's global step.

        Returns:
            A choice that has a name.

        Raises:
            ValueError: If the schedule returned anything else.
        """
        choice = self.credit(step) if callable(self.credit) else self.credit
        if not isinstance(type_of(choice), str):
            said = f"the schedule returned, at step {step}," if callable(self.credit) else "credit is"
            raise ValueError(f"{said} {choice!r}; expected a name such as 'owen', or a mapping with its type")  # noqa: TRY004 - as all
        return choice

    def alpha_at(self, step: int) -> float:
        """α at a step.

        Args:
            step: The trainer's global step.

        Returns:
            A number from 0 to 1.

        Raises:
            ValueError: If it is none.
        """
        alpha: object = self.alpha(step) if callable(self.alpha) else self.alpha
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0.0 <= alpha <= 1.0:
            said = f"the schedule of alpha returned, at step {step}," if callable(self.alpha) else "got alpha"
            raise ValueError(f"{said} {alpha!r}; expected a number from 0 to 1")
        return float(alpha)


class SpanCreditor(ServiceCreditor):
    """Asks for the credit of spans, applies the failure policy, and keeps the counts that a trainer logs.

    Args:
        config: How to ask.
        choices: What is asked.
        score: A function that scores texts, or None.
        client: Whom to ask; None makes one from the configuration.
        model: Id of the reward model of the service that scores texts, or None.

    Raises:
        ValueError: If the choices contradict each other, or no service would take them.
    """

    def __init__(
        self,
        config: CreditConfig,
        choices: SpanChoices,
        *,
        score: Score | None = None,
        client: Client | None = None,
        model: str | None = None,
    ) -> None:
        defaults = {field.name: getattr(CreditConfig(), field.name) for field in fields(CreditConfig)}
        for name in _OF_CANDIDATES:
            if getattr(config, name) != defaults[name]:
                raise ValueError(
                    f"got CreditConfig({name}=…) with a SpanReward, which has no candidates; expected the default, and "
                    "what spans get among the arguments of SpanReward"
                )
        super().__init__(config, client, model, "span reward")
        self.choices = choices
        self._score = score
        self._seconds, self._scored = 0.0, 0
        self._check_choices()

    def _check_choices(self) -> None:
        """Refuse choices that no service would take, before a run begins: they must not pass for a lost service."""
        credit, absent = self.choices.credit_at(0), self.choices.absent
        if self.model is not None:  # what only a model does is checked where the model is
            credit = "uniform" if type_of(credit) == "attention" else credit
            absent = "blank" if isinstance(absent, Mapping) and absent.get("id") is not None else absent
        try:
            self.local.scar(
                ["", ""],
                [".", "."],
                token_offsets=[[[0, 1]]] * 2,
                utility=lambda _, text: float(len(text)),
                **{**self._asked_for(2, 0), "credit": credit, "absent": absent},
            )
        except InvalidRequestError as error:
            if not of_values(error):
                raise ValueError(f"the choices of the span reward are refused: {error}") from None

    def _asked_for(self, group_size: int, step: int) -> dict[str, Any]:
        """The choices of a request."""
        return {
            "segmentation": self.choices.segmentation,
            "absent": self.choices.absent,
            "credit": self.choices.credit_at(step),
            "estimator": self.choices.estimator,
            "alpha": self.choices.alpha_at(step),
            "advantage": self.choices.advantage,
            "expect": {"group_size": group_size},
        }

    def answer(
        self, rollouts: Sequence[SpanRollout], group_size: int, step: int, *, with_credit: bool = True
    ) -> Answered:
        """Advantages of every token of a batch of whole groups, and v(P) of every rollout.

        Args:
            rollouts: B rollouts; rows i·G … i·G + G − 1 answer one prompt.
            group_size: G. The service is told, so that a split group is an error.
            step: The trainer's global step.
            with_credit: Whether token advantages are wanted; else only v(P) is found, at the price of plain scoring.

        Returns:
            What came, before the failure policy is applied; `utilities` has v(P), None where there is none.

        Raises:
            ValueError: If a schedule returns something else than it should.
            CreditdError: Under `raise`, whatever the service or the network did; otherwise what another try or another
                computer cannot heal: a wrong key, a wrong address, choices that are refused.
        """
        started = time.perf_counter()
        self._seconds, self._scored = 0.0, 0
        n_tokens = [len(rollout.offsets) for rollout in rollouts]
        options = self._asked_for(group_size, step)
        if not with_credit:
            options |= {"credit": "uniform", "estimator": None, "advantage": "none"}
        result, concerned, metrics, served = None, np.ones(len(rollouts), dtype=np.bool_), dict[str, float](), False
        if with_credit or self.model is not None:
            outcome = self.asked(
                lambda client: self._ask(client, rollouts, group_size, options, n_tokens if with_credit else None),
                len(rollouts),
                group_size,
            )
            result, concerned = outcome.result, outcome.concerned
            metrics, served = dict(outcome.metrics), outcome.served
        utilities = self._utilities(result, rollouts)
        metrics["credit/alpha"] = options["alpha"]
        metrics["credit/seconds"] = max(time.perf_counter() - started - self._seconds, 0.0)
        if result is not None and with_credit:
            metrics |= span_metrics(result, rollouts, ~concerned)
        if self.model is None:
            metrics |= {"credit/evaluations": float(self._scored), "credit/model_seconds": self._seconds}
        elif result is not None:
            metrics |= model_metrics(result)
            metrics["credit/seconds"] = max(metrics["credit/seconds"] - result.usage.engine_s, 0.0)
        given = None if result is None else result.token_advantages
        return Answered(
            token_advantages=[None if out or given is None else given[row] for row, out in enumerate(concerned)],
            n_tokens=n_tokens,
            utilities=utilities,
            metrics=metrics,
            request_id=result.request_id if result is not None and served else None,
        )

    def _ask(
        self,
        client: Client,
        rollouts: Sequence[SpanRollout],
        group_size: int,
        options: Mapping[str, Any],
        n_tokens: Sequence[int] | None,
    ) -> ScarResult:
        """What a client says; with `n_tokens` an answer that has an advantage for each of them."""
        groups = [row // group_size for row in range(len(rollouts))]
        masks = [one.written for one in rollouts]
        columns: dict[str, Any] = {
            "token_offsets": [one.offsets for one in rollouts],
            "completion_masks": masks if any(mask is not None for mask in masks) else None,
            "other_rewards": [one.other_reward for one in rollouts],
            "groups": groups,
        }
        texts, score = [one.text for one in rollouts], self._score

        def ask() -> ScarResult:
            if score is None:
                prompts = [one.prompt for one in rollouts]
                alone = self.config.deterministic
                return client.scar(prompts, texts, model=self.model, deterministic=alone, **columns, **options)
            # The function gets the trainer's own prompts, whatever they are: for the client the group names them.
            of_group = {group: one.prompt for group, one in zip(reversed(groups), reversed(rollouts), strict=True)}

            def scores(numbers: Sequence[int], texts: Sequence[str]) -> Sequence[float | None]:
                return self._scores(score, [of_group[number] for number in numbers], texts)

            utility = Evaluator(scores, batched=True, batch_size=self.choices.batch_size)
            return client.scar(groups, texts, utility=utility, **columns, **options)

        return ask() if n_tokens is None else checked(ask, n_tokens)

    def _scores(self, score: Score, prompts: Sequence[Any], texts: Sequence[str]) -> Sequence[float | None]:
        """What the function says, counted."""
        started = time.perf_counter()
        found = score(prompts, texts)
        self._seconds += time.perf_counter() - started
        self._scored += len(texts)
        return found

    def _utilities(self, result: ScarResult | None, rollouts: Sequence[SpanRollout]) -> list[float | None]:
        """v(P) of each rollout by an answer; what is missing of a function is asked of it."""
        known = [math.nan] * len(rollouts) if result is None else result.utility_grand.tolist()
        missing = [row for row, value in enumerate(known) if math.isnan(value)]
        if self._score is not None and missing:
            for start in range(0, len(missing), self.choices.batch_size):
                rows = missing[start : start + self.choices.batch_size]
                asked = [rollouts[row] for row in rows]
                found = self._scores(self._score, [one.prompt for one in asked], [one.text for one in asked])
                for row, value in zip(rows, found, strict=True):
                    known[row] = math.nan if value is None else float(value)
        return [value if math.isfinite(value) else None for value in known]


def span_metrics(result: ScarResult, rollouts: Sequence[SpanRollout], used: Booleans) -> dict[str, float]:
    """What a run's log should show of the credit that it trains on."""
    rows = np.flatnonzero(used & result.ok).tolist()
    if not rows:
        return {}
    merged, fallen = result.has_flag("units_merged"), result.has_flag("fallback_return")
    gaps = np.abs(result.gap[rows])
    metrics = {
        "credit/units": float(np.mean([len(result.units[row]) for row in rows])),
        "credit/units_merged": float(merged[rows].mean()),
        "credit/fallback_returns": float(fallen[rows].mean()),
        "credit/gap_max": float(gaps[~np.isnan(gaps)].max(initial=0.0)),
    }
    if result.token_advantages is not None:
        spread = []
        for row in rows:
            written = rollouts[row].written
            values = result.token_advantages[row]
            own = values if written is None else values[np.array(written, dtype=np.bool_)]
            spread += [float(own.std())] if len(own) > 1 else []
        metrics |= {"credit/within_completion_std": float(np.mean(spread))} if spread else {}
    if result.standard_errors is not None:
        errors = np.concatenate([np.zeros(0), *(result.standard_errors[row] for row in rows)])
        estimated = errors[~np.isnan(errors)]
        metrics |= {"credit/standard_error": float(estimated.mean())} if len(estimated) else {}
    return metrics
