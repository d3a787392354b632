"""Completions of words whose worth the tests know, the requests about them, and the law that every answer keeps."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest

from creditd.wire import codec
from creditd.wire.scar import ScarResponse, ScarSolveResponse
from server.model_services import BONUS, WORDS, fake, with_models
from server.running import SCAR, SCAR_SOLVE, on_service
from server.test_binary import packed, plain

MODEL_OF = {SCAR: ScarResponse, SCAR_SOLVE: ScarSolveResponse}
FORMATS = ("json", "binary")
TOLERANCE = 1e-12
"""Of sums of a few numbers of size 1."""

TEXT = "sun and rain, wind. snow; fog!"
"""Four spans of ten tokens; two of the spans are worth something together."""
SPAN_VALUES = [1.25, 0.5, 2.25, 0.125]
"""Shapley values of the spans, by hand."""

MANY = ", ".join(f"word{number}" for number in range(11)) + "."
"""Eleven spans."""
ABSENT = {
    "delete": ({"type": "delete"}, "", ["", " wind.", "sun and rain,", TEXT[:19]]),
    "blank": ({"type": "blank"}, " ", [" ", "  wind.", "sun and rain, ", TEXT[:19]]),
    "text": ({"type": "mask_token", "text": "<m>"}, "<m>", ["<m>", "<m> wind.", "sun and rain,<m>", TEXT[:19]]),
    "token": ({"type": "mask_token", "id": 42}, "*", ["*", "* wind.", "sun and rain,*", TEXT[:19]]),
}
"""Rules for absent units, the filler of each, and what is heard of the two spans of the beginning of the text."""


def value(prompt: Any, text: str) -> float:
    """The worth of the words of a text, NaN where the words say so.

    A curse without a charm has no worth, and doom never; an empty text has none as an answer to silence.
    """
    words = set(re.findall(r"\w+", text))
    if "doom" in words or ("curse" in words and "charm" not in words):
        return math.nan
    if "silence" in str(prompt) and not words & WORDS.keys():
        return math.nan
    found = sum(WORDS.get(word, 0.0) for word in words) + BONUS * ({"sun", "rain"} <= words)
    return found + 0.5 * ({"wind", "snow"} <= words) + len(str(prompt)) / 64


def scorer(**options: Any):
    """A fake model of that worth, whose attention to a unit is the number of its letters."""
    return fake(score=value, attention=_letters, **options)


def _letters(_: Any, units: tuple[str, ...]) -> list[float]:
    return [float(sum(map(str.isalpha, unit))) for unit in units]


def tokens_of(text: str) -> list[list[int]]:
    """Characters of tokens: words and signs, with the blanks before them."""
    return [list(found.span()) for found in re.finditer(r"\s*(?:\w+|\S)", text)]


def item_of(text: str, prompt: Any = "weather?", *, tokens: bool = True, **fields: Any) -> dict[str, Any]:
    """One completion, with tokens unless there are none."""
    offsets = {"token_offsets": tokens_of(text)} if tokens else {}
    return {"prompt": prompt, "completion": text, **offsets, **fields}


def request_of(*items: dict[str, Any], **options: Any) -> dict[str, Any]:
    """A request about some completions."""
    return {"model": "rm", "items": list(items), **options}


async def say(service: Any, body: dict[str, Any], form: str = "json", path: str = SCAR) -> httpx.Response:
    """The response to a body in one of the formats."""
    if form == "json":
        return await service.post(json.dumps(body), path)
    headers = {"Content-Type": codec.MEDIA_TYPE, "Accept": codec.MEDIA_TYPE}
    return await service.post(msgpack.packb(packed(body, axes=2)), path, **headers)


def document_of(response: httpx.Response, path: str = SCAR) -> dict[str, Any]:
    """The answer as it would stand in JSON, once it is in the schema of its route."""
    binary = response.headers["content-type"] == codec.MEDIA_TYPE
    document = plain(msgpack.unpackb(response.content)) if binary else response.json()
    if response.status_code == 200:
        document["usage"].setdefault("queue_s", 0.0)
        MODEL_OF[path].model_validate_json(json.dumps(document))
    return document


def ask(body: dict[str, Any], form: str = "json", resources: Any = None, path: str = SCAR) -> dict[str, Any]:
    """The answer of a fresh service to one request."""

    async def inner(service):
        return document_of(await say(service, body, form, path), path)

    return on_service(inner, resources or with_models(scorer()))


def answered(body: dict[str, Any], form: str = "json", resources: Any = None) -> list[dict[str, Any]]:
    """The items of an answer, each of which keeps the law."""
    found = ask(body, form, resources)
    assert "items" in found, found
    for item, result in zip(body["items"], found["items"], strict=True):
        if result["status"] == "ok":
            assert_lawful(item, result, body.get("alpha", 1.0))
    return found["items"]


def assert_lawful(item: dict[str, Any], result: dict[str, Any], alpha: float) -> None:
    """Σ token rewards = Σ KL + other_reward + v(P) − α·v(∅), in parts that the ledger names; masked tokens get 0."""
    ledger, rewards = result["ledger"], np.array(result["token_rewards"], dtype=np.float64)
    mask = np.array(item.get("completion_mask", [True] * len(rewards)), dtype=np.bool_)
    kl = np.array(item.get("kl", [0.0] * len(rewards)), dtype=np.float64)[mask].sum()
    other, empty = item.get("other_reward", 0.0), result["utility_empty"]
    used = 0.0 if empty is None else alpha
    total = kl + other + result["utility_grand"] - used * (empty or 0.0)
    assert ledger["alpha"] == used
    assert ledger["total"] == pytest.approx(total, abs=TOLERANCE)
    parts = [ledger[name] for name in ("kl", "other_reward", "units", "terminal", "remainder")]
    assert sum(parts) == pytest.approx(ledger["total"], abs=TOLERANCE)
    assert (ledger["kl"], ledger["other_reward"]) == (pytest.approx(kl, abs=TOLERANCE), other)
    assert rewards.sum() == pytest.approx(ledger["total"] if mask.any() else 0.0, abs=TOLERANCE)
    assert not rewards[~mask].any()
    if result["token_advantages"] is not None:
        assert not np.array(result["token_advantages"])[~mask].any()
    values = result["unit_values"]
    assert ("fallback_return" in result["flags"]) == (values is None)
    if values is not None:
        assert result["gap"] == pytest.approx(sum(values) - (result["utility_grand"] - empty), abs=TOLERANCE)
        assert ledger["units"] == pytest.approx(used * sum(values), abs=TOLERANCE)
