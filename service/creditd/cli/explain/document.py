"""The document that `creditd explain` writes: one HTML file, whole in itself, without a script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from creditd.cli.explain.heat_map import credit_of, legend, scales_of
from creditd.cli.explain.markup import Markup, element, joined

STYLES = ("theme.css", "heat.css")
"""Of `creditd.server.page`, which has the same look."""


def document(request: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """A page of all completions of a request.

    Args:
        request: As `POST /v1/credit/scar` takes it; of its choices those that are in it are named. Its `items` need
            their `completion`.
        answer: As the service gave it, in JSON: `items` in the same order.

    Returns:
        HTML in which every text is text. A policy in it allows its own style and nothing else.
    """
    items, answers = request["items"], answer["items"]
    articles = [
        element("article", _heading(item, row), credit_of(item, one, row, scale))
        for row, (item, one, scale) in enumerate(zip(items, answers, scales_of(items, answers), strict=True))
    ]
    style = _style()
    policy = f"default-src 'none'; style-src 'sha256-{_digest(style)}'; base-uri 'none'; form-action 'none'"
    title = f"Credit of {len(items)} completion{'' if len(items) == 1 else 's'}"
    head = joined(
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        element("title", title),
        Markup(f"<style>{style}</style>"),
    )
    header = element("header", element("h1", title), element("p", _about(request, answer), class_="quiet"))
    body = element("body", header, legend(), *articles)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n{body}</html>\n'


def _heading(item: Mapping[str, Any], row: int) -> Markup:
    name, group = item.get("id"), item.get("group")
    words = [*([] if name is None else [str(name)]), *([] if group is None else [f"group {group}"])]
    return element("h2", f"Completion {row + 1} ", element("span", ", ".join(words)))


def _about(request: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    """Where the numbers come from, in one line."""
    words = []
    if answer.get("model") is not None:
        words.append(f"model {answer['model']}")
    for name in ("segmentation", "absent", "credit"):
        choice = request.get(name)
        if isinstance(choice, Mapping) and "type" in choice:
            words.append(f"{name} {choice['type']}")
    usage, service = answer.get("usage"), answer.get("service")
    if isinstance(usage, Mapping) and {"evaluations", "from_cache"} <= usage.keys():
        words.append(f"{usage['evaluations']} evaluations, {usage['from_cache']} remembered")
    if isinstance(service, Mapping) and {"version", "methods"} <= service.keys():
        words.append(f"creditd {service['version']}, methods {service['methods']}")
    if answer.get("request_id") is not None:
        words.append(f"request {answer['request_id']}")
    return " · ".join(words)


@cache
def _style() -> str:
    folder = files("creditd.server.page")
    return "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in STYLES)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
