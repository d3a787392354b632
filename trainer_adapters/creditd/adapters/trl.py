"""Candidate credit in TRL's GRPOTrainer: two lines in a script that trains already.

    trainer = CreditGRPOTrainer(                                  # was: GRPOTrainer(
        …, reward_funcs=CandidateReward(score, parser={"type": "numbered"}), …)

`score(prompts, candidates, completions, **columns)` returns one reward, or None, per candidate. The loss of TRL takes
advantages of shape (B, T) as they are; the mixin replaces them after TRL has generated and scored.
Tested with TRL 1.14.2 and 1.16.0.
"""

from __future__ import annotations

import inspect
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from trl import GRPOTrainer
from typing_extensions import Self

from creditd.adapters.rollouts import (
    Anneal,
    CreditConfig,
    Credited,
    Creditor,
    Rollout,
    anneal,
    find_candidates,
)
from creditd.client import CreditdError
from creditd.credit.candidate_parsers import parser_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Anneal", "CandidateReward", "CreditConfig", "CreditGRPOTrainer", "CreditMixin", "anneal", "attach"]

log = logging.getLogger("creditd.adapters.trl")

Rewards: TypeAlias = Sequence[Sequence[float | None]]
STEPS_BEFORE_WARNING = 3
_OLDEST, _NEWEST = (1, 14), (1, 16)
"""Releases of TRL whose seams the tests hold."""
_REMEMBERED_TOKENS = 4
_REMEMBERED_TEXTS = 200_000
"""Runs of a few tokens come again and again; their texts are remembered, up to some 50 MB."""


class CandidateReward:
    """A reward function for candidates, in the place of one for completions; give exactly one to the trainer.

    TRL calls it like any other reward function and logs the utility of each set as its reward.

    Args:
        function: Called as `function(prompts, candidates, completions, **columns)`, where `candidates` holds the parsed
            texts of each completion; returns one reward or None per candidate. May be `async`.
        parser: How candidates are written: `{"type": "numbered"}`, bullets, json_array, tags, regex.
        name: What TRL calls it in its log; None takes the function's name.

    Attributes:
        seconds: What finding the candidates and their utilities took in the last call, without the function.
    """

    def __new__(cls, function: Callable[..., Any], *_: object, **__: object) -> Self:
        """An object whose call is a coroutine if the function's is, because TRL tells them apart by that."""
        if cls is CandidateReward and inspect.iscoroutinefunction(function):
            return super().__new__(_AsyncCandidateReward)  # type: ignore[return-value]
        return super().__new__(cls)

    def __init__(self, function: Callable[..., Any], parser: Mapping[str, object], *, name: str | None = None) -> None:
        self.function = function
        self.parser = parser_of(parser)
        self.__name__ = name or getattr(function, "__name__", type(function).__name__)
        self._creditor: Creditor | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._found: list[tuple[tuple[str, ...], tuple[tuple[int, int], ...], tuple[float | None, ...]]] | None = None
        self._decoded: dict[tuple[int, ...], str] = {}
        self._ends: set[int] = set()
        self._longest = 0
        self.seconds = 0.0

    def bind(self, creditor: Creditor, tokenizer: PreTrainedTokenizerBase, ends: set[int], longest: int) -> None:
        """Tell who values the sets, how tokens are read, which ones end a completion, and how long it can be."""
        self._creditor, self._tokenizer = creditor, tokenizer
        self._ends, self._longest = ends, longest

    def take(self) -> list[tuple[tuple[str, ...], tuple[tuple[int, int], ...], tuple[float | None, ...]]]:
        """Texts, token ranges and rewards of the completions of the last call, once."""
        if self._found is None:
            raise RuntimeError("the candidate reward was not called since the last time")
        found, self._found = self._found, None
        return found

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        """Utilities of the sets, for TRL's own log and for the plain advantage that a fallback uses."""
        parsed = self._parse(completion_ids)
        rewards = self.function(prompts, [list(texts) for texts, _ in parsed], completions, **columns)
        return self._keep(parsed, rewards)

    def _parse(self, completion_ids: list[list[int]]) -> list[tuple[tuple[str, ...], tuple[tuple[int, int], ...]]]:
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise RuntimeError("a CandidateReward works in a CreditGRPOTrainer, or after attach(trainer)")

        def decode(ids: Sequence[int]) -> str:
            key = tuple(ids)
            text = self._decoded.get(key)
            if text is None:
                text = str(tokenizer.decode(key, skip_special_tokens=True, clean_up_tokenization_spaces=False))
                if len(key) <= _REMEMBERED_TOKENS and len(self._decoded) < _REMEMBERED_TEXTS:
                    self._decoded[key] = text
            return text

        started = time.perf_counter()
        found = [
            find_candidates(ids, decode, self.parser, cut_off=len(ids) >= self._longest and ids[-1] not in self._ends)
            for ids in completion_ids
        ]
        self.seconds = time.perf_counter() - started
        return found

    def _keep(
        self, parsed: list[tuple[tuple[str, ...], tuple[tuple[int, int], ...]]], rewards: Rewards
    ) -> list[float | None]:
        """Check that rewards and candidates fit, and keep both until the advantages are wanted."""
        if len(rewards) != len(parsed):
            raise ValueError(f"{self.__name__} returned rewards of {len(rewards)} completions; expected {len(parsed)}")
        for row, ((texts, _), given) in enumerate(zip(parsed, rewards, strict=True)):
            if len(given) != len(texts):
                raise ValueError(
                    f"{self.__name__} returned {len(given)} rewards for completion {row}; "
                    f"expected {len(texts)}, one per candidate"
                )
        plain = [tuple(None if reward is None else float(reward) for reward in row) for row in rewards]
        self._found = [(texts, spans, given) for (texts, spans), given in zip(parsed, plain, strict=True)]
        if self._creditor is None:
            raise RuntimeError("a CandidateReward works in a CreditGRPOTrainer, or after attach(trainer)")
        started = time.perf_counter()
        utilities = self._creditor.utilities(plain, [texts for texts, _ in parsed])
        self.seconds += time.perf_counter() - started
        return utilities


