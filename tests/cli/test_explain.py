"""What stands in the document that `creditd explain` writes."""

import base64
import hashlib
import math
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.explained import NASTY, TEXTS, answered, item_of, parsed, shown_text
from creditd.cli.explain.document import document
from creditd.cli.explain.dust import without_dust
from creditd.cli.explain.figures import figure, level, share, signed
from creditd.cli.explain.heat_map import MOST_LABELS, MOST_ROWS, credit_of, scales_of
from creditd.cli.explain.markup import element, in_one_line, visible

ELEMENTS = {
    "document", "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "p", "span", "i", "b", "strong",
    "bdi", "article", "div", "dl", "dt", "dd", "mark", "details", "summary", "table", "thead", "tbody", "tfoot", "tr",
    "th", "td", "svg", "rect", "ol", "li",
}  # fmt: skip
ATTRIBUTES = {
    "charset", "name", "content", "http-equiv", "lang", "class", "dir", "tabindex", "aria-describedby", "aria-hidden",
    "id", "role", "scope", "open", "viewbox", "preserveaspectratio", "x", "y", "width", "height",
}  # fmt: skip
_, ANSWER = answered({"prompt": "p", "completion": "one, two. three"})
ERROR = {"status": "error", "error": {"code": "context_exceeded", "detail": "got 9 tokens; expected at most 8"}}


def credit(item, answer):
    """One completion as it is shown."""
    (scale,) = scales_of([item], [answer])
    return parsed(credit_of(item, answer, 0, scale))


def shown(*items, **choices):
    """The answers to some completions, and how they are shown."""
    request, answer = answered(*items, **choices)
    return answer["items"], parsed(document(request, answer)).find("credit")


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in TEXTS.items()])
@pytest.mark.parametrize("has_tokens", [True, False])
def test_the_map_is_the_completion(text, has_tokens):
    """Whatever the script, white space and markup, the text of the map is the completion, its units in their order."""
    item = item_of(text) if has_tokens else {"prompt": "p", "completion": text}
    (answer,), (found,) = shown(item)
    assert shown_text(found) == text
    units = [unit.without("value", "tip") for unit in found.find("unit")]
    assert units == [text[start:stop] for start, stop in answer["unit_characters"]]


def test_a_text_is_never_markup():
    """Markup in a completion, a prompt, an id, a role or an error is text: the document has its own elements alone."""
    item = item_of(NASTY, id=NASTY[:60], group=NASTY[:60], prompt=[{"role": "user", "content": NASTY}])
    request, answer = answered(item)
    failed = {**ERROR, "error": {"code": NASTY, "detail": NASTY}}
    pages = [document(request, answer), document({"items": [item]}, {"model": NASTY, "items": [failed]})]
    for page in pages:
        tree = parsed(page)
        assert {node.name for node in tree.all()} <= ELEMENTS
        assert {name for node in tree.all() for name in node.attributes} <= ATTRIBUTES
        assert page.count(NASTY[:60]) == 0
        assert shown_text(tree.find("credit")[0]) == NASTY


def test_the_document_needs_nothing_but_itself():
    """No script, no style attribute and no address; a policy allows its own style by digest and nothing else."""
    page = document(*answered(item_of(TEXTS["english"]), item_of(TEXTS["arabic"])))
    assert not re.search(r"https?:|//|url\(|@import|<script|javascript:|\s(src|href|style|on\w+)=", page)
    tree = parsed(page)
    (style,) = tree.find("style")
    (policy,) = [node.attributes["content"] for node in tree.find("meta") if "http-equiv" in node.attributes]
    digest = base64.b64encode(hashlib.sha256(style.text.encode()).digest()).decode()
    assert policy.split("; ")[:2] == ["default-src 'none'", f"style-src 'sha256-{digest}'"]


