"""Conversations about completions whose utilities the caller gives: bodies out, texts to evaluate or results in; no IO.

A text is evaluated once, however many coalitions of however many completions of one prompt it is the text of.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json

from creditd.client.arrays import refusal
from creditd.client.bodies import JSON, Body, encoded, type_of
from creditd.client.evaluation import BATCH_SIZE
from creditd.client.evaluators import Evaluate, Evaluator
from creditd.client.scar_bodies import Completions
from creditd.credit.absent_units import RenderedUnits

SOLVE_PATH = "/v1/credit/scar/solve"
BLANK = " "

Choice: TypeAlias = Mapping[str, Any] | BaseModel
Key: TypeAlias = tuple[int, str]
"""The number of a prompt, and a text that answers it."""


@dataclass(frozen=True)
class Question:
    """A text whose utility is wanted.

    Attributes:
        row: The completion that it is about.
        units: Units of the coalition; None for v(∅) of the prompt, and for v(P) of a completion without units.
        key: What is evaluated.
        is_grand: Whether it is that v(P).
    """

    row: int
    units: list[int] | None
    key: Key
    is_grand: bool = False


@dataclass
class TextGames:
    """Completions, and what is known of their coalitions so far; not for several threads.

    Attributes:
        completions: What is credited.
        filler: What stands for a run of absent units; the text of v(∅).
        numbers: The number of each completion's prompt: that of the first completion of an equal one.
        utilities: What is known of texts; None for one that the function refused.
        n_known: Questions that have their answers.
    """

    completions: Completions
    filler: str
    numbers: list[int] = field(init=False)
    utilities: dict[Key, float | None] = field(default_factory=dict)
    n_known: int = 0
    _undivided: set[int] = field(default_factory=set)
    _told: list[list[tuple[list[int], Key]]] = field(init=False)
    _rendered: dict[int, RenderedUnits] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first: dict[bytes, int] = {}
        keys = [_identity(prompt, row) for row, prompt in enumerate(self.completions.prompts)]
        self.numbers = [first.setdefault(key, row) for row, key in enumerate(keys)]
        self._told = [[] for _ in self.numbers]

    def items(self) -> list[dict[str, Any]]:
        """The items of a request: all that is known."""
        return [self._item(row, item) for row, item in enumerate(self.completions.items)]

    def _item(self, row: int, item: Mapping[str, Any]) -> dict[str, Any]:
        number = self.numbers[row]
        known = {name: value for name, value in item.items() if name != "prompt"}
        known["prompt_id"] = number
        known["coalitions"] = [units for units, _ in self._told[row]]
        known["utilities"] = [self.utilities[key] for _, key in self._told[row]]
        empty = (number, self.filler)
        if empty in self.utilities:
            utility = self.utilities[empty]
            known |= {"empty_refused": True} if utility is None else {"utility_empty": utility}
        if row in self._undivided:
            utility = self.utilities[number, self.completions.texts[row]]
            known |= {"grand_refused": True} if utility is None else {"utility_grand": utility}
        return known

    def wanted(self, answer: Mapping[str, Any]) -> list[Question]:
        """What an answer wants to know; nothing when all is solved.

        Args:
            answer: Of `/v1/credit/scar/solve`, as `scar_answers.solve_answer` has checked it.

        Returns:
            One question per coalition, and one per v(∅) and v(P) that is asked for beside.
        """
        questions: list[Question] = []
        for row, item in enumerate(answer["items"]):
            if item["status"] != "open":
                continue
            number, text = self.numbers[row], self.completions.texts[row]
            if item.get("needs_empty"):
                questions.append(Question(row, None, (number, self.filler)))
            if item.get("needs_grand"):
                questions.append(Question(row, None, (number, text), is_grand=True))
            for units in () if item.get("next") is None else item["next"]:
                players = [int(unit) for unit in units]
                questions.append(Question(row, players, (number, self._text(row, item["unit_characters"], players))))
        return questions

    def _text(self, row: int, characters: Any, players: list[int]) -> str:  # noqa: ANN401 - a list or an array
        """The text of a coalition."""
        ranges = np.array(characters, dtype=np.int64).reshape(-1, 2)
        rendered = self._rendered.get(row)
        if rendered is None:
            rendered = self._rendered[row] = RenderedUnits(self.completions.texts[row], ranges, self.filler)
        present = np.zeros(len(ranges), dtype=np.bool_)
        present[players] = True
        return rendered.text(present)

    def learn(self, questions: Sequence[Question], keys: Sequence[Key], values: Sequence[float]) -> None:
        """Take utilities.

        Args:
            questions: All that was asked for.
            keys: Those of them that were evaluated.
            values: One per key; what is not finite is refused.
        """
        for key, value in zip(keys, values, strict=True):
            self.utilities[key] = float(value) if math.isfinite(value) else None
        for question in questions:
            if question.units is not None:
                self._told[question.row].append((question.units, question.key))
            elif question.is_grand:
                self._undivided.add(question.row)
        self.n_known += len(questions)


def _identity(prompt: object, row: int) -> bytes:
    """What is equal of equal prompts."""
    try:
        return to_json(prompt)
    except (PydanticSerializationError, TypeError, ValueError):
        detail = f"got {type(prompt).__name__}; expected a text, or a list of messages with role and content"
        raise refusal(f"/prompts/{row}", detail) from None


def filler_of(absent: Choice) -> str:
    """The text that stands for a run of absent units.

    Args:
        absent: The choice, as the wire has it.

    Returns:
        The text; of a rule that this client does not know, none: the service knows it or refuses.

    Raises:
        InvalidRequestError: If it is a token of a model that nobody names.
    """
    kind = type_of(absent)
    if kind == "blank":
        return BLANK
    if kind != "mask_token":
        return ""
    text = absent.get("text") if isinstance(absent, Mapping) else getattr(absent, "text", None)
    if not isinstance(text, str):
        detail = "got no text; expected one: the number of a token means something to a model of the service alone"
        raise refusal("/absent/text", detail)
    return text


def body_of(games: TextGames, options: Mapping[str, Any], media_type: str = JSON) -> Body:
    """The request that says all that is known.

    Args:
        games: What is known.
        options: The choices.
        media_type: Format of the request.

    Returns:
        A body whose answer `scar_answers` reads.
    """
    content = encoded({"items": games.items(), "batch_size": BATCH_SIZE, **options}, media_type)
    found = games.completions
    return Body(content=content, row_splits=found.row_splits, ids=found.ids, media_type=media_type)


def unknown_in(games: TextGames, questions: Sequence[Question]) -> list[Key]:
    """Texts to evaluate, each once, in the order in which they are asked for."""
    return list(dict.fromkeys(question.key for question in questions if question.key not in games.utilities))


def evaluation_of(
    games: TextGames,
    evaluator: Evaluator,
    questions: Sequence[Question],
    keys: Sequence[Key],
    answer: Mapping[str, Any],
) -> Evaluate:
    """The step that evaluates texts.

    Args:
        games: Whose texts they are.
        evaluator: As the caller gave it: `f(prompt, text)`, or with `batched` `f(prompts, texts)`.
        questions: What the answer asks for.
        keys: The texts among them that are evaluated.
        answer: The answer that asks.

    Returns:
        A step with one subset per key; what needs no evaluation counts as done.
    """
    planned = sum(int(item.get("planned") or 0) for item in answer["items"])
    done = games.n_known + len(questions) - len(keys)
    return Evaluate(
        evaluator=replace(evaluator, function=_of_texts(evaluator)),
        subsets=[[games.completions.prompts[number], text] for number, text in keys],
        done=done,
        planned=max(planned, done + len(keys)),
    )


def _of_texts(evaluator: Evaluator) -> Callable[[Any], Any]:
    """The caller's function as one of the pairs that a step holds, with NaN for what it refuses by None."""
    function, batched = evaluator.function, evaluator.batched

    def arguments(argument: Sequence[Any]) -> Sequence[Any]:
        return [list(column) for column in zip(*argument, strict=True)] if batched else argument

    def numbers(given: Any) -> Any:  # noqa: ANN401 - the caller's types
        if batched and isinstance(given, list | tuple):
            return [math.nan if value is None else value for value in given]
        return math.nan if given is None and not batched else given

    async def awaited(argument: Sequence[Any]) -> Any:  # noqa: ANN401 - as above
        found: Awaitable[Any] = function(*arguments(argument))
        return numbers(await found)

    def called(argument: Sequence[Any]) -> Any:  # noqa: ANN401 - as above
        return numbers(function(*arguments(argument)))

    call: Callable[[Any], Any] = awaited if evaluator.is_async else called
    call.__name__ = str(getattr(function, "__name__", type(function).__name__))
    return call
