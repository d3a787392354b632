"""The page at `/`: what is sent, and what it does in a browser."""

import base64
import hashlib
import inspect
import json
import os
import re
import shutil
import socket
import subprocess
import sys

import httpx
import pytest

from creditd.client import Client
from creditd.server.page import page
from creditd.wire.catalogue import CATALOGUE
from creditd.wire.v1 import ShapleyRequest
from server.browser import CONTRAST, CONTROL, ENTER, LUMINANCE, chromium, missing
from server.processes import PATIENCE_S
from server.running import SHAPLEY, WORKED_REWARDS, get, nested, on_service
from services import running_service

LARGEST_BYTES = 60_000
KEY = "a-key-of-the-page"
NASTY = (
    """it's "quoted" $HOME `id` \\n \\ <img src=x onerror="window.caught=1"><script>window.caught=1</script> 🎉 JSON"""
)
"""A text that would be something else wherever it is not only a text."""


def test_the_page_is_small_and_whole():
    """One document of at most 60 kB, with nothing left to put in and no address of anywhere else."""
    response = get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert len(response.content) <= LARGEST_BYTES
    assert "/*style*/" not in response.text
    assert "/*script*/" not in response.text
    assert set(re.findall(r"[a-z]+://[^\s'\"]*", response.text)) == {"http://www.w3.org/2000/svg"}
    assert response.text.count("</script>") == 1