def test_the_numbers_are_those_of_the_answer():
    """v(∅), v(P), the ledger, every unit's value and share, and every token's reward and advantage stand in it."""
    items = [item_of(TEXTS["english"], kl=[-0.01] * 100, other_reward=0.25) for _ in range(2)]
    for item in items:
        item["kl"] = item["kl"][: len(item["token_offsets"])]
    answers, everything = shown(*items, alpha=0.75, advantage={"type": "pooled"})
    for answer, found in zip(map(without_dust, answers), everything, strict=True):
        facts = [node.text for node in found.find("facts")[0].find("dd")]
        whole = answer["utility_grand"] - answer["utility_empty"]
        numbers = [answer["utility_empty"], answer["utility_grand"], whole, answer["gap"]]
        assert facts[:4] == [figure(number) for number in numbers]
        assert facts[4:] == [
            f"{answer['method']}, exact" if answer["exact"] else f"{answer['method']}, estimated",
            "none",
        ]
        ledger = [node.text for node in found.find("ledger")[0].find("dd")]
        order = ("kl", "other_reward", "units", "terminal", "remainder", "total", "alpha")
        assert ledger == [figure(answer["ledger"][name]) for name in order]
        assert math.fsum(answer["ledger"][name] for name in order[:5]) == pytest.approx(answer["ledger"]["total"])
        rows = [[cell.text for cell in row.find("td")] for row in found.find("tbody")[0].find("tr")]
        assert [row[3] for row in rows] == [figure(value) for value in answer["unit_values"]]
        assert [row[4] for row in rows] == [share(value, whole) for value in answer["unit_values"]]
        (foot,) = found.find("tfoot")
        assert foot.find("td")[3].text == figure(sum(answer["unit_values"]))
        chips = [[part.text for part in chip.find("number")] for chip in found.find("token")]
        pairs = zip(answer["token_rewards"], answer["token_advantages"], strict=True)
        assert chips == [[signed(reward), f"A {signed(advantage)}"] for reward, advantage in pairs]


def test_a_unit_says_its_value_beside_its_text_and_in_a_tip():
    """Each unit can be reached with Tab, is described by its tip, and has the sign of its value in its shade."""
    (answer,), (found,) = shown(item_of(TEXTS["english"]), estimator={"type": "permutations", "budget": 40})
    names = [node.attributes["id"] for node in found.find("tip")]
    assert len(set(names)) == len(names) == len(answer["units"])
    for number, (unit, value) in enumerate(zip(found.find("unit"), answer["unit_values"], strict=True)):
        assert (unit.attributes["tabindex"], unit.attributes["aria-describedby"]) == ("0", names[number])
        (label,), (tip,), (shade,) = unit.find("value"), unit.find("tip"), unit.find("shade")
        assert label.text == signed(value)
        assert tip.text.startswith(f"{figure(value)}unit {number + 1}, token")
        assert f"standard error {figure(answer['standard_errors'][number])}" in tip.text
        kinds = {"even"} if value == 0 else {"even", *(f"{'gain' if value > 0 else 'loss'}-{n}" for n in range(1, 7))}
        assert shade.kinds & kinds


def test_texts_of_right_to_left_are_isolated_and_their_numbers_are_not_turned():
    """A completion has the direction of its own text, paragraph by paragraph; values and tips are left to right."""
    page = document(*answered(item_of(TEXTS["arabic"]), item_of(TEXTS["hebrew"])))
    tree = parsed(page)
    assert all((node.attributes["dir"], node.attributes["lang"]) == ("auto", "") for node in tree.find("map"))
    for kind in ("value", "tip"):
        assert {node.attributes["dir"] for node in tree.find(kind)} == {"ltr"}
    style = tree.find("style")[0].text
    for selector, property_ in ((".map", "plaintext"), (".value", "isolate"), (".tip", "isolate")):
        (rule,) = re.findall(rf"^\{selector} \{{(.*?)\}}", style, re.DOTALL | re.MULTILINE)
        assert f"unicode-bidi: {property_}" in rule
    assert not any("dir" in node.attributes for node in tree.find("unit"))


