"""From a batch of verl to numbers for its tokens, one request each; no arithmetic, and nothing of verl or torch."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from creditd.adapters.candidate_reward import CandidateReward
from creditd.adapters.completions import token_offsets
from creditd.adapters.credit_config import CreditConfig
from creditd.adapters.credit_reward import CreditReward, decoder
from creditd.adapters.creditors import client_of, model_metrics, reward_metrics
from creditd.adapters.loop import span_token_rewards
from creditd.adapters.loop_credit import LoopCredit
from creditd.adapters.policy_sensitivity import PolicySensitivity
from creditd.adapters.prompts import readable
from creditd.adapters.sensitivity import ReasonedRollout, plain_advantages
from creditd.adapters.sensitivity_config import SensitivityConfig
from creditd.adapters.span_reward import SpanReward
from creditd.adapters.verl_rows import Session, VerlBatch, joined, sessions_of, whole_groups
from creditd.adapters.verl_settings import CommonSettings, VerlSettings
from creditd.adapters.verl_weights import weights_of
from creditd.client import Client, Evaluator

log = logging.getLogger("creditd.adapters.verl")


@dataclass(frozen=True)
class TokenNumbers:
    """What the tokens of a batch get.

    Attributes:
        rows: By the key of a row one number per response token.
        metrics: Numbers for the trainer's log, by name.
        request_id: Identity of the request; None unless a service gave the answer.
    """

    rows: dict[str, list[float]]
    metrics: dict[str, float]
    request_id: str | None


class Asker(ABC):
    """Asks about the batches of one trainer.

    Args:
        common: What all kinds take.
        config: How to ask.
        group_size: Sessions of a prompt.

    Attributes:
        writes_rewards: Whether the numbers are rewards, which the trainer's own estimator reads, and no advantages.
    """

    writes_rewards = False

    def __init__(self, common: CommonSettings, config: CreditConfig | SensitivityConfig, group_size: int) -> None:
        self.common, self.group_size = common, group_size
        self._max_credit_share = config.max_credit_share
        self._decode: Any = None

    @property
    def reads_prompts(self) -> bool:
        """Whether the messages of prompts are wanted."""
        return True

    @property
    def reads_rewards(self) -> bool:
        """Whether verl's own rewards are wanted."""
        return self.common.reward_weight != 0

    @property
    def columns(self) -> tuple[str, ...]:
        """Further fields that are wanted."""
        return ()

    @property
    def max_credit_share(self) -> float | None:
        """Share of the step time above which one warning is given."""
        return self._max_credit_share

    def read_by(self, tokenizer: Any) -> None:  # noqa: ANN401 - of any framework
        """Know how tokens are read; called once, before the first batch."""
        self._decode = decoder(tokenizer, self.silent_of(tokenizer), {})

    @abstractmethod
    def ask(self, batch: VerlBatch, step: int) -> TokenNumbers:
        """Numbers for the tokens of a batch.

        Args:
            batch: All of its rows.
            step: For schedules, from 0.

        Returns:
            One row for every row of the batch.

        Raises:
            ValueError: If groups are incomplete where that is to be raised, or something does not fit.
            CreditdError: As the failure policy has it.
        """

    def silent_of(self, tokenizer: Any) -> set[int]:  # noqa: ANN401 - as above
        """Tokens that are no text."""
        return {tokenizer.eos_token_id, tokenizer.pad_token_id, *self.common.silent}

    def grouped(self, batch: VerlBatch) -> tuple[list[Session], list[Session], dict[str, float]]:
        """Whole groups, the sessions of others, and how many rollouts these are."""
        sessions = sessions_of(batch.keys)
        whole, broken = whole_groups(sessions, self.group_size)
        if broken and self.common.incomplete_groups == "raise":
            uids = {session.uid for session in broken}
            raise ValueError(
                f"got {len(uids)} of {len({one.uid for one in sessions})} prompts without exactly {self.group_size} "
                "sessions, because some of them failed or the agent loop has another rollout.n; expected whole "
                "groups, or "
                "trainer.v1.sampler.sampler_kwargs.incomplete_groups=mask, which trains none of their tokens"
            )
        return whole, broken, {"credit/incomplete": len(broken) / len(sessions) if sessions else 0.0}


class _LateTokenizer:
    """The tokenizer that the trainer makes after its sampler."""

    eos_token_id = pad_token_id = None

    def __init__(self) -> None:
        self.own: Any = None

    def decode(self, ids: Sequence[int], **options: Any) -> str:  # noqa: ANN401 - as transformers has them
        """What the trainer's says."""
        return str(self.own.decode(ids, **options))


