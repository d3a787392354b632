"""Services with a fake reward model whose scores the tests know."""

from __future__ import annotations

import itertools
from typing import Any

from creditd.engines.fake import FakeEngine
from creditd.engines.model_spec import ModelSpec
from creditd.engines.registry import Registry
from creditd.server.resources import Resources
from creditd.server.settings import Settings

WORDS = {"sun": 1.0, "rain": -0.5, "wind": 0.25, "snow": 2.0, "fog": 0.125}
BONUS = 0.75
"""What sun and rain are worth together beside their own values: a rainbow."""


def worth(_: Any, text: str) -> float:
    """The worth of the words of a text, whatever their order; NaN for a text with a curse."""
    words = text.split()
    if "curse" in words:
        return float("nan")
    return sum(WORDS.get(word, 0.0) for word in words) + BONUS * ({"sun", "rain"} <= set(words))


def fake(name="rm", score=worth, *, max_tokens=None, per_batch_s=0.0, per_token_s=0.0, **spec) -> FakeEngine:
    """A fake reward model."""
    made = ModelSpec(name, "nowhere", max_tokens=max_tokens, **spec)
    return FakeEngine(score, made, per_batch_s=per_batch_s, per_token_s=per_token_s)


def with_models(*engines: FakeEngine, **settings: Any) -> Resources:
    """Resources of a service that has some models."""
    found = engines or (fake(),)
    return Resources(Settings(**settings), engines=Registry({engine.spec.id: engine for engine in found}))


def sets_of(*rows, prompt: Any = "weather?", **options: Any) -> dict[str, Any]:
    """A request of one group, a row of texts per set."""
    return {
        "sets": [{"group": "p", "prompt": prompt, "candidates": [{"text": text} for text in row]} for row in rows],
        **options,
    }


def columns_of(*rows, prompt: Any = "weather?", **options: Any) -> dict[str, Any]:
    """The same request column by column."""
    return {
        "columns": {
            "groups": ["p"] * len(rows),
            "prompts": [prompt] * len(rows),
            "texts": [text for row in rows for text in row],
            "row_splits": [0, *itertools.accumulate(map(len, rows))],
        },
        **options,
    }


REWARDS = {"rewards": {"type": "model", "model": "rm"}}
UTILITY = {"utility": {"type": "model", "model": "rm"}}