def test_masked_text_is_grey_and_in_no_unit():
    """What the policy did not write is shown where it stands, is no unit, and has tokens of reward 0."""
    text = "I will look. <tool>sun</tool> It is 4.5 hours, so ferns."
    (answer,), (found,) = shown(item_of(text, masked="<tool>sun</tool>", kl=[0.5] * 22))
    assert shown_text(found) == text
    (grey,) = found.find("map")[0].find("frozen")
    assert grey.text.strip() == "<tool>sun</tool>"
    assert all("sun" not in unit.text for unit in found.find("unit"))
    masked = [chip for chip in found.find("token") if "frozen" in chip.kinds]
    assert [chip.find("number")[0].text for chip in masked] == ["0"] * answer["token_rewards"].count(0.0)


def test_what_has_no_values_says_so():
    """A fallback shows its units without shades, and its flag; a failed completion its error and its text."""
    item = item_of("sun, rain.")
    (answer,), (found,) = shown(item, score=lambda _, text: math.nan if text == "sun," else float(len(text)))
    assert answer["unit_values"] is None
    assert [node.text for node in found.find("mark")] == ["fallback_return"]
    assert all("unvalued" in node.kinds for node in found.find("map")[0].find("shade"))
    assert found.find("value") == []
    assert found.find("tip")[0].text.startswith("no value")
    failed = credit(item, ERROR)
    assert failed.find("says")[0].text == "context_exceeded got 9 tokens; expected at most 8"
    assert shown_text(failed) == "sun, rain."


def test_a_completion_without_units_is_shown():
    """Nothing to share out is no reason for no page."""
    for item in ({"prompt": "p", "completion": ""}, item_of("all masked", masked="all masked")):
        (answer,), (found,) = shown(item)
        assert answer["units"] == []
        assert shown_text(found) == item["completion"]
        assert found.find("tbody") == []


def test_completions_of_one_prompt_have_one_scale():
    """The largest value of all that answer a prompt has the last shade; other prompts do not change it."""
    texts = ["zz, a.", "a, a.", "zzzzzz, a."]
    items = [item_of(text, prompt=prompt) for text, prompt in zip(texts, "ppq", strict=True)]
    answers, _ = shown(*items, score=lambda _, text: float(text.count("z")))
    assert [scale.unit for scale in scales_of(items, answers)] == [2.0, 2.0, 6.0]
    grouped = [{**item, "group": 1} for item in items]
    assert [scale.unit for scale in scales_of(grouped, answers)] == [6.0] * 3


def test_long_completions_keep_their_text_readable():
    """Many units have no value beside them, and long lists are closed; all values are still there."""
    text = "".join(f"w{number}. " for number in range(4_000))
    (answer,), (found,) = shown(
        item_of(text),
        segmentation={"type": "span", "max_units": None},
        credit={"type": "uniform"},
    )
    assert len(answer["units"]) == 4_000 > max(MOST_LABELS, MOST_ROWS)
    assert len(answer["token_rewards"]) > 4_000
    assert shown_text(found) == text
    assert found.find("value") == []
    assert len(found.find("tip")) == 4_000
    assert all("open" not in node.attributes for node in found.find("details") if not node.kinds & {"prompt"})


@pytest.mark.parametrize(
    ("value", "as_figure", "as_signed"),
    [
        (0.0, "0", "0"),
        (-0.0, "0", "0"),
        (0.25, "0.2500", "+0.250"),
        (-1.375, "−1.3750", "−1.38"),
        (0.00005, "5.0e−5", "+5e−5"),
        (-0.0004, "−0.0004", "−4e−4"),
        (0.03125, "0.0313", "+0.031"),
        (12.25, "12.2500", "+12.3"),
        (-123.5, "−123.5", "−124"),
        (1234567.0, "1.2e+6", "+1e+6"),
        (1e-300, "1.0e−300", "+1e−300"),
    ],
)
def test_numbers_are_short(value, as_figure, as_signed):
    """Ties go away from zero, as in a browser; the minus sign is one."""
    assert (figure(value), signed(value)) == (as_figure, as_signed)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_a_shade_is_a_sixth_of_the_scale(value, most):
    """The step is within half a step of the value's share of the largest, and its side is its sign."""
    name = level(value, max(most, abs(value)))
    side, _, step = name.partition("-")
    assert abs(int(step or 0) - 6 * abs(value) / max(most, abs(value))) <= 0.5 + 1e-9
    assert side in {"even", "gain" if value > 0 else "loss"}


