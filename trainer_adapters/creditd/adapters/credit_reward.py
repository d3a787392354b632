"""What stands in the place of one reward function of a trainer and has its advantages come from creditd."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from creditd.adapters.completions import Decode
from creditd.adapters.credit_config import CreditConfig
from creditd.adapters.creditors import Answered, ServiceCreditor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REMEMBERED_TOKENS = 4
_REMEMBERED_TEXTS = 200_000
"""Runs of a few tokens come again and again; their texts are remembered, up to some 50 MB."""


@dataclass(frozen=True)
class Generation:
    """What a trainer knows of the completions that it is about to score.

    Attributes:
        prompts: Tokens before each completion.
        written: For each completion 1 per token that the policy wrote and 0 per other token. None: it wrote them all.
        cut_off: For each completion whether generation ended by its length. None: as the longest length says.
    """

    prompts: Sequence[Sequence[int]]
    written: Sequence[Sequence[int]] | None
    cut_off: Sequence[bool] | None = None


@dataclass(frozen=True)
class OtherRewards:
    """What the other reward functions of a trainer gave.

    Attributes:
        values: Per completion their weighted sum, in units of `largest`; None where none of them gave anything.
        largest: The largest of the magnitudes of their weights; 0 without any.
        own: The weight of the reward function that creditd takes the place of.
    """

    values: Sequence[float | None]
    largest: float
    own: float


class CreditReward(ABC):
    """What a trainer has to know of a reward function of creditd; give exactly one to each trainer.

    Args:
        function: What scores, or the id of a reward model of the service.
        name: What the trainer calls it in its log; None takes the function's name, or the model's id.
        expected: What `function` should have been, for the error.

    Attributes:
        model: Id of the reward model, or None for a function.
        seconds: What reading the completions took in the last call, without the function.

    Raises:
        TypeError: If the function is none.
    """

    def __init__(self, function: Callable[..., Any] | str, name: str | None, expected: str) -> None:
        if not function or not (callable(function) or isinstance(function, str)):
            raise TypeError(f"got {function!r} as the {expected}; expected a function, or the id of a reward model")
        self.function = None if isinstance(function, str) else function
        self.model = function if isinstance(function, str) else None
        self.seconds = 0.0
        self.__name__ = name or self.model or _name_of(function)
        self.longest = 0
        self._bound = False
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._generation: Generation | None = None
        self._decoded: dict[tuple[int, ...], str] = {}
        self.silent: set[int] = set()

    def bind(self, config: CreditConfig, tokenizer: PreTrainedTokenizerBase, silent: set[int], longest: int) -> None:
        """Belong to a trainer.

        Args:
            config: How to ask.
            tokenizer: How tokens are read.
            silent: Tokens that end or fill up a completion: no text; one at its end shows that it is whole.
            longest: Completion tokens at which generation is cut off.

        Raises:
            ValueError: If it belongs to a trainer already, or cannot be asked about in this way.
        """
        if self._bound:
            raise ValueError(
                f"got the {type(self).__name__} {self.__name__} of another trainer; expected one of its own for each, "
                "because it keeps what it found until the trainer asks for it"
            )
        self.ready(config)
        self._bound = True
        self._tokenizer, self.silent, self.longest = tokenizer, silent, longest

    @property
    @abstractmethod
    def creditor(self) -> ServiceCreditor:
        """Who is asked."""

    @property
    @abstractmethod
    def has_rewards(self) -> bool:
        """Whether a call gives the rewards; else it gives zeros, and the answer's utilities come in their place."""

    @abstractmethod
    def ready(self, config: CreditConfig) -> None:
        """Make the creditor, or raise ValueError where what is asked for cannot work."""

    @abstractmethod
    def rollouts(self, ids: Sequence[Sequence[int]], prompts: Sequence[Any], others: OtherRewards) -> list[Any]:
        """The completions of the last call as its creditor sees them.

        Args:
            ids: Their tokens.
            prompts: What they answer, as the trainer has it.
            others: What the other reward functions gave.

        Returns:
            One per completion.
        """

    @abstractmethod
    def answer(
        self, rollouts: Sequence[Any], group_size: int, step: int, others: OtherRewards, *, with_credit: bool
    ) -> Answered:
        """What the creditor says of rollouts of any number of processes.

        Args:
            rollouts: As `rollouts` makes them, in whole groups.
            group_size: G.
            step: The trainer's global step.
            others: Of this process; only the weights are looked at.
            with_credit: Whether token advantages are wanted beside the utilities.

        Returns:
            The answer before the failure policy is applied.
        """

    def expect(self, generation: Generation) -> None:
        """Know what the next call will be about."""
        self._generation = generation

    def expected(self) -> Generation:
        """What this call is about, once."""
        generation, self._generation = self._generation, None
        if self._tokenizer is None or generation is None:
            raise RuntimeError(
                f"a {type(self).__name__} works in a CreditGRPOTrainer, after attach(trainer), or in a LoopCredit"
            )
        return generation

    @property
    def decode(self) -> Decode:
        """How tokens are read: those that end or fill up a completion are left out, all other special ones are text."""
        if self._tokenizer is None:
            raise RuntimeError(
                f"a {type(self).__name__} works in a CreditGRPOTrainer, after attach(trainer), or in a LoopCredit"
            )
        return decoder(self._tokenizer, self.silent, self._decoded)


def decoder(tokenizer: PreTrainedTokenizerBase, silent: set[int], remembered: dict[tuple[int, ...], str]) -> Decode:
    """How tokens are read: those that end or fill up a completion are left out, all other special ones are text.

    Args:
        tokenizer: Of the policy.
        silent: Tokens that are no text.
        remembered: Texts of runs of a few tokens, which grows up to some 50 MB.

    Returns:
        The text of any run of tokens, nothing cleaned up.
    """

    def decode(ids: Sequence[int]) -> str:
        key = tuple(token for token in ids if token not in silent)
        text = remembered.get(key)
        if text is None:
            text = str(tokenizer.decode(key, skip_special_tokens=False, clean_up_tokenization_spaces=False))
            if len(key) <= _REMEMBERED_TOKENS and len(remembered) < _REMEMBERED_TEXTS:
                remembered[key] = text
        return text

    return decode


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call gives a coroutine: a coroutine function, an object whose call is one, or a partial of these."""
    inner = _unwrapped(function)
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None))  # noqa: B004


def _unwrapped(function: object) -> object:
    """What a partial stands for."""
    while isinstance(function, partial):
        function = function.func
    return function


def _name_of(function: object) -> str:
    """What a function, or the class of an object that is called, is called."""
    inner = _unwrapped(function)
    return str(getattr(inner, "__name__", type(inner).__name__))
