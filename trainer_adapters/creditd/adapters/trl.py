"""Candidate credit in TRL's GRPOTrainer: two lines in a script that trains already.

    from creditd.adapters.trl import CandidateReward, CreditGRPOTrainer as GRPOTrainer  # from trl import GRPOTrainer
    …
        reward_funcs=CandidateReward(score, parser={"type": "numbered"}),  # reward_funcs=score

`score(prompts, candidates, completions, **columns)` returns, for each completion, one reward or None per candidate. Its
place may take the id of a reward model of the service: `CandidateReward("rm", parser=…)`.

The loss of TRL takes advantages of shape (B, T) as they are; the mixin replaces them when TRL has generated and scored.
There is one request per generation. With a function it is sent then; with a model it is sent when the other reward
functions have spoken, for scores and credit together: the utilities in the answer become TRL's rewards, and the token
advantages are kept until TRL has its own, so that the model is never asked twice.
Tested with TRL 1.14.2 and 1.16.0.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from trl import GRPOTrainer

from creditd.adapters.candidate_reward import CandidateReward, Generation, Rewards
from creditd.adapters.completions import Found
from creditd.adapters.credit_config import Anneal, CreditConfig, anneal
from creditd.adapters.prompts import readable
from creditd.adapters.rollouts import Answered, Credited, Creditor, Rollout
from creditd.adapters.trl_settings import check_loss, check_settings
from creditd.client import CreditdError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Anneal", "CandidateReward", "CreditConfig", "CreditGRPOTrainer", "CreditMixin", "anneal", "attach"]

log = logging.getLogger("creditd.adapters.trl")

STEPS_BEFORE_WARNING = 3

_T = TypeVar("_T")


class CreditMixin:
    """Stands before `GRPOTrainer`, or a subclass of it that keeps its loss, and makes its advantages those of creditd.

    Attributes:
        credit_request_ids: Identities of the requests to a service whose answers this run was trained on, in order.
    """

    credit_request_ids: list[str]

    def __init__(self, *args: Any, credit: CreditConfig | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_up_credit(credit or CreditConfig())

    def _set_up_credit(self: Any, config: CreditConfig) -> None:
        """Refuse what cannot work, and get ready to ask."""
        check_loss(self)
        places = [place for place, func in enumerate(self.reward_funcs) if isinstance(func, CandidateReward)]
        if len(places) != 1:
            raise ValueError(f"got {len(places)} candidate rewards among reward_funcs; expected exactly one")
        self._candidate_place = places[0]
        check_settings(self, config, self._candidate_place)
        self._candidate_reward: CandidateReward = self.reward_funcs[self._candidate_place]
        self._creditor = Creditor(config, model=self._candidate_reward.model)
        self._answered: Answered | None = None
        self._generated: tuple[Any, Any, Any] | None = None
        self._scored: tuple[list[list[int]], torch.Tensor] | None = None
        self._last_call_s: float | None = None
        self._large_shares: int | None = 0
        self.credit_request_ids = []
        tokenizer = _tokenizer_of(self.processing_class)
        ends = {*self.eos_token_ids, tokenizer.pad_token_id}
        self._candidate_reward.bind(self._creditor, tokenizer, ends, self.max_completion_length)

    def _generate(self: Any, prompts: list[Any]) -> Any:
        generated = super()._generate(prompts)
        self._generated = tuple(generated[:3])
        return generated

    def _calculate_rewards(
        self: Any, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: Any
    ) -> torch.Tensor:
        generated, self._generated = self._generated, None
        if generated is None or not _same_tokens(generated[1], completion_ids_list):
            raise ValueError(
                f"{_overrider(self)} has completions scored that are not those of its _generate; expected the same "
                "tokens in the same order, because only _generate knows which of them the policy wrote"
            )
        prompt_ids, ids, mask = generated
        self._candidate_reward.expect(Generation(prompt_ids, None if mask is None else _filled_up(mask, ids)))
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._candidate_reward.model is not None:
            rewards = self._scored_by_model(prompts, completion_ids_list, rewards)
        self._scored = (completion_ids_list, rewards)
        return rewards

    def _scored_by_model(self: Any, prompts: list[Any], ids: list[list[int]], rewards: torch.Tensor) -> torch.Tensor:
        """Rewards of all processes with the utilities that the service found; its credit is kept for later."""
        found = self._candidate_reward.take()
        whole, weight = _set_rewards(rewards[self._own(ids)], self.reward_weights, self._candidate_place)

        def rollouts() -> list[Rollout]:
            columns = zip(ids, found, whole, prompts, strict=True)
            return [
                Rollout(len(row), candidates.texts, candidates.spans, scored, reward, 0.0, readable(prompt))
                for row, (candidates, scored), reward, prompt in columns
            ]

        everyone = [rollout for part in self._by_all(rollouts) for rollout in part]
        group_size = self.num_generations if self.model.training else self.num_generations_eval
        step = self.state.global_step
        answered = self._by_one(lambda: self._creditor.answer(everyone, group_size, step, set_reward_weight=weight))
        self._answered = answered
        known = [np.nan if value is None else value for value in answered.utilities]
        rewards = rewards.clone()
        rewards[:, self._candidate_place] = torch.tensor(known, dtype=rewards.dtype, device=rewards.device)
        return rewards

    def _own(self: Any, ids: list[list[int]]) -> slice:
        """Rows of this process among those of all."""
        rank = self.accelerator.process_index
        return slice(rank * len(ids), (rank + 1) * len(ids))

    def _generate_and_score_completions(self: Any, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = super()._generate_and_score_completions(inputs)
        (ids, rewards), self._scored = self._scored, None
        answered, self._answered = self._answered, None
        found = self._candidate_reward.take() if answered is None else []
        training = self.model.training
        if not training:
            self._last_call_s = None  # what lies between two calls is then not one step
            if not self._creditor.config.credit_in_eval:
                return out
        credited = self._settled(answered, out, ids) if answered else self._asked(found, out, ids, rewards)
        credited.metrics["credit/seconds"] += self._candidate_reward.seconds
        out["advantages"] = _filled(out, credited.token_advantages[self._own(ids)])
        self._log_credit(credited, "train" if training else "eval")
        return out

    def _settled(self: Any, answered: Answered, out: dict[str, Any], ids: list[list[int]]) -> Credited:
        """The credit that came with the rewards, now that TRL has advantages of its own."""

        def plain() -> list[float]:
            _check_rows(out, ids, _overrider(self))
            return out["advantages"].tolist()

        return self._creditor.settle(answered, [base for part in self._by_all(plain) for base in part])

    def _asked(
        self: Any, found: list[tuple[Found, Rewards]], out: dict[str, Any], ids: list[list[int]], rewards: torch.Tensor
    ) -> Credited:
        """The credit of candidates whose rewards are known."""
        whole, weight = _set_rewards(rewards[self._own(ids)], self.reward_weights, self._candidate_place)

        def rollouts() -> list[Rollout]:
            _check_rows(out, ids, _overrider(self))
            columns = zip(ids, found, whole, out["advantages"].tolist(), strict=True)
            return [
                Rollout(len(row), candidates.texts, candidates.spans, scored, reward, base)
                for row, (candidates, scored), reward, base in columns
            ]

        everyone = [rollout for part in self._by_all(rollouts) for rollout in part]
        group_size = self.num_generations if self.model.training else self.num_generations_eval
        step = self.state.global_step
        return self._by_one(lambda: self._creditor.credit(everyone, group_size, step, set_reward_weight=weight))

    def _by_all(self: Any, make: Callable[[], _T]) -> list[_T]:
        """What each process makes, process after process; where one fails, all raise."""
        if self.accelerator.num_processes == 1:
            return [make()]
        made, failure = _attempt(make)
        parcels: list[Any] = gather_object([made if failure is None else _transportable(failure)])
        _raise_any(parcels, failure)
        return parcels

    def _by_one(self: Any, make: Callable[[], _T]) -> _T:
        """What the main process makes; where it fails, all raise. A group may span processes, so one of them asks."""
        if self.accelerator.num_processes == 1:
            return make()
        parcel: list[Any] = [None]
        failure: Exception | None = None
        if self.accelerator.is_main_process:
            made, failure = _attempt(make)
            parcel = [made if failure is None else _transportable(failure)]
        broadcast_object_list(parcel)
        _raise_any(parcel, failure)
        answer: _T = parcel[0]
        return answer

    def _log_credit(self: Any, credited: Credited, mode: str) -> None:
        """Put the metrics where TRL's own are, and warn once when the credit takes too much of the step."""
        metrics = dict(credited.metrics)
        now = time.perf_counter()
        if self._last_call_s is not None and mode == "train":
            share = metrics["credit/seconds"] / max(now - self._last_call_s, 1e-9)
            metrics["credit/share_of_step"] = share
            limit = self._creditor.config.max_credit_share
            if self._large_shares is not None:
                self._large_shares = self._large_shares + 1 if limit is not None and share > limit else 0
            if self._large_shares == STEPS_BEFORE_WARNING and self.accelerator.is_main_process:
                self._large_shares = None  # said once
                warnings.warn(
                    f"credit took more than {limit:.0%} of each of the last {STEPS_BEFORE_WARNING} steps "
                    f"({metrics['credit/seconds']:.2f} s in this one); a service nearer to the trainer helps, and "
                    "CreditConfig(max_credit_share=…) changes when this is said",
                    RuntimeWarning,
                    stacklevel=2,
                )
        self._last_call_s = now if mode == "train" else None
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        if credited.request_id is not None and mode == "train":
            self.credit_request_ids.append(credited.request_id)
            log.info("step %d: credit of request %s", self.state.global_step, credited.request_id)
        table = self._logs["advantages"]
        for _ in range(min(len(credited.token_advantages), len(table))):
            table.pop()
        table.extend(float(np.mean(row)) if len(row) else 0.0 for row in credited.token_advantages)