def test_a_share_needs_a_whole():
    """Nothing has no parts, and neither has what is next to nothing."""
    assert share(0.25, 0.5) == "50.0 %"
    assert share(0.25, -0.5) == "−50.0 %"
    assert share(0.25, 0.0) == share(0.25, 1e-17) == share(None, 1.0) == share(0.25, None) == "—"


DUSTY = {"utility_empty": 0.25, "utility_grand": 0.25 + 2**-52, "gap": 1.1e-16, "unit_values": [-7e-18, 3e-13, 0.3]}


def test_what_rounding_left_is_nothing():
    """A number below 1e-12 of the largest one of its completion is 0, wherever it stands; α is as it was."""
    item = item_of("one, two. three")
    (answer,), _ = shown(item)
    rewards = [2e-13] * len(answer["token_rewards"])
    ledger = {**answer["ledger"], "remainder": -1.1e-16, "total": 0.3, "alpha": 1e-14}
    dusty = {**answer, **DUSTY, "token_rewards": rewards, "ledger": ledger, "standard_errors": [1e-17, 1e-17, 1e-3]}
    found = credit(item, dusty)
    assert [node.text for node in found.find("value")] == ["0", "0", "+0.300"]
    assert [node.text for node in found.find("facts")[0].find("dd")][:4] == ["0.2500", "0.2500", "0", "0"]
    assert [node.text for node in found.find("ledger")[0].find("dd")][4:] == ["0", "0.3000", "1.0e−14"]
    assert {node.text for token in found.find("token") for node in token.find("number")} == {"0"}
    assert [row.find("td")[5].text for row in found.find("tbody")[0].find("tr")] == ["0", "0", "0.0010"]
    (scale,) = scales_of([item], [{**dusty, "unit_values": [-7e-18] * 3}])
    assert (scale.unit, scale.token) == (0.0, 0.0)


@given(st.floats(-1e6, 1e6, allow_subnormal=False), st.floats(1e-11, 1))
def test_what_rounding_did_not_leave_is_shown(value, part):
    """A number that is 1e-12 of the largest, or more, is as it was, whatever the unit of rewards."""
    (answer,) = ANSWER["items"]
    values = [value, value * part, 0.0]
    zeros = dict.fromkeys(answer["ledger"], 0.0)
    numbers = {"utility_empty": 0.0, "utility_grand": 0.0, "gap": None, "token_rewards": [0.0], "ledger": zeros}
    assert without_dust({**answer, **numbers, "unit_values": values})["unit_values"] == values


TURNS = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def test_what_turns_the_direction_of_a_text_is_an_arrow():
    """In a completion, a prompt, a table and a token: each another one, which turns nothing; joiners are left alone."""
    assert len(set(visible(TURNS))) == len(TURNS)
    assert {unicodedata.bidirectional(one) for one in visible(TURNS)} == {"ON"}
    assert visible("\u200b\u200c\u200d") == "\u200b\u200c\u200d"
    page = document(*answered(item_of(f"one{TURNS}, two.", prompt=TURNS, id=TURNS, group=TURNS)))
    assert not set(TURNS) & set(page)


@given(st.text())
def test_every_character_is_seen_once(text):
    """Control characters and halves of pairs become pictures, one for one, and the document can be written."""
    found = visible(text)
    assert len(found) == len(text)
    assert element("p", text).encode()
    assert all(character in "\t\n" or ord(character) >= 0x20 for character in found)
    assert not set("\t\n") & set(in_one_line(text))
