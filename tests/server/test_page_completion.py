"""The page at `/`: what each part of a completion is worth to a reward model, in a browser."""

import re
from pathlib import Path
from typing import get_args

import httpx
import pytest

from cli.explained import NASTY, TEXTS, answered
from creditd.cli.explain.document import document
from creditd.cli.explain.figures import figure
from creditd.server.page import page
from creditd.wire.scar_choices import SPAN_CREDIT_NAMES, TextSegmentation
from server.browser import CONTRAST, CONTROL, ENTER, LUMINANCE, chromium, missing
from services import running_service

SERVICE = Path(__file__).parents[1] / "docs" / "scar_service.py"
SCAR = "/v1/credit/scar"
PROMPT, COMPLETION = "Capital of France?", "Paris, of course. It lies on the Seine! Not Lyon."


def test_the_page_offers_what_the_schema_has():
    """Every credit that a model can give, and every segmentation that needs nothing but a text."""
    script = page().content.decode()
    for name, expected in (
        ("SEGMENTATIONS", get_args(TextSegmentation.model_fields["type"].annotation)),
        ("SPAN_CREDITS", SPAN_CREDIT_NAMES),
    ):
        (listed,) = re.findall(rf"const {name} = \[(.*)\];", script)
        assert re.findall(r'"(\w+)"', listed) == list(expected)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A service with one reward model."""
    with running_service(script=SERVICE, directory=tmp_path_factory.mktemp("service")) as address:
        yield address


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    """A browser, or a loud word that there is none."""
    if missing():
        pytest.skip(f"the page in a browser NOT RUN: {' and '.join(missing())} not installed (apt: chromium-driver)")
    with chromium(tmp_path_factory.mktemp("browser")) as browser:
        browser.resize(1280, 900)
        yield browser


@pytest.fixture
def browser(window, url):
    """The page, freshly loaded."""
    window.open(f"{url}/")
    window.until("return document.querySelector('#model').value === 'rm'")
    return window


in_a_browser = pytest.mark.slow


def asked(browser, completion, prompt=PROMPT, **choices):
    """Ask about a completion, and wait for what comes of it."""
    browser.fill("#prompt", prompt)
    browser.fill("#completion", completion)
    for name, value in choices.items():
        browser.fill(f"#{name.replace('_', '-')}", value)
    browser.run("document.querySelector('#completion-status').textContent = ''")
    browser.click("#explain")
    browser.until(
        "return /, request |Refused|No answer/.test(document.querySelector('#completion-status').textContent)"
    )


@in_a_browser
def test_the_parts_are_those_of_the_service(browser, url):
    """Values, tokens and ledger on the page are what the service answers to the same request, for every choice."""
    for segmentation, credit in (
        ("span", "auto"),
        ("sentence", "prefix"),
        ("lines", "leave_one_out"),
        ("span", "uniform"),
    ):
        asked(browser, COMPLETION, segmentation=segmentation, span_credit=credit)
        request = {"model": "rm", "items": [{"prompt": PROMPT, "completion": COMPLETION}],
                   "segmentation": {"type": segmentation}, "credit": {"type": credit}}  # fmt: skip
        (answer,) = httpx.post(f"{url}{SCAR}", json=request).json()["items"]
        values = browser.texts("#completion-credit tbody .number")
        assert values == [figure(value) for value in answer["unit_values"]]
        ledger = browser.texts("#completion-credit .ledger dd")
        assert ledger[-2:] == [figure(answer["ledger"]["total"]), "1.0000"]
    assert browser.complaints() == []


TREE = """
const tree = (one) => one.nodeType === 3 ? one.textContent : [one.nodeName.toLowerCase(),
  [...one.attributes].map(({ name, value }) => `${name}=${value}`).sort(),
  [...one.childNodes].filter((child) => child.nodeType !== 3 || child.textContent).map(tree)];
