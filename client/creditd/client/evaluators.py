"""Utilities that the caller evaluates: how a function is called for many coalitions, and the step that asks for it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

Subset: TypeAlias = Sequence[Any]
"""The candidates of one coalition, in the order of their set; empty for v(∅)."""


@dataclass(frozen=True)
class Evaluator:
    """A utility as a function, and how it wants to be called.

    Attributes:
        function: `f(candidates) -> float`: what some of a set's candidates are worth together, reward units; the empty
            list is v(∅). With `batched`, `f(list of such lists) -> list of floats`. For `scar` it is `f(prompt, text)
            -> float`, and with `batched` `f(prompts, texts) -> list of floats`. A coroutine function needs
            `AsyncClient`. NaN says that there is no value: the set then fails, and the others do not; `Client.scar`
            says what a completion then gets.
        batched: Whether it takes many coalitions in one call.
        batch_size: Coalitions of one call, when batched.
        concurrency: Calls that run at a time: threads, or awaited coroutines.
        progress: Called as `progress(done, planned)` after each call, from the thread of the caller; numbers of
            coalitions over all sets. With a target standard error, fewer than planned are evaluated.

    Raises:
        ValueError: If a number makes no sense.
        TypeError: If the function cannot be called.
    """

    function: Callable[..., Any]
    batched: bool = False
    batch_size: int = 256
    concurrency: int = 1
    progress: Callable[[int, int], object] | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function: got {type(self.function).__name__}; expected something to call")
        for name in ("batch_size", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected at least 1")

    @property
    def is_async(self) -> bool:
        """Whether calling it gives something to await."""
        call = getattr(self.function, "__call__", None)  # noqa: B004 - the method itself may be a coroutine function
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(call)


@dataclass(frozen=True)
class Evaluate:
    """Evaluate these coalitions and come back with one number each.

    Attributes:
        evaluator: What to call, and how.
        subsets: Candidates of each coalition.
        done: Coalitions evaluated before.
        planned: Coalitions that are evaluated altogether, at most.
    """

    evaluator: Evaluator
    subsets: Sequence[Subset]
    done: int
    planned: int

    def calls(self) -> list[Any]:
        """The argument of each call."""
        size = self.evaluator.batch_size
        if not self.evaluator.batched:
            return [list(subset) for subset in self.subsets]
        return [
            [list(subset) for subset in self.subsets[start : start + size]]
            for start in range(0, len(self.subsets), size)
        ]

    def collected(self, argument: Any, answer: Any, values: list[float]) -> None:  # noqa: ANN401 - the caller's types
        """Add what a call gave to the values, and report progress.

        Args:
            argument: What the function was called with.
            answer: What it gave.
            values: Receives one float per coalition.

        Raises:
            TypeError: If it gave something else than numbers.
            ValueError: If it gave another number of them.
        """
        if inspect.isawaitable(answer):
            raise TypeError(f"{self._name} gave something to await; expected numbers: use AsyncClient")
        found = answer.tolist() if hasattr(answer, "tolist") else answer
        if self.evaluator.batched:
            if isinstance(found, (str, bytes)) or not isinstance(found, Sequence):
                raise TypeError(
                    f"{self._name} gave {type(answer).__name__}; expected a list of {len(argument)} numbers"
                )
            if len(found) != len(argument):
                raise ValueError(f"{self._name} gave {len(found)} numbers; expected {len(argument)}, one per coalition")
            values.extend(self._number(value) for value in found)
        else:
            values.append(self._number(found))
        if self.evaluator.progress is not None:
            self.evaluator.progress(self.done + len(values), self.planned)

    @property
    def _name(self) -> str:
        return str(getattr(self.evaluator.function, "__name__", type(self.evaluator.function).__name__))

    def _number(self, value: Any) -> float:  # noqa: ANN401 - the caller's type
        if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
            raise TypeError(f"{self._name} gave {type(value).__name__}; expected a number")
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{self._name} gave an integer that no float holds") from None


def evaluated(step: Evaluate) -> list[float]:
    """The utilities that a step asks for, by calls in this thread or in some.

    Args:
        step: What to evaluate.

    Returns:
        One float per coalition, in their order.

    Raises:
        TypeError: If the function is a coroutine function, or gives something else than numbers.
        ValueError: If it gives another number of them.
    """
    if step.evaluator.is_async:
        raise TypeError("the utility is a coroutine function; expected a plain one: use AsyncClient")
    calls = step.calls()
    values: list[float] = []
    if step.evaluator.concurrency == 1:
        for argument in calls:
            step.collected(argument, step.evaluator.function(argument), values)
        return values
    with ThreadPoolExecutor(step.evaluator.concurrency, thread_name_prefix="creditd-utility") as threads:
        futures = [threads.submit(step.evaluator.function, argument) for argument in calls]
        try:
            for argument, future in zip(calls, futures, strict=True):
                step.collected(argument, future.result(), values)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return values


async def evaluated_async(step: Evaluate) -> list[float]:
    """As `evaluated`, by awaiting a coroutine function, or by calling a plain one in threads.

    Args:
        step: What to evaluate.

    Returns:
        One float per coalition, in their order.

    Raises:
        TypeError: If the function gives something else than numbers.
        ValueError: If it gives another number of them.
    """
    limit = asyncio.Semaphore(step.evaluator.concurrency)

    async def one(argument: object) -> object:
        async with limit:
            if step.evaluator.is_async:
                coroutine: Awaitable[object] = step.evaluator.function(argument)
                return await coroutine
            return await asyncio.to_thread(step.evaluator.function, argument)

    calls = step.calls()
    values: list[float] = []
    tasks = [asyncio.ensure_future(one(argument)) for argument in calls]
    try:
        for argument, task in zip(calls, tasks, strict=True):
            step.collected(argument, await task, values)
    finally:
        for task in tasks:
            task.cancel()
        # Whatever else was raised is of no interest any more, but somebody has to look at it.
        await asyncio.gather(*tasks, return_exceptions=True)
    return values
