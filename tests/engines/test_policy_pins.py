"""Pins of requests that leave nothing to be measured hold as those of any other."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the lane `models` installs torch and transformers")
pytestmark = pytest.mark.models

from creditd.engines.errors import (  # noqa: E402
    EngineStoppedError,
    ModelUnsuitableError,
    WeightVersionMismatchError,
    WeightVersionUnknownError,
)
from creditd.engines.model_spec import ModelSpec  # noqa: E402
from creditd.engines.policy_engine import PolicyEngine  # noqa: E402
from creditd.engines.policy_protocol import SensitivityOptions, WeightPin  # noqa: E402
from engines.policies import item_of, saved_policy  # noqa: E402

WAIT_S = 60.0
OPTIONS = [SensitivityOptions("perturbation"), SensitivityOptions("gradient")]


@pytest.fixture
def engine(tmp_path):
    """A small policy that waits for weights `next`."""
    saved_policy(tmp_path / "policy")
    made = PolicyEngine.load(ModelSpec("policy", Path("policy"), kind="policy"), tmp_path)
    made.announce_weights("next")
    yield made
    made.close(1.0)


def nothing(engine, options):
    """A completion without measured tokens, and one that does not fit."""
    return engine.prepared_sensitivities([item_of(measured=np.array([], dtype=np.int64)), item_of(prompt=999)], options)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_pin_holds_where_nothing_is_measured(engine, options):
    """An unknown version is refused, another one fails or is waited for, and the current one is answered."""
    prepared, first = nothing(engine, options), engine.weight_version
    with pytest.raises(WeightVersionUnknownError):
        engine.sensitivities(prepared, pin=WeightPin("never"))
    with pytest.raises(WeightVersionMismatchError):
        engine.sensitivities(prepared, pin=WeightPin("next", "fail")).result(WAIT_S)
    assert engine.sensitivities(prepared, pin=WeightPin(first, "fail")).result(0.0).weight_version == first
    waiting = engine.sensitivities(prepared, pin=WeightPin("next"))
    with pytest.raises(WeightVersionMismatchError):
        engine.sensitivities(prepared, expires_s=0.0, pin=WeightPin("next")).result(WAIT_S)
    assert not waiting.done()
    engine._batcher.swap(lambda _beat: None, "next").result(WAIT_S)
    found = waiting.result(WAIT_S)
    assert found.weight_version == "next"
    assert [len(one) for one in found.sensitivities] == [0, 0]
    assert set(found.failures) == {1}
    engine.close()
    for pin in (WeightPin(), WeightPin(first)):
        with pytest.raises(EngineStoppedError):
            engine.sensitivities(prepared, pin=pin)


@pytest.mark.parametrize("ends", [0, [2, 0]])
def test_ends_that_only_the_generation_names_are_no_padding(tmp_path, ends):
    """Policies that end texts with several tokens name them there, and not in their configuration."""
    model = saved_policy(tmp_path / "policy")
    model.generation_config.eos_token_id = ends
    model.generation_config.save_pretrained(tmp_path / "policy")
    made = PolicyEngine.load(ModelSpec("policy", Path("policy"), kind="policy"), tmp_path)
    with pytest.raises(ModelUnsuitableError, match="the end of a text as well; expected a token_id"):
        made.prepared_sensitivities([item_of()], OPTIONS[0])
    named = SensitivityOptions("perturbation", perturbation_id=0)
    assert made.prepared_sensitivities([item_of()], named).failures == {}
    made.close(1.0)
