"""The page at `/`: one HTML document with its style and script inside, and the headers that keep it to this service.

It holds no data and is the same for everybody, so it needs no key; what it asks of `/v1/` does. A browser cannot send
a key when somebody types an address, so a page behind the key would be a page that nobody can open.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import NamedTuple

PAGE_PATH = "/"
STYLES = ("theme.css", "page.css", "heat.css")
"""The first and the last are also those of the documents that `creditd explain` writes."""
SCRIPTS = ("page.js", "heat.js", "completion.js")


class Page(NamedTuple):
    """A document as it is sent."""

    content: bytes
    headers: dict[str, str]


@cache
def page() -> Page:
    """The page and its headers.

    Returns:
        HTML in UTF-8. The policy names the two inline parts by their digests, lets the page talk to its own origin
        alone, and takes from scripts every way to turn text into HTML.
    """
    html, style, script = _part("page.html"), _joined(STYLES), _joined(SCRIPTS)
    policy = (
        "default-src 'none'",
        f"script-src '{_digest(script)}'",
        f"style-src '{_digest(style)}'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    content = html.replace("/*style*/", style).replace("/*script*/", script).encode()
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        "Cache-Control": "no-cache",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return Page(content, headers)


def _joined(names: tuple[str, ...]) -> str:
    return "".join(map(_part, names))


def _part(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