"""
TURNS = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
CASES = {
    **{name: ({"completion": text}, {}) for name, text in TEXTS.items()},
    "estimates": ({"completion": TEXTS["english"]}, {"estimator": {"type": "permutations", "budget": 60}}),
    "merged": ({"completion": TEXTS["english"]}, {"segmentation": {"type": "span", "max_units": 2}}),
    "turns": ({"prompt": f"p{TURNS}", "completion": f"one{TURNS}, \u202etwo,\u2066 three."}, {}),
    "dust": ({"completion": "sun, rain. frost?"}, {"score": lambda _, text: 0.1 * len(text) + text.count("a") / 7}),
    "dust alone": ({"completion": "sun, rain."}, {"score": lambda _, text: 0.3 + 1e-15 * len(text)}),
    "nothing": ({"completion": ""}, {}),
    "many": ({"completion": "a. b! " * 60}, {"segmentation": {"type": "span", "max_units": None},
                                             "credit": {"type": "uniform"}}),
    "long prompt": ({"prompt": "why? " * 100, "completion": "so."}, {"alpha": 0.25}),
    "refused": ({"completion": "sun, rain."}, {"score": lambda _, text: float("nan") if text == "sun," else 1.0}),
    "tiny": ({"completion": "sun, rain."}, {"score": lambda _, text: len(text) * 1e-7}),
    "huge": ({"completion": "sun, rain."}, {"score": lambda _, text: len(text) * -1.5e6}),
}  # fmt: skip


@in_a_browser
@pytest.mark.parametrize("name", CASES)
def test_the_page_draws_what_explain_writes(browser, tmp_path, name):
    """The script makes the same elements of an answer as `creditd explain`, to the last digit."""
    item, choices = CASES[name]
    item = {"prompt": PROMPT, **item}
    request, answer = answered(item, **choices)
    drawn = browser.run(
        f"{TREE} const made = creditOf(arguments[0], arguments[1]); made.normalize(); return tree(made);",
        item,
        answer["items"][0],
    )
    (tmp_path / "page.html").write_text(document(request, answer), encoding="utf-8")
    browser.open(f"file://{tmp_path / 'page.html'}")
    assert drawn == browser.run(f"{TREE} document.body.normalize(); return tree(document.querySelector('.credit'))")


@in_a_browser
def test_a_completion_is_never_html(browser):
    """Markup in a prompt or a completion is shown as it was written."""
    before = browser.run("return document.querySelectorAll('img, script, b').length")
    asked(browser, NASTY, prompt=NASTY)
    shown = browser.run(
        "const map = document.querySelector('#completion-credit .map').cloneNode(true);"
        "map.querySelectorAll('.value, .tip').forEach((one) => one.remove()); return map.textContent;"
    )
    assert shown == NASTY
    assert browser.text("#completion-credit .prompt p") == NASTY
    tips = browser.run("return document.querySelectorAll('#completion-credit .tip b').length")
    assert browser.run("return document.querySelectorAll('img, script, b').length") == before + tips
    assert browser.run("return window.caught") is None


@in_a_browser
def test_values_are_seen_by_pointing_and_by_the_keyboard(browser):
    """Ctrl+Enter asks; a unit under the pointer, or with the focus, shows its value."""
    browser.fill("#completion", COMPLETION)
    browser.type("#completion", CONTROL + ENTER)
    browser.until("return /, request /.test(document.querySelector('#completion-status').textContent)")
    visible = (
        "return [...document.querySelectorAll('.tip')].filter((one) => one.checkVisibility()).map((one) => one.id)"
    )
    browser.run("document.querySelector('#completion-credit .unit').focus()")
    assert browser.run(visible) == ["c0u0"]
    browser.run("document.activeElement.blur(); document.querySelector('.map').scrollIntoView()")
    x, y = browser.run(
        "const box = document.querySelectorAll('.map .shade')[1].getBoundingClientRect(); return [box.x + 3, box.y + 8]"
    )
    browser.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert browser.run(visible) == ["c0u1"]


@in_a_browser
def test_what_the_service_refuses_is_said(browser):
    """The words of the service stand on the page, and the numbers of before are marked as old."""
    asked(browser, COMPLETION)
    asked(browser, COMPLETION, span_credit="attention")
    assert browser.text("#completion-status").startswith("Refused")
    assert "attention" in browser.text("#completion-failure")
    assert browser.run("return document.querySelector('#completion-result').classList.contains('old')")
    asked(browser, COMPLETION, span_credit="auto")
    assert browser.text("#completion-failure") == ""
    assert not browser.run("return document.querySelector('#completion-result').classList.contains('old')")


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(browser, scheme):
    """In light and in dark every text stands out from its ground."""
    browser.prefer(scheme)
    asked(browser, COMPLETION)
    browser.run("document.querySelector('#completion-credit .unit').focus()")
    least, where = browser.run(LUMINANCE)
    browser.prefer("light")
    assert least >= CONTRAST, where


@in_a_browser
@pytest.mark.parametrize("width", [320, 480, 960, 1920])
def test_no_width_makes_the_page_scroll_sideways(browser, width):
    """Whatever is typed, the page is as wide as the window."""
    browser.resize(width, 800)
    asked(browser, f"{'x' * 300}. {TEXTS['chinese'] * 3}", prompt="y" * 300)
    overflow = browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    browser.resize(1280, 900)
    assert overflow == 0


@in_a_browser
def test_every_control_has_a_name(browser):
    """Prompt, completion, model, parts and credit are called so."""
    nodes = browser.cdp("Accessibility.getFullAXTree")["nodes"]
    roles = {"textbox", "combobox", "button"}
    names = {node["name"]["value"] for node in nodes if node.get("role", {}).get("value") in roles}
    assert {"Prompt", "Completion", "Model", "Parts", "Credit", "Show what each part is worth"} <= names


@in_a_browser
def test_a_service_without_reward_models_says_how_to_have_one(window, tmp_path):
    """There is nothing to fill in, and one line says what starts a service that has a model."""
    with running_service(directory=tmp_path) as address:
        window.open(f"{address}/")
        window.until("return /, request /.test(document.querySelector('#status').textContent)")
        assert window.seen("#no-model")
        assert not window.seen("#ask-model")
    assert "make serve-models CONFIG=" in window.text("#no-model")
