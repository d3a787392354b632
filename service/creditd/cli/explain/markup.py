"""HTML from texts: whatever is not markup is escaped, and every control character can be seen.

So can those that turn the direction of a text: drawn as they are, they would turn the units and values behind them too.
"""

from __future__ import annotations

import html
from collections.abc import Mapping

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if code not in b"\t\n"} | {0x7F: "\u2421"}
_DIRECTIONS = dict(
    zip(
        (0x200E, 0x200F, 0x061C, *range(0x202A, 0x202F), *range(0x2066, 0x206A)),
        "⇢⇠⇜↦↤↥⇉⇇⇒⇐⇔⇑",
        strict=True,
    )
)
"""Arrows, which have no direction of their own in a text, for LRM, RLM and ALM; LRE, RLE, PDF, LRO and RLO; LRI, RLI,
FSI and PDI."""
_LONE = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")
_VISIBLE: Mapping[int, str] = {**_PICTURES, **_DIRECTIONS, **_LONE}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str) -> Markup:
    """An element.

    Args:
        name: Of the tag; of none that HTML closes by itself.
        children: `Markup` as it is, any other text escaped and made visible.
        attributes: A trailing underscore is left out and others are hyphens: `class_`, `aria_hidden`.
    """
    given = "".join(f' {_name(key)}="{html.escape(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{given}>{joined(*children)}</{name}>")


def joined(*children: str) -> Markup:
    """Children one after another, as those of an element."""
    return Markup("".join(child if isinstance(child, Markup) else html.escape(visible(child)) for child in children))


def visible(text: str) -> str:
    """A text of as many characters in which control characters are pictures, but for tabs and ends of lines.

    Those that turn the direction of a text are arrows.

    What no UTF-8 can carry, half of a surrogate pair, is U+FFFD.
    """
    return text.translate(_VISIBLE)


def in_one_line(text: str) -> str:
    """A text whose ends of lines, tabs, and spaces where there is nothing else, can be seen."""
    if not text:
        return "·"
    shown = visible(text).replace("\n", "↵").replace("\t", "⇥")
    return "␣" * len(shown) if not shown.strip(" ") else shown


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")
