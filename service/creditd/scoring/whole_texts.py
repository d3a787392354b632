"""Rewards of texts that are prompt and response in one, as other servers of rewards take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from creditd.engines.protocol import ScoredTexts, TextFailure, VariantTexts
from creditd.scoring.model_questions import check_characters

Integers: TypeAlias = NDArray[np.int64]

TOGETHER = 256
"""Completions of one question at most: its coalitions are a square."""


class NoRewardError(Exception):
    """A text has no reward, and a number in its place would be an invention.

    Attributes:
        place: Which of the texts.
        failure: Why.
    """

    def __init__(self, place: int, failure: TextFailure) -> None:
        super().__init__(place, failure)
        self.place = place
        self.failure = failure


@dataclass(frozen=True)
class WholeTexts:
    """T texts as a reward model is asked for them.

    Attributes:
        questions: Texts with equal prompts together.
        places: Shape (T,), int64: which text each variant of the questions is.
    """

    questions: tuple[VariantTexts, ...]
    places: Integers

    def rewards(self, found: ScoredTexts) -> list[float]:
        """The reward of each text, in their order.

        Args:
            found: What the model says of the questions.

        Returns:
            T finite numbers, reward units.

        Raises:
            NoRewardError: If a text has none; of several the first.
        """
        missing = {int(self.places[variant]): failure for variant, failure in found.failures.items()}
        if missing:
            raise NoRewardError(min(missing), missing[min(missing)])
        ordered = np.empty(len(self.places))
        ordered[self.places] = found.rewards
        if not np.isfinite(ordered).all():
            place = int(np.flatnonzero(~np.isfinite(ordered))[0])
            raise NoRewardError(place, TextFailure("non_finite_utility", "the model's score is not a finite number"))
        rewards: list[float] = ordered.tolist()
        return rewards


def whole_texts(
    texts: Sequence[str],
    prompts: Sequence[str] | None = None,
    *,
    adds_special_tokens: bool = True,
    most_characters: int,
) -> WholeTexts:
    """Texts as questions to a reward model.

    A text that begins with its prompt is that prompt with a completion, any other one a completion of nothing. A model
    reads the prompt with the completion behind it, so what it reads is the text, to the letter, either way.

    Args:
        texts: T texts: prompt and response in one.
        prompts: One per text; None where they are not known.
        adds_special_tokens: Whether the model's tokenizer adds its special tokens; not, if they stand in the texts.
        most_characters: Limit on the characters that the model reads.

    Returns:
        A question for every `TOGETHER` texts of a prompt.

    Raises:
        CostExceededError: If the texts have more characters.
    """
    check_characters(sum(map(len, texts)), most_characters)
    by_prompt: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        prompt = "" if prompts is None else prompts[place]
        by_prompt.setdefault(prompt if text.startswith(prompt) else "", []).append(place)
    parts = [
        (prompt, places[start : start + TOGETHER])
        for prompt, places in by_prompt.items()
        for start in range(0, len(places), TOGETHER)
    ]
    questions = tuple(
        VariantTexts(
            prompt,
            tuple(texts[place][len(prompt) :] for place in places),
            np.eye(len(places), dtype=np.bool_),
            adds_special_tokens=adds_special_tokens,
        )
        for prompt, places in parts
    )
    return WholeTexts(questions, np.array([place for _, places in parts for place in places], dtype=np.int64))