def test_the_policy_names_the_two_inline_parts_and_nothing_else():
    """Script and style are allowed by digest, connections to the service alone, and everything else is refused."""
    response = get("/")
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    for name in ("script", "style"):
        (inline,) = re.findall(f"<{name}>(.*)</{name}>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert policy.pop(f"{name}-src") == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


def test_the_page_is_the_same_for_everybody():
    """Nothing of the settings is in it, and it answers GET and HEAD alone."""
    assert get("/", api_keys=(KEY,)).content == get("/").content == page().content
    head = on_service(lambda service: service.client.head("/"))
    assert (head.status_code, head.content) == (200, b"")
    assert on_service(lambda service: service.client.post("/")).status_code == 405


def test_the_page_knows_the_arguments_of_the_client():
    """What the page writes as an argument is one, and no option of the client is left out."""
    (listed,) = re.findall(r"const CLIENT_OPTIONS = (\[.*\]);", page().content.decode())
    (parts,) = re.findall(r"const CHOICES = (\[.*\]);", page().content.decode())
    known = {*json.loads(listed), *json.loads(parts)}
    taken = set(inspect.signature(Client.shapley).parameters)
    assert known == taken & set(ShapleyRequest.model_fields) - {"sets"}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A service without keys."""
    with running_service(directory=tmp_path_factory.mktemp("service")) as address:
        yield address


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    """A browser, or a loud word that there is none."""
    if missing():
        pytest.skip(
            f"the page in a browser NOT RUN: {' and '.join(missing())} not installed (apt: chromium chromium-driver)"
        )
    with chromium(tmp_path_factory.mktemp("browser")) as browser:
        browser.resize(1280, 900)
        yield browser


@pytest.fixture
def browser(window, url):
    """The page, freshly loaded, with the answer to its own example."""
    window.open(f"{url}/")
    settled(window)
    return window


in_a_browser = pytest.mark.slow


def settled(browser):
    """Wait for the answer to what stands on the page."""
    browser.until(
        "return !document.querySelector('#results').classList.contains('old')"
        " && /request|Not asked|Nothing/.test(document.querySelector('#status').textContent)"
    )


def asked(browser, text, **fields):
    """Put a text and choices on the page, and wait for what comes of them."""
    browser.run("document.querySelector('#status').textContent = ''")
    for name, value in fields.items():
        browser.fill(f"#{name}", value)
    browser.fill("#text", text)
    browser.until(
        "return /, request |Refused|Not asked|Nothing|No answer/.test(document.querySelector('#status').textContent)"
    )


def numbers(browser):
    """Credits and advantages on the page, set by set, to their last digit."""
    rows = browser.run(
        "return [...document.querySelectorAll('article')].map((card) => [...card.querySelectorAll('tbody tr')].map("
        "(row) => [...row.querySelectorAll('td:not(:first-child) .number')].map((one) => one.title)))"
    )
    return [[[float(value) if value else None for value in cells] for cells in card] for card in rows]


def expected(answer):
    """The same from an answer of the service."""
    return [
        [[credit, advantage] for credit, advantage in zip(one["credits"], one["advantages"], strict=True)]
        if one["status"] == "ok"
        else []
        for one in answer["sets"]
    ]


@in_a_browser
def test_the_numbers_are_those_of_the_service(browser, url):
    """Credits and advantages of the worked group stand on the page as the service gives them, with their ledger."""
    asked(browser, "\n\n".join("\n".join(map(str, row)) for row in WORKED_REWARDS))
    answer = httpx.post(f"{url}{SHAPLEY}", json=nested()).json()
    assert numbers(browser) == expected(answer)
    ledger = browser.texts("article:first-child dd")
    first = answer["sets"][0]
    assert ledger[:4] == ["0", "0.9000", "0.9000", f"{first['gap']:.4f}" if first["gap"] else "0"]
    assert ledger[5:] == ["order_statistic, exact", "none"]


@in_a_browser
def test_bars_grow_from_zero_to_both_sides(browser):
    """A bar is as long as its number, on the side of its sign, on one scale for all sets."""
    asked(browser, "1\n-3\n0\n\n2", utility='{"type": "sum"}')
    bars = browser.run(
        "return [...document.querySelectorAll('td:nth-child(2) .bar')].map((bar) => {"
        " const fill = bar.querySelector('i');"
        " return fill ? [parseFloat(fill.style.left), parseFloat(fill.style.width)] : null; })"
    )
    assert bars == [[60.0, 20.0], [0.0, 60.0], None, [60.0, 40.0]]


@in_a_browser
def test_nothing_is_asked_of_anybody_but_the_service(browser, url):
    """From loading to an answer every request goes to the service, and the browser finds nothing to complain about."""
    asked(browser, "0.9 tea\n0.1 television")
    addresses = browser.requested()
    assert f"{url}{SHAPLEY}" in addresses
    assert {address.removeprefix(url) for address in addresses} == {
        "/",
        "/v1/info",
        "/v1/models",
        "/v1/utilities",
        SHAPLEY,
    }
    assert browser.complaints() == []


ESCAPES = {
    "connection": "fetch(arguments[0])",
    "beacon": "if (!navigator.sendBeacon(arguments[0], 'x')) throw new Error('refused')",
    "image": "document.body.append(Object.assign(new Image(), {src: arguments[0]}))",
    "script": "const made = document.createElement('script'); made.append('caught = 1'); document.body.append(made)",
    "style": "const made = document.createElement('style'); made.append('p {}'); document.body.append(made)",
    "frame": "document.body.append(Object.assign(document.createElement('iframe'), {src: arguments[0]}))",
    "HTML": "document.body.innerHTML = '<p>'",
    "evaluation": "setTimeout('window.caught = 1', 0)",
    "base": "document.head.append(Object.assign(document.createElement('base'), {href: arguments[0]}))",
}


def heard(listener):
    """What arrives within a moment; a connection that a browser opens ahead of a refused navigation says nothing."""
    listener.settimeout(0.2)
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        return b""
    with connection:
        connection.settimeout(0.2)
        try:
            return connection.recv(1)
        except TimeoutError:
            return b""


@in_a_browser
@pytest.mark.parametrize("escape", ESCAPES)
def test_the_policy_holds(browser, escape):
    """Even a script of the page can neither reach another address nor make HTML or code of a text."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        elsewhere = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        refusal = browser.run_async(
            "const done = arguments[1];"
            "document.addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective));"
            f"try {{ {ESCAPES[escape]} }} catch {{ /* The event tells. */ }}",
            elsewhere,
        )
        assert refusal
        assert heard(listener) == b""
    assert browser.run("return window.caught") is None


@in_a_browser
def test_the_text_of_a_candidate_is_never_html(browser):
    """Markup in a text, a label, an id or a group is shown as it was written, in answers and in errors."""
    before = browser.run("return document.querySelectorAll('img, script, iframe').length")
    for line in (
        f"0.5  {NASTY}",
        json.dumps({"reward": 1, "label": NASTY}),
        json.dumps({"reward": 1, "id": NASTY[:60]}),
    ):
        asked(browser, f"{json.dumps({'set': {'group': NASTY[:60]}})}\n{line}\n0.25")
        assert NASTY[:60] in browser.text("article td")
        assert NASTY[:60] in browser.text("article h3")
    asked(browser, f"{NASTY}\n0.5")
    assert browser.text("#ghosts div").startswith(NASTY)
    asked(browser, json.dumps({"reward": 1, NASTY: 1}))
    assert browser.texts("#problems li") == [f"Line 1{NASTY[:64]}: there is no such field".replace("/", "~1")]
    assert browser.run("return document.querySelectorAll('img, script, iframe').length") == before
    assert browser.run("return window.caught") is None


