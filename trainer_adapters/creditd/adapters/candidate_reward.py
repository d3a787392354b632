"""A reward function for the candidates of completions, in the place where a trainer takes one for completions."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias

from creditd.adapters.completions import Found, Reading, Thinking, Turns, find_candidates
from creditd.adapters.credit_config import CreditConfig
from creditd.adapters.credit_reward import CreditReward, OtherRewards, is_async
from creditd.adapters.creditors import Answered
from creditd.adapters.prompts import readable
from creditd.adapters.rollouts import Creditor, Rollout
from creditd.credit.candidate_parsers import parser_of

Rewards: TypeAlias = tuple[float | None, ...]

_SHOWN = 60
"""Characters of a wrong value that an error repeats."""


class CandidateReward(CreditReward):
    """A reward function for candidates, in the place of one for completions; give exactly one to each trainer.

    TRL calls it like any other reward function and logs the utility of each set as its reward. A completion whose
    utility is unknown counts for nothing, whatever the other reward functions gave it.

    Args:
        function: Called as `function(prompts, candidates, completions, **columns)`, where `candidates` holds the parsed
            texts of each completion; returns, for each, one reward or None per candidate. May be `async`. Or a string,
            the id of a reward model of the service: it scores each candidate as an answer to the completion's prompt,
            in the same request that gives the credit, and the utilities in its answer are what TRL logs.
        parser: How candidates are written: `{"type": "numbered"}`, bullets, json_array, tags, regex.
        name: What TRL calls it in its log; None takes the function's name, or the model's id.
        turns: Where tools or an environment write between the policy's turns: `last` takes the candidates of the last
            turn that has any, `all` those of every turn. What the policy did not write is never parsed.
        thinking: `detect` knows a completion that begins inside the thinking by the `<think>` that ends its prompt, and
            finds no candidate before `</think>`; `opened`: they all begin there; `ignored`: these tags mean nothing.

    Attributes:
        model: Id of the reward model, or None for a function.
        seconds: What finding the candidates and their utilities took in the last call, without the function.

    Raises:
        ValueError: If the parser or an option is unknown.
        TypeError: If the function is none.
    """

    def __init__(
        self,
        function: Callable[..., Any] | str,
        parser: Mapping[str, object],
        *,
        name: str | None = None,
        turns: Turns = "last",
        thinking: Thinking = "detect",
    ) -> None:
        super().__init__(function, name, "candidate reward")
        self.reading = Reading(parser_of(parser), turns, thinking)
        self._creditor: Creditor | None = None
        self._scored: list[tuple[Found, Rewards]] | None = None
        if (
            self.function is not None
            and is_async(self.function)
            and not inspect.iscoroutinefunction(type(self).__call__)
        ):
            if type(self).__call__ is not CandidateReward.__call__:
                raise TypeError(
                    f"got an async function for {type(self).__name__}, whose own __call__ is not; expected one"
                )
            self.__class__ = _awaiting(type(self))  # TRL looks at __call__ to tell what it has to await

    @property
    def creditor(self) -> Creditor:
        """Who values the sets."""
        if self._creditor is None:
            raise RuntimeError(
                "a CandidateReward works in a CreditGRPOTrainer, after attach(trainer), or in a LoopCredit"
            )
        return self._creditor

    @property
    def has_rewards(self) -> bool:
        """A function says what candidates are worth; of a model the answer does."""
        return self.function is not None

    def ready(self, config: CreditConfig) -> None:
        """Make the creditor."""
        self._creditor = Creditor(config, model=self.model)

    def rollouts(self, ids: Sequence[Sequence[int]], prompts: Sequence[Any], others: OtherRewards) -> list[Rollout]:
        """Candidates and rewards of the completions of the last call, once."""
        if self._scored is None:
            raise RuntimeError("the candidate reward was not called since the last time")
        scored, self._scored = self._scored, None
        read = self.model is not None
        return [
            Rollout(len(row), found.texts, found.spans, rewards, other, 0.0, readable(prompt) if read else None)
            for row, (found, rewards), other, prompt in zip(ids, scored, others.values, prompts, strict=True)
        ]

    def answer(
        self, rollouts: Sequence[Rollout], group_size: int, step: int, others: OtherRewards, *, with_credit: bool
    ) -> Answered:
        """What the creditor says; the candidates' rewards of a model come with their credit, wanted or not."""
        del with_credit
        return self.creditor.answer(rollouts, group_size, step, set_reward_weight=others.largest)

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: object
    ) -> list[float | None]:
        """Utilities of the sets, for TRL's own log and for the plain advantage that a fallback uses.

        Those of a model are zeros here: the mixin puts what the service says in their place before TRL looks at them.
        """
        found = self._find(completion_ids, columns)
        if self.function is None:
            self._scored = [(one, (None,) * len(one.texts)) for one in found]
            return [0.0] * len(found)
        return self._keep(found, self.function(prompts, [list(one.texts) for one in found], completions, **columns))

    def _find(self, completion_ids: list[list[int]], columns: Mapping[str, object]) -> list[Found]:
        if self.model is None and "candidates" in columns:
            raise ValueError(
                f"got data with a column `candidates`, the name under which {self.__name__} receives the parsed ones; "
                "expected another name for the column"
            )
        generation, decode = self.expected(), self.decode
        started = time.perf_counter()
        found = [
            find_candidates(
                ids,
                decode,
                self.reading,
                cut_off=self._is_cut_off(ids) if generation.cut_off is None else generation.cut_off[row],
                prompt=generation.prompts[row],
                written=None if generation.written is None else generation.written[row],
            )
            for row, ids in enumerate(completion_ids)
        ]
        self.seconds = time.perf_counter() - started
        return found

    def _is_cut_off(self, ids: Sequence[int]) -> bool:
        """Whether a completion is as long as it may be, and has no end."""
        return len(ids) >= self.longest and ids[-1] not in self.silent

    def _keep(self, found: list[Found], given: object) -> list[float | None]:
        """Check that rewards and candidates fit, and keep both until the advantages are wanted."""
        rewards = _checked(self.__name__, given, [len(one.texts) for one in found])
        self._scored = list(zip(found, rewards, strict=True))
        started = time.perf_counter()
        utilities = self.creditor.utilities(rewards, [one.texts for one in found])
        self.seconds += time.perf_counter() - started
        return utilities


