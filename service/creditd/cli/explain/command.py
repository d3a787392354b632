"""`creditd explain FILE`: the credit of completions as one page of HTML, or as a picture of it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from creditd.cli.explain.asking import asked
from creditd.cli.explain.document import document
from creditd.cli.explain.picture import NoBrowserError, PictureError, browser_path, picture
from creditd.cli.explain.reading import ExplainError, answer_of, request_of
from creditd.client import Client, CreditdError

_DONE, _FAILED, _NOT_UNDERSTOOD = 0, 1, 2
_CHOICES = ("segmentation", "absent", "credit", "estimator", "advantage", "expect")
"""Fields of a request that are objects."""
_START_S = 10.0
"""How long a service that does not answer is waited for."""


def run_file(options: argparse.Namespace) -> int:
    """Write a page, a picture, or both.

    Args:
        options: Parsed command line.

    Returns:
        0; 1 if completions have no credit, the service refuses the request or does not answer, or the browser makes no
        picture; 2 if the command line or the files cannot be used, and if there is no browser for a picture.
    """
    try:
        browser = None if options.png is None else browser_path()
        request = _with_choices(request_of(_text(options.file)), options)
        answer = _answer(request, options)
        _write(document(request, answer), browser, options)
    except BrokenPipeError:
        raise
    except (ExplainError, NoBrowserError, OSError, UnicodeDecodeError) as error:
        return _said(error, _NOT_UNDERSTOOD)
    except (CreditdError, PictureError) as error:
        return _said(error, _FAILED)
    failed = [(row, item["error"]) for row, item in enumerate(answer["items"]) if item["status"] != "ok"]
    for row, refusal in failed:
        print(f"creditd explain: completion {row + 1}: {refusal['code']}: {refusal['detail']}", file=sys.stderr)
    return _FAILED if failed else _DONE


def _write(page: str, browser: str | None, options: argparse.Namespace) -> None:
    """Put the page and the picture where they were asked for; the page on stdout if neither was."""
    if options.html is not None and str(options.html) != "-":
        options.html.write_text(page, encoding="utf-8")
    elif browser is None or options.html is not None:
        sys.stdout.buffer.write(page.encode())
        sys.stdout.buffer.flush()
    if browser is not None:
        options.png.write_bytes(picture(page, browser))


def _answer(request: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """What is there already, or what a service says."""
    if options.answer is not None:
        return answer_of(_text(str(options.answer)), request["items"])
    try:
        client = Client(options.url, deadline_s=options.timeout_s)
    except ValueError as error:
        raise ExplainError(str(error)) from None
    with client:
        if client.base_url == "local:":
            raise ExplainError("local mode has no models; expected --url http://HOST:PORT, or --answer FILE")
        client.wait_until_ready(min(options.timeout_s, _START_S))
        return asked(client, request)


def _with_choices(request: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The request with what the command line says, which counts more than what stands in the file."""
    found = dict(request)
    if options.model is not None:
        found["model"] = options.model
    for name in ("segmentation", "absent", "credit", "advantage"):
        if getattr(options, name) is not None:
            found[name] = _choice(name, getattr(options, name))
    for name in _CHOICES:
        if not isinstance(found.get(name, {}), Mapping):
            raise ExplainError(f"/{name}: got {_kind(found[name])}; expected an object, or none of this name")
    if options.max_units is not None:
        segmentation = found.get("segmentation", {"type": "span"})
        found["segmentation"] = {
            **segmentation,
            "max_units": None if options.max_units == "none" else options.max_units,
        }
    if options.alpha is not None:
        found["alpha"] = options.alpha
    estimator = {name: getattr(options, name) for name in ("budget", "seed") if getattr(options, name) is not None}
    if estimator:
        found["estimator"] = {"type": "auto", **found.get("estimator", {}), **estimator}
    return found


def _choice(name: str, text: str) -> dict[str, Any]:
    """A choice by its name, or as JSON."""
    if not text.lstrip().startswith("{"):
        return {"type": text}
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        raise ExplainError(f"--{name}: got {text!r}; expected a name or a JSON object") from None
    return found


def _kind(value: object) -> str:
    """What JSON calls it."""
    return "null" if value is None else "a string" if isinstance(value, str) else "something else"


def _text(name: str) -> str:
    """What stands in a file; `-` is standard input."""
    content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    return content.decode("utf-8-sig")


def _said(error: Exception, status: int) -> int:
    print(f"creditd explain: {error}", file=sys.stderr)
    return status