@in_a_browser
def test_a_complaint_stands_beside_its_line(browser):
    """What the service says of a candidate stands on its line, and the answers to the other sets stay."""
    asked(browser, "0.9 tea\n0.1 television\n\n0.5\nNaN a walk\n\n0.25 a boat")
    words = "reward is NaN; expected a finite number of magnitude at most 1e+100 or null"
    assert browser.texts("#problems li") == [f"Line 5{words}"]
    beside = "[...document.querySelectorAll('#ghosts div')].map((one) => one.querySelector('em')?.textContent ?? null)"
    assert browser.run(f"return {beside}") == [None, None, None, None, words, None, None]
    assert browser.texts("article .says") == [f"non_finite_value: {words}"]
    assert len(numbers(browser)[0]) == 2
    browser.run("document.querySelector('#problems button').click()")
    chosen = (
        "const area = document.querySelector('#text'); return area.value.slice(area.selectionStart, area.selectionEnd)"
    )
    assert browser.run(chosen) == "NaN a walk"


@in_a_browser
def test_a_complaint_about_a_choice_stands_under_it(browser):
    """A refused request says where: under the utility, the rule, the normalisation or the other options."""
    asked(
        browser,
        "0.9\n0.1",
        utility='{"type": "quantile"}',
        credit='{"type": "nope"}',
        advantage='{"type": "pooled", "ddof": 2}',
        more='{"expect": {"group_size": 0}}',
    )
    assert browser.text("#utility-says") == "/utility/empty: the field is required; /utility/q: the field is required"
    assert browser.text("#credit-says").startswith("/credit: got an unknown type; expected one of 'shapley'")
    assert browser.text("#advantage-says") == "/advantage/ddof: expected less than or equal to 1"
    assert browser.text("#more-says") == "/expect/group_size: expected greater than or equal to 1"
    assert browser.text("#status").startswith("Refused: invalid_request, request ")
    asked(
        browser,
        "0.9\n0.1",
        utility='{"type": "max"}',
        credit='{"type": "shapley"}',
        advantage='{"type": "pooled"}',
        more="",
    )
    assert not any(browser.texts(".says"))
    assert len(numbers(browser)[0]) == 2


@in_a_browser
def test_what_is_no_request_is_not_sent(browser):
    """A line or a choice that is not JSON is said on the page; there is nothing to send, to copy or to run."""
    asked(browser, '0.9\n{"reward": 1', utility='{"type"', more='{"sets": []}')
    assert browser.text("#status") == "Not asked: see what is marked."
    assert browser.texts("#problems button") == ["Line 2"]
    assert browser.text("#utility-says").startswith("this is not JSON")
    assert browser.text("#more-says").startswith("expected an object without sets")
    assert browser.text("#curl") == browser.text("#python") == ""
    asked(browser, " \n\n", utility='{"type": "max"}', more="")
    assert browser.text("#status") == "Nothing to share out yet."


HARD = "\n".join(
    (
        f"0.75  {NASTY}",
        "null\tnot scored",
        ".5, a comma",
        "1e-7: a colon",
        "",
        '{"set": {"set_reward": 0.5, "id": "it\'s"}}',
        '{"reward": 0.1000000000000000055511151231257827, "id": 7}',
        "-2.50",
        "",
        "Infinity and beyond",
        "[1, 0.5, null]",
        "",
        "[0.125, 3]",
        "",
        "0.5 twin",
        "0.5 twin",
        "0.25 single",
    )
)