class CreditGRPOTrainer(CreditMixin, GRPOTrainer):
    """`GRPOTrainer` whose advantages come from creditd; takes one more argument, `credit`."""


def attach(trainer: GRPOTrainer, credit: CreditConfig | None = None) -> GRPOTrainer:
    """Make a trainer that exists already use creditd.

    Args:
        trainer: A `GRPOTrainer` with one `CandidateReward` among its reward functions.
        credit: How to ask.

    Returns:
        The same object, whose class now has the mixin before it.

    Raises:
        TypeError: If it is no `GRPOTrainer`, or has credit already.
        ValueError: If the trainer's settings would lose the credit.
    """
    kind = type(trainer)
    if isinstance(trainer, CreditMixin):
        raise TypeError(f"got a {kind.__name__}, which has credit already; expected a GRPOTrainer without it")
    if not isinstance(trainer, GRPOTrainer):
        raise TypeError(f"got a {kind.__name__}; expected a GRPOTrainer, whose loss takes advantages of shape (B, T)")
    trainer.__class__ = type(f"Credit{kind.__name__}", (CreditMixin, kind), {})
    try:
        trainer._set_up_credit(credit or CreditConfig())  # noqa: SLF001
    except BaseException:
        trainer.__class__ = kind  # whatever stopped the set-up is raised again, and the trainer is as it was
        raise
    return trainer