class _Awaiting(CreditReward):
    """The same for a function that is a coroutine; stands before the class."""

    async def __call__(
        self: Any, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **columns: object
    ) -> list[float | None]:
        """Utilities of the sets."""
        found = self._find(completion_ids, columns)
        given = await self.function(prompts, [list(one.texts) for one in found], completions, **columns)
        utilities: list[float | None] = self._keep(found, given)
        return utilities


def _awaiting(kind: type[CandidateReward]) -> type[CandidateReward]:
    """The class with a call that is a coroutine."""
    return type(kind.__name__, (_Awaiting, kind), {"__doc__": kind.__doc__, "__module__": kind.__module__})


def _checked(name: str, given: object, sizes: Sequence[int]) -> list[Rewards]:
    """Rewards as rows of numbers or None, one row per completion and one entry per candidate."""
    rows = _listed(given)
    if rows is None:
        raise ValueError(
            f"{name} returned {_shown(given)}; expected {len(sizes)} lists, one per completion, of one reward or None "
            "per candidate"
        )
    if len(rows) != len(sizes):
        raise ValueError(f"{name} returned rewards of {len(rows)} completions; expected {len(sizes)}")
    checked: list[Rewards] = []
    for place, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        values = _listed(row)
        expected = f"for completion {place}; expected {size} rewards, one per candidate"
        if values is None:
            raise ValueError(f"{name} returned {_shown(row)} {expected}")
        if len(values) != size:
            raise ValueError(f"{name} returned {len(values)} rewards {expected}")
        checked.append(tuple(_number(name, value, place, candidate) for candidate, value in enumerate(values)))
    return checked


def _listed(given: object) -> list[Any] | None:
    """The entries of a list, an array or a tensor; None of anything else."""
    if isinstance(given, str | bytes | Mapping | AbstractSet) or not hasattr(given, "__iter__"):
        return None
    try:
        return list(given)
    except TypeError:  # an array or a tensor of no axis
        return None


def _number(name: str, value: Any, completion: int, candidate: int) -> float | None:  # noqa: ANN401 - the user's
    """A reward as a number."""
    if value is None:
        return None
    try:
        if not isinstance(value, str | bytes):
            return float(value)
    except (TypeError, ValueError):
        pass  # said below
    raise ValueError(
        f"{name} returned {_shown(value)} for candidate {candidate} of completion {completion}; "
        "expected a number or None"
    )


def _shown(value: object) -> str:
    """A value as an error repeats it."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