class CreditAsker(Asker):
    """Advantages by the credit of candidates, or of spans in the form of GRPO, through a `LoopCredit`."""

    def __init__(self, settings: VerlSettings, group_size: int, longest: int | None) -> None:
        self.config = CreditConfig(**settings.config)
        super().__init__(settings.common, self.config, group_size)
        made: type[CandidateReward | SpanReward]
        made = SpanReward if settings.common.kind == "spans" else CandidateReward
        if made is CandidateReward and "parser" not in settings.reward:
            raise ValueError(
                "sampler_kwargs: got no parser; expected how candidates are written, such as {type: numbered}"
            )
        self.reward: CreditReward = made(**settings.reward)
        self._tokenizer: Any = _LateTokenizer()
        self._credit = LoopCredit(self.reward, self.config, tokenizer=self._tokenizer, longest=longest, silent=())

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that a candidate reward function gets."""
        asked = isinstance(self.reward, CandidateReward) and self.reward.function is not None
        return self.common.columns if asked else ()

    def read_by(self, tokenizer: Any) -> None:  # noqa: ANN401 - as above
        """Know how tokens are read."""
        self._tokenizer.own = tokenizer
        self.reward.silent.update(self.silent_of(tokenizer))

    def ask(self, batch: VerlBatch, step: int) -> TokenNumbers:
        """Advantages of a batch."""
        whole, broken, metrics = self.grouped(batch)
        rows = _zeros(batch, broken)
        if not whole:
            return TokenNumbers(rows, metrics, None)
        if isinstance(self.reward, SpanReward):
            _refuse_outputs(whole)
        completions = [joined(session, batch) for session in whole]
        last = [session.rows[-1] for session in whole]
        found = self._credit.advantages(
            [batch.prompts[row] for row in last],
            [one.ids for one in completions],
            group_size=self.group_size,
            step=step,
            prompt_ids=[batch.prompt_ids[session.rows[0]] for session in whole],
            groups=[session.uid for session in whole],
            completion_masks=_masks([one.mask for one in completions]),
            other_rewards=_weighted(self.common, batch, last),
            columns={name: [values[row] for row in last] for name, values in batch.columns.items()},
        )
        for session, one, values in zip(whole, completions, found.token_advantages, strict=True):
            for row, (start, stop) in zip(session.rows, one.spans, strict=True):
                rows[batch.keys[row]] = values[start:stop]
        return TokenNumbers(rows, metrics | found.metrics, found.request_id)


class SpanRewardAsker(Asker):
    """Rewards of tokens by what their spans are worth (SCAR), for an estimator that has its own returns."""

    writes_rewards = True

    def __init__(self, settings: VerlSettings, group_size: int) -> None:
        self.config = CreditConfig(**settings.config)
        super().__init__(settings.common, self.config, group_size)
        function = settings.reward["function"]
        chosen = {"credit": "prefix"} | {key: value for key, value in settings.reward.items() if key != "function"}
        reward = SpanReward(function, **chosen)
        reward.ready(self.config)  # what no service would take is refused here
        self._client = reward.creditor.client
        self._batch_size = int(chosen.pop("batch_size", 256))
        self._function: Any = None if isinstance(function, str) else function
        self._model = function if isinstance(function, str) else None
        self._choices = chosen

    def ask(self, batch: VerlBatch, step: int) -> TokenNumbers:
        """Rewards of a batch; groups need not be whole."""
        started = time.perf_counter()
        sessions = sessions_of(batch.keys)
        _refuse_outputs(sessions)
        order = [session.rows[0] for session in sessions]
        options = {name: value(step) if callable(value) else value for name, value in self._choices.items()}
        if self._model is not None:
            options |= {"model": self._model, "deterministic": self.config.deterministic}
        else:
            options["utility"] = Evaluator(self._function, batched=True, batch_size=self._batch_size)
        uids = [session.uid for session in sessions]
        found = span_token_rewards(
            self._client,
            [readable(batch.prompts[row]) for row in order],
            [batch.ids[row] for row in order],
            self._decode,
            completion_masks=_masks([batch.masks[row] for row in order]),
            groups=uids,
            other_rewards=_weighted(self.common, batch, order),
            **options,
        )
        result = found.result
        metrics = {
            "credit/fallbacks": 0.0,  # whatever fails is raised: there is no return to fall back to
            "credit/errors": 0.0,
            "credit/alpha": float(options.get("alpha", 1.0)),
            "credit/fallback_returns": float(result.has_flag("fallback_return").mean()),
            "credit/units": float(np.mean([len(units) for units in result.units])),
            "credit/seconds": max(time.perf_counter() - started - result.usage.engine_s, 0.0),
            **model_metrics(result),
            **reward_metrics(result.utility_grand.tolist()),
        }
        rows = {batch.keys[row]: list(values) for row, values in zip(order, found.token_rewards, strict=True)}
        return TokenNumbers(rows, metrics, result.request_id)


class SensitivityAsker(Asker):
    """Advantages of whole responses, of verl's own rewards, reshaped by how the answer depends on tokens (OAR)."""

    def __init__(self, settings: VerlSettings, group_size: int, trainer: Any) -> None:  # noqa: ANN401 - a DictConfig
        self.config = SensitivityConfig(**settings.config)
        super().__init__(settings.common, self.config, group_size)
        self._base = settings.reward.get("base_advantage", "grpo")
        self._client = client_of(self.config)
        weights = weights_of(settings.reward, self.config, self._client, trainer)
        self._sensitivity = PolicySensitivity(self._client, self.config, weights, log)
        self._local = Client("local:")
        self._local.group([[0.0, 1.0]], advantage=self._base, convention="verl")  # an unknown one is refused here

    @property
    def reads_prompts(self) -> bool:
        """Tokens alone travel."""
        return False

    @property
    def reads_rewards(self) -> bool:
        """They are what the advantages are made of."""
        return True

    def ask(self, batch: VerlBatch, step: int) -> TokenNumbers:
        """Advantages of a batch; an output that is not the last of its session has the plain one."""
        started = time.perf_counter()
        self._sensitivity.sampled(step)
        whole, broken, metrics = self.grouped(batch)
        rows = _zeros(batch, broken)
        if not whole:
            return TokenNumbers(rows, metrics, None)
        last = [session.rows[-1] for session in whole]
        size = self.group_size
        rewards = [[batch.rewards[row] for row in last[start : start + size]] for start in range(0, len(last), size)]
        found = self._local.group(rewards, advantage=self._base, convention="verl").advantages
        advantages = [float(value) for row in found for value in row]
        rollouts = [self._rollout(batch, row, value) for row, value in zip(last, advantages, strict=True)]
        reshaped = self._sensitivity.reshaped(rollouts, size, step)
        metrics |= reshaped.metrics
        metrics["credit/seconds"] = time.perf_counter() - started
        for session, value, own in zip(whole, advantages, reshaped.token_advantages, strict=True):
            for row in session.rows[:-1]:
                rows[batch.keys[row]] = plain_advantages(self._rollout(batch, row, value)).tolist()
            rows[batch.keys[session.rows[-1]]] = own.tolist()
        return TokenNumbers(rows, metrics, reshaped.request_id)

    def _rollout(self, batch: VerlBatch, row: int, advantage: float) -> ReasonedRollout:
        """A row as creditd sees it."""
        text, offsets = token_offsets(batch.ids[row], self._decode)
        mask = _masks([batch.masks[row]])
        return ReasonedRollout(
            prompt_ids=tuple(batch.prompt_ids[row]),
            completion_ids=tuple(batch.ids[row]),
            text=text,
            offsets=tuple(offsets),
            written=None if mask is None else tuple(map(bool, mask[0])),
            advantage=advantage,
        )