def _tokenizer_of(processing_class: Any) -> PreTrainedTokenizerBase:
    """The tokenizer, also of a processor for several modalities."""
    tokenizer: PreTrainedTokenizerBase = getattr(processing_class, "tokenizer", processing_class)
    return tokenizer


def _overrider(trainer: Any) -> str:
    """Name of the class, the adapter's own left out, whose way of generating and scoring the trainer has."""
    methods = {"_generate_and_score_completions", "_calculate_rewards", "_generate"}
    kinds = (kind for kind in type(trainer).__mro__ if kind is not CreditMixin and methods & vars(kind).keys())
    return next(kinds, GRPOTrainer).__name__


def _same_tokens(generated: Sequence[Sequence[int]], scored: Sequence[Sequence[int]]) -> bool:
    return generated is scored or [list(row) for row in generated] == [list(row) for row in scored]


def _filled_up(mask: Sequence[Sequence[int]], ids: Sequence[Sequence[int]]) -> list[list[int]]:
    """For each token 1 if the policy wrote it; TRL takes that to be true of all tokens which a mask does not reach."""
    return [[*given, *[1] * (len(row) - len(given))] for given, row in zip(mask, ids, strict=True)]


def _set_rewards(
    rewards: torch.Tensor, weights: torch.Tensor, candidate_place: int
) -> tuple[list[float | None], float]:
    """Rewards of whole responses, without the candidates' own column, and the weight of their advantage.

    The rewards are TRL's weighted sum of what the functions gave, in units of the largest weight, None where none of
    them gave anything; that weight is the advantage's, because standardising a group takes it away. So a function whose
    weight is no larger than another's, and which says the same of every response, changes nothing.
    """
    others = [place for place in range(rewards.shape[1]) if place != candidate_place and weights[place] != 0]
    if not others:
        return [None] * len(rewards), 0.0
    given = rewards[:, others].double()
    of_each = weights[others].to(given)
    largest = float(of_each.abs().max())
    weighted = (given * (of_each / largest)).nansum(dim=1).tolist()
    absent = torch.isnan(given).all(dim=1).tolist()
    return [None if missing else value for value, missing in zip(weighted, absent, strict=True)], largest