def ran(command, **variables):
    """What a pasted command prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CREDITD_")}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **variables}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def results_of_python(text, **variables):
    """What the program on the page prints: credits and advantages, set by set."""
    rows = [json.loads(f"[{line.replace('] [', '], [')}]".replace("nan", "null"))
            for line in ran([sys.executable, "-c", text], **variables).splitlines()]  # fmt: skip
    return [[list(pair) for pair in zip(*row, strict=True)] for row in rows]


def results_of_curl(text, **variables):
    """What the command on the page answers."""
    if shutil.which("curl") is None:
        pytest.skip("the curl command of the page NOT RUN: curl is not installed")
    return json.loads(ran(["bash", "-c", text], **variables))


@in_a_browser
def test_the_same_request_works_when_pasted(browser):
    """The curl command and the Python program give the numbers of the page, whatever stands in the texts."""
    asked(
        browser,
        HARD,
        utility='{"type": "mean", "empty": 0.25}',
        credit='{"type": "leave_one_out"}',
        advantage='{"type": "centered", "baseline": "others"}',
        more='{"malformed": {"duplicates": "collapse"}}',
    )
    shown = numbers(browser)
    assert [len(card) for card in shown] == [4, 2, 0, 3, 2, 3]
    answer = results_of_curl(browser.text("#curl"))
    assert expected(answer) == shown
    program = results_of_python(browser.text("#python"))
    assert [[pair for pair in card if pair != [None, None]] for card in program] == [
        [pair for pair in card if pair != [None, None]] for card in shown
    ]


@in_a_browser
def test_the_same_request_is_in_step_with_every_key(browser):
    """What is typed stands in both at once, before the service has answered."""
    browser.fill("#text", "")
    browser.type("#text", "0.25 a pear")
    for name in ("#curl", "#python"):
        assert '{"reward": 0.25, "text": "a pear"}' in browser.text(name)
    browser.run(
        "const menu = document.querySelector('#credit-type'); menu.value = 'max_at_k';"
        "menu.dispatchEvent(new Event('change'))"
    )
    assert '"credit": {"type": "max_at_k", "k": 2}' in browser.text("#curl")
    assert 'credit={"type": "max_at_k", "k": 2}' in browser.text("#python")


@in_a_browser
@pytest.mark.parametrize("name", ["curl", "python"])
def test_a_button_copies(browser, url, name):
    """The button puts the whole text on the clipboard, and says so."""
    browser.cdp("Browser.grantPermissions", origin=url, permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.click(f"[data-copies={name}]")
    browser.until("return document.querySelector(arguments[0]).textContent === 'Copied'", f"[data-copies={name}]")
    assert browser.run_async("navigator.clipboard.readText().then(arguments[0])") == browser.text(f"#{name}")


@in_a_browser
@pytest.mark.parametrize("entry", [pytest.param(entry, id=entry.name) for entry in CATALOGUE.utilities])
def test_a_whole_request_is_taken_apart(browser, url, entry):
    """Pasted as it stands, the example of every utility becomes lines and choices with the same answer."""
    asked(browser, json.dumps(entry.example))
    columns = httpx.post(f"{url}{SHAPLEY}", json=entry.example).json()["columns"]
    pairs = [list(pair) for pair in zip(columns["credits"]["values"], columns["advantages"]["values"], strict=True)]
    assert [pair for card in numbers(browser) for pair in card] == pairs
    assert json.loads(browser.run("return document.querySelector('#utility').value")) == entry.example["utility"]
    assert browser.run("return document.querySelector('#utility-type').value") == entry.name
    assert not browser.run("return document.querySelector('#text').value").startswith('{"columns"')


@in_a_browser
def test_columns_of_every_kind_become_lines(browser, url):
    """Ragged columns, ids, spans, unions and rewards by name are taken apart too, and choices go where they belong."""
    request = {
        "columns": {
            "named_rewards": {"right": {"values": [1, 0, 0.5], "row_splits": [0, 2, 3]}, "short": [[0, None], [1]]},
            "groups": ["a", "b"], "ids": ["x", "y"], "texts": ["one", "two", None], "candidate_ids": [1, 2, 3],
            "spans": {"starts": [0, 2, 0], "stops": [2, 4, 3]}, "n_tokens": [5, 3], "set_rewards": [0.5, None],
            "unions": ["u", "u", "w"],
        },
        "aggregation": {"type": "normalize_then_sum"}, "credit": {"type": "owen"}, "tokens": {"other": "zero"},
    }  # fmt: skip
    asked(browser, json.dumps(request))
    columns = httpx.post(f"{url}{SHAPLEY}", json=request).json()["columns"]
    assert [pair[0] for card in numbers(browser) for pair in card] == columns["credits"]["values"]
    assert json.loads(browser.run("return document.querySelector('#more').value")) == {
        name: request[name] for name in ("aggregation", "tokens")
    }


@in_a_browser
def test_undo_brings_back_what_an_example_replaced(browser):
    """The browser's own undo works over `Load its example`."""
    browser.fill("#text", "")
    browser.type("#text", "0.125 mine")
    browser.click("#example")
    browser.until("return document.querySelector('#text').value.startsWith('0.9')")
    browser.type("#text", CONTROL + "z")
    assert browser.run("return document.querySelector('#text').value") == "0.125 mine"


