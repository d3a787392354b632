"""Services with a fake reward model whose scores the tests know."""

from __future__ import annotations

import itertools
from concurrent.futures import Future
from typing import Any

import numpy as np

from creditd.engines.fake import FakeEngine
from creditd.engines.model_spec import ModelSpec
from creditd.engines.protocol import EmbeddedTexts, EngineStatus, EngineUsage, PreparedTexts, TextFailure
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


def fake(
    name="rm", score=worth, *, max_tokens=None, per_batch_s=0.0, per_token_s=0.0, attention=None, **spec
) -> FakeEngine:
    """A fake reward model."""
    made = ModelSpec(name, "nowhere", max_tokens=max_tokens, **spec)
    return FakeEngine(score, made, per_batch_s=per_batch_s, per_token_s=per_token_s, attention=attention)


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


class FakeEmbedder:
    """An embedding model whose vectors are counts of words, of length 1; a text without a known word has none.

    With `known=False` it takes any text for the same one.
    """

    def __init__(self, name="emb", longest=40, *, known=True):
        self.known = known
        self.spec = ModelSpec(name, "nowhere", kind="embedding", max_tokens=longest)
        self.identity, self.numerics, self.is_remembered = name, "fake", True
        self.asked = []

    def prepared(self, texts):
        """Texts that are too long are failures."""
        failures = {
            place: TextFailure("context_exceeded", f"got {len(text)} tokens; expected at most {self.spec.max_tokens}")
            for place, text in enumerate(texts)
            if len(text) > self.spec.max_tokens
        }
        return PreparedTexts(len(texts), failures, EngineUsage(evaluations=len(set(texts))), tuple(texts))

    def submit(self, prepared, expires_s=float("inf")):
        """The vectors, at once."""
        del expires_s
        self.asked.append(prepared.work)
        work = prepared.work if self.known else ["sun"] * len(prepared.work)
        counts = np.array([[text.split().count(word) for word in WORDS] for text in work], dtype=np.float64)
        lengths = np.sqrt((counts**2).sum(axis=1, keepdims=True))
        vectors = np.divide(counts, lengths, out=np.full(counts.shape, np.nan), where=lengths > 0)
        failures = dict(prepared.failures)
        vectors[list(failures)] = np.nan
        for place in np.flatnonzero(np.isnan(vectors[:, 0])).tolist():
            failures.setdefault(place, TextFailure("non_finite_utility", "it has no direction"))
        answer = Future()
        answer.set_result(EmbeddedTexts(vectors, failures, prepared.usage))
        return answer

    def status(self):
        """Always well."""
        return EngineStatus(self.spec, "fake", None, self.spec.max_tokens, None, None, None, 0, 0, 0.0, alive=True)

    def close(self, timeout_s=None):
        """Nothing to close."""


def with_embedder(embedder=None, **settings: Any) -> Resources:
    """Resources of a service that has an embedding model and a reward model."""
    found = embedder or FakeEmbedder()
    registry = Registry({"rm": fake()}, {found.spec.id: found})
    return Resources(Settings(**settings), engines=registry)
