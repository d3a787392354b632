"""Credit of candidates or spans for training loops written by hand: the advantages of a batch, token by token.

    from creditd.adapters.loop import CandidateReward, CreditConfig, LoopCredit

    credit = LoopCredit(
        CandidateReward(score, parser={"type": "numbered"}), CreditConfig(), tokenizer=tokenizer, longest=256
    )
    found = credit.advantages(prompts, completion_ids, lengths=lengths, group_size=8, step=step)
    loss = -(found.token_advantages * logps).sum() / found.n_tokens

What is asked, how it is asked and what happens where there is no credit are those of the adapter for TRL, by the same
classes; adapters of other trainers are this one with their own batches around it. Nothing here computes a credit.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass, replace
from itertools import repeat
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from creditd.adapters.credit_config import CreditConfig
from creditd.adapters.credit_reward import CreditReward, Generation, OtherRewards
from creditd.adapters.creditors import Answered, Credited, Floats, reward_metrics
from creditd.adapters.processes import OneProcess, Processes, by_all, by_one
from creditd.adapters.prompts import told_apart
from creditd.adapters.token_rows import in_form_of, lengths_of, prompt_rows, rows_of
from creditd.client import Client, Ragged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoopAdvantages:
    """What a training loop multiplies log-probabilities with.

    Attributes:
        token_advantages: One advantage per token, in the form of the `completion_ids`: lists of floats; of a tensor of
            torch a tensor of its shape, float32, on its device; else an array of their shape, float64. Exactly 0 on
            padding and on tokens that the policy did not write.
        rewards: What each completion is worth by the reward of creditd, without others: the utility of its candidates,
            or the score of the whole; None where nobody knows.
        metrics: Numbers for the loop's log, by the names that the adapter for TRL has.
        request_id: Identity of the request; None unless a service gave the answer.
    """

    token_advantages: Any
    rewards: list[float | None]
    metrics: dict[str, float]
    request_id: str | None


@dataclass(frozen=True)
class _Rows:
    """The completions of this process, as lists."""

    prompts: list[Any]
    ids: list[list[int]]
    before: list[list[int]]
    written: list[list[int]] | None
    cut_off: list[bool] | None
    others: OtherRewards
    columns: dict[str, list[Any]]
    groups: list[bytes]


@dataclass(eq=False)
class _Call:
    """A call that waits for its reward function, until it is done."""

    of: LoopCredit
    is_done: bool = False


_CALLS: ContextVar[tuple[_Call, ...]] = ContextVar("calls", default=())
"""Those within which this runs."""


class LoopCredit:
    """Asks for the credit of batches of whole groups.

    Attributes:
        reward: What was given.

    Args:
        reward: A `CandidateReward` or a `SpanReward`, with a function or the id of a reward model of the service; one
            of its own for each `LoopCredit`.
        credit: How to ask, and what happens where there is no credit. None: the defaults.
        tokenizer: Of the policy: how tokens are read.
        longest: Completion tokens at which generation is cut off; the open candidate of a completion that has as many,
            and does not end with a token of `silent`, is none. None: nothing is cut off.
        silent: Tokens that end or fill up a completion, which are no text. None: the tokenizer's ends and padding.
        processes: Those that train together, each with whole rows of its own: `TorchProcesses()`. The first one asks
            for all; a failure is raised in all. None: one process.

    Raises:
        ValueError: If the choices contradict each other, or no service would take them.
    """

    def __init__(
        self,
        reward: CreditReward,
        credit: CreditConfig | None = None,
        *,
        tokenizer: PreTrainedTokenizerBase,
        longest: int | None = None,
        silent: Collection[int] | None = None,
        processes: Processes | None = None,
    ) -> None:
        if credit is not None and credit.credit_in_eval:
            raise ValueError("got credit_in_eval=True, and a loop asks when it calls; expected it not to call, or to")
        ends = {tokenizer.eos_token_id, tokenizer.pad_token_id} if silent is None else set(silent)
        reward.bind(credit or CreditConfig(), tokenizer, ends, sys.maxsize if longest is None else longest)
        self.reward = reward
        self._processes: Processes = processes or OneProcess()
        self._turn = Lock()

    def advantages(
        self,
        prompts: Sequence[Any],
        completion_ids: Any,  # noqa: ANN401 - lists, an array, a tensor of any framework
        *,
        group_size: int,
        step: int = 0,
        lengths: Any = None,  # noqa: ANN401 - as above
        prompt_ids: Any = None,  # noqa: ANN401 - as above
        prompt_lengths: Any = None,  # noqa: ANN401 - as above
        groups: Sequence[Any] | None = None,
        completion_masks: Any = None,  # noqa: ANN401 - as above
        cut_off: Sequence[Any] | None = None,
        other_rewards: Sequence[float | None] | None = None,
        columns: Mapping[str, Sequence[Any]] | None = None,
    ) -> LoopAdvantages:
        """Advantages of every token of the completions of this process.

        Threads of one process take turns. A reward function may not call this in its turn: in its own thread that is an
        error, in one that it waits for both wait for ever.

        Args:
            prompts: What each of B completions answers: texts, or messages. Rows i·G … i·G + G − 1 of all processes
                together, process after process, answer one prompt.
            completion_ids: Their tokens: B lists, or an array or tensor of shape (B, T), padded on the right.
            group_size: G. The service is told, so that a split group is an error.
            step: Of the optimizer, for schedules.
            lengths: Tokens of each completion, as many as are no padding. None: they are all its own.
            prompt_ids: Tokens before each completion, as the policy read them: B lists, or shape (B, P), padded on the
                left. They tell whether a completion begins inside its thinking. None: it does not.
            prompt_lengths: Tokens of each prompt, counted from the right. None: they are all its own.
            groups: What says which prompt a completion answers, one text or number each. None: the prompts themselves.
            completion_masks: Per completion whether the policy wrote each token, in the form of the tokens; padding is
                not looked at. None: it wrote them all.
            cut_off: Per completion whether generation ended by its length, where the loop knows; its open candidate is
                then none. None: as `longest` says.
            other_rewards: One reward of the whole completion beside creditd's, or None where there is none; with the
                weights of the loop multiplied in.
            columns: One value per completion by name, handed on to the reward function.

        Returns:
            Those of this process, in the form of the tokens.

        Raises:
            ValueError: If something does not fit the tokens, if the rows of a group answer several prompts, or if a
                reward function returned something else than it should.
            RuntimeError: If the reward function itself calls this.
            CreditdError: As the failure policy of `CreditConfig` has it: under `raise` whatever the service or the
                network did.

        Cost:
            One decode per token where that adds up to the text, and one request for all processes.
        """

        def given() -> _Rows:
            return _rows(
                prompts,
                completion_ids,
                lengths_of(completion_ids, lengths),
                None if prompt_ids is None else prompt_rows(prompt_ids, prompt_lengths),
                completion_masks,
                cut_off,
                other_rewards,
                columns,
                groups=groups,
            )

        calls = _CALLS.get()
        if any(call.of is self and not call.is_done for call in calls):
            raise RuntimeError(
                "got a call by the reward function of the same LoopCredit, which waits for that function; expected "
                "another LoopCredit"
            )
        with self._turn:  # a reward remembers what it was called with
            call = _Call(self)
            token = _CALLS.set((*calls, call))
            try:
                own, rewards, credited = self._credited(given, group_size, step)
            finally:
                call.is_done = True
                _CALLS.reset(token)
        rows = [
            row if own.written is None else np.where(np.array(own.written[place], dtype=np.bool_), row, 0.0)
            for place, row in enumerate(credited.token_advantages)
        ]
        return LoopAdvantages(
            token_advantages=in_form_of(completion_ids, Ragged.from_rows(rows)),
            rewards=rewards,
            metrics=credited.metrics,
            request_id=credited.request_id,
        )

    def _credited(
        self, given: Callable[[], _Rows], group_size: int, step: int
    ) -> tuple[_Rows, list[float | None], Credited]:
        """The rows of this process, what they are worth, and their credit."""
        made: list[_Rows] = []

        def prepare() -> list[Any]:
            own = given()
            made.append(own)
            called = self._called(own)
            rollouts = self.reward.rollouts(own.ids, own.prompts, own.others)
            of_process = repeat((self._processes.rank, own.others.largest))
            return list(zip(rollouts, called, own.others.values, own.groups, of_process, strict=False))

        everyone = by_all(self._processes, prepare)
        own = made[0]
        rollouts, called = [one for one, _, _, _, _ in everyone], [reward for _, reward, _, _, _ in everyone]
        beside = [other for _, _, other, _, _ in everyone]
        if len({weight for _, _, _, _, (_, weight) in everyone}) > 1:
            raise ValueError("other_rewards: got them of some processes alone; expected them of all, or of none")
        _check_groups([group for _, _, _, group, _ in everyone], group_size)
        answered = by_one(
            self._processes, lambda: self.reward.answer(rollouts, group_size, step, own.others, with_credit=True)
        )
        rewards = answered.utilities if answered.utilities is not None and not self.reward.has_rewards else called
        credited = self._settled(answered, rewards, beside, group_size)
        credited.metrics["credit/seconds"] += self.reward.seconds
        credited.metrics.update(reward_metrics(rewards))
        begin = sum(rank < self._processes.rank for _, _, _, _, (rank, _) in everyone)
        here = slice(begin, begin + len(own.ids))
        return own, rewards[here], replace(credited, token_advantages=credited.token_advantages[here])

    def _called(self, own: _Rows) -> list[float | None]:
        """What the reward says when it is called as a trainer calls it."""
        self.reward.expect(Generation(own.before, own.written, own.cut_off))
        decode = self.reward.decode
        completions = [decode(row) for row in own.ids]
        called: Any = self.reward
        given = called(own.prompts, completions, own.ids, **own.columns)
        if inspect.isawaitable(given):
            given = _awaited(given)
        found: list[float | None] = list(given)
        return found

    def _settled(
        self,
        answered: Answered,
        rewards: Sequence[float | None],
        others: Sequence[float | None],
        group_size: int,
    ) -> Credited:
        """The failure policy applied, with plain GRPO advantages where it wants them."""
        creditor = self.reward.creditor
        base = [0.0] * len(rewards)
        if creditor.config.on_failure == "group_reward" and any(row is None for row in answered.token_advantages):
            base = _plain(creditor.local, rewards, others, group_size)
        return creditor.settle(answered, base)


def _plain(
    local: Client,
    rewards: Sequence[float | None],
    others: Sequence[float | None],
    group_size: int,
) -> list[float]:
    """GRPO's advantages of the sum of rewards among those of a group that are known; 0 for the others."""
    base = [0.0] * len(rewards)
    for start in range(0, len(rewards), group_size):
        own = range(start, min(start + group_size, len(rewards)))
        sums = {row: (rewards[row] or 0.0) + (others[row] or 0.0) for row in own if rewards[row] is not None}
        rows = [row for row, value in sums.items() if math.isfinite(value)]
        if rows:
            values = [sums[row] for row in rows]
            found: Floats = local.group([values], advantage="grpo").advantages[0]
            for row, value in zip(rows, found.tolist(), strict=True):
                base[row] = value
    return base