@in_a_browser
def test_a_key_is_asked_for_only_when_the_service_does(browser, window, tmp_path):
    """No field on an open service; on a closed one a field, then answers; the key is copied nowhere."""
    assert not browser.seen("#key-form")
    environment = {**os.environ, "CREDITD_API_KEYS": KEY}
    with running_service(directory=tmp_path, env=environment) as closed:
        window.open(f"{closed}/")
        window.until("return document.querySelector('#key-says').textContent")
        assert window.seen("#key")
        assert window.text("#key-says") == "got no valid API key; expected the header `Authorization: Bearer KEY`"
        window.type("#key", "wrong" + ENTER)
        window.until("return document.querySelector('#status').textContent === 'Not ready.'")
        window.run("document.querySelector('#key').value = ''")
        window.type("#key", KEY + ENTER)
        settled(window)
        assert len(numbers(window)) == 3
        assert window.text("#key-says") == ""
        for name in ("#curl", "#python"):
            assert "CREDITD_API_KEY" in window.text(name)
            assert KEY not in window.run("return document.documentElement.outerHTML")
        answer = results_of_curl(window.text("#curl"), CREDITD_API_KEY=KEY)
        assert expected(answer) == numbers(window)
        assert results_of_python(window.text("#python"), CREDITD_API_KEY=KEY) == numbers(window)
        assert window.run("return [localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


@in_a_browser
def test_a_service_that_is_gone_is_said(window, tmp_path):
    """Without an answer the page says so, and shows no numbers as if they were of this request."""
    with running_service(directory=tmp_path) as address:
        window.open(f"{address}/")
        settled(window)
    asked(window, "0.5\n0.25")
    assert window.text("#failure").startswith("The service did not answer")
    assert window.run("return document.querySelector('#results').classList.contains('old')")


@in_a_browser
def test_the_keyboard_reaches_everything_and_everything_has_a_name(browser):
    """Each control has an accessible name and comes up with Tab, and Ctrl+Enter asks."""
    nodes = browser.cdp("Accessibility.getFullAXTree")["nodes"]
    controls = [node for node in nodes if node.get("role", {}).get("value") in {"textbox", "combobox", "button"}]
    assert len(controls) >= 10
    assert all(node["name"]["value"] for node in controls)
    wanted = {
        "text",
        "utility-type",
        "utility",
        "example",
        "credit-type",
        "credit",
        "advantage-type",
        "advantage",
        "more",
        "solve",
    }
    reached = set()
    for _ in range(30):
        for kind in ("keyDown", "keyUp"):
            browser.cdp("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        reached.add(browser.run("return document.activeElement.id"))
    assert wanted <= reached
    before = browser.text("#status")
    browser.type("#text", CONTROL + ENTER)
    browser.until(
        "const says = document.querySelector('#status').textContent;"
        "return /, request /.test(says) && says !== arguments[0]",
        before,
    )


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(browser, scheme):
    """In light and in dark every text stands out from its ground, complaints included."""
    browser.prefer(scheme)
    asked(browser, "0.9 tea\nnull coffee\n\nNaN milk")
    least, where = browser.run(LUMINANCE)
    dark = "return getComputedStyle(document.body).backgroundColor"
    assert (int(re.findall(r"\d+", browser.run(dark))[0]) < 64) == (scheme == "dark")
    browser.prefer("light")
    assert least >= CONTRAST, where


@in_a_browser
@pytest.mark.parametrize("width", [320, 480, 960, 1920])
def test_no_width_makes_the_page_scroll_sideways(browser, width):
    """From a small telephone to a wide screen the page is as wide as the window."""
    browser.resize(width, 800)
    asked(browser, f"0.9 {'a long text ' * 40}\nnull {'x' * 300}\n\nNaN {'y' * 300}")
    overflow = browser.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    browser.resize(1280, 900)
    assert overflow == 0
