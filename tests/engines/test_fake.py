import math

import numpy as np
import pytest

from creditd.engines.errors import EngineStoppedError, ModelUnsuitableError
from creditd.engines.fake import FakeEngine
from creditd.engines.model_spec import ModelSpec
from creditd.engines.protocol import VariantTexts

PATIENCE_S = 60.0
UNITS = ("sun", " and", " rain")


def lengths(_prompt, units):
    """Shares of the characters."""
    total = sum(map(len, units))
    return [len(unit) / total for unit in units]


def fake(attention=lengths, **spec):
    """An engine whose attention is known."""
    return FakeEngine(lambda _prompt, text: float(len(text)), ModelSpec("rm", "nowhere", **spec), attention=attention)


def whole(prompt, units):
    """A completion with all its units."""
    return VariantTexts(prompt, units, np.ones((1, len(units)), dtype=np.bool_))


def attended(engine, *texts):
    """What an engine answers."""
    return engine.attention(engine.prepared_attention(texts)).result(PATIENCE_S)


def test_attention_is_the_function_that_is_given():
    """Each text has the weights of its units, in its place, and its cost is known before it is asked."""
    engine = fake()
    texts = [whole("why?", UNITS), whole("why?", ()), whole("why?", ("fog",))]
    prepared = engine.prepared_attention(texts)
    assert (prepared.usage.evaluations, prepared.usage.tokens_computed, engine.batches) == (3, 27, [])
    found = engine.attention(prepared).result(PATIENCE_S)
    assert [weights.tolist() for weights in found.weights] == [[3 / 12, 4 / 12, 5 / 12], [], [1.0]]
    assert (found.failures, engine.batches) == ({}, [3])
    scores = engine.submit(engine.prepared(texts)).result(PATIENCE_S)
    assert scores.rewards.tolist() == [12.0, 0.0, 3.0]
    engine.close(PATIENCE_S)
    with pytest.raises(EngineStoppedError):
        engine.attention(prepared)


def test_a_text_without_attention_fails_alone():
    """What does not fit, or has weights that are no numbers, is named, and the others are answered."""
    engine = fake(lambda _, units: [math.nan if unit == "fog" else 1.0 for unit in units], max_tokens=12)
    found = attended(engine, whole("why?", UNITS), whole("why?", ("fog", "sun")), whole("why?", ("sun", "rain")))
    assert [failure.code for _, failure in sorted(found.failures.items())] == ["context_exceeded", "non_finite_utility"]
    assert [np.isnan(weights).tolist() for weights in found.weights] == [[True] * 3, [True] * 2, [False] * 2]
    none = attended(engine, whole("why?", UNITS))
    assert (set(none.failures), none.usage.evaluations) == ({0}, 0)
    engine.close(PATIENCE_S)


def test_attention_is_asked_of_one_completion_of_each_text():
    """A table of coalitions has no attention, and neither has an engine that was made without any."""
    engine, blind = fake(), fake(None)
    with pytest.raises(ValueError, match="one completion for each text"):
        engine.prepared_attention([VariantTexts("q", ("a", "b"), np.eye(2, dtype=np.bool_))])
    with pytest.raises(ModelUnsuitableError, match="has no attention"):
        blind.prepared_attention([whole("q", ("a",))])
    for one in (engine, blind):
        one.close(PATIENCE_S)


def test_a_character_is_the_text_of_its_token():
    """Token ids are code points; what is none, or half of a pair, has no text."""
    engine = fake()
    assert (engine.token_text(0x2588), engine.token_text(32)) == ("█", " ")
    for wrong in (-1, 0xD800, 0x110000):
        with pytest.raises(ModelUnsuitableError, match=f"got token {wrong}; expected the code point"):
            engine.token_text(wrong)
    engine.close(PATIENCE_S)
