"""The document of `creditd explain` as a browser shows it, and its picture."""

import base64
import json
import struct

import pytest

from cli.explained import NASTY, TEXTS, answered, item_of
from creditd.cli.__main__ import main
from creditd.cli.explain.document import document
from creditd.cli.explain.figures import figure
from creditd.cli.explain.picture import SHARPNESS, WIDTH
from server.browser import CONTRAST, LUMINANCE, chromium, missing

pytestmark = pytest.mark.slow

BLUES_AND_ORANGES = """
const done = arguments[1];
createImageBitmap(new Blob([Uint8Array.from(atob(arguments[0]), (one) => one.charCodeAt(0))])).then((picture) => {
  const canvas = new OffscreenCanvas(picture.width, picture.height), pen = canvas.getContext('2d');
  pen.drawImage(picture, 0, 0);
  const { data } = pen.getImageData(0, 0, picture.width, picture.height);
  const found = { blue: 0, orange: 0, dark: 0, light: 0 };
  for (let at = 0; at < data.length; at += 4) {
    const [r, g, b] = data.slice(at, at + 3);
    if (b > r + 60) found.blue += 1;
    if (r > b + 60) found.orange += 1;
    if (r + g + b < 200) found.dark += 1;
    if (r + g + b > 700) found.light += 1;
  }
  done(found);
});
"""
"""How many pixels of a picture, in base64, are blue, orange, dark and light."""


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    """A browser, or a loud word that there is none."""
    if missing():
        pytest.skip(f"documents in a browser NOT RUN: {' and '.join(missing())} not installed (apt: chromium-driver)")
    with chromium(tmp_path_factory.mktemp("browser")) as browser:
        browser.resize(1280, 900)
        yield browser


@pytest.fixture(scope="module")
def everything():
    """Completions of every script, masked text, and one that has no values, with the answers of a service."""
    masked = item_of("I look. <tool>sun</tool> It is 4.5 hours, so ferns.", masked="<tool>sun</tool>")
    items = [*(item_of(text) for text in TEXTS.values()), masked, item_of("", prompt="other")]
    return answered(*items, estimator={"type": "permutations", "budget": 60}, credit={"type": "shapley"})


@pytest.fixture
def opened(window, tmp_path):
    """Open a document from a file."""

    def open_(request, answer):
        name = tmp_path / "page.html"
        name.write_text(document(request, answer), encoding="utf-8")
        window.open(f"file://{name}")
        return f"file://{name}"

    return open_


def test_a_file_is_all_that_it_takes(window, opened, everything):
    """Nothing else is asked for, the browser has nothing to complain about, and no script of a completion runs."""
    address = opened(*everything)
    assert window.requested() == [address]
    assert window.complaints() == []
    assert window.run("return [window.caught ?? null, document.querySelectorAll('img, script').length]") == [None, 0]
    assert NASTY in window.run(
        "return [...document.querySelectorAll('.map')].map((map) => { const copy = map.cloneNode(true);"
        " copy.querySelectorAll('.value, .tip').forEach((one) => one.remove()); return copy.textContent; })"
    )


def tips(window):
    """The tips that can be seen."""
    return window.run(
        "return [...document.querySelectorAll('.tip')].filter((one) => one.checkVisibility()).map((one) => one.id)"
    )