def asker_of(
    settings: VerlSettings,
    group_size: int,
    longest: int | None,
    trainer: Any = None,  # noqa: ANN401 - a DictConfig
) -> Asker:
    """Who asks, by the kind.

    Args:
        settings: What the keys say.
        group_size: Sessions of a prompt.
        longest: Response tokens at which generation is cut off.
        trainer: The configuration of verl's trainer, which says where checkpoints are; None if nobody knows it.

    Returns:
        One that waits for its tokenizer.

    Raises:
        ValueError: If the choices contradict each other, or no service would take them.
        TypeError: If a reward is no function.
    """
    if settings.common.kind == "sensitivity":
        return SensitivityAsker(settings, group_size, trainer)
    if settings.common.kind == "span_rewards":
        return SpanRewardAsker(settings, group_size)
    return CreditAsker(settings, group_size, longest)


def _zeros(batch: VerlBatch, sessions: Sequence[Session]) -> dict[str, list[float]]:
    """No advantage for the tokens of sessions that are not compared with others."""
    return {batch.keys[row]: [0.0] * len(batch.ids[row]) for session in sessions for row in session.rows}


def _masks(masks: Sequence[list[int]]) -> list[list[int]] | None:
    """Masks, or None where the policy wrote every token."""
    return None if all(all(mask) for mask in masks) else list(masks)


def _weighted(common: CommonSettings, batch: VerlBatch, rows: Sequence[int]) -> list[float | None] | None:
    """Rewards of verl's own with their weight, or None where they do not count."""
    return [common.reward_weight * batch.rewards[row] for row in rows] if common.reward_weight else None


def _refuse_outputs(sessions: Sequence[Session]) -> None:
    """A reward model reads one text."""
    several = next((session for session in sessions if len(session.rows) > 1), None)
    if several is not None:
        raise ValueError(
            f"got a session of prompt {several.uid} with {len(several.rows)} outputs; expected one, because spans "
            "are those "
            "of one text (kind=candidates takes several)"
        )
