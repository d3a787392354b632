"""One case for each row of SCAR.md's table of what can happen to a completion, under the row's first cell."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from creditd.engines.fake import FakeEngine
from server.model_services import fake, worth

PROMPT = "weather?"
ALPHA = 0.5
EMPTY = 0.5
"""v(∅) of the scorer."""
KL, OTHER_REWARD = -0.0625, 0.25


def score(prompt: Any, text: str) -> float:
    """The worth of the words of a text whatever stands between them, and of the prompt alone."""
    return EMPTY + worth(prompt, " ".join(re.findall(r"\w+", text)))


def nothing(answer: Any) -> None:
    """What the columns say is all."""
    del answer


@dataclass(frozen=True)
class Case:
    """A completion to which something happens, in a group with two sound ones.

    Attributes:
        item: The completion, without prompt and group.
        engine: The scorer.
        options: Of the request, beside α and advantages.
        also: Checks of what the row says in words, of the answer's items: this one and the sound ones.
        alone: Whether there are no sound ones.
    """

    item: dict[str, Any]
    engine: Callable[[], FakeEngine] = lambda: fake(score=score)
    options: dict[str, Any] = field(default_factory=dict)
    also: Callable[[list[dict[str, Any]]], None] = nothing
    alone: bool = False

    @property
    def mask(self) -> list[bool]:
        """Which tokens the policy chose."""
        return self.item.get("completion_mask", [True] * len(self.item["token_offsets"]))

    @property
    def body(self) -> dict[str, Any]:
        """The request."""
        kl = {"kl": [KL] * len(self.mask), "other_reward": OTHER_REWARD}
        items = [{"prompt": PROMPT, "group": "p", **self.item, **kl}]
        if not self.alone:
            items += [{"prompt": PROMPT, "group": "p", **written(text)} for text in ("wind, snow", "fog, snow")]
        return {"model": "rm", "items": items, "alpha": ALPHA, "advantage": {"type": "pooled"}, **self.options}


def written(text: str, mask: list[bool] | None = None) -> dict[str, Any]:
    """A completion whose tokens are its words, each with the space before it."""
    offsets, start = [], 0
    for word in text.split(" "):
        stop = start + len(word) + (start > 0)
        offsets.append([start, stop])
        start = stop
    item = {"completion": text, "token_offsets": offsets}
    return item if mask is None else {**item, "completion_mask": mask}


def refusing(*texts: str) -> Callable[[], FakeEngine]:
    """A scorer that has no number for some texts."""

    def choosy(prompt: Any, text: str) -> float:
        return math.nan if text in texts else score(prompt, text)

    return lambda: fake(score=choosy)


def sums_in_one_piece(items: list[dict[str, Any]]) -> None:
    """The whole return stands on the last token that the policy chose."""
    first = items[0]
    assert first["ledger"]["units"] == first["ledger"]["terminal"] == 0.0
    assert first["ledger"]["remainder"] == first["utility_grand"] - ALPHA * first["utility_empty"]
    *before, last = [reward for reward in first["token_rewards"] if reward]
    assert before == [KL] * len(before)
    assert last == KL + OTHER_REWARD + first["ledger"]["remainder"]


def merged(items: list[dict[str, Any]]) -> None:
    """As many units as are allowed, which hold all tokens, by Owen values."""
    first = items[0]
    assert first["method"] == "owen_tree"
    stops = [stop for _, stop in first["units"]]
    assert [start for start, _ in first["units"]] == [0, *stops[:-1]]
    assert stops[-1] == len(first["token_rewards"])


def one_unit(items: list[dict[str, Any]]) -> None:
    """Its value is all there is."""
    assert items[0]["unit_values"] == [items[0]["utility_grand"] - EMPTY]
    assert items[0]["exact"]


def fails(code: str) -> Callable[[list[dict[str, Any]]], None]:
    """The error of the completion has a code, and the others are answered."""

    def check(items: list[dict[str, Any]]) -> None:
        assert items[0]["error"]["code"] == code
        assert [item["status"] for item in items[1:]] == ["ok", "ok"]

    return check


def without_credit(items: list[dict[str, Any]]) -> None:
    """α is 0 for all, and v(P) stands on the last token."""
    for item in items:
        assert item["ledger"]["alpha"] == item["ledger"]["units"] == item["ledger"]["remainder"] == 0.0
        assert (item["utility_empty"], item["unit_values"]) == (None, None)
        assert item["flags"] == ["fallback_return"]
        assert item["ledger"]["terminal"] == item["utility_grand"]
        kl = KL if item is items[0] else 0.0
        assert item["token_rewards"] == [kl, kl + item["ledger"]["other_reward"] + item["utility_grand"]]


def returns_all_the_same(items: list[dict[str, Any]]) -> None:
    """The ledger says what the completion returns, whose tokens get nothing."""
    first = items[0]
    assert first["ledger"]["total"] == OTHER_REWARD + first["utility_grand"] - ALPHA * EMPTY


def parted(items: list[dict[str, Any]]) -> None:
    """Units on both sides of what is masked, which gets nothing and stands in every coalition."""
    first = items[0]
    assert first["units"] == [[0, 1], [2, 3]]
    assert first["token_rewards"][1] == first["token_advantages"][1] == 0.0
    assert sum(first["unit_values"]) == first["utility_grand"] - score(PROMPT, " (wind)")


def ends_at_once(items: list[dict[str, Any]]) -> None:
    """v(P) is v(∅), and so is what the only token gets of it."""
    first = items[0]
    assert first["utility_grand"] == first["utility_empty"] == EMPTY
    assert first["token_rewards"] == [KL + OTHER_REWARD + (1 - ALPHA) * EMPTY]


def contrast_within(items: list[dict[str, Any]]) -> None:
    """Its advantages are those of its units among each other."""
    (first,) = items
    better, worse = first["token_advantages"]
    assert better > 0 > worse
    assert math.isclose(better, -worse)


LONG = ", ".join(["sun", "rain", "wind", "snow", "fog"] * 800)
CASES = {
    "no unit": Case(
        {"completion": "sun", "token_offsets": [[0, 3], [3, 3]], "completion_mask": [False, True]},
        also=sums_in_one_piece,
    ),
    "one unit": Case(written("sun and rain"), also=one_unit),
    "4,000 tokens": Case(written(LONG), also=merged),
    "more units than `max_units`": Case(written(", ".join(["sun", "rain", "wind"] * 10)), also=merged),
    "more units than the budget affords": Case(
        written(", ".join(["sun", "rain", "wind"] * 10)),
        options={"segmentation": {"type": "span", "max_units": None}, "estimator": {"type": "auto", "budget": 32}},
    ),
    "a unit longer than the reward model's context": Case(
        written("sun " * 20 + "rain"), engine=lambda: fake(score=score, max_tokens=60), also=fails("context_exceeded")
    ),
    "NaN from the scorer for one coalition": Case(
        written("sun, rain, wind"), engine=refusing("sun, wind"), also=sums_in_one_piece
    ),
    "no score of v(∅)": Case(written("sun, rain"), engine=refusing(""), also=without_credit),
    "no score of v(P)": Case(written("sun, rain"), engine=refusing("sun, rain"), also=fails("non_finite_utility")),
    "no token of the policy": Case(written("sun, rain", [False, False]), also=returns_all_the_same),
    "masked tokens in the middle": Case(written("sun (wind) rain", [True, False, True]), also=parted),
    "no text and no token": Case({"completion": "", "token_offsets": []}, also=returns_all_the_same),
    "no text but an end of text": Case({"completion": "", "token_offsets": [[0, 0]]}, also=ends_at_once),
    "attention that is 0 throughout": Case(
        written("sun, rain"),
        engine=lambda: FakeEngine(score, fake().spec, attention=lambda _, units: [0.0] * len(units)),
        options={"credit": {"type": "attention"}},
        also=sums_in_one_piece,
    ),
    "no other completion in its group": Case(written("sun, rain"), also=contrast_within, alone=True),
}
