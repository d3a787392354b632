"""Completions of many scripts with the answers of a service whose model is a function, and HTML taken apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

from server.model_services import fake, with_models
from server.running import on_service

SCAR = "/v1/credit/scar"
NASTY = (
    """it's "quoted" & <b>bold</b> <img src=x onerror="window.caught=1"><script>window.caught=1</script>&lt; \\n. 🎉"""
)
TEXTS = {
    "english": "The garden gets about 4.5 hours of sun, so shade plants do best. Ferns are not demanding!\n\n"
    "1. Dig in compost.\n2.\tPlant in May, never in frost.\n",
    "chinese": "园子每天大约有四个半小时的阳光，所以耐阴植物长得最好。蕨类、玉簪都不难养！"
    "您想要一份规划吗？\n庭は4.5時間ほど日が当たります。",
    "arabic": "تحصل الحديقة على نحو 4.5 ساعات من الشمس, لذلك تنجح نباتات الظل مثل Hosta وFern 2024. "
    "اسقها مرة!\nThe end, نعم.",
    "hebrew": "הגינה מקבלת כ-4.5 שעות שמש ביום, ולכן צמחי צל מצליחים. שרכים, Hosta ו-Foxglove, אינם תובעניים!",
    "emoji": "Great news 🎉🎉! The family 👨‍👩‍👧‍👦 waved 👋🏽, the flag 🇩🇪 flew; cafe\u0301, naïve.",
    "nasty": NASTY,
    "white": " \n\t one,  two. \n\n",
    "one": "word",
}
VOID = {"meta"}


def worth(_, text):
    """Something that each character changes, up or down."""
    return sum(ord(character) % 7 - 3 for character in text) / 16


def offsets_of(text):
    """Tokens of a few characters, which write all of a text."""
    found = [[match.start(), match.end()] for match in re.finditer(r"\s*\w{1,5}|\s*\W|\s+\Z", text)]
    return [list(pair) for pair in found]


def item_of(text, *, masked="", **fields):
    """A completion with its tokens, those that touch a part of it masked."""
    offsets = offsets_of(text)
    start = text.index(masked) if masked else 0
    stop = start + len(masked)
    mask = [not (first < stop and start < last) for first, last in offsets]
    return {"prompt": "A garden?", "completion": text, "token_offsets": offsets, "completion_mask": mask, **fields}


def answered(*items, score=worth, **choices):
    """A request and the service's answer to it."""
    request = {"model": "rm", "items": list(items), **choices}
    response = on_service(lambda service: service.post(request, SCAR), with_models(fake(score=score)))
    assert response.status_code == 200, response.text
    return request, response.json()


@dataclass
class Node:
    """An element with what stands in it."""

    name: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    @property
    def kinds(self) -> set[str]:
        """Its classes."""
        return set(self.attributes.get("class", "").split())

    @property
    def text(self) -> str:
        """All text in it."""
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self) -> Iterator[Node]:
        """Itself and every element in it, in the order of the document."""
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.all()

    def find(self, kind: str) -> list[Node]:
        """Elements in it of a class or a name."""
        return [node for node in self.all() if kind in node.kinds or kind == node.name]

    def without(self, *kinds: str) -> str:
        """The text in it that is not in an element of some classes."""
        if self.kinds & set(kinds):
            return ""
        return "".join(child if isinstance(child, str) else child.without(*kinds) for child in self.children)


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Node("document", {})]

    def handle_starttag(self, tag, attrs):
        made = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(made)
        if tag not in VOID:
            self.open.append(made)

    def handle_startendtag(self, tag, attrs):
        self.open[-1].children.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        assert self.open.pop().name == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)


def parsed(document):
    """A document as a tree; every element of it is closed by its own end tag."""
    parser = _Parser()
    parser.feed(document)
    parser.close()
    (root,) = parser.open
    return root


def shown_text(credit):
    """The completion as the map of a credit shows it, without values and tips."""
    (found,) = credit.find("map")
    return found.without("value", "tip")