def _rows(
    prompts: Sequence[Any],
    completion_ids: Any,  # noqa: ANN401 - as above
    n_tokens: Sequence[int],
    prompt_ids: list[list[int]] | None,
    completion_masks: Any,  # noqa: ANN401 - as above
    cut_off: Sequence[Any] | None,
    other_rewards: Sequence[float | None] | None,
    columns: Mapping[str, Sequence[Any]] | None,
    *,
    groups: Sequence[Any] | None,
) -> _Rows:
    """What was given, as lists that fit each other."""
    ids = [[int(token) for token in row] for row in rows_of(completion_ids, n_tokens, "completion_ids")]
    count = len(ids)
    written = None
    if completion_masks is not None:
        written = [[int(bool(own)) for own in row] for row in rows_of(completion_masks, n_tokens, "completion_masks")]
    before: list[list[int]] = [[]] * count if prompt_ids is None else prompt_ids
    others = [None] * count if other_rewards is None else [None if one is None else float(one) for one in other_rewards]
    named = {name: list(values) for name, values in (columns or {}).items()}
    labels = list(prompts) if groups is None else [one.tolist() if hasattr(one, "tolist") else one for one in groups]
    if groups is not None and not all(isinstance(one, str | bytes | int | float) for one in labels):
        raise ValueError("groups: got something else than texts and numbers; expected one of these per completion")
    apart = [told_apart(label) for label in labels]
    ended = None if cut_off is None else [bool(one) for one in cut_off]
    if ended is not None and len(ended) != count:
        raise ValueError(f"cut_off: got {len(ended)}; expected {count}, one per completion")
    given_by = {"prompts": prompts, "groups": apart, "prompt_ids": before, "other_rewards": others}
    for name, given in {**given_by, **named}.items():
        if len(given) != count:
            raise ValueError(f"{name}: got {len(given)}; expected {count}, one per completion")
    beside = OtherRewards(others, float(other_rewards is not None), 1.0)
    return _Rows(list(prompts), ids, before, written, ended, beside, named, apart)


def _check_groups(groups: Sequence[bytes], group_size: int) -> None:
    """Refuse rows that are no groups: compared with rows of another prompt, a completion has no baseline."""
    for start in range(0, len(groups), group_size):
        found = len(set(groups[start : start + group_size]))
        if found > 1:
            last = min(start + group_size, len(groups)) - 1
            raise ValueError(
                f"got {found} prompts in the group of the rows {start} to {last}; expected one prompt for each "
                f"{group_size} rows, those of all processes together, process after process, or groups, which says "
                "what answers which prompt"
            )


def _awaited(given: Any) -> Any:  # noqa: ANN401 - a coroutine
    """What a coroutine returns, also where a loop of events runs already."""

    async def wait() -> Any:  # noqa: ANN401 - as above
        return await given

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, asyncio.run, wait()).result()
