import threading
import time

import numpy as np
import pytest

from creditd.engines.errors import (
    EngineExpiredError,
    EngineFailedError,
    EngineOverloadedError,
    EngineStoppedError,
    ModelUnsuitableError,
    WeightVersionMismatchError,
    WeightVersionUnknownError,
)
from creditd.engines.fake_policy import FakePolicy
from creditd.engines.model_spec import ModelSpec
from creditd.engines.policy_protocol import ReasonedTokens, SensitivityOptions, WeightPin

PATIENCE_S = 60.0
GRADIENT = SensitivityOptions("gradient")


def measure(version, item, _):
    """The places of the measured tokens, by the last letter of the version."""
    return (item.positions * float(version[-1])).tolist()


def policy(measured=measure, **options):
    """A policy whose first version is v1."""
    limits = {name: options.pop(name) for name in ("max_tokens", "max_queued_tokens") if name in options}
    return FakePolicy(measured, ModelSpec("p", "nowhere", kind="policy", **limits), version="v1", **options)


def item_of(*completion):
    """A completion whose last token is its answer."""
    count = len(completion)
    return ReasonedTokens(np.array([1, 2]), np.array(completion), np.arange(count - 1), (count - 1, count))


def asked(engine, *items, options=GRADIENT, expires_s=float("inf"), **pin):
    """What an engine is going to answer."""
    return engine.sensitivities(engine.prepared_sensitivities(items, options), expires_s, pin=WeightPin(**pin))


def test_sensitivities_are_the_function_that_is_given():
    """Each item has its own, in its place, of the version that the answer names; the cost is known before."""
    engine = policy()
    prepared = engine.prepared_sensitivities([item_of(7, 8, 9), item_of(5)], SensitivityOptions("perturbation"))
    assert (prepared.usage.evaluations, prepared.usage.tokens_naive) == (3 + 1, 3 * 4 + 2)
    found = engine.sensitivities(prepared).result(PATIENCE_S)
    assert [one.tolist() for one in found.sensitivities] == [[0.0, 1.0], []]
    assert (found.weight_version, found.failures, found.spreads) == ("v1", {}, (None, None))
    engine.close()


def test_what_does_not_fit_fails_alone():
    """Too long, unknown tokens, and numbers that are not finite."""
    engine = policy(
        lambda _, item, __: [float("nan") if item.completion_ids[0] == 6 else 1.0], max_tokens=4, vocabulary=9
    )
    found = asked(engine, item_of(7, 8), item_of(7, 8, 8), item_of(7, 9), item_of(6, 8)).result(PATIENCE_S)
    assert {place: one.code for place, one in found.failures.items()} == {
        1: "context_exceeded",
        2: "invalid_request",
        3: "non_finite_utility",
    }
    assert found.sensitivities[0].tolist() == [1.0]
    assert np.isnan(found.sensitivities[3]).all()
    engine.close()


def test_padding_that_ends_texts_is_refused():
    """Never the end of a text in silence; a token that is named is taken, if there is one."""
    by_padding = SensitivityOptions("perturbation")
    for pad_id, sentence in ((3, "the end of a text as well"), (None, "no padding token")):
        engine = policy(pad_id=pad_id, eos_id=3, vocabulary=100)
        with pytest.raises(ModelUnsuitableError, match=sentence):
            engine.prepared_sensitivities([], by_padding)
        engine.prepared_sensitivities([], SensitivityOptions("perturbation", perturbation_id=3))
        with pytest.raises(ModelUnsuitableError, match="below 100"):
            engine.prepared_sensitivities([], SensitivityOptions("perturbation", perturbation_id=100))
        engine.close()


def test_tokens_are_characters():
    """One for each; what is no character is refused."""
    engine = policy(vocabulary=300)
    assert engine.completion_text(list(map(ord, "é#"))) == ("é#", [(0, 1), (1, 2)])
    for token in (-1, 300):
        with pytest.raises(ValueError, match=f"got token {token}"):
            engine.completion_text([token])
    engine.close()


def test_pins_are_kept():
    """The current version is answered, an announced one waited for or not, one that never was is unknown."""
    engine = policy()
    assert asked(engine, item_of(7, 8), version="v1", if_not_ready="fail").result(PATIENCE_S).weight_version == "v1"
    with pytest.raises(WeightVersionUnknownError):
        asked(engine, item_of(7, 8), version="v2")
    engine.announce_weights("v2")
    assert engine.weight_state().announced == ("v2",)
    with pytest.raises(WeightVersionMismatchError):
        asked(engine, item_of(7, 8), version="v2", if_not_ready="fail").result(PATIENCE_S)
    late = asked(engine, item_of(7, 8, 9), version="v2")
    assert asked(engine, item_of(7, 8)).result(PATIENCE_S).weight_version == "v1"
    assert not late.done()
    engine.replace("v2")
    found = late.result(PATIENCE_S)
    assert (found.weight_version, found.sensitivities[0].tolist()) == ("v2", [0.0, 2.0])
    state = engine.weight_state()
    assert (state.current, state.announced, state.n_swaps, state.seen("v1")) == ("v2", (), 1, True)
    engine.close()


def test_late_broken_and_stopped_work_is_an_error():
    """Expired, failed, overloaded and stopped, each by its name; what waits for weights fails with the engine."""

    def broken(*_):
        raise RuntimeError("a word")

    engine = policy(broken)
    with pytest.raises(EngineExpiredError):
        asked(engine, item_of(7, 8), expires_s=time.monotonic() - 1.0).result(PATIENCE_S)
    with pytest.raises(EngineFailedError) as failure:
        asked(engine, item_of(7, 8)).result(PATIENCE_S)
    assert "a word" not in str(failure.value)
    engine.announce_weights("v2")
    waiting = asked(engine, item_of(7, 8), version="v2")
    engine.close()
    with pytest.raises(EngineStoppedError):
        waiting.result(PATIENCE_S)
    with pytest.raises(EngineStoppedError):
        asked(engine, item_of(7, 8))
    assert not engine.status().alive


def test_tokens_that_wait_are_counted():
    """More than the limit is refused; a work that was given up counts for nothing any more."""
    gate = threading.Event()
    engine = policy(lambda _, item, __: [float(gate.wait(PATIENCE_S))] * len(item.positions), max_queued_tokens=10)
    first = asked(engine, item_of(7, 8))
    assert engine.status().queued_tokens == 2 * 3
    with pytest.raises(EngineOverloadedError):
        asked(engine, item_of(7, 8))
    counted = threading.Event()
    first.add_done_callback(lambda _: counted.set())  # behind the engine's own
    gate.set()
    assert counted.wait(PATIENCE_S)
    assert engine.status().queued_tokens == 0
    engine.announce_weights("v2")
    asked(engine, item_of(7, 8), version="v2").cancel()
    assert engine.status().queued_tokens == 0
    engine.close()