def test_values_are_seen_by_pointing_and_by_the_keyboard(window, opened):
    """A unit under the pointer, or with the focus, shows its value; Tab goes from one to the next."""
    request, answer = answered(item_of(TEXTS["english"]))
    values = answer["items"][0]["unit_values"]
    opened(request, answer)
    assert tips(window) == []
    x, y = window.run(
        "const box = document.querySelectorAll('.shade')[3].getBoundingClientRect(); return [box.x + 3, box.y + 8]"
        .replace("querySelectorAll('.shade')", "querySelectorAll('.map .shade')")
    )  # fmt: skip
    window.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert tips(window) == ["c0u3"]
    assert window.text("#c0u3 b") == figure(values[3])
    window.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    window.run("document.querySelectorAll('summary')[0].focus()")
    seen = []
    for _ in values:
        for kind in ("keyDown", "keyUp"):
            window.cdp("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        seen += tips(window)
    assert seen == [f"c0u{number}" for number in range(len(values))]
    box = window.run(
        "const { left, right, bottom } = document.querySelector('.unit:focus .tip').getBoundingClientRect();"
        "return left >= 0 && right <= innerWidth && bottom <= innerHeight"
    )
    assert box


def test_a_tip_is_in_sight_wherever_its_unit_begins(window, opened):
    """A unit that is longer than the window shows its value in the window."""
    opened(*answered(item_of("word " * 4_000 + "end.")))
    window.run("document.querySelector('.unit').focus({ preventScroll: true })")
    top, bottom, height = window.run(
        "const box = document.querySelector('.tip').getBoundingClientRect(); return [box.top, box.bottom, innerHeight]"
    )
    assert 0 <= top < bottom <= height


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(window, opened, everything, scheme):
    """In light and in dark every text stands out from its ground: on every shade, in grey, and in a tip."""
    window.prefer(scheme)
    opened(*everything)
    window.run("document.querySelector('.unit').focus()")
    least, where = window.run(LUMINANCE)
    shades = window.run(
        "return [...new Set([...document.querySelectorAll('.map .shade')].map((one) => one.className))]"
    )
    window.prefer("light")
    assert least >= CONTRAST, where
    assert len(shades) > 6


DEFICIENCIES = ("none", "deuteranopia", "protanopia", "tritanopia", "achromatopsia")
STEPS = """
return [...document.querySelector('.steps').querySelectorAll('i')].map((one) => {
  const { x, y, width } = one.getBoundingClientRect();
  const { borderBottomStyle, borderBottomWidth } = getComputedStyle(one);
  return [x + width / 2, y + 4, borderBottomStyle, parseFloat(borderBottomWidth)];
});
"""
PIXELS = """
const done = arguments[2];
createImageBitmap(new Blob([Uint8Array.from(atob(arguments[0]), (one) => one.charCodeAt(0))])).then((picture) => {
  const canvas = new OffscreenCanvas(picture.width, picture.height), pen = canvas.getContext('2d');
  pen.drawImage(picture, 0, 0);
  done(arguments[1].map(([x, y]) => [...pen.getImageData(x, y, 1, 1).data].slice(0, 3)));
});
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_shades_can_be_told_apart_without_some_colours(window, opened, scheme, deficiency):
    """Gains from losses, and much from little, for each kind of colour blindness; without any colour by the lines."""
    window.prefer(scheme)
    opened(*answered(item_of(TEXTS["english"])))
    places = window.run(STEPS)
    window.cdp("Emulation.setEmulatedVisionDeficiency", type=deficiency)
    taken = window.cdp("Page.captureScreenshot", format="png")["data"]
    window.cdp("Emulation.setEmulatedVisionDeficiency", type="none")
    window.prefer("light")
    colours = window.run_async(PIXELS, taken, [[x, y] for x, y, *_ in places])

    def distance(one, other):
        return max(abs(a - b) for a, b in zip(colours[one], colours[other], strict=True))

    least, most, even = 0, len(colours) - 1, len(colours) // 2
    assert min(distance(least, even), distance(most, even)) >= 40
    if deficiency != "achromatopsia":
        assert all(distance(even - step, even + step) >= 30 for step in range(3, even + 1))
    styles = [style for _, _, style, _ in places]
    widths = [width for *_, width in places]
    assert styles[:even] == ["dashed"] * even
    assert styles[even + 1 :] == ["solid"] * even
    assert widths == widths[::-1]
    assert widths[even:] == sorted(set(widths))


WORDS = """
return [...document.querySelectorAll('.map .shade')].map((one) => {
  const range = document.createRange();
  range.setStart(one.firstChild, 0);
  range.setEnd(one.firstChild, one.firstChild.data.search(/[,.]/));
  const { left, right, top } = range.getBoundingClientRect();
  return [left, right, top];
});
"""
"""Where the words of each unit stand, without the comma or full stop behind them."""


def test_right_to_left_text_runs_right_to_left(window, opened):
    """Units of a paragraph follow each other from its side; Latin words and numbers within it read as they do."""
    text = "واحد, اثنان, one, two, ثلاثة 12, أربعة.\nleft, right, يسار."
    opened(*answered(item_of(text)))
    first, second, one, two, third, fourth, left, right, last = window.run(WORDS)
    assert fourth[1] < third[0] < third[1] < one[0] < one[1] < two[0] < two[1] < second[0] < second[1] < first[0]
    assert left[1] < right[0] < right[1] < last[0]
    assert len({top for *_, top in (first, second, one, two, third, fourth)}) == 1
    assert last[2] > first[2]
    width = window.run("return document.querySelector('.map').getBoundingClientRect().right")
    assert abs(first[1] - width) < 4
    turned = window.run(
        "const range = document.createRange(), text = document.querySelectorAll('.map .value')[4].firstChild;"
        "return [...text.data].map((_, at) => { range.setStart(text, at); range.setEnd(text, at + 1);"
        " return range.getBoundingClientRect().left; })"
    )
    assert turned == sorted(turned)


@pytest.mark.parametrize("turn", ["\u202e", "\u2067", "\u202b", "\u200f\u202e"])
def test_no_character_turns_what_stands_behind_it(window, opened, turn):
    """Units behind a control of direction follow each other as they would without it, and so do their values."""
    opened(*answered(item_of(f"{turn}zero, {turn}one, two, three, 12.")))
    places = window.run(WORDS)
    lefts = [left for left, *_ in places]
    assert len(places) == 5
    assert lefts == sorted(lefts)
    assert len({top for *_, top in places}) == 1


def test_chinese_wraps_and_nothing_scrolls_sideways(window, opened):
    """Text without spaces, and words without end, break within the width of any window."""
    texts = ("园子每天大约有四个半小时的阳光，" * 40, "x" * 900, TEXTS["hebrew"] * 9, "four and a half hours" * 20)
    opened(*answered(*(item_of(text.replace(" ", "\u00a0")) for text in texts), segmentation={"type": "lines"}))
    for width in (320, 480, 960, 1920):
        window.resize(width, 800)
        overflow = window.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow == 0, width
        lines = window.run(
            "return [...document.querySelectorAll('.map .shade')].map((one) => one.getClientRects().length)"
        )
        assert min(lines) > 1, width
    window.resize(1280, 900)


def test_a_picture_is_all_of_the_document(window, tmp_path, everything):
    """`--png` writes a PNG of the whole height, in light colours, with text and both sides of the scale."""
    request, answer = everything
    names = {name: tmp_path / name for name in ("request.json", "answer.json", "page.html", "page.png")}
    names["request.json"].write_text(json.dumps(request))
    names["answer.json"].write_text(json.dumps(answer))
    words = [str(names["request.json"]), "--answer", str(names["answer.json"])]
    assert main(["explain", *words, "--html", str(names["page.html"]), "--png", str(names["page.png"])]) == 0
    content = names["page.png"].read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    window.resize(WIDTH, 800)
    window.open(f"file://{names['page.html']}")
    expected = window.cdp("Page.getLayoutMetrics")["cssContentSize"]["height"]
    window.resize(1280, 900)
    assert width / WIDTH == pytest.approx(height / expected, rel=0.02)
    assert width <= WIDTH * SHARPNESS
    window.open("about:blank")
    found = window.run_async(BLUES_AND_ORANGES, base64.b64encode(content).decode())
    assert min(found["blue"], found["orange"], found["dark"]) > 1_000
    assert found["light"] > width * height / 2


def test_a_document_that_is_too_high_for_a_picture_is_said(tmp_path, capsys):
    """Nothing is written, and the sentence says what to do instead."""
    if missing():
        pytest.skip("the picture NOT RUN: chromium is not installed")
    request, answer = answered(item_of("a\n" * 2_000 + "b."), segmentation={"type": "sentence"})
    (tmp_path / "request.json").write_text(json.dumps(request))
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    words = [str(tmp_path / "request.json"), "--answer", str(tmp_path / "answer.json")]
    assert main(["explain", *words, "--png", str(tmp_path / "page.png")]) == 1
    assert "explain fewer completions, or look at the HTML" in capsys.readouterr().err
    assert not (tmp_path / "page.png").exists()
