"""The credit of one completion as HTML: what it adds up to, a heat map of its units, a table of them, its tokens.

Everything is a pure function of an item and of its answer. `creditd.server.page` draws the same elements with a script,
and styles both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from creditd.cli.explain.dust import without_dust
from creditd.cli.explain.figures import LEVELS, figure, fraction, level, share, signed
from creditd.cli.explain.markup import Markup, element, in_one_line, joined

_T = TypeVar("_T")

MOST_LABELS = 64
"""Units of a completion beyond which none has its value beside it, so that the text can be read."""
MOST_ROWS = 100
"""Units, or tokens, beyond which their list is closed until somebody opens it."""
SHORT_PROMPT = 400
"""Characters of a prompt beyond which it is closed."""

_WHITE = " \t\n"
_BAR = Markup('<svg class="bar" viewBox="-1 0 2 1" preserveAspectRatio="none" aria-hidden="true">')


@dataclass(frozen=True)
class Scale:
    """What counts as much.

    Attributes:
        unit: Largest magnitude of the value of a unit.
        token: Largest magnitude of the reward of a token.
    """

    unit: float
    token: float


def scales_of(items: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]) -> list[Scale]:
    """The scale of each completion, one for all that answer the same prompt, so that they can be compared."""
    keys = [
        json.dumps([item.get("group"), None if item.get("group") is not None else item.get("prompt")]) for item in items
    ]
    units, tokens = dict.fromkeys(keys, 0.0), dict.fromkeys(keys, 0.0)
    for key, given in zip(keys, answers, strict=True):
        answer = without_dust(given) if given["status"] == "ok" else given
        units[key] = max([units[key], *map(abs, answer.get("unit_values") or ())])
        tokens[key] = max([tokens[key], *map(abs, answer.get("token_rewards") or ())])
    return [Scale(units[key], tokens[key]) for key in keys]


def legend() -> Markup:
    """What shades and lines mean, in words."""
    return element(
        "p",
        element("span", element("i", class_="shade gain-4"), " a solid line: the reward is higher for it"),
        element("span", element("i", class_="shade loss-4"), " a dashed line: it is lower"),
        element("span", element("i", "grey", class_="frozen"), " not trained, no credit"),
        class_="legend",
    )


def credit_of(item: Mapping[str, Any], answer: Mapping[str, Any], row: int, scale: Scale) -> Markup:
    """All that is to be seen of one completion.

    Args:
        item: As in the request: `completion`, `prompt` if there is one, `token_offsets`, `completion_mask`.
        answer: What the service said of it.
        row: Its number, for names that no other completion of a document has.
        scale: Of the document.

    Returns:
        One element. The text of its map, without the values and the tips, is the completion. What rounding left of a
        number is 0.
    """
    prompt = _prompt(item["prompt"]) if item.get("prompt") else Markup("")
    if answer["status"] != "ok":
        error = answer["error"]
        words = element("p", element("strong", error["code"]), f" {error['detail']}", class_="says")
        return element("div", words, prompt, _map(item["completion"]), class_="credit")
    answer = without_dust(answer)
    return element(
        "div",
        _facts(answer),
        prompt,
        _heat_map(item, answer, row, scale),
        _steps(scale),
        _ledger(answer["ledger"]),
        _units(item, answer, scale),
        _tokens(item, answer, scale),
        class_="credit",
    )


def _heat_map(item: Mapping[str, Any], answer: Mapping[str, Any], row: int, scale: Scale) -> Markup:
    """The completion, its units shaded by their values; what is in no unit is grey."""
    text = item["completion"]
    pieces: list[Markup] = []
    end = 0
    for number, (start, stop) in enumerate(answer["unit_characters"]):
        pieces += [_frozen(text[end:start]), _unit(text[start:stop], answer, number, f"c{row}u{number}", scale)]
        end = stop
    return _map(*pieces, _frozen(text[end:]))


def _map(*pieces: str) -> Markup:
    return element("div", *pieces, class_="map", dir="auto", lang="")


def _frozen(text: str) -> Markup:
    return element("span", text, class_="frozen") if text else Markup("")


def _unit(text: str, answer: Mapping[str, Any], number: int, name: str, scale: Scale) -> Markup:
    """A unit, its value where there is room for it, and what is seen of it when it is pointed at or has the focus."""
    value = _at(answer["unit_values"], number)
    inner = text.strip(_WHITE)
    start = len(text) - len(text.lstrip(_WHITE)) if inner else 0
    label = Markup("")
    if value is not None and len(answer["units"]) <= MOST_LABELS:
        label = element("span", signed(value), class_="value", dir="ltr")
    tip = element("span", *_tip(answer, number), class_="tip", id=name, role="tooltip", dir="ltr")
    kind = f"shade {level(value, scale.unit)}{'' if inner else ' blank'}"
    shade = element("span", inner, label, class_=kind)
    after = text[start + len(inner) :]
    return element("span", text[:start], shade, after, tip, class_="unit", tabindex="0", aria_describedby=name)


def _steps(scale: Scale) -> Markup:
    """The shades from the lowest value to the highest."""
    steps = [f"loss-{step}" for step in range(LEVELS, 0, -1)]
    steps += ["even", *(f"gain-{step}" for step in range(1, LEVELS + 1))]
    return element(
        "p",
        element("span", signed(-scale.unit), class_="number"),
        *(element("i", class_=f"shade {step}") for step in steps),
        element("span", signed(scale.unit), class_="number"),
        class_="steps",
    )


def _tip(answer: Mapping[str, Any], number: int) -> list[str]:
    value, error = _at(answer["unit_values"], number), _at(answer["standard_errors"], number)
    bounds = _at(answer["intervals"], number)
    words = [f"unit {number + 1}, {_range_in_words(answer['units'][number])}"]
    if value is not None:
        words.append(f"{share(value, answer['whole'])} of v(P) − v(∅)")
    if error is not None:
        words.append(f"standard error {figure(error)}")
    if bounds is not None:
        words.append(f"95 % interval {figure(bounds[0])} to {figure(bounds[1])}")
    return [element("b", "no value" if value is None else figure(value)), *(element("span", word) for word in words)]


def _facts(answer: Mapping[str, Any]) -> Markup:
    method = "none" if answer["method"] is None else answer["method"]
    exact = {True: ", exact", False: ", estimated", None: ""}[answer["exact"]]
    flags: list[str] = [element("mark", flag) for flag in answer["flags"]]
    return element(
        "dl",
        _fact("v(∅)", _number(answer["utility_empty"])),
        _fact("v(P)", _number(answer["utility_grand"])),
        _fact("v(P) − v(∅)", _number(answer["whole"])),
        _fact("gap", _number(answer["gap"])),
        _fact("method", f"{method}{exact}"),
        _fact("flags", *(flags or ["none"])),
        class_="facts",
    )


def _ledger(ledger: Mapping[str, Any]) -> Markup:
    """What the rewards of the tokens add up to, term by term."""
    names = {
        "kl": "KL",
        "other_reward": "other reward",
        "units": "α · units",
        "terminal": "(1 − α) · v(P)",
        "remainder": "remainder",
        "total": "sum of token rewards",
    }
    facts = [_fact(words, _number(ledger[name])) for name, words in names.items()]
    return element("dl", *facts, _fact("α", _number(ledger["alpha"])), class_="ledger")


def _fact(name: str, *words: str) -> Markup:
    return element("div", element("dt", name), element("dd", *words))


def _units(item: Mapping[str, Any], answer: Mapping[str, Any], scale: Scale) -> Markup:
    """The units one below the other."""
    count = len(answer["units"])
    if count == 0:
        return Markup("")
    errors = answer["standard_errors"]
    heads = ["Unit", "Text", "Tokens", "Value", "Share", *([] if errors is None else ["Standard error"])]
    whole, together = answer["whole"], answer["together"]
    rows = []
    for number, (start, stop) in enumerate(answer["unit_characters"]):
        value = _at(answer["unit_values"], number)
        cells = [
            element("td", str(number + 1)),
            element("td", element("bdi", in_one_line(item["completion"][start:stop]))),
            element("td", _range(answer["units"][number])),
            element("td", element("span", _bar(value, scale.unit), _number(value), class_="cell")),
            element("td", share(value, whole)),
        ]
        if errors is not None:
            cells.append(element("td", figure(errors[number])))
        rows.append(element("tr", *cells))
    sums = element("span", _bar(None, scale.unit), _number(together), class_="cell")
    foot = element("tr", *_cells("", "together", "", sums, share(together, whole), *([] if errors is None else [""])))
    table = element(
        "table",
        element("thead", element("tr", *(element("th", head, scope="col") for head in heads))),
        element("tbody", *rows),
        element("tfoot", foot),
    )
    return _list("units", f"Units: {count}", table, is_open=count <= MOST_ROWS)


def _tokens(item: Mapping[str, Any], answer: Mapping[str, Any], scale: Scale) -> Markup:
    """The tokens one after another, each with its reward, and its advantage if any was asked for."""
    rewards, advantages = answer["token_rewards"], answer["token_advantages"]
    if not rewards:
        return Markup("")
    texts = _token_texts(item, answer)
    mask = item.get("completion_mask") or [True] * len(rewards)
    first = {start for start, _ in answer["units"]}
    chips = []
    for number, reward in enumerate(rewards):
        kinds = [
            "token",
            level(reward, scale.token) if mask[number] else "frozen",
            *(["first"] if number in first else []),
        ]
        parts = [
            element("span", in_one_line(texts[number]), class_="text"),
            element("span", signed(reward), class_="number", dir="ltr"),
        ]
        if advantages is not None:
            parts.append(element("span", f"A {signed(advantages[number])}", class_="number", dir="ltr"))
        chips.append(element("li", *parts, class_=" ".join(kinds)))
    words = f"Token rewards{'' if advantages is None else ' and advantages A'}: {len(rewards)}"
    return _list("tokens", words, element("ol", *chips, dir="auto"), is_open=len(rewards) <= MOST_ROWS)


def _token_texts(item: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
    """What each token writes; of a unit of several tokens nobody knows it without their offsets."""
    completion, offsets = item["completion"], item.get("token_offsets")
    if offsets is not None:
        return [completion[start:stop] for start, stop in offsets]
    texts = [""] * len(answer["token_rewards"])
    for (first, last), (start, stop) in zip(answer["units"], answer["unit_characters"], strict=True):
        if last - first == 1:
            texts[first] = completion[start:stop]
    return texts


def _prompt(prompt: str | Sequence[Mapping[str, Any]]) -> Markup:
    """What the completion answers."""
    if isinstance(prompt, str):
        parts = [element("p", prompt, dir="auto", lang="")]
    else:
        parts = [
            element("p", element("b", str(message["role"]), dir="ltr"), ": ", str(message["content"]),
                    dir="auto", lang="")
            for message in prompt
        ]  # fmt: skip
    length = len(prompt) if isinstance(prompt, str) else sum(len(str(message["content"])) for message in prompt)
    return _list("prompt", "Prompt", joined(*parts), is_open=length <= SHORT_PROMPT)


def _list(kind: str, words: str, content: Markup, *, is_open: bool) -> Markup:
    summary = element("summary", words)
    return element("details", summary, content, class_=kind, **({"open": ""} if is_open else {}))


def _cells(*contents: str) -> list[Markup]:
    return [element("td", content) for content in contents]


def _bar(value: float | None, most: float) -> Markup:
    """A bar from zero in the middle to the side of its sign."""
    length = fraction(value or 0.0, most)
    if length == 0:
        return joined(_BAR, Markup("</svg>"))
    side = "gain" if length > 0 else "loss"
    box = f'<rect class="{side}" x="{min(0.0, length):.4f}" y="0" width="{abs(length):.4f}" height="1"/>'
    return joined(_BAR, Markup(box), Markup("</svg>"))


def _number(value: float | None) -> Markup:
    return element("span", figure(value), class_="number")


def _range(tokens: Sequence[int]) -> str:
    start, stop = tokens
    return str(start) if stop - start == 1 else f"{start}–{stop - 1}"


def _range_in_words(tokens: Sequence[int]) -> str:
    return f"{'token' if tokens[1] - tokens[0] == 1 else 'tokens'} {_range(tokens)}"


def _at(values: Sequence[_T] | None, number: int) -> _T | None:
    return None if values is None else values[number]
