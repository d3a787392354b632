"""Chromium without a window, led through chromedriver by WebDriver's own HTTP: no package but the two of the system."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from server.processes import PATIENCE_S, wait_until

NEEDED = ("chromium", "chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key under which WebDriver names an element."""
CONTROL, ENTER = "\ue009", "\ue007"
ALLOWED = "127.0.0.1"
CONTRAST = 4.5
"""Least ratio of luminances of text and its ground, WCAG 2.2 level AA."""
LUMINANCE = """
const channel = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = (color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map((value) => channel(value / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = (one) => {
  for (; one; one = one.parentElement) {
    const color = getComputedStyle(one).backgroundColor;
    if (!/, 0\\)$/.test(color)) return color;
  }
  return 'rgb(255, 255, 255)';
};
const ratio = (one) => {
  const [a, b] = [light(getComputedStyle(one).color), light(ground(one))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
};
const shown = [...document.querySelectorAll('body *')].filter((one) => one.checkVisibility()
  && [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())
  && getComputedStyle(one).color !== 'rgba(0, 0, 0, 0)' && one.tagName !== 'OPTION');
return shown.map((one) => [ratio(one), one.tagName + '.' + one.className]).sort((a, b) => a[0] - b[0])[0];
"""
"""What a page with the least contrast of all its texts returns: the ratio, and which text it is."""


def missing() -> list[str]:
    """What of the browser is not installed."""
    return [name for name in NEEDED if shutil.which(name) is None]


class Browser:
    """One window.

    Args:
        http: A client whose base is the WebDriver session.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def command(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The value that WebDriver answers; anything but success fails the test."""
        response = self._http.request(method, path, json={} if body is None and method == "POST" else body)
        assert response.status_code == 200, response.text
        return response.json()["value"]

    def cdp(self, name: str, **parameters: Any) -> Any:
        """What a command of the DevTools protocol answers."""
        return self.command("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, url: str) -> None:
        """Load a page, and forget what was logged before it."""
        self.logged("performance")
        self.logged("browser")
        self.command("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script in the page returns."""
        return self.command("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def run_async(self, script: str, *arguments: Any) -> Any:
        """What a script in the page hands to its last argument."""
        return self.command("POST", "/execute/async", {"script": script, "args": list(arguments)})

    def element(self, selector: str) -> str:
        """The name of an element by its CSS selector."""
        return self.command("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector: str) -> None:
        """Click where it is seen."""
        self.command("POST", f"/element/{self.element(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        """Press the keys of a text in an element."""
        self.command("POST", f"/element/{self.element(selector)}/value", {"text": text})

    def fill(self, selector: str, text: str) -> None:
        """Replace what stands in a field, as a paste does."""
        self.run(
            "const field = document.querySelector(arguments[0]);"
            "field.value = arguments[1]; field.dispatchEvent(new Event('input', {bubbles: true}));",
            selector,
            text,
        )

    def text(self, selector: str) -> str:
        """The text of an element, seen or not."""
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements that fit."""
        return self.run("return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent)", selector)

    def seen(self, selector: str) -> bool:
        """Whether an element is displayed."""
        return self.command("GET", f"/element/{self.element(selector)}/displayed")

    def resize(self, width: int, height: int) -> None:
        """Give the page a size in CSS pixels."""
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def prefer(self, scheme: str) -> None:
        """Ask for light or dark."""
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def logged(self, kind: str) -> list[dict[str, Any]]:
        """What the browser has logged since it was last asked."""
        return self.command("POST", "/se/log", {"type": kind})

    def requested(self) -> list[str]:
        """Addresses that anything was asked of since the page was opened, those of data within it left out."""
        events = [json.loads(entry["message"])["message"] for entry in self.logged("performance")]
        asked = [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """Errors and warnings on the console since the page was opened."""
        return [entry["message"] for entry in self.logged("browser") if entry["level"] in {"SEVERE", "WARNING"}]

    def until(self, script: str, *arguments: Any) -> None:
        """Wait until a script in the page returns what is true."""
        wait_until(lambda: self.run(script, *arguments), script)


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A window that finds nothing but this machine; both processes end with it.

    Args:
        folder: Where the browser keeps its profile.
    """
    with (
        (folder / "chromedriver.log").open("wb") as log,
        subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=log, text=True) as driver,
    ):
        try:
            driver_url = f"http://127.0.0.1:{_port_of(driver)}"
            answer = httpx.post(
                f"{driver_url}/session",
                json={"capabilities": {"alwaysMatch": _capabilities(folder)}},
                timeout=PATIENCE_S,
                trust_env=False,
            )
            assert answer.status_code == 200, answer.text
            session_url = f"{driver_url}/session/{answer.json()['value']['sessionId']}"
            try:
                with httpx.Client(base_url=session_url, timeout=PATIENCE_S, trust_env=False) as http:
                    yield Browser(http)
            finally:
                # With a slash at its end the address would be unknown, and the browser would outlive its driver.
                ended = httpx.delete(session_url, timeout=PATIENCE_S, trust_env=False)
                assert ended.status_code == 200, ended.text
        finally:
            driver.terminate()
            driver.wait(PATIENCE_S)


def _port_of(driver: subprocess.Popen[str]) -> int:
    assert driver.stdout is not None
    for line in driver.stdout:
        if "started successfully on port" in line:
            return int(line.rsplit(maxsplit=1)[1].rstrip("."))
    raise AssertionError("chromedriver ended before it listened")


def _capabilities(folder: Path) -> dict[str, Any]:
    arguments = [
        "--headless=new",
        "--no-sandbox",  # the tests may run as root, as in a container; the pages are this service's
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        f"--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE {ALLOWED}",
        f"--user-data-dir={folder / 'profile'}",
    ]
    return {
        "browserName": "chrome",
        "goog:chromeOptions": {"args": arguments, "binary": shutil.which("chromium")},
        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
    }