class _AsyncCandidateReward(CandidateReward):
    """The same for a function that is a coroutine."""

    async def __call__(  # type: ignore[override]
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: Any
    ) -> list[float | None]:
        """Utilities of the sets."""
        parsed = self._parse(completion_ids)
        rewards = await self.function(prompts, [list(texts) for texts, _ in parsed], completions, **columns)
        return self._keep(parsed, rewards)


class CreditMixin:
    """Stands before `GRPOTrainer`, or a subclass of it that keeps its loss, and makes its advantages those of creditd.

    Attributes:
        credit_request_ids: Identities of the requests whose answers this run was trained on, in order.
    """

    credit_request_ids: list[str]

    def __init__(self, *args: Any, credit: CreditConfig | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_up_credit(credit or CreditConfig())

    def _set_up_credit(self: Any, config: CreditConfig) -> None:
        """Refuse what cannot work, and get ready to ask."""
        _check_trainer(self)
        places = [place for place, func in enumerate(self.reward_funcs) if isinstance(func, CandidateReward)]
        if len(places) != 1:
            raise ValueError(f"got {len(places)} candidate rewards among reward_funcs; expected exactly one")
        weight = float(self.reward_weights[places[0]])
        if weight != 1.0:
            raise ValueError(
                f"got reward weight {weight:g} for the candidate reward; expected 1: credit has the scale that "
                "CreditConfig.advantage gives it, and the other rewards are weighed against it"
            )
        self._candidate_place = places[0]
        self._creditor = Creditor(config)
        self._candidate_reward = self.reward_funcs[places[0]]
        tokenizer = _tokenizer_of(self.processing_class)
        ends = {*self.eos_token_ids, tokenizer.pad_token_id}
        self._candidate_reward.bind(self._creditor, tokenizer, ends, self.max_completion_length)
        self._scored: tuple[list[list[int]], torch.Tensor] | None = None
        self._last_call_s: float | None = None
        self._large_shares: int | None = 0
        self.credit_request_ids = []

    def _calculate_rewards(
        self: Any, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: Any
    ) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._scored = (completion_ids_list, rewards)
        return rewards

    def _generate_and_score_completions(self: Any, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = super()._generate_and_score_completions(inputs)
        (ids, rewards), self._scored = self._scored, None
        found = self._candidate_reward.take()
        training = self.model.training
        config: CreditConfig = self._creditor.config
        if not training and not config.credit_in_eval:
            return out
        group_size = self.num_generations if training else self.num_generations_eval
        rank = self.accelerator.process_index
        own = slice(rank * len(ids), (rank + 1) * len(ids))
        whole, weight = _set_rewards(rewards[own], self.reward_weights, self._candidate_place)
        written = _written_by_policy(ids, out.get("tool_mask"))
        rollouts = [
            Rollout(len(row), *_played(candidates, mask), reward, float(base))
            for row, candidates, mask, reward, base in zip(ids, found, written, whole, out["advantages"], strict=True)
        ]
        credited = self._credit_everywhere(rollouts, group_size, weight)
        credited.metrics["credit/seconds"] += self._candidate_reward.seconds
        out["advantages"] = _filled(out, credited.token_advantages[own])
        self._log_credit(credited, "train" if training else "eval")
        return out

    def _credit_everywhere(self: Any, rollouts: list[Rollout], group_size: int, weight: float) -> Credited:
        """Ask once for the rollouts of all processes, because a group may span them; all raise together."""
        step = self.state.global_step
        if self.accelerator.num_processes == 1:
            return self._creditor.credit(rollouts, group_size, step, set_reward_weight=weight)
        everyone = gather_object(rollouts)
        parcel: list[Any] = [None]
        if self.accelerator.is_main_process:
            try:
                parcel = [self._creditor.credit(everyone, group_size, step, set_reward_weight=weight)]
            except Exception as error:  # noqa: BLE001 - sent to all processes, which raise it
                parcel = [_transportable(error)]
        broadcast_object_list(parcel)
        if isinstance(parcel[0], Exception):
            raise parcel[0]
        credited: Credited = parcel[0]
        return credited

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
        self._last_call_s = now
        for name, value in metrics.items():
            self._metrics[mode][name].append(value)
        if credited.request_id is not None:
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
    except Exception:
        trainer.__class__ = kind
        raise
    return trainer


def _check_trainer(trainer: Any) -> None:
    """Refuse settings under which credit per token is lost without an error."""
    installed = version("trl")
    if not _OLDEST <= tuple(int(part) for part in installed.split(".")[:2]) <= _NEWEST:
        warnings.warn(
            f"creditd's adapter is tested with TRL {'.'.join(map(str, _OLDEST))} to {'.'.join(map(str, _NEWEST))}; "
            f"this is {installed}",
            RuntimeWarning,
            stacklevel=3,
        )
    level, loss = trainer.args.importance_sampling_level, trainer.args.loss_type
    if level == "sequence" and loss not in {"cispo", "vespo"}:
        raise ValueError(
            f"importance_sampling_level='sequence' with loss_type={loss!r} trains on the mean advantage of each row, "
            "so the credit of tokens is lost; expected importance_sampling_level='token'"
        )
    if type(trainer)._compute_loss is not GRPOTrainer._compute_loss:  # noqa: SLF001
        raise ValueError(f"{type(trainer).__name__} has a loss of its own; expected that of GRPOTrainer")


def _tokenizer_of(processing_class: Any) -> PreTrainedTokenizerBase:
    """The tokenizer, also of a processor for several modalities."""
    tokenizer: PreTrainedTokenizerBase = getattr(processing_class, "tokenizer", processing_class)
    return tokenizer


def _set_rewards(
    rewards: torch.Tensor, weights: torch.Tensor, candidate_place: int
) -> tuple[list[float | None], float]:
    """Rewards of whole responses, without the candidates' own column, and the weight of their advantage.

    The rewards are the weighted mean of what the functions gave, None where none of them gave anything, and the weight
    is the sum of the functions' weights: standardising the rewards of a group would otherwise take their weight away.
    """
    others = [place for place in range(rewards.shape[1]) if place != candidate_place and weights[place] != 0]
    if not others:
        return [None] * len(rewards), 0.0
    given = rewards[:, others].double()
    of_each = weights[others].to(given)
    total = float(of_each.abs().sum())
    weighted = ((given * of_each).nansum(dim=1) / total).tolist()
    absent = torch.isnan(given).all(dim=1).tolist()
    return [None if missing else value for value, missing in zip(weighted, absent, strict=True)], total


def _written_by_policy(ids: list[list[int]], tool_mask: torch.Tensor | None) -> list[list[bool]]:
    """For each token whether the policy wrote it, and not a tool."""
    if tool_mask is None:
        return [[True] * len(row) for row in ids]
    return [[bool(one) for one in mask[: len(row)]] for row, mask in zip(ids, tool_mask.tolist(), strict=True)]


def _played(
    candidates: tuple[tuple[str, ...], tuple[tuple[int, int], ...], tuple[float | None, ...]], written: list[bool]
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...], tuple[float | None, ...]]:
    """The candidates that the policy wrote, at least in part: what only a tool said is not the policy's to answer."""
    kept = [(text, span, given) for text, span, given in zip(*candidates, strict=True) if any(written[slice(*span)])]
    return tuple(text for text, _, _ in kept), tuple(span for _, span, _ in kept), tuple(given for _, _, given in kept)


def _transportable(error: Exception) -> Exception:
    """The error as other processes can be sent it: the client's own travel whole, of any other its name and message."""
    return error if isinstance(error, CreditdError) else RuntimeError(f"{type(error).__name__}: {error}")


def _filled(out: dict[str, Any], rows: Sequence[np.ndarray[Any, np.dtype[np.float64]]]) -> torch.Tensor:
    """Advantages as TRL's tensor: shape (B, T), float32, exactly 0 on padding and on tokens of tools."""
    ids = out["completion_ids"]
    advantages = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
    for row, values in enumerate(rows):
        if len(values) > ids.shape[1]:
            raise ValueError(f"row {row} has {len(values)} advantages; expected at most {ids.shape[1]}, its tokens")
        advantages[row, : len(values)] = torch.from_numpy(np.asarray(values, dtype=np.float32))
    if (tool_mask := out.get("tool_mask")) is not None:
        advantages = advantages * tool_mask
    if not torch.isfinite(advantages).all():
        raise ValueError("an advantage is not finite")
    return advantages
