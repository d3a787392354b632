"""A document as a PNG: Chromium without a window, spoken to by its DevTools protocol over two pipes, no port open."""

from __future__ import annotations

import base64
import fcntl
import json
import math
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from select import select
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
VARIABLE = "CREDITD_BROWSER"
WIDTH = 1200
"""Of the page, CSS pixels."""
SHARPNESS = 2.0
"""Pixels of the picture for one of the page."""
MOST_PIXELS = 16_384
"""Height of a picture, at most: at full sharpness some 160 MB while it is painted."""
LEAST_SHARPNESS = 0.5
"""Below it nobody can read the picture."""
START_S = 60.0
"""How long the browser may take for one answer."""
END_S = 5.0
"""How long it may take to end by itself."""


class PictureError(Exception):
    """There is no picture; the message says why."""


class NoBrowserError(PictureError):
    """There is nothing that could make one."""


def browser_path() -> str:
    """The browser that makes pictures.

    Returns:
        The command that `CREDITD_BROWSER` names; without it the first of `BROWSERS` on the path.

    Raises:
        NoBrowserError: If there is none.
    """
    named = os.environ.get(VARIABLE)
    found = next(filter(None, map(shutil.which, BROWSERS if not named else (named,))), None)
    if found is None:
        wanted = f"{VARIABLE} names {named!r}, which" if named else f"none of {', '.join(BROWSERS)}"
        raise NoBrowserError(
            f"a PNG is made by Chromium or Chrome, and {wanted} {'is no command here' if named else 'is on the path'}; "
            f"install one, name it in {VARIABLE}, or write HTML alone with --html"
        )
    return found


def picture(document: str, browser: str) -> bytes:
    """A document as a picture of all of it, in the colours of a light screen.

    Args:
        document: HTML that is whole in itself: nothing is fetched for it.
        browser: Path of Chromium or Chrome.

    Returns:
        PNG, `WIDTH` CSS pixels wide, `SHARPNESS` pixels for each of them; fewer for a document that would be more than
        `MOST_PIXELS` high.

    Raises:
        PictureError: If the browser does not do it, or the document is too high for a picture that can be read.
    """
    with tempfile.TemporaryDirectory(prefix="creditd-") as folder, _started(browser, Path(folder)) as devtools:
        target = devtools.call("Target.createTarget", url="about:blank")["targetId"]
        session = devtools.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        devtools.session = session
        devtools.call("Emulation.setDeviceMetricsOverride", width=WIDTH, height=800, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": "light"}]
        devtools.call("Emulation.setEmulatedMedia", media="screen", features=features)
        frame = devtools.call("Page.getFrameTree")["frameTree"]["frame"]["id"]
        devtools.call("Page.setDocumentContent", frameId=frame, html=document)
        height = math.ceil(devtools.call("Page.getLayoutMetrics")["cssContentSize"]["height"])
        sharpness = min(SHARPNESS, MOST_PIXELS / height)
        if sharpness < LEAST_SHARPNESS:
            raise PictureError(
                f"got a page of {height:,} pixels in height, expected at most {int(MOST_PIXELS / LEAST_SHARPNESS):,} "
                "for a picture that can be read: explain fewer completions, or look at the HTML"
            )
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": sharpness}
        taken = devtools.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(taken["data"])


@dataclass
class _DevTools:
    """A conversation: one message each way at a time, each ended by a null byte.

    Attributes:
        reads: File descriptor of what the browser says.
        writes: File descriptor of what it hears.
        session: Of the page that commands are about; None for the browser itself.
    """

    reads: int
    writes: int
    session: str | None = None
    _number: int = 0
    _heard: bytearray = field(default_factory=bytearray)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401 - as the protocol has them
        """What a command answers; events in between are left out."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        self._write(json.dumps(message).encode() + b"\0")
        expires = time.monotonic() + START_S
        while True:
            said = self._message(expires)
            if said.get("id") == self._number:
                break
        if "error" in said:
            raise PictureError(f"the browser refused {method}: {said['error'].get('message')}")
        result: dict[str, Any] = said["result"]
        return result

    def end(self) -> None:
        """Ask the browser to end."""
        self.session = None
        self.call("Browser.close")

    def _write(self, content: bytes) -> None:
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(self.writes, rest) :]
        except BrokenPipeError:
            raise PictureError("the browser ended") from None

    def _message(self, expires: float) -> dict[str, Any]:
        while (end := self._heard.find(b"\0")) < 0:
            left_s = max(0.0, expires - time.monotonic())
            if not select([self.reads], [], [], left_s)[0]:
                raise PictureError(f"the browser said nothing for {START_S:.0f} s")
            chunk = os.read(self.reads, 1 << 20)
            if not chunk:
                raise PictureError("the browser ended before there was a picture")
            self._heard += chunk
        content = bytes(self._heard[:end])
        del self._heard[: end + 1]
        message: dict[str, Any] = json.loads(content)
        return message


@contextmanager
def _started(browser: str, folder: Path) -> Iterator[_DevTools]:
    """A browser that fetches nothing, and that ends with this."""
    arguments = [
        browser,
        "--headless=new",
        "--remote-debugging-pipe",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),  # as root it does not start with one; the page has no script
    ]
    hears, writes = os.pipe()
    reads, says = os.pipe()
    try:
        try:
            process = _spawned(arguments, hears, says)
        finally:
            os.close(hears)
            os.close(says)
        devtools = _DevTools(reads, writes)
        try:
            yield devtools
        finally:
            with suppress(PictureError):
                devtools.end()
            _end(process)
    finally:
        os.close(reads)
        os.close(writes)


def _spawned(arguments: list[str], hears: int, says: int) -> int:
    """The id of a process, in a group of its own, that hears on its descriptor 3 and says on its descriptor 4."""
    # Copies above 4, so that giving the process one of its ends cannot overwrite the other.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (hears, says)]
    silence = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    actions = [(os.POSIX_SPAWN_DUP2, silence, number) for number in (0, 1, 2)]
    actions += [(os.POSIX_SPAWN_DUP2, end, number) for end, number in zip(ends, (3, 4), strict=True)]
    try:
        return os.posix_spawn(arguments[0], arguments, os.environ, file_actions=actions, setpgroup=0)
    except OSError as error:
        raise PictureError(f"{arguments[0]} does not start: {error.strerror}") from None
    finally:
        for end in (silence, *ends):
            os.close(end)


def _end(process: int) -> None:
    """Wait until a process has ended; one that does not is killed, with those that it started."""
    expires = time.monotonic() + END_S
    while os.waitpid(process, os.WNOHANG)[0] == 0:
        if time.monotonic() > expires:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return
        time.sleep(0.01)
