"""One case for each row of OAR.md's table of what can happen to a completion, under the row's first cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

PROMPT = [60, 61]
ADVANTAGE = -0.75
CURSE = 666
"""A token of which the policy has no number."""
LONGEST = 32
"""Tokens that the policy reads."""
VOCABULARY = 1000

Items = list[dict[str, Any]]


def measure(_: str, item: Any, __: Any) -> list[float]:
    """The number of each measured token, modulo 7; of a curse NaN."""
    ids = [int(item.completion_ids[place]) for place in item.positions]
    return [math.nan if number == CURSE else float(number % 7) for number in ids]


def nothing(answer: Items) -> None:
    """What the columns say is all."""
    del answer


def others_go_on(answer: Items) -> None:
    """The other completion of the group has an answer."""
    assert [item["status"] for item in answer] == ["error", "ok"]


def weighs(*weights: float | None) -> Callable[[Items], None]:
    """Weights of the completion; None for any but 1 and 0."""

    def check(answer: Items) -> None:
        for found, expected in zip(answer[0]["weights"], weights, strict=True):
            assert found not in {0.0, 1.0} if expected is None else found == expected

    return check


def fails_with(code: str) -> Callable[[Items], None]:
    """The completion fails with a code, and others go on."""

    def check(answer: Items) -> None:
        assert answer[0]["error"]["code"] == code
        others_go_on(answer)

    return check


@dataclass(frozen=True)
class Case:
    """A completion to which something happens.

    Attributes:
        item: The completion.
        options: Of the request.
        also: Checks of what the row says in words, of the answer's items: this one and its group's other.
    """

    item: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    also: Callable[[Items], None] = nothing

    @property
    def is_given(self) -> bool:
        """Whether nobody is asked."""
        return "sensitivities" in self.item

    @property
    def mask(self) -> list[bool]:
        """Which tokens the policy wrote."""
        tokens = self.item.get("sensitivities", self.item.get("completion_ids", []))
        mask: list[bool] = self.item.get("completion_mask", [True] * len(tokens))
        return mask

    @property
    def alone(self) -> bool:
        """Whether it is the only completion of its group."""
        return bool(self.options.get("alone"))

    @property
    def body(self) -> dict[str, Any]:
        """The request, with another completion of the group where one is compared."""
        rewarded = self.alone or self.fails
        outcome = {"reward": 1.0} if rewarded else {"advantage": ADVANTAGE}
        asked = {} if self.is_given else {"prompt_ids": PROMPT}
        items = [{"group": "p", **asked, **self.item, **outcome}]
        if self.fails:
            sound = (
                {"sensitivities": [1.0, 2.0, 3.0]} if self.is_given else {"completion_ids": [1, 2, 3], "answer": [2, 3]}
            )
            items.append({"group": "p", **asked, **sound, "reward": 0.0})
        head = {"sensitivity": {"type": "given"}} if self.is_given else {"model": "policy"}
        return {**head, "items": items, **{name: value for name, value in self.options.items() if name not in OURS}}

    @property
    def fails(self) -> bool:
        """Whether it has no answer."""
        return bool(self.options.get("fails"))


OURS = {"alone", "fails"}
FAILS = {"fails": True}
WRITTEN = {"completion": "a b c", "token_offsets": [[0, 1], [1, 3], [3, 5]]}

CASES = {
    "five tokens of reasoning": Case(
        {"completion_ids": [1, 2, 3, 4, 5, 99], "answer": [5, 6]}, also=weighs(*[None] * 5, 1.0)
    ),
    "no answer for its parser": Case(
        {"completion_ids": [1, 2, 3], **WRITTEN}, {"parser": {"type": "hashes"}}, weighs(1.0, 1.0, 1.0)
    ),
    "nothing before its answer": Case({"completion_ids": [1, 2, 3], "answer": [0, 2]}, also=weighs(1.0, 1.0, 1.0)),
    "one token of reasoning": Case({"completion_ids": [1, 2], "answer": [1, 2]}, also=weighs(1.0, 1.0)),
    "equal sensitivities": Case({"sensitivities": [0.3] * 4}, also=weighs(*[1.0] * 4)),
    "negative sensitivities": Case(
        {"sensitivities": [-3.0, 0.0, 2.0, 4.0]},
        also=lambda answer: answer[0]["weights"][0] == answer[0]["weights"][1] or None,
    ),
    "masked tokens in the reasoning": Case(
        {"completion_ids": [1, 2, 3, 4, 5], "completion_mask": [True, False, True, True, True], "answer": [4, 5]},
        also=weighs(None, 0.0, None, None, 1.0),
    ),
    "no token of the policy": Case(
        {"completion_ids": [1, 2, 3], "completion_mask": [False] * 3, "answer": [2, 3]}, also=weighs(0.0, 0.0, 0.0)
    ),
    "no token, and a parser": Case(
        {"completion_ids": [], "completion": "", "token_offsets": []}, {"parser": {"type": "last_line"}}
    ),
    "no token, and given sensitivities": Case({"sensitivities": []}),
    "an answer inside its reasoning": Case(
        {"completion_ids": [1, 2, 3], "reasoning": [0, 3], "answer": [1, 2]}, FAILS, fails_with("shape_mismatch")
    ),
    "a null among the given sensitivities": Case(
        {"sensitivities": [1.0, None, 2.0]}, FAILS, fails_with("non_finite_value")
    ),
    "a NaN from the policy": Case(
        {"completion_ids": [1, CURSE, 3], "answer": [2, 3]}, FAILS, fails_with("non_finite_utility")
    ),
    "more tokens than the policy reads": Case(
        {"completion_ids": [1] * LONGEST, "answer": [3, 4]}, FAILS, fails_with("context_exceeded")
    ),
    "a token that the policy does not have": Case(
        {"completion_ids": [1, VOCABULARY, 3], "answer": [2, 3]}, FAILS, fails_with("invalid_request")
    ),
    "no other completion in its group": Case({"completion_ids": [1, 2, 3, 4], "answer": [3, 4]}, {"alone": True}),
}