def _check_rows(out: dict[str, Any], ids: list[list[int]], who: str) -> None:
    """Refuse rows of the output that are not the completions that were scored: their advantages would be others'."""
    written, mask, base = out["completion_ids"], out["completion_mask"], out["advantages"]
    if len(written) != len(ids) or base.shape != (len(ids),):
        raise ValueError(
            f"{who} returned {len(written)} completions with advantages of shape {tuple(base.shape)}; "
            f"expected the {len(ids)} that were scored, with one advantage each"
        )
    for row, expected in enumerate(ids):
        n_tokens = len(expected)
        if written[row, :n_tokens].tolist() != list(expected) or mask[row, n_tokens:].any():
            raise ValueError(f"{who} returned other tokens in row {row}; expected the completion that was scored there")


def _attempt(make: Callable[[], _T]) -> tuple[_T | None, Exception | None]:
    try:
        return make(), None
    except Exception as error:  # noqa: BLE001 - all processes raise it
        return None, error


def _transportable(error: Exception) -> Exception:
    """The error as other processes can be sent it: the client's own travel whole, of any other its name and message."""
    return error if isinstance(error, CreditdError) else RuntimeError(f"{type(error).__name__}: {error}")


def _raise_any(parcels: Sequence[Any], own: Exception | None) -> None:
    """Raise what went wrong in any process; where it went wrong, with its traceback."""
    if isinstance(own, CreditdError):
        raise own
    if own is not None:
        raise _transportable(own) from own
    for parcel in parcels:
        if isinstance(parcel, Exception):
            raise parcel


def _filled(out: dict[str, Any], rows: Sequence[np.ndarray[Any, np.dtype[np.float64]]]) -> torch.Tensor:
    """Advantages as TRL's tensor: shape (B, T), float32, exactly 0 on padding and on tokens of tools."""
    ids = out["completion_ids"]
    advantages = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
    for row, values in enumerate(rows):
        advantages[row, : len(values)] = torch.from_numpy(np.asarray(values, dtype=np.float32))
    if (tool_mask := out.get("tool_mask")) is not None:
        advantages = advantages * tool_mask
    if not torch.isfinite(advantages).all():
        row = int(torch.isfinite(advantages).all(dim=1).logical_not().nonzero()[0])
        raise ValueError(f"an advantage of row {row} is not finite; expected a number for each token")
    return advantages
